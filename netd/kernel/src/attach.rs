//! The hot path: a workspace's link from nothing to working, all of it or nothing; and its way back.
use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::Path,
};

use ipnet::Ipv6Net;
use netlink_packet_route::RouteNetlinkMessage;
use nix::sched::{CloneFlags, setns};
use weft_model::{
    WorkspaceId,
    address::{CLAT_GATEWAY, CLAT_WORKSPACE, GATEWAY},
};
use weft_plan::{
    Entry, LinkSpec,
    state::{HOST_MAC, METRIC, workspace_mac},
};

use crate::{
    Error, Result,
    datapath::DataPath,
    messages as msg,
    netlink::{CREATE, Netlink, REPLACE, Request},
    sys,
    tables::{LinkRecord, Local, group_bytes},
};

/// What translation adds to an IPv4 packet: 20 bytes of header, and a Fragment header.
const CLAT_GROWTH: u32 = 28;

/// Opens the netns at a path, refusing what is none and the node's own.
fn open_netns(path: &Path, home: &File) -> Result<File> {
    let no_netns = |source| Error::NoNetns { path: path.to_owned(), source };
    let file = File::open(path).map_err(no_netns)?;
    if !sys::is_netns(&file) {
        return Err(Error::NotANetns { path: path.to_owned() });
    }
    if sys::same_file(&file, home).map_err(no_netns)? {
        return Err(Error::OwnNetns { path: path.to_owned() });
    }
    Ok(file)
}

/// Attaches. The calling thread is left in the workspace's netns: give it a thread of its own.
pub(crate) fn attach(datapath: &DataPath, home: &File, spec: &LinkSpec, path: &Path) -> Result<()> {
    let netns = open_netns(path, home)?;
    let host = Netlink::open()?;
    let ifname = spec.ws.id.ifname();
    let mac = workspace_mac(spec.ws.address.address());
    let create = msg::veth(&ifname, mac, spec.mtu, netns.as_raw_fd());
    if let Err(error) = host.batch(vec![Request::new(format!("make the link {ifname}"), create, CREATE)]) {
        return Err(match &error {
            Error::Netlink { source, .. } if source.raw_os_error() == Some(libc::EEXIST) => {
                if sys::index_of(&ifname).is_some() {
                    Error::AlreadyAttached { id: spec.ws.id }
                } else {
                    Error::HasEth0 { path: path.to_owned() }
                }
            }
            _ => error,
        });
    }
    let index = sys::index_of(&ifname);
    let made = match index {
        Some(index) => build(datapath, &host, spec, index, &netns),
        None => Err(Error::netlink(format!("find the link {ifname}"))(io::Error::from_raw_os_error(libc::ENODEV))),
    };
    if made.is_err() {
        // what failed is what the caller must know; what the way back leaves is found by the next plan
        if let Err(error) = remove(datapath, &host, spec.ws.id, index) {
            tracing::warn!(workspace = %spec.ws.id, %error, "the link of a failed attach could not be removed at once");
        }
    }
    made
}

/// Everything after the veth is there: the programs' entries and the programs before any end is up.
fn build(datapath: &DataPath, host: &Netlink, spec: &LinkSpec, index: u32, netns: &File) -> Result<()> {
    let ifname = spec.ws.id.ifname();
    // no address of its own making on the host's end
    write_sysctl(&format!("net/ipv6/conf/{ifname}/addr_gen_mode"), "1")?;
    put_entries(datapath, spec, index)?;
    for port in &spec.ws.ports {
        datapath.maps.put(&Entry::Port(spec.ws.address.address(), *port))?;
    }
    host.batch(datapath.attach_workspace(&ifname, index))?;
    inside(spec, netns)?;
    host.batch(host_side(spec, index))
}

