//! Addresses of a fabric: its prefix, a node's prefix, a workspace's /128 and its CLAT twin. Randomness is an argument.
use std::{fmt, net::Ipv6Addr, str::FromStr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::id::serde_as_text;

/// IPv4 address inside every workspace (RFC 7335).
pub const CLAT_WORKSPACE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 0, 1);
/// IPv4 next hop inside every workspace, and its IPv4 resolver.
pub const CLAT_GATEWAY: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 0, 2);
/// IPv6 next hop inside every workspace.
pub const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// NAT64 prefix of the public IPv4 internet (RFC 6052 2.1, the Well-Known Prefix).
pub const NAT64_GLOBAL: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);
/// NAT64 prefix of permitted private IPv4 (inside RFC 8215's 64:ff9b:1::/48).
pub const NAT64_PRIVATE: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0);
/// Length of both NAT64 prefixes.
pub const NAT64_LEN: u8 = 96;
/// Amazon's reserved range for its link-local services: never drawn.
pub const AVOIDED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32);
/// Workspace identifiers below this are the node's own service addresses.
pub const FIRST_WORKSPACE_IDENTIFIER: u64 = 1 << 16;

/// Why an address or prefix cannot be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not the text of an IPv6 prefix.
    #[error("{0:?} is not an IPv6 prefix: write it as address/length, for example fd12:3456:789a::/48")]
    Syntax(String),
    /// Host bits are set.
    #[error("{0} has bits set below its length: write {1}")]
    HostBits(Ipv6Net, Ipv6Net),
    /// A fabric prefix must leave room for node prefixes.
    #[error("{0} is too long or too short for a fabric: give a prefix of length 32 to 60 (a /48 is usual)")]
    FabricLength(Ipv6Net),
    /// Neither a ULA nor a GUA, or one that others own.
    #[error(
        "{0} cannot be a fabric: give a ULA (inside fd00::/8, but not fd00:ec2::/32) or a GUA (inside 2000::/3) that is yours"
    )]
    FabricRange(Ipv6Net),
    /// A node prefix of an unsupported length.
    #[error("{0} cannot be a node prefix: its length must be 64, 80 or 96")]
    NodeLength(Ipv6Net),
}

/// A fabric's prefix: a /48 by default, always leaving at least 4 bits for nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FabricPrefix(Ipv6Net);

impl FabricPrefix {
    /// Draws a random ULA /48 (RFC 4193 3.2) from five bytes of randomness; `None` asks for another draw.
    #[must_use]
    pub fn from_random(global_id: [u8; 5]) -> Option<Self> {
        let mut octets = [0; 16];
        octets[0] = 0xfd;
        octets[1..6].copy_from_slice(&global_id);
        Self::new(Ipv6Net::new_assert(octets.into(), 48)).ok()
    }

    /// Checks a prefix that an operator gave.
    pub fn new(net: Ipv6Net) -> Result<Self, AddressError> {
        if net != net.trunc() {
            return Err(AddressError::HostBits(net, net.trunc()));
        }
        if !(32..=60).contains(&net.prefix_len()) {
            return Err(AddressError::FabricLength(net));
        }
        let first = net.addr().octets()[0];
        let usable = first == 0xfd || first & 0xe0 == 0x20;
        if !usable || AVOIDED.contains(&net) || net.contains(&AVOIDED) {
            return Err(AddressError::FabricRange(net));
        }
        Ok(Self(net))
    }

    /// The prefix.
    #[must_use]
    pub fn net(&self) -> Ipv6Net {
        self.0
    }

    /// How many /64 node prefixes there are, subnet 0 (reserved) included.
    #[must_use]
    pub fn subnets(&self) -> u64 {
        1 << (64 - u32::from(self.0.prefix_len()))
    }

    /// The node prefix with this number; `None` for subnet 0, which is reserved, and for numbers past the end.
    #[must_use]
    pub fn node_prefix(&self, subnet: u64) -> Option<NodePrefix> {
        let inside = subnet != 0 && subnet < self.subnets();
        let bits = self.0.addr().to_bits() | u128::from(subnet) << 64;
        inside.then(|| NodePrefix(Ipv6Net::new_assert(bits.into(), 64)))
    }

    /// The anycast address on which every node answers its workspaces' DNS questions: identifier 0x53 of subnet 0.
    #[must_use]
    pub fn dns(&self) -> Ipv6Addr {
        (self.0.addr().to_bits() | 0x53).into()
    }
}

/// The prefix of which a node draws its workspaces' addresses: a /64, or a /80 or /96 where a cloud delegates those.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodePrefix(Ipv6Net);

impl NodePrefix {
    /// Checks a prefix.
    pub fn new(net: Ipv6Net) -> Result<Self, AddressError> {
        if net != net.trunc() {
            return Err(AddressError::HostBits(net, net.trunc()));
        }
        if matches!(net.prefix_len(), 64 | 80 | 96) { Ok(Self(net)) } else { Err(AddressError::NodeLength(net)) }
    }

    /// The prefix.
    #[must_use]
    pub fn net(&self) -> Ipv6Net {
        self.0
    }

    /// The address with this identifier.
    fn identifier(&self, identifier: u64) -> Ipv6Addr {
        (self.0.addr().to_bits() | u128::from(identifier)).into()
    }

    /// The node itself: `::1`, the source of what the node says inside the fabric.
    #[must_use]
    pub fn node_address(&self) -> Ipv6Addr {
        self.identifier(1)
    }

    /// What the node's proxy dials from: `::2`.
    #[must_use]
    pub fn proxy_address(&self) -> Ipv6Addr {
        self.identifier(2)
    }

