//! The listener: TLS, deadlines, and bounds on what strangers can hold.
use std::{sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{SeedState, router};
use crate::membership::{Identity, MembershipError, tls::Peer};

/// Connections of peers that have not proved who they are.
const STRANGERS: usize = 128;
/// Connections of members.
const MEMBERS: usize = 20_000;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a stranger may stay: enough for one join.
const STAY: Duration = Duration::from_secs(20);
/// How long a member may take for a request's header, or stay idle.
const HEADER: Duration = Duration::from_secs(60);
/// How long requests in progress may take to end at a shutdown; watches never end by themselves.
const DRAIN: Duration = Duration::from_millis(500);

/// Serves the seed's API with TLS 1.3 until `shutdown` is ready; then ends its connections and returns.
pub async fn serve(
    listener: TcpListener,
    identity: &Identity,
    state: SeedState,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), MembershipError> {
    let seed = Arc::new(Seed {
        tls: TlsAcceptor::from(identity.server_config()?),
        router: router(state),
        strangers: Arc::new(Semaphore::new(STRANGERS)),
        members: Arc::new(Semaphore::new(MEMBERS)),
    });
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // The permit is taken before anything is spent on the peer.
                    let Ok(permit) = seed.strangers.clone().try_acquire_owned() else { continue };
                    connections.spawn(seed.clone().connection(stream, permit, closed.clone()));
                }
                Err(error) => {
                    // Out of descriptors: accepting again at once would only spin.
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    let _ = closing.send(true);
    let drained = timeout(DRAIN * 2, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        connections.shutdown().await;
    }
    Ok(())
}

/// What connections share.
struct Seed {
    tls: TlsAcceptor,
    router: Router,
    strangers: Arc<Semaphore>,
    members: Arc<Semaphore>,
}

impl Seed {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        permit: OwnedSemaphorePermit,
        mut closed: watch::Receiver<bool>,
    ) {
        let _ = stream.set_nodelay(true);
        // Handshakes of scanners fail all day: not worth a line in the log.
        let Ok(Ok(stream)) = timeout(HANDSHAKE, self.tls.accept(stream)).await else { return };
        let peer = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(Peer::read);
        let (router, _permit, stay) = match peer {
            Some(peer) => {
                let Ok(member) = self.members.clone().try_acquire_owned() else {
                    tracing::warn!(node = %peer.node, "a connection was refused: too many");
                    return;
                };
                drop(permit);
                (self.router.clone().layer(Extension(peer)), member, None)
            }
            None => (self.router.clone(), permit, Some(STAY)),
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(stay.unwrap_or(HEADER))
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        tokio::pin!(connection);
        let left = async {
            match stay {
                Some(stay) => sleep(stay).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = connection.as_mut() => return,
            () = left => return,
            _ = closed.wait_for(|closed| *closed) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = timeout(DRAIN, connection).await;
    }
}
