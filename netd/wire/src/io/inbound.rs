//! UDP to TUN: receives joined datagrams, decrypts runs of one peer under one lock, joins flows, writes super-packets.
use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use boringtun::noise::{Packet, TunnResult, handshake::parse_handshake_anon};
use weft_tun::{Tun, VnetHdr};

use super::{
    Error,
    udp::{RECEIVE_SLOTS, ReceiveRing, SLOT_LEN, SharedSocket},
};
use crate::{
    coalesce::{Coalescer, Part},
    counters::Drop,
    engine::Engine,
    peer::{Opened, Peer, receiver_index},
    table::Table,
};

/// Type and zeroes of a data message.
const DATA: [u8; 4] = [4, 0, 0, 0];

pub(super) fn run(engine: &Engine, tun: &Tun, socket: &SharedSocket) -> Result<(), Error> {
    let mut ring = ReceiveRing::new();
    // A datagram decrypts to less than its length, and boringtun wants as much room as that.
    let mut inbound = Inbound {
        engine,
        socket,
        arena: vec![0; (RECEIVE_SLOTS + 1) * SLOT_LEN],
        used: 0,
        coalescer: Coalescer::new(tun.uso()),
    };
    loop {
        let count = match socket.current().receive(&mut ring) {
            Ok(count) => count,
            // A socket that was replaced answers with nothing, or with its last errors.
            Err(error) if may_pass(&error) => continue,
            Err(error) => return Err(Error::io("cannot receive from the UDP socket", error, "start again")),
        };
        for (from, size, datagrams) in ring.filled(count) {
            inbound.slot(tun, from, size, datagrams);
        }
        inbound.finish(tun);
    }
}

fn may_pass(error: &io::Error) -> bool {
    let fatal = [libc::EBADF, libc::ENOTSOCK, libc::EFAULT];
    !error.raw_os_error().is_some_and(|errno| fatal.contains(&errno))
}

struct Inbound<'a> {
    engine: &'a Engine,
    socket: &'a SharedSocket,
    /// Decrypted packets, until they are written.
    arena: Vec<u8>,
    used: usize,
    coalescer: Coalescer,
}

