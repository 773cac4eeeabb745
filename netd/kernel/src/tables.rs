//! The maps of the data path with their layouts (bpf/maps.h), and how the plan's values are written into them.
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use ipnet::{Ipv4Net, Ipv6Net};
use weft_model::Label;
use weft_plan::{
    DataConfig, Entry, Tables,
    policy::{Zone4, Zone6},
    view::Nat64,
};

use crate::{
    Error, Result,
    sys::{Map, PerCpu, Plain},
};

/// What permitted a flow (`FLOW_*` of bpf/maps.h).
pub(crate) const FLOW_PROXY: u8 = 2;

type Octets = [u8; 16];
type Group = [u8; 64];

/// `struct config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct ConfigRecord {
    node: Octets,
    proxy: Octets,
    dns: Octets,
    prefix: Octets,
    mask: Octets,
    pub(crate) tunnel: u32,
    pub(crate) translator: u32,
    nat64: [u8; 4],
    port_first: u16,
    port_last: u16,
    flow_limit: u32,
    pad: u32,
}

/// `struct link`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct LinkRecord {
    pub(crate) address: Octets,
    pub(crate) twin: Octets,
    pub(crate) group: Group,
    pub(crate) mac: [u8; 6],
    pub(crate) id: [u8; 10],
}

/// `struct local`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Local {
    pub(crate) ifindex: u32,
    pub(crate) twin: u32,
}

/// `struct member_key`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct MemberKey {
    group: Group,
    address: Octets,
}

/// `struct port_key`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct PortKey {
    pub(crate) address: Octets,
    pub(crate) port: u16,
    pad: u16,
}

/// `struct flow_key`; ports in network byte order.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct FlowKey {
    pub(crate) address: Octets,
    pub(crate) remote: Octets,
    pub(crate) port: [u8; 2],
    pub(crate) remote_port: [u8; 2],
    pub(crate) protocol: u8,
    pub(crate) pad: [u8; 3],
}

/// `struct flow`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Flow {
    pub(crate) seen: u64,
    pub(crate) kind: u8,
    pub(crate) replied: u8,
    pub(crate) closing: u8,
    pub(crate) pad: [u8; 5],
}

/// `struct fragment_key`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct FragmentKey {
    to: Octets,
    from: Octets,
    id: u32,
}

/// `struct lpm6` and `struct lpm4`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Prefix<const N: usize> {
    length: u32,
    address: [u8; N],
}

#[allow(unsafe_code)]
mod plain {
    use super::{ConfigRecord, Flow, FlowKey, FragmentKey, LinkRecord, Local, MemberKey, Plain, PortKey, Prefix};
    // SAFETY: each consists of integers and arrays of them, with explicit padding only: see the sizes below.
    unsafe impl Plain for ConfigRecord {}
    // SAFETY: as above.
    unsafe impl Plain for LinkRecord {}
    // SAFETY: as above.
    unsafe impl Plain for Local {}
    // SAFETY: as above.
    unsafe impl Plain for MemberKey {}
    // SAFETY: as above.
    unsafe impl Plain for PortKey {}
    // SAFETY: as above.
    unsafe impl Plain for FlowKey {}
    // SAFETY: as above.
    unsafe impl Plain for Flow {}
    // SAFETY: as above.
    unsafe impl Plain for FragmentKey {}
    // SAFETY: as above; N is a multiple of 4.
    unsafe impl<const N: usize> Plain for Prefix<N> {}

    const _: () = {
        assert!(size_of::<ConfigRecord>() == 80 + 4 * 3 + 4 + 8);
        assert!(size_of::<LinkRecord>() == 112);
        assert!(size_of::<FlowKey>() == 40 && size_of::<Flow>() == 16);
        assert!(size_of::<MemberKey>() == 80 && size_of::<PortKey>() == 20 && size_of::<FragmentKey>() == 36);
        assert!(size_of::<Prefix<16>>() == 20 && size_of::<Prefix<4>>() == 8);
    };
}

/// A group's label as the programs compare it.
pub(crate) fn group_bytes(group: Option<&Label>) -> Group {
    let mut bytes = [0; 64];
    let label = group.map_or("", Label::as_str);
    bytes.iter_mut().zip(label.bytes()).for_each(|(to, from)| *to = from);
    bytes
}

