//! A packet from an IPv6 host (RFC 6146 3.5, from the IPv6 side).
use std::net::Ipv4Addr;

use super::{
    Engine, Followers4, Random, Stop,
    offload::{self, Shape},
    reply::{PROHIBITED_V6, TIME_EXCEEDED_V6, UNREACHABLE_V6},
};
use crate::{
    HEADROOM, Offload, PacketBuf, Reason,
    bytes::*,
    packet::{Ipv4, Ipv6, Protocol, Transport},
    rfc6146::{
        Endpoint6, Remote, Side,
        table::{Id, Session},
        tcp,
    },
    rfc7915::{
        Port, Rewrite, fragment,
        header_6to4::{self, Identification, MAX_WITHOUT_DF},
        icmp_4to6,
    },
};

/// How many fragmented packets of one source are followed at once.
pub(super) const FRAGMENTS_PER_SOURCE: u32 = 256;

impl Engine {
    pub(super) fn six_to_four(
        &mut self,
        now: u64,
        random: Random<'_>,
        packet: &mut PacketBuf<'_>,
        offload: &mut Offload,
    ) -> Result<(), Stop> {
        let ip = Ipv6::parse(packet.bytes())?;
        packet.truncate(ip.end);
        let (prefix, remote) = self.destination(ip.destination).ok_or(Reason::NotOurPrefix)?;
        self.note_prefix(prefix, remote);
        offload::normalise(offload, packet, &Shape::six(&ip))?;
        if let Some(fragment) = ip.fragment.filter(|fragment| fragment.is_piece()) {
            if ip.protocol == Protocol::Icmp {
                return Err(Reason::FragmentedIcmp.into());
            }
            if fragment.offset != 0 {
                return self.later_fragment_six(now, packet, &ip, prefix, offload);
            }
        }
        let payload = packet.bytes().get(ip.transport..).ok_or(Reason::Truncated)?;
        let transport = Transport::parse(payload, ip.protocol, true).map_err(|reason| match reason {
            Reason::Truncated if ip.fragment.is_some() => Reason::TinyFragment,
            reason => reason,
        })?;
        if matches!(transport, Transport::IcmpError { .. }) {
            return self.icmp_error_six(packet, &ip, offload);
        }
        if !self.serves(ip.source) {
            return Err(Reason::SourceNotAllowed.into());
        }
        if let Some(at) = ip.segments_left {
            // RFC 8200 4.4: an unrecognised routing type; RFC 7915 5.1.1.
            let header = icmp_4to6::Header { kind: 4, code: 0, rest: at as u32 };
            return Err(self.answer_six(now, packet, &ip, prefix, Reason::SourceRoute, header));
        }
        if ip.hop_limit <= 1 {
            return Err(self.answer_six(now, packet, &ip, prefix, Reason::HopLimit, TIME_EXCEEDED_V6));
        }
        let (id, session) = self.session_six(now, random, packet, &ip, transport, (prefix, remote))?;
        self.touch(now, id, &session, Side::V6, &transport, prefix);
        self.clamp_mss(packet, ip.transport, &transport, offload)?;
        let rewrite = Rewrite {
            source: Ipv4Addr::from_bits(session.four.address),
            destination: remote,
            port: Port::Source(session.four.port),
            hops: ip.hop_limit - 1,
            quoted: false,
        };
        let identification = self.identification(packet, &ip, transport.header_len(), offload);
        if ip.fragment.is_some_and(|fragment| fragment.more) {
            self.follow_six(now, &ip, &rewrite, identification.id)?;
        }
        self.count(session.six.address, Side::V6, packet.bytes().len());
        self.note_four(&ip, &rewrite, identification);
        if ip.end - ip.transport + Ipv4::LEN > usize::from(u16::MAX) {
            return Err(too_long(packet, &rewrite, identification, offload));
        }
        Ok(header_6to4::translate(packet, &ip, &rewrite, identification, offload)?)
    }