/// What the programs know of a link.
fn put_entries(datapath: &DataPath, spec: &LinkSpec, index: u32) -> Result<()> {
    let maps = &datapath.maps;
    let (address, twin) = (spec.ws.address.address(), spec.ws.address.twin());
    let record = LinkRecord {
        address: address.octets(),
        twin: twin.octets(),
        group: group_bytes(spec.ws.group.as_ref()),
        mac: workspace_mac(address),
        id: id_bytes(spec.ws.id),
    };
    let put = || -> io::Result<()> {
        if maps.usages.get(&index)?.is_none() {
            maps.usages.put(&index, &0)?;
            maps.traffics.reset(index)?;
        }
        maps.links.put(&index, &record)?;
        maps.locals.put(&address.octets(), &Local { ifindex: index, twin: 0 })?;
        maps.locals.put(&twin.octets(), &Local { ifindex: index, twin: 1 })
    };
    put().map_err(Error::bpf(format!("enter workspace {} into the data path's tables", spec.ws.id)))
}

/// The host's end, in one batch; the mark of completeness last.
fn host_side(spec: &LinkSpec, index: u32) -> Vec<Request> {
    let ifname = spec.ws.id.ifname();
    let about = |what: &str| format!("{what} {ifname}");
    let mac = workspace_mac(spec.ws.address.address());
    let source = Some(spec.ws.address.prefix().node_address());
    let gateway = msg::address(index, IpAddr::V6(GATEWAY), 64, true);
    let mut requests = vec![
        Request::new(about("set the MTU of"), msg::mtu(index, spec.mtu), 0),
        Request::new(about("bring up"), msg::up(index), 0),
        Request::new(about("put fe80::1 on"), RouteNetlinkMessage::NewAddress(gateway), REPLACE),
    ];
    for address in [spec.ws.address.address(), spec.ws.address.twin()] {
        let neighbour = msg::neighbour(index, IpAddr::V6(address), mac);
        requests.push(Request::new(about("set the neighbour on"), neighbour, REPLACE));
        let route = msg::route6(Ipv6Net::new_assert(address, 128), METRIC, Some(index), source);
        let route = Request::new(about("route an address to"), RouteNetlinkMessage::NewRoute(route), CREATE);
        requests.push(route.or(&[libc::EEXIST]));
    }
    requests.push(Request::new(about("mark"), msg::complete(index), 0));
    requests
}

/// The workspace's end. The thread stays in the netns.
fn inside(spec: &LinkSpec, netns: &File) -> Result<()> {
    setns(netns, CloneFlags::CLONE_NEWNET)
        .map_err(|error| Error::netlink("enter the workspace's network namespace")(error.into()))?;
    let gone = || Error::netlink("find eth0 in the workspace")(io::Error::from_raw_os_error(libc::ENODEV));
    let index = sys::index_of("eth0").ok_or_else(gone)?;
    let lo = sys::index_of("lo").ok_or_else(gone)?;
    // one random /128 and nothing else of IPv6: no link-local address, nothing learned
    for (name, value) in [("disable_ipv6", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0")] {
        write_sysctl(&format!("net/ipv6/conf/eth0/{name}"), value)?;
    }
    let address = |address: IpAddr, length| {
        let message = RouteNetlinkMessage::NewAddress(msg::address(index, address, length, false));
        Request::new(format!("put {address} on eth0 of workspace {}", spec.ws.id), message, CREATE)
    };
    let neighbour = |address: IpAddr| {
        let message = msg::neighbour(index, address, HOST_MAC);
        Request::new(format!("set the neighbour {address} of workspace {}", spec.ws.id), message, REPLACE)
    };
    let route = |what: &str, route| {
        Request::new(format!("route {what} of workspace {}", spec.ws.id), RouteNetlinkMessage::NewRoute(route), CREATE)
    };
    let mtu4 = spec.mtu.saturating_sub(CLAT_GROWTH);
    let default4 = msg::default4(index, CLAT_GATEWAY, CLAT_WORKSPACE, mtu4);
    let (own, v4): (Ipv6Addr, Ipv4Addr) = (spec.ws.address.address(), CLAT_WORKSPACE);
    Netlink::open()?.batch(vec![
        Request::new("bring up lo in the workspace", msg::up(lo), 0),
        Request::new("bring up eth0 in the workspace", msg::up(index), 0),
        address(IpAddr::V6(own), 128),
        neighbour(IpAddr::V6(GATEWAY)),
        route("the default of IPv6", msg::default6(index, GATEWAY)),
        address(IpAddr::V4(v4), 32),
        neighbour(IpAddr::V4(CLAT_GATEWAY)),
        route("the default of IPv4", default4),
    ])
}

/// Brings what is on the host of an existing link to what it should be; the workspace's end is its own.
pub(crate) fn repair(datapath: &DataPath, spec: &LinkSpec) -> Result<()> {
    let ifname = spec.ws.id.ifname();
    let Some(index) = sys::index_of(&ifname) else { return Ok(()) };
    if let Some(known) = datapath.link(index)? {
        for address in [known.address, known.twin] {
            if address != spec.ws.address.address().octets() && address != spec.ws.address.twin().octets() {
                forget(datapath, address.into())?;
            }
        }
    }
    put_entries(datapath, spec, index)?;
    let mut requests = datapath.attach_workspace(&ifname, index);
    requests.extend(host_side(spec, index));
    Netlink::open()?.batch(requests)
}

/// Removes an address from the programs' tables, with its flows.
pub(crate) fn forget(datapath: &DataPath, address: Ipv6Addr) -> Result<()> {
    let octets = address.octets();
    datapath.maps.locals.delete(&octets).map_err(Error::bpf(format!("forget the address {address}")))?;
    datapath.maps.cut_flows(|key, _| key.address == octets).map(drop)
}

fn id_bytes(id: WorkspaceId) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes.iter_mut().zip(id.as_str().bytes()).for_each(|(to, from)| *to = from);
    bytes
}

