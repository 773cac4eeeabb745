//! An IPv6 header becomes an IPv4 one (RFC 7915 5.1, and 5.1.1 for fragments).
use std::net::Ipv4Addr;

use super::{Rewrite, transport};
use crate::{
    GsoKind, Offload, PacketBuf, Reason,
    bytes::*,
    checksum::{self, Delta},
    packet::{Ipv4, Ipv6, Protocol},
};

/// The longest IPv4 packet that goes out without DF, so that small IPv6 links behind need no answer (5.1).
pub const MAX_WITHOUT_DF: usize = 1260;

/// The IPv4 fields that an IPv6 header has no counterpart for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identification {
    /// The Identification field: unique for a while between two addresses, if the packet may be fragmented.
    pub id: u16,
    /// Don't Fragment.
    pub dont_fragment: bool,
}

/// Translates a packet in place. The offload must have been checked against the packet before.
pub fn translate(
    packet: &mut PacketBuf<'_>,
    ip: &Ipv6,
    to: &Rewrite<Ipv4Addr>,
    identification: Identification,
    offload: &mut Offload,
) -> Result<(), Reason> {
    let length = ip.end.checked_sub(ip.transport).ok_or(Reason::Malformed)?;
    let total = u16::try_from(length + Ipv4::LEN).map_err(|_| Reason::TooLongForIpv4)?;
    if ip.fragment.is_none_or(|fragment| fragment.offset == 0) {
        rewrite_transport(packet, ip, to, length, offload)?;
    }
    let piece = ip.fragment.filter(|fragment| fragment.is_piece());
    let flags_and_offset = match piece {
        Some(fragment) => fragment.offset | if fragment.more { 0x2000 } else { 0 },
        None => u16::from(identification.dont_fragment) << 14,
    };
    packet.resize_header(ip.transport, Ipv4::LEN)?;
    let mut header = [0; Ipv4::LEN];
    header[0] = 0x45;
    header[1] = ip.traffic_class;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[4..6].copy_from_slice(&identification.id.to_be_bytes());
    header[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
    header[8] = to.hops;
    header[9] = ip.protocol.v4();
    header[12..16].copy_from_slice(&to.source.octets());
    header[16..20].copy_from_slice(&to.destination.octets());
    let sum = checksum::checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    put(packet.bytes_mut(), 0, &header)?;
    if let Some(partial) = &mut offload.partial {
        partial.start = Ipv4::LEN as u16;
    }
    if let Some(gso) = &mut offload.gso
        && gso.kind == GsoKind::TcpV6
    {
        gso.kind = GsoKind::TcpV4;
    }
    Ok(())
}

fn rewrite_transport(
    packet: &mut PacketBuf<'_>,
    ip: &Ipv6,
    to: &Rewrite<Ipv4Addr>,
    length: usize,
    offload: &Offload,
) -> Result<(), Reason> {
    let old = checksum::sum(&ip.source.octets()) + checksum::sum(&ip.destination.octets());
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
            128 => 8,
            129 => 0,
            _ => return Err(Reason::IcmpType),
        };
        let pseudo = old + u64::from(ip.protocol.v6()) + length as u64;
        return transport::rewrite_echo(payload, kind, (pseudo, 0), to.port, to.quoted);
    }
    let new = checksum::sum(&to.source.octets()) + checksum::sum(&to.destination.octets());
    let pseudo = Delta::default().replace(old, new);
    transport::rewrite_ports(payload, ip.protocol, pseudo, to.port, offload.partial.is_some(), to.quoted)
}
