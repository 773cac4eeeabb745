//! What the kernel of a node should hold, given what the node knows.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use weft_model::address::{NAT64_GLOBAL, NAT64_LEN, NAT64_PRIVATE, NON_GLOBAL_V4};

use crate::{
    policy::{Zone4, Zone6},
    state::{
        BACKING_METRIC, DataConfig, Desired, FLOW_LIMIT, Hook, LinkSpec, METRIC, Route, TRANSLATOR, TUNNEL, Tables,
        Target,
    },
    view::NodeView,
};

/// The range that the IPv6 internet is in.
const GLOBAL_UNICAST: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// The metadata service of most clouds: no permitted private range may open it.
const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

fn nat64(prefix: Ipv6Addr) -> Ipv6Net {
    Ipv6Net::new_assert(prefix, NAT64_LEN)
}

/// Derives everything from what the node knows.
#[must_use]
pub fn desired(view: &NodeView) -> Desired {
    let mut tuns = BTreeMap::from([(TUNNEL.to_owned(), view.mtu)]);
    if view.nat64.is_some() {
        // IPv4 grows by 28 bytes when it becomes fragmented IPv6; below the workspaces' MTU it would only cause errors
        tuns.insert(TRANSLATOR.to_owned(), view.mtu.max(1500));
    }
    let mut hooks = BTreeSet::from([Hook::Tunnel]);
    hooks.extend(view.uplink.iter().map(|uplink| Hook::Uplink(uplink.name.clone())));
    let links = view.attachments.iter().map(|ws| (ws.id, LinkSpec { ws: ws.clone(), mtu: view.mtu }));
    let dns = view.fabric.first().map_or(view.prefix.node_address(), weft_model::FabricPrefix::dns);
    Desired {
        uplink: view.uplink.as_ref().map(|uplink| uplink.name.clone()),
        sysctls: sysctls(view),
        reserved_ports: view.nat64.as_ref().map(|nat64| nat64.ports),
        tuns,
        loopback: [view.prefix.node_address(), view.prefix.proxy_address(), dns].into(),
        routes: routes(view),
        config: DataConfig {
            node: view.prefix.node_address(),
            proxy: view.prefix.proxy_address(),
            dns,
            prefix: view.prefix.net(),
            nat64: view.nat64.clone(),
            flow_limit: FLOW_LIMIT,
        },
        tables: tables(view),
        hooks,
        links: links.collect(),
        nft: nft(view),
    }
}

/// Sysctls in the order in which they may be written: enabling forwarding first would purge the host's RA routes.
fn sysctls(view: &NodeView) -> Vec<(String, String)> {
    let mut list = Vec::new();
    if let Some(uplink) = &view.uplink {
        list.push((format!("net/ipv6/conf/{}/accept_ra", uplink.name), "2".to_owned()));
    }
    list.push(("net/ipv6/conf/all/forwarding".to_owned(), "1".to_owned()));
    if view.nat64.is_some() {
        for (name, value) in [("forwarding", "1"), ("accept_local", "1"), ("rp_filter", "0")] {
            list.push((format!("net/ipv4/conf/{TRANSLATOR}/{name}"), value.to_owned()));
        }
    }
    list
}

/// Routes: what backs everything up, what leads to peers and to the translator, what leads to workspaces.
fn routes(view: &NodeView) -> BTreeSet<Route> {
    let source = Some(view.prefix.node_address());
    let device = |destination, name: &str| Route {
        destination,
        target: Target::Device { name: name.to_owned(), source },
        metric: METRIC,
    };
    let mut routes = BTreeSet::new();
    let prefixes = [nat64(NAT64_GLOBAL), nat64(NAT64_PRIVATE)];
    let backed = view.fabric.iter().map(weft_model::FabricPrefix::net).chain([view.prefix.net()]).chain(prefixes);
    for destination in backed {
        routes.insert(Route { destination, target: Target::Unreachable, metric: BACKING_METRIC });
    }
    routes.extend(view.peers.iter().map(|peer| device(peer.prefix.net(), TUNNEL)));
    if view.nat64.is_some() {
        routes.extend(prefixes.map(|prefix| device(prefix, TRANSLATOR)));
    }
    for ws in &view.attachments {
        for address in [ws.address.address(), ws.address.twin()] {
            routes.insert(device(Ipv6Net::new_assert(address, 128), &ws.id.ifname()));
        }
    }
    routes
}

