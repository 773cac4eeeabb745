//! Explicit address mappings (RFC 7757): IPv4 prefixes and IPv6 prefixes that stand for each other.
use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// One mapping. What follows the IPv4 prefix in an address follows the IPv6 one in the other; an IPv6 suffix that is
/// longer ends in zeros (3.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eam {
    /// The IPv4 prefix.
    pub four: Ipv4Net,
    /// The IPv6 prefix: its suffix is at least as long.
    pub six: Ipv6Net,
}

/// Why mappings cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EamError {
    /// The IPv6 side has fewer addresses (3.2).
    #[error("{0} has more addresses than {1}: use an IPv6 prefix of /{2} or shorter")]
    Suffix(Ipv4Net, Ipv6Net, u8),
    /// Host bits are set.
    #[error("{0} has bits set below its length: write {1}")]
    HostBits(String, String),
    /// Two mappings of one prefix.
    #[error("{0} is mapped twice: remove one")]
    Twice(String),
}

/// Mappings, found by the longest prefix from either side (3.1).
#[derive(Debug, Default)]
pub struct EamTable {
    /// By prefix length, then by the prefix's bits, right-aligned.
    by_four: BTreeMap<u8, HashMap<u32, Eam>>,
    by_six: BTreeMap<u8, HashMap<u128, Eam>>,
}

/// The first `len` bits of an address, right-aligned.
fn head_four(bits: u32, len: u8) -> u32 {
    bits.checked_shr(32 - u32::from(len)).unwrap_or(0)
}

fn head_six(bits: u128, len: u8) -> u128 {
    bits.checked_shr(128 - u32::from(len)).unwrap_or(0)
}

impl EamTable {
    /// Checks mappings.
    pub fn new(mappings: &[Eam]) -> Result<Self, EamError> {
        let mut table = Self::default();
        for eam in mappings {
            let (four, six) = (eam.four, eam.six);
            if four != four.trunc() {
                return Err(EamError::HostBits(four.to_string(), four.trunc().to_string()));
            }
            if six != six.trunc() {
                return Err(EamError::HostBits(six.to_string(), six.trunc().to_string()));
            }
            let suffix = 32 - four.prefix_len();
            if 128 - six.prefix_len() < suffix {
                return Err(EamError::Suffix(four, six, 128 - suffix));
            }
            let key = head_four(four.addr().to_bits(), four.prefix_len());
            if table.by_four.entry(four.prefix_len()).or_default().insert(key, *eam).is_some() {
                return Err(EamError::Twice(four.to_string()));
            }
            let key = head_six(six.addr().to_bits(), six.prefix_len());
            if table.by_six.entry(six.prefix_len()).or_default().insert(key, *eam).is_some() {
                return Err(EamError::Twice(six.to_string()));
            }
        }
        Ok(table)
    }

    /// The IPv6 address of an IPv4 one (3.3.1), and by which mapping.
    #[must_use]
    pub fn six(&self, address: Ipv4Addr) -> Option<(Ipv6Addr, Eam)> {
        let bits = address.to_bits();
        let mut longest_first = self.by_four.iter().rev();
        let eam = *longest_first.find_map(|(len, mappings)| mappings.get(&head_four(bits, *len)))?;
        let suffix = 32 - u32::from(eam.four.prefix_len());
        let value = u128::from(bits & !u32::MAX.checked_shl(suffix).unwrap_or(0));
        let shift = 128 - u32::from(eam.six.prefix_len()) - suffix;
        Some(((eam.six.addr().to_bits() | value.checked_shl(shift).unwrap_or(0)).into(), eam))
    }

