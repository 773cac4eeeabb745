//! The UDP socket: IPv4 and IPv6 on one descriptor, segmented sends (UDP_SEGMENT), and joined receives (UDP_GRO, recvmmsg).
#![allow(unsafe_code)]

use std::{
    io,
    mem::{self, size_of},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use libc::{c_int, c_void, iovec, mmsghdr, msghdr, sockaddr_in6, socklen_t};

use crate::counters::{Counters, Drop};

/// How many datagrams (each up to 64 segments) one system call receives.
pub(super) const RECEIVE_SLOTS: usize = 8;
/// The longest datagram, also when joined.
pub(super) const SLOT_LEN: usize = 1 << 16;

/// What the socket may hold in the kernel: a few milliseconds at 10 Gbit/s.
const SOCKET_BUFFER: c_int = 7 << 20;
/// Bytes of control messages for one message: one int, with its header, is 24.
const CONTROL_LEN: usize = 64;
const UDP_SEGMENT: c_int = 103;
const UDP_GRO: c_int = 104;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_LEN]);

/// A bound socket.
pub(super) struct UdpSocket {
    fd: OwnedFd,
    port: u16,
}

impl UdpSocket {
    fn bind(port: u16, mark: u32) -> io::Result<Self> {
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave this descriptor to us alone.
        let mut socket = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, port };
        socket.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
        for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
            // Forcing needs CAP_NET_ADMIN; without it the kernel gives what rmem_max and wmem_max allow.
            socket
                .set(libc::SOL_SOCKET, force, SOCKET_BUFFER)
                .or_else(|_| socket.set(libc::SOL_SOCKET, plain, SOCKET_BUFFER))?;
        }
        // Without it datagrams merely come one by one.
        let _ = socket.set(libc::SOL_UDP, UDP_GRO, 1);
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        let address = to_kernel(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)));
        // SAFETY: the address is a live sockaddr_in6 of the length that is given.
        if unsafe { libc::bind(fd, (&raw const address).cast(), size_of::<sockaddr_in6>() as socklen_t) } < 0 {
            return Err(io::Error::last_os_error());
        }
        socket.port = socket.local_port()?;
        Ok(socket)
    }

    fn set(&self, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
        let (pointer, len) = ((&raw const value).cast::<c_void>(), size_of::<c_int>() as socklen_t);
        // SAFETY: the pointer is to a live int and the length is its size.
        check(unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, name, pointer, len) } as isize).map(drop)
    }

    pub(super) fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())
    }

    fn local_port(&self) -> io::Result<u16> {
        // SAFETY: sockaddr_in6 is plain integers: all zeroes is a valid value.
        let mut address: sockaddr_in6 = unsafe { mem::zeroed() };
        let mut len = size_of::<sockaddr_in6>() as socklen_t;
        // SAFETY: both pointers are to live, writable values, and the length is the address's size.
        check(unsafe { libc::getsockname(self.fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len) } as isize)?;
        Ok(u16::from_be(address.sin6_port))
    }

    /// Sends one datagram, or, with `segment`, as many as `bytes` has parts of that length (the last may be shorter).
    pub(super) fn send(&self, bytes: &[u8], segment: Option<u16>, to: SocketAddr) -> io::Result<()> {
        let mut address = to_kernel(to);
        let mut vector = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut control = Control([0; CONTROL_LEN]);
        // SAFETY: msghdr is plain integers and pointers: all zeroes is a valid value.
        let mut message: msghdr = unsafe { mem::zeroed() };
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = size_of::<sockaddr_in6>() as socklen_t;
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        if let Some(segment) = segment {
            message.msg_control = (&raw mut control).cast();
            // SAFETY: CMSG_SPACE and CMSG_LEN compute on numbers. CMSG_FIRSTHDR gives the start of `control`, which is
            // aligned and has room for one header and a u16; CMSG_DATA gives the place behind that header.
            unsafe {
                message.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as usize;
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                (*header).cmsg_level = libc::SOL_UDP;
                (*header).cmsg_type = UDP_SEGMENT;
                (*header).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as usize;
                ptr::write_unaligned(libc::CMSG_DATA(header).cast::<u16>(), segment);
            }
        }
        // SAFETY: every pointer in the message is to a live value of the length beside it; sendmsg only reads them.
        check(unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, 0) }).map(drop)
    }

    /// Waits for datagrams and takes what is there, at most [`RECEIVE_SLOTS`]. Returns how many slots are filled.
    pub(super) fn receive(&self, ring: &mut ReceiveRing) -> io::Result<usize> {
        // SAFETY: these are arrays of plain integers and pointers: all zeroes is a valid value.
        let (mut vectors, mut messages): ([iovec; RECEIVE_SLOTS], [mmsghdr; RECEIVE_SLOTS]) = unsafe { mem::zeroed() };
        // SAFETY: sockaddr_in6 is plain integers: all zeroes is a valid value.
        let mut addresses: [sockaddr_in6; RECEIVE_SLOTS] = unsafe { mem::zeroed() };
        let mut controls = [Control([0; CONTROL_LEN]); RECEIVE_SLOTS];
        let slots = ring.bytes.chunks_exact_mut(SLOT_LEN);
        for ((((message, vector), address), control), slot) in
            messages.iter_mut().zip(&mut vectors).zip(&mut addresses).zip(&mut controls).zip(slots)
        {
            *vector = iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            message.msg_hdr.msg_name = (&raw mut *address).cast();
            message.msg_hdr.msg_namelen = size_of::<sockaddr_in6>() as socklen_t;
            message.msg_hdr.msg_iov = &raw mut *vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = (&raw mut *control).cast();
            message.msg_hdr.msg_controllen = CONTROL_LEN;
        }
        // SAFETY: every pointer in the messages is to a live, writable value of the length beside it, each its own, and
        // the count is the array's; a null timeout is none.
        let received = unsafe {
            let flags = libc::MSG_WAITFORONE;
            libc::recvmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), RECEIVE_SLOTS as u32, flags, ptr::null_mut())
        };
        let received = check(received as isize)?;
        for ((meta, message), address) in ring.metas.iter_mut().zip(&messages).zip(&addresses).take(received) {
            let len = (message.msg_len as usize).min(SLOT_LEN);
            let cut = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            let segment = segment_size(&message.msg_hdr).filter(|size| *size > 0).unwrap_or(len.max(1));
            *meta = Meta { len: if cut { 0 } else { len }, segment, from: from_kernel(address) };
        }
        Ok(received)
    }

    /// Wakes whoever waits in [`UdpSocket::receive`]; nothing is received any more.
    fn close_for_receiving(&self) {
        // SAFETY: takes numbers only. It answers ENOTCONN for an unconnected socket, and wakes its readers all the same.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_RD) };
    }
}

