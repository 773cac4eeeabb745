//! IPv4 addresses inside IPv6 ones (RFC 6052 2.2).
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

/// A prefix that stands for IPv4: of length 32, 40, 48, 56, 64 or 96, bits 64 to 71 zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    bits: u128,
    len: u8,
}

/// Why a prefix cannot stand for IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// RFC 6052 2.2.
    #[error("{0} has a length that RFC 6052 does not know: use 32, 40, 48, 56, 64 or 96")]
    Length(Ipv6Net),
    /// Host bits are set.
    #[error("{0} has bits set below its length: write {1}")]
    HostBits(Ipv6Net, Ipv6Net),
    /// RFC 6052 2.2, the `u` octet.
    #[error("{0} has bits 64 to 71 set, which RFC 6052 keeps zero: use another prefix")]
    OctetU(Ipv6Net),
}

impl Prefix {
    /// Checks a prefix.
    pub fn new(net: Ipv6Net) -> Result<Self, PrefixError> {
        if !matches!(net.prefix_len(), 32 | 40 | 48 | 56 | 64 | 96) {
            return Err(PrefixError::Length(net));
        }
        if net != net.trunc() {
            return Err(PrefixError::HostBits(net, net.trunc()));
        }
        if net.addr().octets().get(8) != Some(&0) {
            return Err(PrefixError::OctetU(net));
        }
        Ok(Self { bits: net.addr().to_bits(), len: net.prefix_len() })
    }

    /// The IPv6 address of an IPv4 one.
    #[must_use]
    pub fn embed(&self, address: Ipv4Addr) -> Ipv6Addr {
        let v4 = u128::from(address.to_bits());
        let bits = if self.len == 96 {
            v4
        } else {
            // Left-align below the prefix, then open the gap of octet u for what falls past bit 64.
            let aligned = v4 << (96 - u32::from(self.len));
            let (above, below) = (aligned >> 64 << 64, aligned & u128::from(u64::MAX));
            above | below >> 8
        };
        (self.bits | bits).into()
    }

    /// The IPv4 address in an IPv6 one; `None` if it is not below this prefix. The suffix is ignored, but
    /// bits 64 to 71 must be zero (2.2): with them set it is no address of this form.
    #[must_use]
    pub fn extract(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let bits = address.to_bits();
        if (bits ^ self.bits) >> (128 - u32::from(self.len)) != 0 {
            return None;
        }
        let v4 = if self.len == 96 {
            bits as u32
        } else {
            if bits >> 56 & 0xff != 0 {
                return None;
            }
            let (above, below) = (bits >> 64 << 64, bits & u128::from(u64::MAX >> 8));
            ((above | below << 8) >> (96 - u32::from(self.len))) as u32
        };
        Some(Ipv4Addr::from_bits(v4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        Prefix::new(text.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_examples_of_rfc_6052_2_4() {
        let address = Ipv4Addr::new(192, 0, 2, 33);
        for (net, text) in [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
            ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
        ] {
            let expected: Ipv6Addr = text.parse().unwrap();
            assert_eq!(prefix(net).embed(address), expected, "{net}");
            assert_eq!(prefix(net).extract(expected), Some(address), "{net}");
        }
        assert_eq!(prefix("64:ff9b::/96").extract("64:ff9b:1::192.0.2.33".parse().unwrap()), None);
    }

    #[test]
    fn a_prefix_of_another_form_is_refused() {
        for (net, says) in
            [("64:ff9b::/95", "use 32"), ("64:ff9b::1:0/96", "write"), ("2001:db8:1:2:ff00::/96", "bits 64 to 71")]
        {
            let net: Ipv6Net = net.parse().unwrap();
            let net = if says == "write" { Ipv6Net::new("64:ff9b::1".parse().unwrap(), 96).unwrap() } else { net };
            assert!(Prefix::new(net).unwrap_err().to_string().contains(says), "{net}");
        }
    }

    proptest! {
        #[test]
        fn every_address_survives_every_length(bits: u32, net: u128, len in prop::sample::select(vec![32u8, 40, 48, 56, 64, 96])) {
            let net = Ipv6Net::new(Ipv6Addr::from_bits(net & !(0xff << 56)), len).unwrap().trunc();
            let prefix = Prefix::new(net).unwrap();
            let address = Ipv4Addr::from_bits(bits);
            prop_assert!(net.contains(&prefix.embed(address)));
            prop_assert_eq!(prefix.embed(address).octets()[8] , if len == 96 { net.addr().octets()[8] } else { 0 });
            prop_assert_eq!(prefix.extract(prefix.embed(address)), Some(address));
            // What follows the IPv4 address is a suffix; octet u is none of it.
            let embedded = prefix.embed(address).to_bits();
            let suffix_len = if len == 96 { 0 } else { 88 - u32::from(len) };
            if suffix_len > 0 {
                prop_assert_eq!(prefix.extract((embedded | ((1u128 << suffix_len) - 1)).into()), Some(address));
            }
            if len != 96 {
                prop_assert_eq!(prefix.extract((embedded | 1 << 56).into()), None);
            }
        }
    }
}