impl Inbound<'_> {
    /// The datagrams of one receive, each `size` long but the last.
    fn slot(&mut self, tun: &Tun, from: SocketAddr, size: usize, datagrams: &[u8]) {
        let mut rest = datagrams;
        while let Some(head) = rest.first_chunk::<8>() {
            // A run of one session's data messages is opened under one lock.
            let mut run = rest.chunks(size).take_while(|one| head.starts_with(&DATA) && one.starts_with(head)).count();
            if run == 0 {
                run = 1;
                self.handshake(rest.get(..size).unwrap_or(rest), from);
            } else {
                self.data(tun, rest.chunks(size).take(run), *head, from);
            }
            rest = rest.get(run * size..).unwrap_or_default();
        }
        if !rest.is_empty() {
            self.engine.counters.drop(Drop::MalformedOuter);
        }
    }

    fn data<'a>(&mut self, tun: &Tun, run: impl Iterator<Item = &'a [u8]>, head: [u8; 8], from: SocketAddr) {
        let (engine, socket) = (self.engine, self.socket);
        let counters = &engine.counters;
        let [.., a, b, c, d] = head;
        let receiver = u32::from_le_bytes([a, b, c, d]);
        let mut write = |vnet: &VnetHdr, arena: &[u8], parts: &[Part]| write_run(engine, tun, vnet, arena, parts);
        // The table before the session: the order in which changes take them too.
        let table = engine.table();
        let Some(peer) = table.by_receiver(receiver) else {
            counters.drop_many(Drop::UnknownIndex, run.count() as u64);
            return self.unknown(&table, from);
        };
        let mut session = peer.session();
        let (now, mut admitted, mut lost) = (Instant::now(), None, false);
        for message in run {
            let room = self.used..self.used + message.len();
            let opened = session.open(peer, now, from, message, self.arena.get_mut(room).unwrap_or_default());
            match opened {
                Opened::Packet(len, source) => {
                    // Packets of a run mostly have one source.
                    if admitted != Some(source) {
                        if let Err(reason) = table.admits(peer, source) {
                            counters.drop(reason);
                            continue;
                        }
                        admitted = Some(source);
                    }
                    let part = self.used..self.used + len;
                    self.used = part.end;
                    self.coalescer.push(&mut self.arena, part, &mut write);
                }
                Opened::Keepalive => {}
                Opened::Refused(reason) => {
                    counters.drop(reason);
                    lost |= reason == Drop::NoSession;
                }
            }
        }
        if session.take_confirmed() {
            session.flush(peer, &mut |message, to| socket.send_one(counters, message, to));
        }
        drop(session);
        engine.timers.schedule(peer);
        if lost {
            self.unknown(&table, from);
        }
    }

    /// Data for a session that we do not have: this process, or its peer's session, was restarted. If it comes from where a
    /// peer is configured to be, that peer is offered a new session at once, instead of in the 15 seconds after which it
    /// would notice. A forged source costs one handshake message to the true peer, and no more until that is answered.
    fn unknown(&self, table: &Table, from: SocketAddr) {
        let (Some(peer), Some(identity)) = (table.by_endpoint(&from), &table.identity) else { return };
        let mut session = peer.session();
        session.begin(peer, identity, Instant::now(), &mut |message, to| {
            self.socket.send_one(&self.engine.counters, message, to);
        });
        drop(session);
        self.engine.timers.schedule(peer);
    }

    /// Initiations, responses and cookies.
    fn handshake(&self, message: &[u8], from: SocketAddr) {
        if let Err(reason) = self.try_handshake(message, from) {
            self.engine.counters.drop(reason);
        }
    }

    fn try_handshake(&self, message: &[u8], from: SocketAddr) -> Result<(), Drop> {
        let (engine, socket) = (self.engine, self.socket);
        let (identity, table) = {
            let table = engine.table();
            (table.identity.clone().ok_or(Drop::NoKey)?, table)
        };
        drop(table);
        identity.limiter.reset_count();
        let mut cookie = [0; 64];
        let parsed = match identity.limiter.verify_packet(Some(from.ip()), message, &mut cookie) {
            Ok(parsed) => parsed,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                socket.send_one(&engine.counters, cookie, from);
                return Err(Drop::CookieSent);
            }
            Err(TunnResult::Err(boringtun::noise::errors::WireGuardError::InvalidMac)) => return Err(Drop::InvalidMac),
            Err(_) => return Err(Drop::MalformedOuter),
        };
        let peer: Arc<Peer> = if let Packet::HandshakeInit(initiation) = &parsed {
            // The costly part, without any lock.
            let half = parse_handshake_anon(&identity.dalek_secret, &identity.dalek_public, initiation)
                .map_err(|_| Drop::HandshakeRefused)?;
            let key = crate::Key::from_bytes(half.peer_static_public);
            Arc::clone(engine.table().by_key(&key).ok_or(Drop::UnknownPeer)?)
        } else {
            let receiver = receiver_index(message).ok_or(Drop::MalformedOuter)?;
            Arc::clone(engine.table().by_receiver(receiver).ok_or(Drop::UnknownIndex)?)
        };
        let mut send = |message: &[u8], to| socket.send_one(&engine.counters, message, to);
        peer.session().handshake(&peer, &identity, Instant::now(), (message, from), &mut send)?;
        engine.timers.schedule(&peer);
        Ok(())
    }

    fn finish(&mut self, tun: &Tun) {
        let engine = self.engine;
        let mut write = |vnet: &VnetHdr, arena: &[u8], parts: &[Part]| write_run(engine, tun, vnet, arena, parts);
        self.coalescer.flush(&mut self.arena, &mut write);
        self.used = 0;
    }
}

fn write_run(engine: &Engine, tun: &Tun, vnet: &VnetHdr, arena: &[u8], parts: &[Part]) {
    let header = vnet.encode();
    let mut slices = [IoSlice::new(&[]); 65];
    let mut count = 1;
    if let Some(first) = slices.first_mut() {
        *first = IoSlice::new(&header);
    }
    for (slice, part) in slices.iter_mut().skip(1).zip(parts) {
        *slice = IoSlice::new(arena.get(part.clone()).unwrap_or_default());
        count += 1;
    }
    if let Err(error) = tun.write_vectored(slices.get(..count).unwrap_or_default()) {
        tracing::debug!(%error, "the TUN refused a packet");
        engine.counters.drop_many(Drop::TunRefused, parts.len() as u64);
    }
}
