//! What gets out of a workspace and into it: friends, strangers, and root inside with a packet socket.
use std::{net::Ipv6Addr, time::Duration};

use weft_plan::{
    policy::Reason,
    state::workspace_mac,
    view::{Member, Nat64},
};
use weft_test_support::wait_until;

use crate::{
    packet::{self, HOST_MAC, echo, ethernet, ipv6, udp},
    support::{Node, Workspace, id, stdout, succeeds},
};

const SOON: Duration = Duration::from_secs(5);
const IPV6: u16 = 0x86dd;

fn three(tag: &str) -> Node {
    let mut node = Node::new(tag);
    node.settle();
    node.attach(1, Some("team"), &[]);
    node.attach(2, Some("team"), &[]);
    node.attach(3, None, &[]);
    node.settle();
    node
}

/// Serves one TCP connection on port 7 and fetches from it; whether the line came through.
fn fetches(from: &Workspace, to: &Workspace) -> bool {
    let server = to
        .netns
        .spawn(std::process::Command::new("nc").args(["-6", "-l", "-N", "7"]).stdin(std::process::Stdio::null()));
    let _server = weft_test_support::ChildGuard::new(server.unwrap());
    wait_until("the server to listen", SOON, || stdout(&to.netns, "ss -6Htln sport = :7").contains(":7")).unwrap();
    from.does(&format!("echo hello | nc -6 -N -w 1 {} 7", to.address()))
}

fn sends(from: &Workspace, frame: &[u8]) {
    packet::send(&from.netns, "eth0", frame);
}

/// A frame of IPv6 from a workspace's eth0 to its gateway.
fn framed(from: &Workspace, packet: &[u8]) -> Vec<u8> {
    ethernet(HOST_MAC, workspace_mac(from.address()), IPV6, packet)
}

/// Checks that sending each frame raises the counter of its reason, and of that only.
fn each_is_dropped(node: &Node, from: &Workspace, frames: Vec<(&str, Reason, Vec<u8>)>) {
    for (what, reason, frame) in frames {
        let before = node.drops(reason);
        sends(from, &frame);
        wait_until(what, SOON, || node.drops(reason) > before)
            .unwrap_or_else(|error| panic!("{what} ({reason}): {error}"));
    }
}

#[test]
fn friends_reach_each_other_and_the_stranger_reaches_nobody() {
    let node = three("iso");
    let [a, b, stranger] = &node.workspaces[..] else { unreachable!() };
    assert!(a.pings(b.address()) && b.pings(a.address()));
    assert!(fetches(a, b));
    for (from, to) in [(a, stranger), (b, stranger), (stranger, a), (stranger, b)] {
        assert!(!from.pings(to.address()));
        assert!(!fetches(from, to));
    }
    assert!(node.drops(Reason::NotPermitted) > 0);
    let counters = node.with(async |kernel| kernel.counters().await.unwrap());
    let traffic = counters.workspaces[&id(1)];
    assert!(traffic.sent_packets > 0 && traffic.received_packets > 0, "{traffic:?}");
}

#[test]
fn no_service_of_the_node_is_reached() {
    let node = three("node");
    let a = &node.workspaces[0];
    for to in [
        "fd12:3456:789a:7::1",
        "fd12:3456:789a:7::2",
        "fd12:3456:789a::53",
        "2001:db8::1",
        "fd77::1",
        "::ffff:198.18.0.1",
    ] {
        assert!(!a.pings(to.parse().unwrap()), "{to}");
    }
    assert!(!a.does("ping -c 1 -W 1 192.0.0.2") && !a.does("ping -c 1 -W 1 198.18.0.1"));
    assert!(!a.does("ping -6 -c 1 -W 1 fe80::1%eth0"));
    for reason in [Reason::Denied, Reason::NotPermitted, Reason::Service, Reason::NotGlobal] {
        assert!(node.drops(reason) > 0, "{reason}");
    }
    // and the node reaches no workspace by itself
    assert!(!succeeds(&node.netns, &format!("ping -6 -c 1 -W 1 {}", a.address())));
}

