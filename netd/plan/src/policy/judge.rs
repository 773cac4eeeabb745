//! The judgement at each hook. It must say of every packet what the programs in bpf/ say: a test compares the two.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use weft_model::{
    Label,
    address::{CLAT_GATEWAY, CLAT_WORKSPACE, GATEWAY, NAT64_GLOBAL, NAT64_PRIVATE},
};

use super::{
    Reason, Zone4, Zone6,
    packet::{ICMPV4, ICMPV6, Packet, Part, TCP, UDP, address, array, port},
};
use crate::state::{DataConfig, Tables};

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// ff02::1:ff00:1, where fe80::1 is asked for.
const GATEWAY_GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);

/// A flow of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey {
    /// The workspace.
    pub address: Ipv6Addr,
    /// The other end.
    pub remote: Ipv6Addr,
    /// The workspace's port; of an echo that it asked, the identifier.
    pub port: u16,
    /// The other end's port.
    pub remote_port: u16,
    /// The upper layer's number.
    pub protocol: u8,
}

/// A workspace's link as the programs know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its twin.
    pub twin: Ipv6Addr,
    /// Its group.
    pub group: Option<Label>,
}

/// Everything that a judgement depends on.
#[derive(Debug, Clone)]
pub struct Context {
    /// The node's configuration.
    pub config: DataConfig,
    /// The tables.
    pub tables: Tables,
    /// The workspaces here, by address.
    pub links: BTreeMap<Ipv6Addr, Link>,
    /// Open flows.
    pub flows: BTreeSet<FlowKey>,
    /// First fragments that were let in: to, from, identification.
    pub fragments: BTreeSet<(Ipv6Addr, Ipv6Addr, [u8; 4])>,
}

/// By which way a packet came to a workspace's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingress {
    /// The node sends it itself.
    Local,
    /// From weft0.
    Tunnel,
    /// From weft64.
    Translator,
    /// From another workspace's link.
    Workspace,
    /// From any other interface.
    Other,
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// On, by the stack (or to the stack).
    Stack,
    /// Straight into the netns of the workspace with this address.
    Workspace(Ipv6Addr),
    /// To the translator's TUN.
    Translator,
    /// Back to the sender, as the answer to its question.
    Answer,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Forward(Via),
    /// It does not.
    Drop(Reason),
}

/// A verdict, and what is to be remembered of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// The flow that it opens, if it is not open.
    pub opens: Option<FlowKey>,
}

type Judged = Result<(Via, Option<FlowKey>), Reason>;

impl From<Judged> for Judgement {
    fn from(judged: Judged) -> Self {
        match judged {
            Ok((via, opens)) => Self { verdict: Verdict::Forward(via), opens },
            Err(reason) => Self { verdict: Verdict::Drop(reason), opens: None },
        }
    }
}

const UP: Judged = Ok((Via::Stack, None));

fn is_link_local(address: Ipv6Addr) -> bool {
    address.is_unicast_link_local()
}

fn is_nat64(zone: Zone6) -> bool {
    matches!(zone, Zone6::Nat64Global | Zone6::Nat64Private)
}

fn embedded(address: Ipv6Addr) -> Ipv4Addr {
    let [.., a, b, c, d] = address.octets();
    Ipv4Addr::new(a, b, c, d)
}

impl Context {
    /// Zone, and whether anything is known of the address at all.
    fn zone(&self, address: Ipv6Addr) -> (Zone6, bool) {
        let known = self.tables.zones6.keys().any(|net| net.contains(&address));
        (self.tables.zone6(address), known)
    }

    fn is_twin(&self, address: Ipv6Addr) -> bool {
        self.links.values().any(|link| link.twin == address)
    }

    fn is_friend(&self, own: &Link, remote: Ipv6Addr) -> bool {
        let Some(group) = &own.group else { return false };
        match self.links.get(&remote) {
            Some(link) => link.group.as_ref() == Some(group),
            None => !self.is_twin(remote) && self.tables.members.contains(&(group.clone(), remote)),
        }
    }
}

