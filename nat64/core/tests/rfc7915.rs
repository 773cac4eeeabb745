//! Packet pairs for the rules of RFC 7915, through the engine: what goes in, what must come out.
#![allow(clippy::unwrap_used)]
mod common;
use common::*;
use weft_nat64_core::{Gso, GsoKind, Offload, Partial, Reason, Verdict};

#[test]
fn a_header_becomes_one_of_the_other_family_5_1() {
    let mut engine = engine();
    let mut packet = v6(host(9), mapped(REMOTE), UDP, &udp(5, 53, &[1; 1300]));
    packet[0] = 0x6b;
    packet[1] = 0x8f;
    let (_, out) = run(&mut engine, 0, &packet);
    let seen = see(&out);
    assert_eq!((seen.tos, seen.hops), (0xb8, 63));
    assert_eq!(out[4..8], [0, 0, 0x40, 0], "over 1260 bytes: DF, no identification");
    let small = v6(host(9), mapped(REMOTE), UDP, &udp(5, 53, &[1; 1232]));
    let (_, out) = run(&mut engine, 0, &small);
    assert_eq!((out.len(), &out[6..8]), (1260, &[0, 0][..]), "1260 bytes: no DF");
    let (_, next) = run(&mut engine, 0, &small);
    assert_ne!(out[4..6], next[4..6], "and another identification each time");
}

