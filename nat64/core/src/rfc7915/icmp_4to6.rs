//! ICMPv4 errors become ICMPv6 ones, the packet that they quote included (RFC 7915 4.2 and 4.3).
use std::net::Ipv6Addr;

use super::{
    Rewrite, extensions, header_4to6,
    mtu::{self, Mtus},
};
use crate::{
    HEADROOM, Offload, PacketBuf, Reason,
    bytes::*,
    checksum,
    packet::{Ipv4, Ipv6, number},
};

/// An ICMPv6 error as a whole must not exceed the least MTU (RFC 4443 2.4 c).
const MAX_ERROR: usize = 1280;

/// Type, code and the second word of an ICMPv6 error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// MTU, pointer or nothing.
    pub rest: u32,
}

/// The counterpart of an ICMPv4 error's type, code and second word; an error if there is none (4.2). `quoted` is the
/// total length that the quoted packet says.
pub fn header(kind: u8, code: u8, rest: u32, quoted: u16, mtus: Mtus) -> Result<Header, Reason> {
    let (kind, code, rest) = match (kind, code) {
        (3, 0 | 1 | 5 | 6 | 7 | 8 | 11 | 12) => (1, 0, 0),
        (3, 2) => (4, 1, 6),
        (3, 3) => (1, 4, 0),
        (3, 4) => (2, 0, mtu::for_packet_too_big(rest as u16, quoted, mtus)),
        (3, 9 | 10 | 13 | 15) => (1, 1, 0),
        (11, code) => (3, code, 0),
        (12, 0 | 2) => (4, 0, pointer((rest >> 24) as u8)?),
        _ => return Err(Reason::IcmpType),
    };
    Ok(Header { kind, code, rest })
}

/// Figure 3: where a field of the IPv4 header is in an IPv6 header.
fn pointer(v4: u8) -> Result<u32, Reason> {
    Ok(match v4 {
        0 => 0,
        1 => 1,
        2 | 3 => 4,
        8 => 7,
        9 => 6,
        12..=15 => 8,
        16..=19 => 24,
        _ => return Err(Reason::IcmpType),
    })
}

/// Builds the ICMPv6 error for `error` (an ICMPv4 error with its 8-byte header, without IPv4 header).
pub fn translate(
    error: &[u8],
    outer: &Ipv4,
    outer_to: &Rewrite<Ipv6Addr>,
    inner: &Ipv4,
    inner_to: &Rewrite<Ipv6Addr>,
    mtus: Mtus,
) -> Result<Vec<u8>, Reason> {
    let [kind, code, ..] = array_at::<8>(error, 0)?;
    let total = u16::try_from(inner.end).unwrap_or(u16::MAX);
    let mut header = header(kind, code, u32_at(error, 4)?, total, mtus)?;
    let (quoted, extensions) = extensions::split(tail(error, 8)?, quoted_len(error)?);
    let mut buf = vec![0; HEADROOM + quoted.len()];
    put(&mut buf, HEADROOM, quoted)?;
    let end = buf.len();
    let mut packet = PacketBuf::new(&mut buf, HEADROOM, end).ok_or(Reason::Truncated)?;
    packet.truncate(inner.end);
    header_4to6::translate(&mut packet, inner, inner_to, &mut Offload::default())?;
    // Of ICMPv6's errors only these two have a length field (RFC 4884 4).
    let extensions = extensions.filter(|_| matches!(header.kind, 1 | 3));
    let (body, length) = extensions::join(packet.bytes(), extensions, MAX_ERROR - Ipv6::LEN - 8, 8);
    header.rest |= u32::from(length) << 24;
    build(header, outer.tos, outer_to, &body)
}

/// How long the quoted packet is by the error's length field, in bytes; 0 if there is none (RFC 4884 4).
fn quoted_len(error: &[u8]) -> Result<usize, Reason> {
    let [kind, code, _, _, _, length, ..] = array_at::<8>(error, 0)?;
    let has_length = matches!(kind, 3 | 11 | 12) && !(kind == 12 && code == 1);
    Ok(if has_length { usize::from(length) * 4 } else { 0 })
}

/// An ICMPv6 error with its IPv6 header.
pub(crate) fn build(
    header: Header,
    traffic_class: u8,
    to: &Rewrite<Ipv6Addr>,
    quoted: &[u8],
) -> Result<Vec<u8>, Reason> {
    let length = 8 + quoted.len();
    let payload = u16::try_from(length).map_err(|_| Reason::Malformed)?;
    let mut out = vec![0; Ipv6::LEN + length];
    let first = header_4to6::ipv6_header(traffic_class, payload, number::ICMPV6, to.hops, to.source, to.destination);
    put(&mut out, 0, &first)?;
    put(&mut out, Ipv6::LEN, &[header.kind, header.code])?;
    put(&mut out, Ipv6::LEN + 4, &header.rest.to_be_bytes())?;
    put(&mut out, Ipv6::LEN + 8, quoted)?;
    let pseudo = checksum::pseudo_v6(to.source, to.destination, number::ICMPV6, length);
    let sum = !checksum::fold(pseudo + checksum::sum(tail(&out, Ipv6::LEN)?));
    put_u16(&mut out, Ipv6::LEN + 2, sum)?;
    Ok(out)
}