/// What a workspace sends: an Ethernet frame at the ingress of its link.
#[must_use]
pub fn from_workspace(context: &Context, own: Ipv6Addr, frame: &[u8]) -> Judgement {
    let Some(link) = context.links.get(&own) else { return Err(Reason::NoEntry).into() };
    let judged = match port(frame, 12) {
        Some(IPV6) => sent6(context, own, link, frame),
        Some(IPV4) => sent4(context, frame).map(|()| (Via::Stack, None)),
        Some(ARP) => sent_arp(frame),
        _ => Err(Reason::Ethertype),
    };
    judged.into()
}

fn sent_arp(frame: &[u8]) -> Judged {
    let arp: [u8; 28] = array(frame, ETHERNET).ok_or(Reason::Truncated)?;
    let request = arp.starts_with(&[0, 1, 8, 0, 6, 4, 0, 1]);
    let sender = arp.get(14..18) == Some(&CLAT_WORKSPACE.octets());
    let target = arp.get(24..28) == Some(&CLAT_GATEWAY.octets());
    if request && sender && target { Ok((Via::Answer, None)) } else { Err(Reason::Arp) }
}

/// IPv4 becomes the twin's IPv6 (bpf/clat.h), if it may.
fn sent4(context: &Context, frame: &[u8]) -> Result<(), Reason> {
    let ip: [u8; 20] = array(frame, ETHERNET).filter(|ip: &[u8; 20]| ip[0] >> 4 == 4).ok_or(Reason::Truncated)?;
    let source = Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]);
    let destination = Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]);
    if source != CLAT_WORKSPACE {
        return Err(Reason::BadSource);
    }
    if destination.is_multicast() || destination.is_broadcast() {
        return Err(Reason::Multicast);
    }
    if ip[0] != 0x45 || u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0 {
        return Err(Reason::ClatSlowPath);
    }
    let length = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    if length < 20 || length + ETHERNET > frame.len() {
        return Err(Reason::Truncated);
    }
    let protocol = ip[9];
    if !matches!(protocol, TCP | UDP | ICMPV4) {
        return Err(Reason::ClatSlowPath);
    }
    let l4: [u8; 8] = array(frame, ETHERNET + 20).ok_or(Reason::Truncated)?;
    if length < 20 + if protocol == TCP { 20 } else { 8 } {
        return Err(Reason::Truncated);
    }
    let echo = matches!(l4[0], 0 | 8) && l4[1] == 0;
    if (protocol == ICMPV4 && !echo) || (protocol == UDP && l4[6..8] == [0, 0]) {
        return Err(Reason::ClatSlowPath);
    }
    if ip[8] <= 1 {
        return Err(Reason::HopLimit);
    }
    if destination == CLAT_GATEWAY {
        return if protocol != ICMPV4 && l4[2..4] == [0, 53] { Ok(()) } else { Err(Reason::Service) };
    }
    match context.tables.zone4(destination) {
        Zone4::Denied => Err(Reason::Denied),
        Zone4::NonGlobal => Err(Reason::NotGlobal),
        Zone4::Private | Zone4::Global => Ok(()),
    }
}

/// The IPv6 address that a CLAT sends an IPv4 destination to: by what the address is.
#[must_use]
pub fn clat_destination(tables: &Tables, destination: Ipv4Addr) -> Ipv6Addr {
    let prefix = if tables.zone4(destination) == Zone4::Private { NAT64_PRIVATE } else { NAT64_GLOBAL };
    (prefix.to_bits() | u128::from(destination.to_bits())).into()
}

