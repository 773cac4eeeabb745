//! A node whose kernel is a table in memory: files stand for network namespaces, their inodes for identity.
use std::{
    collections::BTreeSet,
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};
use weft_client::{Client, ClientError};
use weft_kernel::{Counters, Facts, UplinkFacts};
use weft_model::{ApiError, ErrorCode, WorkspaceId};
use weft_netd::{
    api::{self, Api},
    config::{Config, Paths},
    datapath::{DataPath, Reconciled},
    journal::{Journal, NetnsId},
    node::Node,
    service,
    targets::probe::Verified,
    wire::{PeerChange, Tunnel, TunnelState},
};
use weft_plan::{LinkSpec, NodeView};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(20);

/// The kernel.
pub(crate) struct FakeKernel {
    links: Mutex<BTreeSet<WorkspaceId>>,
    fail_attach: Mutex<Option<String>>,
    fail_reconcile: Mutex<Option<String>>,
    events: watch::Sender<u64>,
}

impl FakeKernel {
    fn new() -> Self {
        let (links, events) = (Mutex::default(), watch::channel(0).0);
        Self { links, fail_attach: Mutex::default(), fail_reconcile: Mutex::default(), events }
    }

    /// The links that exist.
    pub(crate) fn links(&self) -> BTreeSet<WorkspaceId> {
        self.links.lock().unwrap().clone()
    }

    /// Somebody removes a link.
    pub(crate) fn lose(&self, id: WorkspaceId) {
        self.links.lock().unwrap().remove(&id);
        self.events.send_modify(|count| *count += 1);
    }

    /// The next attach fails.
    pub(crate) fn fail_attach(&self, why: &str) {
        *self.fail_attach.lock().unwrap() = Some(why.into());
    }

    /// Reconciliations fail until told otherwise.
    pub(crate) fn fail_reconcile(&self, why: Option<&str>) {
        *self.fail_reconcile.lock().unwrap() = why.map(Into::into);
        self.events.send_modify(|count| *count += 1);
    }
}

#[async_trait]
impl DataPath for FakeKernel {
    async fn facts(&self) -> Result<Facts, ApiError> {
        let ipv4 = "198.18.0.1".parse().unwrap();
        let uplink = UplinkFacts { name: "lo".into(), index: 1, ipv4: Some(ipv4), ipv6_default: false, mtu: 1500 };
        Ok(Facts { uplink: Some(uplink), local_addresses: vec![ipv4.into()] })
    }

    fn netns(&self, path: &Path) -> Result<NetnsId, ApiError> {
        let none = |error| {
            ApiError::new(ErrorCode::Invalid, format!("no netns: {error}"), "give one").blame("netns", path.display())
        };
        let metadata = std::fs::metadata(path).map_err(none)?;
        Ok(NetnsId { dev: metadata.dev(), inode: metadata.ino() })
    }

    async fn attach(&self, spec: &LinkSpec, _netns: &Path) -> Result<(), ApiError> {
        if let Some(why) = self.fail_attach.lock().unwrap().take() {
            return Err(ApiError::new(ErrorCode::Internal, why, "try again"));
        }
        self.links.lock().unwrap().insert(spec.ws.id);
        Ok(())
    }

    async fn detach(&self, id: WorkspaceId) -> Result<(), ApiError> {
        self.links.lock().unwrap().remove(&id);
        Ok(())
    }

    async fn reconcile(&self, view: &(dyn Fn() -> Option<NodeView> + Sync)) -> Reconciled {
        let Some(view) = view() else { return Reconciled::default() };
        let errors = self.fail_reconcile.lock().unwrap().iter().cloned().collect();
        let mut links = self.links.lock().unwrap();
        let wanted: BTreeSet<WorkspaceId> = view.attachments.iter().map(|attached| attached.id).collect();
        links.retain(|id| wanted.contains(id));
        let missing = wanted.difference(&links).copied().collect();
        Reconciled { applied: Vec::new(), errors, links: links.clone(), missing }
    }

    async fn counters(&self) -> Result<Counters, ApiError> {
        Ok(Counters::default())
    }

