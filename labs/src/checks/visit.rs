//! Promises about the way in: a workspace's port as a URL that a visitor opens.
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};

use super::Outcome;
use crate::{
    fabric::Fabric,
    probe::{WebSocket, fetch},
    serve::greeting,
};

/// The host name of a workspace's port 8080.
pub(crate) fn host(fabric: &Fabric, workspace: &str) -> Result<String> {
    Ok(format!("8080-{}.{}", fabric.workspace(workspace)?.id, fabric.domain()))
}

/// Where the proxy listens, in one family.
fn proxy(fabric: &Fabric, ipv6: bool) -> Result<SocketAddr> {
    let mut listeners = fabric.lab().topology().nodes.iter().flat_map(|node| &node.proxy);
    listeners.find(|address| address.is_ipv6() == ipv6).copied().context("no proxy listens in this family")
}

/// Opens the URLs of workspaces on both nodes, by id and by name.
fn open(fabric: &Fabric, ipv6: bool) -> Result<Outcome> {
    let authority = fabric.pki().ca.to_string_lossy();
    let family = if ipv6 { "-6" } else { "-4" };
    for workspace in ["amber", "birch"] {
        for host in [host(fabric, workspace)?, format!("8080-{workspace}.{}", fabric.domain())] {
            let page = fetch(fabric.lab(), "visitor", &format!("https://{host}/"), &["--cacert", &authority, family])?;
            ensure!(page.body.starts_with(&greeting(workspace)), "https://{host}/ shows {:?}", page.body);
            let expected: IpAddr = proxy(fabric, ipv6)?.ip();
            ensure!(page.remote == expected, "https://{host}/ was opened at {} in place of {expected}", page.remote);
        }
    }
    Ok(format!("https://{}/ and by name, both nodes", host(fabric, "amber")?).into())
}

pub(super) fn over_ipv4(fabric: &Fabric) -> Result<Outcome> {
    open(fabric, false)
}

pub(super) fn over_ipv6(fabric: &Fabric) -> Result<Outcome> {
    open(fabric, true)
}

/// Opens a WebSocket from the visitor to a workspace.
pub(super) fn open_websocket(fabric: &Fabric, workspace: &str, ipv6: bool) -> Result<WebSocket> {
    let host = host(fabric, workspace)?;
    WebSocket::connect(fabric.lab(), "visitor", proxy(fabric, ipv6)?, &host, fabric.pki())
}

pub(super) fn websocket(fabric: &Fabric) -> Result<Outcome> {
    let mut said = String::new();
    for (workspace, ipv6) in [("birch", false), ("amber", true)] {
        said = open_websocket(fabric, workspace, ipv6)?.ask("hello")?;
        ensure!(said.starts_with(workspace), "the WebSocket of {workspace} says {said:?}");
    }
    Ok(format!("wss://{}/ws: {said:?}", host(fabric, "amber")?).into())
}
