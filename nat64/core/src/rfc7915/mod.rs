//! Stateless translation of one packet (RFC 7915); addresses and ports are the caller's choice, be it state or a rule.
//!
//! Files are named after the RFC's parts: [`header_4to6`] (4.1), [`icmp_4to6`] (4.2, 4.3), [`header_6to4`] (5.1),
//! [`icmp_6to4`] (5.2, 5.3), `extensions` (RFC 4884, in both), [`transport`] (4.5, 5.5), [`fragment`] (the Fragment headers of 4.1 and 5.1.1), [`mtu`].
mod extensions;
pub mod fragment;
pub mod header_4to6;
pub mod header_6to4;
pub mod icmp_4to6;
pub mod icmp_6to4;
pub mod mtu;
pub mod transport;

/// Which port of a packet changes. An echo has one identifier, which stands for either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Neither.
    Keep,
    /// The source port.
    Source(u16),
    /// The destination port.
    Destination(u16),
}

/// What a translated packet gets in place of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewrite<A> {
    /// Source.
    pub source: A,
    /// Destination.
    pub destination: A,
    /// The changed port.
    pub port: Port,
    /// TTL or hop limit.
    pub hops: u8,
    /// Whether the packet is the beginning of one, quoted in an ICMP error: its transport header may be cut.
    pub quoted: bool,
}
