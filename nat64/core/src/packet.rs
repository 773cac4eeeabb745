//! Packets: a buffer with room in front, and views of headers that were checked once when they were parsed.
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{Reason, bytes::*, checksum};

/// Room that a buffer should have in front of a packet, so that its header can grow in place.
pub const HEADROOM: usize = 64;
/// How many extension headers are walked (RFC 7045 leaves the bound to the node).
const MAX_EXTENSION_HEADERS: usize = 8;

/// A packet inside a larger buffer, whose front can move.
#[derive(Debug)]
pub struct PacketBuf<'a> {
    buf: &'a mut [u8],
    start: usize,
    end: usize,
}

impl<'a> PacketBuf<'a> {
    /// The packet at `start..end` of a buffer; `None` if that is no range of it.
    #[must_use]
    pub fn new(buf: &'a mut [u8], start: usize, end: usize) -> Option<Self> {
        (start <= end && end <= buf.len()).then_some(Self { buf, start, end })
    }

    /// Where the packet is in its buffer now.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<usize> {
        self.start..self.end
    }

    /// The packet.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    /// The packet, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buf.get_mut(self.start..self.end).unwrap_or_default()
    }

    /// Cuts off what lies past `len`.
    pub fn truncate(&mut self, len: usize) {
        self.end = self.end.min(self.start + len);
    }

    /// Moves the front so that `old` bytes of header become `new` bytes (of any content).
    pub(crate) fn resize_header(&mut self, old: usize, new: usize) -> Result<(), Reason> {
        let start = (self.start + old).checked_sub(new).ok_or(Reason::Truncated)?;
        if start > self.end {
            return Err(Reason::Truncated);
        }
        self.start = start;
        Ok(())
    }

    /// Puts another packet in place of this one.
    pub(crate) fn replace(&mut self, packet: &[u8]) -> Result<(), Reason> {
        let start = if HEADROOM + packet.len() <= self.buf.len() { HEADROOM } else { 0 };
        self.buf.get_mut(start..start + packet.len()).ok_or(Reason::Truncated)?.copy_from_slice(packet);
        (self.start, self.end) = (start, start + packet.len());
        Ok(())
    }
}

/// A transport protocol: those that RFC 6146 translates, and the rest, which RFC 7915 passes as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// Another, by its number, which both families share.
    Other(u8),
}

/// Protocol numbers (IANA).
pub mod number {
    #![allow(missing_docs)]
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
}

impl Protocol {
    fn from_v6(protocol: u8) -> Result<Self, Reason> {
        match protocol {
            number::TCP => Ok(Self::Tcp),
            number::UDP => Ok(Self::Udp),
            number::ICMPV6 => Ok(Self::Icmp),
            // Copied, it would become ICMP.
            number::ICMP => Err(Reason::UnsupportedProtocol),
            other => Ok(Self::Other(other)),
        }
    }

    fn from_v4(protocol: u8) -> Result<Self, Reason> {
        match protocol {
            number::TCP => Ok(Self::Tcp),
            number::UDP => Ok(Self::Udp),
            number::ICMP => Ok(Self::Icmp),
            // Copied, they would become IPv6's own headers.
            number::HOP_BY_HOP | number::ROUTING | number::FRAGMENT | number::DESTINATION_OPTIONS | number::ICMPV6 => {
                Err(Reason::UnsupportedProtocol)
            }
            other => Ok(Self::Other(other)),
        }
    }

    /// Its number in an IPv4 header.
    #[must_use]
    pub fn v4(self) -> u8 {
        match self {
            Self::Tcp => number::TCP,
            Self::Udp => number::UDP,
            Self::Icmp => number::ICMP,
            Self::Other(other) => other,
        }
    }

    /// Its number in an IPv6 header.
    #[must_use]
    pub fn v6(self) -> u8 {
        match self {
            Self::Tcp => number::TCP,
            Self::Udp => number::UDP,
            Self::Icmp => number::ICMPV6,
            Self::Other(other) => other,
        }
    }
}

/// A fragment's place in its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// In units of 8 bytes.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
    /// Which packet (16 bits in IPv4).
    pub id: u32,
}

impl Fragment {
    /// Whether it is a piece, not a whole packet with a needless header (RFC 6946).
    #[must_use]
    pub fn is_piece(&self) -> bool {
        self.more || self.offset != 0
    }
}

