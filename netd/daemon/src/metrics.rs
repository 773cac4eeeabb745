//! Metrics in Prometheus's text form; every name begins with `weft_`.
use std::fmt::Write;

use weft_model::targets::TargetState;

use crate::{node::Node, state::State};

/// Drops by reason, those that never happened left out.
#[must_use]
pub fn drops(state: &State) -> Vec<(String, u64)> {
    let counted = state.counters.drops.iter().filter(|(_, count)| **count > 0);
    counted.map(|(reason, count)| (reason.to_string(), *count)).collect()
}

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{}\"", value.escape_default())).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.value(name, &[], value);
    }
}

/// The page.
#[must_use]
pub fn render(node: &Node) -> String {
    let mut page = Page(String::with_capacity(8192));
    page.family("weft_build_info", "gauge", "The version of netd.");
    page.value("weft_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.one("weft_member", "gauge", "Whether this node belongs to a fabric.", u8::from(node.member().is_some()));
    let stats = *node.stats();
    page.family("weft_attach_seconds", "summary", "Time of attaches that succeeded.");
    page.value("weft_attach_seconds_sum", &[], stats.seconds);
    page.value("weft_attach_seconds_count", &[], stats.count);
    page.one("weft_attach_failures_total", "counter", "Attaches that were refused or failed.", stats.failed);
    page.one("weft_reconciliations_total", "counter", "Comparisons of the kernel with the plan.", stats.reconciled);
    page.one("weft_reconciliation_failures_total", "counter", "Those that left something undone.", stats.unreconciled);
    state(&mut page, &node.read());
    targets(&mut page, node);
    page.0
}

fn state(page: &mut Page, state: &State) {
    page.one("weft_workspaces", "gauge", "Workspaces attached here.", state.entries.len());
    page.one(
        "weft_fabric_workspaces",
        "gauge",
        "Workspaces of the fabric that this node knows.",
        state.fabric.workspaces().len(),
    );
    page.one("weft_fabric_nodes", "gauge", "Nodes of the fabric that this node knows.", state.fabric.nodes().len());
    page.one("weft_store_connected", "gauge", "Whether the store answers.", u8::from(state.store_error.is_none()));
    page.one(
        "weft_unpublished",
        "gauge",
        "Workspaces of which the store does not have everything yet.",
        state.unpublished().len(),
    );
    page.one("weft_flows", "gauge", "Open flows of the data path.", state.counters.flows);
    page.family("weft_drops_total", "counter", "Packets dropped by the data path.");
    for (reason, count) in &state.counters.drops {
        page.value("weft_drops_total", &[("reason", &reason.to_string())], count);
    }
    let Ok(tunnel) = &state.tunnel else { return };
    let named: Vec<_> = state
        .fabric
        .nodes()
        .iter()
        .filter_map(|(name, node)| Some((name, tunnel.peers.get(&node.spec.wireguard_public_key)?)))
        .collect();
    page.family("weft_peer_receive_bytes_total", "counter", "Bytes received through the tunnel, by node.");
    for (name, peer) in &named {
        page.value("weft_peer_receive_bytes_total", &[("node", name.as_str())], peer.rx_bytes);
    }
    page.family("weft_peer_transmit_bytes_total", "counter", "Bytes sent through the tunnel, by node.");
    for (name, peer) in &named {
        page.value("weft_peer_transmit_bytes_total", &[("node", name.as_str())], peer.tx_bytes);
    }
}

fn targets(page: &mut Page, node: &Node) {
    let targets = node.targets();
    page.family("weft_target_ready", "gauge", "Whether a target of the node is done or does not apply.");
    for report in targets.node.reports() {
        let done = matches!(report.state, TargetState::Done | TargetState::Skipped);
        page.value("weft_target_ready", &[("target", &report.name)], u8::from(done));
    }
    let ready = targets.workspaces.values().filter(|graph| graph.satisfied("ready")).count();
    page.one("weft_workspaces_ready", "gauge", "Workspaces attached here all of whose targets are done.", ready);
}
