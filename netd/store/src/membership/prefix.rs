//! Claims of node prefixes: the first candidate comes from the node's key, then the next free one. Pure.
use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use weft_model::{
    FabricPrefix, NodeName, NodePrefix,
    object::{Kind, NodeSpec},
};

use super::tls::sha256;
use crate::Txn;

/// Who has a node prefix. Object: `prefix <prefix>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixSpec {
    /// The node.
    pub node: NodeName,
    /// SHA-256 of its TLS public key (SubjectPublicKeyInfo), hex: a certificate with another key is not this node's.
    pub tls_key_sha256: String,
}

/// The prefix that a node claims: the hash of its key, then linear probing past those that are taken.
pub(super) fn candidate(
    fabric: FabricPrefix,
    wireguard_public_key: &str,
    taken: &HashSet<String>,
) -> Option<NodePrefix> {
    // Subnet 0 is reserved.
    let usable = fabric.subnets() - 1;
    let hash = sha256(wireguard_public_key.as_bytes());
    let first = hash.iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte)) % usable;
    // Past as many taken ones as there are, one is free, or all are taken.
    let tries = usable.min(taken.len() as u64 + 1);
    (0..tries)
        .filter_map(|step| fabric.node_prefix((first + step) % usable + 1))
        .find(|prefix| !taken.contains(&prefix.to_string()))
}

/// Adds a new node and its claim to a transaction, which fails if the name or the prefix is taken meanwhile.
pub(super) fn claim(txn: Txn, node: &NodeName, spec: &NodeSpec, tls_key_sha256: &str) -> Txn {
    let prefix = spec.prefix.to_string();
    let claim = PrefixSpec { node: node.clone(), tls_key_sha256: tls_key_sha256.into() };
    txn.expect_absent(Kind::Node, node.as_str())
        .expect_absent(Kind::Prefix, &prefix)
        .put_spec(Kind::Node, node.as_str(), spec)
        .put_spec(Kind::Prefix, &prefix, &claim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subnet_but_the_first_is_used_before_the_fabric_is_full() {
        let fabric: FabricPrefix = "fd00:1:2:1230::/60".parse().unwrap();
        let mut taken = HashSet::new();
        for node in 0..15 {
            let prefix = candidate(fabric, &format!("key {node}"), &taken).unwrap();
            assert!(fabric.net().contains(&prefix.net()) && prefix.net().addr() != fabric.net().addr());
            assert!(taken.insert(prefix.to_string()));
        }
        assert_eq!(candidate(fabric, "one too many", &taken), None);
        let big: FabricPrefix = "fd00:1:2::/48".parse().unwrap();
        assert_eq!(
            candidate(big, "key", &HashSet::new()),
            candidate(big, "key", &taken),
            "it depends on the key alone"
        );
    }
}
