//! Tunnels between network namespaces: our engine with itself and with wireguard-go. Needs root.
mod support;

use std::{process::Command, time::Duration};

use support::{Node, StatusIn as _, Underlay, WireguardGo, metric, ping, transfer_tcp, transfer_udp};
use weft_test_support::{wait_for, wait_until};
use weft_wire::uapi::{Change, Delta, PeerDelta};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn carries_everything_over_ipv4() {
    let (a, b) = Node::pair(&Underlay::ipv4());
    ping(&a, &b).unwrap();
    transfer_tcp(&a, &b, 64 << 20).unwrap();
    transfer_tcp(&b, &a, 64 << 20).unwrap();
    transfer_udp(&a, &b, 2000).unwrap();
    let state = a.client().get().unwrap();
    assert!(state.peers[0].last_handshake.is_some() && state.peers[0].rx_bytes > 64 << 20);
    let status = std::fs::read_to_string(format!("/proc/{}/status", a.pid())).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line} in {status}");
    }
}

#[test]
fn carries_everything_over_ipv6_without_offloads() {
    let (a, b) = Node::pair(&Underlay { offload: false, ..Underlay::ipv6() });
    ping(&a, &b).unwrap();
    transfer_tcp(&a, &b, 32 << 20).unwrap();
    transfer_tcp(&b, &a, 32 << 20).unwrap();
    transfer_udp(&b, &a, 2000).unwrap();
}

#[test]
fn carries_everything_over_a_path_that_needs_fragments() {
    let (a, b) = Node::pair(&Underlay { mtu: 1280, ..Underlay::ipv6() });
    ping(&a, &b).unwrap();
    transfer_tcp(&a, &b, 8 << 20).unwrap();
    transfer_udp(&b, &a, 1000).unwrap();
}

#[test]
fn wireguard_go_takes_our_handshake_and_our_data() {
    let underlay = Underlay::ipv4();
    let (a, b) = Node::with_wireguard_go(&underlay, true, false);
    ping(&a, &b).unwrap();
    transfer_tcp(&a, &b, 16 << 20).unwrap();
    transfer_tcp(&b, &a, 16 << 20).unwrap();
    transfer_udp(&a, &b, 1000).unwrap();
}

#[test]
fn we_take_wireguard_gos_handshake_with_a_preshared_key() {
    let underlay = Underlay::ipv6();
    let (a, b): (Node, WireguardGo) = Node::with_wireguard_go(&underlay, false, true);
    ping(&b, &a).unwrap();
    transfer_tcp(&b, &a, 16 << 20).unwrap();
    transfer_udp(&b, &a, 1000).unwrap();
    assert!(a.client().get().unwrap().peers[0].endpoint.is_some(), "learned");
}

#[test]
fn a_tcp_connection_survives_a_killed_engine_on_either_side() {
    let (mut a, mut b) = Node::pair(&Underlay::ipv4());
    let mut flow = support::Flow::open(&a, &b).unwrap();
    flow.echo().unwrap();
    a.restart();
    flow.echo().unwrap();
    b.restart();
    let took = flow.echo().unwrap();
    assert!(took < Duration::from_secs(8), "recovered after {took:?}");
    // The side that only sends learns from the other, which was restarted, at once.
    transfer_tcp(&a, &b, 1 << 20).unwrap();
}

#[test]
fn a_peer_that_moves_is_followed_and_its_endpoint_not_overwritten() {
    let underlay = Underlay::ipv4();
    let (a, b) = Node::pair(&underlay);
    ping(&a, &b).unwrap();
    a.netns.ip("addr del 198.18.7.1/24 dev u0\naddr add 198.18.7.9/24 dev u0").unwrap();
    b.netns.ip("neigh flush all").unwrap();
    ping(&a, &b).unwrap();
    let roamed = || b.client().get().unwrap().peers[0].endpoint.unwrap().to_string();
    assert_eq!(roamed(), "198.18.7.9:51820");
    let configured = PeerDelta { endpoint: Some("198.18.7.1:51820".parse().unwrap()), ..PeerDelta::new(a.public) };
    b.client().set(&Delta { peers: vec![configured], ..Delta::default() }).unwrap();
    assert_eq!(roamed(), "198.18.7.9:51820");
    transfer_tcp(&b, &a, 1 << 20).unwrap();
}

#[test]
fn a_forged_inner_source_is_dropped_and_counted() {
    let (a, b) = Node::pair(&Underlay::ipv4());
    ping(&a, &b).unwrap();
    a.netns.ip("addr add fd00:66::1/128 dev lo").unwrap();
    b.netns.ip("route add fd00:66::/64 dev weft0").unwrap();
    let forged = |node: &Node| metric(node, "forged_source").unwrap();
    assert_eq!(forged(&b), 0);
    let ping =
        Command::new("ping").args(["-c3", "-i0.2", "-W1", "-I", "fd00:66::1", "fd00:2::1"]).status_in(&a).unwrap();
    assert!(!ping);
    assert_eq!(forged(&b), 3);
}