#[test]
fn root_inside_cannot_send_as_somebody_else() {
    let node = three("spoof");
    let [a, b, stranger] = &node.workspaces[..] else { unreachable!() };
    let twin = a.spec.address.twin();
    let forged = |src: Ipv6Addr| framed(stranger, &echo(src, b.address(), 128));
    each_is_dropped(
        &node,
        stranger,
        vec![
            ("a friend's address", Reason::BadSource, forged(a.address())),
            ("a twin", Reason::BadSource, forged(twin)),
            ("the node's address", Reason::BadSource, forged("fd12:3456:789a:7::1".parse().unwrap())),
            ("the proxies' address", Reason::BadSource, forged("fd12:3456:789a:7::2".parse().unwrap())),
            ("no address", Reason::BadSource, forged(Ipv6Addr::UNSPECIFIED)),
            ("an address behind NAT64", Reason::BadSource, forged("64:ff9b::1.2.3.4".parse().unwrap())),
            ("a link-local address", Reason::BadSource, forged("fe80::2".parse().unwrap())),
            ("a friend's twin as destination", Reason::Twin, framed(stranger, &echo(stranger.address(), twin, 128))),
        ],
    );
    // by the rules of the kernel inside, too: a friend's address on the stranger's own eth0
    stranger.netns.ip(&format!("addr add {}/128 dev eth0 nodad", a.address())).unwrap();
    assert!(!stranger.does(&format!("ping -6 -c 1 -W 1 -I {} {}", a.address(), b.address())));
    stranger.netns.ip("link set eth0 address 02:00:00:00:00:09").unwrap();
    assert!(!stranger.pings(b.address()));
    assert!(a.pings(b.address()));
}

#[test]
fn no_trick_below_and_beside_ip_gets_out() {
    let node = three("tricks");
    let [a, b, _] = &node.workspaces[..] else { unreachable!() };
    let (own, all): (Ipv6Addr, Ipv6Addr) = (a.address(), "ff02::1".parse().unwrap());
    let gateway: Ipv6Addr = "fe80::1".parse().unwrap();
    let mac = workspace_mac(own);
    let icmp =
        |dst: Ipv6Addr, body: Vec<u8>| framed(a, &ipv6(own, dst, 58, 255, &packet::checksummed(own, dst, 58, 2, body)));
    let nd = |kind: u8, target: Ipv6Addr| [&[kind, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..]].concat();
    let arp = |operation: u8, sender: [u8; 4], target: [u8; 4]| {
        let body = [&[0, 1, 8, 0, 6, 4, 0, operation][..], &mac, &sender, &[0; 6], &target].concat();
        ethernet([0xff; 6], mac, 0x0806, &body)
    };
    let routing = [&[58, 2, 0, 1, 0, 0, 0, 0][..], &b.address().octets(), &[128, 0, 0, 0, 0, 1, 0, 1]].concat();
    let many = [[60, 0, 1, 4, 0, 0, 0, 0].repeat(7), vec![128, 0, 0, 0, 0, 1, 0, 1]].concat();
    let split = [&[6, 0, 0, 1, 0, 0, 0, 9][..], &[0; 8]].concat();
    each_is_dropped(
        &node,
        a,
        vec![
            ("a router advertisement", Reason::NeighbourDiscovery, icmp(all, nd(134, own))),
            ("a redirect", Reason::NeighbourDiscovery, icmp(gateway, nd(137, own))),
            ("a neighbour advertisement", Reason::NeighbourDiscovery, icmp(all, nd(136, b.address()))),
            (
                "a question for a friend's MAC",
                Reason::NeighbourDiscovery,
                icmp("ff02::1:ff00:1".parse().unwrap(), nd(135, b.address())),
            ),
            ("a ping to all nodes", Reason::Multicast, icmp(all, vec![128, 0, 0, 0, 0, 1, 0, 1])),
            ("DHCPv6", Reason::Multicast, framed(a, &udp(own, "ff02::1:2".parse().unwrap(), 546, 547, b"x"))),
            ("a VLAN tag", Reason::Ethertype, ethernet(HOST_MAC, mac, 0x8100, &[0, 5, 0x86, 0xdd, 0, 0])),
            ("LLDP", Reason::Ethertype, ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], mac, 0x88cc, &[0; 50])),
            ("ARP for another", Reason::Arp, arp(1, [192, 0, 0, 1], [198, 18, 0, 1])),
            ("an ARP answer", Reason::Arp, arp(2, [192, 0, 0, 2], [192, 0, 0, 1])),
            ("source routing", Reason::ExtensionHeader, framed(a, &ipv6(own, b.address(), 43, 64, &routing))),
            ("too many extension headers", Reason::ExtensionHeader, framed(a, &ipv6(own, b.address(), 60, 64, &many))),
            ("a TCP header split over fragments", Reason::Fragment, framed(a, &ipv6(own, b.address(), 44, 64, &split))),
            ("a runt", Reason::Truncated, framed(a, &[0x60, 0, 0])),
            (
                "a length that lies",
                Reason::Truncated,
                framed(a, &{
                    let mut lie = echo(own, b.address(), 128);
                    lie[4] = 9;
                    lie
                }),
            ),
            ("Amazon's metadata", Reason::NotGlobal, framed(a, &echo(own, "fd00:ec2::254".parse().unwrap(), 128))),
            (
                "private IPv4 behind NAT64",
                Reason::NotGlobal,
                framed(a, &echo(own, "64:ff9b::10.0.0.1".parse().unwrap(), 128)),
            ),
            (
                "the node's IPv4 behind NAT64",
                Reason::Denied,
                framed(a, &echo(own, "64:ff9b::198.18.0.1".parse().unwrap(), 128)),
            ),
            (
                "metadata behind NAT64",
                Reason::Denied,
                framed(a, &echo(own, "64:ff9b:1::169.254.169.254".parse().unwrap(), 128)),
            ),
        ],
    );
}

