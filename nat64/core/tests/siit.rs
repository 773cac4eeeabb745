//! Translation without state (RFC 7915 with RFC 7757 and RFC 6791): packet pairs for addresses, fragments, errors, hairpins.
#![allow(clippy::unwrap_used)]
mod common;
use std::net::{Ipv4Addr, Ipv6Addr};

use common::*;
use weft_nat64_core::{Config, Engine, Gso, GsoKind, Offload, Partial, Reason, Verdict};

const SIIT: &str = r#"
tun = "weft64"
mode = "siit"
mtu6 = 1420
mtu4 = 1500
deny = ["198.18.7.0/24"]
icmp_sources = ["192.0.2.240/30"]
[[prefix]]
prefix = "64:ff9b:1::/96"
permit = ["198.18.0.0/15", "192.0.2.0/24"]
[[eam]]
four = "192.0.2.1/32"
six = "2001:db8:a::1/128"
[[eam]]
four = "192.0.2.16/28"
six = "2001:db8:b::/120"
"#;

fn siit_with(from: &str, to: &str) -> Engine {
    let text = SIIT.replace(from, to);
    Engine::new(toml::from_str::<Config>(&text).unwrap(), 0, [1, 2]).unwrap()
}

fn siit() -> Engine {
    siit_with("", "")
}

