//! WireGuard's cross-platform userspace protocol: `get=1` and `set=1` over a unix socket, as `wg` and netd speak it.
//!
//! Not served: a name as endpoint (the process resolves none), and `protocol_version` other than 1.
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;

use crate::{
    config::Config,
    key::{Key, Secret},
};

mod client;
mod text;

pub use client::{Client, ClientError};
pub use text::{MAX_REQUEST_LEN, UapiError};

/// A change to one peer's allowed IPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Gives it to this peer, taking it from whoever had it.
    Add(IpNet),
    /// Takes it from this peer; nothing if it has it not.
    Remove(IpNet),
}

/// What is to change of one peer; what is `None` or empty stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerDelta {
    /// Which.
    pub public_key: Key,
    /// Forget it.
    pub remove: bool,
    /// Do nothing if it is not there.
    pub update_only: bool,
    /// A key of zeroes is none.
    pub preshared_key: Option<Secret>,
    /// Takes effect only if it differs from the one configured before: what was learned from the peer itself stays.
    pub endpoint: Option<SocketAddr>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: Option<u16>,
    /// Forget all its allowed IPs first.
    pub replace_allowed_ips: bool,
    /// In this order.
    pub allowed_ips: Vec<Change>,
}

impl PeerDelta {
    /// Adds the peer if it is not there, and changes nothing else.
    #[must_use]
    pub fn new(public_key: Key) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// What is to change of the tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Another private key ends all sessions; a key of zeroes is none.
    pub private_key: Option<Secret>,
    /// 0 lets the kernel choose.
    pub listen_port: Option<u16>,
    /// The mark of outgoing packets; 0 is none.
    pub fwmark: Option<u32>,
    /// Forget all peers first.
    pub replace_peers: bool,
    /// In this order.
    pub peers: Vec<PeerDelta>,
}

impl Delta {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// All of a configuration, for a tunnel that has nothing yet.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self::between(&Config::default(), config)
    }

    /// The changes that lead from one configuration to another. Empty if they say the same.
    #[must_use]
    pub fn between(old: &Config, new: &Config) -> Self {
        let changed = |old: &Option<Secret>, new: &Option<Secret>| {
            (old != new).then(|| new.clone().unwrap_or_else(|| Secret::from_bytes([0; 32])))
        };
        let mut delta = Self {
            private_key: changed(&old.private_key, &new.private_key),
            listen_port: if old.listen_port == new.listen_port { None } else { new.listen_port },
            fwmark: (old.fwmark != new.fwmark).then(|| new.fwmark.unwrap_or(0)),
            ..Self::default()
        };
        let before: std::collections::HashMap<_, _> = old.peers.iter().map(|peer| (peer.public_key, peer)).collect();
        let kept: BTreeSet<Key> = new.peers.iter().map(|peer| peer.public_key).collect();
        let gone = old.peers.iter().filter(|peer| !kept.contains(&peer.public_key));
        delta.peers.extend(gone.map(|peer| PeerDelta { remove: true, ..PeerDelta::new(peer.public_key) }));
        for peer in &new.peers {
            let known = before.get(&peer.public_key);
            let mut change = PeerDelta::new(peer.public_key);
            change.preshared_key = changed(&known.and_then(|known| known.preshared_key.clone()), &peer.preshared_key);
            change.endpoint =
                if known.is_some_and(|known| known.endpoint == peer.endpoint) { None } else { peer.endpoint };
            let keepalive = known.and_then(|known| known.persistent_keepalive);
            if keepalive != peer.persistent_keepalive {
                change.persistent_keepalive = Some(peer.persistent_keepalive.unwrap_or(0));
            }
            let had: BTreeSet<IpNet> =
                known.map(|known| known.allowed_ips.iter().copied().collect()).unwrap_or_default();
            let has: BTreeSet<IpNet> = peer.allowed_ips.iter().copied().collect();
            change.allowed_ips.extend(had.difference(&has).map(|net| Change::Remove(*net)));
            change.allowed_ips.extend(has.difference(&had).map(|net| Change::Add(*net)));
            if known.is_none() || change != PeerDelta::new(peer.public_key) {
                delta.peers.push(change);
            }
        }
        delta
    }
}

