//! Giving up what only the start needed: every capability, and the means to gain any.
use anyhow::Context;
use caps::CapSet;

/// Drops all capabilities of this thread and of those that it starts, for good.
pub(crate) fn drop_all() -> anyhow::Result<()> {
    // The bounding set first: changing it needs a capability itself. Without that one there is nothing to shrink.
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP).unwrap_or(false) {
        caps::clear(None, CapSet::Bounding)
            .context("cannot drop the capabilities' bounding set: use Linux 6.1 or newer")?;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).with_context(|| format!("cannot drop {set:?} capabilities: use Linux 6.1 or newer"))?;
    }
    nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs: use Linux 6.1 or newer")
}
