//! Two tables of peers over a channel that loses, doubles and reorders: sessions come about, carry, roam and start again.
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use crate::{
    counters::Drop,
    engine::Engine,
    key::{Key, Secret, keypair},
    packet::tests::Made,
    peer::{HANDSHAKE_ROOM, Identity, Opened, Peer, Sealed},
    uapi::{Change, Delta, PeerDelta},
};

struct Side {
    engine: Engine,
    at: SocketAddr,
    other: Key,
    received: Vec<Vec<u8>>,
    drops: Vec<Drop>,
}

impl Side {
    fn new(secret: &Secret, other: Key, at: &str, other_at: Option<&str>) -> Self {
        let engine = Engine::new(1000);
        let peer = PeerDelta {
            endpoint: other_at.map(|at| at.parse().unwrap()),
            allowed_ips: vec![Change::Add("fd00::/16".parse().unwrap())],
            ..PeerDelta::new(other)
        };
        let delta = Delta { private_key: Some(secret.clone()), peers: vec![peer], ..Delta::default() };
        engine.apply(&delta).unwrap();
        Self { engine, at: at.parse().unwrap(), other, received: Vec::new(), drops: Vec::new() }
    }

    fn parts(&self) -> (Arc<Peer>, Arc<Identity>) {
        let table = self.engine.table();
        (Arc::clone(table.by_key(&self.other).unwrap()), table.identity.clone().unwrap())
    }

    fn send(&self, packet: &[u8]) -> Option<(Vec<u8>, SocketAddr)> {
        let (peer, identity) = self.parts();
        let mut session = peer.session();
        let mut out = vec![0; packet.len() + HANDSHAKE_ROOM];
        match session.seal(&peer, &identity, Instant::now(), packet, &mut out) {
            Sealed::Data(len) | Sealed::Handshake(len) => Some((out[..len].to_vec(), session.endpoint()?)),
            _ => None,
        }
    }

    /// Takes a datagram; returns what is sent because of it.
    fn take(&mut self, datagram: &[u8], from: SocketAddr) -> Vec<(Vec<u8>, SocketAddr)> {
        let (peer, identity) = self.parts();
        let (now, mut sent) = (Instant::now(), Vec::new());
        let mut send = |message: &[u8], to: SocketAddr| sent.push((message.to_vec(), to));
        let mut session = peer.session();
        if datagram[0] == 4 {
            let mut out = vec![0; datagram.len()];
            match session.open(&peer, now, from, datagram, &mut out) {
                Opened::Packet(len, _) => self.received.push(out[..len].to_vec()),
                Opened::Keepalive => {}
                Opened::Refused(reason) => self.drops.push(reason),
            }
            if session.take_confirmed() {
                session.flush(&peer, &mut send);
            }
        } else if let Err(reason) = session.handshake(&peer, &identity, now, (datagram, from), &mut send) {
            self.drops.push(reason);
        }
        sent
    }
}

fn pair() -> (Side, Side, Secret) {
    let ((a, a_public), (b, b_public)) = (keypair().unwrap(), keypair().unwrap());
    let left = Side::new(&a, b_public, "198.18.0.1:1", Some("198.18.0.2:2"));
    (left, Side::new(&b, a_public, "198.18.0.2:2", None), b)
}

/// Delivers until nothing is under way, in order.
fn settle(left: &mut Side, right: &mut Side, first: Vec<(Vec<u8>, SocketAddr)>) {
    let mut under_way: VecDeque<(Vec<u8>, SocketAddr, SocketAddr)> =
        first.into_iter().map(|(datagram, to)| (datagram, left.at, to)).collect();
    while let Some((datagram, from, to)) = under_way.pop_front() {
        let side = if to == right.at { &mut *right } else { &mut *left };
        let at = side.at;
        under_way.extend(side.take(&datagram, from).into_iter().map(|(answer, to)| (answer, at, to)));
    }
}

