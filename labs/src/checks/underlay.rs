//! Promises about the underlay: nothing of the inside is seen there, nothing forged there comes in.
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_model::{address::NAT64_PRIVATE, api::StatusView};
use weft_test_support::wait_for;

use super::Outcome;
use crate::{
    capture::{Capture, send_raw},
    fabric::{ECHO, Fabric},
    frames::{Class, Underlay, ping_packet, syn_packet, udp_packet},
    probe::{ANSWER, Echo, any, udp_echo},
};

/// What was seen on the underlay.
#[derive(Default)]
struct Seen {
    wireguard: u64,
    control: u64,
    leaks: BTreeMap<String, u64>,
}

/// Watches the router's side of the underlay. `marker` is sent inside meanwhile, and must not be seen.
fn watch(fabric: &Fabric, marker: &str) -> Result<Capture<Seen>> {
    let nodes: Vec<IpAddr> = fabric.lab().topology().nodes.iter().flat_map(crate::topology::Node::underlay).collect();
    let underlay = Underlay { nodes, inside: Underlay::inside(fabric.prefix()?.net()), marker: marker.into() };
    Capture::start(fabric.lab(), "isp", Seen::default(), move |seen, frame| match underlay.judge(frame) {
        Class::Wireguard => seen.wireguard += 1,
        Class::Control => seen.control += 1,
        Class::Leak(what) => *seen.leaks.entry(what).or_default() += 1,
        Class::Neighbour | Class::OuterError | Class::Other => {}
    })
}

/// Sends datagrams from one workspace to another for as long as `work` takes, answered or not.
fn under_load<T>(fabric: &Fabric, from: &str, to: &str, text: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let target = fabric.echo(to)?;
    let socket = fabric.lab().on(from, || UdpSocket::bind(any(target)))?.context("cannot open a socket")?;
    let (stop, stopped) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Timeout) {
                // While a tunnel is down the send fails: that is the moment that counts, not an error.
                let _ = socket.send_to(text.as_bytes(), target);
            }
        });
        let result = work();
        drop(stop);
        result
    })
}

pub(super) fn sealed(fabric: &Fabric) -> Result<Outcome> {
    let marker = "in-clear-text-on-the-underlay";
    let lab = fabric.lab();
    let capture = watch(fabric, marker)?;
    let mut open = Echo::connect(lab, "amber", fabric.echo("birch")?)?;
    open.ask(marker)?;
    under_load(fabric, "amber", "birch", marker, || {
        for process in ["netd", "wire"] {
            lab.kill("a", process)?;
            if process == "netd" {
                open.ask(marker).context("with netd dead, the open connection")?;
            }
            lab.restart("a", process)?;
            open.ask(marker).with_context(|| format!("after the restart of {process}, the open connection"))?;
        }
        // The newcomers work too: a fresh flow, and the control plane's word on it.
        wait_for("a fresh flow after the restarts", ANSWER, || udp_echo(lab, "amber", fabric.echo("birch")?, marker))?;
        fabric.wait_ready("a")
    })?;
    let (wireguard, control, leaks) = capture.look(|seen| (seen.wireguard, seen.control, seen.leaks.clone()));
    capture.stop();
    ensure!(leaks.is_empty(), "seen in clear on the underlay: {leaks:?}");
    ensure!(wireguard > 10, "only {wireguard} WireGuard packets were seen: the capture saw nothing");
    Ok(format!("{wireguard} WireGuard packets, {control} of the control API, 0 others; the open connection lives")
        .into())
}

/// The link-local address of a node's uplink: how a neighbour reaches a node that has no other IPv6 address.
fn link_local(fabric: &Fabric, node: &str) -> Result<Ipv6Addr> {
    let json = fabric.lab().ip(node, &["-j", "-6", "addr", "show", "dev", "eth0", "scope", "link"])?;
    let links: Vec<Value> = serde_json::from_str(&json).context("`ip -j` gives no JSON: update iproute2")?;
    let addresses = links.iter().filter_map(|link| link["addr_info"].as_array()).flatten();
    let mut found = addresses.filter_map(|address| address["local"].as_str()?.parse().ok());
    found.next().with_context(|| format!("node {node} has no link-local address on eth0"))
}

