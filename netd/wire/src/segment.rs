//! Cuts a super-packet of the TUN into the packets that go through the tunnel, in place. Pure.
//!
//! Each segment's headers are written in front of its payload, over the bytes of the segment before it, which is encrypted
//! by then: nothing is copied but headers.
use weft_tun::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHdr};

use crate::packet::{IPV4_HEADER, IPV6_HEADER, TCP, add, fold, put_u16, put_u32, sum, u16_at, u32_at, version};

/// Room that [`for_each_segment`] wants behind the packet: the padding of the last segment.
pub(crate) const TAIL_ROOM: usize = PADDING - 1;

/// Inner packets are padded to a multiple of this, so that their size says less (WireGuard paper 5.4.6).
const PADDING: usize = 16;

/// The longest headers that are cut: IPv6 with some extension headers, and TCP with all its options.
const MAX_HEADERS: usize = 256;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A packet whose headers contradict its vnet_hdr or its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// How a super-packet is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    v6: bool,
    tcp: bool,
    /// Where TCP or UDP starts.
    l4: usize,
    /// Where the payload starts.
    headers: usize,
    /// Payload bytes of every segment but the last.
    size: usize,
}

impl Plan {
    fn new(vnet: &VnetHdr, packet: &[u8]) -> Result<Self, Malformed> {
        let (v6, tcp) = match vnet.gso_kind() {
            GSO_TCPV4 => (false, true),
            GSO_TCPV6 => (true, true),
            GSO_UDP_L4 => (version(packet) == Some(6), false),
            _ => return Err(Malformed),
        };
        let (l4, size) = (usize::from(vnet.csum_start), usize::from(vnet.gso_size));
        let offset = if tcp { 16 } else { 6 };
        let agrees = version(packet) == Some(if v6 { 6 } else { 4 })
            && vnet.flags & NEEDS_CSUM != 0
            && usize::from(vnet.csum_offset) == offset
            && size > 0
            && if v6 {
                l4 >= IPV6_HEADER
            } else {
                l4 >= IPV4_HEADER && packet.first().map(|b| b & 15) == Some((l4 / 4) as u8)
            };
        // hdr_len is a hint of whoever made the packet: the headers say themselves how long they are.
        let l4_header = if tcp { usize::from(*packet.get(l4 + 12).ok_or(Malformed)? >> 4) * 4 } else { 8 };
        let headers = l4 + l4_header;
        let fits = l4_header >= if tcp { 20 } else { 8 } && headers <= MAX_HEADERS && headers < packet.len();
        if agrees && fits { Ok(Self { v6, tcp, l4, headers, size }) } else { Err(Malformed) }
    }

    fn checksum_at(&self) -> usize {
        self.l4 + if self.tcp { 16 } else { 6 }
    }
}

/// Calls `emit` with each packet to encrypt, padded to 16 bytes but not beyond `mtu`.
///
/// `buf` holds the packet in its first `len` bytes and has [`TAIL_ROOM`] more. Returns how many packets there were; on
/// `Malformed` none was emitted.
pub(crate) fn for_each_segment(
    vnet: &VnetHdr,
    buf: &mut [u8],
    len: usize,
    mtu: usize,
    mut emit: impl FnMut(&[u8]),
) -> Result<usize, Malformed> {
    let packet = buf.get_mut(..len).ok_or(Malformed)?;
    if vnet.gso_kind() == GSO_NONE {
        if vnet.flags & NEEDS_CSUM != 0 {
            complete_checksum(vnet, packet)?;
        }
        with_padding(buf, 0, len, mtu, &mut emit)?;
        return Ok(1);
    }
    let plan = Plan::new(vnet, packet)?;
    let template = Template::new(&plan, packet).ok_or(Malformed)?;
    let count = (len - plan.headers).div_ceil(plan.size);
    for index in 0..count {
        let payload = plan.headers + index * plan.size;
        let end = (payload + plan.size).min(len);
        let segment = buf.get_mut(payload - plan.headers..end).ok_or(Malformed)?;
        template.write(&plan, segment, index, index + 1 == count);
        with_padding(buf, payload - plan.headers, end, mtu, &mut emit)?;
    }
    Ok(count)
}

/// The headers of the super-packet, from which those of each segment are made.
struct Template {
    headers: [u8; MAX_HEADERS],
    /// The pseudo-header's sum without the length: the kernel left sum and length in the checksum field.
    pseudo: u16,
    seq: u32,
    id: u16,
}

