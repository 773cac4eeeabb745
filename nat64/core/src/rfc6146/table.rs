//! Bindings and sessions (RFC 6146 3.1), found from either side in one look-up, expired in order of their last packet.
use std::collections::HashMap;

use super::{Endpoint4, Endpoint6, Remote, tcp::TcpState};
use crate::{config::Timers, hash::Seed, packet::Protocol};

/// A place in a slab.
pub type Id = u32;
const NONE: Id = Id::MAX;

/// Which timer a session is under: sessions of one class expire in the order in which they were last used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// UDP.
    Udp,
    /// ICMP queries.
    Icmp,
    /// TCP between SYN and SYN.
    TcpOpening,
    /// Established TCP.
    TcpEstablished,
    /// TCP that is over: may be reclaimed when ports run out.
    TcpClosed,
}

impl Class {
    /// All, in the order of their numbers.
    pub const ALL: [Class; 5] = [Self::Udp, Self::Icmp, Self::TcpOpening, Self::TcpEstablished, Self::TcpClosed];

    /// Its name in metrics.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::TcpOpening => "tcp-opening",
            Self::TcpEstablished => "tcp-established",
            Self::TcpClosed => "tcp-closed",
        }
    }

    /// How long an idle session of it lasts, in milliseconds.
    #[must_use]
    pub fn lifetime(self, timers: &Timers) -> u64 {
        let seconds = match self {
            Self::Udp => timers.udp,
            Self::Icmp => timers.icmp,
            Self::TcpEstablished => timers.tcp_established,
            Self::TcpOpening | Self::TcpClosed => timers.tcp_transitory,
        };
        u64::from(seconds) * 1000
    }

    fn of(protocol: Protocol, tcp: TcpState) -> Self {
        match (protocol, tcp) {
            (Protocol::Udp | Protocol::Other(_), _) => Self::Udp,
            (Protocol::Icmp, _) => Self::Icmp,
            (Protocol::Tcp, TcpState::V6Init | TcpState::V4Init) => Self::TcpOpening,
            (Protocol::Tcp, TcpState::Established | TcpState::V4FinRcv | TcpState::V6FinRcv) => Self::TcpEstablished,
            (Protocol::Tcp, TcpState::V4FinV6FinRcv | TcpState::Trans) => Self::TcpClosed,
        }
    }
}

/// One conversation. Plain values, so that it can be handed to another process or cached elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The IPv6 host's end.
    pub six: Endpoint6,
    /// Its end in the pool.
    pub four: Endpoint4,
    /// The IPv4 host.
    pub remote: Remote,
    /// By which of the configured prefixes the IPv6 host knows the IPv4 host.
    pub prefix: u8,
    /// TCP's state; without meaning for others.
    pub tcp: TcpState,
    /// When the last packet came that counts as life.
    pub touched: u64,
}

impl Session {
    /// Its class.
    #[must_use]
    pub fn class(&self) -> Class {
        Class::of(self.six.protocol, self.tcp)
    }
}

#[derive(Debug)]
struct Node {
    session: Session,
    class: Class,
    previous: Id,
    next: Id,
}

#[derive(Debug, Clone, Copy)]
struct List {
    head: Id,
    tail: Id,
    len: u32,
}

#[derive(Debug, Clone, Copy)]
struct Binding {
    four: Endpoint4,
    sessions: u32,
    /// From the configuration: it stays without sessions.
    fixed: bool,
}

/// The tables.
#[derive(Debug)]
pub struct Table {
    nodes: Vec<Option<Node>>,
    free: Vec<Id>,
    by_six: HashMap<(Endpoint6, Remote), Id, Seed>,
    by_four: HashMap<(Endpoint4, Remote), Id, Seed>,
    bindings: HashMap<Endpoint6, Binding, Seed>,
    bound: HashMap<Endpoint4, Endpoint6, Seed>,
    /// How many sessions a pool's end has with an IPv4 address: whom address-dependent filtering admits.
    peers: HashMap<(Endpoint4, u32), u32, Seed>,
    lists: [List; Class::ALL.len()],
}

