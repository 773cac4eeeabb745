//! What a node knows when it plans: everything that the data path is derived from, as plain values.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use weft_model::{FabricPrefix, Label, NodeName, NodePrefix, WorkspaceAddress, WorkspaceId};

/// All inputs of a node's desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// This node.
    pub node: NodeName,
    /// The fabric's prefixes; the first gives the service addresses.
    pub fabric: Vec<FabricPrefix>,
    /// This node's prefix.
    pub prefix: NodePrefix,
    /// Whether this node runs a proxy itself, so that its own `::2` may open exposed ports.
    pub proxy: bool,
    /// Where this node touches the underlay; `None` while there is no uplink.
    pub uplink: Option<Uplink>,
    /// The node's own addresses on any interface that is not ours: no workspace reaches them.
    pub local_addresses: Vec<IpAddr>,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// The workspaces attached here.
    pub attachments: Vec<AttachedWorkspace>,
    /// Members elsewhere of the groups that are hosted here.
    pub members: Vec<Member>,
    /// MTU of weft0 and of the workspaces' links.
    pub mtu: u32,
    /// How NAT64 appears on the IPv4 side; `None` on a node without IPv4.
    pub nat64: Option<Nat64>,
    /// Private IPv4 ranges that workspaces may reach.
    pub nat64_private: Vec<Ipv4Net>,
}

/// The interface that carries the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Whether IPv6 leads out of it (a default route of its own).
    pub ipv6: bool,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub node: NodeName,
    /// Its prefix: routed to weft0.
    pub prefix: NodePrefix,
    /// Its underlay addresses and endpoints: no workspace reaches them.
    pub addresses: Vec<IpAddr>,
    /// Whether its `::2` may open exposed ports.
    pub proxy: bool,
}

/// A workspace attached here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedWorkspace {
    /// Its id; its link's name follows from it.
    pub id: WorkspaceId,
    /// Its address.
    pub address: WorkspaceAddress,
    /// Its group.
    pub group: Option<Label>,
    /// The TCP ports that proxies may open.
    pub ports: Vec<u16>,
}

/// A workspace on another node that shares a group with one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its address.
    pub address: Ipv6Addr,
    /// The group.
    pub group: Label,
}

/// The IPv4 side of this node's translator: ports of the node's own address, taken at the uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nat64 {
    /// The node's own IPv4 address.
    pub address: Ipv4Addr,
    /// First and last port, and echo identifier, that belong to the translator.
    pub ports: (u16, u16),
}