/// Counts frames that carry the marker.
fn count_marked(fabric: &Fabric, workspace: &str, marker: &'static [u8]) -> Result<Capture<u64>> {
    Capture::start(fabric.lab(), workspace, 0, move |count, frame| {
        // A SYN carries no text: its sequence number is the marker's first four bytes.
        let short = marker.get(..4).unwrap_or(marker);
        if [marker, short].iter().any(|marker| frame.windows(marker.len()).any(|window| window == *marker)) {
            *count += 1;
        }
    })
}

/// Packets for a workspace that no friend sent: from a friend's address, the proxy's, a NAT64 address, a twin and our own.
fn forgeries(fabric: &Fabric, victim: &str, friend: &str, text: &[u8]) -> Result<Vec<Vec<u8>>> {
    let target = fabric.address(victim)?;
    let web4 = Ipv6Addr::from_bits(NAT64_PRIVATE.to_bits() | u128::from(u32::from_be_bytes([198, 18, 4, 10])));
    let seed = fabric.member("a")?.prefix;
    let twin = seed.workspace(fabric.address("amber")?).context("amber's address is not its node's")?.twin();
    let own = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x66);
    let mut packets = Vec::new();
    for source in [fabric.address(friend)?, seed.proxy_address(), seed.node_address(), web4, twin, own] {
        packets.push(udp_packet((source, 7777), (target, ECHO), text));
        packets.push(ping_packet(source, target, text));
        packets.push(syn_packet((source, 7777), (target, 8080)));
    }
    Ok(packets)
}

pub(super) fn forged(fabric: &Fabric) -> Result<Outcome> {
    // "weft" is the sequence number of the forged SYN, so that one marker finds all three kinds.
    const MARKER: &[u8] = b"weft-forged";
    const GENUINE: &str = "weft-forged, but by a friend";
    let lab = fabric.lab();
    let mut sent = 0;
    for (victim, friend, node) in [("amber", "birch", "a"), ("birch", "amber", "b")] {
        let capture = count_marked(fabric, victim, MARKER)?;
        let via = link_local(fabric, node)?.to_string();
        let prefix = fabric.member(node)?.prefix.to_string();
        lab.ip("mallory", &["-6", "route", "replace", &prefix, "via", &via, "dev", "eth0"])?;
        let packets = forgeries(fabric, victim, friend, MARKER)?;
        let wireguard = lab.topology().node(node)?.underlay().first().map(|ip| SocketAddr::new(*ip, 51820));
        let wireguard = wireguard.context("the node has no address on the underlay")?;
        for packet in &packets {
            send_raw(lab, "mallory", packet, fabric.address(victim)?)?;
            // The same as if it came out of the tunnel: bare, and behind the header of a transport message.
            let transport = [&[4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], packet.as_slice()].concat();
            lab.on("mallory", || {
                let socket = UdpSocket::bind(any(wireguard))?;
                socket.send_to(packet, wireguard)?;
                socket.send_to(&transport, wireguard)
            })?
            .context("mallory cannot send")?;
            sent += 3;
        }
        // A friend's datagram comes after them: when it is here, they would be too.
        udp_echo(lab, friend, fabric.echo(victim)?, GENUINE).context("the friend's own datagram")?;
        let arrived = wait_for("the friend's own datagram in the capture", ANSWER, || {
            let count = capture.look(|count| *count);
            if count > 0 { Ok(count) } else { Err("nothing captured") }
        })?;
        capture.stop();
        // The genuine datagram and its echo.
        ensure!(arrived <= 2, "{} forged packets reached {victim}", arrived - 2);
    }
    Ok(format!("{sent} sent with six sources, as IPv6, in UDP and as WireGuard; 0 arrived{}", drops(fabric, "a")?)
        .into())
}

/// What a node counted as dropped, in words.
fn drops(fabric: &Fabric, node: &str) -> Result<String> {
    let status: StatusView = fabric.netctl(node, &["status"])?;
    let drops: Vec<_> =
        status.drops.iter().filter(|(_, count)| *count > 0).map(|(why, count)| format!("{why} {count}")).collect();
    Ok(if drops.is_empty() { String::new() } else { format!("; node {node} counts {}", drops.join(", ")) })
}