impl Template {
    fn new(plan: &Plan, packet: &[u8]) -> Option<Self> {
        let mut headers = [0; MAX_HEADERS];
        headers.get_mut(..plan.headers)?.copy_from_slice(packet.get(..plan.headers)?);
        let partial = u16_at(packet, plan.checksum_at())?;
        let pseudo = add(partial, !fold((packet.len() - plan.l4) as u64));
        put_u16(&mut headers, plan.checksum_at(), 0);
        let seq = if plan.tcp { u32_at(packet, plan.l4 + 4)? } else { 0 };
        Some(Self { headers, pseudo, seq, id: if plan.v6 { 0 } else { u16_at(packet, 4)? } })
    }

    /// Writes the headers of one segment; `segment` has its payload in place.
    fn write(&self, plan: &Plan, segment: &mut [u8], index: usize, last: bool) {
        let (total, l4_len) = (segment.len(), segment.len() - plan.l4);
        let Some((headers, _)) = segment.split_at_mut_checked(plan.headers) else { return };
        headers.copy_from_slice(self.headers.get(..plan.headers).unwrap_or_default());
        if plan.v6 {
            put_u16(headers, 4, (total - IPV6_HEADER) as u16);
        } else {
            put_u16(headers, 2, total as u16);
            put_u16(headers, 4, self.id.wrapping_add(index as u16));
            put_u16(headers, 10, 0);
            let check = !sum(headers.get(..plan.l4).unwrap_or_default());
            put_u16(headers, 10, check);
        }
        if plan.tcp {
            put_u32(headers, plan.l4 + 4, self.seq.wrapping_add((index * plan.size) as u32));
            if let Some(flags) = headers.get_mut(plan.l4 + 13) {
                // The end of the data is said once, by the segment that has it; a window cut once, by the first.
                *flags &= if last { !0 } else { !(FIN | PSH) } & if index == 0 { !0 } else { !CWR };
            }
        } else {
            put_u16(headers, plan.l4 + 4, l4_len as u16);
        }
        let l4 = segment.get(plan.l4..).unwrap_or_default();
        let check = !add(add(self.pseudo, fold(l4_len as u64)), sum(l4));
        // Zero says "no checksum" in UDP (RFC 768).
        put_u16(segment, plan.checksum_at(), if check == 0 && !plan.tcp { 0xffff } else { check });
    }
}

fn complete_checksum(vnet: &VnetHdr, packet: &mut [u8]) -> Result<(), Malformed> {
    let (start, offset) = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
    let check = !sum(packet.get(start..).ok_or(Malformed)?);
    if start + offset + 2 > packet.len() {
        return Err(Malformed);
    }
    let protocol = packet.get(if version(packet) == Some(6) { 6 } else { 9 }).copied();
    // Zero says "no checksum" in UDP; in TCP either spelling of zero is right.
    let check = if check == 0 && protocol != Some(TCP) { 0xffff } else { check };
    put_u16(packet, start + offset, check);
    Ok(())
}

