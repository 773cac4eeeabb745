//! The translator as one state machine: a packet, a time and randomness go in, a verdict comes out.
mod bindings;
mod four_to_six;
mod hairpin;
mod icmp;
mod offload;
mod reply;
mod sessions;
mod siit;
mod siit_icmp;
mod six_to_four;

use std::{
    collections::HashSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::Ipv4Net;

use crate::{
    Config, ConfigError, Offload, PacketBuf, Reason,
    bytes::*,
    config::{Mode, Permit},
    hash::Seed,
    packet::Protocol,
    rfc6052::Prefix,
    rfc6146::{
        fragments::Fragments,
        ports::Ports,
        sources::{Source, Sources},
        table::{Class, Session, Table},
    },
    rfc7757::EamTable,
    rfc7915::mtu::Mtus,
    trace::{Step, Trace},
};

/// What becomes of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was translated in place: send it.
    Forward,
    /// It became several: send these, which have nothing left undone, instead.
    Split(Vec<Vec<u8>>),
    /// It was replaced by an answer to its sender: send that.
    Reply(Reason),
    /// It is to be forgotten.
    Drop(Reason),
}

/// Why a translation ended early.
enum Stop {
    Drop(Reason),
    /// With the answer, a whole packet.
    Reply(Reason, Vec<u8>),
    /// Several packets take its place.
    Split(Vec<Vec<u8>>),
}

impl From<Reason> for Stop {
    fn from(reason: Reason) -> Self {
        Self::Drop(reason)
    }
}

/// Where randomness comes from: called when a mapping is made.
pub(crate) type Random<'a> = &'a mut dyn FnMut() -> u64;

/// Figures since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    /// Packets translated from IPv6 (super-packets count once).
    pub packets_6to4: u64,
    /// Their bytes, as they came.
    pub bytes_6to4: u64,
    /// Packets translated from IPv4.
    pub packets_4to6: u64,
    /// Their bytes, as they came.
    pub bytes_4to6: u64,
    /// Sessions made.
    pub sessions_created: u64,
    /// Sessions that ended, by their timer or to make room.
    pub sessions_ended: u64,
    /// Closed sessions that ended early because ports or sessions ran out.
    pub sessions_reclaimed: u64,
    /// Dropped packets, in the order of [`Reason::ALL`].
    pub drops: Vec<u64>,
    /// Answered packets, likewise.
    pub replies: Vec<u64>,
}

/// One source's figures, for whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceCounters {
    /// The IPv6 source.
    pub address: Ipv6Addr,
    /// Its figures.
    pub counters: Source,
}

/// A prefix, ready to be asked.
struct Served {
    prefix: Prefix,
    permit: Permit,
}

/// What an IPv6 packet's fragments have in common, and what an IPv4 packet's have.
type Key6 = (u128, u128, u32, Protocol);
type Key4 = (u32, u32, u32, Protocol);

/// What later fragments from IPv6 get.
#[derive(Debug, Clone, Copy)]
struct Followers4 {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    id: u16,
    six: u128,
}

/// What later fragments from IPv4 get.
#[derive(Debug, Clone, Copy)]
struct Followers6 {
    source: Ipv6Addr,
    destination: Ipv6Addr,
}

/// The translator.
pub struct Engine {
    config: Config,
    served: Vec<Served>,
    denied_hosts: HashSet<u32, Seed>,
    denied_ranges: Vec<Ipv4Net>,
    eam: EamTable,
    mtus: Mtus,
    ports: Ports,
    table: Table,
    sources: Sources,
    fragments6: Fragments<Key6, Followers4>,
    fragments4: Fragments<Key4, Followers6>,
    counters: Counters,
    errors: reply::Bucket,
    next_id: u64,
    seed: Seed,
    trace: Trace,
}

impl Engine {
    /// A translator without sessions. `now` is any clock in milliseconds that never goes back; `seed` must be secret.
    pub fn new(config: Config, now: u64, seed: [u64; 2]) -> Result<Self, ConfigError> {
        let seed = Seed(seed);
        let none = vec![0; Reason::ALL.len()];
        let mut engine = Self {
            served: Vec::new(),
            denied_hosts: HashSet::with_hasher(seed),
            denied_ranges: Vec::new(),
            eam: EamTable::default(),
            mtus: Mtus { v6: config.mtu6, v4: config.mtu4 },
            ports: Ports::new(&config.pool),
            table: Table::new(seed),
            sources: Sources::new(seed),
            fragments6: Fragments::new(seed),
            fragments4: Fragments::new(seed),
            counters: Counters {
                packets_6to4: 0,
                bytes_6to4: 0,
                packets_4to6: 0,
                bytes_4to6: 0,
                sessions_created: 0,
                sessions_ended: 0,
                sessions_reclaimed: 0,
                drops: none.clone(),
                replies: none,
            },
            errors: reply::Bucket::new(now),
            next_id: seed.0[0],
            seed,
            trace: Trace::default(),
            config,
        };
        let config = engine.config.clone();
        engine.reconfigure(config)?;
        Ok(engine)
    }

