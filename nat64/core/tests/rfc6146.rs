//! State (RFC 6146): who may open what, how long it lasts, what is refused, and how it is said.
#![allow(clippy::unwrap_used)]
mod common;
use common::*;
use weft_nat64_core::{Config, Engine, Reason, Verdict, packet::Protocol, rfc6146::table::Class};

fn engine_with(from: &str, to: &str) -> Engine {
    let text = CONFIG.replace(from, to);
    assert_ne!(text, CONFIG);
    Engine::new(toml::from_str::<Config>(&text).unwrap(), 0, [3, 4]).unwrap()
}

fn ended(engine: &mut Engine, now: u64) -> usize {
    let before = engine.sessions().count();
    engine.handle_timeout(now);
    before - engine.sessions().count()
}

#[test]
fn a_mapping_does_not_depend_on_the_destination_and_keeps_parity() {
    let mut engine = engine();
    let first = open_udp(&mut engine, 0, host(9), 5001, REMOTE, 53);
    assert_eq!(open_udp(&mut engine, 0, host(9), 5001, [198, 19, 0, 1].into(), 99), first);
    assert_eq!(first % 2, 1);
    assert_ne!(open_udp(&mut engine, 0, host(8), 5001, REMOTE, 53), first);
    assert_eq!(open_udp(&mut engine, 0, host(9), 5002, REMOTE, 53) % 2, 0);
    assert_eq!(engine.port_usage(Protocol::Udp), (3, 1000));
}

#[test]
fn only_whom_a_host_wrote_to_may_answer() {
    let mut engine = engine();
    let port = open_udp(&mut engine, 0, host(9), 5001, REMOTE, 53);
    let answer = |source: [u8; 4], from| v4(source.into(), POOL, UDP, &udp(from, port, b"answer"));
    let seen = pass(&mut engine, 1, &answer(REMOTE.octets(), 53));
    assert_eq!((seen.source, seen.destination), (mapped(REMOTE).into(), host(9).into()));
    assert_eq!((seen.ports(), seen.hops), ((53, 5001), 63));
    assert_eq!(run(&mut engine, 1, &answer([198, 19, 9, 9], 53)).0, Verdict::Drop(Reason::Filtered));
    // Address-dependent: from another port of the same host, but not where that is refused too.
    assert_eq!(pass(&mut engine, 1, &answer(REMOTE.octets(), 54)).ports(), (54, 5001));
    let elsewhere = v4(REMOTE, POOL, UDP, &udp(53, port ^ 4, b""));
    assert_eq!(run(&mut engine, 1, &elsewhere).0, Verdict::Drop(Reason::NoMapping));
    let other = v4(REMOTE, [192, 0, 2, 9].into(), UDP, &udp(53, port, b""));
    assert_eq!(run(&mut engine, 1, &other).0, Verdict::Drop(Reason::NoMapping));
}

#[test]
fn what_a_prefix_must_not_stand_for_is_refused_with_an_error() {
    let mut engine = engine();
    let global = |address: [u8; 4]| (0x0064_ff9bu128 << 96 | u128::from(u32::from_be_bytes(address))).into();
    let refused = [
        (global([10, 0, 0, 1]), Reason::NotPermitted),
        (global([169, 254, 169, 254]), Reason::NotPermitted),
        (global([198, 18, 0, 80]), Reason::NotPermitted),
        (mapped([8, 8, 8, 8].into()), Reason::NotPermitted),
        (mapped([198, 18, 7, 1].into()), Reason::Denied),
        (mapped([198, 18, 8, 8].into()), Reason::Denied),
        (global(POOL.octets()), Reason::Denied),
    ];
    for (destination, reason) in refused {
        let (verdict, answer) = run(&mut engine, 0, &v6(host(9), destination, UDP, &udp(5, 6, b"x")));
        assert_eq!(verdict, Verdict::Reply(reason), "{destination}");
        let seen = see(&answer);
        assert_eq!((seen.protocol, seen.transport[0], seen.transport[1]), (ICMPV6, 1, 1));
        assert_eq!(seen.destination, std::net::IpAddr::from(host(9)));
    }
    let passes = v6(host(9), global([8, 8, 8, 8]), UDP, &udp(5, 6, b"x"));
    assert_eq!(pass(&mut engine, 0, &passes).destination.to_string(), "8.8.8.8");
    let stranger = v6("2001:db8::1".parse().unwrap(), mapped(REMOTE), UDP, &udp(5, 6, b"x"));
    assert_eq!(run(&mut engine, 0, &stranger).0, Verdict::Drop(Reason::SourceNotAllowed));
    let nowhere = v6(host(9), host(8), UDP, &udp(5, 6, b"x"));
    assert_eq!(run(&mut engine, 0, &nowhere).0, Verdict::Drop(Reason::NotOurPrefix));
    assert_eq!(engine.sessions().count(), 1);
}

