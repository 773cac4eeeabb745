//! Flows grow old here, since no map of the data path evicts anything; and what the data path counts is read here.
use std::collections::BTreeMap;

use weft_model::WorkspaceId;
use weft_plan::policy::Reason;

use crate::{
    Counters, Error, Result, Traffic,
    datapath::DataPath,
    observe, sys,
    tables::{Flow, FlowKey},
};

const SECOND: u64 = 1_000_000_000;
/// How long a permitted first fragment lets its followers pass (RFC 8200 4.5).
const FRAGMENT_NS: u64 = 60 * SECOND;

/// How long a flow may be idle, in nanoseconds: RFC 5382 5 for TCP, RFC 4787 4.3 for UDP, RFC 5508 3.2 for echoes.
fn idle_limit(key: &FlowKey, flow: &Flow) -> u64 {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const ICMPV6: u8 = 58;
    match key.protocol {
        TCP if flow.closing == 0 && flow.replied != 0 => 7440 * SECOND,
        TCP => 240 * SECOND,
        ICMPV6 => 60 * SECOND,
        UDP => 300 * SECOND,
        _ => 600 * SECOND,
    }
}

/// Removes what is idle for too long or whose workspace is gone, and counts anew how many flows each workspace has.
pub(crate) fn collect(datapath: &DataPath) -> Result<usize> {
    let maps = &datapath.maps;
    let now = sys::monotonic_ns();
    let failed = || Error::bpf("expire flows");
    let mut indexes = BTreeMap::new();
    for (address, local) in maps.locals.entries().map_err(failed())? {
        indexes.insert(address, local.ifindex);
    }
    let mut counts: BTreeMap<u32, u64> =
        maps.usages.entries().map_err(failed())?.into_iter().map(|(index, _)| (index, 0)).collect();
    let mut removed = 0;
    for (key, flow) in maps.flows.entries().map_err(failed())? {
        let index = indexes.get(&key.address);
        if index.is_none() || now.saturating_sub(flow.seen) > idle_limit(&key, &flow) {
            removed += usize::from(maps.flows.delete(&key).map_err(failed())?);
        } else if let Some(count) = index.and_then(|index| counts.get_mut(index)) {
            *count += 1;
        }
    }
    for (index, count) in counts {
        // flows that were opened since the list was made are missed until the next call: the limit is a bound on memory
        maps.usages.replace(&index, &count).map_err(failed())?;
    }
    for (key, seen) in maps.fragments.entries().map_err(failed())? {
        if now.saturating_sub(seen) > FRAGMENT_NS {
            maps.fragments.delete(&key).map_err(failed())?;
        }
    }
    Ok(removed)
}

/// Reads all counters.
pub(crate) fn counters(datapath: &DataPath) -> Result<Counters> {
    let maps = &datapath.maps;
    let failed = || Error::bpf("read the data path's counters");
    let mut counters = Counters::default();
    for reason in Reason::ALL {
        let [count] = maps.drops.sum(reason.code().into()).map_err(failed())?.unwrap_or_default();
        counters.drops.insert(*reason, count);
    }
    for (index, name) in observe::workspace_links()? {
        let Some(id) = WorkspaceId::from_ifname(&name) else { continue };
        let Some(sum) = maps.traffics.sum(index).map_err(failed())? else { continue };
        let [sent_packets, sent_bytes, received_packets, received_bytes, drops] = sum;
        counters.workspaces.insert(id, Traffic { sent_packets, sent_bytes, received_packets, received_bytes, drops });
    }
    counters.flows = maps.usages.entries().map_err(failed())?.iter().map(|(_, count)| count).sum();
    Ok(counters)
}