    async fn expire_flows(&self) -> Result<(), ApiError> {
        Ok(())
    }

    fn watch(&self) -> Result<watch::Receiver<u64>, ApiError> {
        Ok(self.events.subscribe())
    }
}

struct NoTunnel;

#[async_trait]
impl Tunnel for NoTunnel {
    async fn get(&self) -> Result<TunnelState, String> {
        Err("no tunnel in this test".into())
    }

    async fn set(&self, _changes: &[PeerChange]) -> Result<(), String> {
        Err("no tunnel in this test".into())
    }
}

/// One node with its folders.
pub(crate) struct Fixture {
    dir: tempfile::TempDir,
    config: Config,
    /// Its kernel, which outlives restarts.
    pub(crate) kernel: Arc<FakeKernel>,
    tasks: Mutex<JoinSet<()>>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        // A port that was free a moment ago: the seed waits if it is not any more.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut config = Config { api_listen: port, ..Config::default() };
        change(&mut config);
        let dir = tempfile::tempdir().unwrap();
        for folder in ["state", "run", "netns"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        Self { dir, config, kernel: Arc::new(FakeKernel::new()), tasks: Mutex::default() }
    }

    /// A file of the state directory.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join("state").join(name)
    }

    /// A file of the run directory.
    pub(crate) fn run(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }

    /// A file that stands for a network namespace.
    pub(crate) fn netns(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join("netns").join(name);
        if !path.exists() {
            std::fs::write(&path, "").unwrap();
        }
        path
    }

    /// The journal, opened beside netd as an operator would.
    pub(crate) fn journal(&self) -> Journal {
        Journal::open(&self.state("journal.db")).unwrap()
    }

    /// Starts netd's parts.
    pub(crate) fn start(&self) -> Client {
        let paths = Paths {
            state: self.dir.path().join("state"),
            run: self.dir.path().join("run"),
            bpf: self.dir.path().join("bpf"),
        };
        let socket = paths.socket();
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).unwrap();
        let node = Node::open(self.config.clone(), paths, self.kernel.clone(), Arc::new(NoTunnel)).unwrap();
        let mut tasks = self.tasks.lock().unwrap();
        tasks.spawn(async move {
            node.resume().await.unwrap();
            let (_stop, stopped) = watch::channel(false);
            let verified = Arc::new(tokio::sync::Mutex::new(Verified::default()));
            let api = Api { node: node.clone(), verified: verified.clone() };
            let mut parts = JoinSet::new();
            parts.spawn(service::member_tasks(node.clone(), stopped));
            parts.spawn(weft_netd::targets::probe::run(node, verified));
            parts.spawn(async move { api::serve(listener, api, std::future::pending()).await.unwrap() });
            parts.join_next().await;
        });
        Client::unix(socket)
    }

    /// Ends them at once, wherever they are.
    pub(crate) async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        tasks.shutdown().await;
    }

    /// A started node that has made a fabric.
    pub(crate) async fn member(&self) -> Client {
        let client = self.start();
        let body = json!({"prefix": "fd12:3456:789a::/48", "node": "a", "domain": "ws.dev"});
        client.post::<_, Value>("/v1/init", &body).await.unwrap();
        client
    }

    /// An answer that is no JSON.
    pub(crate) async fn raw_get(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.run("netd.sock")).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: netd\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// The API's error that a call was refused with.
pub(crate) fn error<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ApiError {
    match result {
        Err(ClientError::Api(error)) => error,
        other => panic!("not refused by the API: {other:?}"),
    }
}

/// Waits until something is so.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let end = Instant::now() + DEADLINE;
    while !so().await {
        assert!(Instant::now() < end, "waited for {what} in vain");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until something is so; an error counts as not yet.
pub(crate) async fn try_until<F: Future<Output = Result<bool, ClientError>>>(what: &str, mut so: impl FnMut() -> F) {
    let end = Instant::now() + DEADLINE;
    loop {
        let now = so().await;
        if matches!(now, Ok(true)) {
            return;
        }
        assert!(Instant::now() < end, "waited for {what} in vain: {now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