#[test]
fn a_udp_session_lives_300_s_after_its_last_packet_of_either_side() {
    let mut engine = engine();
    assert_eq!(engine.poll_timeout(), None);
    let port = open_udp(&mut engine, 0, host(9), 5001, REMOTE, 53);
    assert_eq!(engine.poll_timeout(), Some(300_000));
    pass(&mut engine, 200_000, &v4(REMOTE, POOL, UDP, &udp(53, port, b"")));
    assert_eq!(engine.poll_timeout(), Some(500_000));
    assert_eq!(ended(&mut engine, 499_999), 0);
    assert_eq!(ended(&mut engine, 500_000), 1);
    assert_eq!((engine.poll_timeout(), engine.port_usage(Protocol::Udp).0), (None, 0));
    let late = v4(REMOTE, POOL, UDP, &udp(53, port, b""));
    assert_eq!(run(&mut engine, 500_001, &late).0, Verdict::Drop(Reason::NoMapping));
}

#[test]
fn sessions_of_one_class_expire_in_order_of_use_not_of_birth() {
    let mut engine = engine();
    for port in 1..=5 {
        open_udp(&mut engine, u64::from(port), host(9), port, REMOTE, 53);
    }
    open_udp(&mut engine, 100, host(9), 2, REMOTE, 53);
    open_udp(&mut engine, 101, host(9), 5, REMOTE, 53);
    open_udp(&mut engine, 102, host(9), 1, REMOTE, 53);
    assert_eq!(ended(&mut engine, 300_004), 2);
    let mut left: Vec<u16> = engine.sessions().map(|session| session.six.port).collect();
    left.sort_unstable();
    assert_eq!(left, [1, 2, 5]);
    assert_eq!(engine.poll_timeout(), Some(300_100));
    assert_eq!(ended(&mut engine, 300_101), 2);
    assert_eq!(engine.poll_timeout(), Some(300_102));
}

#[test]
fn tcp_is_followed_through_its_states_with_their_timers() {
    let mut engine = engine();
    let port = open_tcp(&mut engine, 0, host(9), 4000, REMOTE, 80);
    assert_eq!(engine.poll_timeout(), Some(240_000));
    let from_four = |flags| v4(REMOTE, POOL, TCP, &tcp(80, port, flags, b""));
    let from_six = |flags| v6(host(9), mapped(REMOTE), TCP, &tcp(4000, 80, flags, b""));
    pass(&mut engine, 1_000, &from_four(SYN | ACK));
    assert_eq!((engine.session_count(Class::TcpEstablished), engine.poll_timeout()), (1, Some(7_441_000)));
    pass(&mut engine, 2_000, &from_six(FIN | ACK));
    assert_eq!(engine.poll_timeout(), Some(7_442_000));
    pass(&mut engine, 3_000, &from_four(FIN | ACK));
    assert_eq!((engine.session_count(Class::TcpClosed), engine.poll_timeout()), (1, Some(243_000)));
    pass(&mut engine, 4_000, &from_six(ACK));
    assert_eq!(engine.poll_timeout(), Some(243_000), "a closed session is not kept alive");
    pass(&mut engine, 5_000, &from_six(SYN));
    assert_eq!((engine.session_count(Class::TcpOpening), engine.poll_timeout()), (1, Some(245_000)));
}

#[test]
fn a_reset_shortens_a_connection_that_does_not_go_on() {
    let mut engine = engine();
    let port = open_tcp(&mut engine, 0, host(9), 4000, REMOTE, 80);
    let from_four = |flags| v4(REMOTE, POOL, TCP, &tcp(80, port, flags, b""));
    pass(&mut engine, 0, &from_four(SYN | ACK));
    pass(&mut engine, 10, &from_four(RST));
    assert_eq!(engine.poll_timeout(), Some(240_010));
    pass(&mut engine, 20, &from_four(ACK));
    assert_eq!(engine.poll_timeout(), Some(7_440_020));
}

