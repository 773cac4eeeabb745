//! What holds for every packet: there and back, right checksums, and no panic on any bytes or vnet_hdr.
#![allow(clippy::unwrap_used)]
mod common;
use common::*;
use proptest::prelude::*;
use weft_nat64_core::{Engine, Gso, GsoKind, HEADROOM, Offload, PacketBuf, Partial, Verdict};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Finished,
    Partial,
    Super,
}

fn form() -> impl Strategy<Value = Form> {
    prop::sample::select(vec![Form::Finished, Form::Partial, Form::Super])
}

fn offload(form: Form, six: bool, protocol: u8, size: u16) -> Offload {
    let start = if six { 40 } else { 20 };
    let offset = if protocol == TCP { 16 } else { 6 };
    let kind = match (protocol, six) {
        (UDP, _) => GsoKind::Udp,
        (_, true) => GsoKind::TcpV6,
        (_, false) => GsoKind::TcpV4,
    };
    Offload {
        partial: (form != Form::Finished).then_some(Partial { start, offset }),
        gso: (form == Form::Super).then_some(Gso { kind, size, ecn: false }),
    }
}

fn any_offload() -> impl Strategy<Value = Offload> {
    let kind = prop::sample::select(vec![GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp]);
    let gso = (kind, prop_oneof![0u16..2000, any::<u16>()], any::<bool>()).prop_map(|(kind, size, ecn)| Gso {
        kind,
        size,
        ecn,
    });
    let start = prop_oneof![Just(20u16), Just(40), 0u16..100, any::<u16>()];
    let partial = (start, prop_oneof![Just(16u16), Just(6), Just(2), any::<u16>()]);
    let partial = partial.prop_map(|(start, offset)| Partial { start, offset });
    (prop::option::of(partial), prop::option::of(gso)).prop_map(|(partial, gso)| Offload { partial, gso })
}

/// An engine in which hosts and remotes know each other, and packets of theirs in both directions.
fn acquainted() -> (Engine, Vec<Vec<u8>>) {
    let mut engine = engine();
    let mut packets = Vec::new();
    let port = open_udp(&mut engine, 0, host(9), 5, REMOTE, 53);
    packets.push(v6(host(9), mapped(REMOTE), UDP, &udp(5, 53, &[1; 100])));
    packets.push(v4(REMOTE, POOL, UDP, &udp(53, port, &[1; 100])));
    let about = v4(POOL, REMOTE, UDP, &udp(port, 53, &[3; 100]));
    packets.push(v4(REMOTE, POOL, ICMP, &icmp(3, 4, 1300, &about)));
    let about = v6(mapped(REMOTE), host(9), UDP, &udp(53, 5, &[3; 100]));
    packets.push(v6(host(9), mapped(REMOTE), ICMPV6, &icmp(2, 0, 1300, &about)));
    let port = open_tcp(&mut engine, 0, host(9), 6, REMOTE, 80);
    packets.push(v6(host(9), mapped(REMOTE), TCP, &tcp(6, 80, ACK, &[1; 100])));
    packets.push(v4(REMOTE, POOL, TCP, &tcp(80, port, SYN | ACK, &[1; 100])));
    let echo = v6(host(9), mapped(REMOTE), ICMPV6, &icmp(128, 0, 7, b"data"));
    let id = pass(&mut engine, 0, &echo).identifier();
    packets.push(echo);
    packets.push(v4(REMOTE, POOL, ICMP, &icmp(0, 0, u32::from(id) << 16, b"data")));
    packets.push(v6_raw(
        host(9),
        mapped(REMOTE),
        44,
        &[&[17, 0, 0, 1, 0, 0, 0, 1][..], &udp(5, 53, &[1; 40])].concat(),
    ));
    packets.push(v4_raw(REMOTE, POOL, UDP, &udp(53, port, &[1; 40]), 0x2000, 1));
    (engine, packets)
}

/// Whether a packet's own lengths are true.
fn lengths_hold(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(6) => packet.len() >= 40 && packet.len() == 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
        Some(4) => {
            packet.len() >= 20
                && packet.len() == usize::from(u16::from_be_bytes([packet[2], packet[3]]))
                && naive_sum(&[&packet[..20]]) == 0xffff
        }
        _ => false,
    }
}