#[test]
fn extension_headers_are_left_out_5_1() {
    let mut engine = engine();
    let plain = v6(host(9), mapped(REMOTE), UDP, &udp(5, 53, b"data"));
    let mut payload = vec![60, 0, 1, 4, 0, 0, 0, 0]; // hop-by-hop, then destination options of 16 bytes
    payload.extend([17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    payload.extend(&plain[40..]);
    let seen = pass(&mut engine, 0, &v6_raw(host(9), mapped(REMOTE), 0, &payload));
    assert_eq!(&seen.transport[8..], b"data");
    let endless = [[0u8, 0, 1, 4, 0, 0, 0, 0]; 9].concat();
    let (verdict, _) = run(&mut engine, 0, &v6_raw(host(9), mapped(REMOTE), 0, &endless));
    assert_eq!(verdict, Verdict::Drop(Reason::ExtensionHeaders));
}

#[test]
fn source_routes_are_answered_4_1_and_5_1() {
    let mut engine = engine();
    let plain = v6(host(9), mapped(REMOTE), UDP, &udp(5, 53, b"data"));
    let routed = [&[17u8, 0, 0, 1, 0, 0, 0, 0][..], &plain[40..]].concat();
    let (verdict, answer) = run(&mut engine, 0, &v6_raw(host(9), mapped(REMOTE), 43, &routed));
    assert_eq!(verdict, Verdict::Reply(Reason::SourceRoute));
    let seen = see(&answer);
    assert_eq!((seen.transport[0], seen.transport[1], seen.rest()), (4, 0, 43));
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    for (pointer, verdict) in [(4, Verdict::Reply(Reason::SourceRoute)), (8, Verdict::Forward)] {
        let plain = v4(REMOTE, POOL, UDP, &udp(53, port, b"data"));
        let mut packet = [&plain[..20], &[131, 7, pointer, 198, 18, 0, 9, 0], &plain[20..]].concat();
        packet[0] = 0x47;
        packet[3] += 8;
        finish_v4(&mut packet);
        let (got, out) = run(&mut engine, 0, &packet);
        assert_eq!(got, verdict, "pointer {pointer}");
        see(&out);
    }
}

#[test]
fn udp_without_checksum_gets_one_4_5() {
    let mut engine = engine();
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    let plain = v4_raw(REMOTE, POOL, UDP, &udp(53, port, b"odd"), 0, 0);
    assert_eq!(plain[26..28], [0, 0]);
    pass(&mut engine, 0, &plain);
    let piece = v4_raw(REMOTE, POOL, UDP, &udp(53, port, b"odd"), 0x2000, 0);
    assert_eq!(run(&mut engine, 0, &piece).0, Verdict::Drop(Reason::ZeroChecksumFragment));
}

#[test]
fn a_packet_that_does_not_fit_is_answered_or_cut_4_1() {
    let mut engine = engine();
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    let fits = v4(REMOTE, POOL, UDP, &udp(53, port, &[1; 1372]));
    assert_eq!(run(&mut engine, 0, &fits).1.len(), 1420);
    let large = v4(REMOTE, POOL, UDP, &udp(53, port, &[1; 1373]));
    let (verdict, answer) = run(&mut engine, 0, &large);
    assert_eq!(verdict, Verdict::Reply(Reason::TooBig));
    let seen = see(&answer);
    assert_eq!((seen.transport[0], seen.transport[1], seen.rest()), (3, 4, 1400));
    assert!(answer.len() <= 576 && seen.transport[8..] == large[..answer.len() - 28]);
    let mut without_df = large.clone();
    without_df[6] = 0;
    finish_v4(&mut without_df);
    let Verdict::Split(pieces) = run(&mut engine, 0, &without_df).0 else { panic!("it does not fit") };
    assert_eq!(pieces.len(), 2);
    let payload = pieces.iter().flat_map(|piece| piece[48..].to_vec()).collect::<Vec<_>>();
    see(&v6_raw(mapped(REMOTE), host(9), UDP, &payload));
}

#[test]
fn a_tcp_super_packet_is_cut_smaller_instead() {
    let mut engine = engine();
    let port = open_tcp(&mut engine, 0, host(9), 4000, REMOTE, 80);
    let packet = v4_with(REMOTE, POOL, TCP, &tcp(80, port, ACK, &[1; 40_000]), true);
    let mut offload = Offload {
        partial: Some(Partial { start: 20, offset: 16 }),
        gso: Some(Gso { kind: GsoKind::TcpV4, size: 1460, ecn: true }),
    };
    let (verdict, out) = run_with(&mut engine, 0, &packet, &mut offload);
    assert_eq!(verdict, Verdict::Forward);
    assert_eq!(offload.gso, Some(Gso { kind: GsoKind::TcpV6, size: 1360, ecn: true }));
    assert_eq!(offload.partial, Some(Partial { start: 40, offset: 16 }));
    see_with(&out, true);
}

#[test]
fn a_super_packet_too_long_for_ipv4_is_cut() {
    let mut engine = engine();
    open_tcp(&mut engine, 0, host(9), 4000, REMOTE, 80);
    let data: Vec<u8> = (0..65_500u32).map(|n| (n % 251) as u8).collect();
    let packet = v6_with(host(9), mapped(REMOTE), TCP, &tcp(4000, 80, ACK | FIN | 0x88, &data), true);
    let mut offload = Offload {
        partial: Some(Partial { start: 40, offset: 16 }),
        gso: Some(Gso { kind: GsoKind::TcpV6, size: 1360, ecn: true }),
    };
    let Verdict::Split(packets) = run_with(&mut engine, 0, &packet, &mut offload).0 else { panic!("it does not fit") };
    let mut got: Vec<u8> = Vec::new();
    for (index, packet) in packets.iter().enumerate() {
        let seen = see(packet);
        assert_eq!(seen.transport[4..8], (1000 + got.len() as u32).to_be_bytes());
        assert_eq!(seen.transport[13] & FIN != 0, index + 1 == packets.len());
        assert_eq!(seen.transport[13] & 0x80 != 0, index == 0);
        got.extend(&seen.transport[20..]);
    }
    assert_eq!(got, data);
    // Without segments to cut it by there is no way.
    let packet = v6(host(9), mapped(REMOTE), UDP, &udp(1, 2, &[0; 65_516 - 8]));
    assert_eq!(run(&mut engine, 0, &packet).0, Verdict::Drop(Reason::TooLongForIpv4));
}

#[test]
fn a_syn_announces_no_more_than_fits() {
    let mut engine = engine();
    for (at, options) in
        [(2, [2u8, 4, 5, 180, 1, 1, 1, 1]), (3, [1, 2, 4, 5, 180, 1, 1, 1]), (4, [1, 1, 2, 4, 2, 0, 1, 0])]
    {
        let mut segment = tcp(4000, 80, SYN, &options);
        segment[12] = 0x70;
        let seen = pass(&mut engine, 0, &v6(host(9), mapped(REMOTE), TCP, &segment));
        let mss = u16::from_be_bytes([seen.transport[20 + at], seen.transport[21 + at]]);
        assert_eq!(mss, if at == 4 { 512 } else { 1360 });
    }
}

/// An ICMPv4 error about a packet that host 9 sent, and what of it arrives.
fn error_to_six(kind: u8, code: u8, rest: u32) -> (Verdict, Vec<u8>) {
    let mut engine = engine();
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    let about = v4(POOL, REMOTE, UDP, &udp(port, 53, &[3; 1400]));
    let router = [198, 18, 0, 254].into();
    run(&mut engine, 0, &v4(router, POOL, ICMP, &icmp(kind, code, rest, &about[..60])))
}

#[test]
fn icmpv4_errors_have_their_icmpv6_counterparts_4_2() {
    for (from, to) in [
        ((3, 0, 0), Some((1, 0, 0))),
        ((3, 1, 0), Some((1, 0, 0))),
        ((3, 2, 0), Some((4, 1, 6))),
        ((3, 3, 0), Some((1, 4, 0))),
        ((3, 4, 1300), Some((2, 0, 1320))),
        ((3, 4, 576), Some((2, 0, 1280))),
        ((3, 4, 0), Some((2, 0, 1280))),
        ((3, 5, 0), Some((1, 0, 0))),
        ((3, 9, 0), Some((1, 1, 0))),
        ((3, 10, 0), Some((1, 1, 0))),
        ((3, 13, 0), Some((1, 1, 0))),
        ((3, 14, 0), None),
        ((3, 15, 0), Some((1, 1, 0))),
        ((11, 0, 0), Some((3, 0, 0))),
        ((11, 1, 0), Some((3, 1, 0))),
        ((12, 0, 8 << 24), Some((4, 0, 7))),
        ((12, 0, 16 << 24), Some((4, 0, 24))),
        ((12, 0, 4 << 24), None),
        ((12, 1, 0), None),
        ((12, 2, 9 << 24), Some((4, 0, 6))),
        ((4, 0, 0), None),
        ((5, 1, 0), None),
        ((13, 0, 0), None),
    ] {
        let (verdict, out) = error_to_six(from.0, from.1, from.2);
        let Some(expected) = to else {
            assert_eq!(verdict, Verdict::Drop(Reason::IcmpType), "{from:?}");
            continue;
        };
        assert_eq!(verdict, Verdict::Forward, "{from:?}");
        let seen = see(&out);
        assert_eq!((seen.transport[0], seen.transport[1], seen.rest()), expected, "{from:?}");
        assert_eq!((seen.source, seen.destination), (mapped([198, 18, 0, 254].into()).into(), host(9).into()));
        // The quoted packet is the one that host 9 sent, whole lengths, cut where it was cut.
        let sent = v6(host(9), mapped(REMOTE), UDP, &udp(5, 53, &[3; 1400]));
        let quoted = &seen.transport[8..];
        assert_eq!((quoted.len(), &quoted[..7], &quoted[8..]), (80, &sent[..7], &sent[8..80]), "{from:?}");
    }
}

/// An ICMPv6 error about a packet that was translated for host 9, and what of it arrives at the IPv4 host.
fn error_to_four(kind: u8, code: u8, rest: u32) -> (Verdict, Vec<u8>, u16) {
    let mut engine = engine();
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    let about = v6(mapped(REMOTE), host(9), UDP, &udp(53, 5, &[3; 1300]));
    let error = v6(host(0x77), mapped(REMOTE), ICMPV6, &icmp(kind, code, rest, &about[..1200]));
    let (verdict, out) = run(&mut engine, 0, &error);
    (verdict, out, port)
}

#[test]
fn icmpv6_errors_have_their_icmpv4_counterparts_5_2() {
    for (from, to) in [
        ((1, 0, 0), Some((3, 1, 0))),
        ((1, 1, 0), Some((3, 10, 0))),
        ((1, 2, 0), Some((3, 1, 0))),
        ((1, 3, 0), Some((3, 1, 0))),
        ((1, 4, 0), Some((3, 3, 0))),
        ((1, 5, 0), None),
        ((2, 0, 1300), Some((3, 4, 1280))),
        ((2, 0, 9000), Some((3, 4, 1400))),
        ((3, 0, 0), Some((11, 0, 0))),
        ((4, 0, 7), Some((12, 0, 8 << 24))),
        ((4, 0, 2), None),
        ((4, 0, 40), None),
        ((4, 1, 6), Some((3, 2, 0))),
        ((4, 2, 0), None),
        ((100, 0, 0), None),
        ((135, 0, 0), None),
    ] {
        let (verdict, out, port) = error_to_four(from.0, from.1, from.2);
        let Some(expected) = to else {
            assert_eq!(verdict, Verdict::Drop(Reason::IcmpType), "{from:?}");
            continue;
        };
        assert_eq!(verdict, Verdict::Forward, "{from:?}");
        let seen = see(&out);
        assert_eq!((seen.transport[0], seen.transport[1], seen.rest()), expected, "{from:?}");
        assert_eq!((seen.source, seen.destination), (POOL.into(), REMOTE.into()));
        let sent = v4(REMOTE, POOL, UDP, &udp(53, port, &[3; 1300]));
        let quoted = &seen.transport[8..];
        assert_eq!((out.len(), &quoted[2..4], &quoted[12..]), (576, &sent[2..4], &sent[12..548]), "{from:?}");
    }
}

#[test]
fn icmp_errors_about_packets_that_never_passed_are_dropped() {
    let mut engine = engine();
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    for about in [
        v4(POOL, REMOTE, UDP, &udp(port ^ 2, 53, b"")),
        v4(POOL, REMOTE, UDP, &udp(port, 54, b"")),
        v4(POOL, [198, 18, 0, 81].into(), UDP, &udp(port, 53, b"")),
        v4([192, 0, 2, 2].into(), REMOTE, UDP, &udp(port, 53, b"")),
        v4(POOL, REMOTE, ICMP, &icmp(3, 3, 0, &[0; 8])),
    ] {
        let error = v4(REMOTE, POOL, ICMP, &icmp(3, 3, 0, &about));
        assert_eq!(run(&mut engine, 0, &error).0, Verdict::Drop(Reason::IcmpUnrelated));
    }
    let about = v6(mapped(REMOTE), host(8), UDP, &udp(53, 5, b""));
    let error = v6(host(8), mapped(REMOTE), ICMPV6, &icmp(1, 4, 0, &about));
    assert_eq!(run(&mut engine, 0, &error).0, Verdict::Drop(Reason::IcmpUnrelated));
    let mut wrong = v4(REMOTE, POOL, ICMP, &icmp(3, 3, 0, &v4(POOL, REMOTE, UDP, &udp(port, 53, b""))));
    wrong[22] ^= 1;
    assert_eq!(run(&mut engine, 0, &wrong).0, Verdict::Drop(Reason::Malformed), "a wrong checksum is not made right");
}

#[test]
fn a_quoted_echo_gets_its_identifier_back() {
    let mut engine = engine();
    let request = v6(host(9), mapped(REMOTE), ICMPV6, &icmp(128, 0, 0x1234_0001, b"data"));
    let id = pass(&mut engine, 0, &request).identifier();
    let about = v4(POOL, REMOTE, ICMP, &icmp(8, 0, u32::from(id) << 16 | 1, b"data"));
    let seen = pass(&mut engine, 0, &v4(REMOTE, POOL, ICMP, &icmp(11, 0, 0, &about)));
    assert_eq!((seen.transport[0], &seen.transport[8 + 40..]), (3, &request[40..]));
}

#[test]
fn partial_checksums_of_icmp_and_of_tunnelled_packets_are_finished_first() {
    let mut engine = engine();
    let mut packet = v6_with(host(9), mapped(REMOTE), ICMPV6, &icmp(128, 0, 0x1234_0001, b"data"), true);
    let mut offload = Offload { partial: Some(Partial { start: 40, offset: 2 }), gso: None };
    let (verdict, out) = run_with(&mut engine, 0, &packet, &mut offload);
    assert_eq!((verdict, offload), (Verdict::Forward, Offload::default()));
    see(&out);
    // A tunnel's UDP with its own checksum right once the inner one is finished.
    packet = v6(host(9), mapped(REMOTE), UDP, &udp(5, 4789, &[0; 64]));
    packet[48 + 30..48 + 32].copy_from_slice(&0x1234u16.to_be_bytes());
    let inner = !naive_sum(&[&packet[48 + 14..]]);
    let mut finished = packet.clone();
    finished[48 + 30..48 + 32].copy_from_slice(&inner.to_be_bytes());
    let finished = v6(
        host(9),
        mapped(REMOTE),
        UDP,
        &finished[40..]
            .iter()
            .copied()
            .enumerate()
            .map(|(at, byte)| if (6..8).contains(&at) { 0 } else { byte })
            .collect::<Vec<_>>(),
    );
    packet[46..48].copy_from_slice(&finished[46..48]);
    let mut offload = Offload { partial: Some(Partial { start: 48 + 14, offset: 16 }), gso: None };
    let (verdict, out) = run_with(&mut engine, 0, &packet, &mut offload);
    assert_eq!((verdict, offload), (Verdict::Forward, Offload::default()));
    see(&out);
}

/// An extension structure with one object (RFC 4884 7), as an MPLS router would add.
fn extensions() -> Vec<u8> {
    let mut out = vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0x40];
    let sum = !naive_sum(&[&out]);
    out[2..4].copy_from_slice(&sum.to_be_bytes());
    out
}

#[test]
fn extensions_of_icmpv4_errors_pass_with_a_new_length_4_2() {
    let mut engine = engine();
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    let about = v4(POOL, REMOTE, UDP, &udp(port, 53, &[3; 1400]));
    let sent = v6(host(9), mapped(REMOTE), UDP, &udp(5, 53, &[3; 1400]));
    for words in [32u32, 33, 100] {
        let quoted = &about[..words as usize * 4];
        let body = [quoted, &extensions()].concat();
        let seen = pass(&mut engine, 0, &v4(REMOTE, POOL, ICMP, &icmp(11, 0, words << 16, &body)));
        let length = usize::from(seen.transport[4]) * 8;
        let (inner, rest) = seen.transport[8..].split_at(length);
        assert_eq!((seen.rest() & 0x00ff_ffff, rest), (0, &extensions()[..]), "{words}");
        assert_eq!((inner.len() - (quoted.len() + 20)) / 8, 0, "padded to 8 bytes: {words}");
        assert_eq!(inner[8..quoted.len() + 20], sent[8..quoted.len() + 20]);
        assert!(inner[quoted.len() + 20..].iter().all(|byte| *byte == 0));
    }
    // A short packet is padded to 128 bytes in the quotation, on both sides.
    let about = v4(POOL, REMOTE, UDP, &udp(port, 53, b"x"));
    let mut quoted = about.clone();
    quoted.resize(128, 0);
    let body = [&quoted[..], &extensions()].concat();
    let seen = pass(&mut engine, 0, &v4(REMOTE, POOL, ICMP, &icmp(3, 3, 32 << 16, &body)));
    let sent = v6(host(9), mapped(REMOTE), UDP, &udp(5, 53, b"x"));
    assert_eq!((seen.transport[4], &seen.transport[8 + 8..8 + 49]), (16, &sent[8..49]));
    assert_eq!(seen.transport[8 + 128..], extensions());
    // Packet Too Big has no such field (RFC 4884 4): the quotation alone.
    let seen = pass(&mut engine, 0, &v4(REMOTE, POOL, ICMP, &icmp(3, 4, 32 << 16 | 1300, &body)));
    assert_eq!((seen.rest(), seen.transport.len()), (1320, 8 + 49));
    // A length past the end, and bytes behind that are no extensions: the quotation alone.
    for (words, body) in [(200, &body[..]), (32, &[&quoted[..], &[0x10, 0, 0, 0]].concat()[..])] {
        let seen = pass(&mut engine, 0, &v4(REMOTE, POOL, ICMP, &icmp(3, 3, words << 16, body)));
        assert_eq!((seen.rest(), seen.transport.len()), (0, 8 + 49), "{words}");
    }
}

#[test]
fn extensions_of_icmpv6_errors_pass_with_a_new_length_5_2() {
    let mut engine = engine();
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    let about = v6(mapped(REMOTE), host(9), UDP, &udp(53, 5, &[3; 1300]));
    let sent = v4(REMOTE, POOL, UDP, &udp(53, port, &[3; 1300]));
    for (kind, units) in [(3, 16u32), (1, 30), (3, 140)] {
        let body = [&about[..units as usize * 8], &extensions()].concat();
        let seen = pass(&mut engine, 0, &v6(host(9), mapped(REMOTE), ICMPV6, &icmp(kind, 0, units << 24, &body)));
        let (inner, rest) = seen.transport[8..].split_at(usize::from(seen.transport[5]) * 4);
        assert_eq!((seen.rest() & 0xff00_ffff, rest), (0, &extensions()[..]), "{units}");
        assert!(seen.transport.len() <= 576 - 20 && inner.len() >= 128);
        let same = inner.len().min(units as usize * 8 - 20);
        assert_eq!(inner[12..same], sent[12..same]);
    }
}

#[test]
fn udp_without_checksum_is_dropped_by_choice_4_5() {
    let mut config = config();
    config.udp_zero_checksum = weft_nat64_core::config::UdpZeroChecksum::Drop;
    let mut engine = weft_nat64_core::Engine::new(config, 0, [1, 2]).unwrap();
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    let plain = v4_raw(REMOTE, POOL, UDP, &udp(53, port, b"odd"), 0, 0);
    assert_eq!(run(&mut engine, 0, &plain).0, Verdict::Drop(Reason::ZeroChecksum));
    pass(&mut engine, 0, &v4(REMOTE, POOL, UDP, &udp(53, port, b"odd")));
}