/// The label again; `None` for no group, and for bytes that are none of ours.
pub(crate) fn group_label(bytes: &Group) -> Option<Label> {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl From<Ipv6Net> for Prefix<16> {
    fn from(net: Ipv6Net) -> Self {
        Self { length: net.prefix_len().into(), address: net.addr().octets() }
    }
}

impl From<Ipv4Net> for Prefix<4> {
    fn from(net: Ipv4Net) -> Self {
        Self { length: net.prefix_len().into(), address: net.addr().octets() }
    }
}

/// All maps, opened by their pins.
#[derive(Debug)]
pub(crate) struct Maps {
    config: Map<u32, ConfigRecord>,
    pub(crate) drops: PerCpu<1>,
    pub(crate) traffics: PerCpu<5>,
    zones6: Map<Prefix<16>, u32>,
    zones4: Map<Prefix<4>, u32>,
    pub(crate) links: Map<u32, LinkRecord>,
    pub(crate) locals: Map<Octets, Local>,
    members: Map<MemberKey, u32>,
    proxies: Map<Octets, u32>,
    ports: Map<PortKey, u32>,
    pub(crate) flows: Map<FlowKey, Flow>,
    pub(crate) usages: Map<u32, u64>,
    pub(crate) fragments: Map<FragmentKey, u64>,
}

/// The names under which the maps are pinned.
pub(crate) const NAMES: [&str; 13] = [
    "weft_config",
    "drops",
    "traffics",
    "zones6",
    "zones4",
    "links",
    "locals",
    "members",
    "proxies",
    "ports",
    "flows",
    "usages",
    "fragments",
];

impl Maps {
    /// Opens all maps in a folder of pins.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        fn one<T>(dir: &Path, name: &str, open: impl FnOnce(&Path) -> std::io::Result<T>) -> Result<T> {
            let path = dir.join(name);
            open(&path).map_err(Error::bpf(format!("open the map pinned at {}", path.display())))
        }
        Ok(Self {
            config: one(dir, "weft_config", Map::open)?,
            drops: one(dir, "drops", PerCpu::open)?,
            traffics: one(dir, "traffics", PerCpu::open)?,
            zones6: one(dir, "zones6", Map::open)?,
            zones4: one(dir, "zones4", Map::open)?,
            links: one(dir, "links", Map::open)?,
            locals: one(dir, "locals", Map::open)?,
            members: one(dir, "members", Map::open)?,
            proxies: one(dir, "proxies", Map::open)?,
            ports: one(dir, "ports", Map::open)?,
            flows: one(dir, "flows", Map::open)?,
            usages: one(dir, "usages", Map::open)?,
            fragments: one(dir, "fragments", Map::open)?,
        })
    }

    /// Writes the configuration with the indexes of the TUNs.
    pub(crate) fn set_config(&self, config: &DataConfig, tunnel: u32, translator: u32) -> Result<()> {
        let (address, (first, last)) =
            config.nat64.as_ref().map_or((Ipv4Addr::UNSPECIFIED, (0, 0)), |nat64| (nat64.address, nat64.ports));
        let record = ConfigRecord {
            node: config.node.octets(),
            proxy: config.proxy.octets(),
            dns: config.dns.octets(),
            prefix: config.prefix.addr().octets(),
            mask: config.prefix.netmask().octets(),
            tunnel,
            translator,
            nat64: address.octets(),
            port_first: first,
            port_last: last,
            flow_limit: config.flow_limit,
            pad: 0,
        };
        self.config.put(&0, &record).map_err(Error::bpf("write the data path's configuration"))
    }

    /// The configuration, if it has been written, with the indexes that it names (tunnel, translator).
    pub(crate) fn config(&self) -> Result<Option<(DataConfig, u32, u32)>> {
        let record = self.config.get(&0).map_err(Error::bpf("read the data path's configuration"))?;
        let Some(record) = record.filter(|record| record.node != [0; 16]) else { return Ok(None) };
        let length = Ipv6Addr::from(record.mask).to_bits().leading_ones();
        let prefix = u8::try_from(length).ok().and_then(|length| Ipv6Net::new(record.prefix.into(), length).ok());
        let Some(prefix) = prefix else { return Ok(None) };
        let nat64 = (record.port_first != 0)
            .then(|| Nat64 { address: record.nat64.into(), ports: (record.port_first, record.port_last) });
        let config = DataConfig {
            node: record.node.into(),
            proxy: record.proxy.into(),
            dns: record.dns.into(),
            prefix,
            nat64,
            flow_limit: record.flow_limit,
        };
        Ok(Some((config, record.tunnel, record.translator)))
    }

    /// Adds or replaces an entry.
    pub(crate) fn put(&self, entry: &Entry) -> Result<()> {
        let result = match entry {
            Entry::Zone6(net, zone) => self.zones6.put(&(*net).into(), &zone.code().into()),
            Entry::Zone4(net, zone) => self.zones4.put(&(*net).into(), &zone.code().into()),
            Entry::Member(group, address) => self.members.put(&member(group, *address), &1),
            Entry::Proxy(address) => self.proxies.put(&address.octets(), &1),
            Entry::Port(address, port) => self.ports.put(&port_key(*address, *port), &1),
        };
        result.map_err(Error::bpf(format!("add {entry:?} to the data path's tables")))
    }

    /// Deletes an entry, and the flows that only it permitted.
    pub(crate) fn delete(&self, entry: &Entry) -> Result<()> {
        let result = match entry {
            Entry::Zone6(net, _) => self.zones6.delete(&(*net).into()),
            Entry::Zone4(net, _) => self.zones4.delete(&(*net).into()),
            Entry::Member(group, address) => self.members.delete(&member(group, *address)),
            Entry::Proxy(address) => self.proxies.delete(&address.octets()),
            Entry::Port(address, port) => self.ports.delete(&port_key(*address, *port)),
        };
        result.map_err(Error::bpf(format!("delete {entry:?} from the data path's tables")))?;
        match entry {
            Entry::Proxy(proxy) => {
                self.cut_flows(|key, flow| flow.kind == FLOW_PROXY && key.remote == proxy.octets()).map(drop)
            }
            Entry::Port(address, port) => self
                .cut_flows(|key, flow| {
                    flow.kind == FLOW_PROXY && key.address == address.octets() && key.port == port.to_be_bytes()
                })
                .map(drop),
            _ => Ok(()),
        }
    }

    /// Deletes the flows that a condition holds for; says how many.
    pub(crate) fn cut_flows(&self, condition: impl Fn(&FlowKey, &Flow) -> bool) -> Result<usize> {
        let flows = self.flows.entries().map_err(Error::bpf("list the flows"))?;
        let mut count = 0;
        for (key, _) in flows.iter().filter(|(key, flow)| condition(key, flow)) {
            count += usize::from(self.flows.delete(key).map_err(Error::bpf("delete a flow"))?);
        }
        Ok(count)
    }

    /// Everything in the tables; entries of codes that this version does not know are left out, and so replaced.
    pub(crate) fn tables(&self) -> Result<Tables> {
        let read = || -> std::io::Result<Tables> {
            let mut tables = Tables::default();
            for key in self.zones6.keys()? {
                let zone = self.zones6.get(&key)?.and_then(|code| Zone6::from_code(u8::try_from(code).ok()?));
                let net = Ipv6Net::new(key.address.into(), u8::try_from(key.length).unwrap_or(128)).ok();
                tables.zones6.extend(net.zip(zone));
            }
            for key in self.zones4.keys()? {
                let zone = self.zones4.get(&key)?.and_then(|code| Zone4::from_code(u8::try_from(code).ok()?));
                let net = Ipv4Net::new(key.address.into(), u8::try_from(key.length).unwrap_or(32)).ok();
                tables.zones4.extend(net.zip(zone));
            }
            let members = self.members.entries()?.into_iter();
            tables.members =
                members.filter_map(|(key, _)| Some((group_label(&key.group)?, key.address.into()))).collect();
            tables.proxies = self.proxies.entries()?.into_iter().map(|(key, _)| key.into()).collect();
            tables.ports = self.ports.entries()?.into_iter().map(|(key, _)| (key.address.into(), key.port)).collect();
            Ok(tables)
        };
        read().map_err(Error::bpf("read the data path's tables"))
    }
}

fn member(group: &Label, address: Ipv6Addr) -> MemberKey {
    MemberKey { group: group_bytes(Some(group)), address: address.octets() }
}

fn port_key(address: Ipv6Addr, port: u16) -> PortKey {
    PortKey { address: address.octets(), port, pad: 0 }
}
