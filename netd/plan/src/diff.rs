//! `plan`: the steps from what is seen to what should be, in an order that is safe after each of them.
use std::collections::BTreeSet;

use weft_model::WorkspaceId;

use crate::state::{Desired, Hook, Observed, Op, Route, TRANSLATOR, TUNNEL, Target, nft_digest};

/// The steps that bring `observed` to `desired`; empty for a node that is as it should be.
///
/// Order: revoke before permit, deny data and filters before anything forwards, backing routes before links, names and
/// pins that nothing uses any more last. A link that is wanted but not there is not in the plan: see [`missing`].
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let gone = |id: &&WorkspaceId| is_gone(**id, desired, observed);
    // revoke
    for entry in observed.tables.entries().filter(|entry| !desired.tables.has_key(entry)) {
        ops.push(Op::Delete(entry));
    }
    ops.extend(
        observed.orphans.iter().filter(|address| !expected(desired, observed, **address)).copied().map(Op::Forget),
    );
    // what refuses, before anything forwards
    let wanted: BTreeSet<_> = desired.tables.entries().collect();
    let seen: BTreeSet<_> = observed.tables.entries().collect();
    ops.extend(wanted.difference(&seen).cloned().map(Op::Put));
    let missing_routes: Vec<&Route> = desired.routes.difference(&observed.routes).collect();
    let backing = |route: &&&Route| route.target == Target::Unreachable;
    ops.extend(missing_routes.iter().filter(backing).map(|route| Op::AddRoute((*route).clone())));
    for (name, mtu) in &desired.tuns {
        if observed.tuns.get(name).is_none_or(|tun| !tun.up || tun.mtu != *mtu) {
            ops.push(Op::EnsureTun(name.clone(), *mtu));
        }
    }
    if observed.config.as_ref() != Some(&desired.config) {
        ops.push(Op::SetConfig(desired.config.clone()));
    }
    let current = |hook: &&Hook| observed.hooks.get(*hook) == Some(&true);
    ops.extend(desired.hooks.iter().filter(|hook| !current(hook)).cloned().map(Op::AttachHook));
    if observed.nft.as_deref() != Some(&nft_digest(&desired.nft)) {
        ops.push(Op::SetNft(desired.nft.clone()));
    }
    // what forwards
    ops.extend(desired.loopback.difference(&observed.loopback).copied().map(Op::AddLoopback));
    sysctls(desired, observed, &mut ops);
    for (id, spec) in &desired.links {
        if observed.links.get(id).is_some_and(|state| state.complete && !state.is(spec)) {
            ops.push(Op::RepairLink(spec.clone()));
        }
    }
    // two routes of one destination and metric would be siblings: the old one goes first, and the backing route answers
    let replaced = |stale: &&Route| {
        missing_routes.iter().any(|new| new.destination == stale.destination && new.metric == stale.metric)
    };
    let stale: Vec<&Route> = observed.routes.difference(&desired.routes).collect();
    let stale = stale.into_iter().filter(|route| !of_gone_link(route, desired, observed));
    let (first, later): (Vec<&Route>, Vec<&Route>) = stale.partition(replaced);
    ops.extend(first.into_iter().cloned().map(Op::RemoveRoute));
    let reachable = |route: &&&Route| !backing(route) && device_exists(route, desired, observed);
    ops.extend(missing_routes.iter().filter(reachable).map(|route| Op::AddRoute((*route).clone())));
    // what is no longer wanted
    ops.extend(later.into_iter().cloned().map(Op::RemoveRoute));
    ops.extend(observed.loopback.difference(&desired.loopback).copied().map(Op::RemoveLoopback));
    ops.extend(observed.hooks.keys().filter(|hook| !desired.hooks.contains(*hook)).cloned().map(Op::DetachHook));
    ops.extend(observed.links.keys().filter(gone).copied().map(Op::RemoveLink));
    ops.extend(observed.stale_pins.iter().cloned().map(Op::RemovePin));
    ops
}

/// The workspaces whose link is not there at all: only an attach with their netns brings it back.
#[must_use]
pub fn missing(desired: &Desired, observed: &Observed) -> Vec<WorkspaceId> {
    desired.links.keys().filter(|id| !observed.links.contains_key(id)).copied().collect()
}

/// Whether a link that is there is to be removed: nobody's, or left half-made by an attach that was cut short.
fn is_gone(id: WorkspaceId, desired: &Desired, observed: &Observed) -> bool {
    observed.links.get(&id).is_some_and(|state| !state.complete || !desired.links.contains_key(&id))
}

/// Whether an orphaned address is about to get its link's entry back by a repair.
fn expected(desired: &Desired, observed: &Observed, address: std::net::Ipv6Addr) -> bool {
    let mut live = desired.links.iter().filter(|(id, _)| observed.links.get(id).is_some_and(|state| state.complete));
    live.any(|(_, spec)| spec.ws.address.address() == address || spec.ws.address.twin() == address)
}

fn sysctls(desired: &Desired, observed: &Observed, ops: &mut Vec<Op>) {
    let strict = observed.sysctls.get("net/ipv4/conf/all/rp_filter").is_some_and(|value| value != "0");
    for (path, value) in &desired.sysctls {
        // the larger of `all` and the interface applies: where `all` is strict, only loose lets the translator's packets in
        let value = if strict && path.ends_with(&format!("{TRANSLATOR}/rp_filter")) { "2" } else { value };
        if observed.sysctls.get(path).map(String::as_str) != Some(value) {
            ops.push(Op::SetSysctl(path.clone(), value.to_owned()));
        }
    }
    if let Some((first, last)) = desired.reserved_ports {
        let reserved = observed.reserved_ports.iter().any(|(low, high)| *low <= first && last <= *high);
        if !reserved {
            ops.push(Op::ReservePorts(first, last));
        }
    }
}

/// Whether the device of a route is there, or will be once the steps before have been taken.
fn device_exists(route: &Route, desired: &Desired, observed: &Observed) -> bool {
    let Target::Device { name, .. } = &route.target else { return true };
    name == TUNNEL || desired.tuns.contains_key(name) || {
        let state = WorkspaceId::from_ifname(name).and_then(|id| observed.links.get(&id));
        state.is_some_and(|state| state.complete)
    }
}

/// Whether a route goes away together with a link that the plan removes.
fn of_gone_link(route: &Route, desired: &Desired, observed: &Observed) -> bool {
    let Target::Device { name, .. } = &route.target else { return false };
    WorkspaceId::from_ifname(name).is_some_and(|id| is_gone(id, desired, observed))
}
