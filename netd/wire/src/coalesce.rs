//! Joins runs of received packets of one TCP or UDP flow into super-packets, so that the kernel takes them at once. Pure.
//!
//! A packet joins only if the kernel would have sent it as a segment of the same super-packet, and only if its own
//! checksum is right: the joined packet's checksum is made anew, and must not heal what was broken.
use weft_tun::{DATA_VALID, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHdr};

use crate::packet::{IPV4_HEADER, IPV6_HEADER, TCP, UDP, add, pseudo, put_u16, sum, u16_at, u32_at, version};

/// The longest super-packet; 65,535 is what an IPv4 length can say.
const MAX_SUPER: usize = 65_500;
/// The most segments of one super-packet.
const MAX_SEGMENTS: usize = 64;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// A part of the arena.
pub(crate) type Part = std::ops::Range<usize>;

/// What a packet is to a run: present only if it may be part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    v6: bool,
    tcp: bool,
    l4: usize,
    headers: usize,
    payload: usize,
    seq: u32,
    push: bool,
}

impl Segment {
    /// `None` for everything that is passed on alone: fragments, options, flags besides ACK and PSH, no payload.
    fn parse(packet: &[u8]) -> Option<Self> {
        let v6 = version(packet)? == 6;
        let (l4, protocol) = if v6 {
            (IPV6_HEADER, *packet.get(6)?)
        } else {
            // No options, and "don't fragment", so that the identification does not matter (RFC 6864 4.1).
            let plain = *packet.first()? == 0x45 && u16_at(packet, 6)? & 0xbfff == 0 && *packet.get(6)? == 0x40;
            plain.then_some((IPV4_HEADER, *packet.get(9)?))?
        };
        let (headers, seq, push) = match protocol {
            TCP => {
                let headers = l4 + usize::from(*packet.get(l4 + 12)? >> 4) * 4;
                let flags = *packet.get(l4 + 13)?;
                if headers < l4 + 20 || flags & !PSH != ACK {
                    return None;
                }
                (headers, u32_at(packet, l4 + 4)?, flags & PSH != 0)
            }
            UDP => {
                let summed = u16_at(packet, l4 + 6)? != 0 && usize::from(u16_at(packet, l4 + 4)?) == packet.len() - l4;
                summed.then_some((l4 + 8, 0, false))?
            }
            _ => return None,
        };
        let payload = packet.len().checked_sub(headers).filter(|payload| *payload > 0)?;
        let check = add(pseudo(packet, protocol, packet.len() - l4)?, sum(packet.get(l4..)?));
        let header_right = v6 || sum(packet.get(..IPV4_HEADER)?) == 0xffff;
        let right = check == 0xffff && header_right;
        right.then_some(Self { v6, tcp: protocol == TCP, l4, headers, payload, seq, push })
    }
}

/// A run in the making. Packets lie in an arena that the caller owns.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    udp: bool,
    first: Option<Segment>,
    /// The first packet whole, then the payloads of the others.
    parts: Vec<Part>,
    payload: usize,
    next_seq: u32,
    closed: bool,
}

impl Coalescer {
    /// `udp`: whether the kernel takes UDP super-packets.
    pub(crate) fn new(udp: bool) -> Self {
        Self { udp, ..Self::default() }
    }

    /// Takes the packet at `part` of the arena; hands earlier ones to `write` if it does not join them.
    pub(crate) fn push(&mut self, arena: &mut [u8], part: Part, write: &mut impl FnMut(&VnetHdr, &[u8], &[Part])) {
        let segment = Segment::parse(arena.get(part.clone()).unwrap_or_default()).filter(|s| s.tcp || self.udp);
        if let Some(segment) = segment
            && self.joins(arena, &part, &segment)
        {
            self.parts.push(part.start + segment.headers..part.end);
            self.payload += segment.payload;
            self.next_seq = self.next_seq.wrapping_add(segment.payload as u32);
            let first_size = self.first.map_or(0, |first| first.payload);
            self.closed = segment.payload < first_size || segment.push;
            if segment.push {
                self.set_push(arena);
            }
            return;
        }
        self.flush(arena, write);
        self.parts.push(part);
        self.first = segment;
        self.payload = segment.map_or(0, |segment| segment.payload);
        self.next_seq = segment.map_or(0, |segment| segment.seq.wrapping_add(segment.payload as u32));
        self.closed = segment.is_none_or(|segment| segment.push);
    }

