//! The state of a node's kernel as values: what should be there, what is seen, and the steps between the two.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use weft_model::{Label, WorkspaceId};

use crate::{
    policy::{Zone4, Zone6},
    view::{AttachedWorkspace, Nat64},
};

/// The tunnel's TUN.
pub const TUNNEL: &str = "weft0";
/// The translator's TUN.
pub const TRANSLATOR: &str = "weft64";
/// `rtm_protocol` of every route and `ifa_proto` of every address that is ours.
pub const PROTOCOL: u8 = 87;
/// Metric of the backing routes: higher than anything that leads somewhere.
pub const BACKING_METRIC: u32 = 4_278_198_272;
/// Metric of the routes that lead somewhere: the kernel's default for IPv6.
pub const METRIC: u32 = 1024;
/// MAC of the host's end of every workspace link.
pub const HOST_MAC: [u8; 6] = [0x02, 0x57, 0, 0, 0, 1];
/// Link group of a workspace's link whose attach came to its end.
pub const LINK_GROUP: u32 = 87;
/// How many flows one workspace may have open.
pub const FLOW_LIMIT: u32 = 16_384;

/// The MAC inside a workspace: locally administered, from the last 40 bits of its address.
#[must_use]
pub fn workspace_mac(address: Ipv6Addr) -> [u8; 6] {
    let octets = address.octets();
    [0x06, octets[11], octets[12], octets[13], octets[14], octets[15]]
}

/// A route of ours in the main table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub destination: Ipv6Net,
    /// How.
    pub target: Target,
    /// Its metric.
    pub metric: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Nowhere: the sender gets an ICMPv6 error.
    Unreachable,
    /// Out of a device.
    Device {
        /// The device's name.
        name: String,
        /// The source of what the node itself sends there.
        source: Option<Ipv6Addr>,
    },
}

/// The data path's one record of configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataConfig {
    /// `<node>::1`.
    pub node: Ipv6Addr,
    /// `<node>::2`.
    pub proxy: Ipv6Addr,
    /// `<ULA>::53`.
    pub dns: Ipv6Addr,
    /// The node's prefix: nothing else is delivered from the tunnel.
    pub prefix: Ipv6Net,
    /// The translator's address and ports.
    pub nat64: Option<Nat64>,
    /// Most flows that one workspace may have.
    pub flow_limit: u32,
}

/// What the programs look up, besides links and configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// What an IPv6 address is, by longest prefix; no entry: denied.
    pub zones6: BTreeMap<Ipv6Net, Zone6>,
    /// What an IPv4 address is behind NAT64, by longest prefix; no entry: the public internet.
    pub zones4: BTreeMap<Ipv4Net, Zone4>,
    /// Members of groups on other nodes.
    pub members: BTreeSet<(Label, Ipv6Addr)>,
    /// `::2` of the nodes whose proxies may open exposed ports.
    pub proxies: BTreeSet<Ipv6Addr>,
    /// TCP ports that proxies may open, by workspace address.
    pub ports: BTreeSet<(Ipv6Addr, u16)>,
}

/// One entry of [`Tables`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// See [`Tables::zones6`].
    Zone6(Ipv6Net, Zone6),
    /// See [`Tables::zones4`].
    Zone4(Ipv4Net, Zone4),
    /// See [`Tables::members`].
    Member(Label, Ipv6Addr),
    /// See [`Tables::proxies`].
    Proxy(Ipv6Addr),
    /// See [`Tables::ports`].
    Port(Ipv6Addr, u16),
}

/// Where a program of the node itself is attached (ingress).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// `from_uplink` on the interface of this name.
    Uplink(String),
    /// `from_tunnel` on weft0.
    Tunnel,
}

/// A workspace's link as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSpec {
    /// Whose it is.
    pub ws: AttachedWorkspace,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
}

