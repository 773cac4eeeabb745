//! ICMP errors without state (RFC 7915 4.2, 4.3, 5.2, 5.3): who sent them, and about which packet.
use std::{
    hash::BuildHasher,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{Engine, Stop, siit::Four};
use crate::{
    Offload, PacketBuf, Reason,
    bytes::*,
    checksum,
    packet::{Ipv4, Ipv6, number},
    rfc6146::Side,
    rfc7915::{Port, Rewrite, icmp_4to6, icmp_6to4},
};

impl Engine {
    pub(super) fn siit_error_six(
        &mut self,
        packet: &mut PacketBuf<'_>,
        ip: &Ipv6,
        destination: Four,
        offload: &mut Offload,
    ) -> Result<(), Stop> {
        let error = packet.bytes().get(ip.transport..ip.end).ok_or(Reason::Truncated)?;
        let pseudo = checksum::pseudo_v6(ip.source, ip.destination, number::ICMPV6, error.len());
        if checksum::fold(pseudo + checksum::sum(error)) != 0xffff {
            return Err(Reason::Malformed.into());
        }
        let inner = Ipv6::parse_quoted(tail(error, 8)?)?;
        if inner.source != ip.destination {
            return Err(Reason::IcmpUnrelated.into());
        }
        let (host, _) = self.four_of(inner.destination).ok_or(Reason::IcmpUnrelated)?;
        let source = self.error_source(ip.source)?;
        if ip.hop_limit <= 1 {
            return Err(Reason::HopLimit.into());
        }
        let outer_to =
            Rewrite { source, destination: destination.0, port: Port::Keep, hops: ip.hop_limit - 1, quoted: false };
        let inner_to =
            Rewrite { source: destination.0, destination: host, port: Port::Keep, hops: inner.hop_limit, quoted: true };
        let length = packet.bytes().len();
        let answer = icmp_6to4::translate(error, ip, &outer_to, &inner, &inner_to, self.mtus)?;
        packet.replace(&answer)?;
        *offload = Offload::default();
        self.count(0, Side::V6, length);
        self.note_error("5.2", "5.3");
        Ok(())
    }

    pub(super) fn siit_error_four(
        &mut self,
        packet: &mut PacketBuf<'_>,
        ip: &Ipv4,
        destination: Ipv6Addr,
        offload: &mut Offload,
        hairpin: bool,
    ) -> Result<(), Stop> {
        let error = packet.bytes().get(ip.transport..ip.end).ok_or(Reason::Truncated)?;
        if checksum::checksum(error) != 0 {
            return Err(Reason::Malformed.into());
        }
        let inner = Ipv4::parse_quoted(tail(error, 8)?)?;
        if inner.source != ip.destination {
            return Err(Reason::IcmpUnrelated.into());
        }
        let host = self.six_seen_from(inner.destination, inner.source, hairpin)?;
        // RFC 7757 4.2: a router that is mapped explicitly, but is no end of the hairpin, keeps its address.
        let source = if ip.source == inner.destination { Ok(host) } else { self.six_of(ip.source) };
        let source = source.or_else(|reason| {
            // A router on the way may have an address that no prefix permits; its error is worth more than its name.
            self.served.first().map(|served| served.prefix.embed(ip.source)).ok_or(reason)
        })?;
        if ip.ttl <= 1 {
            return Err(Reason::HopLimit.into());
        }
        let outer_to = Rewrite { source, destination, port: Port::Keep, hops: ip.ttl - 1, quoted: false };
        let inner_to =
            Rewrite { source: destination, destination: host, port: Port::Keep, hops: inner.ttl, quoted: true };
        let length = packet.bytes().len();
        let answer = icmp_4to6::translate(error, ip, &outer_to, &inner, &inner_to, self.mtus)?;
        packet.replace(&answer)?;
        *offload = Offload::default();
        self.count(0, Side::V4, length);
        self.note_error("4.2", "4.3");
        Ok(())
    }

    /// The IPv4 source of an ICMPv6 error: its sender's, or one of the configured pool for a router that has none
    /// (RFC 6791 5): at random, but always the same for the same router, so that a traceroute reads as one path.
    fn error_source(&mut self, router: Ipv6Addr) -> Result<Ipv4Addr, Reason> {
        if let Some(four) = self.four_of(router).filter(|four| self.allowed(*four).is_ok()) {
            return Ok(four.0);
        }
        let pool = &self.config.icmp_sources;
        let size = |net: &ipnet::Ipv4Net| 1u64 << (32 - net.prefix_len());
        let total: u64 = pool.iter().map(size).sum();
        let mut at = self.seed.hash_one(router.to_bits()).checked_rem(total).ok_or(Reason::SourceNotAllowed)?;
        for net in pool {
            if at < size(net) {
                let chosen = Ipv4Addr::from_bits(net.network().to_bits() | at as u32);
                self.trace.note(6791, "5", || {
                    format!("the router {router} has no IPv4 address: {chosen} of icmp_sources speaks for it")
                });
                return Ok(chosen);
            }
            at -= size(net);
        }
        Err(Reason::SourceNotAllowed)
    }

    /// Says that an ICMP error was translated, by which sections.
    pub(super) fn note_error(&mut self, header: &'static str, inner: &'static str) {
        self.trace.note(7915, header, || "the ICMP error has its counterpart's type, code, and MTU or pointer".into());
        self.trace.note(7915, inner, || "the packet that it quotes is translated too".into());
    }
}