#[test]
fn questions_for_the_gateway_are_answered_though_the_entries_inside_are_gone() {
    let node = three("nd");
    let [a, b, _] = &node.workspaces[..] else { unreachable!() };
    a.netns.ip("neigh flush dev eth0 nud permanent").unwrap();
    assert!(a.pings(b.address()), "IPv6 after a flush: {}", stdout(&a.netns, "ip neigh"));
    a.does("ping -c 1 -W 1 1.1.1.1");
    let neighbours = stdout(&a.netns, "ip neigh");
    assert!(neighbours.contains("192.0.0.2 dev eth0 lladdr 02:57:00:00:00:01"), "{neighbours}");
}

#[test]
fn enforcement_goes_on_without_us_and_the_next_one_adopts() {
    let node = three("adopt");
    let [a, b, stranger] = &node.workspaces[..] else { unreachable!() };
    // no Kernel is open now: `with` drops it
    assert!(a.pings(b.address()) && !stranger.pings(a.address()));
    let programs = || stdout(&node.netns, &format!("ls -i {}/programs-* | sort", node.bpf_dir.display()));
    let before = programs();
    let (ops, again) = node.reconcile();
    assert_eq!((ops, again), (vec![], vec![]), "adopting is not reading");
    assert_eq!(programs(), before, "adopting loaded programs anew");
}

#[test]
fn another_versions_pins_are_replaced_and_removed() {
    let node = three("upgrade");
    let [a, b, stranger] = &node.workspaces[..] else { unreachable!() };
    // what an older version would leave: its own programs and maps in folders of its own names, and links to them
    for entry in std::fs::read_dir(&node.bpf_dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if let Some((kind, _)) = name.split_once('-') {
            std::fs::rename(&path, node.bpf_dir.join(format!("{kind}-0000"))).unwrap();
        }
    }
    assert!(a.pings(b.address()));
    let (ops, again) = node.reconcile();
    assert!(!ops.is_empty() && again.is_empty(), "{again:?}");
    assert!(a.pings(b.address()) && !stranger.pings(a.address()));
    assert!(!node.bpf_dir.join("maps-0000").exists() && !node.bpf_dir.join("programs-0000").exists());
}

#[test]
fn the_underlay_cannot_forge_what_is_inside() {
    let node = three("uplink");
    let a = &node.workspaces[0];
    let mac = mac_of(&node.netns, "up0");
    let outside: Ipv6Addr = "2001:db8::2".parse().unwrap();
    for (what, reason, packet) in [
        ("a friend's source", Reason::ForgedSource, echo(node.workspaces[1].address(), a.address(), 128)),
        ("a source behind NAT64", Reason::ForgedSource, echo("64:ff9b::1.2.3.4".parse().unwrap(), a.address(), 129)),
        ("a workspace as destination", Reason::UplinkDestination, echo(outside, a.address(), 128)),
        ("a twin as destination", Reason::UplinkDestination, echo(outside, a.spec.address.twin(), 128)),
    ] {
        let before = node.drops(reason);
        packet::send(&node.underlay, "n0", &ethernet(mac, [2, 0, 0, 0, 0, 7], IPV6, &packet));
        wait_until(what, SOON, || node.drops(reason) > before).unwrap();
    }
}