    /// The bit that tells a workspace's address from its CLAT twin: the highest below the prefix.
    fn twin_bit(&self) -> u128 {
        1 << (127 - u32::from(self.0.prefix_len()))
    }

    /// Draws a workspace's address; `None` if the draw is reserved and another is to be made.
    #[must_use]
    pub fn draw(&self, random: [u8; 8]) -> Option<WorkspaceAddress> {
        let below = self.twin_bit() - 1;
        let identifier = u128::from(u64::from_be_bytes(random)) & below;
        let free = identifier >= u128::from(FIRST_WORKSPACE_IDENTIFIER);
        free.then(|| WorkspaceAddress { address: (self.0.addr().to_bits() | identifier).into(), prefix: *self })
    }

    /// The workspace address that an address of this prefix stands for; `None` for service addresses, twins and others.
    #[must_use]
    pub fn workspace(&self, address: Ipv6Addr) -> Option<WorkspaceAddress> {
        let bits = address.to_bits();
        let identifier = bits & (self.twin_bit() * 2 - 1);
        let ours = self.0.contains(&address)
            && bits & self.twin_bit() == 0
            && identifier >= u128::from(FIRST_WORKSPACE_IDENTIFIER);
        ours.then_some(WorkspaceAddress { address, prefix: *self })
    }
}

/// A workspace's one IPv6 address, with the prefix that it was drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkspaceAddress {
    address: Ipv6Addr,
    prefix: NodePrefix,
}

impl WorkspaceAddress {
    /// The /128.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        self.address
    }

    /// The IPv6 source of the workspace's translated IPv4: never seen inside the workspace.
    #[must_use]
    pub fn twin(&self) -> Ipv6Addr {
        (self.address.to_bits() | self.prefix.twin_bit()).into()
    }

    /// The prefix that the address was drawn from.
    #[must_use]
    pub fn prefix(&self) -> NodePrefix {
        self.prefix
    }
}

/// IPv4 ranges that are not globally reachable (IANA's IPv4 special-purpose registry, RFC 6890, and multicast):
/// 64:ff9b::/96 must not stand for them (RFC 6052 3.1).
pub const NON_GLOBAL_V4: [Ipv4Net; 16] = {
    const fn net(a: u8, b: u8, c: u8, d: u8, len: u8) -> Ipv4Net {
        Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, d), len)
    }
    [
        net(0, 0, 0, 0, 8),
        net(10, 0, 0, 0, 8),
        net(100, 64, 0, 0, 10),
        net(127, 0, 0, 0, 8),
        net(169, 254, 0, 0, 16),
        net(172, 16, 0, 0, 12),
        net(192, 0, 0, 0, 24),
        net(192, 0, 2, 0, 24),
        net(192, 88, 99, 0, 24),
        net(192, 168, 0, 0, 16),
        net(198, 18, 0, 0, 15),
        net(198, 51, 100, 0, 24),
        net(203, 0, 113, 0, 24),
        net(224, 0, 0, 0, 4),
        net(240, 0, 0, 0, 4),
        net(255, 255, 255, 255, 32),
    ]
};

macro_rules! prefix_as_text {
    ($($type:ident),*) => {$(
        impl FromStr for $type {
            type Err = AddressError;
            fn from_str(text: &str) -> Result<Self, AddressError> {
                Self::new(text.parse().map_err(|_| AddressError::Syntax(text.into()))?)
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        serde_as_text!($type);
    )*};
}
prefix_as_text!(FabricPrefix, NodePrefix);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_drawn_address_is_no_twin_and_no_service_address(random: [u8; 8], global_id: [u8; 5], subnet in 1u64..65536) {
            let fabric = FabricPrefix::from_random(global_id).unwrap();
            for len in [64, 80, 96] {
                let node = fabric.node_prefix(subnet).unwrap();
                let node = NodePrefix::new(Ipv6Net::new(node.net().addr(), len).unwrap()).unwrap();
                let Some(workspace) = node.draw(random) else { continue };
                prop_assert!(node.net().contains(&workspace.address()));
                prop_assert!(node.net().contains(&workspace.twin()));
                prop_assert_eq!(node.workspace(workspace.address()), Some(workspace));
                prop_assert_eq!(node.workspace(workspace.twin()), None);
            }
        }

        #[test]
        fn no_text_makes_a_prefix_panic(text: String) {
            let _ = text.parse::<FabricPrefix>();
            let _ = text.parse::<NodePrefix>();
        }
    }

    #[test]
    fn a_fabric_refuses_what_is_not_its_own_with_a_way_out() {
        for (bad, says) in [
            ("fd00::1/48", "write fd00::/48"),
            ("fd00:ec2::/48", "fd00:ec2::/32"),
            ("fe80::/48", "ULA"),
            ("fd00::/64", "32 to 60"),
            ("10.0.0.0/8", "address/length"),
        ] {
            let error = bad.parse::<FabricPrefix>().unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn subnet_zero_is_reserved_and_holds_dns() {
        let fabric: FabricPrefix = "fd12:3456:789a::/48".parse().unwrap();
        assert_eq!(fabric.node_prefix(0), None);
        assert_eq!(fabric.node_prefix(65536), None);
        assert_eq!(fabric.dns(), "fd12:3456:789a::53".parse::<Ipv6Addr>().unwrap());
        assert_eq!(fabric.node_prefix(7).unwrap().node_address(), "fd12:3456:789a:7::1".parse::<Ipv6Addr>().unwrap());
    }
}
