//! The state of a stateful NAT64 (RFC 6146): bindings and sessions (3.1, 3.2), how TCP moves them (3.5.2), ports (3.5.1.1)
//! and fragments (3.4). Mapping is endpoint-independent, filtering address-and-port-dependent by session.
pub mod fragments;
pub mod ports;
pub mod sources;
pub mod table;
pub mod tcp;

use crate::packet::Protocol;

/// An IPv6 host's end: address and port, or echo identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint6 {
    /// The protocol.
    pub protocol: Protocol,
    /// The address.
    pub address: u128,
    /// The port or identifier.
    pub port: u16,
}

/// The same host's end on the IPv4 side: an address and port of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint4 {
    /// The protocol.
    pub protocol: Protocol,
    /// The address.
    pub address: u32,
    /// The port or identifier.
    pub port: u16,
}

/// The IPv4 host at the other end; port 0 for ICMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Remote {
    /// The address.
    pub address: u32,
    /// The port.
    pub port: u16,
}

/// From which side a packet comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// From an IPv6 host.
    V6,
    /// From an IPv4 host.
    V4,
}
