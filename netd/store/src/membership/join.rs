//! `netctl join`: a token's secret for a certificate and a prefix.
use std::path::Path;

use weft_model::{NodeName, api::SeedJoinReply};

use super::{Identity, MembershipError, NodeKeys, Token};

/// Joins with the keys of `<state>/keys.json` and writes this node's identity; safe to repeat after a crash or a lost reply.
pub async fn join(
    _state_dir: &Path,
    _token: &Token,
    _node: &NodeName,
    _now_ms: u64,
) -> Result<(Identity, SeedJoinReply), MembershipError> {
    todo!()
}

/// Asks a seed of the token for membership, after it has proved that it belongs to the CA that the token pins.
pub async fn join_via_token(
    _token: &Token,
    _node: &NodeName,
    _keys: &NodeKeys,
    _now_ms: u64,
) -> Result<(Identity, SeedJoinReply), MembershipError> {
    todo!()
}
