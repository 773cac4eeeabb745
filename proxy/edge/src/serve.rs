//! Accepts connections, makes them TLS, and hands them to the engine; ends them in good order at a shutdown.
use std::{
    net::SocketAddr,
    sync::{Arc, RwLock, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use pingora::{
    apps::{HttpServerApp, HttpServerOptions, ServerApp},
    protocols::http::v2::server::default_h2_options,
    proxy::{HttpProxy, http_proxy},
    server::configuration::ServerConf,
};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, info, warn};
use weft_client::Client;
use weft_proxy_core::Table;

use crate::{
    config::{Config, Limits},
    downstream::Downstream,
    feed::Feed,
    ingress::Ingress,
    listen::Listeners,
    live::Live,
    metrics::Metrics,
    plain,
    tls::Certificate,
};

/// How often the certificate's files are looked at.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(5);

/// What every connection needs.
struct Edge {
    acceptor: TlsAcceptor,
    engine: Arc<HttpProxy<Ingress>>,
    metrics: Arc<Metrics>,
    limits: Limits,
    permits: Arc<Semaphore>,
}

/// Serves until a signal says to stop, then drains.
pub(crate) async fn run(
    config: Config,
    listeners: Listeners,
    certificate: Arc<Certificate>,
    state_dir: std::path::PathBuf,
) -> Result<()> {
    let table = Arc::new(RwLock::new(Table::new(config.domain.clone())));
    let metrics = Arc::new(Metrics::new());
    let live = Arc::new(Live::default());
    let feed = Feed {
        client: Client::unix(&config.api),
        table: table.clone(),
        live: live.clone(),
        metrics: metrics.clone(),
        file: state_dir.join("routes.json"),
    };
    feed.restore();
    tokio::spawn(feed.run());
    let ingress = Ingress { table: table.clone(), metrics: metrics.clone(), live, limits: config.limits };
    let edge = Arc::new(Edge {
        acceptor: TlsAcceptor::from(Arc::new(certificate.server_config()?)),
        engine: Arc::new(engine(ingress)),
        metrics: metrics.clone(),
        limits: config.limits,
        permits: Arc::new(Semaphore::new(config.limits.connections)),
    });
    let (stop, stopped) = watch::channel(false);
    let mut https_port = 443;
    for listener in listeners.tls {
        let listener = TcpListener::from_std(listener).context("cannot use a listening socket")?;
        let address = listener.local_addr()?;
        https_port = address.port();
        info!(%address, "listening");
        tokio::spawn(accept(listener, edge.clone(), stopped.clone()));
    }
    for listener in listeners.redirect {
        info!(address = %listener.local_addr()?, "redirecting to https");
        tokio::spawn(plain::redirect(listener, table.clone(), https_port, config.limits.connections));
    }
    if let Some(listener) = listeners.metrics {
        tokio::spawn(plain::metrics(listener, metrics.clone()));
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut look = tokio::time::interval(CERTIFICATE_LOOK);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => refresh(&certificate),
            _ = look.tick() => refresh(&certificate),
        }
    }
    info!(connections = metrics.open(), "stopping: no new connections, those in progress may end");
    // Every receiver may be gone already; then there is nothing to tell.
    let _ = stop.send(true);
    edge.engine.http_cleanup().await;
    let drained = async {
        while metrics.open() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(config.limits.drain_timeout, drained).await.is_err() {
        warn!(connections = metrics.open(), "stopped before all connections had ended");
    }
    Ok(())
}

fn engine(ingress: Ingress) -> HttpProxy<Ingress> {
    let limits = ingress.limits;
    let conf = ServerConf {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        upstream_keepalive_pool_size: 4096,
        ..ServerConf::default()
    };
    let mut engine = http_proxy(&Arc::new(conf), ingress);
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(limits.idle_timeout);
    engine.server_options = Some(options);
    let mut h2 = default_h2_options();
    h2.max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
    h2.max_concurrent_streams(128);
    // A caller that opens streams only to reset them (rapid reset) is cut off early.
    h2.max_concurrent_reset_streams(32);
    h2.max_pending_accept_reset_streams(32);
    engine.h2_options = Some(h2);
    engine
}

fn refresh(certificate: &Certificate) {
    match certificate.refresh() {
        Ok(true) => info!("showing a new certificate"),
        Ok(false) => {}
        Err(error) => {
            error!(%error, "the certificate's files have changed and cannot be used; still showing the one from before")
        }
    }
}

async fn accept(listener: TcpListener, edge: Arc<Edge>, mut stopped: watch::Receiver<bool>) {
    loop {
        let incoming = tokio::select! {
            incoming = listener.accept() => incoming,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        let Some((stream, remote)) = plain::accepted(incoming).await else { continue };
        edge.metrics.accepted.fetch_add(1, Ordering::Relaxed);
        let Ok(permit) = edge.permits.clone().try_acquire_owned() else {
            // Closed at once: a queue would let those who hold connections keep everybody else waiting.
            edge.metrics.over_limit.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        tokio::spawn(connection(stream, remote, edge.clone(), permit, stopped.clone()));
    }
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    edge: Arc<Edge>,
    permit: OwnedSemaphorePermit,
    stopped: watch::Receiver<bool>,
) {
    let open = edge.metrics.connection();
    // Answers leave as they are written; the engine gathers what belongs together.
    let _ = stream.set_nodelay(true);
    let stream = match timeout(edge.limits.handshake_timeout, edge.acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        failed => {
            edge.metrics.handshake_failures.fetch_add(1, Ordering::Relaxed);
            let reason = failed.map_or("it took too long".into(), |failed| {
                failed.err().map_or(String::new(), |error| error.to_string())
            });
            debug!(client = %remote.ip(), reason, "TLS handshake failed");
            return;
        }
    };
    match Downstream::new(stream, remote, edge.limits, permit, open) {
        Ok(downstream) => {
            edge.engine.process_new(Box::new(downstream), &stopped).await;
        }
        Err(error) => error!(%error, "cannot serve a connection"),
    }
}