fn packet(number: u8) -> Vec<u8> {
    Made { v6: true, tcp: false, port: number.into(), seq: 0, flags: 0 }.packet(&[number; 100])
}

#[test]
fn the_first_packet_makes_a_session_and_is_not_lost() {
    let (mut left, mut right, _) = pair();
    let first = left.send(&packet(1)).into_iter().collect();
    assert_eq!(left.send(&packet(2)), None, "waits for the handshake under way");
    settle(&mut left, &mut right, first);
    assert_eq!(right.received, [packet(1), packet(2)]);
    // The other side learned where to answer to.
    let answer = right.send(&packet(3)).unwrap();
    assert_eq!(answer.1, left.at);
    settle(&mut left, &mut right, vec![answer]);
    assert_eq!(left.received, [packet(3)]);
    assert!(left.drops.is_empty() && right.drops.is_empty());
}

#[test]
fn a_replayed_datagram_is_refused_and_moves_no_endpoint() {
    let (mut left, mut right, _) = pair();
    let first: Vec<_> = left.send(&packet(1)).into_iter().collect();
    let initiation = first[0].0.clone();
    settle(&mut left, &mut right, first);
    let data = left.send(&packet(2)).unwrap();
    right.take(&data.0, left.at);
    let attacker = "198.18.0.66:6".parse().unwrap();
    right.take(&data.0, attacker);
    right.take(&initiation, attacker);
    assert_eq!(right.drops, [Drop::Replayed, Drop::HandshakeRefused]);
    assert_eq!(right.parts().0.session().endpoint(), Some(left.at));
    // Nor where the session is new, so that the initiation is taken.
    right.parts().0.session().forget();
    right.drops.clear();
    let answers = right.take(&initiation, attacker);
    assert_eq!((answers[0].1, right.drops.len()), (attacker, 0));
    assert_eq!(right.parts().0.session().endpoint(), Some(left.at));
}

#[test]
fn an_authentic_packet_from_elsewhere_moves_the_endpoint() {
    let (mut left, mut right, _) = pair();
    let first = left.send(&packet(1)).into_iter().collect();
    settle(&mut left, &mut right, first);
    left.at = "198.18.0.9:9".parse().unwrap();
    let data = left.send(&packet(2)).unwrap();
    settle(&mut left, &mut right, vec![data]);
    assert_eq!(right.send(&packet(3)).unwrap().1, left.at);
    // A changed byte is not authentic.
    let mut forged = left.send(&packet(4)).unwrap().0;
    *forged.last_mut().unwrap() ^= 1;
    right.take(&forged, "198.18.0.66:6".parse().unwrap());
    assert_eq!(right.drops, [Drop::BadTag]);
    assert_eq!(right.send(&packet(5)).unwrap().1, left.at);
}