#[test]
fn tcp_without_a_session_is_reset_so_that_it_ends_at_once() {
    let mut engine = engine();
    let (verdict, answer) = run(&mut engine, 0, &v6(host(9), mapped(REMOTE), TCP, &tcp(4000, 80, ACK, b"data")));
    assert_eq!(verdict, Verdict::Reply(Reason::NoTcpSession));
    let seen = see(&answer);
    assert_eq!((seen.source, seen.destination), (mapped(REMOTE).into(), host(9).into()));
    assert_eq!((seen.ports(), seen.transport[13]), ((80, 4000), RST));
    assert_eq!(seen.transport[4..8], 2000u32.to_be_bytes(), "its sequence number is the one that was acknowledged");
    let (verdict, _) = run(&mut engine, 0, &v6(host(9), mapped(REMOTE), TCP, &tcp(4000, 80, RST, b"")));
    assert_eq!(verdict, Verdict::Drop(Reason::NoTcpSession), "a reset is not answered by one");
    assert_eq!(engine.sessions().count(), 0);
    let unasked = v4(REMOTE, POOL, TCP, &tcp(80, 2500, SYN, b""));
    assert_eq!(run(&mut engine, 0, &unasked).0, Verdict::Drop(Reason::NoMapping));
}

#[test]
fn an_echo_keeps_its_identifier_on_its_own_side() {
    let mut engine = engine();
    let request = icmp(128, 0, 0x1234_0001, b"payload");
    let seen = pass(&mut engine, 0, &v6(host(9), mapped(REMOTE), ICMPV6, &request));
    assert_eq!((seen.protocol, seen.transport[0], seen.source), (ICMP, 8, POOL.into()));
    let id = seen.identifier();
    assert!((2000..=2999).contains(&id));
    let reply = icmp(0, 0, u32::from(id) << 16 | 1, b"payload");
    let seen = pass(&mut engine, 1, &v4(REMOTE, POOL, ICMP, &reply));
    assert_eq!((seen.protocol, seen.transport[0], seen.rest()), (ICMPV6, 129, 0x1234_0001));
    assert_eq!(engine.poll_timeout(), Some(60_001));
    let unasked = v6(host(9), mapped(REMOTE), ICMPV6, &icmp(129, 0, 7 << 16, b""));
    assert_eq!(run(&mut engine, 1, &unasked).0, Verdict::Drop(Reason::NoMapping));
}

#[test]
fn one_source_cannot_take_what_all_share() {
    let mut engine = engine_with("sessions_per_source = 500", "sessions_per_source = 3");
    for port in 1..=3 {
        open_udp(&mut engine, 0, host(9), port, REMOTE, 53);
    }
    let fourth = v6(host(9), mapped(REMOTE), UDP, &udp(4, 53, b""));
    assert_eq!(run(&mut engine, 0, &fourth).0, Verdict::Reply(Reason::SourceLimit));
    open_udp(&mut engine, 0, host(8), 4, REMOTE, 53);
    let of = |engine: &Engine, number| engine.sources().find(|source| source.address == host(number)).unwrap().counters;
    assert_eq!((of(&engine, 9).sessions, of(&engine, 9).drops, of(&engine, 8).sessions), (3, 1, 1));
    engine.handle_timeout(300_000);
    open_udp(&mut engine, 300_000, host(9), 4, REMOTE, 53);
}

#[test]
fn connections_that_are_over_are_not_held_against_their_source() {
    let mut engine = engine_with("sessions_per_source = 500", "sessions_per_source = 2");
    let held = |engine: &Engine| engine.sources().map(|source| source.counters.sessions).sum::<u32>();
    for round in 0..20 {
        let port = open_tcp(&mut engine, round, host(9), 4000 + round as u16, REMOTE, 80);
        assert_eq!(held(&engine), 1);
        pass(&mut engine, round, &v4(REMOTE, POOL, TCP, &tcp(80, port, SYN | ACK, b"")));
        pass(&mut engine, round, &v4(REMOTE, POOL, TCP, &tcp(80, port, FIN, b"")));
        pass(&mut engine, round, &v6(host(9), mapped(REMOTE), TCP, &tcp(4000 + round as u16, 80, FIN, b"")));
        assert_eq!(held(&engine), 0);
    }
    open_tcp(&mut engine, 20, host(9), 4000, REMOTE, 80);
    assert_eq!(held(&engine), 1, "a SYN on a closed session opens it again");
    engine.handle_timeout(300_000);
    assert_eq!((held(&engine), engine.sessions().count()), (0, 0));
}

