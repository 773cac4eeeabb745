//! One step of a plan; taking it again changes nothing.
use std::{fs, io, net::IpAddr};

use netlink_packet_route::RouteNetlinkMessage;
use weft_plan::{
    DataConfig, Hook, Op, Route, Target,
    state::{TRANSLATOR, TUNNEL},
};

use crate::{
    Error, Result, attach,
    datapath::DataPath,
    messages as msg,
    netlink::{CREATE, Netlink, REPLACE, Request},
    nft, observe, sys,
};

/// Takes the step.
pub(crate) fn apply(datapath: &DataPath, op: &Op) -> Result<()> {
    match op {
        Op::SetSysctl(name, value) => attach::write_sysctl(name, value),
        Op::ReservePorts(first, last) => reserve_ports(*first, *last),
        Op::EnsureTun(name, mtu) => {
            let make = || -> io::Result<()> {
                weft_tun::Tun::create_persistent(name, weft_tun::Options::default())?;
                weft_tun::set_up(name, *mtu)
            };
            make().map_err(|source| Error::Tun { name: name.clone(), source })
        }
        Op::AddLoopback(address) => {
            let message = RouteNetlinkMessage::NewAddress(msg::address(loopback(), IpAddr::V6(*address), 128, true));
            one(Request::new(format!("put {address} on lo"), message, REPLACE))
        }
        Op::RemoveLoopback(address) => {
            let message = RouteNetlinkMessage::DelAddress(msg::address(loopback(), IpAddr::V6(*address), 128, true));
            one(Request::new(format!("take {address} off lo"), message, 0).or(&[libc::EADDRNOTAVAIL]))
        }
        Op::AddRoute(route) => add_route(route),
        Op::RemoveRoute(route) => remove_route(route),
        Op::SetConfig(config) => set_config(datapath, config),
        Op::Put(entry) => datapath.maps.put(entry),
        Op::Delete(entry) => datapath.maps.delete(entry),
        Op::AttachHook(hook) => {
            let name = if let Hook::Uplink(name) = hook { name } else { TUNNEL };
            datapath.attach_hook(hook, index(name)?)
        }
        Op::DetachHook(hook) => datapath.detach_hook(hook),
        Op::SetNft(text) => nft::replace(text),
        Op::RepairLink(spec) => attach::repair(datapath, spec),
        Op::RemoveLink(id) => attach::detach(datapath, *id),
        Op::Forget(address) => attach::forget(datapath, *address),
        Op::RemovePin(name) => datapath.remove(name),
    }
}

fn one(request: Request) -> Result<()> {
    Netlink::open()?.batch(vec![request])
}

fn loopback() -> u32 {
    sys::index_of("lo").unwrap_or(1)
}

fn index(name: &str) -> Result<u32> {
    let gone = || io::Error::from_raw_os_error(libc::ENODEV);
    sys::index_of(name).ok_or_else(|| Error::netlink(format!("find the interface {name}"))(gone()))
}

fn set_config(datapath: &DataPath, config: &DataConfig) -> Result<()> {
    let translator = if config.nat64.is_some() { index(TRANSLATOR)? } else { 0 };
    datapath.maps.set_config(config, index(TUNNEL)?, translator)
}

fn shown(route: &Route) -> String {
    match &route.target {
        Target::Unreachable => format!("unreachable {}", route.destination),
        Target::Device { name, .. } => format!("{} dev {name}", route.destination),
    }
}

fn add_route(route: &Route) -> Result<()> {
    let (device, source) = match &route.target {
        Target::Unreachable => (None, None),
        Target::Device { name, source } => (Some(index(name)?), *source),
    };
    let message = RouteNetlinkMessage::NewRoute(msg::route6(route.destination, route.metric, device, source));
    one(Request::new(format!("add the route {}", shown(route)), message, CREATE).or(&[libc::EEXIST]))
}

fn remove_route(route: &Route) -> Result<()> {
    let device = match &route.target {
        Target::Unreachable => None,
        Target::Device { name, .. } => match sys::index_of(name) {
            Some(index) => Some(index),
            None => return Ok(()), // it went with its device
        },
    };
    let source = if let Target::Device { source, .. } = &route.target { *source } else { None };
    let message = RouteNetlinkMessage::DelRoute(msg::route6(route.destination, route.metric, device, source));
    one(Request::new(format!("remove the route {}", shown(route)), message, 0).or(&[libc::ESRCH]))
}

/// Adds a range to the ports that the kernel keeps off, without touching others'.
fn reserve_ports(first: u16, last: u16) -> Result<()> {
    const NAME: &str = "net/ipv4/ip_local_reserved_ports";
    let mut ranges = observe::reserved_ports();
    ranges.push((first, last));
    let value: Vec<String> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
    let value = value.join(",");
    fs::write(format!("/proc/sys/{NAME}"), &value).map_err(|source| Error::Sysctl { name: NAME.into(), value, source })
}

/// Removes everything of ours.
pub(crate) fn teardown(datapath: &DataPath) -> Result<()> {
    let observed = observe::observe(datapath)?;
    for id in observed.links.keys() {
        attach::detach(datapath, *id)?;
    }
    for route in observed.routes {
        remove_route(&route)?;
    }
    for address in observed.loopback {
        apply(datapath, &Op::RemoveLoopback(address))?;
    }
    nft::delete()?;
    for name in observed.tuns.keys() {
        let Some(index) = sys::index_of(name) else { continue };
        one(Request::new(format!("delete {name}"), msg::delete_link(index), 0).or(&[libc::ENODEV]))?;
    }
    datapath.remove_all()
}