    /// Hands over what is held back.
    pub(crate) fn flush(&mut self, arena: &mut [u8], write: &mut impl FnMut(&VnetHdr, &[u8], &[Part])) {
        let vnet = match (self.first, self.parts.len()) {
            (_, 0) => return,
            (Some(first), 2..) => self.finish(arena, &first),
            (Some(_), _) => VnetHdr { flags: DATA_VALID, ..VnetHdr::default() },
            (None, _) => VnetHdr::default(),
        };
        write(&vnet, arena, &self.parts);
        self.parts.clear();
        self.first = None;
    }

    fn joins(&self, arena: &[u8], part: &Part, segment: &Segment) -> bool {
        let (Some(first), Some(head)) = (self.first, self.parts.first()) else { return false };
        let same_shape = (first.v6, first.tcp, first.headers) == (segment.v6, segment.tcp, segment.headers);
        let room = self.parts.len() < MAX_SEGMENTS && first.headers + self.payload + segment.payload <= MAX_SUPER;
        if self.closed || !same_shape || !room || segment.payload > first.payload {
            return false;
        }
        if first.tcp && segment.seq != self.next_seq {
            return false;
        }
        let same = |from: usize, to: usize| {
            let a = arena.get(head.start + from..head.start + to);
            a.is_some() && a == arena.get(part.start + from..part.start + to)
        };
        let l4 = first.l4;
        // Everything but lengths, identification, checksums, sequence number and PSH.
        let ip = if first.v6 { same(0, 4) && same(6, 40) } else { same(0, 2) && same(6, 10) && same(12, 20) };
        ip && same(l4, l4 + 4)
            && (!first.tcp || same(l4 + 8, l4 + 13) && same(l4 + 14, l4 + 16) && same(l4 + 18, first.headers))
    }

    fn set_push(&self, arena: &mut [u8]) {
        let (Some(first), Some(head)) = (self.first, self.parts.first()) else { return };
        if let Some(flags) = arena.get_mut(head.start + first.l4 + 13) {
            *flags |= PSH;
        }
    }

