//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).
use std::net::{Ipv4Addr, Ipv6Addr};

/// The sum of a buffer's 16-bit words in network byte order, an odd last byte padded with zero; not folded.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    let mut total = 0u64;
    let mut chunks = bytes.chunks_exact(4);
    for chunk in &mut chunks {
        total += chunk.first_chunk().map_or(0, |word| u64::from(u32::from_be_bytes(*word)));
    }
    match *chunks.remainder() {
        [a] => total + u64::from(u16::from_be_bytes([a, 0])),
        [a, b] => total + u64::from(u16::from_be_bytes([a, b])),
        [a, b, c] => total + u64::from(u32::from_be_bytes([a, b, c, 0])),
        _ => total,
    }
}

/// Folds a sum to 16 bits, carries added back.
#[must_use]
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of a buffer: the complement of its folded sum.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// The sum of an IPv4 pseudo-header (RFC 9293 3.1).
#[must_use]
pub fn pseudo_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: usize) -> u64 {
    sum(&source.octets()) + sum(&destination.octets()) + u64::from(protocol) + length as u64
}

/// The sum of an IPv6 pseudo-header (RFC 8200 8.1).
#[must_use]
pub fn pseudo_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, length: usize) -> u64 {
    sum(&source.octets()) + sum(&destination.octets()) + u64::from(protocol) + length as u64
}

/// What changes under a checksum: collected first, then applied to the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delta(u64);

impl Delta {
    /// Takes away a sum that was covered, adds one that is covered now.
    #[must_use]
    pub fn replace(self, old: u64, new: u64) -> Self {
        Self(self.0 + u64::from(!fold(old)) + u64::from(fold(new)))
    }

    /// The new value of a finished checksum field.
    #[must_use]
    pub fn apply(self, checksum: u16) -> u16 {
        !fold(u64::from(!checksum) + self.0)
    }

    /// The new value of a partial one, which holds the pseudo-header's sum uncomplemented.
    #[must_use]
    pub fn apply_partial(self, field: u16) -> u16 {
        fold(u64::from(field) + self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as RFC 1071 says it.
    fn naive(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        !(total as u16)
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_naive_one(bytes: Vec<u8>) {
            prop_assert_eq!(checksum(&bytes), naive(&bytes));
        }

        #[test]
        fn an_update_equals_a_new_computation(mut bytes in proptest::collection::vec(1u8.., 8..64), word in 1u16..) {
            let before = checksum(&bytes);
            let old = u16::from_be_bytes([bytes[2], bytes[3]]);
            bytes[2..4].copy_from_slice(&word.to_be_bytes());
            prop_assert_eq!(Delta::default().replace(old.into(), word.into()).apply(before), checksum(&bytes));
        }
    }

    #[test]
    fn the_example_of_rfc_1071_3() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }
}
