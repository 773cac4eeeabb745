//! What is there: everything of ours in the kernel, and the facts about the node that planning starts from.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::Ipv6Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressProtocol, AddressScope},
    link::{LinkAttribute, LinkFlags},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
};
use weft_model::{WorkspaceId, address::GATEWAY};
use weft_plan::{
    LinkState, Observed, Route, Target, TunState,
    state::{LINK_GROUP, PROTOCOL, TRANSLATOR, TUNNEL},
};

use crate::{
    Error, Facts, Result, UplinkFacts,
    datapath::{DataPath, pin_hook},
    messages as msg,
    netlink::Netlink,
    nft,
    tables::group_label,
};

/// A link as the kernel tells it.
#[derive(Debug)]
struct Link {
    index: u32,
    name: String,
    up: bool,
    mtu: u32,
    group: u32,
}

/// An address as the kernel tells it.
#[derive(Debug)]
struct Address {
    index: u32,
    address: IpAddr,
    length: u8,
    scope: AddressScope,
    ours: bool,
}

fn links(netlink: &Netlink) -> Result<Vec<Link>> {
    let links = netlink.dump("list the links", &msg::all_links())?.into_iter().filter_map(|message| {
        let RouteNetlinkMessage::NewLink(message) = message else { return None };
        let up = message.header.flags.contains(LinkFlags::Up);
        let mut link = Link { index: message.header.index, name: String::new(), up, mtu: 0, group: 0 };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Group(group) => link.group = group,
                _ => {}
            }
        }
        Some(link)
    });
    Ok(links.collect())
}

fn addresses(netlink: &Netlink) -> Result<Vec<Address>> {
    let list = netlink.dump("list the addresses", &msg::all_addresses())?.into_iter().filter_map(|message| {
        let RouteNetlinkMessage::NewAddress(message) = message else { return None };
        let (mut address, mut local, mut ours) = (None, None, false);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Address(value) => address = Some(*value),
                AddressAttribute::Local(value) => local = Some(*value),
                AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)) => ours = true,
                _ => {}
            }
        }
        let header = message.header;
        let address = local.or(address)?;
        Some(Address { index: header.index, address, length: header.prefix_len, scope: header.scope, ours })
    });
    Ok(list.collect())
}

fn permanent_neighbours(netlink: &Netlink) -> Result<BTreeMap<u32, BTreeSet<Ipv6Addr>>> {
    let mut neighbours: BTreeMap<u32, BTreeSet<Ipv6Addr>> = BTreeMap::new();
    for message in netlink.dump("list the neighbours", &msg::all_neighbours())? {
        let RouteNetlinkMessage::NewNeighbour(message) = message else { continue };
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(*address),
            _ => None,
        });
        if let Some(address) = address.filter(|_| message.header.state == NeighbourState::Permanent) {
            neighbours.entry(message.header.ifindex).or_default().insert(address);
        }
    }
    Ok(neighbours)
}

/// The parts of a route that matter here.
struct RouteParts {
    destination: Option<IpAddr>,
    metric: u32,
    device: Option<u32>,
    source: Option<Ipv6Addr>,
}

fn parts(message: &RouteMessage) -> RouteParts {
    let mut parts = RouteParts { destination: None, metric: 0, device: None, source: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => parts.destination = Some(IpAddr::V6(*address)),
            RouteAttribute::Destination(RouteAddress::Inet(address)) => parts.destination = Some(IpAddr::V4(*address)),
            RouteAttribute::Priority(metric) => parts.metric = *metric,
            RouteAttribute::Oif(index) => parts.device = Some(*index),
            RouteAttribute::PrefSource(RouteAddress::Inet6(source)) => parts.source = Some(*source),
            RouteAttribute::MultiPath(hops) => {
                parts.device = parts.device.or(hops.first().map(|hop| hop.interface_index))
            }
            _ => {}
        }
    }
    parts
}

fn routes(netlink: &Netlink, family: AddressFamily, ours: bool) -> Result<Vec<RouteMessage>> {
    let list = netlink.dump("list the routes", &msg::all_routes(family, ours))?.into_iter();
    let list = list.filter_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    Ok(list.filter(|route| !ours || route.header.protocol == RouteProtocol::Other(PROTOCOL)).collect())
}

