//! Translation without state (RFC 7915): addresses by explicit mapping (RFC 7757) or by prefix (RFC 6052), ports as they
//! are, fragments each for itself.
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    Engine, Stop,
    offload::{self, Shape},
    reply::{PROHIBITED_V6, SOURCE_ROUTE_V4, TIME_EXCEEDED_V4, TIME_EXCEEDED_V6},
    six_to_four::too_long,
};
use crate::{
    Offload, PacketBuf, Reason,
    packet::{Ipv4, Ipv6, Protocol, Transport},
    rfc6146::Side,
    rfc7915::{
        Port, Rewrite, header_4to6,
        header_6to4::{self, Identification},
        icmp_4to6,
    },
};

/// An IPv4 address and, unless it was mapped explicitly, the prefix that it was below.
pub(super) type Four = (Ipv4Addr, Option<u8>);

impl Engine {
    /// The IPv4 address of an IPv6 one: by explicit mapping, else by prefix (RFC 7757 3.3.2).
    pub(super) fn four_of(&self, address: Ipv6Addr) -> Option<Four> {
        match self.eam.four(address) {
            Some((four, _)) => Some((four, None)),
            None => self.destination(address).map(|(prefix, four)| (four, Some(prefix))),
        }
    }

    /// The IPv6 address of an IPv4 one by prefix: by the one that permits it.
    pub(super) fn six_by_prefix(&self, address: Ipv4Addr) -> Result<Ipv6Addr, Reason> {
        let served = self.served.iter().find(|served| served.permit.permits(address));
        served.map(|served| served.prefix.embed(address)).ok_or(Reason::NotPermitted)
    }

    /// The IPv6 address of an IPv4 one: by explicit mapping, else by prefix (RFC 7757 3.3.1).
    pub(super) fn six_of(&self, address: Ipv4Addr) -> Result<Ipv6Addr, Reason> {
        self.eam.six(address).map_or_else(|| self.six_by_prefix(address), |(six, _)| Ok(six))
    }

    /// The IPv6 address by which `towards` knows an IPv4 host. Of two explicitly mapped ones neither can know the other's
    /// own address, or its answer would not come back this way (RFC 7757 4.2.1).
    pub(super) fn six_seen_from(
        &self,
        address: Ipv4Addr,
        towards: Ipv4Addr,
        hairpin: bool,
    ) -> Result<Ipv6Addr, Reason> {
        let both = self.eam.six(address).is_some() && self.eam.six(towards).is_some();
        if hairpin || both { self.six_by_prefix(address) } else { self.six_of(address) }
    }

    /// Whether a prefix may stand for an address; one that is mapped explicitly needs no leave.
    pub(super) fn allowed(&self, (address, prefix): Four) -> Result<(), Reason> {
        match prefix {
            Some(prefix) => self.permitted(prefix, address),
            None if self.denied(address) => Err(Reason::Denied),
            None => Ok(()),
        }
    }

    pub(super) fn siit_six(&mut self, now: u64, packet: &mut PacketBuf<'_>, offload: &mut Offload) -> Result<(), Stop> {
        let ip = Ipv6::parse(packet.bytes())?;
        packet.truncate(ip.end);
        let destination = self.four_of(ip.destination).ok_or(Reason::NotOurPrefix)?;
        self.note_four_of("destination", ip.destination, destination);
        let prefix = destination.1.unwrap_or(0);
        offload::normalise(offload, packet, &Shape::six(&ip))?;
        let piece = ip.fragment.filter(|fragment| fragment.is_piece());
        let later = piece.is_some_and(|fragment| fragment.offset != 0);
        let transport = self.siit_transport(packet, ip.transport, ip.protocol, true, (piece.is_some(), later))?;
        if let Some(Transport::IcmpError { .. }) = transport {
            return self.siit_error_six(packet, &ip, destination, offload);
        }
        // An IPv6 source without IPv4 address is dropped in silence (RFC 7915 5.1).
        let source = self.four_of(ip.source).ok_or(Reason::SourceNotAllowed)?;
        self.note_four_of("source", ip.source, source);
        self.allowed(source)?;
        if let Err(reason) = self.allowed(destination) {
            return Err(self.answer_six(now, packet, &ip, prefix, reason, PROHIBITED_V6));
        }
        if let Some(at) = ip.segments_left {
            let header = icmp_4to6::Header { kind: 4, code: 0, rest: at as u32 };
            return Err(self.answer_six(now, packet, &ip, prefix, Reason::SourceRoute, header));
        }
        if ip.hop_limit <= 1 {
            return Err(self.answer_six(now, packet, &ip, prefix, Reason::HopLimit, TIME_EXCEEDED_V6));
        }
        if let Some(transport) = &transport {
            self.clamp_mss(packet, ip.transport, transport, offload)?;
        }
        let rewrite = Rewrite {
            source: source.0,
            destination: destination.0,
            port: Port::Keep,
            hops: ip.hop_limit - 1,
            quoted: false,
        };
        // 5.1.1: the low half of the Fragment header's identification, also of a packet that is whole.
        let identification = match ip.fragment {
            Some(fragment) => Identification { id: fragment.id as u16, dont_fragment: false },
            None => self.identification(packet, &ip, transport.map_or(8, |transport| transport.header_len()), offload),
        };
        self.count(0, Side::V6, packet.bytes().len());
        self.note_four(&ip, &rewrite, identification);
        if ip.end - ip.transport + Ipv4::LEN > usize::from(u16::MAX) {
            return Err(too_long(packet, &rewrite, identification, offload));
        }
        Ok(header_6to4::translate(packet, &ip, &rewrite, identification, offload)?)
    }

