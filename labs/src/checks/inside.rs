//! Promises about workspaces among themselves.
use std::{net::Ipv6Addr, thread};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Outcome;
use crate::{
    fabric::Fabric,
    probe::{fetch, fetch_refused, ping, ping_refused, udp_echo},
    serve::greeting,
};

/// One random /128 on eth0, and nothing else of IPv6 but ::1 on lo.
pub(super) fn one_address(fabric: &Fabric) -> Result<Outcome> {
    let mut shown = Vec::new();
    for name in fabric.workspace_names() {
        let expected = fabric.address(name)?;
        let found = addresses(fabric, name)?;
        let other: Vec<_> = found.iter().filter(|(ifname, _, _)| ifname != "lo").collect();
        ensure!(
            matches!(other.as_slice(), [(ifname, address, 128)] if ifname == "eth0" && *address == expected),
            "{name} should have {expected}/128 alone, and has {other:?}"
        );
        let member = fabric.member(fabric.node_of(name)?)?;
        ensure!(
            member.prefix.workspace(expected).is_some(),
            "{name}'s address {expected} is no workspace address of {}",
            member.prefix
        );
        shown.push(format!("{name} …:{:x}", expected.segments().last().unwrap_or(&0)));
    }
    Ok(format!("fabric {}; {}", fabric.prefix()?, shown.join(", ")).into())
}

/// Every IPv6 address in a workspace: interface, address, prefix length.
fn addresses(fabric: &Fabric, name: &str) -> Result<Vec<(String, Ipv6Addr, u64)>> {
    let json = fabric.lab().ip(name, &["-j", "-6", "addr", "show"])?;
    let links: Vec<Value> = serde_json::from_str(&json).context("`ip -j` gives no JSON: update iproute2")?;
    let mut found = Vec::new();
    for link in &links {
        let ifname = link["ifname"].as_str().unwrap_or_default();
        for address in link["addr_info"].as_array().into_iter().flatten() {
            let local = address["local"].as_str().unwrap_or_default().parse().context("`ip -j` gives no address")?;
            found.push((ifname.to_owned(), local, address["prefixlen"].as_u64().unwrap_or(0)));
        }
    }
    Ok(found)
}

/// Ping, page and datagram from one workspace to another.
fn reaches(fabric: &Fabric, from: &str, to: &str) -> Result<String> {
    let lab = fabric.lab();
    let address = fabric.address(to)?;
    let time = ping(lab, from, address.into())?;
    let page = fetch(lab, from, &format!("http://[{address}]:8080/"), &[])?;
    let expected = format!("{}{}", greeting(to), fabric.address(from)?);
    ensure!(page.body == expected, "{from} got {:?} from {to} in place of {expected:?}", page.body);
    udp_echo(lab, from, fabric.echo(to)?, "hello")?;
    Ok(format!("{from} to {to} {time}"))
}

/// Fails if a workspace reaches another by ping or by its page; gives the error that the network answered.
fn refused(fabric: &Fabric, from: &str, to: &str) -> Result<String> {
    let address = fabric.address(to)?;
    let ping = ping_refused(fabric.lab(), from, address.into())?;
    let page = fetch_refused(fabric.lab(), from, &format!("http://[{address}]:8080/"))?;
    Ok(ping.unwrap_or(page))
}

pub(super) fn friends(fabric: &Fabric) -> Result<Outcome> {
    let there = reaches(fabric, "amber", "birch")?;
    let back = reaches(fabric, "birch", "amber")?;
    Ok(format!("ping, page, UDP: {there}, {back}").into())
}

pub(super) fn stranger(fabric: &Fabric) -> Result<Outcome> {
    // The stranger's server answers itself: what follows is refused by the fabric, not by a missing server.
    let own = format!("http://[{}]:8080/", fabric.address("stranger")?);
    fetch(fabric.lab(), "stranger", &own, &[]).context("the stranger's own server does not answer")?;
    let answer = refused_both_ways(fabric, &["amber", "birch"])?;
    Ok(format!("on one node and across, both directions: {answer:?}").into())
}

/// The stranger and each friend do not reach each other, in either direction. All at once: a refusal may be a silence.
fn refused_both_ways(fabric: &Fabric, friends: &[&str]) -> Result<String> {
    let pairs = friends.iter().flat_map(|friend| [("stranger", *friend), (*friend, "stranger")]);
    let answers: Result<Vec<_>> = thread::scope(|scope| {
        let threads: Vec<_> = pairs.map(|(from, to)| scope.spawn(move || refused(fabric, from, to))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    answers?.pop().context("there is no pair to try")
}

/// Friends and a stranger on one node.
pub(super) fn same_node(fabric: &Fabric) -> Result<Outcome> {
    let there = reaches(fabric, "oak", "pine")?;
    reaches(fabric, "pine", "oak")?;
    refused_both_ways(fabric, &["oak", "pine"])?;
    Ok(there.into())
}