    /// Rewrites the first packet's headers for the whole run, and leaves the checksum to the kernel.
    fn finish(&self, arena: &mut [u8], first: &Segment) -> VnetHdr {
        let total = first.headers + self.payload;
        let (l4, l4_len) = (first.l4, total - first.l4);
        let offset: u16 = if first.tcp { 16 } else { 6 };
        let head = self.parts.first().cloned().unwrap_or_default();
        let packet = arena.get_mut(head).unwrap_or_default();
        if first.v6 {
            put_u16(packet, 4, (total - IPV6_HEADER) as u16);
        } else {
            put_u16(packet, 2, total as u16);
            put_u16(packet, 10, 0);
            let check = !sum(packet.get(..IPV4_HEADER).unwrap_or_default());
            put_u16(packet, 10, check);
        }
        if !first.tcp {
            put_u16(packet, l4 + 4, l4_len as u16);
        }
        let partial = pseudo(packet, if first.tcp { TCP } else { UDP }, l4_len).unwrap_or_default();
        put_u16(packet, l4 + usize::from(offset), partial);
        VnetHdr {
            flags: NEEDS_CSUM,
            gso_type: match (first.tcp, first.v6) {
                (true, true) => GSO_TCPV6,
                (true, false) => GSO_TCPV4,
                (false, _) => GSO_UDP_L4,
            },
            hdr_len: first.headers as u16,
            gso_size: first.payload as u16,
            csum_start: l4 as u16,
            csum_offset: offset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        packet::tests::{Made, checks},
        segment::{TAIL_ROOM, for_each_segment},
    };
    use proptest::prelude::*;

    /// Coalesces, and gives back what the kernel would be handed: headers and packets.
    fn coalesce(udp: bool, packets: &[Vec<u8>]) -> Vec<(VnetHdr, Vec<u8>)> {
        let mut arena: Vec<u8> = packets.concat();
        let mut coalescer = Coalescer::new(udp);
        let mut written = Vec::new();
        let mut write = |vnet: &VnetHdr, arena: &[u8], parts: &[Part]| {
            written.push((*vnet, parts.iter().flat_map(|part| arena[part.clone()].to_vec()).collect()));
        };
        let mut at = 0;
        for packet in packets {
            coalescer.push(&mut arena, at..at + packet.len(), &mut write);
            at += packet.len();
        }
        coalescer.flush(&mut arena, &mut write);
        written
    }

    fn cut(written: &[(VnetHdr, Vec<u8>)]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for (vnet, packet) in written {
            let mut buf = packet.clone();
            buf.resize(packet.len() + TAIL_ROOM, 0);
            for_each_segment(vnet, &mut buf, packet.len(), 0, |segment| all.push(segment.to_vec())).unwrap();
        }
        all
    }

    fn flow(tcp: bool, v6: bool, seq: u32, sizes: &[usize]) -> Vec<Vec<u8>> {
        let mut seq = seq;
        let make = |(index, size): (usize, &usize)| {
            let payload: Vec<u8> = (0..*size).map(|byte| (byte * 7 + index) as u8).collect();
            let flags = if index + 1 == sizes.len() { 0x18 } else { 0x10 };
            let packet = Made { v6, tcp, port: 9, seq, flags }.packet(&payload);
            seq = seq.wrapping_add(*size as u32);
            packet
        };
        sizes.iter().enumerate().map(make).collect()
    }

    #[test]
    fn a_run_of_one_flow_becomes_one_packet() {
        for (tcp, v6) in [(true, true), (true, false), (false, true), (false, false)] {
            let packets = flow(tcp, v6, u32::MAX - 1500, &[1000, 1000, 1000, 400]);
            let written = coalesce(true, &packets);
            assert_eq!(written.len(), 1, "tcp {tcp} v6 {v6}");
            assert_eq!(written[0].0.gso_size, 1000);
            let again = cut(&written);
            if v6 {
                assert_eq!(again, packets);
            } else {
                assert!(again.iter().all(|packet| checks(packet)));
                assert_eq!(again.len(), packets.len());
            }
        }
    }

    #[test]
    fn what_does_not_belong_together_stays_apart() {
        let made = |port, seq, flags| Made { v6: true, tcp: true, port, seq, flags }.packet(&[5; 100]);
        for (name, second) in [
            ("another flow", made(2, 101, 0x10)),
            ("a gap", made(1, 102, 0x10)),
            ("an overlap", made(1, 100, 0x10)),
            ("FIN", made(1, 101, 0x11)),
            ("larger", Made { v6: true, tcp: true, port: 1, seq: 101, flags: 0x10 }.packet(&[5; 101])),
            ("no payload", Made { v6: true, tcp: true, port: 1, seq: 101, flags: 0x10 }.packet(&[])),
            ("UDP", Made { v6: true, tcp: false, port: 1, seq: 0, flags: 0 }.packet(&[5; 100])),
        ] {
            let packets = [made(1, 1, 0x10), second];
            let written = coalesce(true, &packets);
            assert_eq!(written.iter().map(|(_, packet)| packet.clone()).collect::<Vec<_>>(), packets, "{name}");
        }
        let pushed = [made(1, 1, 0x18), made(1, 101, 0x10)];
        assert_eq!(coalesce(true, &pushed).len(), 2, "nothing follows a PSH");
    }

    #[test]
    fn a_wrong_checksum_is_passed_on_as_it_is() {
        let mut packets = flow(true, true, 1, &[100, 100, 100]);
        packets[1][70] ^= 1;
        let written = coalesce(true, &packets);
        assert_eq!(written.len(), 3);
        assert_eq!(written[1], (VnetHdr::default(), packets[1].clone()));
    }

    #[test]
    fn without_udp_offload_datagrams_are_written_singly() {
        assert_eq!(coalesce(false, &flow(false, true, 0, &[100, 100])).len(), 2);
        assert_eq!(coalesce(false, &flow(true, true, 0, &[100, 100])).len(), 1);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_added_or_reordered(
            tcp: bool, seq: u32,
            sizes in proptest::collection::vec(prop_oneof![Just(1400usize), Just(1400), 1usize..1500], 1..120),
        ) {
            let packets = flow(tcp, true, seq, &sizes);
            let written = coalesce(true, &packets);
            prop_assert!(written.iter().all(|(_, packet)| packet.len() <= 65_575));
            prop_assert_eq!(cut(&written), packets);
        }

        #[test]
        fn no_bytes_panic(packets: Vec<Vec<u8>>, at in 0usize..60, value: u8) {
            let _ = coalesce(true, &packets);
            let mut changed = flow(true, false, 1, &[100, 100, 100]);
            changed[1][at] = value;
            let _ = coalesce(true, &changed);
        }
    }
}
