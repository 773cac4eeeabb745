//! Node to node: the tunnel of `netd wire` beside wireguard-go, over the same kind of veth.
//!
//!     left ── veth ── right      one pair of namespaces a contender; only one is loaded at a time
use std::process::Command;

use anyhow::{Context, Result};

use crate::{
    Bench,
    net::{self, Ns, veth},
    report::{Rows, Samples, quantile},
    tools::{Load, iperf, pings},
};

struct Pair {
    name: &'static str,
    left: Ns,
    right: Ns,
    address: &'static str,
}

const ROWS: [(&str, &str); 4] = [
    ("TCP x1", "Gbit/s"),
    ("TCP x4", "Gbit/s"),
    ("UDP 64 B delivered", "kpps"),
    ("ping p99 under TCP x1", "ms (less is better)"),
];

const PEERS: [&str; 2] = ["wireguard-go (apt)", "raw veth"];

/// Measures and adds the rows.
pub(crate) fn run(bench: &Bench, rows: &mut Rows) -> Result<()> {
    let mut pairs = Vec::new();
    for (name, made) in [("weft", ours(bench)), (PEERS[0], wireguard_go()), (PEERS[1], raw())] {
        match made {
            Ok(pair) => pairs.push(pair),
            Err(error) => rows.skip(format!("wire, {name}: {error:#}")),
        }
    }
    let mut samples = Samples::default();
    for round in 1..=bench.rounds {
        for pair in &pairs {
            println!("wire: round {round}, {}", pair.name);
            measure(bench, pair, &mut samples)?;
        }
    }
    for (row, unit) in ROWS {
        for peer in PEERS {
            rows.compare("wire", row, unit, &samples, peer);
        }
    }
    Ok(())
}

fn measure(bench: &Bench, pair: &Pair, samples: &mut Samples) -> Result<()> {
    let load = |load: Load| iperf(&pair.left, &pair.right, pair.address, &load, bench.duration);
    samples.add("TCP x1", pair.name, load(Load::Tcp(1))?);
    samples.add("TCP x4", pair.name, load(Load::Tcp(4))?);
    samples.add("UDP 64 B delivered", pair.name, load(Load::Udp64)?);
    let p99 = std::thread::scope(|scope| {
        let loaded = scope.spawn(|| load(Load::Tcp(1)));
        #[allow(clippy::cast_possible_truncation)] // a few seconds
        let times = pings(&pair.left, pair.address, (bench.duration.as_millis() / 25) as u32);
        loaded.join().ok().context("the loading thread ended early")??;
        quantile(&times?, 0.99).context("no ping was answered")
    })?;
    samples.add("ping p99 under TCP x1", pair.name, p99);
    Ok(())
}

fn pair(left: &[&str], right: &[&str]) -> Result<(Ns, Ns)> {
    let namespaces = (Ns::new("left")?, Ns::new("right")?);
    veth((&namespaces.0, "uplink", left), (&namespaces.1, "uplink", right))?;
    Ok(namespaces)
}

fn raw() -> Result<Pair> {
    let (left, right) = pair(&["fd00:64::1/64"], &["fd00:64::2/64"])?;
    Ok(Pair { name: PEERS[1], left, right, address: "fd00:64::2" })
}

/// One end's keys, made by `wg`.
fn keys() -> Result<(String, String)> {
    let private = String::from_utf8(net::run(Command::new("wg").arg("genkey"))?.stdout)?;
    let line = format!("echo '{}' | wg pubkey", private.trim());
    let public = String::from_utf8(net::run(Command::new("sh").args(["-c", &line]))?.stdout)?;
    Ok((private.trim().into(), public.trim().into()))
}

/// `wg setconf` text for one end.
fn config(private: &str, peer: &str, endpoint: &str, allowed: &str) -> String {
    format!(
        "[Interface]\nPrivateKey = {private}\nListenPort = 51820\n\n[Peer]\nPublicKey = {peer}\nEndpoint = {endpoint}\nAllowedIPs = {allowed}\n"
    )
}

fn write_private(path: &std::path::Path, text: &str) -> Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

fn tunnel(name: &'static str, mut start: impl FnMut(&mut Ns, &std::path::Path, &str) -> Result<()>) -> Result<Pair> {
    let (mut left, mut right) = pair(&["198.18.64.1/24"], &["198.18.64.2/24"])?;
    let directory = tempfile::tempdir()?;
    let (left_keys, right_keys) = (keys()?, keys()?);
    let ends = [
        (&mut left, &left_keys.0, &right_keys.1, "198.18.64.2:51820", "fd00:64::2", "fd00:64::1"),
        (&mut right, &right_keys.0, &left_keys.1, "198.18.64.1:51820", "fd00:64::1", "fd00:64::2"),
    ];
    for (index, (ns, private, peer, endpoint, allowed, own)) in ends.into_iter().enumerate() {
        let file = directory.path().join(format!("{index}.conf"));
        write_private(&file, &config(private, peer, endpoint, &format!("{allowed}/128")))?;
        let device = format!("wb{}{index}", std::process::id() % 100_000);
        start(ns, &file, &device)?;
        ns.ip(&format!("addr add {own}/64 dev {device} nodad"))?;
        ns.ip(&format!("link set {device} up mtu 1420"))?;
    }
    net::wait_for("the tunnel's first answer", || left.sh("ping -n -c 1 -W 1 fd00:64::2").is_ok())?;
    // Both ends have read their files by now.
    drop(directory);
    Ok(Pair { name, left, right, address: "fd00:64::2" })
}

fn ours(bench: &Bench) -> Result<Pair> {
    let netd = bench.binary("netd")?;
    tunnel("weft", |ns, file, device| {
        ns.ip(&format!("tuntap add dev {device} mode tun vnet_hdr multi_queue"))?;
        let mut command = ns.command(&netd);
        command.args(["wire", "--tun", device, "--config"]).arg(file).arg("--uapi").arg(file.with_extension("sock"));
        ns.spawn(&mut command).map(drop)
    })
}

fn wireguard_go() -> Result<Pair> {
    tunnel(PEERS[0], |ns, file, device| {
        let mut command = ns.command("wireguard-go");
        command.args(["-f", device]).env("WG_PROCESS_FOREGROUND", "1");
        ns.spawn(&mut command)?;
        let socket = format!("/var/run/wireguard/{device}.sock");
        net::wait_for("wireguard-go's socket", || std::path::Path::new(&socket).exists())?;
        ns.sh(&format!("wg setconf {device} {}", file.display())).map(drop)
    })
}
