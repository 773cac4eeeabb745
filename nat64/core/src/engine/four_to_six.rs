//! A packet from an IPv4 host (RFC 6146 3.5, from the IPv4 side).
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    Engine, Followers6, Stop,
    offload::{self, Shape},
    reply::{SOURCE_ROUTE_V4, TIME_EXCEEDED_V4},
    six_to_four::FRAGMENTS_PER_SOURCE,
};
use crate::{
    GsoKind, Offload, PacketBuf, Reason,
    bytes::*,
    config::UdpZeroChecksum,
    packet::{Ipv4, Ipv6, Protocol, Transport},
    rfc6146::{Endpoint4, Remote, Side},
    rfc7915::{
        Port, Rewrite, fragment,
        header_4to6::{self, header_len},
        icmp_6to4, transport,
    },
};

impl Engine {
    pub(super) fn four_to_six(
        &mut self,
        now: u64,
        packet: &mut PacketBuf<'_>,
        offload: &mut Offload,
    ) -> Result<(), Stop> {
        let ip = Ipv4::parse(packet.bytes())?;
        packet.truncate(ip.end);
        if !self.ports.has_address(ip.destination.to_bits()) {
            return Err(Reason::NoMapping.into());
        }
        offload::normalise(offload, packet, &Shape::four(&ip))?;
        if ip.fragment.is_piece() {
            if ip.protocol == Protocol::Icmp {
                return Err(Reason::FragmentedIcmp.into());
            }
            if ip.fragment.offset != 0 {
                return self.later_fragment_four(now, packet, &ip, offload);
            }
        }
        let payload = packet.bytes().get(ip.transport..).ok_or(Reason::Truncated)?;
        let transport = Transport::parse(payload, ip.protocol, false).map_err(|reason| match reason {
            Reason::Truncated if ip.fragment.is_piece() => Reason::TinyFragment,
            reason => reason,
        })?;
        let (remote_port, port) = match transport {
            Transport::Tcp { source, destination, .. } | Transport::Udp { source, destination } => {
                (source, destination)
            }
            Transport::Echo { identifier, .. } => (0, identifier),
            Transport::IcmpError { .. } => return self.icmp_error_four(packet, &ip, offload),
        };
        let four = Endpoint4 { protocol: ip.protocol, address: ip.destination.to_bits(), port };
        let remote = Remote { address: ip.source.to_bits(), port: remote_port };
        self.check_udp_checksum(packet, &ip, offload)?;
        let (id, session) = match self.table.find_four(four, remote) {
            Some(found) => found,
            None => self.session_four(now, four, remote, &transport)?,
        };
        self.trace.note(6146, "3.5", || {
            let (six, port) = (Ipv6Addr::from(session.six.address), session.six.port);
            format!(
                "{}:{} is bound to [{six}]:{port}, with a session for {}:{remote_port}",
                ip.destination, four.port, ip.source
            )
        });
        let source = self.embedded(session.prefix, ip.source)?;
        if ip.source_route {
            return Err(self.answer_four(now, packet, &ip, Reason::SourceRoute, SOURCE_ROUTE_V4));
        }
        if ip.ttl <= 1 {
            return Err(self.answer_four(now, packet, &ip, Reason::HopLimit, TIME_EXCEEDED_V4));
        }
        self.touch(now, id, &session, Side::V4, &transport, session.prefix);
        self.clamp_mss(packet, ip.transport, &transport, offload)?;
        let rewrite = Rewrite {
            source,
            destination: Ipv6Addr::from_bits(session.six.address),
            port: Port::Destination(session.six.port),
            hops: ip.ttl - 1,
            quoted: false,
        };
        let cut = self.fit_six(now, packet, &ip, transport.header_len(), offload)?;
        if ip.fragment.more {
            self.follow_four(now, &ip, &rewrite)?;
        }
        self.count(session.six.address, Side::V4, packet.bytes().len());
        header_4to6::translate(packet, &ip, &rewrite, offload)?;
        self.note_six(&ip, &rewrite);
        if cut { Err(self.cut(packet, offload, None)) } else { Ok(()) }
    }

