//! The translator's configuration: the file `nat64.toml` as types, which netd writes and `nat64` reads.
mod validate;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4, SocketAddrV6},
    str::FromStr,
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    packet::Protocol,
    rfc6052::PrefixError,
    rfc7757::{Eam, EamError},
};

/// The whole file. In TOML, plain fields come before tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The TUN device's name.
    pub tun: String,
    /// With state or without.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Mode,
    /// How many of its queues are read, each by a thread.
    #[serde(default = "default_queues")]
    pub queues: u16,
    /// The largest IPv6 packet towards workspaces, in bytes; at least 1280.
    pub mtu6: u16,
    /// The largest IPv4 packet, in bytes.
    #[serde(default = "default_mtu4")]
    pub mtu4: u16,
    /// IPv4 destinations that are refused, whatever a prefix permits: the node's own addresses and other nodes'.
    /// The pool's are refused without being listed, unless `hairpinning` is on.
    #[serde(default)]
    pub deny: Vec<Ipv4Net>,
    /// The IPv6 sources that are served; of NAT64 alone, for SIIT serves whatever it has an IPv4 address for.
    #[serde(default)]
    pub sources: Vec<Ipv6Net>,
    /// Which IPv4 hosts reach a bound port (RFC 6146 3.5.1, 3.5.2).
    #[serde(default, skip_serializing_if = "is_default")]
    pub filtering: Filtering,
    /// Whether hosts reach each other by their bound ports of the pool (RFC 6146 3.8). `deny` is stronger.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hairpinning: bool,
    /// What becomes of an unfragmented UDP packet without checksum from IPv4 (RFC 7915 4.5).
    #[serde(default, skip_serializing_if = "is_default")]
    pub udp_zero_checksum: UdpZeroChecksum,
    /// The IPv4 addresses of SIIT itself, and of IPv6 routers whose ICMP errors have a source without IPv4 address
    /// (RFC 6791 3.2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub icmp_sources: Vec<Ipv4Net>,
    /// Which IPv4 addresses and ports are the translator's; of NAT64 alone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pool: Pool,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
    /// How long idle sessions last.
    #[serde(default)]
    pub timers: Timers,
    /// The IPv6 prefixes that stand for IPv4.
    #[serde(default)]
    pub prefix: Vec<PrefixConfig>,
    /// Bindings that are there for ever (RFC 6146 3.1): ports forwarded in, from every IPv4 host that a prefix permits.
    #[serde(default, rename = "static", skip_serializing_if = "Vec::is_empty")]
    pub static_bindings: Vec<StaticBinding>,
    /// Explicit address mappings (RFC 7757), of SIIT alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eam: Vec<Eam>,
}

/// What an absent file would say; not valid before sources, pool and prefixes are given.
impl Default for Config {
    fn default() -> Self {
        Self {
            tun: "weft64".into(),
            mode: Mode::default(),
            queues: default_queues(),
            mtu6: 1280,
            mtu4: default_mtu4(),
            deny: Vec::new(),
            sources: Vec::new(),
            filtering: Filtering::default(),
            hairpinning: false,
            udp_zero_checksum: UdpZeroChecksum::default(),
            icmp_sources: Vec::new(),
            pool: Pool::default(),
            limits: Limits::default(),
            timers: Timers::default(),
            prefix: Vec::new(),
            static_bindings: Vec::new(),
            eam: Vec::new(),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How packets are translated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// With state: many IPv6 hosts share the pool's addresses (RFC 6146).
    #[default]
    Nat64,
    /// Without state: each address has its counterpart (RFC 7915, RFC 7757).
    Siit,
}

/// Which IPv4 hosts may send to a bound port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// Those that the IPv6 host has a session with, from any of their ports.
    #[default]
    AddressDependent,
    /// Those that the IPv6 host has a session with, from that port alone.
    AddressAndPortDependent,
    /// All that a prefix permits.
    EndpointIndependent,
}

/// What becomes of an unfragmented UDP packet without checksum, which IPv6 does not allow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UdpZeroChecksum {
    /// It gets one.
    #[default]
    Calculate,
    /// It is dropped and counted.
    Drop,
}

