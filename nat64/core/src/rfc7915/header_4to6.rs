//! An IPv4 header becomes an IPv6 one, with a Fragment header if it is a fragment's (RFC 7915 4.1).
use std::net::Ipv6Addr;

use super::{Rewrite, transport};
use crate::{
    GsoKind, Offload, PacketBuf, Reason,
    bytes::*,
    checksum::{self, Delta},
    packet::{Fragment, Ipv4, Ipv6, Protocol, number},
};

/// Length of a Fragment header.
pub const FRAGMENT_LEN: usize = 8;

/// How long the translated packet's headers before the transport header are.
#[must_use]
pub fn header_len(ip: &Ipv4) -> usize {
    Ipv6::LEN + if ip.fragment.is_piece() { FRAGMENT_LEN } else { 0 }
}

/// Translates a packet in place. The offload must have been checked against the packet before.
pub fn translate(
    packet: &mut PacketBuf<'_>,
    ip: &Ipv4,
    to: &Rewrite<Ipv6Addr>,
    offload: &mut Offload,
) -> Result<(), Reason> {
    let length = ip.end.checked_sub(ip.transport).ok_or(Reason::Malformed)?;
    if ip.fragment.offset == 0 {
        rewrite_transport(packet, ip, to, length, offload)?;
    }
    let header = header_len(ip);
    let payload = u16::try_from(length + header - Ipv6::LEN).map_err(|_| Reason::Malformed)?;
    packet.resize_header(ip.transport, header)?;
    let piece = ip.fragment.is_piece();
    let next = if piece { number::FRAGMENT } else { ip.protocol.v6() };
    put(packet.bytes_mut(), 0, &ipv6_header(ip.tos, payload, next, to.hops, to.source, to.destination))?;
    if piece {
        put(packet.bytes_mut(), Ipv6::LEN, &fragment_header(ip.protocol.v6(), ip.fragment))?;
    }
    if let Some(partial) = &mut offload.partial {
        partial.start = header as u16;
    }
    if let Some(gso) = &mut offload.gso
        && gso.kind == GsoKind::TcpV4
    {
        gso.kind = GsoKind::TcpV6;
    }
    Ok(())
}

/// An IPv6 header without flow label.
pub(crate) fn ipv6_header(
    traffic_class: u8,
    payload: u16,
    next: u8,
    hops: u8,
    source: Ipv6Addr,
    destination: Ipv6Addr,
) -> [u8; Ipv6::LEN] {
    let mut header = [0; Ipv6::LEN];
    header[0] = 0x60 | traffic_class >> 4;
    header[1] = traffic_class << 4;
    header[4..6].copy_from_slice(&payload.to_be_bytes());
    header[6] = next;
    header[7] = hops;
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&destination.octets());
    header
}

/// A Fragment header.
pub(crate) fn fragment_header(next: u8, fragment: Fragment) -> [u8; FRAGMENT_LEN] {
    let [a, b] = (fragment.offset << 3 | u16::from(fragment.more)).to_be_bytes();
    let [c, d, e, f] = fragment.id.to_be_bytes();
    [next, 0, a, b, c, d, e, f]
}

fn rewrite_transport(
    packet: &mut PacketBuf<'_>,
    ip: &Ipv4,
    to: &Rewrite<Ipv6Addr>,
    length: usize,
    offload: &Offload,
) -> Result<(), Reason> {
    let new = checksum::sum(&to.source.octets()) + checksum::sum(&to.destination.octets());
    let payload = packet.bytes_mut().get_mut(ip.transport..).ok_or(Reason::Truncated)?;
    if let Protocol::Other(_) = ip.protocol {
        // RFC 7915 4.5, 5.5: passed, its checksum as it is.
        return Ok(());
    }
    if ip.protocol == Protocol::Icmp {
        if to.quoted && payload.is_empty() {
            return Ok(());
        }
        let kind = match u8_at(payload, 0)? {
            8 => 128,
            0 => 129,
            _ => return Err(Reason::IcmpType),
        };
        let pseudo = new + u64::from(ip.protocol.v6()) + length as u64;
        return transport::rewrite_echo(payload, kind, (0, pseudo), to.port, to.quoted);
    }
    let partial = offload.partial.is_some();
    let zero = ip.protocol == Protocol::Udp && !partial && !to.quoted && u16_at(payload, transport::UDP_CHECKSUM)? == 0;
    if zero && ip.fragment.is_piece() {
        return Err(Reason::ZeroChecksumFragment);
    }
    let old = checksum::sum(&ip.source.octets()) + checksum::sum(&ip.destination.octets());
    let pseudo = Delta::default().replace(old, new);
    transport::rewrite_ports(payload, ip.protocol, pseudo, to.port, partial, to.quoted)?;
    if zero { transport::fill_udp_checksum(payload, new) } else { Ok(()) }
}