    /// Refuses an unfragmented UDP packet without checksum, if the configuration says so (RFC 7915 4.5).
    pub(super) fn check_udp_checksum(
        &mut self,
        packet: &PacketBuf<'_>,
        ip: &Ipv4,
        offload: &Offload,
    ) -> Result<(), Reason> {
        if ip.protocol != Protocol::Udp || offload.partial.is_some() || ip.fragment.is_piece() {
            return Ok(());
        }
        if u16_at(packet.bytes(), ip.transport + transport::UDP_CHECKSUM)? != 0 {
            return Ok(());
        }
        let drop = self.config.udp_zero_checksum == UdpZeroChecksum::Drop;
        self.trace.note(7915, "4.5", || {
            let done = if drop { "it is refused" } else { "one is calculated" };
            format!("UDP without checksum, which IPv6 does not allow: {done}")
        });
        if drop { Err(Reason::ZeroChecksum) } else { Ok(()) }
    }

    /// Lowers the MSS of a SYN to what fits the IPv6 side.
    pub(super) fn clamp_mss(
        &mut self,
        packet: &mut PacketBuf<'_>,
        at: usize,
        transport: &Transport,
        offload: &Offload,
    ) -> Result<(), Reason> {
        let Transport::Tcp { flags, header, .. } = *transport else { return Ok(()) };
        let most = self.config.mtu6 - (Ipv6::LEN + 20) as u16;
        let payload = packet.bytes_mut().get_mut(at..).ok_or(Reason::Truncated)?;
        transport::clamp_mss(payload, flags, header, most, offload.partial.is_some())
    }

    /// Says how the header was translated.
    pub(super) fn note_six(&mut self, ip: &Ipv4, to: &Rewrite<Ipv6Addr>) {
        self.trace.note(7915, "4.1", || {
            let fragment = if ip.fragment.is_piece() { ", a Fragment header added" } else { "" };
            let (from, gone) = (ip.ttl, ip.transport - Ipv4::LEN);
            let options = if gone > 0 { format!(", {gone} bytes of options left out") } else { String::new() };
            format!(
                "IPv4 {} -> {} becomes IPv6 {} -> {}, TTL {from} becomes hop limit {}, traffic class {:#04x}{options}{fragment}",
                ip.source, ip.destination, to.source, to.destination, to.hops, ip.tos
            )
        });
        if ip.fragment.offset == 0 {
            self.trace.note(7915, "4.5", || match ip.protocol {
                Protocol::Other(number) => format!("protocol {number} is not known: its checksum stays"),
                _ => "the transport checksum is updated for the new addresses and ports".into(),
            });
        }
    }

    /// Whether the translated packet must be cut by us; lowers TCP's segment size, which the kernel cuts by; answers
    /// what must not be cut (RFC 7915 4.1, RFC 1191).
    pub(super) fn fit_six(
        &mut self,
        now: u64,
        packet: &PacketBuf<'_>,
        ip: &Ipv4,
        header: usize,
        offload: &mut Offload,
    ) -> Result<bool, Stop> {
        let mtu = usize::from(self.config.mtu6);
        let whole = packet.bytes().len() - ip.transport;
        if let Some(gso) = &mut offload.gso
            && gso.kind != GsoKind::Udp
        {
            // The least MTU leaves 1,180 bytes beside the longest headers.
            gso.size = gso.size.min((mtu - Ipv6::LEN - header) as u16);
            return Ok(false);
        }
        let size = offload.gso.map_or(whole, |gso| whole.min(header + usize::from(gso.size)));
        if header_len(ip) + size <= mtu {
            return Ok(false);
        }
        if ip.dont_fragment {
            return Err(self.too_big(now, packet, ip));
        }
        self.trace.note(7915, "4.1", || format!("longer than {mtu} bytes and DF is clear: cut into fragments"));
        Ok(true)
    }

