//! A thread for each queue: read, translate under the lock, write.
use std::{
    io::{self, ErrorKind, IoSlice},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::Context;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};
use weft_nat64_core::{Engine, HEADROOM, Offload, PacketBuf, Reason, Verdict};
use weft_tun::{MAX_READ, Tun, VNET_HDR_LEN, VnetHdr};

use crate::vnet;

/// How many packets are read before the other descriptors are looked at again.
const BATCH: usize = 128;

/// What went over the device, besides what the engine counts.
#[derive(Debug, Default)]
pub(crate) struct IoCounters {
    /// Reads.
    pub(crate) reads: AtomicU64,
    /// Writes.
    pub(crate) writes: AtomicU64,
    /// Writes that the kernel refused.
    pub(crate) write_errors: AtomicU64,
}

/// What all threads share.
pub(crate) struct Shared {
    pub(crate) engine: Mutex<Engine>,
    pub(crate) io: IoCounters,
}

impl Shared {
    /// The engine; a thread that panicked left it whole enough to drop packets, never to stop for ever.
    pub(crate) fn engine(&self) -> std::sync::MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds that also pass while the machine sleeps: sessions end by the clock of their peers.
pub(crate) fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(|time| time.tv_sec() as u64 * 1000 + time.tv_nsec() as u64 / 1_000_000)
        .unwrap_or_default()
}

/// Translates what comes from a queue until `stop` is readable.
pub(crate) fn serve(shared: &Shared, tun: &Tun, stop: BorrowedFd<'_>) -> anyhow::Result<()> {
    let mut buf = vec![0; HEADROOM + MAX_READ];
    loop {
        let mut fds = [PollFd::new(tun.as_fd(), PollFlags::POLLIN), PollFd::new(stop, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result.context("cannot poll the TUN device: restart nat64")?,
        };
        let [queue, stop] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if !stop.is_empty() {
            return Ok(());
        }
        if queue.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL) {
            anyhow::bail!("the TUN device is gone: start nat64 again once it is back");
        }
        for _ in 0..BATCH {
            match one(shared, tun, &mut buf) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read the TUN device: start nat64 again"),
            }
        }
    }
}

/// Reads one packet and sends what becomes of it. Errors are those of reading.
fn one(shared: &Shared, tun: &Tun, buf: &mut [u8]) -> io::Result<()> {
    let front = HEADROOM - VNET_HDR_LEN;
    let len = tun.read(buf.get_mut(front..).unwrap_or_default())?;
    shared.io.reads.fetch_add(1, Relaxed);
    let header = buf.get(front..front + len).and_then(VnetHdr::parse).map(|(header, _)| header);
    let offload = header.as_ref().and_then(vnet::offload);
    let (Some(mut offload), Some(mut packet)) = (offload, PacketBuf::new(buf, HEADROOM, front + len)) else {
        shared.engine().note_drop(Reason::BadOffload);
        return Ok(());
    };
    let verdict = shared.engine().translate(now(), &mut random, &mut packet, &mut offload);
    match verdict {
        Verdict::Forward | Verdict::Reply(_) => write(shared, tun, &offload, packet.bytes()),
        Verdict::Split(packets) => {
            for packet in packets {
                write(shared, tun, &Offload::default(), &packet);
            }
        }
        Verdict::Drop(reason) => tracing::trace!(%reason, "dropped"),
    }
    Ok(())
}

fn write(shared: &Shared, tun: &Tun, offload: &Offload, packet: &[u8]) {
    let header = vnet::header(offload).encode();
    shared.io.writes.fetch_add(1, Relaxed);
    if let Err(error) = tun.write_vectored(&[IoSlice::new(&header), IoSlice::new(packet)]) {
        // A full queue or a device that is down: the packet is lost like on any link.
        shared.io.write_errors.fetch_add(1, Relaxed);
        tracing::debug!(%error, "the TUN device refused a packet");
    }
}

/// For a new mapping. Without randomness its port is the first free one: guessable, but traffic goes on.
fn random() -> u64 {
    getrandom::u64().unwrap_or_default()
}