#[test]
fn sessions_in_all_are_bounded() {
    let mut engine = engine_with("sessions = 1000", "sessions = 2");
    open_udp(&mut engine, 0, host(1), 1, REMOTE, 53);
    open_udp(&mut engine, 0, host(2), 1, REMOTE, 53);
    let third = v6(host(3), mapped(REMOTE), UDP, &udp(1, 53, b""));
    assert_eq!(run(&mut engine, 0, &third).0, Verdict::Reply(Reason::SessionLimit));
    assert_eq!(engine.sessions().count(), 2);
}

#[test]
fn when_ports_run_out_closed_connections_give_theirs_first() {
    let mut engine = engine_with("2000-2999", "2000-2003");
    let ports: Vec<u16> = (0..4).map(|n| open_tcp(&mut engine, n, host(9), 4000 + n as u16, REMOTE, 80)).collect();
    let fifth = v6(host(9), mapped(REMOTE), TCP, &tcp(5000, 80, SYN, b""));
    let (verdict, answer) = run(&mut engine, 5, &fifth);
    assert_eq!(verdict, Verdict::Reply(Reason::PortsExhausted));
    assert_eq!(see(&answer).transport[..2], [1, 3]);
    // Another protocol has ports of its own; another destination needs none.
    open_udp(&mut engine, 5, host(9), 4000, REMOTE, 80);
    assert_eq!(open_tcp(&mut engine, 5, host(9), 4001, REMOTE, 81), ports[1]);
    pass(&mut engine, 6, &v4(REMOTE, POOL, TCP, &tcp(80, ports[2], SYN | ACK, b"")));
    pass(&mut engine, 7, &v4(REMOTE, POOL, TCP, &tcp(80, ports[2], RST, b"")));
    assert_eq!(pass(&mut engine, 8, &fifth).ports().0, ports[2]);
    assert_eq!(engine.counters().sessions_reclaimed, 1);
    assert!(!engine.sessions().any(|session| session.six.port == 4002));
}

#[test]
fn hops_run_out_on_both_sides_with_an_error() {
    let mut engine = engine();
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    let mut packet = v6(host(9), mapped(REMOTE), UDP, &udp(5, 53, b""));
    packet[7] = 1;
    let (verdict, answer) = run(&mut engine, 0, &packet);
    assert_eq!(verdict, Verdict::Reply(Reason::HopLimit));
    let seen = see(&answer);
    assert_eq!((seen.source, seen.transport[0], &seen.transport[8..]), (mapped(POOL).into(), 3, &packet[..]));
    let mut packet = v4(REMOTE, POOL, UDP, &udp(53, port, b""));
    packet[8] = 1;
    finish_v4(&mut packet);
    let (verdict, answer) = run(&mut engine, 0, &packet);
    assert_eq!(verdict, Verdict::Reply(Reason::HopLimit));
    let seen = see(&answer);
    assert_eq!((seen.source, seen.destination, seen.transport[0]), (POOL.into(), REMOTE.into(), 11));
}

#[test]
fn answers_are_bounded_in_a_second() {
    let mut engine = engine();
    let packet = v6(host(9), mapped([198, 18, 8, 8].into()), UDP, &udp(5, 53, b""));
    let answers = |engine: &mut Engine, now| {
        (0..2_000).filter(|_| run(engine, now, &packet).0 == Verdict::Reply(Reason::Denied)).count()
    };
    assert_eq!(answers(&mut engine, 0), 1_000);
    assert_eq!(answers(&mut engine, 100), 100);
    let (counters, denied) = (engine.counters(), Reason::Denied as usize);
    assert_eq!((counters.replies[denied], counters.drops[denied]), (1_100, 2_900));
}

#[test]
fn another_configuration_keeps_what_it_still_allows() {
    let mut engine = engine();
    let port = open_udp(&mut engine, 0, host(9), 1, REMOTE, 53);
    open_udp(&mut engine, 0, host(9), 2, [198, 19, 0, 1].into(), 53);
    let text = CONFIG.replace("198.18.8.8/32", "198.19.0.1/32").replace("2000-2999", "1024-4999");
    // The prefixes change places: sessions follow theirs.
    let (head, prefixes) = text.split_once("[[prefix]]").unwrap();
    let (one, two) = prefixes.split_once("[[prefix]]").unwrap();
    let text = format!("{head}[[prefix]]{two}[[prefix]]{one}");
    engine.reconfigure(toml::from_str(&text).unwrap()).unwrap();
    assert_eq!(engine.sessions().count(), 1);
    assert_eq!(engine.port_usage(Protocol::Udp), (1, 3976));
    let seen = pass(&mut engine, 1, &v4(REMOTE, POOL, UDP, &udp(53, port, b"")));
    assert_eq!(seen.source, std::net::IpAddr::from(mapped(REMOTE)));
    let mut wrong = config();
    wrong.mtu6 = 1;
    assert!(engine.reconfigure(wrong).is_err());
    assert_eq!(engine.sessions().count(), 1);
    let mut other_pool = config();
    other_pool.pool.addresses = vec![[192, 0, 2, 7].into()];
    engine.reconfigure(other_pool).unwrap();
    assert_eq!((engine.sessions().count(), engine.port_usage(Protocol::Udp)), (0, (0, 1000)));
}