/// A binding that is there for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticBinding {
    /// `"tcp"` or `"udp"`.
    pub protocol: StaticProtocol,
    /// The IPv6 host's end, `[address]:port`.
    pub six: SocketAddrV6,
    /// Its end on the IPv4 side, `address:port`: an address of the pool, and any port, also outside the pool's range.
    pub four: SocketAddrV4,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StaticProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl From<StaticProtocol> for Protocol {
    fn from(protocol: StaticProtocol) -> Self {
        match protocol {
            StaticProtocol::Tcp => Self::Tcp,
            StaticProtocol::Udp => Self::Udp,
        }
    }
}

fn default_queues() -> u16 {
    2
}

fn default_mtu4() -> u16 {
    1500
}

/// A prefix that stands for IPv4.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixConfig {
    /// The prefix, for example `64:ff9b::/96`.
    pub prefix: Ipv6Net,
    /// What it may stand for.
    pub permit: Permit,
}

/// Which IPv4 addresses a prefix may stand for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Permit {
    /// `"global"`: all that are globally reachable (RFC 6052 3.1).
    Word(PermitWord),
    /// A list of ranges.
    Ranges(Vec<Ipv4Net>),
}

/// The one word that a permit can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PermitWord {
    /// Globally reachable addresses.
    Global,
}

/// The translator's IPv4 addresses and ports (pool4). If an address is the node's own, the TUN device needs the sysctl
/// `accept_local`, or the kernel drops what comes from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// The addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// The ports of each, and echo identifiers: text `first-last`.
    pub ports: PortRange,
}

impl Default for Pool {
    fn default() -> Self {
        Self { addresses: Vec::new(), ports: PortRange { first: 1024, last: 65_535 } }
    }
}

/// A range of ports, both ends included; text `first-last`.
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
        let parsed = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match parsed {
            Some((first, last)) if 0 < first && first <= last => Ok(Self { first, last }),
            _ => Err(format!("{text:?} is not a range of ports: write it as first-last, for example \"16384-29999\"")),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Bounds of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sessions in all.
    pub sessions: u32,
    /// Sessions of one IPv6 source; TCP that is over does not count.
    pub sessions_per_source: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sessions: 262_144, sessions_per_source: 4_096 }
    }
}

/// How long an idle session lasts, in seconds; the defaults are RFC 6146's (4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timers {
    /// UDP: at least 120.
    pub udp: u32,
    /// Established TCP: at least 7,440.
    pub tcp_established: u32,
    /// TCP that is opening or closed: at least 240.
    pub tcp_transitory: u32,
    /// ICMP queries: at least 60.
    pub icmp: u32,
}

