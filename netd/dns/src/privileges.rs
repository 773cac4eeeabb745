//! Giving up every right but that of binding port 53 later: this process reads bytes of strangers.
use anyhow::{Context, Result};
use caps::{CapSet, Capability, CapsHashSet};

/// Drops all capabilities but CAP_NET_BIND_SERVICE (kept if held: an address may come later than this process), and
/// any way to gain others. Counts for this thread and those that it starts, so it comes before the runtime.
pub(crate) fn drop_all_but_bind() -> Result<()> {
    let keep = Capability::CAP_NET_BIND_SERVICE;
    nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs: run a kernel with it (3.5 or newer)")?;
    caps::clear(None, CapSet::Ambient).context("cannot clear the ambient capabilities")?;
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        for capability in caps::all().into_iter().filter(|capability| *capability != keep) {
            if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, capability)
                    .with_context(|| format!("cannot drop {capability} from the bounding set"))?;
            }
        }
    }
    let held = caps::has_cap(None, CapSet::Permitted, keep).context("cannot read the capabilities")?;
    let left: CapsHashSet = held.then_some(keep).into_iter().collect();
    let none = CapsHashSet::new();
    for (set, left) in [(CapSet::Inheritable, &none), (CapSet::Effective, &left), (CapSet::Permitted, &left)] {
        caps::set(None, set, left).with_context(|| format!("cannot drop capabilities ({set:?})"))?;
    }
    Ok(())
}
