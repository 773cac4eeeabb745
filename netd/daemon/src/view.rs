//! From what netd knows to what it hands out: the plan's view of the node, and the files that the other processes read.
//! Pure: values in, values out.
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use weft_kernel::Facts;
use weft_model::{
    Label, NodeName, NodePrefix,
    address::{NAT64_GLOBAL, NAT64_PRIVATE},
    dns::{DnsName, DnsView},
    object::{NodeStatus, Role},
};
use weft_plan::{
    NodeView,
    view::{AttachedWorkspace, Member, Nat64, Peer, Uplink},
};

use crate::{
    config::{Config, MIN_MTU, TUNNEL_OVERHEAD},
    journal::Entry,
    state::State,
};

/// Who this node is in the fabric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// Its name.
    pub node: NodeName,
    /// Its prefix.
    pub prefix: NodePrefix,
}

/// MTU of the tunnel and of the links: the operator's, or what fits into the uplink; `None` while there is no uplink.
#[must_use]
pub fn mtu(config: &Config, facts: &Facts) -> Option<u32> {
    let derived = facts.uplink.as_ref().map(|uplink| uplink.mtu.saturating_sub(TUNNEL_OVERHEAD).max(MIN_MTU));
    config.mtu.or(derived)
}

/// A workspace as the plan sees it.
#[must_use]
pub fn attached(entry: &Entry) -> AttachedWorkspace {
    AttachedWorkspace {
        id: entry.id,
        address: entry.address,
        group: entry.spec.group.clone(),
        ports: entry.spec.ports.iter().map(|port| port.port).collect(),
    }
}

/// The IPv4 side of this node's translator; `None` if it has none.
#[must_use]
pub fn nat64(config: &Config, facts: &Facts) -> Option<Nat64> {
    let address = facts.uplink.as_ref()?.ipv4.filter(|_| config.nat64.enabled)?;
    Some(Nat64 { address, ports: (config.nat64.ports.first, config.nat64.ports.last) })
}

/// All inputs of the plan; `None` while the fabric is not known.
#[must_use]
pub fn node_view(config: &Config, me: &Me, state: &State) -> Option<NodeView> {
    let fabric = state.fabric.spec()?;
    let peers = state.fabric.nodes().iter().filter(|(name, _)| **name != me.node).map(|(name, node)| {
        let mut addresses = node.status.addresses.clone();
        addresses.extend(node.status.endpoints.iter().map(SocketAddr::ip));
        addresses.sort_unstable();
        addresses.dedup();
        let proxy = node.spec.roles.contains(&Role::Proxy);
        Peer { node: name.clone(), prefix: node.spec.prefix, addresses, proxy }
    });
    let uplink = state.facts.uplink.as_ref();
    Some(NodeView {
        node: me.node.clone(),
        fabric: fabric.prefixes.clone(),
        prefix: me.prefix,
        proxy: roles(me, state).contains(&Role::Proxy),
        uplink: uplink.map(|uplink| Uplink {
            name: uplink.name.clone(),
            index: uplink.index,
            ipv6: uplink.ipv6_default,
        }),
        local_addresses: state.facts.local_addresses.clone(),
        peers: peers.collect(),
        attachments: state.entries.values().map(attached).collect(),
        members: members(me, state),
        mtu: state.mtu,
        nat64: nat64(config, &state.facts),
        nat64_private: fabric.nat64_private.clone(),
    })
}

/// This node's roles, as the store has them.
#[must_use]
pub fn roles(me: &Me, state: &State) -> Vec<Role> {
    state.fabric.nodes().get(&me.node).map(|node| node.spec.roles.clone()).unwrap_or_default()
}

/// The groups that are hosted here.
fn groups(state: &State) -> BTreeSet<&Label> {
    state.entries.values().filter_map(|entry| entry.spec.group.as_ref()).collect()
}

/// The members elsewhere of the groups that are hosted here.
fn members(me: &Me, state: &State) -> Vec<Member> {
    let groups = groups(state);
    if groups.is_empty() {
        return Vec::new();
    }
    let members = state.fabric.workspaces().values().filter_map(|seen| {
        let group = seen.workspace.spec.group.as_ref().filter(|group| groups.contains(group))?;
        let attachment = seen.workspace.status.attachment.as_ref().filter(|attachment| attachment.node != me.node)?;
        Some(Member { address: attachment.address, group: group.clone() })
    });
    members.collect()
}

