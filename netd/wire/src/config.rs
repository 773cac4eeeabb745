//! The configuration file, in the format of `wg setconf`: written by netd, read once when the process starts.
use std::{fmt::Write as _, net::SocketAddr};

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::key::{Key, Secret};

/// The longest file that is read, in bytes: a peer takes some 200, so this is 80,000 peers.
pub const MAX_CONFIG_LEN: usize = 16 << 20;

/// The UDP port when none is given.
pub const DEFAULT_PORT: u16 = 51820;

/// What the tunnel should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// This node's private key.
    pub private_key: Option<Secret>,
    /// The UDP port; `None` is [`DEFAULT_PORT`], 0 lets the kernel choose.
    pub listen_port: Option<u16>,
    /// The mark of outgoing packets; 0 is none.
    pub fwmark: Option<u32>,
    /// The peers, in the file's order.
    pub peers: Vec<Peer>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its public key.
    pub public_key: Key,
    /// A key shared with it beforehand, mixed into the handshake.
    pub preshared_key: Option<Secret>,
    /// Where its packets may come from, and what is sent to it.
    pub allowed_ips: Vec<IpNet>,
    /// Where to send, until a packet of its own comes from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; `None` is off.
    pub persistent_keepalive: Option<u16>,
}

impl Peer {
    /// A peer that nothing is known of but its key.
    #[must_use]
    pub fn new(public_key: Key) -> Self {
        Self { public_key, preshared_key: None, allowed_ips: Vec::new(), endpoint: None, persistent_keepalive: None }
    }
}

/// Why a configuration cannot be used. No message repeats a value that may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Longer than [`MAX_CONFIG_LEN`].
    #[error(
        "the configuration has {0} bytes, more than {MAX_CONFIG_LEN}: it cannot be one of ours; let netd write it anew"
    )]
    TooLong(usize),
    /// A line that cannot be read.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong and what to do.
        what: String,
    },
    /// Two sections for one key.
    #[error("line {line}: peer {key} has a [Peer] section already: merge the two")]
    Twice {
        /// Where the second section's key stands, counted from 1.
        line: usize,
        /// The peer.
        key: Key,
    },
}

enum Section {
    None,
    Interface,
    Peer(Box<Draft>),
}

/// A [Peer] section that is being read: its PublicKey may come last.
struct Draft {
    started: usize,
    public_key: Option<Key>,
    preshared_key: Option<Secret>,
    allowed_ips: Vec<IpNet>,
    endpoint: Option<SocketAddr>,
    persistent_keepalive: Option<u16>,
}

