//! `netd dns`: names for a node's workspaces. Answers the fabric's names by who asks, makes AAAA of A (DNS64, RFC 6147),
//! and forwards the rest with a cache. It reads one file that netd writes and needs nothing else of netd.
#![forbid(unsafe_code)]

pub mod answer;
pub mod dns64;
mod forward;
mod limit;
mod listen;
mod metrics;
pub mod names;
mod privileges;
mod respond;
pub mod synthesis;
pub mod view;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    forward::Forwarder,
    listen::Listeners,
    metrics::{Metrics, count},
    respond::{Service, State},
    view::{View, ViewFile},
};

/// How often the view's file is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How `netd dns` is started.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The view that netd writes; waited for if it does not exist yet
    #[arg(long, value_name = "FILE", default_value = "/run/weft/dns.json")]
    pub view: PathBuf,
    /// Log in JSON
    #[arg(long)]
    pub log_json: bool,
    /// Number of threads
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub threads: u16,
    /// Serve metrics over HTTP on this unix socket
    #[arg(long, value_name = "SOCKET")]
    pub metrics_socket: Option<PathBuf>,
}

/// Runs until SIGTERM or SIGINT. Must be called before other threads are started: it drops privileges.
pub fn run(args: Args) -> Result<()> {
    start_log(args.log_json);
    let metrics_socket = args.metrics_socket.as_deref().map(|path| {
        metrics::bind(path).with_context(|| {
            format!(
                "cannot listen on --metrics-socket {}: make its directory, writable for this process",
                path.display()
            )
        })
    });
    let metrics_socket = metrics_socket.transpose()?;
    privileges::drop_all_but_bind()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(usize::from(args.threads))
        .enable_all()
        .build()
        .context("cannot start the runtime's threads")?;
    runtime.block_on(async {
        let metrics = Arc::new(Metrics::default());
        if let Some(socket) = metrics_socket {
            let socket = tokio::net::UnixListener::from_std(socket).context("cannot use the metrics socket")?;
            tokio::spawn(metrics::serve(socket, metrics.clone()));
        }
        let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
        tokio::select! {
            result = serve(ViewFile::new(args.view), metrics) => result,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}

fn start_log(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new("info,hickory_net=error,hickory_resolver=error,hickory_proto=error")
    });
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A caller that logs already keeps its own way.
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ = if json { log.json().flatten_event(true).try_init() } else { log.with_ansi(ansi).try_init() };
}

/// Serves the newest good view, for ever.
async fn serve(mut file: ViewFile, metrics: Arc<Metrics>) -> Result<()> {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let first = loop {
        match file.changed() {
            Some(Ok(view)) => break view,
            Some(Err(error)) => refuse(&file, &error, &metrics),
            None if !file.path().exists() => say_waiting(&file),
            None => {}
        }
        look.tick().await;
    };
    let mut listen = first.raw.listen.clone();
    let service = Arc::new(Service { state: ArcSwap::from_pointee(state(first, None, &metrics)?), metrics });
    let mut listeners = Listeners::new(service.clone());
    loop {
        listeners.reconcile(&listen);
        look.tick().await;
        match file.changed() {
            Some(Ok(view)) => {
                listen.clone_from(&view.raw.listen);
                let before = service.state.load_full();
                service.state.store(Arc::new(state(view, Some(&before), &service.metrics)?));
            }
            Some(Err(error)) => refuse(&file, &error, &service.metrics),
            None => {}
        }
    }
}

/// What a view means; the cache stays as long as the upstreams do.
fn state(view: View, before: Option<&State>, metrics: &Arc<Metrics>) -> Result<State> {
    count(&metrics.views);
    tracing::debug!(names = view.raw.names.len(), upstreams = ?view.raw.upstreams, "serving a new view");
    let same = before.filter(|before| before.forwarder.upstreams() == view.raw.upstreams);
    let forwarder = match same {
        Some(before) => before.forwarder.clone(),
        None => {
            if view.raw.upstreams.is_empty() {
                tracing::warn!(
                    "upstreams: there are none, so only the fabric's names are answered; give the node a resolver"
                );
            }
            let forwarder = Forwarder::new(&view.raw.upstreams, metrics.clone());
            Arc::new(forwarder.context("cannot prepare the upstreams")?)
        }
    };
    Ok(State { names: view.names, translation: view.translation, forwarder })
}

fn refuse(file: &ViewFile, error: &view::ViewError, metrics: &Metrics) {
    count(&metrics.views_refused);
    tracing::error!(file = %file.path().display(), %error, "the view is not taken; what was served before stays");
}

/// Says once that there is no file yet.
fn say_waiting(file: &ViewFile) {
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| {
        tracing::info!(file = %file.path().display(), "waiting for the view; `netd run` writes it");
    });
}