/// What the resolver is told; `None` while the fabric is not known.
#[must_use]
pub fn dns(me: &Me, state: &State, upstreams: Vec<SocketAddr>) -> Option<DnsView> {
    let fabric = state.fabric.spec()?;
    let groups = groups(state);
    let here = state.entries.values().map(|entry| DnsName {
        id: entry.id,
        name: entry.spec.name.clone(),
        address: entry.address.address(),
        group: entry.spec.group.clone(),
    });
    let elsewhere = state.fabric.workspaces().values().filter_map(|seen| {
        let workspace = &seen.workspace;
        let group = workspace.spec.group.clone().filter(|group| groups.contains(group))?;
        let attachment = workspace.status.attachment.as_ref().filter(|attachment| attachment.node != me.node)?;
        Some(DnsName {
            id: workspace.id,
            name: workspace.spec.name.clone(),
            address: attachment.address,
            group: Some(group),
        })
    });
    Some(DnsView {
        schema: DnsView::SCHEMA,
        listen: fabric.prefixes.first().map(weft_model::FabricPrefix::dns).into_iter().collect(),
        askers: vec![me.prefix.net()],
        upstreams,
        domain: fabric.domain.clone(),
        names: here.chain(elsewhere).collect(),
        nat64_global: NAT64_GLOBAL,
        nat64_private: NAT64_PRIVATE,
        private: fabric.nat64_private.clone(),
        native_aaaa: state.facts.uplink.as_ref().is_some_and(|uplink| uplink.ipv6_default),
    })
}

/// What this node says of itself to the others.
#[must_use]
pub fn node_status(config: &Config, facts: &Facts, seed: bool, ready: bool) -> NodeStatus {
    let at = |port: u16| underlay(facts).into_iter().map(move |ip| SocketAddr::new(ip, port)).collect::<Vec<_>>();
    let endpoints = if config.endpoints.is_empty() { at(config.listen_port) } else { config.endpoints.clone() };
    NodeStatus {
        endpoints,
        api: if seed { api(config, facts) } else { Vec::new() },
        addresses: facts.local_addresses.clone(),
        ipv4: facts.uplink.as_ref().is_some_and(|uplink| uplink.ipv4.is_some()),
        ipv6: facts.uplink.as_ref().is_some_and(|uplink| uplink.ipv6_default),
        ready,
    }
}

/// Where a seed answers: the address that it listens on, or all of the underlay's.
#[must_use]
pub fn api(config: &Config, facts: &Facts) -> Vec<SocketAddr> {
    if config.api_listen.ip().is_unspecified() {
        underlay(facts).into_iter().map(|ip| SocketAddr::new(ip, config.api_listen.port())).collect()
    } else {
        vec![config.api_listen]
    }
}

/// The addresses by which other nodes reach this one, the uplink's IPv4 first.
fn underlay(facts: &Facts) -> Vec<IpAddr> {
    let first = facts.uplink.as_ref().and_then(|uplink| uplink.ipv4).map(IpAddr::V4);
    let rest = facts.local_addresses.iter().copied().filter(|ip| Some(*ip) != first);
    first.into_iter().chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::tests::{fabric_object, node_object};
    use weft_kernel::UplinkFacts;
    use weft_store::Change;

    pub(crate) fn facts() -> Facts {
        let uplink = UplinkFacts {
            name: "up".into(),
            index: 7,
            ipv4: Some("198.18.0.1".parse().unwrap()),
            ipv6_default: false,
            mtu: 1500,
        };
        let local_addresses = vec!["2001:db8::1".parse().unwrap(), "198.18.0.1".parse().unwrap()];
        Facts { uplink: Some(uplink), local_addresses }
    }

    fn me() -> Me {
        Me { node: "a".parse().unwrap(), prefix: "fd12:3456:789a:7::/64".parse().unwrap() }
    }

    #[test]
    fn the_mtu_is_the_operators_or_what_fits_and_never_below_1280() {
        let mut config = Config::default();
        assert_eq!(mtu(&config, &facts()), Some(1420));
        assert_eq!(mtu(&config, &Facts::default()), None);
        let mut narrow = facts();
        narrow.uplink.as_mut().unwrap().mtu = 1300;
        assert_eq!(mtu(&config, &narrow), Some(1280));
        config.mtu = Some(1400);
        assert_eq!(mtu(&config, &narrow), Some(1400));
    }

    #[test]
    fn a_view_needs_the_fabric_and_leaves_this_node_out_of_the_peers() {
        let mut state = State::default();
        (state.node, state.facts) = (Some(me().node), facts());
        assert_eq!(node_view(&Config::default(), &me(), &state), None);
        for object in [fabric_object(), node_object("a", 7, 2), node_object("b", 8, 3)] {
            state.fabric.apply(&Change::Put(object));
        }
        let view = node_view(&Config::default(), &me(), &state).unwrap();
        assert_eq!(view.peers.len(), 1);
        assert_eq!(view.peers[0].addresses, ["198.18.0.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(view.nat64.unwrap().ports, (16384, 29999));
        assert!(!view.proxy);
    }

    #[test]
    fn endpoints_are_the_underlays_unless_the_operator_says_otherwise() {
        let mut config = Config::default();
        let status = node_status(&config, &facts(), true, false);
        assert_eq!(status.endpoints, ["198.18.0.1:51820".parse().unwrap(), "[2001:db8::1]:51820".parse().unwrap()]);
        assert_eq!(status.api[0], "198.18.0.1:7443".parse().unwrap());
        config.endpoints = vec!["192.0.2.1:4000".parse().unwrap()];
        config.api_listen = "192.0.2.1:7000".parse().unwrap();
        let status = node_status(&config, &facts(), true, false);
        assert_eq!((status.endpoints.len(), status.api.len()), (1, 1));
        assert!(node_status(&config, &facts(), false, false).api.is_empty());
    }
}
