//! ICMPv6 errors become ICMPv4 ones, the packet that they quote included (RFC 7915 5.2 and 5.3).
use std::net::Ipv4Addr;

use super::{
    Rewrite, extensions,
    header_6to4::{self, Identification},
    mtu::{self, Mtus},
};
use crate::{
    HEADROOM, Offload, PacketBuf, Reason,
    bytes::*,
    checksum,
    packet::{Ipv4, Ipv6, number},
};

/// An ICMPv4 error as a whole stays below what every host can take (RFC 1812 4.3.2.3).
const MAX_ERROR: usize = 576;

/// Type, code and the second word of an ICMPv4 error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// MTU, pointer or nothing.
    pub rest: u32,
}

/// The counterpart of an ICMPv6 error's type, code and second word; an error if there is none (5.2).
pub fn header(kind: u8, code: u8, rest: u32, mtus: Mtus) -> Result<Header, Reason> {
    let (kind, code, rest) = match (kind, code) {
        (1, 0 | 2 | 3) => (3, 1, 0),
        (1, 1) => (3, 10, 0),
        (1, 4) => (3, 3, 0),
        (2, _) => (3, 4, mtu::for_fragmentation_needed(rest, mtus).into()),
        (3, code) => (11, code, 0),
        (4, 0) => (12, 0, u32::from(pointer(rest)?) << 24),
        (4, 1) => (3, 2, 0),
        _ => return Err(Reason::IcmpType),
    };
    Ok(Header { kind, code, rest })
}

/// Figure 6: where a field of the IPv6 header is in an IPv4 header.
fn pointer(v6: u32) -> Result<u8, Reason> {
    Ok(match v6 {
        0 => 0,
        1 => 1,
        4 | 5 => 2,
        6 => 9,
        7 => 8,
        8..=23 => 12,
        24..=39 => 16,
        _ => return Err(Reason::IcmpType),
    })
}

/// Builds the ICMPv4 error for `error` (an ICMPv6 error with its 8-byte header, without IPv6 header).
pub fn translate(
    error: &[u8],
    outer: &Ipv6,
    outer_to: &Rewrite<Ipv4Addr>,
    inner: &Ipv6,
    inner_to: &Rewrite<Ipv4Addr>,
    mtus: Mtus,
) -> Result<Vec<u8>, Reason> {
    let [kind, code, ..] = array_at::<8>(error, 0)?;
    let mut header = header(kind, code, u32_at(error, 4)?, mtus)?;
    let (quoted, extensions) = extensions::split(tail(error, 8)?, quoted_len(error)?);
    let mut buf = vec![0; HEADROOM + quoted.len()];
    put(&mut buf, HEADROOM, quoted)?;
    let end = buf.len();
    let mut packet = PacketBuf::new(&mut buf, HEADROOM, end).ok_or(Reason::Truncated)?;
    packet.truncate(inner.end);
    let id = inner.fragment.map_or(0, |fragment| fragment.id as u16);
    let identification = Identification { id, dont_fragment: kind == 2 };
    header_6to4::translate(&mut packet, inner, inner_to, identification, &mut Offload::default())?;
    let (body, length) = extensions::join(packet.bytes(), extensions, MAX_ERROR - Ipv4::LEN - 8, 4);
    header.rest |= u32::from(length) << 16;
    build(header, outer.traffic_class, outer_to, &body)
}

/// How long the quoted packet is by the error's length field, in bytes; 0 if there is none (RFC 4884 4).
fn quoted_len(error: &[u8]) -> Result<usize, Reason> {
    let [kind, _, _, _, length, ..] = array_at::<8>(error, 0)?;
    Ok(if matches!(kind, 1 | 3) { usize::from(length) * 8 } else { 0 })
}

/// An ICMPv4 error with its IPv4 header.
pub(crate) fn build(header: Header, tos: u8, to: &Rewrite<Ipv4Addr>, quoted: &[u8]) -> Result<Vec<u8>, Reason> {
    let total = Ipv4::LEN + 8 + quoted.len();
    let mut out = vec![0; total];
    put(&mut out, 0, &[0x45, tos])?;
    put_u16(&mut out, 2, u16::try_from(total).map_err(|_| Reason::TooLongForIpv4)?)?;
    put(&mut out, 8, &[to.hops, number::ICMP])?;
    put(&mut out, 12, &to.source.octets())?;
    put(&mut out, 16, &to.destination.octets())?;
    let sum = checksum::checksum(out.get(..Ipv4::LEN).ok_or(Reason::Truncated)?);
    put_u16(&mut out, 10, sum)?;
    put(&mut out, Ipv4::LEN, &[header.kind, header.code])?;
    put(&mut out, Ipv4::LEN + 4, &header.rest.to_be_bytes())?;
    put(&mut out, Ipv4::LEN + 8, quoted)?;
    let sum = checksum::checksum(tail(&out, Ipv4::LEN)?);
    put_u16(&mut out, Ipv4::LEN + 2, sum)?;
    Ok(out)
}
