//! What can go wrong between us and the kernel; each message names the object and ends with what to do.
use std::{io, path::PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not there yet.
    #[error("not supported")]
    Unsupported,
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
}