/// A Fragment header before a piece.
fn v6_fragment(number: u16, offset: u16, more: bool, id: u32, piece: &[u8]) -> Vec<u8> {
    let mut payload = vec![UDP, 0];
    payload.extend((offset | u16::from(more)).to_be_bytes());
    payload.extend(id.to_be_bytes());
    payload.extend(piece);
    v6_raw(host(number), mapped(REMOTE), 44, &payload)
}

#[test]
fn fragments_from_ipv6_follow_their_first_one() {
    let mut engine = engine();
    let whole = v6(host(9), mapped(REMOTE), UDP, &udp(5, 53, &[7; 2000]));
    let pieces = whole[40..].split_at(1000);
    let (first, second) = (v6_fragment(9, 0, true, 77, pieces.0), v6_fragment(9, 1000, false, 77, pieces.1));
    assert_eq!(run(&mut engine, 0, &second).0, Verdict::Drop(Reason::FragmentUnknown));
    let (verdict, one) = run(&mut engine, 0, &first);
    assert_eq!((verdict, &one[6..8]), (Verdict::Forward, &0x2000u16.to_be_bytes()[..]));
    let (verdict, two) = run(&mut engine, 0, &second);
    assert_eq!((verdict, &two[6..8]), (Verdict::Forward, &125u16.to_be_bytes()[..]));
    assert_eq!(one[4..6], two[4..6], "one identification");
    // Put together they are the translated datagram, its checksum right.
    let payload = [&one[20..], &two[20..]].concat();
    let seen = see(&v4_raw(POOL, REMOTE, UDP, &payload, 0, 0));
    assert_eq!(seen.ports().1, 53);
    assert_eq!(run(&mut engine, 10_000, &second).0, Verdict::Drop(Reason::FragmentUnknown), "not for ever");
    engine.handle_timeout(10_000);
    assert_eq!(engine.fragments(), 0);
    assert_eq!(engine.sources().next().unwrap().counters.fragments, 0);
}

#[test]
fn fragments_from_ipv4_follow_their_first_one_and_are_cut_to_fit() {
    let mut engine = engine();
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    let whole = v4(REMOTE, POOL, UDP, &udp(53, port, &[9; 2400]));
    let (head, rest) = whole[20..].split_at(1480);
    let first = v4_raw(REMOTE, POOL, UDP, head, 0x2000, 0xbeef);
    let second = v4_raw(REMOTE, POOL, UDP, rest, 185, 0xbeef);
    assert_eq!(run(&mut engine, 0, &second).0, Verdict::Drop(Reason::FragmentUnknown));
    let Verdict::Split(mut pieces) = run(&mut engine, 0, &first).0 else { panic!("1528 bytes do not fit 1420") };
    let (verdict, last) = run(&mut engine, 0, &second);
    assert_eq!(verdict, Verdict::Forward);
    pieces.push(last);
    let mut payload = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        assert!(piece.len() <= 1420);
        assert_eq!((piece[6], &piece[44..48]), (44, &0xbeefu32.to_be_bytes()[..]));
        let field = u16::from_be_bytes([piece[42], piece[43]]);
        assert_eq!((usize::from(field & !7), field & 1 == 1), (payload.len(), index + 1 < pieces.len()));
        payload.extend(&piece[48..]);
    }
    let seen = see(&v6_raw(mapped(REMOTE), host(9), UDP, &payload));
    assert_eq!(seen.ports(), (53, 5));
}

