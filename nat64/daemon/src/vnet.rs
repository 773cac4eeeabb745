//! Between the kernel's vnet_hdr and what the engine knows of it.
use weft_nat64_core::{Gso, GsoKind, Offload, Partial};
use weft_tun::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHdr};

/// What a header leaves undone; `None` for a kind of super-packet that was not asked for.
pub(crate) fn offload(header: &VnetHdr) -> Option<Offload> {
    let kind = match header.gso_kind() {
        GSO_NONE => None,
        GSO_TCPV4 => Some(GsoKind::TcpV4),
        GSO_TCPV6 => Some(GsoKind::TcpV6),
        GSO_UDP_L4 => Some(GsoKind::Udp),
        _ => return None,
    };
    let partial = header.needs_csum().then_some(Partial { start: header.csum_start, offset: header.csum_offset });
    let gso = kind.map(|kind| Gso { kind, size: header.gso_size, ecn: header.gso_type & GSO_ECN != 0 });
    Some(Offload { partial, gso })
}

/// The header for what is left undone.
pub(crate) fn header(offload: &Offload) -> VnetHdr {
    let mut header = VnetHdr::default();
    if let Some(partial) = offload.partial {
        header.flags = NEEDS_CSUM;
        header.csum_start = partial.start;
        header.csum_offset = partial.offset;
        // A hint of how much to keep in one piece; the kernel corrects it upwards.
        header.hdr_len = partial.start.saturating_add(partial.offset).saturating_add(2);
    }
    if let Some(gso) = offload.gso {
        let ecn = if gso.ecn { GSO_ECN } else { 0 };
        header.gso_type = match gso.kind {
            GsoKind::TcpV4 => GSO_TCPV4 | ecn,
            GsoKind::TcpV6 => GSO_TCPV6 | ecn,
            GsoKind::Udp => GSO_UDP_L4,
        };
        header.gso_size = gso.size;
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_undone_survives_the_way_through_a_header() {
        for (kind, ecn) in [(GsoKind::TcpV4, true), (GsoKind::TcpV6, false), (GsoKind::Udp, false)] {
            let before =
                Offload { partial: Some(Partial { start: 40, offset: 16 }), gso: Some(Gso { kind, size: 1360, ecn }) };
            assert_eq!(offload(&header(&before)), Some(before));
        }
        assert_eq!(offload(&header(&Offload::default())), Some(Offload::default()));
        assert_eq!(offload(&VnetHdr { gso_type: 3, ..VnetHdr::default() }), None);
    }
}
