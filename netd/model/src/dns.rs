//! What `netd dns` is told: a file that netd writes whole (`dns.json` in the run directory), so that names outlive netd.
use std::net::{Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::id::{Label, WorkspaceId};

/// Everything that the resolver needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsView {
    /// Schema of this file; a resolver refuses a newer one.
    pub schema: u32,
    /// Where to listen, port 53, UDP and TCP.
    pub listen: Vec<Ipv6Addr>,
    /// Who may ask: this node's prefixes.
    pub askers: Vec<Ipv6Net>,
    /// Where to ask for names that are not the fabric's.
    pub upstreams: Vec<SocketAddr>,
    /// The fabric's domain.
    pub domain: String,
    /// Workspaces by name, with who may learn of them.
    pub names: Vec<DnsName>,
    /// NAT64 prefix (/96) for public IPv4.
    pub nat64_global: Ipv6Addr,
    /// NAT64 prefix (/96) for the permitted private ranges.
    pub nat64_private: Ipv6Addr,
    /// Private ranges that may be synthesised.
    pub private: Vec<Ipv4Net>,
    /// Whether native AAAA records are given (RFC 6147 5.1.4): false on a node without an IPv6 uplink.
    pub native_aaaa: bool,
}

impl DnsView {
    /// The schema that this code writes and reads.
    pub const SCHEMA: u32 = 1;
}

/// A workspace's names: `<id>.<domain>` and `<name>.<domain>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsName {
    /// Its id.
    pub id: WorkspaceId,
    /// Its name.
    #[serde(default)]
    pub name: Option<Label>,
    /// Its address.
    pub address: Ipv6Addr,
    /// Its group: only members, and itself, learn the address.
    #[serde(default)]
    pub group: Option<Label>,
}
