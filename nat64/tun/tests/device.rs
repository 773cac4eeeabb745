//! TUN devices against the kernel, in network namespaces of their own (root is needed).
#![allow(clippy::unwrap_used)]
use std::{
    io::{ErrorKind, IoSlice},
    net::UdpSocket,
    os::fd::AsFd,
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
};
use weft_tun::{MAX_READ, NEEDS_CSUM, Options, Tun, VNET_HDR_LEN, VnetHdr, link_info, set_up};

/// Runs a test on a thread in a network namespace of its own, which ends with the thread.
fn in_own_netns(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests of TUN devices need root");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Reads the next packet that `wanted` accepts, before a deadline.
fn read_until(tun: &Tun, wanted: impl Fn(&[u8]) -> bool) -> (VnetHdr, Vec<u8>) {
    let end = Instant::now() + Duration::from_secs(5);
    let mut buf = vec![0; MAX_READ];
    while Instant::now() < end {
        let mut fds = [PollFd::new(tun.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(100u16)).unwrap();
        match tun.read(&mut buf) {
            Ok(len) => {
                let (header, packet) = VnetHdr::parse(&buf[..len]).unwrap();
                if wanted(packet) {
                    return (header, packet.to_vec());
                }
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    panic!("no such packet came");
}

#[test]
fn creating_twice_leaves_one_persistent_device_also_while_it_is_in_use() {
    in_own_netns(|| {
        Tun::create_persistent("wt0", Options::default()).unwrap();
        let first = link_info("wt0").unwrap().unwrap();
        assert!(first.persistent && first.multi_queue && first.layer3, "{first:?}");
        let queues = [Tun::open("wt0", Options::default()).unwrap(), Tun::open("wt0", Options::default()).unwrap()];
        Tun::create_persistent("wt0", Options::default()).unwrap();
        drop(queues);
        assert_eq!(link_info("wt0").unwrap().unwrap().index, first.index);
    });
}

#[test]
fn a_device_that_is_missing_or_of_another_kind_is_refused_with_a_way_out() {
    in_own_netns(|| {
        let missing = Tun::open("wt0", Options::default()).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert_eq!(link_info("wt0").unwrap(), None, "opening must not create");
        Tun::create_persistent("wt0", Options { multi_queue: false, offload: true }).unwrap();
        let single = Tun::open("wt0", Options::default()).unwrap_err();
        assert!(single.to_string().contains("ip link delete wt0"), "{single}");
        let again = Tun::create_persistent("wt0", Options::default()).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        ip("link add wt1 type veth peer name wt2");
        assert!(Tun::create_persistent("wt1", Options::default()).unwrap_err().to_string().contains("is no TUN"));
        for bad in ["", "a/b", "0123456789abcdef", "a b", "a%d"] {
            assert_eq!(Tun::create_persistent(bad, Options::default()).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    });
}

#[test]
fn packets_pass_both_ways_with_partial_checksums() {
    in_own_netns(|| {
        Tun::create_persistent("wt0", Options::default()).unwrap();
        let tun = Tun::open("wt0", Options::default()).unwrap();
        set_up("wt0", 1420).unwrap();
        assert_eq!(link_info("wt0").unwrap().unwrap().mtu, 1420);
        ip("address add 2001:db8::1/64 dev wt0 nodad");
        let socket = UdpSocket::bind("[2001:db8::1]:7000").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(b"out", "[2001:db8::2]:7001").unwrap();
        let (header, mut packet) = read_until(&tun, |packet| packet.get(6) == Some(&17));
        assert!(header.needs_csum());
        assert_eq!((header.csum_start, header.csum_offset), (40, 6));
        assert_eq!(&packet[48..], b"out");
        // Sent back with addresses and ports swapped: the partial checksum stays right.
        let (source, destination) = (packet[8..24].to_vec(), packet[24..40].to_vec());
        packet[8..24].copy_from_slice(&destination);
        packet[24..40].copy_from_slice(&source);
        packet.swap(40, 42);
        packet.swap(41, 43);
        let header = VnetHdr { flags: NEEDS_CSUM, csum_start: 40, csum_offset: 6, ..VnetHdr::default() }.encode();
        let written = tun.write_vectored(&[IoSlice::new(&header), IoSlice::new(&packet)]).unwrap();
        assert_eq!(written, VNET_HDR_LEN + packet.len());
        let mut buf = [0; 16];
        let (len, from) = socket.recv_from(&mut buf).unwrap();
        assert_eq!((&buf[..len], from.to_string().as_str()), (&b"out"[..], "[2001:db8::2]:7001"));
    });
}