/// Prefixes of every length at once (RFC 6052 2.2), each for IPv4 of its own.
const PREFIXES: [(&str, &str); 6] = [
    ("2001:db8::/32", "198.18.0.0/18"),
    ("2001:db9:100::/40", "198.18.64.0/18"),
    ("64:ff9b:1::/48", "198.18.128.0/18"),
    ("2001:dba:122:300::/56", "198.18.192.0/18"),
    ("2001:dba:122:444::/64", "198.19.0.0/17"),
    ("64:ff9b::/96", "198.19.128.0/17"),
];

fn every_length(mode: &str) -> Engine {
    let mut text = match mode {
        "siit" => {
            "tun = \"t\"\nmode = \"siit\"\nmtu6 = 1420\n[[eam]]\nfour = \"192.0.2.1/32\"\nsix = \"fd12::1/128\"\n"
                .to_owned()
        }
        _ => CONFIG
            .split("[[prefix]]")
            .next()
            .unwrap()
            .replace("198.18.7.0/24", "192.0.2.7/32")
            .replace("198.18.8.8/32", "192.0.2.8/32"),
    };
    for (prefix, permit) in PREFIXES {
        text.push_str(&format!("[[prefix]]\nprefix = \"{prefix}\"\npermit = [\"{permit}\"]\n"));
    }
    Engine::new(toml::from_str(&text).unwrap(), 0, [1, 2]).unwrap()
}

