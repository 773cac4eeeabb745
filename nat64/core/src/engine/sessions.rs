//! How sessions begin and end (RFC 6146 3.5): permission, limits, a binding, a port.
use std::{
    hash::BuildHasher,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{Engine, Random, Served};
use crate::{
    Reason,
    packet::Transport,
    rfc6146::{
        Endpoint4, Endpoint6, Remote, Side,
        table::{Class, Id, Session},
        tcp::{self, TcpState},
    },
};

/// How many closed sessions are ended at most to make room for one.
const RECLAIMED_AT_ONCE: usize = 16;

impl Engine {
    /// Whether packets of this IPv6 source are translated.
    pub(super) fn serves(&self, source: Ipv6Addr) -> bool {
        self.config.sources.iter().any(|net| net.contains(&source))
    }

    /// The prefix and IPv4 address that an IPv6 destination stands for.
    pub(super) fn destination(&self, address: Ipv6Addr) -> Option<(u8, Ipv4Addr)> {
        let mut served = self.served.iter().enumerate();
        served.find_map(|(index, served)| Some((u8::try_from(index).ok()?, served.prefix.extract(address)?)))
    }

    /// Whether a new session may lead to an IPv4 address.
    pub(super) fn permitted(&self, prefix: u8, address: Ipv4Addr) -> Result<(), Reason> {
        let own = !self.config.hairpinning && self.ports.has_address(address.to_bits());
        if own || self.denied(address) {
            return Err(Reason::Denied);
        }
        let served = self.served.get(usize::from(prefix)).ok_or(Reason::NotOurPrefix)?;
        if served.permit.permits(address) { Ok(()) } else { Err(Reason::NotPermitted) }
    }

    /// Whether an IPv4 address is on the deny list.
    pub(super) fn denied(&self, address: Ipv4Addr) -> bool {
        self.denied_hosts.contains(&address.to_bits())
            || self.denied_ranges.iter().any(|range| range.contains(&address))
    }

    /// Makes a session, and the binding if the IPv6 end has none.
    pub(super) fn open_session(
        &mut self,
        now: u64,
        random: Random<'_>,
        six: Endpoint6,
        remote: Remote,
        prefix: u8,
    ) -> Result<(Id, Session), Reason> {
        self.check_limits(six)?;
        let four = match self.table.binding(six) {
            Some(four) => four,
            None => self.bind(six, random()).ok_or(Reason::PortsExhausted)?,
        };
        Ok(self.insert_session(Session { six, four, remote, prefix, tcp: TcpState::V6Init, touched: now }))
    }

    /// Makes a session of a binding that is there.
    pub(super) fn add_session(
        &mut self,
        now: u64,
        six: Endpoint6,
        four: Endpoint4,
        remote: Remote,
        prefix: u8,
        tcp: TcpState,
    ) -> Result<(Id, Session), Reason> {
        self.check_limits(six)?;
        // Making room may have ended the binding.
        if self.table.bound_to(four) != Some(six) {
            return Err(Reason::NoMapping);
        }
        Ok(self.insert_session(Session { six, four, remote, prefix, tcp, touched: now }))
    }

    fn check_limits(&mut self, six: Endpoint6) -> Result<(), Reason> {
        let held = self.sources.get(six.address).map_or(0, |source| source.sessions);
        if held >= self.config.limits.sessions_per_source {
            return Err(Reason::SourceLimit);
        }
        if self.table.len() >= self.config.limits.sessions as usize && !self.reclaim() {
            return Err(Reason::SessionLimit);
        }
        Ok(())
    }

    fn insert_session(&mut self, session: Session) -> (Id, Session) {
        let id = self.table.insert(session);
        self.sources.open(session.six.address);
        self.counters.sessions_created += 1;
        (id, session)
    }

    fn bind(&mut self, six: Endpoint6, random: u64) -> Option<Endpoint4> {
        let preferred = self.seed.hash_one(six.address);
        for _ in 0..RECLAIMED_AT_ONCE {
            if let Some(four) = self.ports.take(six.protocol, preferred, six.port, random) {
                return Some(four);
            }
            if !self.reclaim() {
                break;
            }
        }
        self.ports.take(six.protocol, preferred, six.port, random)
    }

    /// Ends the TCP session that has been closed for the longest; whether there was one.
    fn reclaim(&mut self) -> bool {
        let Some((id, _)) = self.table.oldest(Class::TcpClosed) else { return false };
        self.end_session(id);
        self.counters.sessions_reclaimed += 1;
        true
    }

    /// Ends a session, and frees its port if it was the binding's last.
    pub(super) fn end_session(&mut self, id: Id) {
        let closed = self.table.class(id) == Some(Class::TcpClosed);
        let Some((session, free)) = self.table.remove(id) else { return };
        if let Some(four) = free {
            self.ports.release(four);
        }
        if !closed {
            self.sources.close(session.six.address);
        }
        self.counters.sessions_ended += 1;
    }

    /// Notes a packet of a session.
    pub(super) fn touch(&mut self, now: u64, id: Id, session: &Session, side: Side, transport: &Transport, prefix: u8) {
        let (state, alive) = match transport {
            Transport::Tcp { flags, .. } => tcp::step(session.tcp, side, *flags),
            _ => (session.tcp, true),
        };
        let before = self.table.class(id);
        self.table.update(id, state, prefix, alive.then_some(now));
        // A closed session only waits for its timer and gives way when room is needed: it is not held against its source,
        // or a workspace that opens many short connections would be refused for four minutes' worth of ended ones.
        match (before == Some(Class::TcpClosed), self.table.class(id) == Some(Class::TcpClosed)) {
            (false, true) => self.sources.close(session.six.address),
            (true, false) => self.sources.open(session.six.address),
            _ => {}
        }
    }

    /// Counts a translated packet.
    pub(super) fn count(&mut self, source: u128, side: Side, bytes: usize) {
        let bytes = bytes as u64;
        let of = self.sources.get_mut(source);
        match side {
            Side::V6 => {
                self.counters.packets_6to4 += 1;
                self.counters.bytes_6to4 += bytes;
                if let Some(of) = of {
                    of.packets_out += 1;
                    of.bytes_out += bytes;
                }
            }
            Side::V4 => {
                self.counters.packets_4to6 += 1;
                self.counters.bytes_4to6 += bytes;
                if let Some(of) = of {
                    of.packets_in += 1;
                    of.bytes_in += bytes;
                }
            }
        }
    }

    /// After a change of configuration: ends what it no longer allows, and takes the ports of the rest again.
    pub(super) fn keep_allowed_sessions(&mut self, old: &[Served]) {
        let (static_six, static_four) = self.static_bindings();
        self.table.unfix_all();
        let sessions: Vec<(Id, Session)> = self.table.iter().map(|(id, session)| (id, *session)).collect();
        for (id, session) in sessions {
            let prefix = old.get(usize::from(session.prefix)).map(|served| served.prefix);
            let prefix = self.served.iter().position(|served| Some(served.prefix) == prefix);
            let prefix = prefix.and_then(|index| u8::try_from(index).ok());
            let bound = match static_six.get(&session.six) {
                Some(four) => *four == session.four,
                None => self.ports.holds(session.four) && !static_four.contains_key(&session.four),
            };
            let allowed = self.serves(session.six.address.into()) && bound;
            match prefix.filter(|prefix| self.permitted(*prefix, session.remote.address.into()).is_ok()) {
                Some(prefix) if allowed => self.table.update(id, session.tcp, prefix, None),
                _ => self.end_session(id),
            }
        }
        let bound: Vec<Endpoint4> = self.table.iter().map(|(_, session)| session.four).collect();
        for four in bound {
            self.ports.claim(four);
        }
    }
}
