//! `netd.toml`: what the operator decides of one node. Read once at start; every value has a default that works.
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;
use weft_model::object::Role;

/// The port on which WireGuard listens unless the operator says otherwise.
pub const WIREGUARD_PORT: u16 = 51820;
/// Smallest MTU that IPv6 allows on a link (RFC 8200 5).
pub const MIN_MTU: u32 = 1280;
/// What WireGuard over IPv6 adds to a packet: 40 + 8 + 32 bytes.
pub const TUNNEL_OVERHEAD: u32 = 80;

/// Where a node keeps its things. One set a node, so that a lab runs several on one kernel.
#[derive(Debug, Clone)]
pub struct Paths {
    /// Identity, journal, store: survives reboots.
    pub state: PathBuf,
    /// Sockets and what other processes read: may be lost at a reboot.
    pub run: PathBuf,
    /// Pins of the data path.
    pub bpf: PathBuf,
}

impl Paths {
    /// The API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.join("netd.sock")
    }

    /// The user-space WireGuard's configuration.
    #[must_use]
    pub fn wire_conf(&self) -> PathBuf {
        self.state.join("wire.conf")
    }

    /// The user-space WireGuard's control socket.
    #[must_use]
    pub fn wire_socket(&self) -> PathBuf {
        self.run.join("weft0.sock")
    }

    /// What the translator reads.
    #[must_use]
    pub fn nat64_conf(&self) -> PathBuf {
        self.run.join("nat64.toml")
    }

    /// Where the translator may leave its process id.
    #[must_use]
    pub fn nat64_pid(&self) -> PathBuf {
        self.run.join("nat64.pid")
    }

    /// What the resolver reads.
    #[must_use]
    pub fn dns_view(&self) -> PathBuf {
        self.run.join("dns.json")
    }

    /// The journal of attachments and the last view of the fabric.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.state.join("journal.db")
    }

    /// The objects of a seed.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.state.join("store.db")
    }
}

/// The node's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The interface that carries the underlay; the one with the default route if absent.
    pub uplink: Option<String>,
    /// Where a seed answers other nodes.
    pub api_listen: SocketAddr,
    /// Where other nodes reach this node's WireGuard, best first; the uplink's addresses if empty.
    pub endpoints: Vec<SocketAddr>,
    /// The UDP port of WireGuard.
    pub listen_port: u16,
    /// What this node does beyond carrying workspaces, when it makes a fabric by `netctl init`.
    pub roles: Vec<Role>,
    /// Where to ask for names that are not the fabric's; `/etc/resolv.conf` if empty.
    pub dns_upstreams: Vec<Upstream>,
    /// The translator.
    pub nat64: Nat64Config,
    /// MTU of the tunnel and the workspaces' links; 80 less than the uplink's if absent.
    pub mtu: Option<u32>,
    /// How many workspaces may be attached here.
    pub max_workspaces: usize,
}

/// The translator's part of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nat64Config {
    /// Whether this node translates, if it has IPv4.
    pub enabled: bool,
    /// The ports and echo identifiers of the node's own IPv4 address that the translator takes.
    pub ports: PortRange,
}

impl Default for Nat64Config {
    fn default() -> Self {
        Self { enabled: true, ports: PortRange { first: 16384, last: 29999 } }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            uplink: None,
            api_listen: SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 7443)),
            endpoints: Vec::new(),
            listen_port: WIREGUARD_PORT,
            roles: Vec::new(),
            dns_upstreams: Vec::new(),
            nat64: Nat64Config::default(),
            mtu: None,
            max_workspaces: 4096,
        }
    }
}

/// A range of ports, both ends included: `"16384-29999"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl FromStr for PortRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let error =
            || format!("{text:?} is no range of ports: write first-last from 1024 to 65535, as in \"16384-29999\"");
        let (first, last) = text.split_once('-').ok_or_else(error)?;
        let (first, last) = (first.trim().parse().map_err(|_| error())?, last.trim().parse().map_err(|_| error())?);
        if first < 1024 || first > last { Err(error()) } else { Ok(Self { first, last }) }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A resolver to ask: an address, with port 53 unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upstream(pub SocketAddr);

impl FromStr for Upstream {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let with_port = text.parse::<SocketAddr>().ok();
        let alone = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53));
        let error = || {
            format!(
                "{text:?} is no resolver: write an address or address:port, as in \"192.0.2.53\" or \"[2001:db8::53]:53\""
            )
        };
        with_port.or_else(alone).map(Self).ok_or_else(error)
    }
}

impl<'de> Deserialize<'de> for Upstream {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {error}; make it readable for root, or give another with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file does not say what a configuration says: the text names the line, the field and the value.
    #[error("configuration {path}: {reason}; correct it, or remove the line to have the default")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, field and value.
        reason: String,
    },
    /// A value out of its range.
    #[error("configuration {path}: {field} = {value}: {hint}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        hint: &'static str,
    },
}

