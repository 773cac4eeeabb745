//! What can go wrong between us and the kernel; each message names the object and ends with what to do.
use std::{io, path::PathBuf};

use weft_model::WorkspaceId;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An attach names a path where nothing is.
    #[error(
        "there is no network namespace at {path} ({source}): give the path of a running workspace's, for example /run/netns/NAME or /proc/PID/ns/net"
    )]
    NoNetns {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// An attach names something that is no netns.
    #[error("{path} is not a network namespace: give a path such as /run/netns/NAME or /proc/PID/ns/net")]
    NotANetns {
        /// The path.
        path: PathBuf,
    },
    /// An attach names the node's own netns.
    #[error(
        "{path} is the node's own network namespace: start the workspace in a namespace of its own and give that one's path"
    )]
    OwnNetns {
        /// The path.
        path: PathBuf,
    },
    /// The netns has an eth0.
    #[error(
        "the network namespace at {path} has an interface eth0 already: detach what made it, or give a fresh namespace"
    )]
    HasEth0 {
        /// The path.
        path: PathBuf,
    },
    /// The workspace has a link on this node.
    #[error("workspace {id} has the link w{id} on this node already: detach it first")]
    AlreadyAttached {
        /// The workspace.
        id: WorkspaceId,
    },
    /// A netlink request was refused.
    #[error("the kernel refused to {what} ({source}): {hint}")]
    Netlink {
        /// The step, with its object.
        what: String,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// A bpf(2) call was refused.
    #[error("the kernel refused to {what} ({source}): run as root (CAP_BPF, CAP_NET_ADMIN) on Linux 6.6 or newer")]
    Bpf {
        /// The step, with its object.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The programs could not be loaded.
    #[error(
        "the data path's programs could not be loaded ({0}): run as root on Linux 6.6 or newer with CONFIG_BPF_SYSCALL"
    )]
    Load(String),
    /// The BPF directory cannot be used.
    #[error("{path} cannot hold the pins of the data path ({source}): give a folder below /sys/fs/bpf as --bpf-dir")]
    BpfDir {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A sysctl could not be read or written.
    #[error(
        "sysctl {name} could not be set to {value} ({source}): check that /proc/sys is writable and nothing else owns it"
    )]
    Sysctl {
        /// Path below /proc/sys.
        name: String,
        /// The value.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// nft(8) failed.
    #[error(
        "nft refused the table inet weft ({0}): install nftables 1.0 or newer, and check that the kernel has nf_tables"
    )]
    Nft(String),
    /// A TUN could not be made.
    #[error("TUN {name} could not be made ({source}): check /dev/net/tun, and that no other interface has this name")]
    Tun {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread of ours died.
    #[error("a thread that worked on the kernel died ({0}): this is a fault of Weft, please report it with the log")]
    Thread(String),
}

impl Error {
    pub(crate) fn bpf(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Bpf { what, source }
    }

    pub(crate) fn netlink(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Netlink {
            what,
            source,
            hint: "run as root (CAP_NET_ADMIN), and see `ip monitor` for who else changes it",
        }
    }
}
