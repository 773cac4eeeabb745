//! Allowed IPs: the longest prefix that holds an address says which peer it belongs to.
//!
//! One hash table a prefix length in use, the longest first. A fabric uses few lengths (/64, /96, /128), so a look-up is a
//! few probes however many prefixes there are, and a change touches one entry.
use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

/// Prefixes of both families, each with its owner.
#[derive(Debug, Clone)]
pub struct AllowedIps<T> {
    v4: Family<T>,
    v6: Family<T>,
}

impl<T> Default for AllowedIps<T> {
    fn default() -> Self {
        Self { v4: Family { width: 32, lengths: Vec::new() }, v6: Family { width: 128, lengths: Vec::new() } }
    }
}

#[derive(Debug, Clone)]
struct Family<T> {
    width: u8,
    /// Non-empty tables, the longest prefix first; keys are addresses shifted right by the host bits.
    lengths: Vec<(u8, HashMap<u128, T>)>,
}

impl<T> AllowedIps<T> {
    /// Gives a prefix to an owner; returns whom it was taken from.
    pub fn insert(&mut self, net: IpNet, owner: T) -> Option<T> {
        self.family_mut(net.addr()).insert(bits(net.addr()), net.prefix_len(), owner)
    }

    /// Takes a prefix away; returns whom it belonged to.
    pub fn remove(&mut self, net: IpNet) -> Option<T> {
        self.family_mut(net.addr()).remove(bits(net.addr()), net.prefix_len())
    }

    /// The owner of exactly this prefix.
    #[must_use]
    pub fn get(&self, net: IpNet) -> Option<&T> {
        let family = self.family(net.addr());
        let (_, table) = family.lengths.iter().find(|(len, _)| *len == net.prefix_len())?;
        table.get(&family.key(bits(net.addr()), net.prefix_len()))
    }

    /// The owner of the longest prefix that holds this address.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<&T> {
        let (family, bits) = (self.family(address), bits(address));
        family.lengths.iter().find_map(|(len, table)| table.get(&family.key(bits, *len)))
    }

    /// How many prefixes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.lengths.iter().chain(&self.v6.lengths).map(|(_, table)| table.len()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.lengths.is_empty() && self.v6.lengths.is_empty()
    }

    fn family(&self, address: IpAddr) -> &Family<T> {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    fn family_mut(&mut self, address: IpAddr) -> &mut Family<T> {
        if address.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }
}

impl<T> Family<T> {
    fn key(&self, bits: u128, len: u8) -> u128 {
        // A prefix of length 0 would shift by the whole width.
        bits.checked_shr(u32::from(self.width - len.min(self.width))).unwrap_or(0)
    }

    fn insert(&mut self, bits: u128, len: u8, owner: T) -> Option<T> {
        let key = self.key(bits, len);
        let at = match self.lengths.binary_search_by(|(other, _)| len.cmp(other)) {
            Ok(at) => at,
            Err(at) => {
                self.lengths.insert(at, (len, HashMap::new()));
                at
            }
        };
        self.lengths.get_mut(at).and_then(|(_, table)| table.insert(key, owner))
    }

    fn remove(&mut self, bits: u128, len: u8) -> Option<T> {
        let key = self.key(bits, len);
        let at = self.lengths.binary_search_by(|(other, _)| len.cmp(other)).ok()?;
        let (_, table) = self.lengths.get_mut(at)?;
        let owner = table.remove(&key);
        if table.is_empty() {
            self.lengths.remove(at);
        }
        owner
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::any_net;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(IpNet, u8),
        Remove(IpNet),
    }

    /// Few addresses, so that prefixes nest and collide.
    fn near_net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0u32..4, 0u8..=32)
                .prop_map(|(low, len)| IpNet::new(std::net::Ipv4Addr::from(0xc000_0200 | low).into(), len)),
            (0u128..4, 0u8..=128)
                .prop_map(|(low, len)| IpNet::new(std::net::Ipv6Addr::from(0xfd << 120 | low).into(), len)),
        ]
        .prop_map(|net| net.unwrap().trunc())
    }

    fn step() -> impl Strategy<Value = Step> {
        let net = || prop_oneof![near_net(), any_net()];
        prop_oneof![(net(), any::<u8>()).prop_map(|(n, o)| Step::Insert(n, o)), net().prop_map(Step::Remove)]
    }

    proptest! {
        #[test]
        fn agrees_with_a_list_that_is_searched_whole(steps in proptest::collection::vec(step(), 0..60), probes: Vec<u128>) {
            let mut table = AllowedIps::default();
            let mut list: Vec<(IpNet, u8)> = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(net, owner) => {
                        let old = list.iter().position(|(n, _)| *n == net).map(|at| list.remove(at).1);
                        list.push((net, owner));
                        prop_assert_eq!(table.insert(net, owner), old);
                        prop_assert_eq!(table.get(net), Some(&owner));
                    }
                    Step::Remove(net) => {
                        let old = list.iter().position(|(n, _)| *n == net).map(|at| list.remove(at).1);
                        prop_assert_eq!(table.remove(net), old);
                    }
                }
                prop_assert_eq!(table.len(), list.len());
            }
            let near = (0..4u32).map(|low| IpAddr::from(std::net::Ipv4Addr::from(0xc000_0200 | low)));
            let nearer = (0..4u128).map(|low| IpAddr::from(std::net::Ipv6Addr::from(0xfd << 120 | low)));
            let far = probes.iter().map(|bits| IpAddr::from(std::net::Ipv6Addr::from(*bits)));
            let inside = list.iter().map(|(net, _)| net.addr()).collect::<Vec<_>>();
            for address in near.chain(nearer).chain(far).chain(inside) {
                let longest = list.iter().filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
                prop_assert_eq!(table.lookup(address), longest.map(|(_, owner)| owner));
            }
        }
    }

    #[test]
    fn a_moved_address_beats_its_old_node_and_goes_back() {
        let mut table = AllowedIps::default();
        table.insert("fd00:1::/64".parse().unwrap(), "old");
        table.insert("fd00:1::7/128".parse().unwrap(), "new");
        assert_eq!(table.lookup("fd00:1::7".parse().unwrap()), Some(&"new"));
        assert_eq!(table.lookup("fd00:1::8".parse().unwrap()), Some(&"old"));
        table.remove("fd00:1::7/128".parse().unwrap());
        assert_eq!(table.lookup("fd00:1::7".parse().unwrap()), Some(&"old"));
        assert_eq!(table.lookup("192.0.2.1".parse().unwrap()), None);
    }
}
