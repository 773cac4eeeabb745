//! Raw frames, as root inside a workspace would send them: built by hand, sent through a packet socket.
#![allow(unsafe_code)]
use std::{
    io,
    net::Ipv6Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use weft_test_support::Netns;

pub(crate) const HOST_MAC: [u8; 6] = [2, 0x57, 0, 0, 0, 1];

/// Sends a frame out of an interface of a netns.
pub(crate) fn send(netns: &Netns, interface: &str, frame: &[u8]) {
    netns.run(|| send_here(interface, frame)).unwrap().unwrap();
}

fn send_here(interface: &str, frame: &[u8]) -> io::Result<()> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave it to us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a plain structure of integers.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = nix::net::if_::if_nametoindex(interface)? as i32;
    to.sll_halen = 6;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: both pointers are those of live values of the given lengths.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, std::ptr::from_ref(&to).cast(), length)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(crate) fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

pub(crate) fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x60, 0, 0, 0, length[0], length[1], next, hop_limit], &src.octets()[..], &dst.octets(), payload].concat()
}

fn sum(mut words: u32, bytes: &[u8]) -> u32 {
    for pair in bytes.chunks(2) {
        words += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    words
}

/// Fills in the checksum at an offset of an upper-layer packet.
pub(crate) fn checksummed(src: Ipv6Addr, dst: Ipv6Addr, next: u8, at: usize, mut payload: Vec<u8>) -> Vec<u8> {
    let mut total = sum(sum(u32::from(next) + payload.len() as u32, &src.octets()), &dst.octets());
    total = sum(total, &payload);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    payload[at..at + 2].copy_from_slice(&(!(total as u16)).to_be_bytes());
    payload
}

pub(crate) fn udp(src: Ipv6Addr, dst: Ipv6Addr, sport: u16, dport: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).unwrap();
    let header = [sport.to_be_bytes(), dport.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    ipv6(src, dst, 17, 64, &checksummed(src, dst, 17, 6, [&header, data].concat()))
}

pub(crate) fn udp4(src: [u8; 4], dst: [u8; 4], sport: u16, dport: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(28 + data.len()).unwrap().to_be_bytes();
    let mut header = [&[0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 17, 0, 0][..], &src, &dst].concat();
    let mut total = sum(0, &header);
    total = (total & 0xffff) + (total >> 16);
    header[10..12].copy_from_slice(&(!(total as u16)).to_be_bytes());
    let length = u16::try_from(8 + data.len()).unwrap().to_be_bytes();
    [&header[..], &sport.to_be_bytes(), &dport.to_be_bytes(), &length, &[0, 0], data].concat()
}

pub(crate) fn echo(src: Ipv6Addr, dst: Ipv6Addr, kind: u8) -> Vec<u8> {
    ipv6(src, dst, 58, 64, &checksummed(src, dst, 58, 2, vec![kind, 0, 0, 0, 0, 1, 0, 1]))
}
