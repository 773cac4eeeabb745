//! The seed's side of a join: the token is checked and used, a prefix claimed and the node recorded, in one transaction.
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use weft_model::{
    NodeName,
    api::{SeedJoinReply, SeedJoinRequest},
    object::Author,
};

use super::{Authority, MembershipError};
use crate::Store;

/// Who has a node prefix. Object: `prefix <prefix>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixSpec {
    /// The node.
    pub node: NodeName,
    /// SHA-256 of its TLS public key (SubjectPublicKeyInfo), hex: a certificate with another key is not this node's.
    pub tls_key_sha256: String,
}

/// Admits a node that shows a token's secret, or answers again to one that was admitted.
pub async fn admit(
    _store: &dyn Store,
    _authority: &Authority,
    _seeds: &[SocketAddr],
    _request: &SeedJoinRequest,
    _now_ms: u64,
) -> Result<SeedJoinReply, MembershipError> {
    todo!()
}

/// Removes a node with its prefix: its certificate is refused from then on.
pub async fn remove_node(
    _store: &dyn Store,
    _node: &NodeName,
    _author: Author,
    _now_ms: u64,
) -> Result<(), MembershipError> {
    todo!()
}
