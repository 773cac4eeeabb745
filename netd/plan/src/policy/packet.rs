//! A packet as the judgement sees it: parsed with every bound checked, as bpf/packet.h does.
use std::net::Ipv6Addr;

use super::Reason;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV4: u8 = 1;
pub(super) const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// How many extension headers are walked.
const EXTENSION_HEADERS: usize = 6;

/// Whether a packet is whole, a first fragment or a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    First,
    Later,
}

/// An IPv6 packet. Ports as in a flow's key: an echo has its identifier at the asking side and 0 at the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) src: Ipv6Addr,
    pub(super) dst: Ipv6Addr,
    pub(super) hop_limit: u8,
    pub(super) protocol: u8,
    /// Where the upper layer begins.
    pub(super) l4: usize,
    pub(super) part: Part,
    pub(super) fragment_id: [u8; 4],
    pub(super) extended: bool,
    pub(super) sport: u16,
    pub(super) dport: u16,
    pub(super) icmp_type: u8,
}

pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

pub(super) fn port(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

pub(super) fn address(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    array::<16>(bytes, at).map(Ipv6Addr::from)
}

impl Packet {
    /// Parses from the IPv6 header at an offset.
    pub(super) fn parse(bytes: &[u8], at: usize) -> Result<Self, Reason> {
        let header: [u8; 40] = array(bytes, at).ok_or(Reason::Truncated)?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        if header[0] >> 4 != 6 || at + 40 + length > bytes.len() {
            return Err(Reason::Truncated);
        }
        let mut packet = Self {
            src: address(&header, 8).ok_or(Reason::Truncated)?,
            dst: address(&header, 24).ok_or(Reason::Truncated)?,
            hop_limit: header[7],
            protocol: header[6],
            l4: at + 40,
            part: Part::Whole,
            fragment_id: [0; 4],
            extended: false,
            sport: 0,
            dport: 0,
            icmp_type: 0,
        };
        packet.walk(bytes)?;
        if packet.part != Part::Later {
            packet.upper(bytes)?;
        }
        Ok(packet)
    }

    /// Walks the extension headers.
    fn walk(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        for _ in 0..EXTENSION_HEADERS {
            if !matches!(self.protocol, HOP_BY_HOP | DESTINATION | FRAGMENT) {
                break;
            }
            self.extended = true;
            let header: [u8; 8] = array(bytes, self.l4).ok_or(Reason::Truncated)?;
            if self.protocol != FRAGMENT {
                self.protocol = header[0];
                self.l4 += 8 + usize::from(header[1]) * 8;
                continue;
            }
            if self.part != Part::Whole {
                return Err(Reason::ExtensionHeader);
            }
            let offset = u16::from_be_bytes([header[2], header[3]]) & 0xfff8;
            self.fragment_id = [header[4], header[5], header[6], header[7]];
            self.protocol = header[0];
            self.l4 += 8;
            self.part = if offset == 0 { Part::First } else { Part::Later };
            if self.part == Part::Later {
                return Ok(());
            }
        }
        let more = matches!(self.protocol, HOP_BY_HOP | DESTINATION | FRAGMENT | ROUTING);
        if more { Err(Reason::ExtensionHeader) } else { Ok(()) }
    }

    /// Reads ports, or type and identifier.
    fn upper(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        let short = if self.part == Part::Whole { Reason::Truncated } else { Reason::Fragment };
        match self.protocol {
            TCP => {
                let header: [u8; 14] = array(bytes, self.l4).ok_or(short)?;
                let length = usize::from(header[12] >> 4) * 4;
                if length < 20 || self.l4 + length > bytes.len() {
                    return Err(short);
                }
                (self.sport, self.dport) = ports(&header);
            }
            UDP => {
                let header: [u8; 8] = array(bytes, self.l4).ok_or(short)?;
                (self.sport, self.dport) = ports(&header);
            }
            ICMPV6 => {
                let header: [u8; 8] = array(bytes, self.l4).ok_or(short)?;
                self.icmp_type = header[0];
                let identifier = u16::from_be_bytes([header[4], header[5]]);
                match header[0] {
                    128 => self.sport = identifier,
                    129 => self.dport = identifier,
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn is_icmp_error(&self) -> bool {
        self.protocol == ICMPV6 && self.icmp_type < 128
    }
}

fn ports(header: &[u8]) -> (u16, u16) {
    (port(header, 0).unwrap_or(0), port(header, 2).unwrap_or(0))
}
