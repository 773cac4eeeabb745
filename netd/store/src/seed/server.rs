//! The server half: who is asking is proved by a certificate, and bounds hold for everybody.
use std::{io, net::SocketAddr, sync::Arc};

use axum::Router;
use tokio::net::TcpListener;

use crate::{
    Store,
    membership::{Authority, Identity, MembershipError},
};

/// What the seed's API works on. Cheap to clone.
#[derive(Clone)]
pub struct SeedState {
    /// The objects.
    pub store: Arc<dyn Store>,
    /// Signs the certificates of nodes that join.
    pub authority: Arc<Authority>,
    /// Where the seeds answer: told to nodes that join.
    pub seeds: Vec<SocketAddr>,
    /// Milliseconds since 1970.
    pub clock: fn() -> u64,
}

/// The seed's API. A connection's proven identity is taken from its request extensions; without one only
/// `POST /v1/seed/join` answers.
pub fn router(_state: SeedState) -> Router {
    todo!()
}

/// Serves the seed's API with TLS 1.3 until `shutdown` is ready; then ends its connections and returns.
pub async fn serve(
    _listener: TcpListener,
    _identity: &Identity,
    _state: SeedState,
    _shutdown: impl Future<Output = ()> + Send,
) -> Result<(), MembershipError> {
    let _ = io::ErrorKind::Other;
    todo!()
}