fn sent6(context: &Context, own: Ipv6Addr, link: &Link, frame: &[u8]) -> Judged {
    let packet = Packet::parse(frame, ETHERNET)?;
    if packet.dst.is_multicast() || is_link_local(packet.dst) {
        return sent_neighbour(own, &packet, frame);
    }
    if packet.src != own {
        return Err(Reason::BadSource);
    }
    if packet.dst == context.config.dns {
        let question = matches!(packet.protocol, UDP | TCP) && packet.dport == 53 && packet.part == Part::Whole;
        return if question { UP } else { Err(Reason::Service) };
    }
    if context.is_twin(packet.dst) {
        return Err(Reason::Twin);
    }
    if context.links.contains_key(&packet.dst) {
        let friend = packet.dst != own && context.is_friend(link, packet.dst);
        return if friend { Ok((Via::Workspace(packet.dst), None)) } else { Err(Reason::NotPermitted) };
    }
    let (zone, known) = context.zone(packet.dst);
    match zone {
        Zone6::Fabric if context.is_friend(link, packet.dst) => UP,
        Zone6::Fabric if packet.part == Part::Later => Err(Reason::Fragment),
        Zone6::Fabric if context.flows.contains(&sent_flow(&packet)) => UP,
        Zone6::Fabric => Err(Reason::NotPermitted),
        Zone6::Nat64Global | Zone6::Nat64Private => sent_nat64(context, zone, packet.dst),
        Zone6::Internet if packet.part == Part::Later => UP,
        Zone6::Internet if packet.protocol == ICMPV6 && packet.icmp_type != 128 => Err(Reason::NotPermitted),
        Zone6::Internet => Ok((Via::Stack, Some(sent_flow(&packet)))),
        Zone6::Denied => Err(if known { Reason::Denied } else { Reason::NotGlobal }),
    }
}

fn sent_flow(packet: &Packet) -> FlowKey {
    FlowKey {
        address: packet.src,
        remote: packet.dst,
        port: packet.sport,
        remote_port: packet.dport,
        protocol: packet.protocol,
    }
}

fn received_flow(packet: &Packet) -> FlowKey {
    FlowKey {
        address: packet.dst,
        remote: packet.src,
        port: packet.dport,
        remote_port: packet.sport,
        protocol: packet.protocol,
    }
}

fn sent_nat64(context: &Context, zone: Zone6, destination: Ipv6Addr) -> Judged {
    match (context.tables.zone4(embedded(destination)), zone) {
        (Zone4::Denied, _) => Err(Reason::Denied),
        (Zone4::Global, Zone6::Nat64Global) | (Zone4::Private, Zone6::Nat64Private) => UP,
        _ => Err(Reason::NotGlobal),
    }
}

/// Multicast and link-local: only the question for the gateway's MAC passes.
fn sent_neighbour(own: Ipv6Addr, packet: &Packet, frame: &[u8]) -> Judged {
    if packet.protocol != ICMPV6 || !(133..=137).contains(&packet.icmp_type) {
        return Err(Reason::Multicast);
    }
    let question = packet.icmp_type == 135
        && !packet.extended
        && packet.hop_limit == 255
        && packet.src == own
        && matches!(packet.dst, GATEWAY | GATEWAY_GROUP)
        && address(frame, packet.l4 + 8) == Some(GATEWAY);
    if question { UP } else { Err(Reason::NeighbourDiscovery) }
}

/// What reaches a workspace through the stack: an Ethernet frame at the egress of its link.
#[must_use]
pub fn to_workspace(context: &Context, own: Ipv6Addr, ingress: Ingress, frame: &[u8]) -> Judgement {
    let Some(link) = context.links.get(&own) else { return Err(Reason::NoEntry).into() };
    if port(frame, 12) != Some(IPV6) {
        return Err(Reason::Ethertype).into();
    }
    received(context, own, link, ingress, frame).into()
}

/// What a later fragment is recognised by, if a frame for a workspace is the first of several: to, from, identification.
/// One that was let in is to be remembered in [`Context::fragments`], unless it went to the twin.
#[must_use]
pub fn first_fragment(frame: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr, [u8; 4])> {
    let packet = Packet::parse(frame, ETHERNET).ok()?;
    (packet.part == Part::First).then_some((packet.dst, packet.src, packet.fragment_id))
}