fn six(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn four(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// Explicitly mapped hosts, by their addresses on both sides.
fn mapped_host() -> (Ipv6Addr, Ipv4Addr) {
    (six("2001:db8:a::1"), four("192.0.2.1"))
}

fn other_host() -> (Ipv6Addr, Ipv4Addr) {
    (six("2001:db8:b::30"), four("192.0.2.19"))
}

#[test]
fn addresses_are_mapped_explicitly_or_by_prefix_and_ports_stay() {
    let mut engine = siit();
    for (host6, host4) in [mapped_host(), other_host(), (mapped(four("198.19.1.1")), four("198.19.1.1"))] {
        for (protocol, segment) in [(UDP, udp(5, 53, b"odd")), (TCP, tcp(5, 53, SYN, b"data"))] {
            let seen = pass(&mut engine, 0, &v6(host6, mapped(REMOTE), protocol, &segment));
            assert_eq!((seen.source, seen.destination), (host4.into(), REMOTE.into()));
            assert_eq!((seen.ports(), seen.hops, seen.protocol), ((5, 53), 63, protocol));
            let seen = pass(&mut engine, 0, &v4(REMOTE, host4, protocol, &segment));
            assert_eq!((seen.source, seen.destination), (mapped(REMOTE).into(), host6.into()));
            assert_eq!((seen.ports(), seen.hops, seen.protocol), ((5, 53), 63, protocol));
        }
        let seen = pass(&mut engine, 0, &v6(host6, mapped(REMOTE), ICMPV6, &icmp(128, 0, 0x1234_0001, b"ping")));
        assert_eq!((seen.transport[0], seen.rest(), &seen.transport[8..]), (8, 0x1234_0001, &b"ping"[..]));
        let seen = pass(&mut engine, 0, &v4(REMOTE, host4, ICMP, &icmp(8, 0, 0x1234_0001, b"ping")));
        assert_eq!((seen.transport[0], seen.rest()), (128, 0x1234_0001), "requests pass in both directions");
    }
    assert_eq!((engine.sessions().count(), engine.sources().count()), (0, 0), "no state");
    assert_eq!(engine.counters().packets_6to4, 9);
}

#[test]
fn what_has_no_counterpart_is_dropped_and_what_is_refused_answered() {
    let mut engine = siit();
    let stranger = v6(six("2001:db8:ffff::1"), mapped(REMOTE), UDP, &udp(5, 53, b""));
    assert_eq!(run(&mut engine, 0, &stranger).0, Verdict::Drop(Reason::SourceNotAllowed), "5.1: in silence");
    let nowhere = v6(mapped_host().0, six("2001:db8:ffff::1"), UDP, &udp(5, 53, b""));
    assert_eq!(run(&mut engine, 0, &nowhere).0, Verdict::Drop(Reason::NotOurPrefix));
    for (refused, reason) in [("198.18.7.1", Reason::Denied), ("10.0.0.1", Reason::NotPermitted)] {
        let (verdict, answer) = run(&mut engine, 0, &v6(mapped_host().0, mapped(four(refused)), UDP, &udp(5, 53, b"")));
        assert_eq!(verdict, Verdict::Reply(reason));
        let seen = see(&answer);
        assert_eq!((seen.transport[0], seen.transport[1], seen.source), (1, 1, mapped(four("192.0.2.240")).into()));
    }
    let spoofed = v6(mapped(four("10.0.0.1")), mapped(REMOTE), UDP, &udp(5, 53, b""));
    assert_eq!(run(&mut engine, 0, &spoofed).0, Verdict::Drop(Reason::NotPermitted), "RFC 6052 3.1");
    let unknown = v4(REMOTE, four("10.0.0.1"), UDP, &udp(5, 53, b""));
    assert_eq!(run(&mut engine, 0, &unknown).0, Verdict::Drop(Reason::NotPermitted));
}

#[test]
fn unknown_protocols_pass_with_their_checksums_untouched_4_5() {
    let mut engine = siit();
    let (host6, host4) = mapped_host();
    for protocol in [132, 33, 136, 47, 50, 51] {
        let body = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let (verdict, out) = run(&mut engine, 0, &v6_raw(host6, mapped(REMOTE), protocol, &body));
        assert_eq!((verdict, out[9], &out[20..]), (Verdict::Forward, protocol, &body[..]));
        let (verdict, out) = run(&mut engine, 0, &v4_raw(REMOTE, host4, protocol, &body, 0, 0));
        assert_eq!((verdict, out[6], &out[40..]), (Verdict::Forward, protocol, &body[..]));
    }
    // Numbers that mean something else in the other family.
    let refused = Verdict::Drop(Reason::UnsupportedProtocol);
    assert_eq!(run(&mut engine, 0, &v6_raw(host6, mapped(REMOTE), 1, &[0; 8])).0, refused);
    for protocol in [0, 43, 44, 58, 60] {
        assert_eq!(run(&mut engine, 0, &v4_raw(REMOTE, host4, protocol, &[0; 8], 0, 0)).0, refused);
    }
}

fn v6_fragment(source: Ipv6Addr, next: u8, offset: u16, more: bool, id: u32, piece: &[u8]) -> Vec<u8> {
    let mut payload = vec![next, 0];
    payload.extend((offset | u16::from(more)).to_be_bytes());
    payload.extend(id.to_be_bytes());
    payload.extend(piece);
    v6_raw(source, mapped(REMOTE), 44, &payload)
}

#[test]
fn fragments_from_ipv6_pass_each_for_itself_5_1_1() {
    let mut engine = siit();
    let (host6, host4) = mapped_host();
    let whole = v6(host6, mapped(REMOTE), UDP, &udp(5, 53, &[7; 2000]));
    let pieces = whole[40..].split_at(1000);
    // The later one first: nothing is remembered, so nothing need be.
    let (verdict, two) = run(&mut engine, 0, &v6_fragment(host6, UDP, 1000, false, 0x0001_beef, pieces.1));
    assert_eq!((verdict, &two[4..8]), (Verdict::Forward, &[0xbe, 0xef, 0, 125][..]), "low half of the identification");
    let (verdict, one) = run(&mut engine, 0, &v6_fragment(host6, UDP, 0, true, 0x0001_beef, pieces.0));
    assert_eq!((verdict, &one[4..8]), (Verdict::Forward, &[0xbe, 0xef, 0x20, 0][..]), "M copied, DF clear");
    see(&v4_raw(host4, REMOTE, UDP, &[&one[20..], &two[20..]].concat(), 0, 0));
    // A whole packet with a needless Fragment header (RFC 6946).
    let small = v6(host6, mapped(REMOTE), UDP, &udp(5, 53, &[7; 1300]));
    let (_, out) = run(&mut engine, 0, &v6_fragment(host6, UDP, 0, false, 0x0001_cafe, &small[40..]));
    assert_eq!(out[4..8], [0xca, 0xfe, 0, 0], "DF clear though it is long");
    see(&out);
    let tiny = v6_fragment(host6, UDP, 0, true, 1, &whole[40..46]);
    assert_eq!(run(&mut engine, 0, &tiny).0, Verdict::Drop(Reason::TinyFragment));
    let echo = v6_fragment(host6, ICMPV6, 0, true, 1, &[128, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(run(&mut engine, 0, &echo).0, Verdict::Drop(Reason::FragmentedIcmp));
    let sctp = v6_fragment(host6, 132, 8, true, 1, &[1; 8]);
    assert_eq!(run(&mut engine, 0, &sctp).0, Verdict::Forward);
    assert_eq!(engine.fragments(), 0);
}

#[test]
fn fragments_from_ipv4_pass_each_for_itself_and_are_cut_to_fit_4_1() {
    let mut engine = siit();
    let (host6, host4) = mapped_host();
    let whole = v4(REMOTE, host4, UDP, &udp(53, 5, &[9; 2400]));
    let (head, rest) = whole[20..].split_at(1480);
    let (verdict, last) = run(&mut engine, 0, &v4_raw(REMOTE, host4, UDP, rest, 185, 0xbeef));
    assert_eq!(verdict, Verdict::Forward);
    let first = v4_raw(REMOTE, host4, UDP, head, 0x2000, 0xbeef);
    let Verdict::Split(mut pieces) = run(&mut engine, 0, &first).0 else { panic!("1528 bytes do not fit 1420") };
    pieces.push(last);
    let mut payload = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        assert!(piece.len() <= 1420);
        assert_eq!((piece[6], &piece[44..48]), (44, &0xbeefu32.to_be_bytes()[..]));
        let field = u16::from_be_bytes([piece[42], piece[43]]);
        assert_eq!((usize::from(field & !7), field & 1 == 1), (payload.len(), index + 1 < pieces.len()));
        payload.extend(&piece[48..]);
    }
    see(&v6_raw(mapped(REMOTE), host6, UDP, &payload));
    let large_later = v4_raw(REMOTE, host4, UDP, &[1; 1480], 0x6000 | 185, 7);
    assert_eq!(run(&mut engine, 0, &large_later).0, Verdict::Drop(Reason::TooBig), "DF, but no error about it");
}

#[test]
fn what_does_not_fit_is_answered_or_cut_by_its_own_identification_4_1() {
    let mut engine = siit();
    let (host6, host4) = mapped_host();
    let large = v4(REMOTE, host4, UDP, &udp(53, 5, &[1; 1400]));
    let (verdict, answer) = run(&mut engine, 0, &large);
    assert_eq!(verdict, Verdict::Reply(Reason::TooBig));
    let seen = see(&answer);
    assert_eq!((seen.source, seen.transport[0], seen.rest()), (four("192.0.2.240").into(), 3, 1400));
    let mut cut = large.clone();
    cut[4..7].copy_from_slice(&[0xab, 0xcd, 0]);
    finish_v4(&mut cut);
    let Verdict::Split(pieces) = run(&mut engine, 0, &cut).0 else { panic!("it does not fit") };
    assert!(pieces.iter().all(|piece| piece[44..48] == [0, 0, 0xab, 0xcd]));
    see(&v6_raw(mapped(REMOTE), host6, UDP, &pieces.iter().flat_map(|piece| piece[48..].to_vec()).collect::<Vec<_>>()));
    // Of a protocol that is not known too.
    let unknown = v4_raw(REMOTE, host4, 132, &[1; 1400], 0, 9);
    let Verdict::Split(pieces) = run(&mut engine, 0, &unknown).0 else { panic!("it does not fit") };
    assert_eq!((pieces.len(), pieces[0][40]), (2, 132));
}

#[test]
fn hops_run_out_with_an_error_from_the_translators_own_address() {
    let mut engine = siit();
    let (host6, host4) = mapped_host();
    let mut packet = v6(host6, mapped(REMOTE), UDP, &udp(5, 53, b""));
    packet[7] = 1;
    let seen = see(&run(&mut engine, 0, &packet).1);
    assert_eq!((seen.source, seen.destination), (mapped(four("192.0.2.240")).into(), host6.into()));
    assert_eq!((seen.transport[0], &seen.transport[8..]), (3, &packet[..]));
    let mut packet = v4(REMOTE, host4, UDP, &udp(5, 53, b""));
    packet[8] = 1;
    finish_v4(&mut packet);
    let seen = see(&run(&mut engine, 0, &packet).1);
    assert_eq!((seen.source, seen.destination), (four("192.0.2.240").into(), REMOTE.into()));
    let mut engine = siit_with("icmp_sources = [\"192.0.2.240/30\"]", "");
    assert_eq!(see(&run(&mut engine, 0, &packet).1).source, std::net::IpAddr::from(host4), "or from whom it was for");
}

#[test]
fn udp_without_checksum_gets_one_or_is_dropped_by_choice_4_5() {
    let packet = v4_raw(REMOTE, mapped_host().1, UDP, &udp(53, 5, b"odd"), 0, 0);
    pass(&mut siit(), 0, &packet);
    let mut engine = siit_with("mtu4 = 1500", "mtu4 = 1500\nudp_zero_checksum = \"drop\"");
    assert_eq!(run(&mut engine, 0, &packet).0, Verdict::Drop(Reason::ZeroChecksum));
    pass(&mut engine, 0, &v4(REMOTE, mapped_host().1, UDP, &udp(53, 5, b"odd")));
    let piece = v4_raw(REMOTE, mapped_host().1, UDP, &udp(53, 5, b"odd"), 0x2000, 0);
    for mut engine in [siit(), engine] {
        assert_eq!(run(&mut engine, 0, &piece).0, Verdict::Drop(Reason::ZeroChecksumFragment));
    }
}

#[test]
fn icmp_errors_pass_both_ways_with_what_they_quote() {
    let mut engine = siit();
    let (host6, host4) = mapped_host();
    let sent6 = v6(host6, mapped(REMOTE), UDP, &udp(5, 53, &[3; 1300]));
    let sent4 = v4(host4, REMOTE, UDP, &udp(5, 53, &[3; 1300]));
    let router = four("198.18.0.254");
    let seen = pass(&mut engine, 0, &v4(router, host4, ICMP, &icmp(3, 4, 1300, &sent4[..500])));
    assert_eq!((seen.source, seen.destination), (mapped(router).into(), host6.into()));
    assert_eq!((seen.transport[0], seen.rest(), &seen.transport[8 + 8..]), (2, 1320, &sent6[8..520]));
    let came6 = v6(mapped(REMOTE), host6, UDP, &udp(53, 5, &[3; 1300]));
    let came4 = v4(REMOTE, host4, UDP, &udp(53, 5, &[3; 1300]));
    let seen = pass(&mut engine, 0, &v6(host6, mapped(REMOTE), ICMPV6, &icmp(1, 4, 0, &came6[..500])));
    assert_eq!((seen.source, seen.destination), (host4.into(), REMOTE.into()));
    assert_eq!((seen.transport[0], seen.transport[1], &seen.transport[8 + 12..]), (3, 3, &came4[12..480]));
    // A private router is named by the first prefix though that permits it no packets.
    let seen = pass(&mut engine, 0, &v4(four("10.0.0.1"), host4, ICMP, &icmp(11, 0, 0, &sent4[..60])));
    assert_eq!(seen.source, std::net::IpAddr::from(mapped(four("10.0.0.1"))));
    // About a packet of someone else.
    let error = v4(router, host4, ICMP, &icmp(3, 3, 0, &v4(other_host().1, REMOTE, UDP, &udp(5, 53, b""))));
    assert_eq!(run(&mut engine, 0, &error).0, Verdict::Drop(Reason::IcmpUnrelated));
    let error = v6(
        host6,
        mapped(REMOTE),
        ICMPV6,
        &icmp(1, 4, 0, &v6(mapped(REMOTE), six("2001:db8:f::"), UDP, &udp(5, 53, b""))),
    );
    assert_eq!(run(&mut engine, 0, &error).0, Verdict::Drop(Reason::IcmpUnrelated));
}

#[test]
fn quoted_packets_may_be_cut_or_fragments_or_unknown_4_3_and_5_3() {
    let mut engine = siit();
    let (host6, host4) = mapped_host();
    let echo6 = v6(mapped(REMOTE), host6, ICMPV6, &icmp(128, 0, 0x1234_0001, b"data"));
    let echo4 = v4(REMOTE, host4, ICMP, &icmp(8, 0, 0x1234_0001, b"data"));
    let udp6 = v6(mapped(REMOTE), host6, UDP, &udp(5, 53, b"data"));
    let udp4 = v4(REMOTE, host4, UDP, &udp(5, 53, b"data"));
    for (six, four) in [(&echo6, &echo4), (&udp6, &udp4)] {
        // After the IP header only so much of the transport is left.
        for left in [0usize, 1, 3, 4, 6, 7, 8, 11] {
            let seen = pass(&mut engine, 0, &v6(host6, mapped(REMOTE), ICMPV6, &icmp(3, 0, 0, &six[..40 + left])));
            let quoted = &seen.transport[8..];
            assert_eq!((quoted.len(), &quoted[12..20]), (20 + left, &four[12..20]));
            let whole = if left == 7 { left - 1 } else { left };
            if six[6] == UDP || left == 0 || left >= 4 {
                assert_eq!(quoted[20..20 + whole], four[20..20 + whole], "{left} bytes");
            }
        }
    }
    // Extension headers inside are left out, and the lengths follow.
    let inside = [&[17u8, 0, 1, 4, 0, 0, 0, 0][..], &udp6[40..]].concat();
    let extended = v6_raw(mapped(REMOTE), host6, 60, &inside);
    let seen = pass(&mut engine, 0, &v6(host6, mapped(REMOTE), ICMPV6, &icmp(1, 4, 0, &extended)));
    assert_eq!((&seen.transport[10..12], &seen.transport[20..]), (&udp4[2..4], &udp4[12..]));
    let cut = v6(host6, mapped(REMOTE), ICMPV6, &icmp(1, 4, 0, &extended[..44]));
    assert_eq!(run(&mut engine, 0, &cut).0, Verdict::Drop(Reason::Truncated), "cut inside its headers");
    // A later fragment has no transport header.
    let later = v4_raw(host4, REMOTE, UDP, &[5; 16], 185, 0xbeef);
    let seen = pass(&mut engine, 0, &v4(REMOTE, host4, ICMP, &icmp(11, 1, 0, &later)));
    assert_eq!((seen.transport[14], &seen.transport[8 + 48..]), (44, &[5; 16][..]));
    let unknown = v4_raw(host4, REMOTE, 132, &[5; 16], 0, 0);
    let seen = pass(&mut engine, 0, &v4(REMOTE, host4, ICMP, &icmp(3, 2, 0, &unknown)));
    assert_eq!((seen.transport[14], &seen.transport[8 + 40..]), (132, &[5; 16][..]));
}

#[test]
fn routers_without_ipv4_address_speak_by_the_pool_rfc_6791() {
    let mut engine = siit();
    let (host6, host4) = mapped_host();
    let sent = v6(mapped(REMOTE), host6, UDP, &udp(53, 5, b"data"));
    let error = |router: u16| v6(host(router), mapped(REMOTE), ICMPV6, &icmp(3, 0, 0, &sent));
    let mut seen = std::collections::HashSet::new();
    for router in 1..100 {
        let first = pass(&mut engine, 0, &error(router));
        assert_eq!(pass(&mut engine, 9, &error(router)).source, first.source, "the same router, the same address");
        assert_eq!(&first.transport[8 + 12..8 + 20], &[REMOTE.octets(), host4.octets()].concat()[..]);
        seen.insert(first.source);
    }
    let mut pool: Vec<String> = seen.iter().map(ToString::to_string).collect();
    pool.sort();
    assert_eq!(pool, ["192.0.2.240", "192.0.2.241", "192.0.2.242", "192.0.2.243"]);
    let known = v6(other_host().0, mapped(REMOTE), ICMPV6, &icmp(3, 0, 0, &sent));
    assert_eq!(pass(&mut engine, 0, &known).source, std::net::IpAddr::from(other_host().1), "who has one keeps it");
    let mut engine = siit_with("icmp_sources = [\"192.0.2.240/30\"]", "");
    assert_eq!(run(&mut engine, 0, &error(1)).0, Verdict::Drop(Reason::SourceNotAllowed));
}

#[test]
fn mapped_hosts_reach_each_other_by_their_ipv4_addresses_rfc_7757_4() {
    let mut engine = siit();
    let ((one6, one4), (two6, two4)) = (mapped_host(), other_host());
    // The address by which the sender is shown: by prefix, so that the answer comes back this way.
    let there = v6(one6, mapped(two4), TCP, &tcp(5, 80, SYN, b""));
    let seen = pass(&mut engine, 0, &there);
    assert_eq!((seen.source, seen.destination, seen.ports()), (mapped(one4).into(), two6.into(), (5, 80)));
    let back = pass(&mut engine, 0, &v6(two6, mapped(one4), TCP, &tcp(80, 5, SYN | ACK, b"")));
    assert_eq!((back.source, back.destination, back.ports()), (mapped(two4).into(), one6.into(), (80, 5)));
    // When a router on the IPv4 side turns it instead: 4.2.1.
    let turned = pass(&mut engine, 0, &v4(one4, two4, TCP, &tcp(5, 80, SYN, b"")));
    assert_eq!((turned.source, turned.destination), (mapped(one4).into(), two6.into()));
    // An error about it names both as the sender knew them.
    let came = v6(mapped(one4), two6, TCP, &tcp(5, 80, SYN, b""));
    let seen = pass(&mut engine, 0, &v6(two6, mapped(one4), ICMPV6, &icmp(1, 4, 0, &came)));
    assert_eq!((seen.source, seen.destination), (mapped(two4).into(), one6.into()));
    assert_eq!(seen.transport[8 + 8..8 + 40], [one6.octets(), mapped(two4).octets()].concat());
    // Errors of the translator itself, from the second pass, reach the sender.
    let mut packet = there.clone();
    packet[7] = 2;
    let (verdict, answer) = run(&mut engine, 0, &packet);
    assert_eq!(verdict, Verdict::Reply(Reason::HopLimit));
    let seen = see(&answer);
    assert_eq!((seen.destination, seen.transport[0]), (one6.into(), 3));
    assert_eq!(seen.transport[8 + 8..8 + 40], [one6.octets(), mapped(two4).octets()].concat());
    // A super-packet turns back whole.
    let packet = v6_with(one6, mapped(two4), TCP, &tcp(5, 80, ACK, &[7; 5000]), true);
    let mut offload = Offload {
        partial: Some(Partial { start: 40, offset: 16 }),
        gso: Some(Gso { kind: GsoKind::TcpV6, size: 1360, ecn: false }),
    };
    let before = offload;
    let (verdict, out) = run_with(&mut engine, 0, &packet, &mut offload);
    assert_eq!((verdict, offload), (Verdict::Forward, before));
    assert_eq!(see_with(&out, true).destination, std::net::IpAddr::from(two6));
}
