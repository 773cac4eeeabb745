//! Gives up what is not needed once the sockets are bound: all capabilities, and the right to ever gain any.
use anyhow::{Context, Result};
use caps::CapSet;
use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
};

/// Raises the limit of open files to what the system allows: every connection costs one, or two with its workspace's.
pub(crate) fn raise_open_files() -> Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")?;
    }
    Ok(hard)
}

/// Drops every capability and sets no_new_privs. To be called while the process has one thread: the threads that are
/// started later inherit the result. Connecting from an address of this node needs no capability.
pub(crate) fn drop_all() -> Result<()> {
    // The bounding set can be cleared only by who may (SETPCAP); without it no_new_privs has the same effect.
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP).unwrap_or(false) {
        caps::clear(None, CapSet::Bounding).context("cannot clear the capabilities' bounding set")?;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).with_context(|| format!("cannot drop the {set:?} capabilities"))?;
    }
    prctl::set_no_new_privs().context("cannot set no_new_privs")
}
