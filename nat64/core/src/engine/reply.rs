//! What the translator says itself: ICMP errors and TCP resets, a bounded number a second (RFC 4443 2.4 f).
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Engine, Stop};
use crate::{
    PacketBuf, Reason,
    bytes::*,
    checksum,
    config::Mode,
    packet::{Ipv4, Ipv6, Transport, number, tcp_flag},
    rfc7915::{Port, Rewrite, header_4to6::ipv6_header, icmp_4to6, icmp_6to4},
};

/// Answers a second, and at once.
const RATE: u64 = 1_000;
/// Hop limit of what the translator says.
const HOPS: u8 = 64;

/// A token bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: u64,
    filled: u64,
}

impl Bucket {
    pub(super) fn new(now: u64) -> Self {
        Self { tokens: RATE, filled: now }
    }

    fn take(&mut self, now: u64) -> bool {
        let elapsed = now.saturating_sub(self.filled).min(1000);
        self.tokens = (self.tokens + elapsed * RATE / 1000).min(RATE);
        self.filled = self.filled.max(now);
        let some = self.tokens > 0;
        self.tokens -= u64::from(some);
        some
    }
}

/// What an ICMPv6 error of ours says.
pub(super) const TIME_EXCEEDED_V6: icmp_4to6::Header = icmp_4to6::Header { kind: 3, code: 0, rest: 0 };
pub(super) const PROHIBITED_V6: icmp_4to6::Header = icmp_4to6::Header { kind: 1, code: 1, rest: 0 };
pub(super) const UNREACHABLE_V6: icmp_4to6::Header = icmp_4to6::Header { kind: 1, code: 3, rest: 0 };
/// What an ICMPv4 error of ours says.
pub(super) const TIME_EXCEEDED_V4: icmp_6to4::Header = icmp_6to4::Header { kind: 11, code: 0, rest: 0 };
pub(super) const SOURCE_ROUTE_V4: icmp_6to4::Header = icmp_6to4::Header { kind: 3, code: 5, rest: 0 };

impl Engine {
    /// The IPv6 address by which the translator speaks: its own IPv4 address below the prefix that was addressed, so
    /// that a CLAT shows it as an IPv4 hop. If it has none, the address that was spoken to.
    fn own_address(&self, prefix: u8, addressed: Ipv6Addr) -> Ipv6Addr {
        let own = match self.config.mode {
            Mode::Nat64 => Some(self.ports.first_address()),
            Mode::Siit => self.own_four(),
        };
        let served = self.served.get(usize::from(prefix));
        own.zip(served).map_or(addressed, |(own, served)| served.prefix.embed(own))
    }

    /// SIIT's own IPv4 address, if it has one.
    fn own_four(&self) -> Option<Ipv4Addr> {
        self.config.icmp_sources.first().map(|net| net.network())
    }

    /// Answers an IPv6 packet with an ICMPv6 error.
    pub(super) fn answer_six(
        &mut self,
        now: u64,
        packet: &PacketBuf<'_>,
        ip: &Ipv6,
        prefix: u8,
        reason: Reason,
        header: icmp_4to6::Header,
    ) -> Stop {
        if ip.source.is_multicast() || ip.source.is_unspecified() || !self.errors.take(now) {
            return Stop::Drop(reason);
        }
        let source = self.own_address(prefix, ip.destination);
        self.trace
            .note(7915, "5.4", || format!("answered with ICMPv6 type {} code {}: {reason}", header.kind, header.code));
        let to = Rewrite { source, destination: ip.source, port: Port::Keep, hops: HOPS, quoted: true };
        let quoted = packet.bytes();
        let quoted = quoted.get(..1280 - Ipv6::LEN - 8).unwrap_or(quoted);
        match icmp_4to6::build(header, 0, &to, quoted) {
            Ok(answer) => Stop::Reply(reason, answer),
            Err(_) => Stop::Drop(reason),
        }
    }

    /// Answers an IPv4 packet with an ICMPv4 error from the pool address that it was sent to, or from SIIT's own.
    pub(super) fn answer_four(
        &mut self,
        now: u64,
        packet: &PacketBuf<'_>,
        ip: &Ipv4,
        reason: Reason,
        header: icmp_6to4::Header,
    ) -> Stop {
        let source = ip.source;
        let host = !(source.is_multicast() || source.is_unspecified() || source.is_broadcast() || source.is_loopback());
        if !host || ip.fragment.offset != 0 || !self.errors.take(now) {
            return Stop::Drop(reason);
        }
        self.trace
            .note(7915, "4.4", || format!("answered with ICMP type {} code {}: {reason}", header.kind, header.code));
        let own = match self.config.mode {
            Mode::Nat64 => ip.destination,
            Mode::Siit => self.own_four().unwrap_or(ip.destination),
        };
        let to = Rewrite { source: own, destination: source, port: Port::Keep, hops: HOPS, quoted: true };
        let quoted = packet.bytes();
        let quoted = quoted.get(..576 - Ipv4::LEN - 8).unwrap_or(quoted);
        match icmp_6to4::build(header, 0, &to, quoted) {
            Ok(answer) => Stop::Reply(reason, answer),
            Err(_) => Stop::Drop(reason),
        }
    }

    /// Answers a TCP segment without session with a reset, as its peer would if it had forgotten the connection
    /// (RFC 9293 3.10.7.1): after a restart connections end at once instead of hanging.
    pub(super) fn reset(&mut self, now: u64, packet: &PacketBuf<'_>, ip: &Ipv6, transport: Transport) -> Stop {
        let reason = Reason::NoTcpSession;
        let Transport::Tcp { flags, header, .. } = transport else { return Stop::Drop(reason) };
        if flags & tcp_flag::RST != 0 || !self.errors.take(now) {
            return Stop::Drop(reason);
        }
        match reset(packet.bytes(), ip, flags, header) {
            Ok(answer) => Stop::Reply(reason, answer),
            Err(reason) => Stop::Drop(reason),
        }
    }
}

fn reset(packet: &[u8], ip: &Ipv6, flags: u8, header: usize) -> Result<Vec<u8>, Reason> {
    let segment = packet.get(ip.transport..ip.end).ok_or(Reason::Truncated)?;
    let (sequence, acknowledgement, answer) = if flags & tcp_flag::ACK != 0 {
        (u32_at(segment, 8)?, 0, tcp_flag::RST)
    } else {
        let one = |flag: u8| u32::from(flags & flag != 0);
        let length = (segment.len() - header) as u32 + one(tcp_flag::SYN) + one(tcp_flag::FIN);
        (0, u32_at(segment, 4)?.wrapping_add(length), tcp_flag::RST | tcp_flag::ACK)
    };
    let mut out = vec![0; Ipv6::LEN + 20];
    put(&mut out, 0, &ipv6_header(0, 20, number::TCP, HOPS, ip.destination, ip.source))?;
    put_u16(&mut out, 40, u16_at(segment, 2)?)?;
    put_u16(&mut out, 42, u16_at(segment, 0)?)?;
    put(&mut out, 44, &sequence.to_be_bytes())?;
    put(&mut out, 48, &acknowledgement.to_be_bytes())?;
    put(&mut out, 52, &[0x50, answer])?;
    let pseudo = checksum::pseudo_v6(ip.destination, ip.source, number::TCP, 20);
    let sum = !checksum::fold(pseudo + checksum::sum(tail(&out, Ipv6::LEN)?));
    put_u16(&mut out, 56, sum)?;
    Ok(out)
}