/// A checked IPv6 header with its extension headers.
///
/// ```text
///  0       4              12                  16                      24              32
/// |Version|Traffic Class |               Flow Label                                   |
/// |        Payload Length                     |   Next Header (6)     | Hop Limit (7) |
/// |        Source (8..24), Destination (24..40)                                       |
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6 {
    /// Source.
    pub source: Ipv6Addr,
    /// Destination.
    pub destination: Ipv6Addr,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// What follows the last extension header.
    pub protocol: Protocol,
    /// The Fragment header.
    pub fragment: Option<Fragment>,
    /// Where the transport header (or a later fragment's piece) starts.
    pub transport: usize,
    /// Where the packet ends by its own account; past the bytes in a quoted packet that was cut.
    pub end: usize,
    /// Where a Routing header with segments left says how many.
    pub segments_left: Option<usize>,
}

impl Ipv6 {
    /// Length of the fixed header.
    pub const LEN: usize = 40;

    /// Checks a whole packet.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reason> {
        let header = Self::parse_quoted(bytes)?;
        if header.end > bytes.len() { Err(Reason::Truncated) } else { Ok(header) }
    }

    /// Checks a packet of which an ICMP error quotes the beginning: its end may be missing, its headers not.
    pub fn parse_quoted(bytes: &[u8]) -> Result<Self, Reason> {
        let first = u16_at(bytes, 0)?;
        if first >> 12 != 6 {
            return Err(Reason::Malformed);
        }
        let end = Self::LEN + usize::from(u16_at(bytes, 4)?);
        let mut next = u8_at(bytes, 6)?;
        let (mut at, mut fragment, mut segments_left) = (Self::LEN, None, None);
        let mut walked = 0;
        while matches!(next, number::HOP_BY_HOP | number::ROUTING | number::FRAGMENT | number::DESTINATION_OPTIONS) {
            walked += 1;
            if walked > MAX_EXTENSION_HEADERS {
                return Err(Reason::ExtensionHeaders);
            }
            let [following, length, ..] = array_at::<8>(bytes, at)?;
            match next {
                number::FRAGMENT if fragment.is_some() => return Err(Reason::Malformed),
                number::FRAGMENT => {
                    let field = u16_at(bytes, at + 2)?;
                    fragment = Some(Fragment { offset: field >> 3, more: field & 1 != 0, id: u32_at(bytes, at + 4)? });
                }
                number::ROUTING if u8_at(bytes, at + 3)? != 0 => segments_left = Some(at + 3),
                _ => {}
            }
            at += if next == number::FRAGMENT { 8 } else { 8 + usize::from(length) * 8 };
            next = following;
            // What follows in a later fragment is payload, whatever it looks like.
            if fragment.is_some_and(|fragment| fragment.offset != 0) {
                break;
            }
        }
        if at > end {
            return Err(Reason::Truncated);
        }
        Ok(Self {
            source: array_at::<16>(bytes, 8)?.into(),
            destination: array_at::<16>(bytes, 24)?.into(),
            traffic_class: (first >> 4) as u8,
            hop_limit: u8_at(bytes, 7)?,
            protocol: Protocol::from_v6(next)?,
            fragment,
            transport: at,
            end,
            segments_left,
        })
    }
}

/// A checked IPv4 header with its options.
///
/// ```text
///  0       4       8              16                            31
/// |Version|  IHL  |     TOS (1)  |        Total Length (2)      |
/// |       Identification (4)     |Flags|   Fragment Offset (6)  |
/// | TTL (8)       | Protocol (9) |        Header Checksum (10)  |
/// | Source (12..16), Destination (16..20), options              |
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4 {
    /// Source.
    pub source: Ipv4Addr,
    /// Destination.
    pub destination: Ipv4Addr,
    /// DSCP and ECN.
    pub tos: u8,
    /// Hops left.
    pub ttl: u8,
    /// What follows.
    pub protocol: Protocol,
    /// Don't Fragment.
    pub dont_fragment: bool,
    /// The fragmentation fields; a piece if [`Fragment::is_piece`].
    pub fragment: Fragment,
    /// Where the transport header (or a later fragment's piece) starts.
    pub transport: usize,
    /// Where the packet ends by its own account; past the bytes in a quoted packet that was cut.
    pub end: usize,
    /// Whether an option routes it on from here (RFC 791: loose or strict source route, pointer within its length).
    pub source_route: bool,
}

impl Ipv4 {
    /// Length of a header without options.
    pub const LEN: usize = 20;