#[test]
fn fragments_are_bounded_and_tiny_ones_refused() {
    let mut engine = engine();
    let whole = v6(host(9), mapped(REMOTE), UDP, &udp(5, 53, &[7; 100]));
    let tiny = v6_fragment(9, 0, true, 1, &whole[40..44]);
    assert_eq!(run(&mut engine, 0, &tiny).0, Verdict::Drop(Reason::TinyFragment));
    let follow = |engine: &mut Engine, id| run(engine, 0, &v6_fragment(9, 0, true, id, &whole[40..88])).0;
    for id in 0..256 {
        assert_eq!(follow(&mut engine, id), Verdict::Forward);
    }
    assert_eq!(follow(&mut engine, 256), Verdict::Drop(Reason::FragmentLimit));
    let echo = v6_raw(host(9), mapped(REMOTE), 44, &[58, 0, 0, 1, 0, 0, 0, 1, 128, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(run(&mut engine, 0, &echo).0, Verdict::Drop(Reason::FragmentedIcmp));
}

#[test]
fn filtering_is_by_choice_3_5_1() {
    let other = |port| v4([198, 19, 9, 9].into(), POOL, UDP, &udp(99, port, b""));
    let same_host = |port| v4(REMOTE, POOL, UDP, &udp(54, port, b""));
    let with = |filtering: &str| engine_with("queues = 1", &format!("queues = 1\nfiltering = \"{filtering}\""));
    let mut engine = with("address-and-port-dependent");
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    assert_eq!(run(&mut engine, 0, &same_host(port)).0, Verdict::Drop(Reason::Filtered));
    let mut engine = with("address-dependent");
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    assert_eq!(run(&mut engine, 0, &other(port)).0, Verdict::Drop(Reason::Filtered));
    pass(&mut engine, 0, &same_host(port));
    assert_eq!(engine.sessions().count(), 2, "a session of its own");
    engine.handle_timeout(300_000);
    assert_eq!(run(&mut engine, 300_000, &same_host(port)).0, Verdict::Drop(Reason::NoMapping), "not for ever");
    let mut engine = with("endpoint-independent");
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    let seen = pass(&mut engine, 0, &other(port));
    assert_eq!((seen.source, seen.ports()), (mapped([198, 19, 9, 9].into()).into(), (99, 5)));
    let answer = v6(host(9), mapped([198, 19, 9, 9].into()), UDP, &udp(5, 99, b""));
    assert_eq!(pass(&mut engine, 0, &answer).ports(), (port, 99), "by the same binding");
    // What no prefix permits cannot be shown, and what is denied is denied from this side too.
    for (source, reason) in
        [([8, 8, 8, 8], None), ([10, 0, 0, 1], Some(Reason::NotPermitted)), ([198, 18, 8, 8], Some(Reason::Denied))]
    {
        let (verdict, _) = run(&mut engine, 0, &v4(source.into(), POOL, UDP, &udp(99, port, b"")));
        assert_eq!(verdict, reason.map_or(Verdict::Forward, Verdict::Drop), "{source:?}");
    }
    assert_eq!(run(&mut engine, 0, &other(port ^ 4)).0, Verdict::Drop(Reason::NoMapping), "only what is bound");
}

#[test]
fn echo_requests_come_in_where_the_filter_admits_them() {
    let mut engine = engine_with("queues = 1", "queues = 1\nfiltering = \"endpoint-independent\"");
    let id = pass(&mut engine, 0, &v6(host(9), mapped(REMOTE), ICMPV6, &icmp(128, 0, 7 << 16, b""))).identifier();
    let from = |kind| v4([198, 19, 9, 9].into(), POOL, ICMP, &icmp(kind, 0, u32::from(id) << 16, b""));
    assert_eq!(run(&mut engine, 0, &from(0)).0, Verdict::Drop(Reason::Filtered), "no reply without request");
    let seen = pass(&mut engine, 0, &from(8));
    assert_eq!((seen.transport[0], seen.identifier()), (128, 7));
}

const STATIC: &str = "\n[[static]]\nprotocol = \"tcp\"\nsix = \"[fd12::9]:80\"\nfour = \"192.0.2.1:8080\"\n\
    [[static]]\nprotocol = \"udp\"\nsix = \"[fd12::9]:53\"\nfour = \"192.0.2.1:2053\"\n";

fn engine_from(text: &str) -> Engine {
    Engine::new(toml::from_str::<Config>(text).unwrap(), 0, [3, 4]).unwrap()
}

#[test]
fn static_bindings_forward_ports_in_for_ever_3_1() {
    let mut engine = engine_from(&format!("{CONFIG}{STATIC}"));
    assert_eq!((engine.sessions().count(), engine.port_usage(Protocol::Udp).0), (0, 1), "taken from the range");
    for round in 0..3u64 {
        let now = round * 10_000_000;
        engine.handle_timeout(now);
        assert_eq!(engine.sessions().count(), 0);
        let remote_port = 4000 + round as u16;
        let from_four = |flags| v4(REMOTE, POOL, TCP, &tcp(remote_port, 8080, flags, b""));
        assert_eq!(run(&mut engine, now, &from_four(ACK)).0, Verdict::Drop(Reason::NoTcpSession));
        let seen = pass(&mut engine, now, &from_four(SYN));
        assert_eq!(
            (seen.source, seen.destination, seen.ports()),
            (mapped(REMOTE).into(), host(9).into(), (remote_port, 80))
        );
        assert_eq!(engine.session_count(Class::TcpOpening), 1);
        let from_six = |flags| v6(host(9), mapped(REMOTE), TCP, &tcp(80, remote_port, flags, b""));
        assert_eq!(pass(&mut engine, now, &from_six(SYN | ACK)).ports(), (8080, remote_port));
        assert_eq!(engine.session_count(Class::TcpEstablished), 1);
        pass(&mut engine, now, &from_four(ACK));
        let seen = pass(&mut engine, now, &v4(REMOTE, POOL, UDP, &udp(9, 2053, b"query")));
        assert_eq!((seen.destination, seen.ports()), (host(9).into(), (9, 53)));
        // Going out, the host has the same end.
        assert_eq!(open_udp(&mut engine, now, host(9), 53, [198, 19, 0, 1].into(), 9), 2053);
    }
    let refused = v4([198, 18, 8, 8].into(), POOL, TCP, &tcp(1, 8080, SYN, b""));
    assert_eq!(run(&mut engine, 0, &refused).0, Verdict::Drop(Reason::Denied));
}

#[test]
fn static_bindings_come_and_go_with_the_configuration() {
    let mut engine = engine();
    // Ends that static bindings will claim are in use: by another host, and at another port.
    let udp_at = |engine: &mut Engine, number, port| open_udp(engine, 0, host(number), port, REMOTE, 53);
    let mut taken = 0;
    for port in (1..2000).step_by(2) {
        taken = udp_at(&mut engine, 8, port);
        if engine.sources().next().unwrap().counters.sessions == 100 {
            break;
        }
    }
    udp_at(&mut engine, 9, 53);
    udp_at(&mut engine, 9, 54);
    let fixed = STATIC.replace("192.0.2.1:2053", &format!("192.0.2.1:{taken}"));
    engine.reconfigure(toml::from_str(&format!("{CONFIG}{fixed}")).unwrap()).unwrap();
    assert_eq!(engine.sessions().count(), 100, "both that were in the way ended");
    let inward = |port| v4(REMOTE, POOL, UDP, &udp(9, port, b""));
    let seen = pass(&mut engine, 1, &inward(taken));
    assert_eq!((seen.destination, seen.ports()), (host(9).into(), (9, 53)));
    pass(&mut engine, 1, &v4(REMOTE, POOL, TCP, &tcp(9, 8080, SYN, b"")));
    // The same again keeps the sessions; without them what is outside the range ends, what is inside goes on.
    engine.reconfigure(toml::from_str(&format!("{CONFIG}{fixed}")).unwrap()).unwrap();
    assert_eq!(engine.sessions().count(), 102);
    engine.reconfigure(config()).unwrap();
    assert_eq!(engine.sessions().count(), 101);
    pass(&mut engine, 2, &inward(taken));
    engine.handle_timeout(300_002);
    assert_eq!((engine.sessions().count(), engine.port_usage(Protocol::Udp).0), (0, 0));
    assert_eq!(run(&mut engine, 300_002, &inward(taken)).0, Verdict::Drop(Reason::NoMapping));
}

/// The pool's address is permitted below the private prefix, and two hosts may meet there.
fn hairpin() -> Engine {
    let text = format!("{CONFIG}{STATIC}").replace("\"198.18.0.0/15\"", "\"198.18.0.0/15\", \"192.0.2.0/24\"");
    engine_from(&text.replace("queues = 1", "queues = 1\nhairpinning = true"))
}

#[test]
fn hosts_meet_at_the_pools_address_where_that_is_permitted_3_8() {
    let mut engine = hairpin();
    let syn = v6(host(8), mapped(POOL), TCP, &tcp(4000, 8080, SYN, b""));
    let seen = pass(&mut engine, 0, &syn);
    assert_eq!((seen.source, seen.destination), (mapped(POOL).into(), host(9).into()));
    let port = seen.ports().0;
    assert!((2000..=2999).contains(&port) && seen.ports().1 == 80);
    let back = pass(&mut engine, 0, &v6(host(9), mapped(POOL), TCP, &tcp(80, port, SYN | ACK, b"")));
    assert_eq!((back.source, back.destination, back.ports()), (mapped(POOL).into(), host(8).into(), (8080, 4000)));
    assert_eq!(engine.session_count(Class::TcpEstablished), 2, "one of each host");
    // An error about it finds its way back to the sender, as the sender knew the packet.
    let came = v6(mapped(POOL), host(9), TCP, &tcp(port, 80, SYN, b""));
    let error = pass(&mut engine, 0, &v6(host(9), mapped(POOL), ICMPV6, &icmp(1, 4, 0, &came)));
    assert_eq!((error.source, error.destination), (mapped(POOL).into(), host(8).into()));
    assert_eq!(error.transport[16..8 + 56], syn[8..56], "addresses and ports of the packet that was sent");
    // So does one of the translator itself.
    let mut short = syn.clone();
    short[7] = 2;
    let (verdict, answer) = run(&mut engine, 0, &short);
    assert_eq!(verdict, Verdict::Reply(Reason::HopLimit));
    assert_eq!((see(&answer).destination, see(&answer).transport[0]), (host(8).into(), 3));
    // Two hosts behind dynamic bindings meet once both have written (address-dependent filtering).
    let one = open_udp(&mut engine, 0, host(1), 7, REMOTE, 53);
    let two = open_udp(&mut engine, 0, host(2), 7, REMOTE, 53);
    let from = |number, to| v6(host(number), mapped(POOL), UDP, &udp(7, to, b"hello"));
    assert_eq!(run(&mut engine, 0, &from(1, two)).0, Verdict::Drop(Reason::Filtered));
    let seen = pass(&mut engine, 0, &from(2, one));
    assert_eq!((seen.destination, seen.ports()), (host(1).into(), (two, 7)));
    pass(&mut engine, 0, &from(1, two));
}

#[test]
fn the_pools_address_stays_refused_without_that() {
    let mut engine = hairpin();
    let refused = Verdict::Reply(Reason::Denied);
    let unbound = v6(host(8), mapped(POOL), UDP, &udp(4000, 2500, b""));
    assert_eq!(run(&mut engine, 0, &unbound).0, refused);
    let echo = v6(host(8), mapped(POOL), ICMPV6, &icmp(128, 0, 1, b""));
    assert_eq!(run(&mut engine, 0, &echo).0, refused);
    assert_eq!(engine.sessions().count(), 0);
    let syn = v6(host(8), mapped(POOL), TCP, &tcp(4000, 8080, SYN, b""));
    pass(&mut engine, 0, &syn);
    // The deny list is stronger, and switching it off ends what is there.
    let mut config = engine.config().clone();
    config.deny.push("192.0.2.1/32".parse().unwrap());
    engine.reconfigure(config.clone()).unwrap();
    assert_eq!((engine.sessions().count(), run(&mut engine, 0, &syn).0), (0, Verdict::Reply(Reason::Denied)));
    config.deny.pop();
    config.hairpinning = false;
    engine.reconfigure(config).unwrap();
    assert_eq!(run(&mut engine, 0, &syn).0, refused);
}

#[test]
fn a_trace_names_each_rule_and_costs_nothing_when_no_one_asks() {
    use weft_nat64_core::{HEADROOM, Offload, PacketBuf};
    let mut engine = engine();
    let packet = v6(host(9), mapped(REMOTE), UDP, &udp(5, 53, b"x"));
    let mut buf = [&[0; HEADROOM][..], &packet].concat();
    let end = buf.len();
    let mut view = PacketBuf::new(&mut buf, HEADROOM, end).unwrap();
    let (verdict, steps) = engine.explain(0, &mut || 7, &mut view, &mut Offload::default());
    assert_eq!(verdict, Verdict::Forward);
    let rules: Vec<_> = steps.iter().map(|step| (step.rfc, step.section)).collect();
    assert_eq!(rules, [(6052, "2.2"), (6146, "3.5.1"), (7915, "5.1"), (7915, "5.1"), (7915, "5.5")]);
    assert!(steps[0].text.contains("64:ff9b:1::/96: it stands for 198.18.0.80"), "{}", steps[0].text);
    assert_eq!(run(&mut engine, 0, &packet).0, Verdict::Forward);
}
