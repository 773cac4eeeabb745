//! `nat64`: the NAT64 translator of a node, or a SIIT one. Reads packets from a TUN, translates them, writes them back to it.
mod metrics;
mod privileges;
mod run;
mod trace;
mod vnet;
mod worker;

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use weft_nat64_core::{Config, config::Mode};

/// Translates between IPv6 workspaces and the IPv4 internet (RFC 6146, or RFC 7915 alone), through a TUN device.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand)]
enum Command {
    /// Checks a configuration file and exits.
    Check {
        /// The configuration (TOML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Shows what would become of packets, and by which rules of which RFCs. Nothing is sent.
    Trace {
        /// The configuration (TOML).
        #[arg(long)]
        config: PathBuf,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
        /// Packets in hex from the IP header on, one after the other: an answer finds what the one before it opened.
        #[arg(required = true)]
        packets: Vec<String>,
    },
}

/// What a run needs.
#[derive(clap::Args)]
struct RunArguments {
    /// The configuration (TOML); waited for if it is not there yet, read again on SIGHUP.
    #[arg(long, default_value = "/run/weft/nat64.toml")]
    config: PathBuf,
    /// Where metrics are served: HTTP on a unix socket.
    #[arg(long)]
    metrics_socket: Option<PathBuf>,
    /// Where the process's number is written, so that netd can signal a new configuration.
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Creates the TUN device and brings it up, instead of waiting for netd to do so.
    #[arg(long)]
    create_tun: bool,
    /// Logs JSON, one object a line.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Check { config }) => check(&config),
        Some(Command::Trace { config, json, packets }) => {
            read_config(&config).and_then(|config| trace::run(config, &packets, json))
        }
        None => {
            start_logging(arguments.run.log_json);
            run::run(&arguments.run)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "nat64: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json { builder.json().init() } else { builder.with_target(false).init() }
}

fn check(path: &std::path::Path) -> anyhow::Result<()> {
    let config = read_config(path)?;
    let serves = match config.mode {
        Mode::Nat64 => config.sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        Mode::Siit => format!("{} explicit mappings and {} prefixes", config.eam.len(), config.prefix.len()),
    };
    writeln!(std::io::stdout(), "{} is valid: {} serves {serves}", path.display(), config.tun)?;
    Ok(())
}

/// Reads and checks a configuration.
fn read_config(path: &std::path::Path) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}: give the file's path with --config", path.display()))?;
    let config: Config = toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
    config.validate().with_context(|| format!("cannot use {}", path.display()))?;
    Ok(config)
}