/// The length of the datagrams that a receive joined, if it did.
fn segment_size(message: &msghdr) -> Option<usize> {
    // SAFETY: the kernel filled in the control buffer that the message points to, which lives in the caller, and its
    // length; the CMSG functions stay within it. UDP_GRO carries one int.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_UDP && (*header).cmsg_type == UDP_GRO {
                let size = ptr::read_unaligned(libc::CMSG_DATA(header).cast::<c_int>());
                return usize::try_from(size).ok();
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// IPv4 travels as ::ffff:a.b.c.d.
fn to_kernel(address: SocketAddr) -> sockaddr_in6 {
    let (ip, flow, scope) = match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0, 0),
        SocketAddr::V6(v6) => (*v6.ip(), v6.flowinfo(), v6.scope_id()),
    };
    sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: address.port().to_be(),
        sin6_flowinfo: flow,
        sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
        sin6_scope_id: scope,
    }
}

fn from_kernel(address: &sockaddr_in6) -> SocketAddr {
    let (ip, port) = (Ipv6Addr::from(address.sin6_addr.s6_addr), u16::from_be(address.sin6_port));
    match ip.to_ipv4_mapped() {
        Some(v4) => (v4, port).into(),
        None => SocketAddrV6::new(ip, port, 0, address.sin6_scope_id).into(),
    }
}

#[derive(Clone, Copy)]
struct Meta {
    len: usize,
    segment: usize,
    from: SocketAddr,
}

/// Where received datagrams lie.
pub(super) struct ReceiveRing {
    bytes: Vec<u8>,
    metas: [Meta; RECEIVE_SLOTS],
}

