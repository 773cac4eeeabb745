//! `netctl init`: the CA, the fabric and its first node; safe to repeat after a crash between any two steps.
use std::{net::SocketAddr, path::Path};

use ipnet::Ipv4Net;
use weft_model::{
    FabricPrefix, NodeName,
    object::{Author, FabricSpec, NodeSpec, Role},
};

use super::{Identity, MembershipError};
use crate::Store;

/// What the operator wants.
#[derive(Debug, Clone)]
pub struct Init {
    /// The fabric's prefix; drawn if absent.
    pub prefix: Option<FabricPrefix>,
    /// The domain, in lower case.
    pub domain: String,
    /// Private IPv4 ranges that workspaces may reach.
    pub nat64_private: Vec<Ipv4Net>,
    /// This node's name.
    pub node: NodeName,
    /// Its roles; `seed` is added.
    pub roles: Vec<Role>,
    /// Where it will answer other nodes.
    pub seeds: Vec<SocketAddr>,
    /// Who asked.
    pub author: Author,
}

/// Makes the fabric, its CA and its first node in one transaction, then writes this node's identity.
pub async fn init_fabric(
    _store: &dyn Store,
    _state_dir: &Path,
    _init: &Init,
    _now_ms: u64,
) -> Result<(Identity, FabricSpec, NodeSpec), MembershipError> {
    todo!()
}
