//! IPv4 egress: `nat64` beside plain IPv6 forwarding, NAT44 by nftables, and tayga.
//!
//!     pod ── router ── server      three namespaces a contender; only one contender is loaded at a time
use anyhow::Result;

use crate::{
    Bench,
    net::{self, Ns, veth},
    report::{Rows, Samples},
    tools::{Load, connects, iperf},
};

struct Path {
    name: &'static str,
    pod: Ns,
    _router: Ns,
    server: Ns,
    address: &'static str,
}

const ROWS: [(&str, &str); 5] = [
    ("TCP x1", "Gbit/s"),
    ("TCP x4", "Gbit/s"),
    ("TCP x1 down", "Gbit/s"),
    ("UDP 64 B delivered", "kpps"),
    ("connects", "1/s"),
];
const POD6: &str = "fd00:65::2";
const SERVER4: &str = "198.18.66.2";
const SERVER6: &str = "fd00:66::2";
/// The server behind NAT64, under the prefix for private IPv4 (198.18.66.2 is c612:4202).
const SERVER64: &str = "64:ff9b:1::c612:4202";
/// The same behind tayga, which refuses RFC 8215's prefix.
const SERVER_TAYGA: &str = "2001:db8:64::c612:4202";
const PEERS: [&str; 3] = ["IPv6 forwarding", "NAT44 (nftables)", "tayga (apt)"];

/// Measures and adds the rows.
pub(crate) fn run(bench: &Bench, rows: &mut Rows) -> Result<()> {
    let mut paths = Vec::new();
    for (name, made) in [("weft", ours(bench)), (PEERS[0], plain()), (PEERS[1], nat44()), (PEERS[2], tayga())] {
        match made {
            Ok(path) => paths.push(path),
            Err(error) => rows.skip(format!("nat64, {name}: {error:#}")),
        }
    }
    let mut samples = Samples::default();
    for round in 1..=bench.rounds {
        for path in &mut paths {
            println!("nat64: round {round}, {}", path.name);
            measure(bench, path, &mut samples)?;
        }
    }
    for (row, unit) in ROWS {
        for peer in PEERS {
            rows.compare("nat64", row, unit, &samples, peer);
        }
    }
    Ok(())
}

fn measure(bench: &Bench, path: &mut Path, samples: &mut Samples) -> Result<()> {
    let load = |load: Load| iperf(&path.pod, &path.server, path.address, &load, bench.duration);
    samples.add("TCP x1", path.name, load(Load::Tcp(1))?);
    samples.add("TCP x4", path.name, load(Load::Tcp(4))?);
    samples.add("TCP x1 down", path.name, load(Load::TcpDown(1))?);
    samples.add("UDP 64 B delivered", path.name, load(Load::Udp64)?);
    let target =
        if path.address.contains(':') { format!("[{}]:5300", path.address) } else { format!("{}:5300", path.address) };
    samples.add("connects", path.name, connects(&path.pod, &mut path.server, "[::]:5300", &target, bench.duration)?);
    Ok(())
}

/// The three namespaces with both families' addresses and routes; translation is the contender's part.
fn topology() -> Result<(Ns, Ns, Ns)> {
    let (pod, router, server) = (Ns::new("pod")?, Ns::new("router")?, Ns::new("server")?);
    veth((&pod, "eth0", &["fd00:65::2/64", "198.18.65.2/24"]), (&router, "pod", &["fd00:65::1/64", "198.18.65.1/24"]))?;
    veth(
        (&router, "uplink", &["fd00:66::1/64", "198.18.66.1/24"]),
        (&server, "eth0", &["fd00:66::2/64", "198.18.66.2/24"]),
    )?;
    for route in ["-6 route add default via fd00:65::1", "-4 route add default via 198.18.65.1"] {
        pod.ip(route)?;
    }
    for route in ["-6 route add default via fd00:66::1", "-4 route add default via 198.18.66.1"] {
        server.ip(route)?;
    }
    router.sh("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0")?;
    Ok((pod, router, server))
}

fn reachable(pod: &Ns, address: &str) -> Result<()> {
    net::wait_for(&format!("an answer from {address}"), || pod.sh(&format!("ping -n -c 1 -W 1 {address}")).is_ok())
}

fn plain() -> Result<Path> {
    let (pod, router, server) = topology()?;
    reachable(&pod, SERVER6)?;
    Ok(Path { name: PEERS[0], pod, _router: router, server, address: SERVER6 })
}

fn nat44() -> Result<Path> {
    let (pod, router, server) = topology()?;
    router.sh(
        "nft 'table ip bench { chain post { type nat hook postrouting priority srcnat; oifname \"uplink\" masquerade; }; }'",
    )?;
    reachable(&pod, SERVER4)?;
    Ok(Path { name: PEERS[1], pod, _router: router, server, address: SERVER4 })
}

fn tayga() -> Result<Path> {
    let (pod, mut router, server) = topology()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("tayga.conf");
    let text = format!(
        "tun-device nat64\nipv4-addr 198.18.67.1\nprefix 2001:db8:64::/96\ndynamic-pool 198.18.67.0/24\nmap {} {POD6}\ndata-dir {}\n",
        "198.18.67.2",
        directory.path().display()
    );
    std::fs::write(&file, text)?;
    router.ip("tuntap add dev nat64 mode tun")?;
    router.ip("link set nat64 up")?;
    router.ip("-6 route add 2001:db8:64::/96 dev nat64")?;
    router.ip("-4 route add 198.18.67.0/24 dev nat64")?;
    let mut command = router.command("tayga");
    command.args(["-d", "--config"]).arg(&file);
    router.spawn(&mut command)?;
    reachable(&pod, SERVER_TAYGA)?;
    drop(directory);
    Ok(Path { name: PEERS[2], pod, _router: router, server, address: SERVER_TAYGA })
}

fn ours(bench: &Bench) -> Result<Path> {
    let nat64 = bench.binary("nat64")?;
    let (pod, mut router, server) = topology()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("nat64.toml");
    std::fs::write(
        &file,
        "tun = \"weft64\"\nqueues = 2\nmtu6 = 1500\nmtu4 = 1500\nsources = [\"fd00:65::/64\"]\ndeny = []\n\
         limits = { sessions = 1000000, sessions_per_source = 1000000 }\n\
         [[prefix]]\nprefix = \"64:ff9b:1::/96\"\npermit = [\"198.18.0.0/15\"]\n\
         [pool]\naddresses = [\"198.18.67.2\"]\nports = \"1024-65535\"\n",
    )?;
    router.ip("tuntap add dev weft64 mode tun vnet_hdr multi_queue")?;
    router.ip("link set weft64 up mtu 1500")?;
    router.ip("-6 route add 64:ff9b:1::/96 dev weft64")?;
    router.ip("-4 route add 198.18.67.2/32 dev weft64")?;
    let mut command = router.command(nat64);
    command.arg("--config").arg(&file);
    router.spawn(&mut command)?;
    reachable(&pod, SERVER64)?;
    drop(directory);
    Ok(Path { name: "weft", pod, _router: router, server, address: SERVER64 })
}