/// Detaches: cuts the traffic first, since deleting a link takes the kernel long.
pub(crate) fn detach(datapath: &DataPath, id: WorkspaceId) -> Result<()> {
    let mut index = sys::index_of(&id.ifname());
    if index.is_none() {
        // the link went with its netns; what the programs know of it is found by the id
        let known = datapath.maps.links.entries().map_err(Error::bpf("list the links' entries"))?;
        index = known.iter().find(|(_, record)| record.id == id_bytes(id)).map(|(index, _)| *index);
    }
    remove(datapath, &Netlink::open()?, id, index)
}

fn remove(datapath: &DataPath, host: &Netlink, id: WorkspaceId, index: Option<u32>) -> Result<()> {
    let ifname = id.ifname();
    if let Some(index) = index {
        let maps = &datapath.maps;
        let known = datapath.link(index)?;
        let cut = || -> io::Result<()> {
            // without an entry the programs drop everything of this link
            maps.links.delete(&index)?;
            maps.usages.delete(&index)?;
            maps.traffics.delete(index).map(drop)
        };
        cut().map_err(Error::bpf(format!("cut workspace {id} off")))?;
        for address in known.iter().flat_map(|known| [known.address, known.twin]) {
            let local = maps.locals.get(&address).map_err(Error::bpf("read an address's entry"))?;
            if local.is_some_and(|local| local.ifindex == index) {
                forget(datapath, address.into())?;
            }
        }
        host.batch(vec![
            Request::new(format!("take down {ifname}"), msg::down(index), 0).or(&[libc::ENODEV]),
            Request::new(format!("delete {ifname}"), msg::delete_link(index), 0).or(&[libc::ENODEV]),
        ])?;
        if let Some(known) = known {
            let address = Ipv6Addr::from(known.address);
            for port in datapath.maps.tables()?.ports.iter().filter(|(of, _)| *of == address) {
                datapath.maps.delete(&Entry::Port(address, port.1))?;
            }
        }
    }
    Ok(())
}

/// Writes a sysctl of the calling thread's netns, unless it has the value.
pub(crate) fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    let failed = |source| Error::Sysctl { name: name.to_owned(), value: value.to_owned(), source };
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(path, value).map_err(failed)
}
