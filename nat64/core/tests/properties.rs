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