    pub(super) fn siit_four(
        &mut self,
        now: u64,
        packet: &mut PacketBuf<'_>,
        offload: &mut Offload,
        hairpin: bool,
    ) -> Result<(), Stop> {
        let ip = Ipv4::parse(packet.bytes())?;
        packet.truncate(ip.end);
        let destination = self.six_of(ip.destination)?;
        self.note_six_of("destination", ip.destination, destination);
        offload::normalise(offload, packet, &Shape::four(&ip))?;
        let later = ip.fragment.offset != 0;
        let piece = (ip.fragment.is_piece(), later);
        let transport = self.siit_transport(packet, ip.transport, ip.protocol, false, piece)?;
        if let Some(Transport::IcmpError { .. }) = transport {
            return self.siit_error_four(packet, &ip, destination, offload, hairpin);
        }
        let source = self.six_seen_from(ip.source, ip.destination, hairpin)?;
        self.note_six_of("source", ip.source, source);
        if ip.source_route {
            return Err(self.answer_four(now, packet, &ip, Reason::SourceRoute, SOURCE_ROUTE_V4));
        }
        if ip.ttl <= 1 {
            return Err(self.answer_four(now, packet, &ip, Reason::HopLimit, TIME_EXCEEDED_V4));
        }
        if let Some(transport) = &transport {
            self.check_udp_checksum(packet, &ip, offload)?;
            self.clamp_mss(packet, ip.transport, transport, offload)?;
        }
        let rewrite = Rewrite { source, destination, port: Port::Keep, hops: ip.ttl - 1, quoted: false };
        let header = transport.map_or(8, |transport| transport.header_len());
        let cut = self.fit_six(now, packet, &ip, header, offload)?;
        self.count(0, Side::V4, packet.bytes().len());
        header_4to6::translate(packet, &ip, &rewrite, offload)?;
        self.note_six(&ip, &rewrite);
        // 4.1: the identification is the IPv4 one, so that every translator on the way cuts alike.
        if cut { Err(self.cut(packet, offload, Some(ip.fragment.id))) } else { Ok(()) }
    }

    /// The transport header of what is no later fragment and has one that is known. `piece`: whether it is a fragment,
    /// and a later one.
    fn siit_transport(
        &mut self,
        packet: &PacketBuf<'_>,
        at: usize,
        protocol: Protocol,
        v6: bool,
        (piece, later): (bool, bool),
    ) -> Result<Option<Transport>, Reason> {
        if piece && protocol == Protocol::Icmp {
            // 1.2: its checksum covers what no single fragment says.
            return Err(Reason::FragmentedIcmp);
        }
        if later || matches!(protocol, Protocol::Other(_)) {
            return Ok(None);
        }
        let payload = packet.bytes().get(at..).ok_or(Reason::Truncated)?;
        match Transport::parse(payload, protocol, v6) {
            Ok(transport) => Ok(Some(transport)),
            Err(Reason::Truncated) if piece => Err(Reason::TinyFragment),
            Err(reason) => Err(reason),
        }
    }

    /// Says how an IPv6 address became an IPv4 one.
    pub(super) fn note_four_of(&mut self, which: &str, six: Ipv6Addr, (four, prefix): Four) {
        let net = prefix.and_then(|prefix| self.config.prefix.get(usize::from(prefix))).map(|one| one.prefix);
        match net {
            Some(net) => {
                self.trace.note(6052, "2.2", || format!("the {which} {six} is below {net}: it stands for {four}"))
            }
            None => self.trace.note(7757, "3.3.2", || format!("the {which} {six} is explicitly mapped to {four}")),
        }
    }

    /// Says how an IPv4 address became an IPv6 one.
    pub(super) fn note_six_of(&mut self, which: &str, four: Ipv4Addr, six: Ipv6Addr) {
        if !self.trace.is_on() {
            return;
        }
        if self.eam.six(four).is_some_and(|(mapped, _)| mapped == six) {
            self.trace.note(7757, "3.3.1", || format!("the {which} {four} is explicitly mapped to {six}"));
        } else {
            self.trace.note(6052, "2.3", || format!("the {which} {four} is {six} below the prefix that permits it"));
        }
    }
}