    /// Finds or makes the session of a packet with a whole transport header.
    fn session_six(
        &mut self,
        now: u64,
        random: Random<'_>,
        packet: &PacketBuf<'_>,
        ip: &Ipv6,
        transport: Transport,
        (prefix, remote): (u8, Ipv4Addr),
    ) -> Result<(Id, Session), Stop> {
        let (port, remote_port) = match transport {
            Transport::Tcp { source, destination, .. } | Transport::Udp { source, destination } => {
                (source, destination)
            }
            Transport::Echo { identifier, .. } => (identifier, 0),
            Transport::IcmpError { .. } => return Err(Reason::IcmpType.into()),
        };
        let six = Endpoint6 { protocol: ip.protocol, address: ip.source.to_bits(), port };
        let end = Remote { address: remote.to_bits(), port: remote_port };
        // Below another prefix than the session's the same host may not be permitted.
        let found = self.table.find_six(six, end);
        if let Some(found) =
            found.filter(|(_, session)| session.prefix == prefix || self.permitted(prefix, remote).is_ok())
        {
            self.trace.note(6146, "3.5", || {
                format!("a session of [{}]:{port} with {remote}:{remote_port} is there", ip.source)
            });
            return Ok(found);
        }
        let mut permitted = self.permitted(prefix, remote);
        if self.ports.has_address(end.address) && !self.may_turn_back(ip.protocol, end) {
            permitted = Err(Reason::Denied);
        }
        if let Err(reason) = permitted {
            self.trace.note(6052, "3.1", || format!("{remote} is refused: {reason}"));
            return Err(self.answer_six(now, packet, ip, prefix, reason, PROHIBITED_V6));
        }
        match transport {
            Transport::Tcp { flags, .. } if !tcp::opens(flags) => return Err(self.reset(now, packet, ip, transport)),
            Transport::Echo { request: false, .. } => return Err(Reason::NoMapping.into()),
            _ => {}
        }
        let opened = self
            .open_session(now, random, six, end, prefix)
            .map_err(|reason| self.answer_six(now, packet, ip, prefix, reason, UNREACHABLE_V6))?;
        self.trace.note(6146, "3.5.1", || {
            let four = opened.1.four;
            let address = Ipv4Addr::from_bits(four.address);
            format!("a session is made: [{}]:{port} is bound to {address}:{}", ip.source, four.port)
        });
        Ok(opened)
    }

    /// Says which prefix a destination is below.
    pub(super) fn note_prefix(&mut self, prefix: u8, remote: Ipv4Addr) {
        let net = self.config.prefix.get(usize::from(prefix)).map(|one| one.prefix);
        self.trace.note(6052, "2.2", || {
            format!("the destination is below {}: it stands for {remote}", net.unwrap_or_default())
        });
    }

    /// Says how the header is translated.
    pub(super) fn note_four(&mut self, ip: &Ipv6, to: &Rewrite<Ipv4Addr>, identification: Identification) {
        self.trace.note(7915, "5.1", || {
            let gone = ip.transport - Ipv6::LEN;
            let extensions =
                if gone > 0 { format!(", {gone} bytes of extension headers left out") } else { String::new() };
            format!(
                "IPv6 {} -> {} becomes IPv4 {} -> {}, hop limit {} becomes TTL {}, TOS {:#04x}{extensions}",
                ip.source, ip.destination, to.source, to.destination, ip.hop_limit, to.hops, ip.traffic_class
            )
        });
        let piece = ip.fragment.filter(|fragment| fragment.is_piece());
        let Identification { id, dont_fragment } = identification;
        match piece {
            Some(fragment) => self.trace.note(7915, "5.1.1", || {
                format!("a fragment at {} bytes: identification {id:#06x}, DF clear", usize::from(fragment.offset) * 8)
            }),
            None => self.trace.note(7915, "5.1", || {
                let flag = if dont_fragment { "set: longer than 1260 bytes" } else { "clear" };
                format!("identification {id:#06x}, DF {flag}")
            }),
        }
        if ip.fragment.is_none_or(|fragment| fragment.offset == 0) {
            self.trace.note(7915, "5.5", || match ip.protocol {
                Protocol::Other(number) => format!("protocol {number} is not known: its checksum stays"),
                _ => "the transport checksum is updated for the new addresses and ports".into(),
            });
        }
    }