/// A link named `w<id>` as it is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkState {
    /// Its index.
    pub index: u32,
    /// Whether its attach came to its end; one that did not is removed, and made anew with its netns.
    pub complete: bool,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether `fe80::1/64` is on it.
    pub gateway: bool,
    /// The addresses with a permanent neighbour entry.
    pub neighbours: BTreeSet<Ipv6Addr>,
    /// Whether this version's programs are attached at both hooks, by pinned links.
    pub programs: bool,
    /// What the programs believe of it: address, twin and group; `None` when they drop everything.
    pub entry: Option<(Ipv6Addr, Ipv6Addr, Option<Label>)>,
}

impl LinkState {
    /// Whether nothing needs repair.
    #[must_use]
    pub fn is(&self, spec: &LinkSpec) -> bool {
        let (address, twin) = (spec.ws.address.address(), spec.ws.address.twin());
        self.complete
            && self.up
            && self.mtu == spec.mtu
            && self.gateway
            && self.programs
            && self.neighbours.contains(&address)
            && self.neighbours.contains(&twin)
            && self.entry.as_ref() == Some(&(address, twin, spec.ws.group.clone()))
    }
}

/// A TUN as it is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunState {
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
}

/// Everything that should be in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The uplink's name.
    pub uplink: Option<String>,
    /// Paths below /proc/sys and the values that they must have; applied in this order.
    pub sysctls: Vec<(String, String)>,
    /// Ports of the node's own IPv4 address that the kernel keeps off.
    pub reserved_ports: Option<(u16, u16)>,
    /// TUNs and their MTUs.
    pub tuns: BTreeMap<String, u32>,
    /// Addresses on `lo`.
    pub loopback: BTreeSet<Ipv6Addr>,
    /// Routes.
    pub routes: BTreeSet<Route>,
    /// The data path's configuration.
    pub config: DataConfig,
    /// The data path's tables.
    pub tables: Tables,
    /// Programs of the node itself.
    pub hooks: BTreeSet<Hook>,
    /// Links of the attached workspaces.
    pub links: BTreeMap<WorkspaceId, LinkSpec>,
    /// Text of the table `inet weft`, without its comment.
    pub nft: String,
}

/// What is seen in the kernel of all that could be ours, and the sysctls that matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Sysctls by their path below /proc/sys; those that could not be read are absent.
    pub sysctls: BTreeMap<String, String>,
    /// `net.ipv4.ip_local_reserved_ports` as ranges.
    pub reserved_ports: Vec<(u16, u16)>,
    /// TUNs with our names.
    pub tuns: BTreeMap<String, TunState>,
    /// Addresses on `lo` that carry our protocol.
    pub loopback: BTreeSet<Ipv6Addr>,
    /// Routes of our protocol.
    pub routes: BTreeSet<Route>,
    /// The data path's configuration; `None` if it is empty or names interfaces that are gone.
    pub config: Option<DataConfig>,
    /// The data path's tables.
    pub tables: Tables,
    /// Programs of the node itself that are pinned, and whether each is this version's and on a living interface.
    pub hooks: BTreeMap<Hook, bool>,
    /// Links that are named like a workspace's.
    pub links: BTreeMap<WorkspaceId, LinkState>,
    /// The digest in the comment of the table `inet weft`; `None` if there is no such table.
    pub nft: Option<String>,
    /// Addresses in the programs' tables whose link is gone.
    pub orphans: BTreeSet<Ipv6Addr>,
    /// Paths below the BPF directory that belong to no link and no hook, or to another version of programs or maps.
    pub stale_pins: BTreeSet<String>,
}