/// The address by RFC 6052 2.2's figure, octet by octet.
fn naive_embed(prefix: &str, address: std::net::Ipv4Addr) -> std::net::Ipv6Addr {
    let (net, len) = prefix.split_once('/').unwrap();
    let mut octets = net.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut at = len.parse::<usize>().unwrap() / 8;
    for octet in address.octets() {
        at += usize::from(at == 8);
        octets[at] = octet;
        at += 1;
    }
    octets.into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(512)))]

    #[test]
    fn there_and_back_with_right_checksums(
        form in form(), back in form(), protocol in prop::sample::select(vec![TCP, UDP]),
        source in any::<u16>(), port in 1u16.., remote in 0u32..1 << 16, remote_port in 1u16..,
        len in prop_oneof![0usize..100, 0usize..1340], many in 1usize..20, fill: u8, tos: u8,
    ) {
        let mut engine = engine();
        let remote = std::net::Ipv4Addr::from_bits(0xc612_0000 | remote);
        prop_assume!(!remote.octets().starts_with(&[198, 18, 7]) && remote.octets() != [198, 18, 8, 8]);
        if protocol == TCP {
            open_tcp(&mut engine, 0, host(source), port, remote, remote_port);
        }
        let build = |form: Form| {
            let len = if form == Form::Super { (len + 1) * many } else { len };
            (0..len).map(|n| fill.wrapping_add((n * n) as u8)).collect::<Vec<u8>>()
        };
        let transport = |from, to, data: &[u8]| if protocol == TCP { tcp(from, to, ACK, data) } else { udp(from, to, data) };
        let data = build(form);
        let mut packet = v6_with(host(source), mapped(remote), protocol, &transport(port, remote_port, &data), form != Form::Finished);
        (packet[0], packet[1]) = (0x60 | tos >> 4, tos << 4);
        let mut undone = offload(form, true, protocol, len as u16 + 1);
        let (verdict, out) = run_with(&mut engine, 1, &packet, &mut undone);
        prop_assert_eq!(verdict, Verdict::Forward);
        prop_assert_eq!(undone, offload(form, false, protocol, len as u16 + 1));
        let seen = see_with(&out, form != Form::Finished);
        prop_assert_eq!((seen.source, seen.destination), (POOL.into(), remote.into()));
        prop_assert_eq!((seen.tos, seen.ports().1), (tos, remote_port));
        prop_assert_eq!(&seen.transport[seen.transport.len() - data.len()..], &data[..]);
        let data = build(back);
        let mut packet = v4_with(remote, POOL, protocol, &transport(remote_port, seen.ports().0, &data), back != Form::Finished);
        packet[1] = tos;
        finish_v4(&mut packet);
        let mut undone = offload(back, false, protocol, len as u16 + 1);
        let (verdict, out) = run_with(&mut engine, 2, &packet, &mut undone);
        prop_assert_eq!(verdict, Verdict::Forward);
        prop_assert_eq!(undone, offload(back, true, protocol, len as u16 + 1));
        let seen = see_with(&out, back != Form::Finished);
        prop_assert_eq!((seen.source, seen.destination), (mapped(remote).into(), host(source).into()));
        prop_assert_eq!((seen.tos, seen.ports()), (tos, (remote_port, port)));
        prop_assert_eq!(&seen.transport[seen.transport.len() - data.len()..], &data[..]);
    }

    #[test]
    fn there_and_back_below_prefixes_of_every_length(host4 in 0u32..1 << 17, siit: bool, port in 1u16.., data: Vec<u8>) {
        let mut engine = every_length(if siit { "siit" } else { "nat64" });
        let remote = std::net::Ipv4Addr::from_bits(0xc612_0000 | host4);
        let permits = |permit: &str| permit.parse::<ipnet::Ipv4Net>().unwrap().contains(&remote);
        for (prefix, permit) in PREFIXES {
            let address = naive_embed(prefix, remote);
            let packet = v6(host(1), address, UDP, &udp(port, 53, &data));
            if !permits(permit) {
                prop_assert_eq!(run(&mut engine, 0, &packet).0, Verdict::Reply(weft_nat64_core::Reason::NotPermitted));
                continue;
            }
            let seen = pass(&mut engine, 0, &packet);
            prop_assert_eq!((seen.source, seen.destination), (POOL.into(), remote.into()));
            let back = pass(&mut engine, 0, &v4(remote, POOL, UDP, &udp(53, seen.ports().0, &data)));
            prop_assert_eq!((back.source, back.destination, back.ports()), (address.into(), host(1).into(), (53, port)));
            prop_assert_eq!(&back.transport[8..], &data[..]);
        }
    }

    /// Without state: any packet of any protocol, whole or a fragment, is itself again after both translations.
    #[test]
    fn siit_there_and_back(
        protocol in prop_oneof![Just(TCP), Just(UDP), Just(132u8)], data: Vec<u8>, ports: (u16, u16), tos: u8,
        fragment in prop::option::of((0u16..100, any::<bool>(), any::<u16>())),
    ) {
        let mut engine = every_length("siit");
        let segment = match protocol {
            TCP => tcp(ports.0, ports.1, ACK, &data),
            UDP => udp(ports.0, ports.1, &data),
            _ => data,
        };
        let remote = std::net::Ipv4Addr::new(198, 18, 65, 9);
        let address = naive_embed(PREFIXES[1].0, remote);
        let whole = if protocol == 132 { v6_raw(host(1), address, 132, &segment) } else { v6(host(1), address, protocol, &segment) };
        let mut packet = match fragment {
            None => whole,
            Some((offset, more, id)) => {
                let [a, b] = (offset << 3 | u16::from(more)).to_be_bytes();
                let [c, d] = id.to_be_bytes();
                v6_raw(host(1), address, 44, &[&[protocol, 0, a, b, 0, 0, c, d][..], &whole[40..]].concat())
            }
        };
        (packet[0], packet[1]) = (0x60 | tos >> 4, tos << 4);
        let (verdict, mut out) = run(&mut engine, 0, &packet);
        prop_assert_eq!(verdict, Verdict::Forward);
        prop_assert!(lengths_hold(&out));
        // It comes back from where it went.
        let (source, destination) = (out[12..16].to_vec(), out[16..20].to_vec());
        out[12..16].copy_from_slice(&destination);
        out[16..20].copy_from_slice(&source);
        finish_v4(&mut out);
        let (verdict, back) = run(&mut engine, 0, &out);
        prop_assert_eq!(verdict, Verdict::Forward);
        let transport = if fragment.is_some_and(|(offset, more, _)| offset != 0 || more) { 48 } else { 40 };
        let was = if fragment.is_some() { 48 } else { 40 };
        prop_assert_eq!(&back[transport..], &packet[was..]);
        prop_assert_eq!(&back[8..40], &[&packet[24..40], &packet[8..24]].concat()[..]);
        prop_assert_eq!((&back[..2], back[7]), (&packet[..2], 62));
        if transport == 48 {
            prop_assert_eq!(&back[40..48], &packet[40..48]);
        }
    }

    #[test]
    fn siit_no_changed_packet_panics_and_what_passes_has_true_lengths(
        which in 0usize..10, changes in prop::collection::vec((0usize..160, any::<u8>()), 0..6),
        cut in prop::option::of(0usize..200), undone in any_offload(), plain: bool, bytes: Vec<u8>,
    ) {
        let text = "tun = \"t\"\nmode = \"siit\"\nmtu6 = 1280\nicmp_sources = [\"192.0.2.9/32\"]\n\
            [[eam]]\nfour = \"192.0.2.1/32\"\nsix = \"fd12::9/128\"\n[[eam]]\nfour = \"198.18.0.80/32\"\nsix = \"fd12::8/128\"\n\
            [[prefix]]\nprefix = \"64:ff9b:1::/96\"\npermit = [\"0.0.0.0/0\"]";
        let mut engine = Engine::new(toml::from_str(text).unwrap(), 0, [1, 2]).unwrap();
        let mut packet = if which == 9 { bytes } else { acquainted().1[which].clone() };
        for (at, value) in changes {
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
        }
        packet.truncate(cut.unwrap_or(usize::MAX));
        if packet.len() >= 20 && packet[0] == 0x45 {
            finish_v4(&mut packet);
        }
        let mut undone = if plain { Offload::default() } else { undone };
        let (verdict, out) = run_with(&mut engine, 1, &packet, &mut undone);
        match verdict {
            Verdict::Forward | Verdict::Reply(_) => prop_assert!(lengths_hold(&out)),
            Verdict::Split(packets) => prop_assert!(packets.iter().all(|packet| lengths_hold(packet))),
            Verdict::Drop(_) => {}
        }
    }

    #[test]
    fn no_bytes_and_no_vnet_hdr_panic(mut bytes: Vec<u8>, version in prop::sample::select(vec![0x45u8, 0x60, 0x46]), mut undone in any_offload()) {
        let (mut engine, _) = acquainted();
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        let (verdict, out) = run_with(&mut engine, 1, &bytes, &mut undone);
        if matches!(verdict, Verdict::Forward | Verdict::Reply(_)) {
            prop_assert!(lengths_hold(&out));
        }
    }

    #[test]
    fn no_changed_packet_panics_and_what_passes_has_true_lengths(
        which in 0usize..10, changes in prop::collection::vec((0usize..160, any::<u8>()), 0..6),
        cut in prop::option::of(0usize..200), undone in any_offload(), plain: bool,
    ) {
        let (mut engine, packets) = acquainted();
        let mut packet = packets[which].clone();
        for (at, value) in changes {
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
        }
        packet.truncate(cut.unwrap_or(usize::MAX));
        if packet.len() >= 20 && packet[0] == 0x45 {
            finish_v4(&mut packet);
        }
        let mut undone = if plain { Offload::default() } else { undone };
        let (verdict, out) = run_with(&mut engine, 1, &packet, &mut undone);
        match verdict {
            Verdict::Forward | Verdict::Reply(_) => {
                prop_assert!(lengths_hold(&out));
                if let Some(partial) = undone.partial {
                    prop_assert!(usize::from(partial.start + partial.offset) + 2 <= out.len());
                }
            }
            Verdict::Split(packets) => prop_assert!(packets.iter().all(|packet| lengths_hold(packet))),
            Verdict::Drop(_) => {}
        }
    }

    #[test]
    fn a_trace_changes_nothing(
        which in 0usize..10, changes in prop::collection::vec((0usize..160, any::<u8>()), 0..4), siit: bool,
    ) {
        let ((mut one, packets), (mut two, _)) = (acquainted(), acquainted());
        if siit {
            (one, two) = (every_length("siit"), every_length("siit"));
        }
        let mut packet = packets[which].clone();
        for (at, value) in changes {
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
        }
        if packet[0] == 0x45 {
            finish_v4(&mut packet);
        }
        let buf = [&[0; HEADROOM][..], &packet, &[0; 2000]].concat();
        let end = HEADROOM + packet.len();
        let (mut buf_one, mut buf_two) = (buf.clone(), buf);
        let mut view_one = PacketBuf::new(&mut buf_one, HEADROOM, end).unwrap();
        let mut view_two = PacketBuf::new(&mut buf_two, HEADROOM, end).unwrap();
        let verdict = one.translate(1, &mut || 7, &mut view_one, &mut Offload::default());
        let (explained, steps) = two.explain(1, &mut || 7, &mut view_two, &mut Offload::default());
        prop_assert_eq!(&verdict, &explained);
        prop_assert_eq!(view_one.bytes(), view_two.bytes());
        prop_assert!(verdict != Verdict::Forward || !steps.is_empty());
        prop_assert_eq!(one.counters(), two.counters());
    }

    /// Whoever opens, whatever filter admits them, whatever turns back: counts agree, and in the end only the
    /// configuration's bindings stay.
    #[test]
    fn tables_agree_whoever_opens(
        steps in prop::collection::vec((0u8..5, 0u16..3, 0usize..4, 0u64..100_000, prop::sample::select(vec![SYN, ACK, SYN | ACK, FIN, RST])), 1..80),
        filtering in prop::sample::select(vec!["address-dependent", "address-and-port-dependent", "endpoint-independent"]),
        hairpinning: bool,
    ) {
        let text = CONFIG.replace("queues = 1", &format!("queues = 1\nfiltering = \"{filtering}\"\nhairpinning = {hairpinning}"));
        let text = text.replace("\"198.18.0.0/15\"", "\"198.18.0.0/15\", \"192.0.2.0/24\"")
            + "[[static]]\nprotocol = \"tcp\"\nsix = \"[fd12::1]:80\"\nfour = \"192.0.2.1:8080\"\n\
               [[static]]\nprotocol = \"udp\"\nsix = \"[fd12::1]:53\"\nfour = \"192.0.2.1:2053\"\n";
        let mut engine = Engine::new(toml::from_str(&text).unwrap(), 0, [1, 2]).unwrap();
        let (mut now, mut known) = (0, vec![8080u16, 2053, 2500, 2999]);
        for (kind, number, which, wait, flags) in steps {
            now += wait;
            engine.handle_timeout(now);
            let port = known[which];
            let remote = std::net::Ipv4Addr::from_bits(0xc613_0000 | u32::from(number));
            let packet = match kind {
                0 => v6(host(number), mapped(remote), UDP, &udp(50 + which as u16, 53, b"")),
                1 => v6(host(number), mapped(remote), TCP, &tcp(80, 53, flags, b"")),
                2 => v4(remote, POOL, UDP, &udp(9, port, b"")),
                3 => v4(remote, POOL, TCP, &tcp(9, port, flags, b"")),
                _ => v6(host(number), mapped(POOL), TCP, &tcp(80, port, flags, b"")),
            };
            run(&mut engine, now, &packet);
            let closed = engine.session_count(weft_nat64_core::rfc6146::table::Class::TcpClosed) as usize;
            let held: u32 = engine.sources().map(|source| source.counters.sessions).sum();
            prop_assert_eq!(held as usize, engine.sessions().count() - closed);
            let mut bound: std::collections::HashSet<_> =
                engine.sessions().map(|session| session.four).filter(|four| four.port < 8000).collect();
            known.extend(bound.iter().map(|four| four.port));
            known.rotate_left(which);
            let udp = weft_nat64_core::packet::Protocol::Udp;
            bound.retain(|four| four.protocol == udp && four.port != 2053);
            prop_assert_eq!(engine.port_usage(udp).0, bound.len() as u64 + 1);
        }
        engine.handle_timeout(now + 100_000_000);
        prop_assert_eq!((engine.sessions().count(), engine.poll_timeout()), (0, None));
        prop_assert_eq!(engine.sources().map(|source| source.counters.sessions).sum::<u32>(), 0);
        let seen = pass(&mut engine, now + 100_000_000, &v4(REMOTE, POOL, UDP, &udp(9, 2053, b"")));
        prop_assert_eq!(seen.destination, std::net::IpAddr::from(host(1)));
    }

    #[test]
    fn no_room_in_front_is_no_panic(which in 0usize..10, room in 0usize..HEADROOM) {
        let (mut engine, packets) = acquainted();
        let packet = &packets[which];
        let mut buf = vec![0; room];
        buf.extend(packet);
        let end = buf.len();
        let mut view = PacketBuf::new(&mut buf, room, end).unwrap();
        let _ = engine.translate(1, &mut || 7, &mut view, &mut Offload::default());
    }

    /// Tables against a model: whatever hosts do and whenever, counts agree and nothing outlives its timer.
    #[test]
    fn tables_agree_whatever_happens(steps in prop::collection::vec((0u16..4, 1u16..6, 0u32..3, 0u64..200_000), 1..120)) {
        let mut engine = engine();
        let mut now = 0;
        let mut last = std::collections::HashMap::new();
        for (number, port, remote, wait) in steps {
            now += wait;
            engine.handle_timeout(now);
            last.retain(|_, touched| *touched + 300_000 > now);
            let remote = std::net::Ipv4Addr::from_bits(0xc613_0000 | remote);
            open_udp(&mut engine, now, host(number), port, remote, 53);
            last.insert((number, port, remote), now);
            prop_assert_eq!(engine.sessions().count(), last.len());
            let bound: std::collections::HashSet<_> = last.keys().map(|(number, port, _)| (number, port)).collect();
            prop_assert_eq!(engine.port_usage(weft_nat64_core::packet::Protocol::Udp).0, bound.len() as u64);
            let held: u32 = engine.sources().map(|source| source.counters.sessions).sum();
            prop_assert_eq!(held as usize, last.len());
            prop_assert_eq!(engine.poll_timeout(), last.values().min().map(|touched| touched + 300_000));
        }
    }
}