    /// Takes another configuration; sessions that it still allows go on, the others end. On an error nothing changes.
    pub fn reconfigure(&mut self, config: Config) -> Result<(), ConfigError> {
        config.validate()?;
        let mut served = Vec::with_capacity(config.prefix.len());
        for one in &config.prefix {
            served.push(Served { prefix: Prefix::new(one.prefix)?, permit: one.permit.clone() });
        }
        self.eam = EamTable::new(&config.eam)?;
        self.denied_hosts.clear();
        let (hosts, ranges): (Vec<Ipv4Net>, Vec<Ipv4Net>) = config.deny.iter().partition(|net| net.prefix_len() == 32);
        self.denied_hosts.extend(hosts.into_iter().map(|net| net.addr().to_bits()));
        self.denied_ranges = ranges;
        self.mtus = Mtus { v6: config.mtu6, v4: config.mtu4 };
        self.ports = Ports::new(&config.pool);
        let old_prefixes = std::mem::replace(&mut self.served, served);
        self.config = config;
        self.keep_allowed_sessions(&old_prefixes);
        self.fix_static_bindings();
        Ok(())
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Translates a packet in place: with a vnet_hdr's offload, whole super-packets. Bytes of any content are allowed.
    pub fn translate(
        &mut self,
        now: u64,
        random: Random<'_>,
        packet: &mut PacketBuf<'_>,
        offload: &mut Offload,
    ) -> Verdict {
        let version = packet.bytes().first().map_or(0, |byte| byte >> 4);
        let from = array_at::<16>(packet.bytes(), 8).ok().filter(|_| version == 6).map(u128::from_be_bytes);
        let stop = match version {
            6 => self.handle_six(now, random, packet, offload),
            4 => self.handle_four(now, packet, offload, false),
            _ => Err(Stop::Drop(Reason::Malformed)),
        };
        let (counts, reason, verdict) = match stop {
            Ok(()) => return Verdict::Forward,
            Err(Stop::Split(packets)) => return Verdict::Split(packets),
            Err(Stop::Drop(reason)) => (&mut self.counters.drops, reason, Verdict::Drop(reason)),
            Err(Stop::Reply(reason, answer)) => {
                *offload = Offload::default();
                match packet.replace(&answer) {
                    Ok(()) => (&mut self.counters.replies, reason, Verdict::Reply(reason)),
                    Err(_) => (&mut self.counters.drops, reason, Verdict::Drop(reason)),
                }
            }
        };
        increment(counts, reason);
        if let Some(source) = from.and_then(|from| self.sources.get_mut(from)) {
            source.drops += 1;
        }
        verdict
    }

    /// Translates as [`Engine::translate`] does, and says which rules were applied.
    pub fn explain(
        &mut self,
        now: u64,
        random: Random<'_>,
        packet: &mut PacketBuf<'_>,
        offload: &mut Offload,
    ) -> (Verdict, Vec<Step>) {
        self.trace.begin();
        let verdict = self.translate(now, random, packet, offload);
        (verdict, self.trace.end())
    }

    /// A packet from IPv4, by the mode; `hairpin` if it came from IPv6 and turned back.
    fn handle_four(
        &mut self,
        now: u64,
        packet: &mut PacketBuf<'_>,
        offload: &mut Offload,
        hairpin: bool,
    ) -> Result<(), Stop> {
        match self.config.mode {
            Mode::Nat64 => self.four_to_six(now, packet, offload),
            Mode::Siit => self.siit_four(now, packet, offload, hairpin),
        }
    }

    /// Counts a packet that its reader had to drop.
    pub fn note_drop(&mut self, reason: Reason) {
        increment(&mut self.counters.drops, reason);
    }

    /// When [`Engine::handle_timeout`] has something to do next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let timers = &self.config.timers;
        let sessions = Class::ALL
            .into_iter()
            .filter_map(|class| self.table.oldest(class).map(|(_, session)| session.touched + class.lifetime(timers)));
        sessions.chain(self.fragments6.next_expiry()).chain(self.fragments4.next_expiry()).min()
    }

    /// Ends what is over.
    pub fn handle_timeout(&mut self, now: u64) {
        for class in Class::ALL {
            let lifetime = class.lifetime(&self.config.timers);
            while let Some((id, session)) = self.table.oldest(class)
                && session.touched + lifetime <= now
            {
                self.end_session(id);
            }
        }
        let sources = &mut self.sources;
        self.fragments6.expire(now, |followers| release_fragment(sources, followers.six));
        self.fragments4.expire(now, |followers| release_fragment(sources, followers.destination.to_bits()));
    }

    /// Figures since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Figures of each source that is remembered.
    pub fn sources(&self) -> impl Iterator<Item = SourceCounters> {
        self.sources.iter().map(|(address, counters)| SourceCounters { address: address.into(), counters: *counters })
    }

    /// All sessions.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.table.iter().map(|(_, session)| session)
    }

    /// How many sessions a class has now.
    #[must_use]
    pub fn session_count(&self, class: Class) -> u32 {
        self.table.count(class)
    }

    /// Ports of a protocol in use now, and how many there are.
    #[must_use]
    pub fn port_usage(&self, protocol: Protocol) -> (u64, u64) {
        self.ports.usage(protocol)
    }

    /// Fragmented packets that are followed now.
    #[must_use]
    pub fn fragments(&self) -> usize {
        self.fragments6.len() + self.fragments4.len()
    }
}

fn increment(counts: &mut [u64], reason: Reason) {
    if let Some(count) = counts.get_mut(reason as usize) {
        *count += 1;
    }
}

fn release_fragment(sources: &mut Sources, address: u128) {
    if let Some(source) = sources.get_mut(address) {
        source.fragments = source.fragments.saturating_sub(1);
    }
}