#[test]
fn changes_are_deltas_that_disturb_no_flow() {
    let (a, b) = Node::pair(&Underlay::ipv4());
    ping(&a, &b).unwrap();
    let handshake = a.client().get().unwrap().peers[0].last_handshake;
    std::thread::scope(|scope| {
        let flow = scope.spawn(|| transfer_tcp(&a, &b, 128 << 20));
        for round in 0..5u8 {
            let peers = (0..400u16).map(|number| {
                let mut key = [round; 32];
                key[..2].copy_from_slice(&number.to_be_bytes());
                let net = format!("fd00:{:x}:{:x}::/64", 0x100 + u16::from(round), number).parse().unwrap();
                PeerDelta { allowed_ips: vec![Change::Add(net)], ..PeerDelta::new(weft_wire::Key::from_bytes(key)) }
            });
            a.client().set(&Delta { peers: peers.collect(), ..Delta::default() }).unwrap();
        }
        flow.join().unwrap().unwrap();
    });
    let state = a.client().get().unwrap();
    assert_eq!(state.peers.len(), 2001);
    let other = state.peers.iter().find(|peer| peer.public_key == b.public).unwrap();
    assert_eq!(other.last_handshake, handshake, "the session went on");
    let remove = PeerDelta { remove: true, ..PeerDelta::new(b.public) };
    a.client().set(&Delta { peers: vec![remove], ..Delta::default() }).unwrap();
    assert!(ping(&a, &b).is_err());
    assert!(metric(&a, "no_peer").unwrap() > 0);
}

#[test]
fn the_port_can_change_while_running() {
    let (a, b) = Node::pair(&Underlay::ipv4());
    ping(&a, &b).unwrap();
    a.client().set(&Delta { listen_port: Some(51999), ..Delta::default() }).unwrap();
    assert_eq!(a.client().get().unwrap().listen_port, 51999);
    ping(&a, &b).unwrap();
    let endpoint = b.client().get().unwrap().peers[0].endpoint.unwrap();
    assert_eq!(endpoint.port(), 51999, "followed as roaming");
}

#[test]
fn wg_shows_and_sets_it() {
    let (a, b) = Node::pair(&Underlay::ipv4());
    ping(&a, &b).unwrap();
    let shown = a.wg(&["show", "{}"]).unwrap();
    for part in [&b.public.to_string(), "fd00:2::/64", "latest handshake", "198.18.7.2:51820", &a.public.to_string()] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    a.wg(&["set", "{}", "peer", &b.public.to_string(), "persistent-keepalive", "25", "allowed-ips", "+fd00:9::/64"])
        .or_else(|_| a.wg(&["set", "{}", "peer", &b.public.to_string(), "persistent-keepalive", "25"]))
        .unwrap();
    assert_eq!(a.client().get().unwrap().peers[0].persistent_keepalive, 25);
}

#[test]
fn a_readable_key_is_refused_and_missing_inputs_are_waited_for() {
    let underlay = Underlay::ipv4();
    let (mut a, b) = Node::pair(&underlay);
    a.kill();
    a.set_config_mode(0o640);
    a.start();
    wait_until("the refusal", SOON, || a.ended()).unwrap();
    assert!(a.log().contains("mode 0640"), "{}", a.log());
    a.remove_config();
    a.start();
    wait_until("what it waits for", SOON, || a.log().contains("waiting for the configuration file")).unwrap();
    a.write_config();
    a.wait_up();
    ping(&a, &b).unwrap();
    assert!(!a.log().contains(&*a.private_base64()));
}

#[test]
fn a_killed_engine_lets_nothing_pass_and_a_keepalive_brings_the_peer_back() {
    let (mut a, mut b) = Node::pair_with_keepalive(&Underlay::ipv4(), 1);
    wait_for("a handshake that nobody asked for", SOON, || {
        let state = b.client().get()?;
        state.peers[0].last_handshake.ok_or_else(|| anyhow::anyhow!("none yet"))
    })
    .unwrap();
    a.kill();
    assert!(ping(&a, &b).is_err());
    b.restart();
    a.start();
    a.wait_up();
    wait_until("both again", SOON, || ping(&b, &a).is_ok()).unwrap();
}

#[test]
fn under_load_a_sender_proves_its_address_first() {
    let (a, mut b) = Node::pair(&Underlay::ipv4());
    b.kill();
    b.start_with(&["--handshake-limit", "0"]);
    b.wait_up();
    // The first message is answered with a cookie; the next, 5 seconds later, carries it.
    wait_until("a session with a cookie", SOON * 2, || ping(&a, &b).is_ok()).unwrap();
    assert!(metric(&b, "cookie_sent").unwrap() > 0);
}

#[test]
fn ten_thousand_peers_are_a_table_and_not_a_storm() {
    let (a, b) = Node::pair(&Underlay::ipv4());
    ping(&a, &b).unwrap();
    let before = a.resident();
    let peers = (0..10_000u32).map(|number| {
        let mut key = [9; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let net = format!("fd00:{:x}:{:x}::/64", 0x1000 + (number >> 8), number & 0xff).parse().unwrap();
        let endpoint = Some(std::net::SocketAddr::from(([198, 18, (number >> 8) as u8, number as u8], 51820)));
        let key = weft_wire::Key::from_bytes(key);
        PeerDelta { allowed_ips: vec![Change::Add(net)], endpoint, ..PeerDelta::new(key) }
    });
    let start = std::time::Instant::now();
    a.client().set(&Delta { peers: peers.collect(), ..Delta::default() }).unwrap();
    let set = start.elapsed();
    assert_eq!(a.client().get().unwrap().peers.len(), 10_001);
    let (got, grown) = (start.elapsed() - set, a.resident() - before);
    println!("10,000 peers: set in {set:?}, listed in {got:?}, {} KiB", grown >> 10);
    assert!(set < Duration::from_secs(2) && got < Duration::from_secs(2) && grown < 32 << 20);
    assert_eq!(metric(&a, "send_failed").unwrap(), 0, "nobody was called");
    ping(&a, &b).unwrap();
}