    /// The IPv4 address of an IPv6 one (3.3.2), and by which mapping: what is past the IPv4 suffix's length is ignored.
    #[must_use]
    pub fn four(&self, address: Ipv6Addr) -> Option<(Ipv4Addr, Eam)> {
        let bits = address.to_bits();
        let mut longest_first = self.by_six.iter().rev();
        let eam = *longest_first.find_map(|(len, mappings)| mappings.get(&head_six(bits, *len)))?;
        let suffix = 32 - u32::from(eam.four.prefix_len());
        let shift = 128 - u32::from(eam.six.prefix_len()) - suffix;
        let value = bits.checked_shr(shift).unwrap_or(0) as u32 & !u32::MAX.checked_shl(suffix).unwrap_or(0);
        Some(((eam.four.addr().to_bits() | value).into(), eam))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn eam(four: &str, six: &str) -> Eam {
        Eam { four: four.parse().unwrap(), six: six.parse().unwrap() }
    }

    fn table() -> EamTable {
        EamTable::new(&[
            eam("192.0.2.1/32", "2001:db8:aaaa::/128"),
            eam("192.0.2.2/32", "2001:db8:bbbb::b/128"),
            eam("192.0.2.16/28", "2001:db8:cccc::/124"),
            eam("192.0.2.128/26", "2001:db8:dddd::/64"),
            eam("192.0.2.192/29", "2001:db8:eeee:8::/62"),
            eam("192.0.2.224/31", "64:ff9b::/127"),
        ])
        .unwrap()
    }

    #[test]
    fn addresses_have_their_counterparts_3_3() {
        for (four, six) in [
            ("192.0.2.1", "2001:db8:aaaa::"),
            ("192.0.2.2", "2001:db8:bbbb::b"),
            ("192.0.2.16", "2001:db8:cccc::"),
            ("192.0.2.24", "2001:db8:cccc::8"),
            ("192.0.2.31", "2001:db8:cccc::f"),
            ("192.0.2.128", "2001:db8:dddd::"),
            ("192.0.2.152", "2001:db8:dddd:0:6000::"),
            ("192.0.2.183", "2001:db8:dddd:0:dc00::"),
            ("192.0.2.191", "2001:db8:dddd:0:fc00::"),
            ("192.0.2.193", "2001:db8:eeee:8:8000::"),
            ("192.0.2.199", "2001:db8:eeee:b:8000::"),
            ("192.0.2.225", "64:ff9b::1"),
        ] {
            let (four, six): (Ipv4Addr, Ipv6Addr) = (four.parse().unwrap(), six.parse().unwrap());
            assert_eq!(table().six(four).unwrap().0, six, "{four}");
            assert_eq!(table().four(six).unwrap().0, four, "{six}");
        }
        assert_eq!(table().six("192.0.2.32".parse().unwrap()), None);
        assert_eq!(table().four("2001:db8::".parse().unwrap()), None);
    }

    #[test]
    fn the_longest_prefix_wins_on_either_side() {
        let table = EamTable::new(&[
            eam("198.18.0.0/15", "2001:db8:1::/96"),
            eam("198.18.0.80/32", "2001:db8:1::77/128"),
            eam("0.0.0.0/0", "2001:db8:2::/64"),
        ])
        .unwrap();
        assert_eq!(table.six("198.18.0.80".parse().unwrap()).unwrap().0.to_string(), "2001:db8:1::77");
        assert_eq!(table.six("198.18.0.81".parse().unwrap()).unwrap().0.to_string(), "2001:db8:1::28:8000");
        assert_eq!(table.four("2001:db8:1::77".parse().unwrap()).unwrap().0.to_string(), "198.18.0.80");
        assert_eq!(table.four("2001:db8:1::28:8077".parse().unwrap()).unwrap().0.to_string(), "198.18.0.81");
        assert_eq!(table.six("192.0.2.1".parse().unwrap()).unwrap().0.to_string(), "2001:db8:2:0:c000:201::");
    }

    #[test]
    fn what_cannot_be_mapped_is_named() {
        for (mappings, says) in [
            (vec![eam("192.0.2.0/24", "2001:db8::/121")], "prefix of /120 or shorter"),
            (vec![eam("192.0.2.1/24", "2001:db8::/64")], "write 192.0.2.0/24"),
            (vec![eam("192.0.2.0/24", "2001:db8::1/64")], "write 2001:db8::/64"),
            (
                vec![eam("192.0.2.0/24", "2001:db8::/64"), eam("192.0.2.0/24", "2001:db8:1::/64")],
                "192.0.2.0/24 is mapped",
            ),
            (
                vec![eam("192.0.2.0/24", "2001:db8::/64"), eam("192.0.3.0/24", "2001:db8::/64")],
                "2001:db8::/64 is mapped",
            ),
        ] {
            let error = EamTable::new(&mappings).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    proptest! {
        #[test]
        fn an_address_survives_any_mapping(four: u32, len in 0u8..=32, six: u128, six_len in 0u8..=128, host: u32, noise: u128) {
            prop_assume!(128 - six_len >= 32 - len);
            let four = Ipv4Net::new(four.into(), len).unwrap().trunc();
            let six = Ipv6Net::new(six.into(), six_len).unwrap().trunc();
            let table = EamTable::new(&[Eam { four, six }]).unwrap();
            let address = Ipv4Addr::from_bits(four.addr().to_bits() | host & four.hostmask().to_bits());
            let (mapped, _) = table.six(address).unwrap();
            prop_assert!(six.contains(&mapped));
            prop_assert_eq!(table.four(mapped).unwrap().0, address);
            // Below both prefixes anything may follow.
            let below = 128 - u32::from(six_len) - (32 - u32::from(len));
            let noise = noise & !u128::MAX.checked_shl(below).unwrap_or(0);
            prop_assert_eq!(table.four((mapped.to_bits() | noise).into()).unwrap().0, address);
        }
    }
}