    fn too_big(&mut self, now: u64, packet: &PacketBuf<'_>, ip: &Ipv4) -> Stop {
        let mtu = u32::from(self.config.mtu6) - (header_len(ip) - Ipv4::LEN) as u32;
        self.trace.note(7915, "4.1", || format!("too long and DF is set: answered Fragmentation Needed, MTU {mtu}"));
        let header = icmp_6to4::Header { kind: 3, code: 4, rest: mtu };
        self.answer_four(now, packet, ip, Reason::TooBig, header)
    }

    /// Cuts a translated packet into fragments that fit; `id` names it if it has a name already.
    pub(super) fn cut(&mut self, packet: &mut PacketBuf<'_>, offload: &mut Offload, id: Option<u32>) -> Stop {
        let mtu = usize::from(self.config.mtu6);
        let mut cut = || -> Result<Vec<Vec<u8>>, Reason> {
            let datagrams = match offload.gso {
                Some(gso) => fragment::segment(packet.bytes(), gso)?,
                None => {
                    offload::finish(offload, packet.bytes_mut())?;
                    vec![packet.bytes().to_vec()]
                }
            };
            let mut out = Vec::new();
            for datagram in datagrams {
                let id = id.filter(|_| offload.gso.is_none());
                let id = id.unwrap_or_else(|| u32::from(self.fresh_id()) << 16 | u32::from(self.fresh_id()));
                out.extend(fragment::fragment(&datagram, mtu, id)?);
            }
            Ok(out)
        };
        match cut() {
            Ok(packets) => Stop::Split(packets),
            Err(reason) => Stop::Drop(reason),
        }
    }

    /// Remembers where later fragments of this packet go.
    fn follow_four(&mut self, now: u64, ip: &Ipv4, rewrite: &Rewrite<Ipv6Addr>) -> Result<(), Reason> {
        let key = (ip.source.to_bits(), ip.destination.to_bits(), ip.fragment.id, ip.protocol);
        let followers = Followers6 { source: rewrite.source, destination: rewrite.destination };
        let source = self.sources.get_mut(rewrite.destination.to_bits());
        let source = source.filter(|source| source.fragments < FRAGMENTS_PER_SOURCE).ok_or(Reason::FragmentLimit)?;
        if !self.fragments4.insert(key, followers, now) {
            return Err(Reason::FragmentLimit);
        }
        source.fragments += 1;
        Ok(())
    }

    fn later_fragment_four(
        &mut self,
        now: u64,
        packet: &mut PacketBuf<'_>,
        ip: &Ipv4,
        offload: &mut Offload,
    ) -> Result<(), Stop> {
        let key = (ip.source.to_bits(), ip.destination.to_bits(), ip.fragment.id, ip.protocol);
        let followers = self.fragments4.get(&key, now).ok_or(Reason::FragmentUnknown)?;
        if ip.ttl <= 1 {
            return Err(Reason::HopLimit.into());
        }
        let rewrite = Rewrite {
            source: followers.source,
            destination: followers.destination,
            port: Port::Keep,
            hops: ip.ttl - 1,
            quoted: false,
        };
        let size = packet.bytes().len() - ip.transport + header_len(ip);
        if size > usize::from(self.config.mtu6) && ip.dont_fragment {
            return Err(self.too_big(now, packet, ip));
        }
        self.count(followers.destination.to_bits(), Side::V4, packet.bytes().len());
        header_4to6::translate(packet, ip, &rewrite, offload)?;
        self.note_six(ip, &rewrite);
        if size > usize::from(self.config.mtu6) { Err(self.cut(packet, offload, None)) } else { Ok(()) }
    }

    /// The IPv6 address by which a session's IPv6 host knows an IPv4 one.
    pub(super) fn embedded(&self, prefix: u8, address: Ipv4Addr) -> Result<Ipv6Addr, Reason> {
        let served = self.served.get(usize::from(prefix)).ok_or(Reason::NotOurPrefix)?;
        Ok(served.prefix.embed(address))
    }
}
