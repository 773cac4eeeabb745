//! The listener: TLS, deadlines, and bounds on what strangers can hold.
use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

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
/// Of those, connections from one address (one /64 in IPv6): who floods the seed keeps out nobody but itself.
const STRANGERS_EACH: usize = 32;
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
        strangers: Strangers::default(),
        members: Arc::new(Semaphore::new(MEMBERS)),
    });
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    // The place is taken before anything is spent on the peer.
                    let Some(place) = seed.strangers.enter(from.ip()) else { continue };
                    connections.spawn(seed.clone().connection(stream, place, closed.clone()));
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

/// Connections of peers that have not proved who they are, by where they come from.
#[derive(Clone, Default)]
struct Strangers(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Strangers {
    /// A place for one more, unless there are too many.
    fn enter(&self, from: IpAddr) -> Option<Place> {
        let source = match from.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            v4 @ IpAddr::V4(_) => v4,
        };
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if places.values().sum::<usize>() >= STRANGERS {
            return None;
        }
        let count = places.entry(source).or_default();
        if *count >= STRANGERS_EACH {
            return None;
        }
        *count += 1;
        Some(Place { strangers: self.clone(), source })
    }
}

/// One place among the strangers; given back when it is dropped.
struct Place {
    strangers: Strangers,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.strangers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = places.entry(self.source) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// What a connection holds while it lasts.
#[allow(dead_code)] // held for their Drop
enum Held {
    Member(OwnedSemaphorePermit),
    Stranger(Place),
}

/// What connections share.
struct Seed {
    tls: TlsAcceptor,
    router: Router,
    strangers: Strangers,
    members: Arc<Semaphore>,
}

impl Seed {
    async fn connection(self: Arc<Self>, stream: TcpStream, place: Place, mut closed: watch::Receiver<bool>) {
        let _ = stream.set_nodelay(true);
        // Handshakes of scanners fail all day: not worth a line in the log.
        let Ok(Ok(stream)) = timeout(HANDSHAKE, self.tls.accept(stream)).await else { return };
        let peer = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(Peer::read);
        let (router, _held, stay) = match peer {
            Some(peer) => {
                let Ok(member) = self.members.clone().try_acquire_owned() else {
                    tracing::warn!(node = %peer.node, "a connection was refused: too many");
                    return;
                };
                drop(place);
                (self.router.clone().layer(Extension(peer)), Held::Member(member), None)
            }
            None => (self.router.clone(), Held::Stranger(place), Some(STAY)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_every_place_and_places_come_back() {
        let strangers = Strangers::default();
        let enter = |text: &str| strangers.enter(text.parse().unwrap());
        let taken: Vec<_> = (0..100).filter_map(|host| enter(&format!("2001:db8::{host:x}"))).collect();
        assert_eq!(taken.len(), STRANGERS_EACH);
        assert!(enter("2001:db8::ffff:0:0:1").is_none(), "another address of the same /64");
        let mapped: Vec<_> = (0..100).filter_map(|_| enter("::ffff:192.0.2.1")).collect();
        assert_eq!(mapped.len(), STRANGERS_EACH);
        assert!(enter("192.0.2.1").is_none() && enter("192.0.2.2").is_some());
        drop(taken);
        let many: Vec<_> = (0..200).filter_map(|host| enter(&format!("198.18.0.{host}"))).collect();
        assert_eq!(many.len(), STRANGERS - STRANGERS_EACH);
        drop((mapped, many));
        assert!(strangers.0.lock().unwrap().is_empty());
    }
}
