//! The kernel's side of a node: observes, applies one step, attaches and detaches workspaces. Everything works in the
//! network namespace of the calling process, and nothing is remembered that the kernel does not hold.
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use weft_model::WorkspaceId;
use weft_plan::{LinkSpec, Observed, Op, policy::Reason};

mod error;

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

/// The kernel of this process's network namespace.
#[derive(Debug, Clone)]
pub struct Kernel {}

#[allow(clippy::unused_async, unused_variables, reason = "signatures first")]
impl Kernel {
    /// Mounts the BPF file system where it is missing, and adopts the pinned programs and maps or loads new ones.
    pub fn open(config: KernelConfig) -> Result<Self> {
        Err(Error::Unsupported)
    }

    /// Everything that is ours, and the sysctls that matter.
    pub async fn observe(&self) -> Result<Observed> {
        Err(Error::Unsupported)
    }

    /// Takes one step; taking it again changes nothing.
    pub async fn apply(&self, op: &Op) -> Result<()> {
        Err(Error::Unsupported)
    }

    /// Makes the link of a workspace whose netns is at a path: all of it, or nothing.
    pub async fn attach(&self, spec: &LinkSpec, netns: &Path) -> Result<()> {
        Err(Error::Unsupported)
    }

    /// Cuts a workspace off and removes its link; again, and without a netns, it succeeds too.
    pub async fn detach(&self, id: WorkspaceId) -> Result<()> {
        Err(Error::Unsupported)
    }

    /// Removes everything of ours, remembering nothing.
    pub async fn teardown(&self) -> Result<()> {
        Err(Error::Unsupported)
    }

    /// What the node can see of itself.
    pub async fn facts(&self) -> Result<Facts> {
        Err(Error::Unsupported)
    }

    /// The data path's counters.
    pub async fn counters(&self) -> Result<Counters> {
        Err(Error::Unsupported)
    }

    /// Removes flows that are idle for longer than their kind may be; call it every few seconds. Returns how many went.
    pub async fn gc_flows(&self) -> Result<usize> {
        Err(Error::Unsupported)
    }

    /// Fires whenever links, addresses or routes change, and when events were lost; many changes may be one event.
    pub fn watch(&self) -> Result<tokio::sync::watch::Receiver<u64>> {
        Err(Error::Unsupported)
    }
}