    /// The Identification and DF of the translated packet (RFC 7915 5.1): DF unless it is small, or a fragment.
    pub(super) fn identification(
        &mut self,
        packet: &PacketBuf<'_>,
        ip: &Ipv6,
        header: usize,
        offload: &Offload,
    ) -> Identification {
        let whole = packet.bytes().len() - ip.transport;
        let size = offload.gso.map_or(whole, |gso| whole.min(header + usize::from(gso.size)));
        let dont_fragment = ip.fragment.is_none() && Ipv4::LEN + size > MAX_WITHOUT_DF;
        let id = if dont_fragment { 0 } else { self.fresh_id() };
        Identification { id, dont_fragment }
    }

    /// An Identification that no host can guess from another's.
    pub(super) fn fresh_id(&mut self) -> u16 {
        use std::hash::BuildHasher;
        self.next_id = self.next_id.wrapping_add(1);
        self.seed.hash_one(self.next_id) as u16
    }

    /// Remembers where later fragments of this packet go.
    fn follow_six(&mut self, now: u64, ip: &Ipv6, rewrite: &Rewrite<Ipv4Addr>, id: u16) -> Result<(), Reason> {
        let Some(fragment) = ip.fragment else { return Ok(()) };
        let six = ip.source.to_bits();
        let key = (six, ip.destination.to_bits(), fragment.id, ip.protocol);
        let followers = Followers4 { source: rewrite.source, destination: rewrite.destination, id, six };
        let source = self.sources.get_mut(six).filter(|source| source.fragments < FRAGMENTS_PER_SOURCE);
        let source = source.ok_or(Reason::FragmentLimit)?;
        if !self.fragments6.insert(key, followers, now) {
            return Err(Reason::FragmentLimit);
        }
        source.fragments += 1;
        Ok(())
    }

    fn later_fragment_six(
        &mut self,
        now: u64,
        packet: &mut PacketBuf<'_>,
        ip: &Ipv6,
        prefix: u8,
        offload: &mut Offload,
    ) -> Result<(), Stop> {
        let id = ip.fragment.map_or(0, |fragment| fragment.id);
        let key = (ip.source.to_bits(), ip.destination.to_bits(), id, ip.protocol);
        let followers = self.fragments6.get(&key, now).ok_or(Reason::FragmentUnknown)?;
        if ip.hop_limit <= 1 {
            return Err(self.answer_six(now, packet, ip, prefix, Reason::HopLimit, TIME_EXCEEDED_V6));
        }
        let rewrite = Rewrite {
            source: followers.source,
            destination: followers.destination,
            port: Port::Keep,
            hops: ip.hop_limit - 1,
            quoted: false,
        };
        self.count(followers.six, Side::V6, packet.bytes().len());
        let identification = Identification { id: followers.id, dont_fragment: false };
        self.note_four(ip, &rewrite, identification);
        Ok(header_6to4::translate(packet, ip, &rewrite, identification, offload)?)
    }
}

/// A super-packet that is longer than any IPv4 packet: cut into its segments, each translated.
pub(super) fn too_long(
    packet: &PacketBuf<'_>,
    rewrite: &Rewrite<Ipv4Addr>,
    identification: Identification,
    offload: &Offload,
) -> Stop {
    let cut = || -> Result<Vec<Vec<u8>>, Reason> {
        let gso = offload.gso.ok_or(Reason::TooLongForIpv4)?;
        let mut out = Vec::new();
        for segment in fragment::segment(packet.bytes(), gso)? {
            let mut buf = vec![0; HEADROOM + segment.len()];
            put(&mut buf, HEADROOM, &segment)?;
            let end = buf.len();
            let mut piece = PacketBuf::new(&mut buf, HEADROOM, end).ok_or(Reason::Truncated)?;
            let ip = Ipv6::parse(piece.bytes())?;
            header_6to4::translate(&mut piece, &ip, rewrite, identification, &mut Offload::default())?;
            out.push(piece.bytes().to_vec());
        }
        Ok(out)
    };
    match cut() {
        Ok(packets) => Stop::Split(packets),
        Err(reason) => Stop::Drop(reason),
    }
}
