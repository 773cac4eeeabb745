//! Transport headers under a new pseudo-header (RFC 7915 4.5 and 5.5): ports and checksums, kept right incrementally.
use super::Port;
use crate::{
    Reason,
    bytes::*,
    checksum::{self, Delta},
    packet::{Protocol, tcp_flag},
};

/// Where UDP's checksum is.
pub(crate) const UDP_CHECKSUM: usize = 6;

/// Where a transport's checksum field is, if it is one whose checksum is kept right.
#[must_use]
pub fn checksum_offset(protocol: Protocol) -> Option<usize> {
    match protocol {
        Protocol::Tcp => Some(16),
        Protocol::Udp => Some(UDP_CHECKSUM),
        Protocol::Icmp => Some(2),
        Protocol::Other(_) => None,
    }
}

/// Rewrites TCP or UDP for a pseudo-header that changes by `pseudo`. A zero UDP checksum stays zero.
pub(crate) fn rewrite_ports(
    payload: &mut [u8],
    protocol: Protocol,
    pseudo: Delta,
    port: Port,
    partial: bool,
    quoted: bool,
) -> Result<(), Reason> {
    let mut delta = pseudo;
    let change = match port {
        Port::Keep => None,
        Port::Source(new) => Some((0, new)),
        Port::Destination(new) => Some((2, new)),
    };
    if let Some((at, new)) = change {
        let old = u16_at(payload, at)?;
        put_u16(payload, at, new)?;
        delta = delta.replace(old.into(), new.into());
    }
    let Some(field) = checksum_offset(protocol) else { return Ok(()) };
    let Ok(value) = u16_at(payload, field) else {
        return if quoted { Ok(()) } else { Err(Reason::Truncated) };
    };
    let value = match (partial, protocol, value) {
        (true, ..) => pseudo.apply_partial(value),
        (false, Protocol::Udp, 0) => 0,
        (false, Protocol::Udp, _) => match delta.apply(value) {
            0 => 0xffff,
            value => value,
        },
        (false, ..) => delta.apply(value),
    };
    put_u16(payload, field, value)
}

/// Computes the checksum that UDP over IPv6 must have (RFC 7915 4.5), for a whole datagram.
pub(crate) fn fill_udp_checksum(payload: &mut [u8], pseudo_addresses: u64) -> Result<(), Reason> {
    let length = usize::from(u16_at(payload, 4)?);
    if length < 8 {
        return Err(Reason::Malformed);
    }
    let covered = payload.get(..length).ok_or(Reason::Truncated)?;
    let pseudo = pseudo_addresses + u64::from(Protocol::Udp.v6()) + length as u64;
    let value = match !checksum::fold(pseudo + checksum::sum(covered)) {
        0 => 0xffff,
        value => value,
    };
    put_u16(payload, 6, value)
}

/// Rewrites an echo: its type, its identifier, and the pseudo-header that only ICMPv6 has.
/// Of a quoted one, whatever is there.
pub(crate) fn rewrite_echo(
    payload: &mut [u8],
    kind: u8,
    pseudo: (u64, u64),
    port: Port,
    quoted: bool,
) -> Result<(), Reason> {
    if quoted && payload.len() < 8 {
        let Ok([old, code, high, low]) = array_at::<4>(payload, 0) else { return put(payload, 0, &[kind]) };
        let word = |kind: u8| u64::from(u16::from_be_bytes([kind, code]));
        let delta = Delta::default().replace(pseudo.0, pseudo.1).replace(word(old), word(kind));
        put(payload, 0, &[kind])?;
        return put_u16(payload, 2, delta.apply(u16::from_be_bytes([high, low])));
    }
    let [old_kind, code, high, low, ..] = array_at::<8>(payload, 0)?;
    let old_id = u16_at(payload, 4)?;
    let new_id = match port {
        Port::Keep => old_id,
        Port::Source(id) | Port::Destination(id) => id,
    };
    let word = |kind: u8| u64::from(u16::from_be_bytes([kind, code]));
    let delta = Delta::default()
        .replace(pseudo.0, pseudo.1)
        .replace(word(old_kind), word(kind))
        .replace(old_id.into(), new_id.into());
    put(payload, 0, &[kind])?;
    put_u16(payload, 4, new_id)?;
    put_u16(payload, 2, delta.apply(u16::from_be_bytes([high, low])))
}

/// Lowers the MSS that a SYN announces, so that segments fit without anyone being told (RFC 4459 3.2, RFC 6691).
pub(crate) fn clamp_mss(segment: &mut [u8], flags: u8, header: usize, most: u16, partial: bool) -> Result<(), Reason> {
    if flags & tcp_flag::SYN == 0 {
        return Ok(());
    }
    let mut at = 20;
    while at + 1 < header {
        let (kind, len) = (u8_at(segment, at)?, usize::from(u8_at(segment, at + 1)?));
        match kind {
            0 => break,
            1 => at += 1,
            2 if len == 4 && at + 4 <= header => {
                let old = u16_at(segment, at + 2)?;
                if old > most {
                    // The option may start at an odd offset: sum the words that it touches.
                    let words = at & !1..(at + 4).next_multiple_of(2);
                    let sum = |segment: &[u8]| checksum::sum(segment.get(words.clone()).unwrap_or_default());
                    let before = sum(segment);
                    put_u16(segment, at + 2, most)?;
                    let delta = Delta::default().replace(before, sum(segment));
                    if !partial {
                        let value = u16_at(segment, 16)?;
                        put_u16(segment, 16, delta.apply(value))?;
                    }
                }
                break;
            }
            _ => at += len.max(2),
        }
    }
    Ok(())
}
