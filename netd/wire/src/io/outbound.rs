//! TUN to UDP: reads super-packets, cuts and encrypts them side by side, sends them with few system calls.
use std::{io, os::fd::AsFd, sync::Arc, time::Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weft_tun::{MAX_READ, Tun, VNET_HDR_LEN, VnetHdr};

use super::{Error, batch::Batch, udp::SharedSocket};
use crate::{
    counters::Drop,
    engine::Engine,
    packet,
    peer::{DATA_OVERHEAD, Sealed},
    segment::{TAIL_ROOM, for_each_segment},
};

pub(super) fn run(engine: &Engine, tun: &Tun, mtu: usize, socket: &SharedSocket) -> Result<(), Error> {
    let mut buf = vec![0; MAX_READ + TAIL_ROOM];
    let mut batch = Batch::new();
    loop {
        match tun.read(buf.get_mut(..MAX_READ).unwrap_or_default()) {
            Ok(len) => {
                take(engine, &mut buf, len, mtu, &mut batch, socket);
                if batch.is_full() {
                    flush(engine, &mut batch, socket);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                flush(engine, &mut batch, socket);
                wait(tun)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("cannot read from the TUN", error, "netd makes it again; start again")),
        }
    }
}

fn wait(tun: &Tun) -> Result<(), Error> {
    match poll(&mut [PollFd::new(tun.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(error) => Err(Error::io("cannot wait for the TUN", error.into(), "start again")),
    }
}

/// One read of the TUN: finds the peer, and encrypts every segment for it under one lock of its session.
fn take(engine: &Engine, buf: &mut [u8], len: usize, mtu: usize, batch: &mut Batch, socket: &SharedSocket) {
    let counters = &engine.counters;
    let Some((header, buf)) = buf.split_first_chunk_mut::<VNET_HDR_LEN>() else { return };
    let (vnet, len) = (VnetHdr::decode(header), len.saturating_sub(VNET_HDR_LEN));
    let Some(destination) = packet::destination(buf.get(..len).unwrap_or_default()) else {
        return counters.drop(Drop::MalformedInner);
    };
    let (peer, identity) = {
        let table = engine.table();
        let Some(peer) = table.route(destination) else { return counters.drop(Drop::NoPeer) };
        let Some(identity) = &table.identity else { return counters.drop(Drop::NoKey) };
        (Arc::clone(peer), Arc::clone(identity))
    };
    let mut session = peer.session();
    let Some(to) = session.endpoint() else { return counters.drop(Drop::NoEndpoint) };
    let now = Instant::now();
    let plain = !session.may_segment(now);
    let sealed = for_each_segment(&vnet, buf, len, mtu, |segment| {
        let room = segment.len() + DATA_OVERHEAD;
        if batch.slot(room).is_none() {
            batch.flush(&socket.current(), counters);
        }
        let Some(slot) = batch.slot(room) else { return counters.drop(Drop::MalformedInner) };
        match session.seal(&peer, &identity, now, segment, slot) {
            Sealed::Data(len) | Sealed::Handshake(len) => batch.commit(len, to, plain),
            Sealed::Queued => {}
            Sealed::QueueFull(len) => {
                counters.drop(Drop::QueueFull);
                if len > 0 {
                    batch.commit(len, to, plain);
                }
            }
            Sealed::Failed => counters.drop(Drop::Unsealed),
        }
    });
    drop(session);
    if sealed.is_err() {
        counters.drop(Drop::MalformedInner);
    }
    engine.timers.schedule(&peer);
}

/// Sends the batch, and remembers which paths took no segmented sends. No session is locked here.
fn flush(engine: &Engine, batch: &mut Batch, socket: &SharedSocket) {
    batch.flush(&socket.current(), &engine.counters);
    for to in batch.take_refused() {
        // Rare, so the peers are searched.
        for peer in engine.table().peers() {
            let mut session = peer.session();
            if session.endpoint() == Some(to) {
                session.refuse_segments(Instant::now());
            }
        }
    }
}
