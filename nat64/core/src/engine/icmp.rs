//! ICMP errors about packets of a session (RFC 6146 3.4 and 3.6, RFC 5508): both packets are translated.
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Engine, Stop};
use crate::{
    Offload, PacketBuf, Reason,
    bytes::*,
    checksum,
    packet::{Ipv4, Ipv6, Protocol, Transport, number},
    rfc6146::{Endpoint4, Endpoint6, Remote, Side},
    rfc7915::{Port, Rewrite, icmp_4to6, icmp_6to4},
};

impl Engine {
    /// An ICMPv6 error: about a packet that came from `remote` and was translated to IPv6. Any router may have sent it,
    /// so the session decides, not the source.
    pub(super) fn icmp_error_six(
        &mut self,
        packet: &mut PacketBuf<'_>,
        ip: &Ipv6,
        offload: &mut Offload,
    ) -> Result<(), Stop> {
        let error = packet.bytes().get(ip.transport..ip.end).ok_or(Reason::Truncated)?;
        let pseudo = checksum::pseudo_v6(ip.source, ip.destination, number::ICMPV6, error.len());
        if checksum::fold(pseudo + checksum::sum(error)) != 0xffff {
            return Err(Reason::Malformed.into());
        }
        let quoted = tail(error, 8)?;
        let inner = Ipv6::parse_quoted(quoted)?;
        if inner.fragment.is_some_and(|fragment| fragment.offset != 0) || inner.source != ip.destination {
            return Err(Reason::IcmpUnrelated.into());
        }
        let (remote_port, port) = Transport::quoted_ports(tail(quoted, inner.transport)?, inner.protocol, true)?;
        let (_, remote) = self.destination(inner.source).ok_or(Reason::IcmpUnrelated)?;
        let six = Endpoint6 { protocol: inner.protocol, address: inner.destination.to_bits(), port };
        let end = Remote { address: remote.to_bits(), port: remote_port_of(inner.protocol, remote_port) };
        let (_, session) = self.table.find_six(six, end).ok_or(Reason::IcmpUnrelated)?;
        if ip.hop_limit <= 1 {
            return Err(Reason::HopLimit.into());
        }
        let pool = Ipv4Addr::from_bits(session.four.address);
        let outer_to =
            Rewrite { source: pool, destination: remote, port: Port::Keep, hops: ip.hop_limit - 1, quoted: false };
        let inner_to = Rewrite {
            source: remote,
            destination: pool,
            port: Port::Destination(session.four.port),
            hops: inner.hop_limit,
            quoted: true,
        };
        let length = packet.bytes().len();
        let answer = icmp_6to4::translate(error, ip, &outer_to, &inner, &inner_to, self.mtus)?;
        packet.replace(&answer)?;
        *offload = Offload::default();
        self.count(session.six.address, Side::V6, length);
        self.note_error("5.2", "5.3");
        Ok(())
    }

    /// An ICMPv4 error: about a packet that a session sent.
    pub(super) fn icmp_error_four(
        &mut self,
        packet: &mut PacketBuf<'_>,
        ip: &Ipv4,
        offload: &mut Offload,
    ) -> Result<(), Stop> {
        let error = packet.bytes().get(ip.transport..ip.end).ok_or(Reason::Truncated)?;
        if checksum::checksum(error) != 0 {
            return Err(Reason::Malformed.into());
        }
        let quoted = tail(error, 8)?;
        let inner = Ipv4::parse_quoted(quoted)?;
        if inner.fragment.offset != 0 || inner.source != ip.destination {
            return Err(Reason::IcmpUnrelated.into());
        }
        let (port, remote_port) = Transport::quoted_ports(tail(quoted, inner.transport)?, inner.protocol, false)?;
        let four = Endpoint4 { protocol: inner.protocol, address: inner.source.to_bits(), port };
        let remote = Remote { address: inner.destination.to_bits(), port: remote_port_of(inner.protocol, remote_port) };
        let (_, session) = self.table.find_four(four, remote).ok_or(Reason::IcmpUnrelated)?;
        if ip.ttl <= 1 {
            return Err(Reason::HopLimit.into());
        }
        let host = Ipv6Addr::from_bits(session.six.address);
        let outer_to = Rewrite {
            source: self.embedded(session.prefix, ip.source)?,
            destination: host,
            port: Port::Keep,
            hops: ip.ttl - 1,
            quoted: false,
        };
        let inner_to = Rewrite {
            source: host,
            destination: self.embedded(session.prefix, inner.destination)?,
            port: Port::Source(session.six.port),
            hops: inner.ttl,
            quoted: true,
        };
        let length = packet.bytes().len();
        let answer = icmp_4to6::translate(error, ip, &outer_to, &inner, &inner_to, self.mtus)?;
        packet.replace(&answer)?;
        *offload = Offload::default();
        self.count(session.six.address, Side::V4, length);
        self.note_error("4.2", "4.3");
        Ok(())
    }
}

/// ICMP sessions know their remote end by its address alone.
fn remote_port_of(protocol: Protocol, port: u16) -> u16 {
    if protocol == Protocol::Icmp { 0 } else { port }
}
