//! Promises about what outlives a crash or a cut.
use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use weft_model::{
    api::WorkspaceView,
    targets::{Explanation, TargetState},
};
use weft_test_support::wait_for;

use super::{Outcome, visit::open_websocket};
use crate::{
    fabric::{Fabric, READY, undone},
    plumbing::port_name,
    probe::{Echo, RECOVERY, ping},
};

/// How long `netctl explain` may take to notice that the underlay is cut.
const NOTICE: Duration = Duration::from_secs(15);

/// The fabric's workspaces as a node lists them, in order.
fn listed(fabric: &Fabric, node: &str) -> Result<Vec<WorkspaceView>> {
    let mut list: Vec<WorkspaceView> = fabric.netctl(node, &["list"])?;
    list.sort_by_key(|one| one.id);
    Ok(list)
}

/// The same workspaces at the same addresses.
fn same(before: &[WorkspaceView], after: &[WorkspaceView]) -> Result<()> {
    let places =
        |list: &[WorkspaceView]| list.iter().map(|one| (one.id, one.node.clone(), one.address)).collect::<Vec<_>>();
    let (before, after) = (places(before), places(after));
    ensure!(before == after, "the workspaces changed from {before:?} to {after:?}");
    Ok(())
}

pub(super) fn restart(fabric: &Fabric) -> Result<Outcome> {
    let lab = fabric.lab();
    let before = listed(fabric, "a")?;
    let mut across = Echo::connect(lab, "amber", fabric.echo("birch")?)?;
    let mut outward = Echo::connect(lab, "birch", SocketAddr::from(([198, 18, 4, 10], 7)))?;
    let mut inward = open_websocket(fabric, "amber", false)?;
    let mut ask_all = |when: &str| -> Result<()> {
        across.ask(when).with_context(|| format!("{when}, amber to birch"))?;
        outward.ask(when).with_context(|| format!("{when}, birch to the IPv4 server"))?;
        inward.ask(when).with_context(|| format!("{when}, the visitor's WebSocket to amber")).map(drop)
    };
    ask_all("before")?;
    for node in ["a", "b"] {
        lab.kill(node, "netd")?;
        ask_all(&format!("with netd of {node} dead"))?;
        ping(lab, "amber", fabric.address("birch")?.into())
            .with_context(|| format!("a new ping with netd of {node} dead"))?;
        lab.restart(node, "netd")?;
        fabric.wait_ready(node)?;
        same(&before, &listed(fabric, node)?)?;
        ask_all(&format!("after the restart of {node}"))?;
    }
    Echo::connect(lab, "birch", fabric.echo("amber")?)?.ask("new").context("a new connection afterwards")?;
    Ok("across nodes, to IPv4, and visitor to workspace; same workspaces, same addresses".to_owned().into())
}

/// A connection between two workspaces of one node, over a crash of netd and over its absence.
pub(super) fn same_node(fabric: &Fabric) -> Result<Outcome> {
    let before = listed(fabric, "a")?;
    let mut open = Echo::connect(fabric.lab(), "oak", fabric.echo("pine")?)?;
    open.ask("before")?;
    fabric.lab().kill("a", "netd")?;
    open.ask("with netd dead")?;
    Echo::connect(fabric.lab(), "pine", fabric.echo("oak")?)?.ask("new").context("a new connection with netd dead")?;
    fabric.lab().restart("a", "netd")?;
    fabric.wait_ready("a")?;
    same(&before, &listed(fabric, "a")?)?;
    open.ask("after")?;
    Ok("open and new connections, with netd dead and back".to_owned().into())
}

pub(super) fn cut(fabric: &Fabric) -> Result<Outcome> {
    let lab = fabric.lab();
    let birch: Explanation = fabric.explain("b", &["workspace", "birch"])?;
    ensure!(birch.ready(), "birch is not ready before the cut: {}", undone(&birch.targets));
    let port = port_name("b", 0);
    lab.ip("isp", &["link", "set", "dev", &port, "down"])?;
    let noticed = wait_for("explain to say that the underlay is cut", NOTICE, || {
        let explanation = fabric.explain("b", &["workspace", "birch"])?;
        let failed = explanation.node.iter().any(|target| {
            !matches!(target.state, TargetState::Done | TargetState::Skipped)
                && target.name != "ready"
                && target.reason.is_some()
        });
        let waits =
            explanation.node.iter().any(|target| target.name == "ready" && target.state == TargetState::Waiting);
        ensure!(failed && waits, "all targets of node b are said to be done");
        Ok::<_, anyhow::Error>(explanation)
    });
    let shown = fabric.netctl_text("b", &["explain", "workspace", "birch"]);
    // Healed in any case: the checks after this one need the underlay.
    lab.ip("isp", &["link", "set", "dev", &port, "up"])?;
    let noticed = noticed?;
    wait_for("node b to recover by itself", READY, || {
        let explanation = fabric.explain("b", &["workspace", "birch"])?;
        let open = [undone(&explanation.targets), undone(&explanation.node)].concat();
        ensure!(open.is_empty(), "{open}");
        Ok(())
    })?;
    let friend = fabric.address("birch")?.into();
    wait_for("the friends to meet again", RECOVERY, || ping(lab, "amber", friend))?;
    Ok(Outcome { detail: undone(&noticed.node), exhibit: Some(shown?) })
}
