//! WireGuard in user space: one process that holds a TUN and a UDP socket, and nothing else.
//!
//! Handshake, timers and encryption are boringtun's `Tunn` (docs/adr/0003-wireguard-sessions.md); the device around it is
//! ours: segmentation offload on both sides, peers that cost nothing until they are used, and configuration by deltas while
//! packets flow. The pure parts ([`allowed_ips`], [`config`], [`uapi`], segmentation, coalescing, the table of peers) know
//! no descriptor; all unsafe code is in `io`.
//!
//! Deliberately not here: names as endpoints, several endpoints a peer, and a choice of the local address.

pub mod allowed_ips;
mod coalesce;
pub mod config;
pub mod counters;
mod engine;
mod io;
pub mod key;
mod packet;
mod peer;
mod segment;
#[cfg(test)]
mod sessions;
mod table;
pub mod uapi;

pub use io::{Args, Error, run};
pub use key::{Key, Secret, keypair, public_key};