fn our_routes(netlink: &Netlink, names: &BTreeMap<u32, &str>) -> Result<BTreeSet<Route>> {
    let routes = routes(netlink, AddressFamily::Inet6, true)?.into_iter().filter_map(|message| {
        let parts = parts(&message);
        let address = match parts.destination {
            Some(IpAddr::V6(address)) => address,
            _ => Ipv6Addr::UNSPECIFIED,
        };
        let destination = Ipv6Net::new(address, message.header.destination_prefix_length).ok()?;
        let target = if message.header.kind == RouteType::Unreachable {
            Target::Unreachable
        } else {
            Target::Device { name: (*names.get(&parts.device?)?).to_owned(), source: parts.source }
        };
        Some(Route { destination, target, metric: parts.metric })
    });
    Ok(routes.collect())
}

fn sysctl(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok().map(|value| value.trim().to_owned())
}

/// The ranges of `net.ipv4.ip_local_reserved_ports`.
pub(crate) fn reserved_ports() -> Vec<(u16, u16)> {
    let text = sysctl("net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.split(',').filter_map(|part| range(part.trim())).collect()
}

/// Observes everything.
pub(crate) fn observe(datapath: &DataPath) -> Result<Observed> {
    let netlink = Netlink::open()?;
    let links = links(&netlink)?;
    let addresses = addresses(&netlink)?;
    let names: BTreeMap<u32, &str> = links.iter().map(|link| (link.index, link.name.as_str())).collect();
    let loopback = links.iter().find(|link| link.name == "lo").map_or(1, |link| link.index);
    let mut observed = Observed {
        sysctls: sysctls(&links),
        reserved_ports: reserved_ports(),
        routes: our_routes(&netlink, &names)?,
        tables: datapath.maps.tables()?,
        nft: nft::observe()?,
        ..Observed::default()
    };
    let on_loopback = addresses.iter().filter(|address| address.index == loopback && address.ours);
    observed.loopback = on_loopback.filter_map(|found| as_v6(found.address)).collect();
    for link in links.iter().filter(|link| link.name == TUNNEL || link.name == TRANSLATOR) {
        observed.tuns.insert(link.name.clone(), TunState { mtu: link.mtu, up: link.up });
    }
    let index = |name: &str| links.iter().find(|link| link.name == name).map(|link| link.index);
    observed.config = datapath.maps.config()?.and_then(|(config, tunnel, translator)| {
        let translator_is =
            if config.nat64.is_some() { index(TRANSLATOR) == Some(translator) } else { translator == 0 };
        (index(TUNNEL) == Some(tunnel) && translator_is).then_some(config)
    });
    observe_links(datapath, &netlink, &links, &addresses, &mut observed)?;
    observe_pins(datapath, &index, &mut observed)?;
    Ok(observed)
}

fn as_v6(address: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(address) = address { Some(address) } else { None }
}

fn sysctls(links: &[Link]) -> BTreeMap<String, String> {
    let mut names = vec!["net/ipv6/conf/all/forwarding".to_owned(), "net/ipv4/conf/all/rp_filter".to_owned()];
    names.extend(["forwarding", "accept_local", "rp_filter"].map(|name| format!("net/ipv4/conf/{TRANSLATOR}/{name}")));
    let foreign = links.iter().filter(|link| WorkspaceId::from_ifname(&link.name).is_none() && link.name != "lo");
    names.extend(foreign.map(|link| format!("net/ipv6/conf/{}/accept_ra", link.name)));
    names.into_iter().filter_map(|name| sysctl(&name).map(|value| (name, value))).collect()
}

fn observe_links(
    datapath: &DataPath,
    netlink: &Netlink,
    links: &[Link],
    addresses: &[Address],
    observed: &mut Observed,
) -> Result<()> {
    let neighbours = permanent_neighbours(netlink)?;
    let gateways: BTreeSet<u32> =
        addresses.iter().filter(|found| found.address == IpAddr::V6(GATEWAY)).map(|found| found.index).collect();
    let mut locals: BTreeMap<Ipv6Addr, u32> = BTreeMap::new();
    for (address, local) in datapath.maps.locals.entries().map_err(Error::bpf("list the addresses of workspaces"))? {
        locals.insert(address.into(), local.ifindex);
    }
    let mut live = BTreeSet::new();
    for link in links {
        let Some(id) = WorkspaceId::from_ifname(&link.name) else { continue };
        live.insert(link.index);
        let entry = datapath
            .link(link.index)?
            .map(|record| (Ipv6Addr::from(record.address), Ipv6Addr::from(record.twin), group_label(&record.group)));
        let known = |address: &Ipv6Addr| locals.get(address) == Some(&link.index);
        let state = LinkState {
            index: link.index,
            complete: link.group == LINK_GROUP,
            mtu: link.mtu,
            up: link.up,
            gateway: gateways.contains(&link.index),
            neighbours: neighbours.get(&link.index).cloned().unwrap_or_default(),
            programs: datapath.is_workspace_attached(netlink, link.index),
            entry: entry.filter(|(address, twin, _)| known(address) && known(twin)),
        };
        observed.links.insert(id, state);
    }
    observed.orphans = locals.iter().filter(|(_, index)| !live.contains(index)).map(|(address, _)| *address).collect();
    Ok(())
}

fn observe_pins(datapath: &DataPath, index: &dyn Fn(&str) -> Option<u32>, observed: &mut Observed) -> Result<()> {
    for pin in datapath.links()? {
        let Some(hook) = pin_hook(&pin) else {
            observed.stale_pins.insert(format!("links/{pin}"));
            continue;
        };
        let name = if let weft_plan::Hook::Uplink(name) = &hook { name.as_str() } else { TUNNEL };
        let current = index(name).is_some_and(|index| datapath.is_hook_attached(&hook, index));
        observed.hooks.insert(hook, current);
    }
    observed.stale_pins.extend(datapath.other_versions()?);
    Ok(())
}

/// What the node can see of itself.
pub(crate) fn facts(wanted: Option<&str>) -> Result<Facts> {
    let netlink = Netlink::open()?;
    let links = links(&netlink)?;
    let addresses = addresses(&netlink)?;
    let ours = |name: &str| name == TUNNEL || name == TRANSLATOR || WorkspaceId::from_ifname(name).is_some();
    let foreign = |index: u32| links.iter().any(|link| link.index == index && !ours(&link.name));
    let local = |found: &&Address| {
        let loopback = found.address.is_loopback() || found.scope == AddressScope::Host;
        foreign(found.index) && !found.ours && !loopback && !is_link_local(found.address)
    };
    let local_addresses: BTreeSet<IpAddr> = addresses.iter().filter(local).map(|found| found.address).collect();
    let default6 = default_route(&netlink, AddressFamily::Inet6, &foreign)?;
    let default4 = default_route(&netlink, AddressFamily::Inet, &foreign)?;
    let chosen = |link: &&Link| match wanted {
        Some(name) => link.name == name,
        None => default4.first().or(default6.first()) == Some(&link.index),
    };
    let uplink = links.iter().find(chosen).map(|link| UplinkFacts {
        name: link.name.clone(),
        index: link.index,
        ipv4: addresses.iter().find_map(|found| global_v4(found, link.index)),
        ipv6_default: default6.contains(&link.index),
        mtu: link.mtu,
    });
    Ok(Facts { uplink, local_addresses: local_addresses.into_iter().collect() })
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn global_v4(found: &Address, index: u32) -> Option<Ipv4Addr> {
    match found.address {
        IpAddr::V4(address) if found.index == index && found.scope == AddressScope::Universe && found.length <= 32 => {
            Some(address)
        }
        _ => None,
    }
}

/// The interfaces of a family's default routes, the preferred one first.
fn default_route(netlink: &Netlink, family: AddressFamily, foreign: &dyn Fn(u32) -> bool) -> Result<Vec<u32>> {
    let mut found: Vec<(u32, u32)> = routes(netlink, family, false)?
        .iter()
        .filter(|route| route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast)
        .filter_map(|route| {
            let parts = parts(route);
            parts.device.filter(|index| foreign(*index)).map(|index| (parts.metric, index))
        })
        .collect();
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, index)| index).collect())
}

/// Index and name of every link that is named like a workspace's.
pub(crate) fn workspace_links() -> Result<Vec<(u32, String)>> {
    let links = links(&Netlink::open()?)?.into_iter();
    Ok(links
        .filter(|link| WorkspaceId::from_ifname(&link.name).is_some())
        .map(|link| (link.index, link.name))
        .collect())
}
