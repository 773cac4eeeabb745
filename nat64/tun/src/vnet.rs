//! The ten bytes in front of every packet of a TUN with `IFF_VNET_HDR`: what is left to do about checksum and size.

/// `flags`: the L4 checksum field holds only the pseudo-header's sum; the rest is to be summed from `csum_start`.
pub const NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum was verified; nothing is to be done.
pub const DATA_VALID: u8 = 2;
/// `gso_type`: an ordinary packet.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4, to be cut into segments of `gso_size` bytes of payload.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: UDP over either, to be cut into datagrams of `gso_size` bytes of payload.
pub const GSO_UDP_L4: u8 = 5;
/// A bit beside a TCP `gso_type`: CWR belongs to the first segment alone (RFC 3168 6.1.2).
pub const GSO_ECN: u8 = 0x80;
/// Length of the encoded header.
pub const VNET_HDR_LEN: usize = 10;

/// `struct virtio_net_hdr`, in native byte order on the wire between kernel and process.
///
/// `hdr_len` is a hint that the kernel takes from whoever made the packet: it may be wrong, so parse the packet instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHdr {
    /// [`NEEDS_CSUM`] and [`DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` constants, [`GSO_ECN`] beside it; see [`VnetHdr::gso_kind`].
    pub gso_type: u8,
    /// Length of all headers of a super-packet, untrusted.
    pub hdr_len: u16,
    /// L4 payload bytes of a segment.
    pub gso_size: u16,
    /// Where the checksum starts, from the packet's first byte.
    pub csum_start: u16,
    /// Where the checksum field is, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHdr {
    /// Splits a read into its header and the packet; `None` if it is shorter than a header.
    #[must_use]
    pub fn parse(read: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, packet) = read.split_first_chunk::<VNET_HDR_LEN>()?;
        Some((Self::decode(bytes), packet))
    }

    /// Reads an encoded header.
    #[must_use]
    pub fn decode(bytes: &[u8; VNET_HDR_LEN]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *bytes;
        let word = |low, high| u16::from_ne_bytes([low, high]);
        Self {
            flags,
            gso_type,
            hdr_len: word(a, b),
            gso_size: word(c, d),
            csum_start: word(e, f),
            csum_offset: word(g, h),
        }
    }

    /// Writes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; VNET_HDR_LEN] {
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.csum_start.to_ne_bytes();
        let [g, h] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }

    /// `gso_type` without the ECN bit.
    #[must_use]
    pub fn gso_kind(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    /// Whether the checksum is partial.
    #[must_use]
    pub fn needs_csum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_survives_the_way_through_bytes(bytes: [u8; VNET_HDR_LEN]) {
            prop_assert_eq!(VnetHdr::decode(&bytes).encode(), bytes);
        }

        #[test]
        fn no_read_panics(read: Vec<u8>) {
            prop_assert_eq!(VnetHdr::parse(&read).is_some(), read.len() >= VNET_HDR_LEN);
        }
    }

    #[test]
    fn ecn_is_a_bit_beside_the_kind() {
        let header = VnetHdr { gso_type: GSO_TCPV6 | GSO_ECN, ..VnetHdr::default() };
        assert_eq!(header.gso_kind(), GSO_TCPV6);
    }
}