impl Config {
    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.len() > MAX_CONFIG_LEN {
            return Err(ConfigError::TooLong(text.len()));
        }
        let mut config = Self::default();
        let mut keys = std::collections::HashSet::new();
        let mut section = Section::None;
        for (number, raw) in text.lines().enumerate() {
            let line = number + 1;
            let fail = |what: &str| ConfigError::Line { line, what: what.into() };
            let content = raw.split('#').next().unwrap_or_default().trim();
            if content.is_empty() {
                continue;
            }
            if content.starts_with('[') {
                config.close(section)?;
                section = match content.to_ascii_lowercase().as_str() {
                    "[interface]" => Section::Interface,
                    "[peer]" => Section::Peer(Box::new(Draft::new(line))),
                    _ => return Err(fail("an unknown section: use [Interface] and [Peer]")),
                };
                continue;
            }
            let (name, value) = content.split_once('=').ok_or_else(|| fail("no 'Name = value': add the '='"))?;
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
            match &mut section {
                Section::None => {
                    return Err(fail("a value before the first section: begin with [Interface] or [Peer]"));
                }
                Section::Interface => config.interface(&name, value).map_err(|what| fail(&what))?,
                Section::Peer(draft) => {
                    if name == "publickey" {
                        let key: Key = value.parse().map_err(|_| fail(&bad_key("PublicKey")))?;
                        if draft.public_key.is_some() {
                            return Err(fail("a second PublicKey in one [Peer]: begin another [Peer]"));
                        }
                        if !keys.insert(key) {
                            return Err(ConfigError::Twice { line, key });
                        }
                        draft.public_key = Some(key);
                    } else {
                        draft.set(&name, value).map_err(|what| fail(&what))?;
                    }
                }
            }
        }
        config.close(section)?;
        Ok(config)
    }

    /// The text of a file that [`Config::parse`] reads back. It holds the private key: write it with mode 0600.
    #[must_use]
    pub fn format(&self) -> Zeroizing<String> {
        let peers: usize = self.peers.iter().map(|peer| 192 + peer.allowed_ips.len() * 48).sum();
        // Room for all of it from the start: growing would leave copies of the key behind.
        let mut text = Zeroizing::new(String::with_capacity(256 + peers));
        text.push_str("[Interface]\n");
        if let Some(key) = &self.private_key {
            text.push_str("PrivateKey = ");
            text.push_str(&key.to_base64());
            text.push('\n');
        }
        push(&mut text, "ListenPort", self.listen_port);
        push(&mut text, "FwMark", self.fwmark);
        for peer in &self.peers {
            text.push_str("\n[Peer]\n");
            push(&mut text, "PublicKey", Some(peer.public_key));
            if let Some(key) = &peer.preshared_key {
                text.push_str("PresharedKey = ");
                text.push_str(&key.to_base64());
                text.push('\n');
            }
            for net in &peer.allowed_ips {
                push(&mut text, "AllowedIPs", Some(net));
            }
            push(&mut text, "Endpoint", peer.endpoint);
            push(&mut text, "PersistentKeepalive", peer.persistent_keepalive);
        }
        text
    }

    fn interface(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "privatekey" => self.private_key = Some(value.parse().map_err(|_| bad_key("PrivateKey"))?),
            "listenport" => {
                let port = value.parse().map_err(|_| format!("ListenPort {value:?}: give a number from 0 to 65535"))?;
                self.listen_port = Some(port);
            }
            "fwmark" => {
                let bad = || format!("FwMark {value:?}: give a number, 0x... or off");
                self.fwmark = Some(parse_mark(value).ok_or_else(bad)?);
            }
            _ => return Err(format!("{name:?} is no name of [Interface]: use PrivateKey, ListenPort or FwMark")),
        }
        Ok(())
    }

    fn close(&mut self, section: Section) -> Result<(), ConfigError> {
        if let Section::Peer(draft) = section {
            let what = "a [Peer] without PublicKey: add it".into();
            let public_key = draft.public_key.ok_or(ConfigError::Line { line: draft.started, what })?;
            self.peers.push(Peer {
                public_key,
                preshared_key: draft.preshared_key,
                allowed_ips: draft.allowed_ips,
                endpoint: draft.endpoint,
                persistent_keepalive: draft.persistent_keepalive,
            });
        }
        Ok(())
    }
}

impl Draft {
    fn new(started: usize) -> Self {
        Self {
            started,
            public_key: None,
            preshared_key: None,
            allowed_ips: Vec::new(),
            endpoint: None,
            persistent_keepalive: None,
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "presharedkey" => {
                let key: Secret = value.parse().map_err(|_| bad_key("PresharedKey"))?;
                self.preshared_key = (!key.is_zero()).then_some(key);
            }
            "allowedips" => {
                for net in value.split(',').map(str::trim).filter(|net| !net.is_empty()) {
                    let bad = || format!("AllowedIPs {net:?}: write address/length, for example fd00:db8:0:1::/64");
                    self.allowed_ips.push(parse_net(net).ok_or_else(bad)?);
                }
            }
            "endpoint" => {
                let bad = || format!("Endpoint {value:?}: write address:port, an IPv6 address in brackets; no names");
                self.endpoint = Some(value.parse().map_err(|_| bad())?);
            }
            "persistentkeepalive" => {
                let bad = || format!("PersistentKeepalive {value:?}: give seconds from 1 to 65535, or off");
                let seconds = if value.eq_ignore_ascii_case("off") { 0 } else { value.parse().map_err(|_| bad())? };
                self.persistent_keepalive = (seconds != 0).then_some(seconds);
            }
            _ => {
                return Err(format!(
                    "{name:?} is no name of [Peer]: use PublicKey, PresharedKey, AllowedIPs, Endpoint or PersistentKeepalive"
                ));
            }
        }
        Ok(())
    }
}

fn push(text: &mut String, name: &str, value: Option<impl std::fmt::Display>) {
    if let Some(value) = value {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} = {value}");
    }
}

fn bad_key(name: &str) -> String {
    format!("{name} is not a key: give 44 characters of base64, as `wg genkey` and `wg pubkey` print them")
}

fn parse_mark(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None if text.eq_ignore_ascii_case("off") => Some(0),
        None => text.parse().ok(),
    }
}