impl Default for Timers {
    fn default() -> Self {
        Self { udp: 300, tcp_established: 7_440, tcp_transitory: 240, icmp: 60 }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A list that must hold something.
    #[error("{0} is empty: give at least one {1}")]
    Empty(&'static str, &'static str),
    /// A number out of its range.
    #[error("{0} = {1} is out of range: give {2}")]
    Range(&'static str, u64, &'static str),
    /// A device name that the kernel would refuse.
    #[error("tun = {0:?} cannot be a device's name: use 1 to 15 letters, digits, '-', '_' or '.'")]
    Tun(String),
    /// A prefix that RFC 6052 does not allow.
    #[error("prefix: {0}")]
    Prefix(#[from] PrefixError),
    /// Two prefixes overlap.
    #[error("prefix {0} and prefix {1} overlap: give each IPv4 range one prefix")]
    PrefixOverlap(Ipv6Net, Ipv6Net),
    /// Two prefixes stand for the same IPv4 addresses, so that a reply could come from either.
    #[error("prefix {0} and prefix {1} both permit {2}: permit it for one of them")]
    PermitOverlap(Ipv6Net, Ipv6Net, Ipv4Net),
    /// A pool address that no host can have.
    #[error("pool.addresses: {0} cannot be a host's address: give unicast addresses")]
    PoolAddress(Ipv4Addr),
    /// The same address twice.
    #[error("pool.addresses: {0} is there twice: remove one")]
    PoolTwice(Ipv4Addr),
    /// Something that the mode has no use for.
    #[error("{0} means nothing in mode {1}: remove it, or change the mode")]
    Mode(&'static str, &'static str),
    /// An address mapping that RFC 7757 does not allow.
    #[error("eam: {0}")]
    Eam(#[from] EamError),
    /// A static binding of a host that is not served.
    #[error("static: {0} is no address below sources: add its prefix there")]
    StaticSource(SocketAddrV6),
    /// A static binding at an address that is not the pool's.
    #[error("static: {0} is no address and port of the pool: add the address to pool.addresses, use ports 1 to 65535")]
    StaticPool(SocketAddrV4),
    /// Two static bindings of one end.
    #[error("static: {0} is bound twice: remove one")]
    StaticTwice(String),
}

impl Permit {
    /// Whether it permits an address.
    #[must_use]
    pub fn permits(&self, address: Ipv4Addr) -> bool {
        match self {
            Self::Word(PermitWord::Global) => {
                !weft_model::address::NON_GLOBAL_V4.iter().any(|range| range.contains(&address))
            }
            Self::Ranges(ranges) => ranges.iter().any(|range| range.contains(&address)),
        }
    }

    /// A range that both permit.
    fn overlap(&self, other: &Self) -> Option<Ipv4Net> {
        let global =
            |range: &&Ipv4Net| !weft_model::address::NON_GLOBAL_V4.iter().any(|non_global| non_global.contains(*range));
        match (self, other) {
            (Self::Word(_), Self::Word(_)) => Some(Ipv4Net::default()),
            (Self::Word(_), Self::Ranges(ranges)) | (Self::Ranges(ranges), Self::Word(_)) => {
                ranges.iter().find(global).copied()
            }
            (Self::Ranges(ours), Self::Ranges(theirs)) => {
                ours.iter().find(|one| theirs.iter().any(|two| one.contains(two) || two.contains(*one))).copied()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        tun = "weft64"
        queues = 2
        mtu6 = 1420
        mtu4 = 1500
        deny = ["198.18.0.11/32"]
        sources = ["fd12:3456:789a:1::/64"]
        limits = { sessions = 1000, sessions_per_source = 100 }
        [[prefix]]
        prefix = "64:ff9b::/96"
        permit = "global"
        [[prefix]]
        prefix = "64:ff9b:1::/96"
        permit = ["198.18.0.0/15"]
        [pool]
        addresses = ["198.18.0.11"]
        ports = "16384-29999"
    "#;

    #[test]
    fn the_file_survives_the_way_through_the_types() {
        let config: Config = toml::from_str(FILE).unwrap();
        config.validate().unwrap();
        assert_eq!(config.pool.ports, PortRange { first: 16384, last: 29999 });
        assert_eq!(config.timers, Timers::default());
        let written = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&written).unwrap(), config, "{written}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value_and_a_way_out() {
        for (from, to, says) in [
            ("mtu6 = 1420", "mtu6 = 1000", "mtu6 = 1000 is out of range: give 1280"),
            ("queues = 2", "queues = 0", "queues = 0"),
            ("\"weft64\"", "\"a/b\"", "tun = \"a/b\""),
            ("64:ff9b:1::/96", "64:ff9b:1::/95", "use 32"),
            ("64:ff9b:1::/96", "64:ff9b::/96", "overlap"),
            ("[\"198.18.0.0/15\"]", "[\"198.18.0.0/15\", \"8.8.8.0/24\"]", "both permit 8.8.8.0/24"),
            ("[\"198.18.0.11\"]", "[]", "pool.addresses is empty"),
            ("[\"198.18.0.11\"]", "[\"224.0.0.1\"]", "224.0.0.1 cannot be a host's"),
            ("[\"198.18.0.11\"]", "[\"198.18.0.11\", \"198.18.0.11\"]", "there twice"),
            ("[\"fd12:3456:789a:1::/64\"]", "[]", "sources is empty"),
            ("sessions = 1000", "sessions = 0", "limits.sessions = 0"),
        ] {
            let text = FILE.replace(from, to);
            assert_ne!(text, FILE);
            let error = toml::from_str::<Config>(&text).unwrap().validate().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn what_is_new_is_not_written_unless_it_is_used() {
        let config: Config = toml::from_str(FILE).unwrap();
        let written = toml::to_string(&config).unwrap();
        for field in ["mode", "filtering", "hairpinning", "udp_zero", "icmp_sources", "static", "eam"] {
            assert!(!written.contains(field), "{field}: {written}");
        }
        let more = r#"
            filtering = "endpoint-independent"
            hairpinning = true
            udp_zero_checksum = "drop"
        "#;
        let bindings = r#"
            [[static]]
            protocol = "tcp"
            six = "[fd12:3456:789a:1::9]:80"
            four = "198.18.0.11:8080"
        "#;
        let config: Config = toml::from_str(&format!("{more}{FILE}{bindings}")).unwrap();
        config.validate().unwrap();
        let written = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&written).unwrap(), config, "{written}");
    }

    #[test]
    fn every_mode_refuses_what_it_has_no_use_for() {
        let siit = r#"
            tun = "weft64"
            mode = "siit"
            mtu6 = 1500
            icmp_sources = ["192.0.2.200/29"]
            [[eam]]
            four = "192.0.2.16/28"
            six = "2001:db8:cccc::/124"
            [[prefix]]
            prefix = "2001:db8:64::/48"
            permit = "global"
        "#;
        let config: Config = toml::from_str(siit).unwrap();
        config.validate().unwrap();
        let written = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&written).unwrap(), config, "{written}");
        let more = |line: &str, base: &str| toml::from_str::<Config>(&format!("{line}\n{base}")).unwrap().validate();
        for (line, base, says) in [
            ("hairpinning = true", siit, "hairpinning means nothing in mode siit"),
            ("sources = [\"fd12::/64\"]", siit, "sources means nothing in mode siit"),
            ("icmp_sources = [\"192.0.2.1/32\"]", FILE, "icmp_sources means nothing in mode nat64"),
            ("eam = [{ four = \"192.0.2.0/24\", six = \"2001:db8::/124\" }]", FILE, "eam means nothing in mode nat64"),
            (
                "static = [{ protocol = \"tcp\", six = \"[fd99::1]:80\", four = \"198.18.0.11:80\" }]",
                FILE,
                "add its prefix",
            ),
            (
                "static = [{ protocol = \"tcp\", six = \"[fd12:3456:789a:1::1]:80\", four = \"198.18.0.12:80\" }]",
                FILE,
                "198.18.0.12:80 is no address and port of the pool",
            ),
        ] {
            let error = more(line, base).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let wide = siit.replace("/124", "/125");
        let error = toml::from_str::<Config>(&wide).unwrap().validate().unwrap_err().to_string();
        assert!(error.contains("eam: 192.0.2.16/28"), "{error}");
        let nothing = "tun = \"t\"\nmode = \"siit\"\nmtu6 = 1500";
        assert!(toml::from_str::<Config>(nothing).unwrap().validate().unwrap_err().to_string().contains("[[eam]]"));
    }

    #[test]
    fn what_cannot_be_read_is_named_too() {
        for (from, to, says) in [
            ("16384-29999", "29999-16384", "first-last"),
            ("16384-29999", "0-10", "first-last"),
            ("mtu4 = 1500", "mtu5 = 1500", "mtu5"),
            ("sessions = 1000", "session = 1000", "session"),
        ] {
            let error = toml::from_str::<Config>(&FILE.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_private_address_is_not_global() {
        let global = Permit::Word(PermitWord::Global);
        assert!(global.permits(Ipv4Addr::new(8, 8, 8, 8)));
        for refused in [[10, 0, 0, 1], [169, 254, 169, 254], [127, 0, 0, 1], [198, 18, 0, 1], [224, 0, 0, 1]] {
            assert!(!global.permits(refused.into()), "{refused:?}");
        }
    }
}
