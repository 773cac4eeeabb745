//! The kernel's side of a node: observes, applies one step, attaches and detaches workspaces. Everything works in the
//! network namespace of the calling process, and nothing is remembered that the kernel does not hold.
use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use weft_model::WorkspaceId;
use weft_plan::{LinkSpec, Observed, Op, policy::Reason};

mod apply;
mod attach;
mod datapath;
mod error;
mod flows;
mod messages;
mod netlink;
mod nft;
mod observe;
mod sys;
mod tables;
mod watch;

use datapath::DataPath;
pub use error::Error;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What has to be known before the kernel can be asked anything.
#[derive(Debug, Clone)]
pub struct KernelConfig {
    /// Where programs, maps and links are pinned: a folder of this node's own below a BPF file system.
    pub bpf_dir: PathBuf,
    /// The underlay's interface; `None` takes the one that the default routes leave by.
    pub uplink: Option<String>,
}

/// The interface of the underlay as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkFacts {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its first global IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Whether an IPv6 default route leaves by it.
    pub ipv6_default: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// What a node can see of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The underlay's interface; `None` while there is none.
    pub uplink: Option<UplinkFacts>,
    /// Addresses on interfaces that are not ours; without loopback and link-local ones.
    pub local_addresses: Vec<IpAddr>,
}

/// What passed a workspace's link since it was attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets that the workspace sent and that were let through (a super-packet counts once).
    pub sent_packets: u64,
    /// Bytes of these, with Ethernet headers.
    pub sent_bytes: u64,
    /// Packets that reached the workspace.
    pub received_packets: u64,
    /// Bytes of these.
    pub received_bytes: u64,
    /// Packets of either direction that were dropped.
    pub drops: u64,
}

/// The data path's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Drops by reason; every reason is there.
    pub drops: BTreeMap<Reason, u64>,
    /// Traffic by workspace.
    pub workspaces: BTreeMap<WorkspaceId, Traffic>,
    /// Flows that are open on this node.
    pub flows: u64,
}

/// The kernel of this process's network namespace. Runtime threads must be in that namespace, as they are by default.
#[derive(Debug, Clone)]
pub struct Kernel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    uplink: Option<String>,
    home: File,
    datapath: DataPath,
}

impl Kernel {
    /// Mounts the BPF file system where it is missing, and adopts the pinned programs and maps or loads new ones.
    pub fn open(config: KernelConfig) -> Result<Self> {
        let home =
            File::open("/proc/thread-self/ns/net").map_err(Error::netlink("open the node's network namespace"))?;
        let datapath = DataPath::open(&config.bpf_dir)?;
        Ok(Self { inner: Arc::new(Inner { uplink: config.uplink, home, datapath }) })
    }

    /// Runs blocking work on a thread that may wait.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.map_err(|error| Error::Thread(error.to_string()))?
    }

    /// Everything that is ours, and the sysctls that matter.
    pub async fn observe(&self) -> Result<Observed> {
        self.blocking(|inner| observe::observe(&inner.datapath)).await
    }

    /// Takes one step; taking it again changes nothing.
    pub async fn apply(&self, op: &Op) -> Result<()> {
        let op = op.clone();
        self.blocking(move |inner| apply::apply(&inner.datapath, &op)).await
    }

    /// Makes the link of a workspace whose netns is at a path: all of it, or nothing. What the kernel cannot take back
    /// at once, or what a kill in between leaves, is found by the next plan.
    pub async fn attach(&self, spec: &LinkSpec, netns: &Path) -> Result<()> {
        let (inner, spec, netns) = (Arc::clone(&self.inner), spec.clone(), netns.to_owned());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // a thread of its own: it ends in the workspace's netns
        let work = move || drop(sender.send(attach::attach(&inner.datapath, &inner.home, &spec, &netns)));
        let thread = std::thread::Builder::new().name("attach".into()).spawn(work);
        thread.map_err(|error| Error::Thread(error.to_string()))?;
        receiver.await.map_err(|error| Error::Thread(error.to_string()))?
    }

    /// Cuts a workspace off and removes its link; again, and without a netns, it succeeds too.
    pub async fn detach(&self, id: WorkspaceId) -> Result<()> {
        self.blocking(move |inner| attach::detach(&inner.datapath, id)).await
    }

    /// Removes everything of ours but sysctls, remembering nothing. This value is of no use afterwards.
    pub async fn teardown(&self) -> Result<()> {
        self.blocking(|inner| apply::teardown(&inner.datapath)).await
    }

    /// What the node can see of itself.
    pub async fn facts(&self) -> Result<Facts> {
        self.blocking(|inner| observe::facts(inner.uplink.as_deref())).await
    }

    /// The data path's counters.
    pub async fn counters(&self) -> Result<Counters> {
        self.blocking(|inner| flows::counters(&inner.datapath)).await
    }

    /// Removes flows that are idle for longer than their kind may be; call it every few seconds. Returns how many went.
    pub async fn gc_flows(&self) -> Result<usize> {
        self.blocking(|inner| flows::collect(&inner.datapath)).await
    }

    /// Fires whenever links, addresses or routes change, and when events were lost; many changes may be one event.
    pub fn watch(&self) -> Result<tokio::sync::watch::Receiver<u64>> {
        watch::watch()
    }
}
