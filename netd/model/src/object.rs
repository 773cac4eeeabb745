//! The fabric's objects as they are stored: `spec` belongs to the user or platform, `status` to the owning node.
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{
    address::{FabricPrefix, NodePrefix},
    id::{Label, NodeName, WorkspaceId},
};

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The fabric itself: one object, named `fabric`.
    Fabric,
    /// A node, by its name.
    Node,
    /// A workspace, by its id.
    Workspace,
    /// A grant.
    Grant,
    /// A join token, by its public id; holds only a hash of the secret.
    Token,
    /// A node prefix that is taken, by its text: made and removed in one transaction with its node.
    Prefix,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Fabric, Self::Node, Self::Workspace, Self::Grant, Self::Token, Self::Prefix];

    /// The kind as in paths and files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fabric => "fabric",
            Self::Node => "node",
            Self::Workspace => "workspace",
            Self::Grant => "grant",
            Self::Token => "token",
            Self::Prefix => "prefix",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| format!("no kind {text:?}; known: {}", known()))
    }
}

/// Who writes: decides which part of an object may change.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Author {
    /// A person or a platform, by the name that the API proved: may write `spec`.
    User(String),
    /// A node: may write the `status` of itself and of workspaces attached to it.
    Node(NodeName),
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user {name}"),
            Self::Node(name) => write!(f, "node {name}"),
        }
    }
}

/// One version of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its name, unique in its kind.
    pub name: String,
    /// How often it was written: 1 for the first version.
    pub version: u64,
    /// The store's revision at this write: grows with every write to any object.
    pub revision: u64,
    /// Who wrote this version.
    pub author: Author,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// What the user or platform wants.
    pub spec: serde_json::Value,
    /// What the owning node says.
    #[serde(default)]
    pub status: serde_json::Value,
}

/// What a fabric is. Object name: `fabric`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricSpec {
    /// Its prefixes; the first gives the service addresses.
    pub prefixes: Vec<FabricPrefix>,
    /// The domain below which ports have URLs and workspaces have names, in lower case.
    pub domain: String,
    /// Private IPv4 ranges that workspaces may reach through NAT64; none by default.
    #[serde(default)]
    pub nat64_private: Vec<Ipv4Net>,
    /// The fabric's certificate authority, in PEM: nodes trust each other by it.
    pub ca_pem: String,
}

/// What a node does beyond carrying workspaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Translates for nodes without IPv4.
    Gateway,
    /// Runs weft-proxy: workspaces admit its `::2` to their exposed ports.
    Proxy,
    /// Forwards between nodes that cannot reach each other.
    Relay,
    /// Holds the store, and answers nodes that joined through it.
    Seed,
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gateway" => Ok(Self::Gateway),
            "proxy" => Ok(Self::Proxy),
            "relay" => Ok(Self::Relay),
            "seed" => Ok(Self::Seed),
            _ => Err(format!("no role {text:?}; known: gateway, proxy, relay, seed")),
        }
    }
}

/// What the operator decides of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The prefix that it draws its workspaces' addresses from.
    pub prefix: NodePrefix,
    /// Its WireGuard public key, base64.
    pub wireguard_public_key: String,
    /// Its roles.
    #[serde(default)]
    pub roles: Vec<Role>,
    /// Its region, a free label.
    #[serde(default)]
    pub region: Option<String>,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Where its WireGuard listens, best first.
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
    /// Where its API answers other nodes (TLS); empty if it does not.
    #[serde(default)]
    pub api: Vec<SocketAddr>,
    /// Its local addresses on the underlay: no workspace may reach them.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Whether it has an IPv4 uplink, so that NAT64 works at home.
    #[serde(default)]
    pub ipv4: bool,
    /// Whether it has an IPv6 uplink.
    #[serde(default)]
    pub ipv6: bool,
    /// Whether its `ready` target is done.
    #[serde(default)]
    pub ready: bool,
}

/// Who may open a port's URL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// Nobody without a credential (the default).
    #[default]
    Private,
    /// Everybody who can reach the proxy.
    Public,
}

/// A TCP port of a workspace that has a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Port {
    /// The port's number.
    pub port: u16,
    /// Who may open it.
    #[serde(default)]
    pub visibility: Visibility,
}

/// What the user or platform decides of a workspace. Object name: its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceSpec {
    /// A name by choice, unique in the fabric.
    #[serde(default)]
    pub name: Option<Label>,
    /// Who owns it: an opaque string of the platform's.
    pub owner: String,
    /// Its group: members reach each other.
    #[serde(default)]
    pub group: Option<Label>,
    /// Its ports with URLs.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// Where a workspace is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// On which node.
    pub node: NodeName,
    /// At which address.
    pub address: Ipv6Addr,
    /// Grows each time that the workspace is attached; the highest wins.
    pub epoch: u64,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// What the owning node says of a workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceStatus {
    /// Its attachment; `None` while it is stopped.
    #[serde(default)]
    pub attachment: Option<Attachment>,
}

/// A workspace as others see it: its id, what it should be and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// What it should be.
    pub spec: WorkspaceSpec,
    /// Where it is.
    pub status: WorkspaceStatus,
}