/// A prefix without host bits; a bare address is one of full length.
pub(crate) fn parse_net(text: &str) -> Option<IpNet> {
    let net = if text.contains('/') { text.parse().ok()? } else { IpNet::from(text.parse::<std::net::IpAddr>().ok()?) };
    Some(net.trunc())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u32>(), 0u8..=32).prop_map(|(bits, len)| IpNet::new(std::net::Ipv4Addr::from(bits).into(), len)),
            (any::<u128>(), 0u8..=128).prop_map(|(bits, len)| IpNet::new(std::net::Ipv6Addr::from(bits).into(), len)),
        ]
        .prop_map(|net| net.unwrap().trunc())
    }

    pub(crate) fn any_endpoint() -> impl Strategy<Value = SocketAddr> {
        prop_oneof![
            (any::<u32>(), any::<u16>()).prop_map(|(a, p)| (std::net::Ipv4Addr::from(a), p).into()),
            (any::<u128>(), any::<u16>()).prop_map(|(a, p)| (std::net::Ipv6Addr::from(a), p).into()),
        ]
    }

    fn any_secret() -> impl Strategy<Value = Secret> {
        (any::<[u8; 32]>(), 1u8..).prop_map(|(mut bytes, first)| {
            bytes[0] = first;
            Secret::from_bytes(bytes)
        })
    }

    fn any_peer() -> impl Strategy<Value = Peer> {
        let nets = proptest::collection::vec(any_net(), 0..4);
        let keepalive = proptest::option::of(1u16..);
        let psk = proptest::option::of(any_secret());
        (any::<[u8; 32]>(), psk, nets, proptest::option::of(any_endpoint()), keepalive).prop_map(
            |(key, preshared_key, allowed_ips, endpoint, persistent_keepalive)| Peer {
                public_key: Key::from_bytes(key),
                preshared_key,
                allowed_ips,
                endpoint,
                persistent_keepalive,
            },
        )
    }

    pub(crate) fn any_config() -> impl Strategy<Value = Config> {
        let peers = proptest::collection::vec(any_peer(), 0..5);
        let key = proptest::option::of(any_secret());
        (key, any::<Option<u16>>(), any::<Option<u32>>(), peers)
            .prop_map(|(private_key, listen_port, fwmark, peers)| Config { private_key, listen_port, fwmark, peers })
    }

    proptest! {
        #[test]
        fn every_configuration_survives_its_text(config in any_config()) {
            prop_assert_eq!(Config::parse(&config.format()), Ok(config));
        }

        #[test]
        fn no_text_panics(text: String, lines in proptest::collection::vec("(\\[Peer\\]|\\[Interface\\]|[A-Za-z]{1,12} ?= ?.{0,50}|#.*)", 0..12)) {
            let _ = Config::parse(&text);
            let _ = Config::parse(&lines.join("\n"));
        }
    }

    const KEY: &str = "SczF1oYgizjB8MSUaeHRHx7NrY3NDgWxrnWda0PL0jQ=";

    #[test]
    fn reads_what_people_write() {
        let text = format!(
            "# a comment\n[interface]\nlistenport=51820 # here too\n\n[Peer]\nAllowedIPs = fd00::1/64, 192.0.2.7\n\
             AllowedIPs = 2001:db8::5\nEndpoint = [2001:db8::1]:51820\nPersistentKeepalive = off\nPublicKey = {KEY}\n"
        );
        let config = Config::parse(&text).unwrap();
        assert_eq!(config.listen_port, Some(51820));
        let nets: Vec<String> = config.peers[0].allowed_ips.iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["fd00::/64", "192.0.2.7/32", "2001:db8::5/128"]);
        assert_eq!(config.peers[0].persistent_keepalive, None);
    }

    #[test]
    fn what_is_wrong_names_the_line_and_the_way_out_but_no_secret() {
        for (text, part) in [
            ("PrivateKey = x".into(), "line 1: a value before the first section"),
            ("[Interface]\nPrivateKey = topsecret".into(), "line 2: PrivateKey is not a key"),
            ("[Peer]\nEndpoint = 192.0.2.1:1\n".into(), "line 1: a [Peer] without PublicKey"),
            ("[Peer]\nEndpoint = host.example:1\n".into(), "no names"),
            ("[Peer]\nAllowedIPs = fd00::/129".into(), "AllowedIPs \"fd00::/129\""),
            ("[Nothing]".into(), "unknown section"),
            (format!("[Peer]\nPublicKey={KEY}\n[Peer]\nPublicKey={KEY}"), "has a [Peer] section already"),
        ] {
            let error = Config::parse(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains("topsecret"), "{error}");
        }
    }
}