fn with_padding(
    buf: &mut [u8],
    start: usize,
    end: usize,
    mtu: usize,
    emit: &mut impl FnMut(&[u8]),
) -> Result<(), Malformed> {
    let len = end - start;
    let padded = len.next_multiple_of(PADDING).min(mtu.max(len));
    let mut saved = [0; TAIL_ROOM];
    let saved = saved.get_mut(..padded - len).ok_or(Malformed)?;
    // The padding lies over the payload of the next segment, which is put back afterwards.
    let tail = buf.get_mut(end..start + padded).ok_or(Malformed)?;
    saved.copy_from_slice(tail);
    tail.fill(0);
    emit(buf.get(start..start + padded).unwrap_or_default());
    if let Some(tail) = buf.get_mut(end..start + padded) {
        tail.copy_from_slice(saved);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{
        UDP, pseudo,
        tests::{Made, checks},
    };
    use proptest::prelude::*;

    /// What a kernel hands over for this packet: a partial checksum, and the size of its segments.
    fn super_packet(made: &Made, payload: &[u8], size: u16) -> (VnetHdr, Vec<u8>) {
        let mut packet = made.packet(payload);
        let (l4, protocol, offset) =
            (if made.v6 { 40 } else { 20 }, if made.tcp { TCP } else { UDP }, if made.tcp { 16 } else { 6 });
        let partial = pseudo(&packet, protocol, packet.len() - l4).unwrap();
        put_u16(&mut packet, l4 + offset, partial);
        let gso_type = match (made.tcp, made.v6) {
            (true, true) => GSO_TCPV6,
            (true, false) => GSO_TCPV4,
            (false, _) => GSO_UDP_L4,
        };
        let vnet = VnetHdr {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: 0,
            gso_size: size,
            csum_start: l4 as u16,
            csum_offset: offset as u16,
        };
        (vnet, packet)
    }

    fn segments(vnet: &VnetHdr, packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, Malformed> {
        let mut buf = packet.to_vec();
        buf.resize(packet.len() + TAIL_ROOM, 0xee);
        let mut all = Vec::new();
        let count = for_each_segment(vnet, &mut buf, packet.len(), mtu, |segment| all.push(segment.to_vec()))?;
        assert_eq!(count, all.len());
        Ok(all)
    }

    /// Without its padding, by the length in its IP header.
    fn unpadded(segment: &[u8]) -> &[u8] {
        let len = if segment[0] >> 4 == 6 { 40 + u16_at(segment, 4).unwrap() } else { u16_at(segment, 2).unwrap() };
        assert!(segment[usize::from(len)..].iter().all(|byte| *byte == 0), "padding is zero");
        &segment[..usize::from(len)]
    }

    proptest! {
        #[test]
        fn segments_are_right_and_together_the_whole(
            v6: bool, tcp: bool, seq: u32, size in 1u16..1400, flags in prop_oneof![Just(0x19u8), Just(0x98), Just(0x10)],
            payload in proptest::collection::vec(any::<u8>(), 1..9000),
        ) {
            let size = size.max((payload.len() / 64) as u16 + 1);
            let made = Made { v6, tcp, port: 7, seq, flags };
            let (vnet, packet) = super_packet(&made, &payload, size);
            let all = segments(&vnet, &packet, 1420).unwrap();
            let headers = packet.len() - payload.len();
            let mut seen = Vec::new();
            for (index, segment) in all.iter().enumerate() {
                let plain = unpadded(segment);
                prop_assert!(segment.len() % 16 == 0 || segment.len() == 1420 || segment.len() == plain.len());
                prop_assert!(checks(plain), "segment {} of {}", index, all.len());
                if tcp {
                    let l4 = headers - 20;
                    prop_assert_eq!(u32_at(plain, l4 + 4).unwrap(), seq.wrapping_add(seen.len() as u32));
                    let last = index + 1 == all.len();
                    let expected = flags & if last { 0xff } else { !0x09 } & if index == 0 { 0xff } else { !0x80 };
                    prop_assert_eq!(plain[l4 + 13], expected);
                }
                seen.extend_from_slice(&plain[headers..]);
            }
            prop_assert_eq!(seen, payload);
        }

        #[test]
        fn no_bytes_panic(flags: u8, gso_type in 0u8..8, gso_size: u16, csum_start in 0u16..80, csum_offset in 0u16..32, packet: Vec<u8>) {
            let vnet = VnetHdr { flags, gso_type, hdr_len: 0, gso_size, csum_start, csum_offset };
            let _ = segments(&vnet, &packet, 1420);
        }

        #[test]
        fn no_changed_header_panics(at in 0usize..60, value: u8, v6: bool, tcp: bool, gso_size: u16, csum_start: u16) {
            let made = Made { v6, tcp, port: 7, seq: 1, flags: 0x18 };
            let (vnet, mut packet) = super_packet(&made, &[7; 3000], gso_size);
            packet[at] = value;
            let _ = segments(&vnet, &packet, 1420);
            let _ = segments(&VnetHdr { csum_start, ..vnet }, &packet, 1420);
        }
    }

    #[test]
    fn a_partial_checksum_is_completed() {
        for (v6, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
            let (vnet, packet) = super_packet(&Made { v6, tcp, port: 7, seq: 1, flags: 0x18 }, b"hello", 0);
            let all = segments(&VnetHdr { gso_type: GSO_NONE, ..vnet }, &packet, 1420).unwrap();
            assert!(checks(unpadded(&all[0])));
        }
    }

    #[test]
    fn padding_never_goes_beyond_the_mtu() {
        let made = Made { v6: true, tcp: false, port: 7, seq: 1, flags: 0 };
        let vnet = VnetHdr::default();
        for (payload, mtu, expected) in [(1, 1420, 64), (1372, 1420, 1420), (1365, 1420, 1420), (1500, 1420, 1548)] {
            let packet = made.packet(&vec![1; payload]);
            assert_eq!(segments(&vnet, &packet, mtu).unwrap()[0].len(), expected, "{payload}");
        }
    }
}