#[test]
fn a_counter_near_its_end_is_refused_and_does_not_overflow() {
    let (mut left, mut right, _) = pair();
    let first = left.send(&packet(1)).into_iter().collect();
    settle(&mut left, &mut right, first);
    let mut data = left.send(&packet(2)).unwrap().0;
    data[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    right.take(&data, left.at);
    assert_eq!(right.drops, [Drop::Replayed]);
}

#[test]
fn a_side_that_lost_everything_gets_a_new_session() {
    let (mut left, mut right, right_secret) = pair();
    let first = left.send(&packet(1)).into_iter().collect();
    settle(&mut left, &mut right, first);
    let left_key = right.other;
    let mut right = Side::new(&right_secret, left_key, "198.18.0.2:2", Some("198.18.0.1:1"));
    let lost = left.send(&packet(2)).unwrap();
    right.take(&lost.0, left.at);
    assert_eq!(right.drops, [Drop::NoSession]);
    // What the receiving thread does about it.
    let (peer, identity) = right.parts();
    let mut sent = Vec::new();
    let mut send = |message: &[u8], to: SocketAddr| sent.push((message.to_vec(), to));
    peer.session().begin(&peer, &identity, Instant::now(), &mut send);
    peer.session().begin(&peer, &identity, Instant::now(), &mut send);
    assert_eq!(sent.len(), 1, "one handshake at a time");
    settle(&mut right, &mut left, sent);
    let data = left.send(&packet(3)).unwrap();
    settle(&mut left, &mut right, vec![data]);
    assert_eq!(right.received, [packet(3)]);
}

#[test]
fn a_dead_peer_holds_few_packets_and_gives_them_back() {
    let (left, _, _) = pair();
    let (peer, identity) = left.parts();
    let mut out = [0; 300];
    let mut seal = || peer.session().seal(&peer, &identity, Instant::now(), &packet(1), &mut out);
    assert!(matches!(seal(), Sealed::Handshake(_)));
    let queued = (0..100).filter(|_| seal() == Sealed::Queued).count();
    assert_eq!(queued, 63);
    assert_eq!(seal(), Sealed::QueueFull(0));
    assert_eq!(identity.waiting(), 64);
    peer.session().forget();
    assert_eq!(identity.waiting(), 0);
}

#[test]
fn timers_of_a_peer_without_a_session_cost_nothing_and_a_keepalive_begins_one() {
    let (left, _, _) = pair();
    let (peer, identity) = left.parts();
    let mut sent = Vec::new();
    let mut send = |message: &[u8], to: SocketAddr| sent.push((message[0], to));
    assert_eq!(peer.session().tick(&peer, &identity, Instant::now(), &mut send), None);
    peer.session().keepalive = 25;
    assert!(
        peer.session()
            .tick(&peer, &identity, Instant::now(), &mut send)
            .is_some_and(|next| next <= Duration::from_secs(1))
    );
    assert_eq!(sent, [(1, "198.18.0.2:2".parse().unwrap())]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Once there is a session, every datagram arrives at most once and unchanged, whatever the channel does.
    #[test]
    fn a_bad_channel_delivers_at_most_once(fates in proptest::collection::vec((0u8..200, 0u8..4, any::<u16>()), 1..200)) {
        let (mut left, mut right, _) = pair();
        let first = left.send(&packet(0)).into_iter().collect();
        settle(&mut left, &mut right, first);
        right.received.clear();
        let mut under_way: Vec<Vec<u8>> = Vec::new();
        let mut sent = Vec::new();
        for (number, fate, place) in fates {
            sent.push(packet(number));
            let datagram = left.send(&packet(number)).unwrap().0;
            match fate {
                0 => {}                                                        // lost
                1 => under_way.extend([datagram.clone(), datagram]),           // doubled
                2 => under_way.insert(usize::from(place) % (under_way.len() + 1), datagram), // reordered
                _ => under_way.push(datagram),
            }
        }
        let from = left.at;
        for datagram in &under_way {
            right.take(datagram, from);
        }
        for received in &right.received {
            let at = sent.iter().position(|packet| packet == received);
            prop_assert!(at.is_some(), "received what was not sent, or twice");
            sent.remove(at.unwrap_or_default());
        }
    }

    /// No datagram from anywhere panics or is taken for authentic.
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 1..200), kind in 1u8..5, cut in 0usize..200, at in 0usize..148, value: u8) {
        let (left, mut right, _) = pair();
        let attacker = "198.18.0.66:6".parse().unwrap();
        right.take(&bytes, attacker);
        let mut initiation = left.send(&packet(1)).unwrap().0;
        let changed = initiation[at] != value;
        initiation[at] = value;
        initiation.truncate(cut.max(1));
        let whole = initiation.len() == 148;
        right.take(&initiation, attacker);
        let mut typed = bytes;
        typed[0] = kind;
        typed.resize(typed.len().max(4), 0);
        typed[1..4].fill(0);
        right.take(&typed, attacker);
        prop_assert!(right.received.is_empty());
        prop_assert_eq!(right.parts().0.session().endpoint(), None);
        prop_assert!(!(whole && changed) || right.drops.len() >= 2);
    }
}
