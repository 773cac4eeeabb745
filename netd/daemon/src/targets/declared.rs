//! The graphs of a node and of a workspace.
use std::time::Duration;

use super::Declared;

/// A node's targets.
#[must_use]
pub fn node() -> Vec<Declared> {
    let often = Duration::from_secs(1);
    vec![
        Declared::new("identity", &[]),
        Declared::new("underlay", &["identity"]).every(often),
        Declared::new("wireguard", &["identity"]).every(often),
        Declared::new("tunnel-verified", &["underlay", "wireguard"]).every(often),
        Declared::new("nat64", &["identity"]).every(often),
        Declared::new("dns", &["identity"]).every(Duration::from_secs(2)),
        Declared::new("ready", &["identity", "underlay", "wireguard", "tunnel-verified", "nat64", "dns"]),
    ]
}

/// A workspace's targets.
#[must_use]
pub fn workspace() -> Vec<Declared> {
    vec![
        Declared::new("address", &[]),
        Declared::new("link", &["address"]),
        Declared::new("policy", &["link"]),
        Declared::new("clat", &["link"]),
        Declared::new("published", &["address"]).every(Duration::from_secs(1)),
        Declared::new("ready", &["address", "link", "policy", "clat", "published"]),
    ]
}
