//! Whether a vnet_hdr fits its packet, and its one normal form: translation needs no other cases.
use crate::{
    GsoKind, Offload, PacketBuf, Partial, Reason,
    bytes::*,
    checksum,
    packet::{Ipv4, Ipv6, Protocol},
    rfc7915::transport::checksum_offset,
};

/// What of a header the offload depends on.
pub(super) struct Shape {
    pub(super) transport: usize,
    pub(super) protocol: Protocol,
    piece: bool,
    v6: bool,
    /// The pseudo-header's sum.
    pseudo: u64,
}

impl Shape {
    pub(super) fn six(ip: &Ipv6) -> Self {
        let length = ip.end.saturating_sub(ip.transport);
        Self {
            transport: ip.transport,
            protocol: ip.protocol,
            piece: ip.fragment.is_some_and(|fragment| fragment.is_piece()),
            v6: true,
            pseudo: checksum::pseudo_v6(ip.source, ip.destination, ip.protocol.v6(), length),
        }
    }

    pub(super) fn four(ip: &Ipv4) -> Self {
        let length = ip.end.saturating_sub(ip.transport);
        Self {
            transport: ip.transport,
            protocol: ip.protocol,
            piece: ip.fragment.is_piece(),
            v6: false,
            pseudo: checksum::pseudo_v4(ip.source, ip.destination, ip.protocol.v4(), length),
        }
    }
}

/// Afterwards a partial checksum is the transport header's own, of TCP or UDP, and a super-packet has one.
pub(super) fn normalise(offload: &mut Offload, packet: &mut PacketBuf<'_>, shape: &Shape) -> Result<(), Reason> {
    let field = checksum_offset(shape.protocol);
    if let Some(partial) = offload.partial {
        if usize::from(partial.start) < shape.transport || shape.piece {
            return Err(Reason::BadOffload);
        }
        // One inside a tunnel's payload, or ICMP's, which has a pseudo-header on one side only.
        let own = usize::from(partial.start) == shape.transport && Some(usize::from(partial.offset)) == field;
        if !own || shape.protocol == Protocol::Icmp {
            offload.finish_checksum(packet)?;
        }
    }
    let Some(gso) = offload.gso else { return Ok(()) };
    let field = field.ok_or(Reason::BadOffload)?;
    let fits = match gso.kind {
        GsoKind::TcpV4 => shape.protocol == Protocol::Tcp && !shape.v6,
        GsoKind::TcpV6 => shape.protocol == Protocol::Tcp && shape.v6,
        GsoKind::Udp => shape.protocol == Protocol::Udp,
    };
    if !fits || shape.piece || gso.size == 0 {
        return Err(Reason::BadOffload);
    }
    if offload.partial.is_none() {
        put_u16(packet.bytes_mut(), shape.transport + field, checksum::fold(shape.pseudo))?;
        let start = u16::try_from(shape.transport).map_err(|_| Reason::BadOffload)?;
        offload.partial = Some(Partial { start, offset: field as u16 });
    }
    Ok(())
}

/// Finishes the transport's own partial checksum, for a packet that is to be cut without the kernel.
pub(super) fn finish(offload: &mut Offload, packet: &mut [u8]) -> Result<(), Reason> {
    let Some(partial) = offload.partial.take() else { return Ok(()) };
    let start = usize::from(partial.start);
    let value = match checksum::checksum(tail(packet, start)?) {
        0 => 0xffff,
        value => value,
    };
    put_u16(packet, start + usize::from(partial.offset), value)
}
