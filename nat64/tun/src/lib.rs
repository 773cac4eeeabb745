//! TUN devices of Linux with vnet_hdr offloads, several queues and persistence: all that a packet process needs of them.
//!
//! A TUN of ours is always multi-queue ([`Options::default`]), also where one queue is used today: the kernel lets a
//! device change neither way, and `IFF_MULTI_QUEUE` must be given alike by whoever creates and whoever attaches. A
//! multi-queue device with one queue behaves as a single-queue one.
#![allow(unsafe_code)]

mod device;
mod link;
mod vnet;

pub use device::{MAX_READ, Options, Tun};
pub use link::{LinkInfo, link_info, set_up};
pub use vnet::{DATA_VALID, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET_HDR_LEN, VnetHdr};