#[test]
fn the_ipv6_internet_answers_and_cannot_begin() {
    let node = three("inet");
    let a = &node.workspaces[0];
    node.underlay.ip("route add 2001:db8:1::/64 dev lo\naddr add 2001:db8:1::1/128 dev lo nodad").unwrap();
    // the uplink asks for its gateway's MAC only once its link-local address is no longer tentative
    wait_until("masqueraded echo", SOON, || a.pings("2001:db8:1::1".parse().unwrap())).unwrap();
    // from outside nothing begins: not even towards the port of an open flow, from somebody else
    assert!(!succeeds(&node.underlay, &format!("ping -6 -c 1 -W 1 {}", a.address())));
    assert!(!a.pings("2001:db8::1".parse().unwrap()), "the node's own address");
    let flows = node.with(async |kernel| {
        kernel.gc_flows().await.unwrap();
        kernel.counters().await.unwrap().flows
    });
    assert!(flows >= 1);
    // no route to it: the node says so, and the workspace believes it since it quotes its own packet
    node.netns.ip("route add unreachable 2001:db8:2::/64").unwrap();
    let said = stdout(&a.netns, "ping -6 -c 1 -W 2 2001:db8:2::1");
    assert!(said.contains("From fd12:3456:789a:7::1") && said.contains("unreachable"), "{said}");
}

#[test]
fn a_proxy_opens_exposed_ports_and_only_those() {
    let mut node = Node::new("proxy");
    node.view.proxy = true;
    node.settle();
    node.attach(1, None, &[8080]);
    node.settle();
    let a = &node.workspaces[0];
    let _servers: Vec<_> = ["8080", "9090"]
        .map(|port| {
            a.netns.spawn(
                std::process::Command::new("nc").args(["-6", "-l", "-k", port]).stdin(std::process::Stdio::null()),
            )
        })
        .into_iter()
        .map(|child| weft_test_support::ChildGuard::new(child.unwrap()))
        .collect();
    wait_until("the servers", SOON, || {
        stdout(&a.netns, "ss -6Htln").matches("90").count() > 0 && stdout(&a.netns, "ss -6Htln").contains("8080")
    })
    .unwrap();
    let opens =
        |source: &str, port: u16| succeeds(&node.netns, &format!("nc -6 -z -w 1 -s {source} {} {port}", a.address()));
    let proxy = "fd12:3456:789a:7::2";
    assert!(opens(proxy, 8080));
    assert!(!opens(proxy, 9090));
    assert!(!opens("fd12:3456:789a:7::1", 8080));
    node.view.attachments[0].ports = vec![9090];
    node.settle();
    let a = &node.workspaces[0];
    let opens =
        |source: &str, port: u16| succeeds(&node.netns, &format!("nc -6 -z -w 1 -s {source} {} {port}", a.address()));
    assert!(!opens(proxy, 8080) && opens(proxy, 9090));
}

#[test]
fn the_tunnel_delivers_members_here_and_nothing_else() {
    let mut node = three("tunnel");
    let friend: Ipv6Addr = "fd12:3456:789a:9:1:2:3:4".parse().unwrap();
    node.view.members.push(Member { address: friend, group: "team".parse().unwrap() });
    node.settle();
    let a = &node.workspaces[0];
    // reader and writer of weft0, as `netd wire` would be
    let tun = node.netns.run(|| weft_tun::Tun::open("weft0", weft_tun::Options::default())).unwrap().unwrap();
    let write = |packet: Vec<u8>| {
        let header = [0u8; weft_tun::VNET_HDR_LEN];
        tun.write(&[&header[..], &packet].concat()).unwrap();
    };
    let received = || node.with(async |kernel| kernel.counters().await.unwrap().workspaces[&id(1)].received_packets);
    let before = received();
    write(echo(friend, a.address(), 128));
    wait_until("the friend's echo", SOON, || received() > before).unwrap();
    let stranger: Ipv6Addr = "fd12:3456:789a:9::5:5".parse().unwrap();
    for (what, reason, packet) in [
        ("a stranger elsewhere", Reason::NotPermitted, echo(stranger, a.address(), 128)),
        ("this node's own prefix", Reason::ForgedSource, echo(node.workspaces[1].address(), a.address(), 128)),
        ("the internet", Reason::ForgedSource, echo("2001:db8::2".parse().unwrap(), a.address(), 128)),
        ("somewhere else", Reason::Transit, echo(friend, "fd12:3456:789a:8::1".parse().unwrap(), 128)),
        ("the uplink", Reason::Transit, echo(friend, "2001:db8::1".parse().unwrap(), 128)),
        ("a twin", Reason::Twin, echo(friend, a.spec.address.twin(), 128)),
        ("a proxy that is none", Reason::NotPermitted, echo("fd12:3456:789a:9::2".parse().unwrap(), a.address(), 128)),
    ] {
        let before = node.drops(reason);
        write(packet);
        wait_until(what, SOON, || node.drops(reason) > before).unwrap();
    }
}

