//! The binary netd: `run` is the node's control process, `wire` the user-space tunnel, `dns` the resolver. Each is a process
//! of its own, so that each can be restarted alone.
use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;
use weft_netd::{
    config::{Config, Paths},
    service,
};

/// The per-node service of a Weft fabric.
#[derive(Debug, Parser)]
#[command(name = "netd", version, about = "The per-node service of a Weft fabric")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The control process: keeps the kernel as the fabric says, and answers netctl
    Run(Node),
    /// WireGuard in user space: carries packets between nodes
    Wire(weft_wire::Args),
    /// The resolver of this node's workspaces
    Dns(weft_dns::Args),
    /// Remove everything of ours from the kernel; identity and journal stay
    Teardown(Node),
}

#[derive(Debug, clap::Args)]
struct Node {
    /// The configuration; a file that does not exist is the default one
    #[arg(long, default_value = "/etc/weft/netd.toml", value_name = "FILE")]
    config: PathBuf,
    /// Identity, journal, store
    #[arg(long, default_value = "/var/lib/weft", value_name = "DIR")]
    state_dir: PathBuf,
    /// Sockets, and what other processes read
    #[arg(long, default_value = "/run/weft", value_name = "DIR")]
    run_dir: PathBuf,
    /// Pins of the data path, on a BPF file system
    #[arg(long, default_value = "/sys/fs/bpf/weft", value_name = "DIR")]
    bpf_dir: PathBuf,
    /// How to log, to standard error (RUST_LOG chooses what)
    #[arg(long, default_value = "text")]
    log: Log,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Log {
    Text,
    Json,
}

impl Log {
    fn start(self) {
        let filter = || EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let log = tracing_subscriber::fmt().with_env_filter(filter()).with_writer(std::io::stderr);
        match self {
            Self::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
            Self::Json => log.json().flatten_event(true).init(),
        }
    }
}

impl Node {
    fn paths(&self) -> anyhow::Result<Paths> {
        let absolute = |path: &PathBuf| std::path::absolute(path);
        Ok(Paths { state: absolute(&self.state_dir)?, run: absolute(&self.run_dir)?, bpf: absolute(&self.bpf_dir)? })
    }
}

fn main() -> ExitCode {
    match start(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Wire(args) => Ok(weft_wire::run(args)?),
        Command::Dns(args) => weft_dns::run(args),
        Command::Run(node) => {
            service::require_rights("run")?;
            let config = Config::load(&node.config)?;
            node.log.start();
            runtime()?.block_on(service::run(config, node.paths()?))
        }
        Command::Teardown(node) => {
            service::require_rights("teardown")?;
            let config = Config::load(&node.config)?;
            node.log.start();
            runtime()?.block_on(service::teardown(&config, &node.paths()?))
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
