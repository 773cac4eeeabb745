//! The headers of inner packets as far as a tunnel needs them, and the Internet checksum (RFC 1071). Pure.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(crate) const UDP: u8 = 17;
/// Length of an IPv6 header without extensions.
pub(crate) const IPV6_HEADER: usize = 40;
/// Length of an IPv4 header without options.
pub(crate) const IPV4_HEADER: usize = 20;

/// A 16-bit number in network order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_be_bytes(*chunk))
}

/// A 32-bit number in network order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_be_bytes(*chunk))
}

/// Writes a 16-bit number in network order; nothing if it does not fit.
pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(chunk) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *chunk = value.to_be_bytes();
    }
}

/// Writes a 32-bit number in network order; nothing if it does not fit.
pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(chunk) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *chunk = value.to_be_bytes();
    }
}

fn v6_at(packet: &[u8], at: usize) -> Option<IpAddr> {
    packet.get(at..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into())
}

fn v4_at(packet: &[u8], at: usize) -> Option<IpAddr> {
    packet.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into())
}

/// 4 or 6, if that is what the packet's first four bits say.
pub(crate) fn version(packet: &[u8]) -> Option<u8> {
    packet.first().map(|byte| byte >> 4).filter(|version| matches!(version, 4 | 6))
}

/// Where a packet is going.
pub(crate) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match version(packet)? {
        4 => v4_at(packet, 16),
        _ => v6_at(packet, 24),
    }
}

/// The sum of 16-bit words in network order, with end-around carry, not complemented. An odd last byte counts as high.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    // Words of 32 bits in the machine's own order, in lanes that do not wait for each other: RFC 1071 2(B) and 2(C).
    let mut lanes = [0u64; 8];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let (pairs, odd) = rest.as_chunks::<2>();
    total += pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum::<u64>();
    if let [last] = odd {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    fold(total).to_be()
}

/// Adds the carries back in.
pub(crate) fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}

/// Ones-complement addition.
pub(crate) fn add(a: u16, b: u16) -> u16 {
    fold(u64::from(a) + u64::from(b))
}

/// The sum of an IPv4 or IPv6 pseudo-header (RFC 9293 3.1, RFC 8200 8.1). `None` if the packet is too short.
pub(crate) fn pseudo(packet: &[u8], protocol: u8, l4_len: usize) -> Option<u16> {
    let addresses = match version(packet)? {
        4 => packet.get(12..20)?,
        _ => packet.get(8..40)?,
    };
    Some(add(sum(addresses), fold(u64::from(protocol) + l4_len as u64)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An IPv6 or IPv4 packet with a right checksum: `flags` are TCP's.
    pub(crate) struct Made {
        pub(crate) v6: bool,
        pub(crate) tcp: bool,
        pub(crate) port: u16,
        pub(crate) seq: u32,
        pub(crate) flags: u8,
    }

    impl Made {
        pub(crate) fn packet(&self, payload: &[u8]) -> Vec<u8> {
            let l4 = if self.tcp { 20 } else { 8 };
            let ip = if self.v6 { IPV6_HEADER } else { IPV4_HEADER };
            let mut packet = vec![0u8; ip + l4];
            packet.extend_from_slice(payload);
            let protocol = if self.tcp { TCP } else { UDP };
            if self.v6 {
                packet[0] = 0x60;
                put_u16(&mut packet, 4, (l4 + payload.len()) as u16);
                packet[6] = protocol;
                packet[7] = 64;
                packet[8] = 0xfd;
                packet[23] = 1;
                packet[24] = 0xfd;
                packet[39] = 2;
            } else {
                let total = packet.len() as u16;
                packet[0] = 0x45;
                put_u16(&mut packet, 2, total);
                packet[6] = 0x40;
                packet[8] = 64;
                packet[9] = protocol;
                packet[12..16].copy_from_slice(&[192, 0, 2, 1]);
                packet[16..20].copy_from_slice(&[192, 0, 2, 2]);
                let header = !sum(&packet[..20]);
                put_u16(&mut packet, 10, header);
            }
            put_u16(&mut packet, ip, self.port);
            put_u16(&mut packet, ip + 2, 443);
            let field = if self.tcp {
                put_u32(&mut packet, ip + 4, self.seq);
                packet[ip + 12] = 0x50;
                packet[ip + 13] = self.flags;
                put_u16(&mut packet, ip + 14, 1000);
                ip + 16
            } else {
                put_u16(&mut packet, ip + 4, (8 + payload.len()) as u16);
                ip + 6
            };
            let check = !add(pseudo(&packet, protocol, l4 + payload.len()).unwrap(), sum(&packet[ip..]));
            put_u16(&mut packet, field, if check == 0 && !self.tcp { 0xffff } else { check });
            packet
        }
    }

    /// Whether the L4 checksum (and IPv4's header checksum) of a packet is right.
    pub(crate) fn checks(packet: &[u8]) -> bool {
        let (ip, protocol) = if packet[0] >> 4 == 6 { (40, packet[6]) } else { (20, packet[9]) };
        let header_right = ip == 40 || sum(&packet[..20]) == 0xffff;
        header_right && add(pseudo(packet, protocol, packet.len() - ip).unwrap(), sum(&packet[ip..])) == 0xffff
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_slow_one(bytes: Vec<u8>) {
            let slow = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum();
            prop_assert_eq!(sum(&bytes), fold(slow));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, at: usize) {
            let _ = (destination(&bytes), version(&bytes), pseudo(&bytes, TCP, bytes.len()), u16_at(&bytes, at), u32_at(&bytes, at));
        }
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }
}
