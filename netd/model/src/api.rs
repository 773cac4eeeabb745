//! Requests and replies of netd's API: JSON over HTTP on /run/weft/netd.sock, and over mutual TLS between nodes.
use std::{
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    address::{FabricPrefix, NodePrefix},
    id::{Label, NodeName, WorkspaceId},
    object::{FabricSpec, NodeSpec, Port, Role, Visibility},
};

/// `POST /v1/init`: makes a fabric whose first node and seed this one is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitRequest {
    /// The fabric's prefix; drawn if absent.
    #[serde(default)]
    pub prefix: Option<String>,
    /// The domain of names and URLs; `weft.internal` if absent.
    #[serde(default)]
    pub domain: Option<String>,
    /// This node's name; the host name's first label if absent.
    #[serde(default)]
    pub node: Option<String>,
    /// Roles besides `seed`.
    #[serde(default)]
    pub roles: Vec<Role>,
    /// Private IPv4 ranges that workspaces may reach.
    #[serde(default)]
    pub nat64_private: Vec<Ipv4Net>,
}

/// `POST /v1/tokens`: makes a join token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// How many nodes may join with it.
    #[serde(default = "TokenRequest::one")]
    pub uses: u32,
    /// For how long, in seconds.
    #[serde(default = "TokenRequest::hour")]
    pub ttl_s: u64,
    /// The roles that a node gets which joins with it.
    #[serde(default)]
    pub roles: Vec<Role>,
}

impl TokenRequest {
    fn one() -> u32 {
        1
    }
    fn hour() -> u64 {
        3600
    }
}

impl Default for TokenRequest {
    fn default() -> Self {
        Self { uses: Self::one(), ttl_s: Self::hour(), roles: Vec::new() }
    }
}

/// The reply: the token is shown once and never stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenReply {
    /// What `netctl join` takes.
    pub token: String,
    /// Its public id, in the store and in logs.
    pub id: String,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: u64,
}

/// `POST /v1/join`: makes this node part of the fabric that the token names.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The token.
    pub token: String,
    /// This node's name; the host name's first label if absent.
    #[serde(default)]
    pub node: Option<String>,
}

/// The reply to init and join.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberReply {
    /// This node's name.
    pub node: NodeName,
    /// Its prefix.
    pub prefix: NodePrefix,
    /// The fabric's prefixes.
    pub fabric: Vec<FabricPrefix>,
    /// The fabric's domain.
    pub domain: String,
}

/// `POST /v1/seed/join`, node to seed over TLS without a client certificate: the token's secret proves the right to join.
#[derive(Clone, Serialize, Deserialize)]
pub struct SeedJoinRequest {
    /// The token's public id.
    pub token_id: String,
    /// The token's secret, base64url.
    pub secret: String,
    /// The joining node's name.
    pub node: NodeName,
    /// Its WireGuard public key, base64.
    pub wireguard_public_key: String,
    /// Its certificate signing request, in PEM.
    pub csr_pem: String,
}

/// The seed's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SeedJoinReply {
    /// The node's certificate, signed by the fabric's CA, in PEM.
    pub certificate_pem: String,
    /// The fabric.
    pub fabric: FabricSpec,
    /// The node as the seed recorded it, with its claimed prefix.
    pub spec: NodeSpec,
    /// Where the seed answers.
    pub seeds: Vec<SocketAddr>,
}

/// `POST /v1/workspaces`: attaches a network namespace as a workspace.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// The network namespace, as a path (`/run/netns/x`, `/proc/<pid>/ns/net`).
    pub netns: PathBuf,
    /// The workspace to attach, if it exists already (it was attached before, or declared).
    #[serde(default)]
    pub id: Option<WorkspaceId>,
    /// Its name.
    #[serde(default)]
    pub name: Option<Label>,
    /// Its owner; the caller if absent.
    #[serde(default)]
    pub owner: Option<String>,
    /// Its group.
    #[serde(default)]
    pub group: Option<Label>,
    /// Ports that get URLs.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// A workspace as `netctl list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceView {
    /// Its id.
    pub id: WorkspaceId,
    /// Its name.
    pub name: Option<Label>,
    /// Its owner.
    pub owner: String,
    /// Its group.
    pub group: Option<Label>,
    /// Where it is attached; `None` while it is stopped.
    pub node: Option<NodeName>,
    /// Its address.
    pub address: Option<Ipv6Addr>,
    /// The host's end of its link, on its own node.
    pub ifname: Option<String>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// One URL a port, in the ports' order.
    pub urls: Vec<String>,
    /// The resolver that it should use.
    pub dns: Option<Ipv6Addr>,
    /// The MTU of its link.
    pub mtu: Option<u32>,
    /// Whether the other nodes have been told.
    pub published: bool,
}

/// `PUT /v1/workspaces/{id or name}/ports/{port}`: gives a port a URL (`DELETE` takes it away).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExposeRequest {
    /// Who may open it.
    #[serde(default)]
    pub visibility: Visibility,
}

/// A peer in `netctl status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerView {
    /// The other node.
    pub node: NodeName,
    /// Its prefix.
    pub prefix: NodePrefix,
    /// Where packets for it go now.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake; `None` if there was none.
    pub last_handshake_s: Option<u64>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Round-trip time of the last verified echo through the tunnel, in microseconds.
    pub rtt_us: Option<u64>,
    /// Whether the last echo through the tunnel was answered.
    pub verified: bool,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusView {
    /// netd's version.
    pub version: String,
    /// Whether this node belongs to a fabric.
    pub member: Option<MemberReply>,
    /// This node's roles.
    pub roles: Vec<Role>,
    /// Whether its `ready` target is done.
    pub ready: bool,
    /// How many workspaces are attached here.
    pub workspaces: usize,
    /// The other nodes.
    pub peers: Vec<PeerView>,
    /// The uplink's name, if there is one.
    pub uplink: Option<String>,
    /// Packets dropped by the data path, by reason, since boot.
    pub drops: Vec<(String, u64)>,
}

/// Where the proxy finds a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The workspace.
    pub id: WorkspaceId,
    /// Its name.
    #[serde(default)]
    pub name: Option<Label>,
    /// Its address; `None` while it is stopped.
    pub address: Option<Ipv6Addr>,
    /// The attachment's epoch: a connection opened for another one must not be used.
    pub epoch: u64,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// `GET /v1/routes/watch`, server-sent events: first a snapshot, then changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum RouteEvent {
    /// Everything: replaces what was known.
    Snapshot {
        /// The fabric's domain.
        domain: String,
        /// The address that the proxy dials workspaces from.
        dial_from: Ipv6Addr,
        /// Every workspace.
        routes: Vec<Route>,
    },
    /// A workspace is new or has changed.
    Upsert {
        /// As it is now.
        route: Route,
    },
    /// A workspace is gone.
    Remove {
        /// Which.
        id: WorkspaceId,
    },
}

/// Reads a prefix that a request carries as text, so that the error can name the field.
pub fn parse_prefix(text: &str) -> Result<FabricPrefix, crate::address::AddressError> {
    let net: Ipv6Net = text.parse().map_err(|_| crate::address::AddressError::Syntax(text.into()))?;
    FabricPrefix::new(net)
}
