//! A topology as a file: segments, hosts, nodes and workspaces. Reading it checks that everything it names is there.
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use weft_model::{Label, object::Role};

/// A whole lab.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// What it is for, in one line.
    pub title: String,
    /// The resolver of hosts and nodes.
    #[serde(default)]
    pub resolver: Option<IpAddr>,
    /// The fabric that its nodes form.
    #[serde(default)]
    pub fabric: Option<Fabric>,
    /// Ethernet segments.
    #[serde(default, rename = "segment")]
    pub segments: Vec<Segment>,
    /// Machines that are no nodes.
    #[serde(default, rename = "host")]
    pub hosts: Vec<Host>,
    /// Machines that run netd and its companions.
    #[serde(default, rename = "node")]
    pub nodes: Vec<Node>,
    /// Workspaces, each attached to a node.
    #[serde(default, rename = "workspace")]
    pub workspaces: Vec<Workspace>,
}

/// The fabric of a lab's nodes.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fabric {
    /// The domain of its URLs.
    pub domain: String,
    /// The node that makes it; the others join through that one.
    pub seed: String,
    /// Private IPv4 ranges that its workspaces may reach.
    #[serde(default)]
    pub nat64_private: Vec<Ipv4Net>,
}

/// An Ethernet segment: a bridge in its router's namespace.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Its name, and the bridge's: 1 to 15 characters.
    pub name: String,
    /// The host that holds the bridge.
    pub router: String,
    /// The router's addresses on it.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
}

/// One interface of a machine, `eth0` for the first link, `eth1` for the next.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Where it is plugged in.
    pub segment: String,
    /// Its addresses.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
    /// Next hops of default routes.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
}

/// A machine.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its name: at most 15 characters.
    pub name: String,
    /// Its interfaces.
    #[serde(default)]
    pub links: Vec<Link>,
    /// Whether it forwards packets.
    #[serde(default)]
    pub forward: bool,
    /// Where it serves a page over HTTP, and a WebSocket echo at /ws.
    #[serde(default)]
    pub http: Vec<SocketAddr>,
    /// Where it echoes, over TCP and UDP.
    #[serde(default)]
    pub echo: Vec<SocketAddr>,
    /// The names that it serves.
    #[serde(default)]
    pub dns: Option<Dns>,
}

/// An authoritative DNS server.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// Where it listens, port 53.
    pub listen: Vec<IpAddr>,
    /// Resource records in presentation format.
    #[serde(default)]
    pub records: Vec<String>,
    /// Zones in which every name has the same records.
    #[serde(default)]
    pub redirects: Vec<Redirect>,
}

/// A zone in which every name has the same records.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// The zone.
    pub zone: String,
    /// The records without their name: `A 192.0.2.1`.
    pub records: Vec<String>,
}

/// A machine that carries workspaces.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name: at most 15 characters.
    pub name: String,
    /// Its interfaces; the first is the uplink.
    pub links: Vec<Link>,
    /// Its roles besides seed.
    #[serde(default)]
    pub roles: Vec<Role>,
    /// Where weft-proxy listens; it is not started if empty.
    #[serde(default)]
    pub proxy: Vec<SocketAddr>,
    /// Whether it stays outside of the fabric: its processes run, and wait to be told.
    #[serde(default)]
    pub outside: bool,
}

/// A workspace, with a process that serves a page in it.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Workspace {
    /// Its name.
    pub name: Label,
    /// The node that it is attached to.
    pub node: String,
    /// Its group.
    #[serde(default)]
    pub group: Option<Label>,
    /// Ports that get public URLs; each is served by a built-in server, and so is the echo port 7.
    #[serde(default)]
    pub ports: Vec<u16>,
}

