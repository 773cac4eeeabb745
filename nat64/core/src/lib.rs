//! Translation between IPv6 and IPv4 as a pure state machine: bytes, time and randomness come as arguments.
//!
//! [`Engine`] is the stateful NAT64 of RFC 6146, or SIIT without state. It rewrites packets in place by [`rfc7915`], which
//! knows nothing of state, and finds IPv4 addresses in IPv6 ones by [`rfc6052`] and [`rfc7757`]. Super-packets (TSO, USO) with partial checksums are
//! translated whole.
#![forbid(unsafe_code)]

mod bytes;
pub mod checksum;
pub mod config;
mod engine;
mod hash;
mod offload;
pub mod packet;
mod reason;
pub mod rfc6052;
pub mod rfc6146;
pub mod rfc7757;
pub mod rfc7915;
mod trace;

pub use config::{Config, ConfigError};
pub use engine::{Counters, Engine, SourceCounters, Verdict};
pub use offload::{Gso, GsoKind, Offload, Partial};
pub use packet::{HEADROOM, PacketBuf};
pub use reason::Reason;
pub use trace::Step;
