//! What the kernel leaves undone in a packet: the meaning of a vnet_hdr, without its encoding.
use crate::{Reason, bytes::*, checksum, packet::PacketBuf};

/// A checksum that still lacks all but the pseudo-header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// Where summing starts, from the packet's first byte.
    pub start: u16,
    /// Where the field is, from `start`.
    pub offset: u16,
}

/// Which protocol a super-packet is to be cut by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either.
    Udp,
}

/// A super-packet's segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// By which protocol.
    pub kind: GsoKind,
    /// Payload bytes of each but the last.
    pub size: u16,
    /// CWR belongs to the first segment alone.
    pub ecn: bool,
}

/// All that is left undone in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// A partial checksum.
    pub partial: Option<Partial>,
    /// A super-packet.
    pub gso: Option<Gso>,
}

impl Offload {
    /// Finishes a checksum that is not the transport header's own (one inside a tunnel, or ICMP's), as the kernel would.
    pub(crate) fn finish_checksum(&mut self, packet: &mut PacketBuf<'_>) -> Result<(), Reason> {
        let Some(partial) = self.partial.take() else { return Ok(()) };
        let start = usize::from(partial.start);
        let at = start + usize::from(partial.offset);
        let covered = packet.bytes().get(start..).ok_or(Reason::BadOffload)?;
        let value = match checksum::checksum(covered) {
            0 => 0xffff,
            value => value,
        };
        put_u16(packet.bytes_mut(), at, value).map_err(|_| Reason::BadOffload)
    }
}
