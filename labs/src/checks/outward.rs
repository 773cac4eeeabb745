//! Promises about the way out: IPv4 by DNS64, NAT64 and CLAT; IPv6 where the node has it, a clear error where not.
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weft_model::address::NAT64_PRIVATE;

use super::Outcome;
use crate::{
    fabric::Fabric,
    probe::{fetch, ping, ping_refused, udp_echo, unreachable},
    serve::greeting,
};

/// How soon an ICMPv6 error is "at once", with the start of the program that receives it.
const AT_ONCE: Duration = Duration::from_millis(500);
/// The IPv4-only server.
const WEB4: Ipv4Addr = Ipv4Addr::new(198, 18, 4, 10);
/// The IPv6-only server.
const WEB6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 6, 0, 0, 0, 0, 0x10);

/// The address by which the workspace's node is seen on the underlay.
fn seen_as(fabric: &Fabric, workspace: &str, ipv6: bool) -> Result<IpAddr> {
    let node = fabric.lab().topology().node(fabric.node_of(workspace)?)?;
    let found = node.underlay().into_iter().find(|address| address.is_ipv6() == ipv6);
    found.with_context(|| format!("node {} has no such address on the underlay", node.name))
}

/// Fetches a page and checks who the server saw.
fn page(fabric: &Fabric, workspace: &str, url: &str, more: &[&str], server: &str) -> Result<IpAddr> {
    let page = fetch(fabric.lab(), workspace, url, more)?;
    let expected = format!("{}{}", greeting(server), seen_as(fabric, workspace, server == "web6")?);
    ensure!(page.body == expected, "{workspace} got {:?} from {url} in place of {expected:?}", page.body);
    Ok(page.remote)
}

pub(super) fn by_name(fabric: &Fabric) -> Result<Outcome> {
    // curl -6 asks for AAAA alone: what it connects to must be synthesised (RFC 6147).
    let expected = IpAddr::from(Ipv6Addr::from_bits(NAT64_PRIVATE.to_bits() | u128::from(WEB4.to_bits())));
    for workspace in ["amber", "birch"] {
        let remote = page(fabric, workspace, "http://ipv4only.test/", &["-6"], "web4")?;
        ensure!(remote == expected, "{workspace} connected to {remote} in place of {expected}");
    }
    Ok(format!("amber and birch by {expected}").into())
}

pub(super) fn literal(fabric: &Fabric) -> Result<Outcome> {
    for workspace in ["amber", "birch", "stranger"] {
        let remote = page(fabric, workspace, &format!("http://{WEB4}/"), &[], "web4")?;
        ensure!(remote == IpAddr::from(WEB4), "{workspace} connected to {remote}");
    }
    Ok("amber, birch and the stranger, each as its node's IPv4 address".to_owned().into())
}

pub(super) fn udp_and_ping(fabric: &Fabric) -> Result<Outcome> {
    let mut shown = Vec::new();
    for workspace in ["amber", "birch"] {
        let time = udp_echo(fabric.lab(), workspace, SocketAddr::from((WEB4, 7)), "over IPv4")?;
        let ping = ping(fabric.lab(), workspace, WEB4.into())?;
        shown.push(format!("{workspace} UDP {:.1} ms, ping {ping}", time.as_secs_f64() * 1e3));
    }
    Ok(shown.join("; ").into())
}

pub(super) fn ipv6_uplink(fabric: &Fabric) -> Result<Outcome> {
    page(fabric, "amber", "http://ipv6only.test/", &["-6"], "web6")?;
    page(fabric, "amber", &format!("http://[{WEB6}]/"), &[], "web6")?;
    Ok(format!("amber is seen as {}", seen_as(fabric, "amber", true)?).into())
}

pub(super) fn no_ipv6_uplink(fabric: &Fabric) -> Result<Outcome> {
    let start = Instant::now();
    let error = ping_refused(fabric.lab(), "birch", WEB6.into())?;
    let took = start.elapsed();
    let error = error.context("birch's ping gets no ICMPv6 error")?;
    ensure!(error.contains("unreachable") && took < AT_ONCE, "birch's ping gets {error:?} after {took:?}");
    // Here the error is back before connect() has left the socket, so that TCP heeds the next one, a second later.
    let (refusal, after) = unreachable(fabric.lab(), "birch", SocketAddr::from((WEB6, 80)))?;
    ensure!(after < Duration::from_secs(3), "{refusal:?} came only after {after:?}");
    Ok(format!("birch: {error:?} after {:.0} ms; TCP: {refusal:?}", took.as_secs_f64() * 1e3).into())
}
