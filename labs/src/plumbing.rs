//! Turns a topology into namespaces, bridges and veth pairs: one `ip` batch a machine.
use std::{collections::BTreeMap, fmt::Write, fs, net::IpAddr};

use anyhow::{Context, Result};
use weft_test_support::Netns;

use crate::{
    state::Place,
    topology::{Link, Machine, Topology},
};

/// Makes every machine's namespace, wired and addressed. The guards delete them again.
pub(crate) fn build(topology: &Topology, place: &Place) -> Result<BTreeMap<String, Netns>> {
    let mut machines = BTreeMap::new();
    for machine in topology.machines() {
        machines.insert(machine.name.to_owned(), namespace(place, machine.name)?);
        resolv_conf(place, machine.name, topology.resolver)?;
    }
    for router in topology.hosts.iter().filter(|host| topology.segments.iter().any(|one| one.router == host.name)) {
        get(&machines, &router.name)?.ip(&bridges(topology, place, &router.name))?;
    }
    for machine in topology.machines() {
        let netns = get(&machines, machine.name)?;
        netns.ip(&addresses(machine))?;
        if machine.forward {
            netns.sysctl("net.ipv4.ip_forward", "1")?;
            netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        }
    }
    Ok(machines)
}

/// Makes one machine's namespace and directory. Duplicate address detection would cost seconds for nothing in a lab.
pub(crate) fn namespace(place: &Place, machine: &str) -> Result<Netns> {
    let netns = Netns::create(&place.netns(machine))?;
    netns.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
    netns.sysctl("net.ipv6.conf.all.accept_dad", "0")?;
    let dir = place.machine(machine);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(netns)
}

/// Writes what programs on a machine find as /etc/resolv.conf.
pub(crate) fn resolv_conf(place: &Place, machine: &str, resolver: Option<IpAddr>) -> Result<()> {
    let path = place.machine(machine).join("resolv.conf");
    // Two short attempts: a lab's resolver is one hop away, and a check must not wait for the default of 10 s.
    let text =
        resolver.map_or(String::new(), |resolver| format!("nameserver {resolver}\noptions timeout:2 attempts:2\n"));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn get<'a>(machines: &'a BTreeMap<String, Netns>, name: &str) -> Result<&'a Netns> {
    machines.get(name).with_context(|| format!("no machine is called {name:?}"))
}

/// The port on its segment's bridge that a machine's link is plugged into: the machine's name, numbered from the second.
#[must_use]
pub fn port_name(machine: &str, index: usize) -> String {
    if index == 0 { machine.into() } else { format!("{}{index}", machine.get(..13).unwrap_or(machine)) }
}

fn bridges(topology: &Topology, place: &Place, router: &str) -> String {
    let mut lines = String::new();
    // Writing to a String cannot fail.
    let mut say = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(lines, "{line}");
    };
    for segment in topology.segments.iter().filter(|segment| segment.router == router) {
        let bridge = &segment.name;
        // Without snooping and forward delay: neighbour discovery works from the first packet.
        say(format_args!("link add name {bridge} type bridge mcast_snooping 0 forward_delay 0 stp_state 0"));
        for address in &segment.addresses {
            say(format_args!("addr add {address} dev {bridge}{}", nodad(address.addr())));
        }
        say(format_args!("link set dev {bridge} up"));
        for machine in topology.machines() {
            let plugged = machine.links.iter().enumerate().filter(|(_, link)| &link.segment == bridge);
            for (index, _) in plugged {
                let (port, netns) = (port_name(machine.name, index), place.netns(machine.name));
                say(format_args!("link add name {port} type veth peer name eth{index} netns {netns}"));
                say(format_args!("link set dev {port} master {bridge} up"));
            }
        }
    }
    lines
}

fn addresses(machine: Machine<'_>) -> String {
    let mut lines = String::new();
    let mut say = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(lines, "{line}");
    };
    for (index, Link { addresses, gateways, .. }) in machine.links.iter().enumerate() {
        for address in addresses {
            say(format_args!("addr add {address} dev eth{index}{}", nodad(address.addr())));
        }
        say(format_args!("link set eth{index} up"));
        for gateway in gateways {
            let everything = if gateway.is_ipv6() { "::/0" } else { "0.0.0.0/0" };
            say(format_args!("route add {everything} via {gateway} dev eth{index}"));
        }
    }
    lines
}

fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}