impl ReceiveRing {
    pub(super) fn new() -> Self {
        let nowhere = Meta { len: 0, segment: 1, from: (Ipv6Addr::UNSPECIFIED, 0).into() };
        Self { bytes: vec![0; RECEIVE_SLOTS * SLOT_LEN], metas: [nowhere; RECEIVE_SLOTS] }
    }

    /// The filled slots: the sender, the length of each datagram in it, and the datagrams.
    pub(super) fn filled(&self, count: usize) -> impl Iterator<Item = (SocketAddr, usize, &[u8])> {
        let slots = self.bytes.chunks_exact(SLOT_LEN).zip(&self.metas).take(count);
        slots.map(|(slot, meta)| (meta.from, meta.segment, slot.get(..meta.len).unwrap_or_default()))
    }
}

/// The socket that all threads use; another port puts another one in its place.
pub(super) struct SharedSocket {
    current: RwLock<Arc<UdpSocket>>,
    mark: AtomicU32,
}

impl SharedSocket {
    pub(super) fn bind(port: u16, mark: u32) -> io::Result<Self> {
        let current = RwLock::new(Arc::new(UdpSocket::bind(port, mark)?));
        Ok(Self { current, mark: AtomicU32::new(mark) })
    }

    pub(super) fn current(&self) -> Arc<UdpSocket> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn port(&self) -> u16 {
        self.current().port
    }

    pub(super) fn mark(&self) -> u32 {
        self.mark.load(Relaxed)
    }

    pub(super) fn set_mark(&self, mark: u32) -> io::Result<()> {
        if mark != self.mark() {
            self.current().set_mark(mark)?;
            self.mark.store(mark, Relaxed);
        }
        Ok(())
    }

    /// Moves to another port; stays where it is if that one cannot be had.
    pub(super) fn set_port(&self, port: u16) -> io::Result<()> {
        if port == self.port() {
            return Ok(());
        }
        let new = Arc::new(UdpSocket::bind(port, self.mark())?);
        let old = mem::replace(&mut *self.current.write().unwrap_or_else(PoisonError::into_inner), new);
        old.close_for_receiving();
        Ok(())
    }

    /// Sends one datagram; counts it if that fails.
    pub(super) fn send_one(&self, counters: &Counters, message: &[u8], to: SocketAddr) {
        if let Err(error) = self.current().send(message, None, to) {
            tracing::debug!(%to, %error, "a datagram was not sent");
            counters.drop(Drop::SendFailed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segmented_send_arrives_as_its_datagrams() {
        let (a, b) = (UdpSocket::bind(0, 0).unwrap(), UdpSocket::bind(0, 0).unwrap());
        for target in ["127.0.0.1".parse::<std::net::IpAddr>().unwrap(), Ipv6Addr::LOCALHOST.into()] {
            let bytes: Vec<u8> = (0..3500u32).map(|at| (at / 1000) as u8).collect();
            a.send(&bytes, Some(1000), (target, b.port).into()).unwrap();
            let mut ring = ReceiveRing::new();
            let mut datagrams = Vec::new();
            while datagrams.len() < 4 {
                let count = b.receive(&mut ring).unwrap();
                for (from, segment, bytes) in ring.filled(count) {
                    assert_eq!((from.ip(), from.port()), (target, a.port));
                    datagrams.extend(bytes.chunks(segment).map(<[u8]>::to_vec));
                }
            }
            assert_eq!(datagrams.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 1000, 500]);
            assert!(
                datagrams.iter().enumerate().all(|(at, datagram)| datagram.iter().all(|byte| usize::from(*byte) == at))
            );
        }
    }

    #[test]
    fn another_port_wakes_the_reader_and_takes_over() {
        let shared = Arc::new(SharedSocket::bind(0, 0).unwrap());
        let before = shared.current();
        let reader = std::thread::spawn(move || before.receive(&mut ReceiveRing::new()).map_or(0, |count| count));
        let spare = UdpSocket::bind(0, 0).unwrap().port;
        shared.set_port(spare).unwrap();
        assert_eq!(shared.port(), spare);
        reader.join().unwrap();
        assert!(shared.set_port(UdpSocket::bind(0, 0).map(|other| other.port).unwrap()).is_ok());
    }
}