impl Table {
    pub(crate) fn new(seed: Seed) -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            by_six: HashMap::with_hasher(seed),
            by_four: HashMap::with_hasher(seed),
            bindings: HashMap::with_hasher(seed),
            bound: HashMap::with_hasher(seed),
            peers: HashMap::with_hasher(seed),
            lists: [List { head: NONE, tail: NONE, len: 0 }; Class::ALL.len()],
        }
    }

    /// How many sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_six.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_six.is_empty()
    }

    /// How many sessions a class has.
    #[must_use]
    pub fn count(&self, class: Class) -> u32 {
        self.list(class).map_or(0, |list| list.len)
    }

    /// How many bindings there are.
    #[must_use]
    pub fn bindings(&self) -> usize {
        self.bindings.len()
    }

    /// The session of an IPv6 host's packet.
    #[must_use]
    pub fn find_six(&self, six: Endpoint6, remote: Remote) -> Option<(Id, Session)> {
        let id = *self.by_six.get(&(six, remote))?;
        self.get(id).map(|session| (id, session))
    }

    /// The session of an IPv4 host's packet.
    #[must_use]
    pub fn find_four(&self, four: Endpoint4, remote: Remote) -> Option<(Id, Session)> {
        let id = *self.by_four.get(&(four, remote))?;
        self.get(id).map(|session| (id, session))
    }

    /// The pool's end that an IPv6 end is bound to.
    #[must_use]
    pub fn binding(&self, six: Endpoint6) -> Option<Endpoint4> {
        self.bindings.get(&six).map(|binding| binding.four)
    }

    /// Whether anyone is bound to this end.
    #[must_use]
    pub fn is_bound(&self, four: Endpoint4) -> bool {
        self.bound.contains_key(&four)
    }

    /// The IPv6 end that is bound to a pool's end.
    #[must_use]
    pub fn bound_to(&self, four: Endpoint4) -> Option<Endpoint6> {
        self.bound.get(&four).copied()
    }

    /// Whether a pool's end has a session with this address, on any port (address-dependent filtering).
    #[must_use]
    pub fn knows(&self, four: Endpoint4, address: u32) -> bool {
        self.peers.contains_key(&(four, address))
    }

    /// Whether a pool's end is bound by the configuration.
    #[must_use]
    pub fn is_fixed(&self, four: Endpoint4) -> bool {
        let binding = self.bound.get(&four).and_then(|six| self.bindings.get(six));
        binding.is_some_and(|binding| binding.fixed)
    }

    /// Binds two ends for ever (a static BIB entry, RFC 6146 3.1). Neither may be bound to another by a session.
    pub fn fix(&mut self, six: Endpoint6, four: Endpoint4) {
        self.bindings.entry(six).or_insert(Binding { four, sessions: 0, fixed: true }).fixed = true;
        self.bound.insert(four, six);
    }

    /// Makes bindings of the configuration like others: those without sessions end.
    pub fn unfix_all(&mut self) {
        let bound = &mut self.bound;
        self.bindings.retain(|_, binding| {
            let stays = binding.sessions > 0;
            if !stays {
                bound.remove(&binding.four);
            }
            binding.fixed = false;
            stays
        });
    }

    /// The session at an id.
    #[must_use]
    pub fn get(&self, id: Id) -> Option<Session> {
        self.node(id).map(|node| node.session)
    }

    /// The class under whose timer a session is.
    #[must_use]
    pub fn class(&self, id: Id) -> Option<Class> {
        self.node(id).map(|node| node.class)
    }

    /// All sessions.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &Session)> {
        self.nodes.iter().enumerate().filter_map(|(id, node)| node.as_ref().map(|node| (id as Id, &node.session)))
    }

    /// Adds a session and, if it is the first of its IPv6 end, the binding.
    pub fn insert(&mut self, session: Session) -> Id {
        let class = session.class();
        let node = Node { session, class, previous: NONE, next: NONE };
        let id = match self.free.pop() {
            Some(id) => {
                if let Some(place) = self.nodes.get_mut(id as usize) {
                    *place = Some(node);
                }
                id
            }
            None => {
                self.nodes.push(Some(node));
                (self.nodes.len() - 1) as Id
            }
        };
        self.link_last(id, class);
        self.by_six.insert((session.six, session.remote), id);
        self.by_four.insert((session.four, session.remote), id);
        self.bindings
            .entry(session.six)
            .or_insert(Binding { four: session.four, sessions: 0, fixed: false })
            .sessions += 1;
        *self.peers.entry((session.four, session.remote.address)).or_default() += 1;
        self.bound.insert(session.four, session.six);
        id
    }

    /// Sets a session's TCP state and prefix and, if the packet counts as life, its time.
    pub fn update(&mut self, id: Id, tcp: TcpState, prefix: u8, now: Option<u64>) {
        let Some(node) = self.node_mut(id) else { return };
        node.session.tcp = tcp;
        node.session.prefix = prefix;
        let class = node.session.class();
        let Some(now) = now else { return };
        node.session.touched = now;
        let old = node.class;
        let last = node.next == NONE;
        if old == class && last {
            return;
        }
        self.unlink(id, old);
        if let Some(node) = self.node_mut(id) {
            node.class = class;
        }
        self.link_last(id, class);
    }

    /// Removes a session; with the last of its binding, the pool's end that is free again.
    pub fn remove(&mut self, id: Id) -> Option<(Session, Option<Endpoint4>)> {
        let class = self.node(id)?.class;
        self.unlink(id, class);
        let session = self.nodes.get_mut(id as usize)?.take()?.session;
        self.free.push(id);
        self.by_six.remove(&(session.six, session.remote));
        self.by_four.remove(&(session.four, session.remote));
        let peer = (session.four, session.remote.address);
        if let Some(count) = self.peers.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&peer);
            }
        }
        let binding = self.bindings.get_mut(&session.six)?;
        binding.sessions -= 1;
        if binding.sessions > 0 || binding.fixed {
            return Some((session, None));
        }
        self.bindings.remove(&session.six);
        self.bound.remove(&session.four);
        Some((session, Some(session.four)))
    }

    /// The session of a class whose last packet is the longest ago.
    #[must_use]
    pub fn oldest(&self, class: Class) -> Option<(Id, Session)> {
        let id = self.list(class)?.head;
        self.get(id).map(|session| (id, session))
    }

    fn list(&self, class: Class) -> Option<&List> {
        self.lists.get(class as usize)
    }

    fn node(&self, id: Id) -> Option<&Node> {
        self.nodes.get(id as usize)?.as_ref()
    }

    fn node_mut(&mut self, id: Id) -> Option<&mut Node> {
        self.nodes.get_mut(id as usize)?.as_mut()
    }

    fn link_last(&mut self, id: Id, class: Class) {
        let Some(list) = self.lists.get_mut(class as usize) else { return };
        let tail = std::mem::replace(&mut list.tail, id);
        list.len += 1;
        if tail == NONE {
            list.head = id;
        }
        if let Some(last) = self.node_mut(tail) {
            last.next = id;
        }
        if let Some(node) = self.node_mut(id) {
            (node.previous, node.next) = (tail, NONE);
        }
    }

    fn unlink(&mut self, id: Id, class: Class) {
        let Some((previous, next)) = self.node(id).map(|node| (node.previous, node.next)) else { return };
        if let Some(node) = self.node_mut(previous) {
            node.next = next;
        }
        if let Some(node) = self.node_mut(next) {
            node.previous = previous;
        }
        let Some(list) = self.lists.get_mut(class as usize) else { return };
        list.len -= 1;
        if previous == NONE {
            list.head = next;
        }
        if next == NONE {
            list.tail = previous;
        }
    }
}
