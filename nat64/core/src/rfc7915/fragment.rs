//! Packets that must become several: super-packets cut into segments, and IPv6 packets into fragments (RFC 8200 4.5).
use super::header_4to6::{FRAGMENT_LEN, fragment_header};
use crate::{
    Gso, Reason,
    bytes::*,
    checksum,
    packet::{Fragment, Ipv6, Protocol, Transport, number, tcp_flag},
};

/// Cuts a super-packet over IPv6 without extension headers into packets with finished checksums, as the kernel would.
pub fn segment(packet: &[u8], gso: Gso) -> Result<Vec<Vec<u8>>, Reason> {
    let ip = Ipv6::parse(packet)?;
    let whole = packet.get(ip.transport..ip.end).ok_or(Reason::Truncated)?;
    let header = match Transport::parse(whole, ip.protocol, true)? {
        Transport::Tcp { header, .. } => header,
        Transport::Udp { .. } => 8,
        _ => return Err(Reason::BadOffload),
    };
    let headers = packet.get(..ip.transport + header).ok_or(Reason::Truncated)?;
    let payload = tail(whole, header)?;
    let size = usize::from(gso.size).max(1);
    let count = payload.len().div_ceil(size).max(1);
    let mut out = Vec::with_capacity(count);
    for index in 0..count {
        let from = index * size;
        let chunk = payload.get(from..(from + size).min(payload.len())).ok_or(Reason::Truncated)?;
        let mut segment = Vec::with_capacity(headers.len() + chunk.len());
        segment.extend_from_slice(headers);
        segment.extend_from_slice(chunk);
        finish_segment(&mut segment, &ip, (index == 0, index + 1 == count), from)?;
        out.push(segment);
    }
    Ok(out)
}

/// Sets what differs between segments, and the checksum.
fn finish_segment(segment: &mut [u8], ip: &Ipv6, (first, last): (bool, bool), from: usize) -> Result<(), Reason> {
    let length = segment.len().checked_sub(ip.transport).ok_or(Reason::Truncated)?;
    put_u16(segment, 4, u16::try_from(segment.len() - Ipv6::LEN).map_err(|_| Reason::Malformed)?)?;
    let transport = segment.get_mut(ip.transport..).ok_or(Reason::Truncated)?;
    let field = match ip.protocol {
        Protocol::Tcp => {
            let sequence = u32_at(transport, 4)?.wrapping_add(from as u32);
            put(transport, 4, &sequence.to_be_bytes())?;
            let mut flags = u8_at(transport, 13)?;
            if !last {
                flags &= !(tcp_flag::FIN | tcp_flag::PSH);
            }
            if !first {
                flags &= !tcp_flag::CWR;
            }
            put(transport, 13, &[flags])?;
            16
        }
        _ => {
            put_u16(transport, 4, length as u16)?;
            6
        }
    };
    put_u16(transport, field, 0)?;
    let pseudo = checksum::pseudo_v6(ip.source, ip.destination, ip.protocol.v6(), length);
    let sum = match !checksum::fold(pseudo + checksum::sum(transport)) {
        0 => 0xffff,
        sum => sum,
    };
    put_u16(transport, field, sum)
}

/// Cuts an IPv6 packet with a finished checksum into fragments of at most `mtu` bytes. A packet that is a fragment
/// itself is cut further, its own place kept; otherwise `id` names the packet.
pub fn fragment(packet: &[u8], mtu: usize, id: u32) -> Result<Vec<Vec<u8>>, Reason> {
    let ip = Ipv6::parse(packet)?;
    if ip.end <= mtu {
        return Ok(vec![packet.to_vec()]);
    }
    let outer = ip.fragment.unwrap_or(Fragment { offset: 0, more: false, id });
    let payload = packet.get(ip.transport..ip.end).ok_or(Reason::Truncated)?;
    let room = mtu.checked_sub(Ipv6::LEN + FRAGMENT_LEN).ok_or(Reason::TooBig)? & !7;
    let count = payload.len().div_ceil(room.max(8));
    let mut out = Vec::with_capacity(count);
    for (index, chunk) in payload.chunks(room.max(8)).enumerate() {
        let offset = usize::from(outer.offset) + index * room / 8;
        let offset = u16::try_from(offset).ok().filter(|offset| *offset < 1 << 13).ok_or(Reason::Malformed)?;
        let more = outer.more || index + 1 < count;
        let mut piece = Vec::with_capacity(Ipv6::LEN + FRAGMENT_LEN + chunk.len());
        piece.extend_from_slice(packet.get(..Ipv6::LEN).ok_or(Reason::Truncated)?);
        piece.extend_from_slice(&fragment_header(ip.protocol.v6(), Fragment { offset, more, id: outer.id }));
        piece.extend_from_slice(chunk);
        put_u16(&mut piece, 4, (FRAGMENT_LEN + chunk.len()) as u16)?;
        put(&mut piece, 6, &[number::FRAGMENT])?;
        out.push(piece);
    }
    Ok(out)
}
