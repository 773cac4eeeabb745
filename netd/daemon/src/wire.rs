//! The tunnel's peers: what they should be, what its process says they are, and the deltas between the two. An endpoint
//! that the tunnel has learned from a peer's own packets is never overwritten.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use async_trait::async_trait;
use ipnet::IpNet;
use weft_model::NodeName;
use weft_wire::{
    key::Key,
    uapi::{Change, Client, Delta, PeerDelta},
};

use crate::fabric::Fabric;

/// A peer as the tunnel's process has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerState {
    /// Where packets for it go now.
    pub endpoint: Option<SocketAddr>,
    /// What may come from it and goes to it.
    pub allowed_ips: BTreeSet<IpNet>,
    /// The last handshake, in seconds since 1970; `None` if there was none.
    pub last_handshake_s: Option<u64>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

/// The tunnel as its process has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelState {
    /// Its public key, base64.
    pub public_key: Option<String>,
    /// Its peers, by public key (base64).
    pub peers: BTreeMap<String, PeerState>,
}

/// A peer as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The node.
    pub node: NodeName,
    /// Its public key, base64.
    pub public_key: String,
    /// Its endpoints, best first.
    pub endpoints: Vec<SocketAddr>,
    /// What may come from it and goes to it.
    pub allowed_ips: BTreeSet<IpNet>,
}

/// A change of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerChange {
    /// Add it, or replace what is given.
    Set {
        /// Its public key.
        public_key: String,
        /// Send there; `None` leaves what is known.
        endpoint: Option<SocketAddr>,
        /// Replace the allowed IPs; `None` leaves them.
        allowed_ips: Option<BTreeSet<IpNet>>,
    },
    /// Remove it.
    Remove {
        /// Its public key.
        public_key: String,
    },
}

/// The tunnel's process.
#[async_trait]
pub trait Tunnel: Send + Sync + 'static {
    /// What it has; an error if it does not answer.
    async fn get(&self) -> Result<TunnelState, String>;
    /// Changes peers, in one request.
    async fn set(&self, changes: &[PeerChange]) -> Result<(), String>;
}

/// The peers that the fabric asks for, without this node.
#[must_use]
pub fn wanted(fabric: &Fabric, me: &NodeName) -> Vec<Wanted> {
    let others = fabric.nodes().iter().filter(|(name, _)| *name != me);
    let peer = |(name, node): (&NodeName, &crate::fabric::SeenNode)| Wanted {
        node: name.clone(),
        public_key: node.spec.wireguard_public_key.clone(),
        endpoints: node.status.endpoints.clone(),
        allowed_ips: [IpNet::V6(node.spec.prefix.net())].into(),
    };
    others.map(peer).collect()
}

/// The first endpoint of a family that this node has an address of; the first of all if none fits.
#[must_use]
pub fn choose(endpoints: &[SocketAddr], local: &[IpAddr]) -> Option<SocketAddr> {
    let reachable = |endpoint: &&SocketAddr| local.iter().any(|ip| ip.is_ipv4() == endpoint.is_ipv4());
    endpoints.iter().find(reachable).or(endpoints.first()).copied()
}

/// The deltas from what the tunnel has to what is wanted. `given` remembers, by key, the endpoint that we gave last: a peer
/// that sits on another one has roamed there, and stays.
pub fn changes(
    wanted: &[Wanted],
    seen: &TunnelState,
    local: &[IpAddr],
    given: &mut BTreeMap<String, SocketAddr>,
) -> Vec<PeerChange> {
    let mut changes = Vec::new();
    let keys: BTreeSet<&str> = wanted.iter().map(|peer| peer.public_key.as_str()).collect();
    for key in seen.peers.keys().filter(|key| !keys.contains(key.as_str())) {
        given.remove(key);
        changes.push(PeerChange::Remove { public_key: key.clone() });
    }
    for peer in wanted {
        let known = seen.peers.get(&peer.public_key);
        let current = known.and_then(|known| known.endpoint);
        let choice = choose(&peer.endpoints, local);
        let endpoint = match (current, choice) {
            (None, choice) => choice,
            // We gave it, the node does not announce it any more, and the peer has not moved by itself.
            (Some(current), Some(choice))
                if given.get(&peer.public_key) == Some(&current) && !peer.endpoints.contains(&current) =>
            {
                Some(choice)
            }
            _ => None,
        };
        let allowed_ips =
            (known.map(|known| &known.allowed_ips) != Some(&peer.allowed_ips)).then(|| peer.allowed_ips.clone());
        if let Some(endpoint) = endpoint {
            given.insert(peer.public_key.clone(), endpoint);
        } else if let (Some(current), None) = (current, given.get(&peer.public_key)) {
            // A restart of ours forgets what was given; what the tunnel started with is what wire.conf said.
            if peer.endpoints.contains(&current) {
                given.insert(peer.public_key.clone(), current);
            }
        }
        if endpoint.is_some() || allowed_ips.is_some() {
            changes.push(PeerChange::Set { public_key: peer.public_key.clone(), endpoint, allowed_ips });
        }
    }
    changes
}

/// The user-space tunnel `netd wire`, by its control socket.
#[derive(Debug)]
pub struct WireProcess {
    /// The socket.
    pub socket: PathBuf,
}