impl Topology {
    /// Reads and checks a topology's file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read the topology {}: give a file such as labs/two-nodes/topology.toml", path.display())
        })?;
        Self::parse(&text).with_context(|| format!("the topology {} cannot be used: correct it", path.display()))
    }

    /// Reads and checks a topology's text.
    pub fn parse(text: &str) -> Result<Self> {
        let topology: Self = toml::from_str(text)?;
        topology.check()?;
        Ok(topology)
    }

    fn check(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        for name in
            self.machines().map(|machine| machine.name).chain(self.workspaces.iter().map(|one| one.name.as_str()))
        {
            check_name("host", name)?;
            ensure!(names.insert(name), "two machines are called {name:?}: rename one");
        }
        let mut segments = BTreeSet::new();
        for segment in &self.segments {
            check_name("segment", &segment.name)?;
            ensure!(segments.insert(segment.name.as_str()), "two segments are called {:?}: rename one", segment.name);
            ensure!(
                self.hosts.iter().any(|host| host.name == segment.router),
                "segment {}: no host is called {:?}: add it, or name another as router",
                segment.name,
                segment.router
            );
        }
        for machine in self.machines() {
            for link in machine.links {
                ensure!(
                    segments.contains(link.segment.as_str()),
                    "host {}: no segment is called {:?}: add it, or name another",
                    machine.name,
                    link.segment
                );
            }
        }
        self.check_fabric()
    }

    fn check_fabric(&self) -> Result<()> {
        let is_node = |name: &str| self.nodes.iter().any(|node| node.name == name);
        match &self.fabric {
            None => {
                ensure!(self.nodes.is_empty(), "there are nodes but no fabric: add a [fabric] with domain and seed")
            }
            Some(fabric) => {
                ensure!(is_node(&fabric.seed), "fabric: no node is called {:?}: name the seed", fabric.seed)
            }
        }
        for node in &self.nodes {
            ensure!(!node.links.is_empty(), "node {} has no link: its first link is its uplink", node.name);
        }
        for workspace in &self.workspaces {
            let (name, node) = (&workspace.name, &workspace.node);
            ensure!(is_node(node), "workspace {name}: no node is called {node:?}: add it, or name another");
        }
        Ok(())
    }

    /// Hosts and nodes alike.
    pub fn machines(&self) -> impl Iterator<Item = Machine<'_>> {
        let hosts =
            self.hosts.iter().map(|host| Machine { name: &host.name, links: &host.links, forward: host.forward });
        let nodes = self.nodes.iter().map(|node| Machine { name: &node.name, links: &node.links, forward: false });
        hosts.chain(nodes)
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no node is called {name:?}"))
    }
}

impl Node {
    /// Its addresses on the underlay.
    #[must_use]
    pub fn underlay(&self) -> Vec<IpAddr> {
        self.links.first().map(|link| link.addresses.iter().map(IpNet::addr).collect()).unwrap_or_default()
    }
}

/// What hosts and nodes have in common.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its interfaces.
    pub links: &'a [Link],
    /// Whether the lab makes it forward packets (a node is made to by netd).
    pub forward: bool,
}

/// A name becomes an interface's name and a part of paths.
fn check_name(what: &str, name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 15 || !name.bytes().all(plain) {
        bail!("{what} name {name:?}: use 1 to 15 of a-z, 0-9 and '-'");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topologies_of_the_repository_are_sound() {
        for name in ["one-node", "two-nodes"] {
            Topology::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(name).join("topology.toml")).unwrap();
        }
    }

    #[test]
    fn what_is_named_must_exist_and_the_error_says_so() {
        let base = "title = \"t\"\n";
        for (text, says) in [
            ("[[host]]\nname = \"Bad Name\"\n", "1 to 15"),
            ("[[host]]\nname = \"x\"\n[[host]]\nname = \"x\"\n", "two machines"),
            ("[[segment]]\nname = \"s\"\nrouter = \"gone\"\n", "gone"),
            ("[[host]]\nname = \"x\"\nlinks = [{ segment = \"gone\" }]\n", "gone"),
            ("[[node]]\nname = \"x\"\nlinks = []\n", "[fabric]"),
            ("[fabric]\ndomain = \"d\"\nseed = \"gone\"\n", "gone"),
            ("[[workspace]]\nname = \"w\"\nnode = \"gone\"\n", "gone"),
            ("colour = \"red\"\n", "colour"),
        ] {
            let error = format!("{:#}", Topology::parse(&format!("{base}{text}")).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