fn received(context: &Context, own: Ipv6Addr, link: &Link, ingress: Ingress, frame: &[u8]) -> Judged {
    let packet = Packet::parse(frame, ETHERNET)?;
    let discovery = packet.protocol == ICMPV6 && !packet.extended && matches!(packet.icmp_type, 135 | 136);
    if ingress == Ingress::Local && discovery && packet.hop_limit == 255 && packet.src == GATEWAY {
        return UP;
    }
    if packet.dst.is_multicast() || is_link_local(packet.dst) || is_link_local(packet.src) {
        return Err(Reason::Multicast);
    }
    if packet.dst == link.twin {
        return received_by_twin(context, ingress, &packet);
    }
    if packet.dst != own {
        return Err(Reason::NotPermitted);
    }
    let (zone, _) = context.zone(packet.src);
    if is_nat64(zone) {
        if ingress != Ingress::Translator {
            return Err(Reason::ForgedSource);
        }
        if packet.is_icmp_error() && packet.part != Part::Later {
            judge_error(context, own, link, frame, packet.l4, true)?;
        }
        return UP;
    }
    if zone == Zone6::Fabric {
        if is_forged(&context.config, ingress, packet.src) {
            return Err(Reason::ForgedSource);
        }
        if let Some(visitor) = judge_visitor(context, link, &packet) {
            return visitor;
        }
    }
    let node = [context.config.node, context.config.dns].contains(&packet.src) && ingress == Ingress::Local;
    if packet.part == Part::Later {
        let first = (packet.dst, packet.src, packet.fragment_id);
        return if context.fragments.contains(&first) { UP } else { Err(Reason::Fragment) };
    }
    if packet.is_icmp_error() {
        judge_error(context, own, link, frame, packet.l4, node)?;
        return UP;
    }
    if context.flows.contains(&received_flow(&packet)) { UP } else { Err(Reason::NotPermitted) }
}

fn is_forged(config: &DataConfig, ingress: Ingress, source: Ipv6Addr) -> bool {
    match ingress {
        Ingress::Local => ![config.node, config.proxy, config.dns].contains(&source),
        Ingress::Tunnel | Ingress::Workspace => false,
        Ingress::Translator | Ingress::Other => true,
    }
}

/// Friends, the resolver, and proxies at exposed ports; `None` asks further.
fn judge_visitor(context: &Context, link: &Link, packet: &Packet) -> Option<Judged> {
    if context.is_friend(link, packet.src) {
        return Some(UP);
    }
    if packet.part == Part::Later {
        return None;
    }
    if packet.src == context.config.dns && packet.sport == 53 && matches!(packet.protocol, UDP | TCP) {
        return Some(UP);
    }
    let exposed = context.tables.ports.contains(&(packet.dst, packet.dport));
    let proxy = packet.protocol == TCP && context.tables.proxies.contains(&packet.src) && exposed;
    proxy.then(|| Ok((Via::Stack, Some(received_flow(packet)))))
}

fn received_by_twin(context: &Context, ingress: Ingress, packet: &Packet) -> Judged {
    let translated = is_nat64(context.zone(packet.src).0) && ingress == Ingress::Translator;
    let resolver = packet.src == context.config.dns
        && ingress == Ingress::Local
        && packet.protocol != ICMPV6
        && packet.sport == 53;
    if !translated && !resolver {
        return Err(Reason::Twin);
    }
    let echo = packet.protocol == ICMPV6 && matches!(packet.icmp_type, 128 | 129);
    if packet.extended || !(matches!(packet.protocol, TCP | UDP) || echo) {
        return Err(Reason::ClatSlowPath);
    }
    if packet.hop_limit <= 1 { Err(Reason::HopLimit) } else { UP }
}