#[async_trait]
impl Tunnel for WireProcess {
    async fn get(&self) -> Result<TunnelState, String> {
        let client = Client::new(&self.socket);
        let state = tokio::task::spawn_blocking(move || client.get()).await.map_err(|error| error.to_string())?;
        let state = state.map_err(|error| error.to_string())?;
        let peer = |peer: weft_wire::uapi::PeerState| {
            let state = PeerState {
                endpoint: peer.endpoint,
                allowed_ips: peer.allowed_ips.into_iter().collect(),
                last_handshake_s: peer.last_handshake.map(|since| since.as_secs()),
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
            };
            (peer.public_key.to_string(), state)
        };
        let public_key = state.public_key.map(|key| key.to_string());
        Ok(TunnelState { public_key, peers: state.peers.into_iter().map(peer).collect() })
    }

    async fn set(&self, changes: &[PeerChange]) -> Result<(), String> {
        let peers: Result<Vec<PeerDelta>, String> = changes.iter().map(delta).collect();
        let delta = Delta { peers: peers?, ..Delta::default() };
        let client = Client::new(&self.socket);
        let done = tokio::task::spawn_blocking(move || client.set(&delta)).await.map_err(|error| error.to_string())?;
        done.map_err(|error| error.to_string())
    }
}

/// A change in the words of the tunnel's protocol.
fn delta(change: &PeerChange) -> Result<PeerDelta, String> {
    let key = |text: &str| text.parse::<Key>().map_err(|error| format!("the public key {text:?}: {error}"));
    match change {
        PeerChange::Remove { public_key } => Ok(PeerDelta { remove: true, ..PeerDelta::new(key(public_key)?) }),
        PeerChange::Set { public_key, endpoint, allowed_ips } => Ok(PeerDelta {
            endpoint: *endpoint,
            replace_allowed_ips: allowed_ips.is_some(),
            allowed_ips: allowed_ips.iter().flatten().copied().map(Change::Add).collect(),
            ..PeerDelta::new(key(public_key)?)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::tests::{fabric_object, node_object};
    use weft_store::Change as StoreChange;

    fn fabric() -> Fabric {
        let mut fabric = Fabric::default();
        for object in [fabric_object(), node_object("a", 7, 2), node_object("b", 8, 3)] {
            fabric.apply(&StoreChange::Put(object));
        }
        fabric
    }

    fn tunnel(wanted: &[Wanted], endpoint: Option<&str>) -> TunnelState {
        let peer = |peer: &Wanted| {
            let state = PeerState {
                endpoint: endpoint.map(|text| text.parse().unwrap()),
                allowed_ips: peer.allowed_ips.clone(),
                ..PeerState::default()
            };
            (peer.public_key.clone(), state)
        };
        TunnelState { public_key: None, peers: wanted.iter().map(peer).collect() }
    }

    const LOCAL: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 1))];

    #[test]
    fn a_new_peer_is_added_whole_and_then_left_alone() {
        let (wanted, mut given) = (wanted(&fabric(), &"a".parse().unwrap()), BTreeMap::new());
        assert_eq!(wanted.len(), 1);
        let added = changes(&wanted, &TunnelState::default(), &LOCAL, &mut given);
        let [PeerChange::Set { endpoint: Some(endpoint), allowed_ips: Some(ips), .. }] = &added[..] else {
            panic!("{added:?}")
        };
        assert_eq!(endpoint, &"198.18.0.9:51820".parse().unwrap());
        assert_eq!(ips.len(), 1);
        assert!(changes(&wanted, &tunnel(&wanted, Some("198.18.0.9:51820")), &LOCAL, &mut given).is_empty());
    }

    #[test]
    fn a_roamed_endpoint_is_never_overwritten() {
        let (mut peers, mut given) = (wanted(&fabric(), &"a".parse().unwrap()), BTreeMap::new());
        changes(&peers, &TunnelState::default(), &LOCAL, &mut given);
        let roamed = tunnel(&peers, Some("198.18.7.7:4000"));
        assert!(changes(&peers, &roamed, &LOCAL, &mut given).is_empty());
        peers[0].endpoints = vec!["198.18.0.10:51820".parse().unwrap()];
        assert!(changes(&peers, &roamed, &LOCAL, &mut given).is_empty(), "it has roamed, whatever it announces");
        // A peer that still sits where we put it follows its announcement.
        let stayed = tunnel(&peers, Some("198.18.0.9:51820"));
        let moved = changes(&peers, &stayed, &LOCAL, &mut given);
        assert!(matches!(&moved[..], [PeerChange::Set { endpoint: Some(_), allowed_ips: None, .. }]), "{moved:?}");
    }

    #[test]
    fn a_peer_that_is_gone_is_removed() {
        let (wanted, mut given) = (wanted(&fabric(), &"a".parse().unwrap()), BTreeMap::new());
        let seen = tunnel(&wanted, None);
        assert!(matches!(&changes(&[], &seen, &LOCAL, &mut given)[..], [PeerChange::Remove { .. }]));
    }

    #[test]
    fn an_endpoint_of_a_family_that_is_here_is_chosen() {
        let endpoints = ["[2001:db8::1]:1".parse().unwrap(), "198.18.0.9:1".parse().unwrap()];
        assert_eq!(choose(&endpoints, &LOCAL), Some(endpoints[1]));
        assert_eq!(choose(&endpoints, &[]), Some(endpoints[0]));
        assert_eq!(choose(&[], &LOCAL), None);
    }
}