impl Config {
    /// Reads the file; a file that does not exist is the default configuration.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(ConfigError::Read { path: path.into(), error }),
        }
    }

    /// Reads a configuration's text; `path` is for the errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax { path: path.into(), reason: one_line(&error.to_string()) })?;
        config.check().map_err(|(field, value, hint)| ConfigError::Value { path: path.into(), field, value, hint })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String, &'static str)> {
        if self.listen_port == 0 {
            return Err(("listen_port", "0".into(), "give a UDP port from 1 to 65535, 51820 is usual"));
        }
        if self.api_listen.port() == 0 {
            return Err((
                "api_listen",
                self.api_listen.to_string(),
                "give a fixed port, 7443 is usual: tokens carry it",
            ));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !(MIN_MTU..=65535 - TUNNEL_OVERHEAD).contains(mtu)) {
            return Err(("mtu", mtu.to_string(), "give 1280 to 65455: IPv6 needs 1280"));
        }
        if let Some(bad) = self.endpoints.iter().find(|endpoint| endpoint.port() == 0 || endpoint.ip().is_unspecified())
        {
            return Err(("endpoints", bad.to_string(), "give address:port as other nodes reach this one"));
        }
        if let Some(name) = self.uplink.as_ref().filter(|name| name.is_empty() || name.len() > 15 || name.contains('/'))
        {
            return Err(("uplink", format!("{name:?}"), "give an interface's name, as `ip link` shows it"));
        }
        let range = self.nat64.ports;
        if (range.first..=range.last).contains(&self.listen_port) {
            return Err((
                "nat64.ports",
                range.to_string(),
                "keep listen_port outside of it: the translator would take WireGuard's packets",
            ));
        }
        if (range.first..=range.last).contains(&self.api_listen.port()) {
            return Err((
                "nat64.ports",
                range.to_string(),
                "keep api_listen's port outside of it: the translator would take other nodes' requests",
            ));
        }
        if self.max_workspaces == 0 || self.max_workspaces > 65_536 {
            return Err(("max_workspaces", self.max_workspaces.to_string(), "give 1 to 65536"));
        }
        Ok(())
    }
}

/// The parser's message draws a picture of the line; an error of ours is one line.
fn one_line(message: &str) -> String {
    let kept = message.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("|"));
    let kept = kept.map(|line| line.split_once(" | ").map_or(line, |(_, code)| code.trim()));
    kept.collect::<Vec<_>>().join(": ")
}

/// The resolvers that `/etc/resolv.conf` names, without `own`: a node must not ask itself.
#[must_use]
pub fn resolv_conf(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let parsed = named.filter_map(|rest| rest.trim().parse::<IpAddr>().ok());
    parsed.filter(|ip| !own.contains(ip)).take(3).map(|ip| SocketAddr::new(ip, 53)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("netd.toml")).map_err(|error| error.to_string())
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = parse(&text);
            let _ = resolv_conf(&text, &[]);
        }
    }

    #[test]
    fn an_empty_file_and_no_file_are_the_default() {
        assert_eq!(parse("").unwrap(), Config::default());
        assert_eq!(Config::load(Path::new("/nonexistent/netd.toml")).unwrap(), Config::default());
    }

    #[test]
    fn every_field_can_be_said() {
        let config = parse(
            r#"
            uplink = "eth0"
            api_listen = "198.18.0.11:7443"
            endpoints = ["198.18.0.11:51820", "[2001:db8::11]:51820"]
            listen_port = 51821
            roles = ["proxy"]
            dns_upstreams = ["198.18.0.53", "[2001:db8::53]:5353"]
            mtu = 1300
            max_workspaces = 10
            [nat64]
            enabled = false
            ports = "20000-20999"
            "#,
        )
        .unwrap();
        assert_eq!(config.dns_upstreams[0].0, "198.18.0.53:53".parse().unwrap());
        assert_eq!(config.dns_upstreams[1].0, "[2001:db8::53]:5353".parse().unwrap());
        assert_eq!(config.nat64.ports, PortRange { first: 20000, last: 20999 });
        assert_eq!(config.roles, [Role::Proxy]);
        assert!(!config.nat64.enabled);
    }

    #[test]
    fn an_error_names_the_field_the_value_and_the_way_out() {
        for (bad, says) in [
            ("uplnk = \"eth0\"", vec!["uplnk", "uplink", "netd.toml"]),
            ("listen_port = 0", vec!["listen_port", "51820"]),
            ("listen_port = 70000", vec!["listen_port", "70000"]),
            ("mtu = 1000", vec!["mtu", "1000", "1280"]),
            ("roles = [\"king\"]", vec!["king", "gateway"]),
            ("nat64.ports = \"5\"", vec!["\"5\"", "16384-29999"]),
            ("nat64.ports = \"1-70000\"", vec!["1-70000"]),
            ("nat64.ports = \"50000-60000\"", vec!["nat64.ports", "listen_port"]),
            ("nat64.ports = \"7000-8000\"", vec!["nat64.ports", "api_listen"]),
            ("dns_upstreams = [\"dns.example\"]", vec!["dns.example", "192.0.2.53"]),
            ("endpoints = [\"0.0.0.0:1\"]", vec!["endpoints", "0.0.0.0:1"]),
            ("api_listen = \"nowhere\"", vec!["nowhere"]),
            ("max_workspaces = 0", vec!["max_workspaces"]),
        ] {
            let error = parse(bad).unwrap_err();
            for word in says {
                assert!(error.contains(word), "{bad}: {error:?} lacks {word:?}");
            }
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn resolv_conf_is_read_without_ourselves() {
        let text = "# made by hand\nnameserver 198.18.0.53\nsearch example\nnameserver fd00::53\nnameserver bad\n";
        assert_eq!(resolv_conf(text, &["fd00::53".parse().unwrap()]), ["198.18.0.53:53".parse().unwrap()]);
    }
}
