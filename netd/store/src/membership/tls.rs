//! TLS of the fabric: who is trusted, and how names stand in certificates.
use rustls_pki_types::ServerName;
use weft_model::NodeName;

/// The name in every seed's certificate, and in no other node's: clients of the store insist on it.
pub const SEED_NAME: &str = "seed.weft.internal";

/// A node's name in its certificate: `<node>.node.weft.internal`.
#[must_use]
pub fn node_server_name(node: &NodeName) -> ServerName<'static> {
    todo!("{node}")
}
