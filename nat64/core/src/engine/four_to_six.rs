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
        let Some((id, session)) = self.table.find_four(four, remote) else {
            return Err(if self.table.is_bound(four) { Reason::Filtered } else { Reason::NoMapping }.into());
        };
        let source = self.embedded(session.prefix, ip.source)?;
        if ip.source_route {
            return Err(self.answer_four(now, packet, &ip, Reason::SourceRoute, SOURCE_ROUTE_V4));
        }
        if ip.ttl <= 1 {
            return Err(self.answer_four(now, packet, &ip, Reason::HopLimit, TIME_EXCEEDED_V4));
        }
        self.touch(now, id, &session, Side::V4, &transport, session.prefix);
        if let Transport::Tcp { flags, header, .. } = transport {
            let most = self.config.mtu6 - (Ipv6::LEN + 20) as u16;
            let payload = packet.bytes_mut().get_mut(ip.transport..).ok_or(Reason::Truncated)?;
            transport::clamp_mss(payload, flags, header, most, offload.partial.is_some())?;
        }
        let rewrite = Rewrite {
            source,
            destination: Ipv6Addr::from_bits(session.six.address),
            port: Port::Destination(session.six.port),
            hops: ip.ttl - 1,
            quoted: false,
        };
        let cut = self.fit_six(now, packet, &ip, transport, offload)?;
        if ip.fragment.more {
            self.follow_four(now, &ip, &rewrite)?;
        }
        self.count(session.six.address, Side::V4, packet.bytes().len());
        header_4to6::translate(packet, &ip, &rewrite, offload)?;
        if cut { Err(self.cut(packet, offload)) } else { Ok(()) }
    }

    /// Whether the translated packet must be cut by us; lowers TCP's segment size, which the kernel cuts by; answers
    /// what must not be cut (RFC 7915 4.1, RFC 1191).
    fn fit_six(
        &mut self,
        now: u64,
        packet: &PacketBuf<'_>,
        ip: &Ipv4,
        transport: Transport,
        offload: &mut Offload,
    ) -> Result<bool, Stop> {
        let mtu = usize::from(self.config.mtu6);
        let whole = packet.bytes().len() - ip.transport;
        let header = if let Transport::Tcp { header, .. } = transport { header } else { 8 };
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
        Ok(true)
    }

    fn too_big(&mut self, now: u64, packet: &PacketBuf<'_>, ip: &Ipv4) -> Stop {
        let mtu = u32::from(self.config.mtu6) - (header_len(ip) - Ipv4::LEN) as u32;
        let header = icmp_6to4::Header { kind: 3, code: 4, rest: mtu };
        self.answer_four(now, packet, ip, Reason::TooBig, header)
    }

    /// Cuts a translated packet into fragments that fit.
    fn cut(&mut self, packet: &mut PacketBuf<'_>, offload: &mut Offload) -> Stop {
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
                let id = u32::from(self.fresh_id()) << 16 | u32::from(self.fresh_id());
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
        if size > usize::from(self.config.mtu6) { Err(self.cut(packet, offload)) } else { Ok(()) }
    }

    /// The IPv6 address by which a session's IPv6 host knows an IPv4 one.
    pub(super) fn embedded(&self, prefix: u8, address: Ipv4Addr) -> Result<Ipv6Addr, Reason> {
        let served = self.served.get(usize::from(prefix)).ok_or(Reason::NotOurPrefix)?;
        Ok(served.prefix.embed(address))
    }
}
