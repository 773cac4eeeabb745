//! The peers: by public key, by receiver index, by configured endpoint, by allowed IPs. Changed by deltas. Pure but for
//! the sessions inside.
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use crate::{
    allowed_ips::AllowedIps,
    counters::Drop,
    key::Key,
    peer::{Identity, Peer},
    uapi::{Change, PeerDelta},
};

/// Receiver indices have 24 bits for the peer and 8 for its sessions.
const INDEX_BITS: u32 = 24;
/// The most peers: well below the number of indices, so that drawing one ends soon.
pub(crate) const MAX_PEERS: usize = 1 << 20;

/// Why a delta is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_PEERS} peers: remove some first")]
pub(crate) struct TooManyPeers;

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) identity: Option<Arc<Identity>>,
    by_key: BTreeMap<Key, Arc<Peer>>,
    by_index: HashMap<u32, Arc<Peer>>,
    by_endpoint: HashMap<SocketAddr, Arc<Peer>>,
    allowed: AllowedIps<Arc<Peer>>,
}

impl Table {
    pub(crate) fn by_key(&self, key: &Key) -> Option<&Arc<Peer>> {
        self.by_key.get(key)
    }

    /// The peer that a receiver index was drawn for.
    pub(crate) fn by_receiver(&self, receiver: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&(receiver >> 8))
    }

    /// The peer whose index this is.
    pub(crate) fn by_index(&self, index: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&index)
    }

    /// The peer that is configured to be there.
    pub(crate) fn by_endpoint(&self, endpoint: &SocketAddr) -> Option<&Arc<Peer>> {
        self.by_endpoint.get(endpoint)
    }

    /// The peer of an inner address.
    pub(crate) fn route(&self, address: std::net::IpAddr) -> Option<&Arc<Peer>> {
        self.allowed.lookup(address)
    }

    /// Whether a peer may send from an inner address.
    pub(crate) fn admits(&self, peer: &Peer, source: std::net::IpAddr) -> Result<(), Drop> {
        match self.allowed.lookup(source) {
            Some(owner) if owner.index == peer.index => Ok(()),
            _ => Err(Drop::ForgedSource),
        }
    }

    /// The peers, by key.
    pub(crate) fn peers(&self) -> impl ExactSizeIterator<Item = &Arc<Peer>> {
        self.by_key.values()
    }

    /// Another private key ends every session.
    pub(crate) fn set_identity(&mut self, identity: Identity) {
        // A node is no peer of itself; WireGuard drops such a peer when the key is set.
        self.remove(&identity.public);
        self.identity = Some(Arc::new(identity));
        for peer in self.by_key.values() {
            peer.session().forget();
        }
    }

    /// Applies a peer's delta; returns the peer if it is there afterwards. `draw` gives random numbers.
    pub(crate) fn apply(
        &mut self,
        delta: &PeerDelta,
        draw: &mut impl FnMut() -> u32,
    ) -> Result<Option<Arc<Peer>>, TooManyPeers> {
        if delta.remove {
            self.remove(&delta.public_key);
            return Ok(None);
        }
        let own = self.identity.as_ref().is_some_and(|identity| identity.public == delta.public_key);
        let peer = match self.by_key.get(&delta.public_key) {
            Some(peer) => Arc::clone(peer),
            None if delta.update_only || own => return Ok(None),
            None => self.add(delta.public_key, draw)?,
        };
        if let Some(key) = &delta.preshared_key {
            peer.session().set_preshared((!key.is_zero()).then(|| key.clone()));
        }
        if let Some(seconds) = delta.persistent_keepalive {
            peer.session().keepalive = seconds;
        }
        if let Some(endpoint) = delta.endpoint {
            self.configure_endpoint(&peer, endpoint);
        }
        if delta.replace_allowed_ips {
            let all = std::mem::take(&mut peer.session().allowed);
            all.into_iter().for_each(|net| drop(self.allowed.remove(net)));
        }
        for change in &delta.allowed_ips {
            self.change_allowed(&peer, *change);
        }
        Ok(Some(peer))
    }

    /// Removes all peers.
    pub(crate) fn clear(&mut self) {
        let identity = self.identity.take();
        *self = Self { identity, ..Self::default() };
    }

    fn add(&mut self, key: Key, draw: &mut impl FnMut() -> u32) -> Result<Arc<Peer>, TooManyPeers> {
        if self.by_key.len() >= MAX_PEERS {
            return Err(TooManyPeers);
        }
        let index = loop {
            let index = draw() >> (32 - INDEX_BITS);
            if !self.by_index.contains_key(&index) {
                break index;
            }
        };
        let peer = Arc::new(Peer::new(key, index));
        self.by_key.insert(key, Arc::clone(&peer));
        self.by_index.insert(index, Arc::clone(&peer));
        Ok(peer)
    }

    fn remove(&mut self, key: &Key) {
        let Some(peer) = self.by_key.remove(key) else { return };
        self.by_index.remove(&peer.index);
        let mut session = peer.session();
        session.forget();
        session.keepalive = 0;
        for net in &session.allowed {
            self.allowed.remove(*net);
        }
        if let Some(endpoint) = session.configured()
            && self.by_endpoint.get(&endpoint).is_some_and(|other| other.index == peer.index)
        {
            self.by_endpoint.remove(&endpoint);
        }
    }

    fn configure_endpoint(&mut self, peer: &Arc<Peer>, endpoint: SocketAddr) {
        let before = peer.session().configured();
        if let Some(before) = before.filter(|before| *before != endpoint)
            && self.by_endpoint.get(&before).is_some_and(|other| other.index == peer.index)
        {
            self.by_endpoint.remove(&before);
        }
        self.by_endpoint.insert(endpoint, Arc::clone(peer));
        peer.session().configure_endpoint(endpoint);
    }

    fn change_allowed(&mut self, peer: &Arc<Peer>, change: Change) {
        match change {
            Change::Add(net) => {
                // A prefix has one owner: giving it to this peer takes it from another, as in every WireGuard.
                let before = self.allowed.insert(net, Arc::clone(peer));
                if let Some(before) = before.filter(|before| before.index != peer.index) {
                    before.session().allowed.remove(&net);
                }
                peer.session().allowed.insert(net);
            }
            Change::Remove(net) => {
                if peer.session().allowed.remove(&net) {
                    self.allowed.remove(net);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn key(byte: u8) -> Key {
        Key::from_bytes([byte; 32])
    }

    fn drawing() -> impl FnMut() -> u32 {
        let mut next = 0u32;
        move || {
            // Each number twice, to meet a taken one.
            next += 1;
            (next / 2) << 8
        }
    }

    fn delta(byte: u8, allowed: &[&str]) -> PeerDelta {
        let allowed_ips = allowed.iter().map(|net| Change::Add(net.parse().unwrap())).collect();
        PeerDelta { allowed_ips, ..PeerDelta::new(key(byte)) }
    }

    fn owner(table: &Table, address: &str) -> Option<Key> {
        table.route(address.parse::<IpAddr>().unwrap()).map(|peer| peer.key)
    }

    #[test]
    fn a_prefix_moves_and_its_old_owner_no_longer_lists_or_sends_from_it() {
        let (mut table, mut draw) = (Table::default(), drawing());
        let a = table.apply(&delta(1, &["fd00:1::/64"]), &mut draw).unwrap().unwrap();
        let b = table.apply(&delta(2, &["fd00:2::/64", "fd00:1::7/128"]), &mut draw).unwrap().unwrap();
        assert_ne!(a.index, b.index);
        assert_eq!(owner(&table, "fd00:1::7"), Some(key(2)));
        assert_eq!(owner(&table, "fd00:1::8"), Some(key(1)));
        assert_eq!(table.admits(&a, "fd00:1::7".parse().unwrap()), Err(Drop::ForgedSource));
        assert_eq!(table.admits(&b, "fd00:1::7".parse().unwrap()), Ok(()));
        table.apply(&delta(1, &["fd00:1::7/128"]), &mut draw).unwrap();
        assert_eq!(owner(&table, "fd00:1::7"), Some(key(1)));
        assert_eq!(b.session().allowed.len(), 1);
        // What a peer does not have it cannot remove from another.
        let net = Change::Remove("fd00:1::7/128".parse().unwrap());
        table.apply(&PeerDelta { allowed_ips: vec![net], ..PeerDelta::new(key(2)) }, &mut draw).unwrap();
        assert_eq!(owner(&table, "fd00:1::7"), Some(key(1)));
    }

    #[test]
    fn replacing_and_removing_leave_nothing_behind() {
        let (mut table, mut draw) = (Table::default(), drawing());
        let endpoint = "198.18.0.1:51820".parse().unwrap();
        let first = PeerDelta { endpoint: Some(endpoint), ..delta(1, &["fd00:1::/64", "fd00:9::/64"]) };
        table.apply(&first, &mut draw).unwrap();
        table.apply(&PeerDelta { replace_allowed_ips: true, ..delta(1, &["fd00:2::/64"]) }, &mut draw).unwrap();
        assert_eq!((owner(&table, "fd00:1::1"), owner(&table, "fd00:2::1")), (None, Some(key(1))));
        assert!(table.by_endpoint(&endpoint).is_some());
        table.apply(&PeerDelta { remove: true, ..PeerDelta::new(key(1)) }, &mut draw).unwrap();
        assert_eq!(owner(&table, "fd00:2::1"), None);
        assert!(table.by_endpoint(&endpoint).is_none() && table.by_index.is_empty() && table.peers().len() == 0);
        table.apply(&PeerDelta { update_only: true, ..delta(3, &["fd00:3::/64"]) }, &mut draw).unwrap();
        assert_eq!(table.peers().len(), 0, "update_only makes no peer");
    }

    #[test]
    fn a_roamed_endpoint_survives_the_same_configuration_and_yields_to_another() {
        let (mut table, mut draw) = (Table::default(), drawing());
        let (home, moved) = ("198.18.0.1:1".parse().unwrap(), "198.18.0.2:2".parse().unwrap());
        let at = |endpoint| PeerDelta { endpoint: Some(endpoint), ..PeerDelta::new(key(1)) };
        let peer = table.apply(&at(home), &mut draw).unwrap().unwrap();
        assert_eq!(peer.session().endpoint(), Some(home));
        roam(&peer, moved);
        table.apply(&at(home), &mut draw).unwrap();
        assert_eq!(peer.session().endpoint(), Some(moved));
        let other = "198.18.0.3:3".parse().unwrap();
        table.apply(&at(other), &mut draw).unwrap();
        assert_eq!(peer.session().endpoint(), Some(other));
        assert!(table.by_endpoint(&home).is_none() && table.by_endpoint(&other).is_some());
    }

    fn roam(peer: &Peer, to: SocketAddr) {
        peer.session().learn_for_test(to);
    }
}
