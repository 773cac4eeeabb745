//! The netlink messages that we send, each made of plain values.
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::RawFd,
};

use ipnet::Ipv6Net;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope},
    link::{InfoData, InfoVeth, LinkAttribute, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
        RouteType,
    },
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};
use weft_plan::state::{HOST_MAC, LINK_GROUP, PROTOCOL};

/// A veth whose peer `eth0` is born in another netns. Both ends stay down.
pub(crate) fn veth(name: &str, mac: [u8; 6], mtu: u32, netns: RawFd) -> RouteNetlinkMessage {
    // the peer must not be up in this message: it would be opened before it has a peer (ENOTCONN)
    let peer =
        LinkMessageBuilder::<LinkUnspec>::new().name("eth0").address(mac.to_vec()).mtu(mtu).setns_by_fd(netns).build();
    let link = LinkVeth::new(name, "eth0").address(HOST_MAC.to_vec()).mtu(mtu);
    RouteNetlinkMessage::NewLink(link.set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build())
}

/// Brings a link up.
pub(crate) fn up(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).up().build())
}

/// Takes a link down.
pub(crate) fn down(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).down().build())
}

/// Sets a link's MTU.
pub(crate) fn mtu(index: u32, mtu: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).mtu(mtu).build())
}

/// Marks a link as complete.
pub(crate) fn complete(index: u32) -> RouteNetlinkMessage {
    let group = LinkAttribute::Group(LINK_GROUP);
    RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).append_extra_attribute(group).build())
}

/// Deletes a link.
pub(crate) fn delete_link(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build())
}

/// An address that is usable at once: no duplicate address detection.
pub(crate) fn address(index: u32, address: IpAddr, length: u8, ours: bool) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.prefix_len = length;
    message.header.index = index;
    message.header.flags = if address.is_ipv6() { AddressHeaderFlags::Nodad } else { AddressHeaderFlags::empty() };
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Address(address), AddressAttribute::Local(address)];
    if ours {
        message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
    }
    message
}

/// A permanent neighbour.
pub(crate) fn neighbour(index: u32, address: IpAddr, mac: [u8; 6]) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    let (family, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes =
        vec![NeighbourAttribute::Destination(destination), NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    RouteNetlinkMessage::NewNeighbour(message)
}

fn route(family: AddressFamily, kind: RouteType) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = kind;
    message
}

/// A route of ours in the main table; without a device it is unreachable.
pub(crate) fn route6(to: Ipv6Net, metric: u32, device: Option<u32>, source: Option<Ipv6Addr>) -> RouteMessage {
    let mut message =
        route(AddressFamily::Inet6, if device.is_some() { RouteType::Unicast } else { RouteType::Unreachable });
    message.header.destination_prefix_length = to.prefix_len();
    message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet6(to.addr())));
    message.attributes.push(RouteAttribute::Priority(metric));
    message.attributes.extend(device.map(RouteAttribute::Oif));
    message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(RouteAddress::Inet6(source))));
    message
}

/// The default route inside, IPv6.
pub(crate) fn default6(index: u32, gateway: Ipv6Addr) -> RouteMessage {
    let mut message = route(AddressFamily::Inet6, RouteType::Unicast);
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet6(gateway)), RouteAttribute::Oif(index)];
    message
}

/// The default route inside, IPv4: smaller by what translation adds (the IPv6 header and the Fragment header).
pub(crate) fn default4(index: u32, gateway: Ipv4Addr, source: Ipv4Addr, mtu: u32) -> RouteMessage {
    let mut message = route(AddressFamily::Inet, RouteType::Unicast);
    message.header.scope = RouteScope::Universe;
    message.header.flags = RouteFlags::Onlink;
    message.attributes = vec![
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
        RouteAttribute::Oif(index),
        RouteAttribute::PrefSource(RouteAddress::Inet(source)),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]),
    ];
    message
}

/// Where a filter of the clsact qdisc sits (TC_H_MAKE of TC_H_CLSACT and TC_H_MIN_INGRESS or _EGRESS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// What the workspace sends.
    Ingress,
    /// What reaches it.
    Egress,
}

impl Side {
    fn parent(self) -> TcHandle {
        let minor = if self == Self::Ingress { 0xfff2 } else { 0xfff3 };
        TcHandle { major: 0xffff, minor }
    }
}

/// Priority and handle of our filters: the first that is asked.
const PRIORITY: u32 = 1;
const HANDLE: u32 = 1;

fn traffic_control(index: u32, parent: TcHandle, handle: TcHandle, info: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).unwrap_or(0);
    (message.header.parent, message.header.handle, message.header.info) = (parent, handle, info);
    message
}

/// The qdisc that a link's filters hang from; it queues nothing.
pub(crate) fn clsact(index: u32) -> RouteNetlinkMessage {
    let (parent, handle) = (TcHandle { major: 0xffff, minor: 0xfff1 }, TcHandle { major: 0xffff, minor: 0 });
    let mut message = traffic_control(index, parent, handle, 0);
    message.attributes = vec![TcAttribute::Kind("clsact".into())];
    RouteNetlinkMessage::NewQueueDiscipline(message)
}

/// A program as a filter that decides by itself (direct action); an existing one is replaced without a gap.
pub(crate) fn filter(index: u32, side: Side, program: RawFd, name: &str) -> RouteNetlinkMessage {
    const ALL_PROTOCOLS: u16 = 0x0003;
    let info = PRIORITY << 16 | u32::from(ALL_PROTOCOLS.to_be());
    let mut message = traffic_control(index, side.parent(), HANDLE.into(), info);
    let options = [
        TcFilterBpfOption::ProgFd(u32::try_from(program).unwrap_or(0)),
        TcFilterBpfOption::ProgName(name.into()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let options = options.map(TcOption::Bpf).to_vec();
    message.attributes = vec![TcAttribute::Kind("bpf".into()), TcAttribute::Options(options)];
    RouteNetlinkMessage::NewTrafficFilter(message)
}

/// Asks for the filters of a side.
pub(crate) fn filters(index: u32, side: Side) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetTrafficFilter(traffic_control(index, side.parent(), 0.into(), 0))
}

/// The program's id, if a filter is ours and decides by itself.
pub(crate) fn filter_program(message: &RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = message else { return None };
    if message.header.info >> 16 != PRIORITY || u32::from(message.header.handle) != HANDLE {
        return None;
    }
    let (mut id, mut direct) = (None, false);
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgId(program)) => id = Some(*program),
                TcOption::Bpf(TcFilterBpfOption::Flags(flags)) => direct = flags.contains(TcBpfFlags::DirectAction),
                _ => {}
            }
        }
    }
    id.filter(|_| direct)
}

/// Asks for all links.
pub(crate) fn all_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

/// Asks for all addresses of both families.
pub(crate) fn all_addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

/// Asks for all neighbours of IPv6.
pub(crate) fn all_neighbours() -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    RouteNetlinkMessage::GetNeighbour(message)
}

/// Asks for the routes of a family's main table; of our protocol only, or of all.
pub(crate) fn all_routes(family: AddressFamily, ours: bool) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = if ours { RouteProtocol::Other(PROTOCOL) } else { RouteProtocol::Unspec };
    RouteNetlinkMessage::GetRoute(message)
}
