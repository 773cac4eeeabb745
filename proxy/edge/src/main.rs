//! weft-proxy: the TLS ingress of a fabric. `https://<port>-<workspace>.<domain>` reaches that port of that workspace.
#![forbid(unsafe_code)]

mod answer;
mod config;
mod downstream;
mod feed;
mod headers;
mod ingress;
mod listen;
mod live;
mod metrics;
mod plain;
mod privileges;
mod serve;
mod tls;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use clap::Parser;
use tracing_subscriber::EnvFilter;

/// The configuration's fields, with their defaults in comments. A test reads it.
const EXAMPLE: &str = "\
The configuration, proxy.toml:

  listen = [\"[::]:443\", \"0.0.0.0:443\"]        # TLS
  certificate = \"/etc/weft/proxy/chain.pem\"    # the wildcard for the fabric's domain; re-read when it changes
  key = \"/etc/weft/proxy/key.pem\"
  # redirect = [\"[::]:80\", \"0.0.0.0:80\"]     # plain HTTP, answered with a redirect to https
  # metrics = \"127.0.0.1:9187\"                # or a socket's path
  # domain = \"ws.example.dev\"                 # instead of the fabric's
  # api = \"/run/weft/netd.sock\"
  # [limits]
  # connections = 20000
  # header_bytes = 65536
  # header_timeout_s = 15                      # a request's header section, from its first byte
  # handshake_timeout_s = 10
  # idle_timeout_s = 75                        # between requests of a connection
  # body_timeout_s = 60                        # between two pieces of a body
  # stream_idle_timeout_s = 3600               # a silent WebSocket or response
  # connect_timeout_s = 5                      # to a workspace
  # drain_timeout_s = 10                       # for what is in progress at a stop

Signals: SIGHUP re-reads the certificate, SIGTERM drains and stops.";

/// The TLS ingress of a Weft fabric: https://<port>-<workspace>.<domain> reaches that port of that workspace.
#[derive(Debug, Parser)]
#[command(name = "weft-proxy", version, after_help = EXAMPLE)]
struct Arguments {
    /// The configuration.
    #[arg(long, default_value = "/etc/weft/proxy.toml", value_name = "FILE")]
    config: PathBuf,
    /// Where the last known routes are kept, for when netd is away.
    #[arg(long, default_value = "/var/lib/weft/proxy", value_name = "FOLDER")]
    state_dir: PathBuf,
    /// Where netd's socket is, unless the configuration names it.
    #[arg(long, default_value = "/run/weft", value_name = "FOLDER")]
    run_dir: PathBuf,
    /// Logs JSON, one object a line.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log(arguments.log_json);
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log(json: bool) {
    // The engine's own lines repeat the access log's; RUST_LOG brings them back.
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,pingora_core=off,pingora_proxy=off"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json { log.json().flatten_event(true).init() } else { log.init() }
}

/// Everything that can be wrong from outside is found here, in the order in which an operator would repair it.
fn start(arguments: Arguments) -> Result<()> {
    let config = config::Config::read(&arguments.config, &arguments.run_dir)?;
    let certificate = Arc::new(tls::Certificate::read(&config.certificate, &config.key)?);
    std::fs::create_dir_all(&arguments.state_dir).with_context(|| {
        format!(
            "cannot create {}: name a folder that this user may write with --state-dir",
            arguments.state_dir.display()
        )
    })?;
    let listeners = listen::Listeners::bind(&config)?;
    let files = privileges::raise_open_files()?;
    privileges::drop_all()?;
    if files < 2 * config.limits.connections as u64 {
        tracing::warn!(
            files,
            connections = config.limits.connections,
            "the limit of open files is low for that many connections: raise it (LimitNOFILE=), or lower limits.connections"
        );
    }
    // Threads begin only now: capabilities are per thread, and these must have none.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let served = runtime.block_on(serve::run(config, listeners, certificate, arguments.state_dir));
    runtime.shutdown_background();
    served
}
