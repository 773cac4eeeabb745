//! A fabric on loopback: a seed with its embedded store behind TLS, and nodes that join it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test uses its own part

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout};
use weft_model::{
    api::{TokenReply, TokenRequest},
    object::{Author, FabricSpec},
};
use weft_store::{
    Change, Store, WatchStream,
    embedded::Embedded,
    membership::{Authority, Identity, Init, Token, create_token, init_fabric, join},
    seed::{SeedState, SeedStore, serve},
};

/// The tests' clock: 2026-01-01 in milliseconds. Certificates made then are valid now.
pub const NOW: u64 = 1_767_225_600_000;

pub fn user() -> Author {
    Author::User("root".into())
}

pub fn node(name: &str) -> Author {
    Author::Node(name.parse().unwrap())
}

/// A seed named `a`, serving.
pub struct Fabric {
    pub dir: tempfile::TempDir,
    pub store: Arc<Embedded>,
    pub authority: Arc<Authority>,
    pub identity: Identity,
    pub fabric: FabricSpec,
    pub address: SocketAddr,
    server: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

pub fn init(address: SocketAddr) -> Init {
    Init {
        prefix: None,
        domain: "weft.internal".into(),
        nat64_private: Vec::new(),
        node: "a".parse().unwrap(),
        roles: Vec::new(),
        seeds: vec![address],
        author: user(),
    }
}

impl Fabric {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a");
        let store = Arc::new(Embedded::open(&state.join("store.db")).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (identity, fabric, _) = init_fabric(store.as_ref(), &state, &init(address), NOW).await.unwrap();
        let authority = Arc::new(Authority::load(&state).unwrap().unwrap());
        let mut fabric = Self { dir, store, authority, identity, fabric, address, server: None };
        fabric.listen(listener);
        fabric
    }

    fn listen(&mut self, listener: TcpListener) {
        let state = SeedState {
            store: self.store.clone(),
            authority: self.authority.clone(),
            seeds: vec![self.address],
            clock: || NOW,
        };
        let (stop, stopped) = oneshot::channel();
        let identity = self.identity.clone();
        let shutdown = async { drop(stopped.await) };
        let task = tokio::spawn(async move { serve(listener, &identity, state, shutdown).await.unwrap() });
        self.server = Some((stop, task));
    }

    /// The seed goes away.
    pub async fn stop(&mut self) {
        let (stop, task) = self.server.take().unwrap();
        stop.send(()).unwrap();
        task.await.unwrap();
    }

    /// The seed comes back at the same address.
    pub async fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.listen(listener);
    }

    pub async fn token(&self, uses: u32) -> (Token, TokenReply) {
        let request = TokenRequest { uses, ..TokenRequest::default() };
        let reply =
            create_token(self.store.as_ref(), self.authority.pin(), &[self.address], &request, user(), NOW).await;
        let reply = reply.unwrap();
        (reply.token.parse().unwrap(), reply)
    }

    pub fn state_dir(&self, node: &str) -> std::path::PathBuf {
        Path::new(self.dir.path()).join(node)
    }

    pub async fn join(&self, name: &str) -> Identity {
        let (token, _) = self.token(1).await;
        join(&self.state_dir(name), &token, &name.parse().unwrap(), NOW).await.unwrap().0
    }

    pub async fn joined_store(&self, name: &str) -> SeedStore {
        SeedStore::new(&self.join(name).await).unwrap()
    }
}

/// The next change, within a deadline.
pub async fn next(watch: &mut WatchStream) -> Option<Change> {
    timeout(Duration::from_secs(10), watch.next()).await.expect("no change came in time")
}

/// The current revision.
pub async fn revision(store: &dyn Store) -> u64 {
    store.list(weft_model::object::Kind::Workspace).await.unwrap().1
}

/// An address that a workspace on this node may have.
pub async fn address_on(store: &dyn Store, node: &str) -> String {
    let object = store.get(weft_model::object::Kind::Node, node).await.unwrap().unwrap();
    let spec: weft_model::object::NodeSpec = weft_store::ObjectExt::read_spec(&object).unwrap();
    spec.prefix.draw([1; 8]).unwrap().address().to_string()
}