/// An ICMPv6 error must quote a packet that the receiver sent, to somebody that it may talk to.
fn judge_error(
    context: &Context,
    own: Ipv6Addr,
    link: &Link,
    frame: &[u8],
    l4: usize,
    local: bool,
) -> Result<(), Reason> {
    let quoted = || -> Option<bool> {
        let at = l4 + 8;
        let ip: [u8; 40] = array(frame, at)?;
        if address(&ip, 8)? != own {
            return None;
        }
        let remote = address(&ip, 24)?;
        if local || context.is_friend(link, remote) {
            return Some(true);
        }
        let (mut protocol, mut at) = (ip[6], at + 40);
        if protocol == 44 {
            let header: [u8; 8] = array(frame, at)?;
            if u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
                return None;
            }
            (protocol, at) = (header[0], at + 8);
        }
        let upper: [u8; 8] = array(frame, at)?;
        let (port, remote_port) = match protocol {
            TCP | UDP => (port(&upper, 0)?, port(&upper, 2)?),
            ICMPV6 if upper[0] == 128 => (port(&upper, 4)?, 0),
            _ => (0, 0),
        };
        Some(context.flows.contains(&FlowKey { address: own, remote, port, remote_port, protocol }))
    };
    if quoted() == Some(true) { Ok(()) } else { Err(Reason::IcmpError) }
}

/// What comes from the underlay: an Ethernet frame at the uplink's ingress. What is not about us goes on to the stack.
/// Fragments of IPv4 after the first are left to the programs' memory of first ones.
#[must_use]
pub fn from_uplink(context: &Context, frame: &[u8]) -> Judgement {
    let judged = match port(frame, 12) {
        Some(IPV6) => uplink6(context, frame),
        Some(IPV4) if takes4(context, frame) == Some(true) => Ok((Via::Translator, None)),
        _ => UP,
    };
    judged.into()
}

fn uplink6(context: &Context, frame: &[u8]) -> Judged {
    let ip: Option<[u8; 40]> = array(frame, ETHERNET);
    let Some((src, dst)) = ip.and_then(|ip| Some((address(&ip, 8)?, address(&ip, 24)?))) else { return UP };
    let inside = |address| {
        let (zone, _) = context.zone(address);
        zone == Zone6::Fabric || is_nat64(zone)
    };
    if inside(src) {
        return Err(Reason::ForgedSource);
    }
    if inside(dst) { Err(Reason::UplinkDestination) } else { UP }
}

/// Whether an IPv4 packet belongs to the translator.
fn takes4(context: &Context, frame: &[u8]) -> Option<bool> {
    let nat64 = context.config.nat64.as_ref()?;
    let ip: [u8; 20] = array(frame, ETHERNET)?;
    let reserved = |port: u16| (nat64.ports.0..=nat64.ports.1).contains(&port);
    if ip[16..20] != nat64.address.octets() || u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0 {
        return None;
    }
    let l4 = ETHERNET + usize::from(ip[0] & 15) * 4;
    let upper: [u8; 8] = array(frame, l4)?;
    match (ip[9], upper[0]) {
        (TCP | UDP, _) => Some(reserved(port(&upper, 2)?)),
        (ICMPV4, 0) => Some(reserved(port(&upper, 4)?)),
        (ICMPV4, 3 | 11 | 12) => {
            let quoted: [u8; 20] = array(frame, l4 + 8)?;
            let inner: [u8; 8] = array(frame, l4 + 8 + usize::from(quoted[0] & 15) * 4)?;
            let ours = quoted[12..16] == nat64.address.octets();
            let port = match (quoted[9], inner[0]) {
                (TCP | UDP, _) => port(&inner, 0)?,
                (ICMPV4, 8) => port(&inner, 4)?,
                _ => return None,
            };
            Some(ours && reserved(port))
        }
        _ => None,
    }
}

/// What comes from weft0: an IPv6 packet without Ethernet header.
#[must_use]
pub fn from_tunnel(context: &Context, packet: &[u8]) -> Judgement {
    let judge = || -> Judged {
        let ip: [u8; 40] = array(packet, 0).ok_or(Reason::Truncated)?;
        let (Some(src), Some(dst)) = (address(&ip, 8), address(&ip, 24)) else { return Err(Reason::Truncated) };
        if context.zone(src).0 != Zone6::Fabric || context.config.prefix.contains(&src) {
            return Err(Reason::ForgedSource);
        }
        if dst == context.config.node || dst == context.config.proxy || context.links.contains_key(&dst) {
            return UP;
        }
        Err(if context.is_twin(dst) { Reason::Twin } else { Reason::Transit })
    };
    judge().into()
}