    /// Checks a whole packet.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reason> {
        let header = Self::parse_quoted(bytes)?;
        if header.end > bytes.len() {
            return Err(Reason::Truncated);
        }
        let covered = bytes.get(..header.transport).ok_or(Reason::Truncated)?;
        if checksum::checksum(covered) != 0 { Err(Reason::BadHeaderChecksum) } else { Ok(header) }
    }

    /// Checks a packet of which an ICMP error quotes the beginning: its end may be missing, its header not. Its
    /// checksum may be wrong, as routers change TTL before they quote.
    pub fn parse_quoted(bytes: &[u8]) -> Result<Self, Reason> {
        let first = u8_at(bytes, 0)?;
        if first >> 4 != 4 {
            return Err(Reason::Malformed);
        }
        let transport = usize::from(first & 15) * 4;
        let end = usize::from(u16_at(bytes, 2)?);
        let field = u16_at(bytes, 6)?;
        if transport < Self::LEN || transport > end {
            return Err(Reason::Malformed);
        }
        let options = bytes.get(Self::LEN..transport).ok_or(Reason::Truncated)?;
        Ok(Self {
            source: array_at::<4>(bytes, 12)?.into(),
            destination: array_at::<4>(bytes, 16)?.into(),
            tos: u8_at(bytes, 1)?,
            ttl: u8_at(bytes, 8)?,
            protocol: Protocol::from_v4(u8_at(bytes, 9)?)?,
            dont_fragment: field & 0x4000 != 0,
            fragment: Fragment { offset: field & 0x1fff, more: field & 0x2000 != 0, id: u16_at(bytes, 4)?.into() },
            transport,
            end,
            source_route: source_route(options),
        })
    }
}

/// Whether options hold a source route that is not used up.
fn source_route(mut options: &[u8]) -> bool {
    while let Some(kind) = options.first() {
        let len = match (kind, options.get(1)) {
            (0, _) => return false,
            (1, _) => 1,
            (131 | 137, Some(len)) => return options.get(2).is_some_and(|pointer| pointer <= len),
            (_, Some(len)) => usize::from(*len).max(2),
            (_, None) => return false,
        };
        options = options.get(len..).unwrap_or_default();
    }
    false
}

/// TCP's flags that matter to a translator.
pub mod tcp_flag {
    #![allow(missing_docs)]
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const CWR: u8 = 128;
}

/// A checked transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// The flags.
        flags: u8,
        /// Length of the header with its options.
        header: usize,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// An echo request or reply.
    Echo {
        /// Whether it is the request.
        request: bool,
        /// Which pinger.
        identifier: u16,
    },
    /// An ICMP error; what it quotes starts 8 bytes in.
    IcmpError {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
}

impl Transport {
    /// Checks the header at the beginning of a packet's payload. `v6` tells ICMPv6 from ICMP.
    pub fn parse(payload: &[u8], protocol: Protocol, v6: bool) -> Result<Self, Reason> {
        match protocol {
            Protocol::Tcp => {
                let header = usize::from(u8_at(payload, 12)? >> 4) * 4;
                if header < 20 {
                    return Err(Reason::Malformed);
                }
                if header > payload.len() {
                    return Err(Reason::Truncated);
                }
                let (source, destination) = ports(payload)?;
                Ok(Self::Tcp { source, destination, flags: u8_at(payload, 13)?, header })
            }
            Protocol::Udp => {
                array_at::<8>(payload, 0)?;
                let (source, destination) = ports(payload)?;
                Ok(Self::Udp { source, destination })
            }
            Protocol::Icmp => {
                let [kind, code, _, _, id @ .., _, _] = array_at::<8>(payload, 0)?;
                let identifier = u16::from_be_bytes(id);
                match (v6, kind) {
                    (true, 128) | (false, 8) => Ok(Self::Echo { request: true, identifier }),
                    (true, 129) | (false, 0) => Ok(Self::Echo { request: false, identifier }),
                    (true, 1..=4) | (false, 3 | 11 | 12) => Ok(Self::IcmpError { kind, code }),
                    _ => Err(Reason::IcmpType),
                }
            }
            Protocol::Other(_) => Err(Reason::UnsupportedProtocol),
        }
    }

    /// The length of its header: of TCP with its options, else 8.
    #[must_use]
    pub fn header_len(&self) -> usize {
        if let Self::Tcp { header, .. } = self { *header } else { 8 }
    }

    /// The ports, or an echo's identifier as both, at the beginning of a quoted packet's payload: 8 bytes suffice.
    pub fn quoted_ports(payload: &[u8], protocol: Protocol, v6: bool) -> Result<(u16, u16), Reason> {
        match protocol {
            Protocol::Tcp | Protocol::Udp => ports(payload),
            Protocol::Icmp => match Self::parse(payload, protocol, v6)? {
                Self::Echo { identifier, .. } => Ok((identifier, identifier)),
                _ => Err(Reason::IcmpUnrelated),
            },
            Protocol::Other(_) => Err(Reason::UnsupportedProtocol),
        }
    }
}

fn ports(payload: &[u8]) -> Result<(u16, u16), Reason> {
    Ok((u16_at(payload, 0)?, u16_at(payload, 2)?))
}