/// One idempotent step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Write a sysctl (path below /proc/sys).
    SetSysctl(String, String),
    /// Add a range to `net.ipv4.ip_local_reserved_ports`.
    ReservePorts(u16, u16),
    /// Make a persistent TUN, set its MTU and bring it up.
    EnsureTun(String, u32),
    /// Put an address on `lo`.
    AddLoopback(Ipv6Addr),
    /// Take an address off `lo`.
    RemoveLoopback(Ipv6Addr),
    /// Add a route.
    AddRoute(Route),
    /// Remove a route.
    RemoveRoute(Route),
    /// Write the data path's configuration, with the indexes of the TUNs.
    SetConfig(DataConfig),
    /// Add or replace an entry.
    Put(Entry),
    /// Delete an entry, and the flows that it permitted.
    Delete(Entry),
    /// Attach a program of the node, or put this version in another's place.
    AttachHook(Hook),
    /// Detach it.
    DetachHook(Hook),
    /// Replace the nftables table by this text.
    SetNft(String),
    /// Bring an existing link to what it should be.
    RepairLink(LinkSpec),
    /// Cut a link's traffic, then remove all of it.
    RemoveLink(WorkspaceId),
    /// Forget an address whose link is gone.
    Forget(Ipv6Addr),
    /// Remove a pin, or a folder of pins.
    RemovePin(String),
}

/// The comment that marks a ruleset: FNV-1a of its text, so that a change by anyone who rewrites the table shows.
#[must_use]
pub fn nft_digest(text: &str) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("weft {hash:016x}")
}

impl Tables {
    /// Every entry.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let zones6 = self.zones6.iter().map(|(net, zone)| Entry::Zone6(*net, *zone));
        let zones4 = self.zones4.iter().map(|(net, zone)| Entry::Zone4(*net, *zone));
        let members = self.members.iter().map(|(group, address)| Entry::Member(group.clone(), *address));
        let proxies = self.proxies.iter().map(|address| Entry::Proxy(*address));
        let ports = self.ports.iter().map(|(address, port)| Entry::Port(*address, *port));
        zones6.chain(zones4).chain(members).chain(proxies).chain(ports)
    }

    /// Adds or replaces an entry.
    pub fn put(&mut self, entry: Entry) {
        match entry {
            Entry::Zone6(net, zone) => drop(self.zones6.insert(net, zone)),
            Entry::Zone4(net, zone) => drop(self.zones4.insert(net, zone)),
            Entry::Member(group, address) => drop(self.members.insert((group, address))),
            Entry::Proxy(address) => drop(self.proxies.insert(address)),
            Entry::Port(address, port) => drop(self.ports.insert((address, port))),
        }
    }

    /// Whether a key of this entry is there, with whatever value.
    #[must_use]
    pub fn has_key(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Zone6(net, _) => self.zones6.contains_key(net),
            Entry::Zone4(net, _) => self.zones4.contains_key(net),
            Entry::Member(group, address) => self.members.contains(&(group.clone(), *address)),
            Entry::Proxy(address) => self.proxies.contains(address),
            Entry::Port(address, port) => self.ports.contains(&(*address, *port)),
        }
    }

    /// Deletes an entry by its key.
    pub fn delete(&mut self, entry: &Entry) {
        match entry {
            Entry::Zone6(net, _) => drop(self.zones6.remove(net)),
            Entry::Zone4(net, _) => drop(self.zones4.remove(net)),
            Entry::Member(group, address) => drop(self.members.remove(&(group.clone(), *address))),
            Entry::Proxy(address) => drop(self.proxies.remove(address)),
            Entry::Port(address, port) => drop(self.ports.remove(&(*address, *port))),
        }
    }

    /// What an IPv6 address is.
    #[must_use]
    pub fn zone6(&self, address: Ipv6Addr) -> Zone6 {
        let longest =
            self.zones6.iter().filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
        longest.map_or(Zone6::Denied, |(_, zone)| *zone)
    }

    /// What an IPv4 address is.
    #[must_use]
    pub fn zone4(&self, address: Ipv4Addr) -> Zone4 {
        let longest =
            self.zones4.iter().filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
        longest.map_or(Zone4::Global, |(_, zone)| *zone)
    }
}
