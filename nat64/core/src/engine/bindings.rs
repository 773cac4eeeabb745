//! What an IPv4 host may open (RFC 6146 3.5.1, 3.5.2.2): sessions of a binding that is there, by filtering or for ever.
use std::collections::HashMap;

use super::{Engine, Stop};
use crate::{
    Reason,
    config::Filtering,
    packet::{Protocol, Transport},
    rfc6146::{
        Endpoint4, Endpoint6, Remote,
        table::{Id, Session},
        tcp::{self, TcpState},
    },
};

impl Engine {
    /// Makes a session for a packet from IPv4 that belongs to none, if its binding and the filter admit it.
    pub(super) fn session_four(
        &mut self,
        now: u64,
        four: Endpoint4,
        remote: Remote,
        transport: &Transport,
    ) -> Result<(Id, Session), Stop> {
        let Some(six) = self.table.bound_to(four) else { return Err(Reason::NoMapping.into()) };
        if !self.admits(four, remote) {
            self.trace.note(6146, "3.5.1", || "the binding has no session that lets this host in".into());
            return Err(Reason::Filtered.into());
        }
        match transport {
            Transport::Tcp { flags, .. } if !tcp::opens(*flags) => return Err(Reason::NoTcpSession.into()),
            Transport::Echo { request: false, .. } | Transport::IcmpError { .. } => {
                return Err(Reason::Filtered.into());
            }
            _ => {}
        }
        let prefix = self.prefix_for(remote)?;
        self.trace.note(6146, "3.5.1", || "the filter admits this host: a session is made".into());
        Ok(self.add_session(now, six, four, remote, prefix, TcpState::V4Init)?)
    }

    /// Whether filtering lets an IPv4 host without session reach a bound port.
    fn admits(&self, four: Endpoint4, remote: Remote) -> bool {
        self.table.is_fixed(four)
            || match self.config.filtering {
                Filtering::EndpointIndependent => true,
                Filtering::AddressDependent => self.table.knows(four, remote.address),
                Filtering::AddressAndPortDependent => false,
            }
    }

    /// By which prefix the IPv6 side knows an IPv4 host that comes by itself: the one that permits it.
    fn prefix_for(&self, remote: Remote) -> Result<u8, Reason> {
        let mut refused = Reason::NotPermitted;
        for index in 0..self.served.len() {
            let prefix = u8::try_from(index).map_err(|_| Reason::NotPermitted)?;
            match self.permitted(prefix, remote.address.into()) {
                Ok(()) => return Ok(prefix),
                Err(reason) => refused = reason,
            }
        }
        Err(refused)
    }

    /// Whether a packet may be turned back to the IPv6 side (RFC 6146 3.8): only to a bound port.
    pub(super) fn may_turn_back(&self, protocol: Protocol, remote: Remote) -> bool {
        let four = Endpoint4 { protocol, address: remote.address, port: remote.port };
        self.config.hairpinning && matches!(protocol, Protocol::Tcp | Protocol::Udp) && self.table.is_bound(four)
    }

    /// The configuration's bindings, from either end.
    pub(super) fn static_bindings(&self) -> (HashMap<Endpoint6, Endpoint4>, HashMap<Endpoint4, Endpoint6>) {
        let ends = self.config.static_bindings.iter().map(|one| {
            let protocol = Protocol::from(one.protocol);
            let six = Endpoint6 { protocol, address: one.six.ip().to_bits(), port: one.six.port() };
            let four = Endpoint4 { protocol, address: one.four.ip().to_bits(), port: one.four.port() };
            (six, four)
        });
        let by_six: HashMap<_, _> = ends.collect();
        let by_four = by_six.iter().map(|(six, four)| (*four, *six)).collect();
        (by_six, by_four)
    }

    /// Puts the configuration's bindings into the tables, from which what contradicts them is gone.
    pub(super) fn fix_static_bindings(&mut self) {
        for (six, four) in self.static_bindings().0 {
            self.table.fix(six, four);
            self.ports.claim(four);
        }
    }
}