/// Reads packets of the translator's TUN until one satisfies.
fn reads(tun: &weft_tun::Tun, mut wanted: impl FnMut(&[u8]) -> bool) -> bool {
    let mut buffer = vec![0; weft_tun::MAX_READ];
    let found = wait_until("a packet on weft64", SOON, || {
        while let Ok(length) = tun.read(&mut buffer) {
            if wanted(&buffer[weft_tun::VNET_HDR_LEN..length]) {
                return true;
            }
        }
        false
    });
    found.is_ok()
}

#[test]
fn ipv4_becomes_the_twins_ipv6_and_comes_back() {
    let mut node = Node::new("clat");
    node.view.nat64 = Some(Nat64 { address: "198.18.0.1".parse().unwrap(), ports: (32768, 40959) });
    node.settle();
    node.attach(1, None, &[]);
    node.settle();
    let a = &node.workspaces[0];
    let tun = node.netns.run(|| weft_tun::Tun::open("weft64", weft_tun::Options::default())).unwrap().unwrap();
    // the translator's part is played here: whatever is asked of 8.8.8.8 is answered
    let ping = a.netns.spawn(
        std::process::Command::new("ping").args(["-c", "1", "-W", "5", "8.8.8.8"]).stdout(std::process::Stdio::null()),
    );
    let mut ping = weft_test_support::ChildGuard::new(ping.unwrap());
    let remote: Ipv6Addr = "64:ff9b::8.8.8.8".parse().unwrap();
    let mut answer = Vec::new();
    assert!(reads(&tun, |packet| {
        let is_echo = packet.get(8..24) == Some(&a.spec.address.twin().octets()[..]) && packet.get(40) == Some(&128);
        if is_echo {
            assert_eq!(packet[24..40], remote.octets());
            let mut body = packet[40..].to_vec();
            (body[0], body[2], body[3]) = (129, 0, 0);
            answer = ipv6(
                remote,
                a.spec.address.twin(),
                58,
                60,
                &packet::checksummed(remote, a.spec.address.twin(), 58, 2, body),
            );
        }
        is_echo
    }));
    tun.write(&[&[0u8; weft_tun::VNET_HDR_LEN][..], &answer].concat()).unwrap();
    let mut status = None;
    wait_until("ping to end", SOON, || {
        status = ping.exited();
        status.is_some()
    })
    .unwrap();
    assert!(status.unwrap().success(), "the translated echo was not accepted");
    // and the node's own reserved ports are taken at the uplink
    let sends = |port: u16| {
        let frame = packet::udp4([198, 18, 0, 2], [198, 18, 0, 1], 53, port, b"x");
        packet::send(&node.underlay, "n0", &ethernet(mac_of(&node.netns, "up0"), [2, 0, 0, 0, 0, 7], 0x0800, &frame));
    };
    sends(33333);
    let to_port =
        |packet: &[u8]| packet.first() == Some(&0x45) && packet.get(22..24) == Some(&33333u16.to_be_bytes()[..]);
    assert!(reads(&tun, to_port));
    sends(1234);
    // what the translator sends from the node's own address is forwarded to the uplink
    let receiver = std::process::Command::new("nc")
        .args(["-4", "-u", "-l", "-W", "1", "198.18.0.2", "7777"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn_in(&node.underlay);
    let mut receiver = weft_test_support::ChildGuard::new(receiver);
    wait_until("the receiver to listen", SOON, || stdout(&node.underlay, "ss -4Huln").contains(":7777")).unwrap();
    let packet = packet::udp4([198, 18, 0, 1], [198, 18, 0, 2], 33333, 7777, b"hello");
    tun.write(&[&[0u8; weft_tun::VNET_HDR_LEN][..], &packet].concat()).unwrap();
    wait_until("the translated packet on the underlay", SOON, || receiver.exited().is_some()).unwrap();
    assert!(!reads_now(&tun), "a port outside the range was taken");
}

fn mac_of(netns: &weft_test_support::Netns, interface: &str) -> [u8; 6] {
    let shown = stdout(netns, &format!("ip -o link show {interface}"));
    let mac = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

trait SpawnIn {
    fn spawn_in(&mut self, netns: &weft_test_support::Netns) -> std::process::Child;
}

impl SpawnIn for std::process::Command {
    fn spawn_in(&mut self, netns: &weft_test_support::Netns) -> std::process::Child {
        netns.spawn(self).unwrap()
    }
}

fn reads_now(tun: &weft_tun::Tun) -> bool {
    let mut buffer = vec![0; weft_tun::MAX_READ];
    tun.read(&mut buffer).is_ok()
}
