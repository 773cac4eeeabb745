//! What the tests and the lab runner share: namespaces and children that go away by themselves, and waiting for a condition.
#![forbid(unsafe_code)]

mod child;
mod netns;
mod wait;

pub use child::ChildGuard;
pub use netns::{Netns, delete_netns, netns_path, processes_in, run_in_netns};
pub use wait::{wait_for, wait_until};

/// Whether this process may make network namespaces (is root).
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