/// What a running tunnel says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The public key of its private one; `None` if it has none.
    pub public_key: Option<Key>,
    /// The UDP port.
    pub listen_port: u16,
    /// The mark of outgoing packets; 0 is none.
    pub fwmark: u32,
    /// The peers, by key.
    pub peers: Vec<PeerState>,
}

/// What a running tunnel says of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerState {
    /// Which.
    pub public_key: Key,
    /// Whether a preshared key is set.
    pub preshared: bool,
    /// Where it is: learned, or configured.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was completed, since 1970; `None` for never.
    pub last_handshake: Option<Duration>,
    /// UDP payload bytes received.
    pub rx_bytes: u64,
    /// UDP payload bytes sent.
    pub tx_bytes: u64,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// Its allowed IPs, in order.
    pub allowed_ips: Vec<IpNet>,
}

impl PeerState {
    /// A peer of which nothing is known.
    #[must_use]
    pub fn new(public_key: Key) -> Self {
        Self {
            public_key,
            preshared: false,
            endpoint: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
        }
    }

    /// When the last handshake was completed.
    #[must_use]
    pub fn last_handshake_time(&self) -> Option<SystemTime> {
        self.last_handshake.map(|since| SystemTime::UNIX_EPOCH + since)
    }
}

pub(crate) use text::{Request, StateSource, parse_request, write_state};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::any_config;
    use proptest::prelude::*;

    /// What a tunnel with this configuration has after a delta.
    fn applied(mut config: Config, delta: &Delta) -> Config {
        let zero = |key: &Secret| (!key.is_zero()).then(|| key.clone());
        config.private_key = delta.private_key.as_ref().map_or(config.private_key, zero);
        config.listen_port = delta.listen_port.or(config.listen_port);
        config.fwmark = delta.fwmark.or(config.fwmark);
        for change in &delta.peers {
            let at = config.peers.iter().position(|peer| peer.public_key == change.public_key);
            if change.remove {
                at.map(|at| config.peers.remove(at));
                continue;
            }
            let at = at.unwrap_or_else(|| {
                config.peers.push(crate::config::Peer::new(change.public_key));
                config.peers.len() - 1
            });
            let peer = &mut config.peers[at];
            peer.preshared_key = change.preshared_key.as_ref().map_or(peer.preshared_key.clone(), zero);
            peer.endpoint = change.endpoint.or(peer.endpoint);
            let seconds = change.persistent_keepalive;
            peer.persistent_keepalive = seconds.map_or(peer.persistent_keepalive, |s| (s != 0).then_some(s));
            for change in &change.allowed_ips {
                match change {
                    Change::Add(net) => peer.allowed_ips.push(*net),
                    Change::Remove(net) => peer.allowed_ips.retain(|other| other != net),
                }
            }
        }
        config
    }

    fn normal(mut config: Config) -> Config {
        config.fwmark = config.fwmark.filter(|mark| *mark != 0);
        config.peers.sort_by_key(|peer| peer.public_key);
        for peer in &mut config.peers {
            peer.allowed_ips.sort();
            peer.allowed_ips.dedup();
        }
        config
    }

    proptest! {
        #[test]
        fn the_changes_between_two_configurations_lead_from_one_to_the_other(
            old in any_config(), mut new in any_config(), shared in 0usize..4, change: bool,
        ) {
            // Some peers stay, some of them changed. An endpoint or a port, once known, is never unknown again.
            for peer in old.peers.iter().take(shared) {
                let mut peer = peer.clone();
                if change {
                    peer.allowed_ips.pop();
                    peer.persistent_keepalive = Some(7);
                    peer.preshared_key = None;
                }
                new.peers.push(peer);
            }
            new.listen_port = new.listen_port.or(old.listen_port);
            let delta = Delta::between(&old, &new);
            prop_assert_eq!(normal(applied(old, &delta)), normal(new.clone()));
            prop_assert!(Delta::between(&new, &new).is_empty());
        }
    }
}