/// The tables that the programs look up.
fn tables(view: &NodeView) -> Tables {
    let mut tables = Tables::default();
    tables.zones6.insert(GLOBAL_UNICAST, Zone6::Internet);
    tables.zones6.insert(nat64(NAT64_GLOBAL), Zone6::Nat64Global);
    tables.zones6.insert(nat64(NAT64_PRIVATE), Zone6::Nat64Private);
    for fabric in &view.fabric {
        tables.zones6.insert(fabric.net(), Zone6::Fabric);
    }
    // a node's prefix outside the fabric's prefixes (a cloud's delegated one) is fabric all the same
    for prefix in view.peers.iter().map(|peer| peer.prefix).chain([view.prefix]) {
        if !view.fabric.iter().any(|fabric| fabric.net().contains(&prefix.net())) {
            tables.zones6.insert(prefix.net(), Zone6::Fabric);
        }
    }
    for net in NON_GLOBAL_V4 {
        tables.zones4.insert(net, Zone4::NonGlobal);
    }
    for net in view.nat64_private.iter().map(Ipv4Net::trunc) {
        // what the operator permits opens everything inside it
        tables.zones4.retain(|known, zone| !(net.contains(known) && *zone == Zone4::NonGlobal));
        tables.zones4.insert(net, Zone4::Private);
    }
    tables.zones4.insert(Ipv4Net::new_assert(METADATA_V4, 32), Zone4::Denied);
    let own = view.nat64.iter().map(|nat64| IpAddr::V4(nat64.address));
    let nodes = view.peers.iter().flat_map(|peer| peer.addresses.iter().copied());
    for address in view.local_addresses.iter().copied().chain(nodes).chain(own) {
        deny(&mut tables, address);
    }
    tables.members = view.members.iter().map(|member| (member.group.clone(), member.address)).collect();
    tables.proxies = view.peers.iter().filter(|peer| peer.proxy).map(|peer| peer.prefix.proxy_address()).collect();
    if view.proxy {
        tables.proxies.insert(view.prefix.proxy_address());
    }
    let ports = |ws: &crate::view::AttachedWorkspace| {
        let address = ws.address.address();
        ws.ports.iter().map(move |port| (address, *port)).collect::<Vec<_>>()
    };
    tables.ports = view.attachments.iter().flat_map(ports).collect();
    tables
}

/// Denies an address of a node; service addresses inside the fabric are judged by other rules.
fn deny(tables: &mut Tables, address: IpAddr) {
    match address {
        IpAddr::V6(address) if tables.zone6(address) == Zone6::Fabric => {}
        IpAddr::V6(address) => drop(tables.zones6.insert(Ipv6Net::new_assert(address, 128), Zone6::Denied)),
        IpAddr::V4(address) => drop(tables.zones4.insert(Ipv4Net::new_assert(address, 32), Zone4::Denied)),
    }
}

/// The table `inet weft`: masquerade what leaves for the IPv6 internet, track nothing else of ours.
fn nft(view: &NodeView) -> String {
    use std::fmt::Write as _;
    let mut inside: BTreeSet<Ipv6Net> = view.fabric.iter().map(weft_model::FabricPrefix::net).collect();
    inside.extend(view.peers.iter().map(|peer| peer.prefix.net()).chain([view.prefix.net()]));
    let inside: Vec<String> =
        Ipv6Net::aggregate(&inside.into_iter().collect()).iter().map(ToString::to_string).collect();
    let inside = inside.join(", ");
    let translated = format!("{}, {}", nat64(NAT64_GLOBAL), nat64(NAT64_PRIVATE));
    let mut text = String::new();
    for (chain, hook) in [("untracked-in", "prerouting"), ("untracked-out", "output")] {
        let _ = write!(
            text,
            "  chain {chain} {{\n    type filter hook {hook} priority raw; policy accept;\n    \
             ip6 saddr {{ {inside} }} ip6 daddr {{ {inside} }} notrack\n    \
             ip6 daddr {{ {translated} }} notrack\n    ip6 saddr {{ {translated} }} notrack\n"
        );
        if hook == "prerouting" {
            let _ = writeln!(text, "    iifname \"{TRANSLATOR}\" notrack");
        }
        text.push_str("  }\n");
    }
    if let Some(uplink) = &view.uplink {
        let _ = write!(
            text,
            "  chain to-internet {{\n    type nat hook postrouting priority srcnat; policy accept;\n    \
             oifname \"{}\" ip6 saddr {{ {inside} }} ip6 daddr != {{ {inside} }} masquerade\n  }}\n",
            uplink.name
        );
    }
    text
}
