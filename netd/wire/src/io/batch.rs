//! Datagrams on their way out: encrypted side by side, so that one system call sends up to 64 of them.
use std::{io, net::SocketAddr, ops::Range};

use super::udp::UdpSocket;
use crate::{
    counters::{Counters, Drop},
    peer::HANDSHAKE_ROOM,
};

/// The most datagrams of one segmented send (UDP_MAX_SEGMENTS of older kernels).
const MAX_SEGMENTS: usize = 64;
/// The most bytes of one segmented send: an IP packet's worth, less all headers.
const MAX_SEND: usize = 65_000;
/// When to send without waiting for more. Small enough to stay in a core's cache.
const FULL: usize = 3 * MAX_SEND / 2;
/// Room for a super-packet cut into datagrams of 1 byte of payload would be megabytes; what does not fit is sent first.
const CAPACITY: usize = 4 * MAX_SEND;

struct Send {
    to: SocketAddr,
    bytes: Range<usize>,
    segment: usize,
    count: usize,
    /// A shorter datagram ends a segmented send.
    closed: bool,
    plain: bool,
}

/// Datagrams that are encrypted and not yet sent.
pub(super) struct Batch {
    bytes: Vec<u8>,
    len: usize,
    sends: Vec<Send>,
    refused: Vec<SocketAddr>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; CAPACITY], len: 0, sends: Vec::new(), refused: Vec::new() }
    }

    /// Where to encrypt the next datagram of at most `len` bytes to; `None` if the batch must be sent first.
    pub(super) fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        self.bytes.get_mut(self.len..).filter(|rest| rest.len() >= len.max(HANDSHAKE_ROOM))
    }

    /// Keeps the first `len` bytes of the slot as a datagram. `plain`: the path takes no segmented sends.
    pub(super) fn commit(&mut self, len: usize, to: SocketAddr, plain: bool) {
        let start = self.len;
        self.len += len;
        if let Some(last) = self.sends.last_mut() {
            let fits = last.count < MAX_SEGMENTS && last.bytes.len() + len <= MAX_SEND && len <= last.segment;
            if fits && last.to == to && !last.closed && !plain && !last.plain {
                last.bytes.end = self.len;
                last.count += 1;
                last.closed = len < last.segment;
                return;
            }
        }
        self.sends.push(Send { to, bytes: start..self.len, segment: len, count: 1, closed: false, plain });
    }

    /// Whether it is time to send.
    pub(super) fn is_full(&self) -> bool {
        self.len >= FULL
    }

    /// The endpoints whose paths refused segmented sends since this was last asked.
    pub(super) fn take_refused(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.refused)
    }

    /// Sends all of it.
    pub(super) fn flush(&mut self, socket: &UdpSocket, counters: &Counters) {
        for send in self.sends.drain(..) {
            let bytes = self.bytes.get(send.bytes).unwrap_or_default();
            let segment = if send.count > 1 { u16::try_from(send.segment).ok() } else { None };
            match socket.send(bytes, segment, send.to) {
                Ok(()) => {}
                Err(error) if segment.is_some() && is_refusal(&error) => {
                    // The route's MTU is below a datagram's length, or the device cannot sum: IP fragments do it.
                    tracing::info!(to = %send.to, %error, "the path takes no segmented sends, sending singly for a while");
                    self.refused.push(send.to);
                    let failed =
                        bytes.chunks(send.segment).filter(|one| socket.send(one, None, send.to).is_err()).count();
                    counters.drop_many(Drop::SendFailed, failed as u64);
                }
                Err(error) => {
                    tracing::debug!(to = %send.to, %error, "datagrams were not sent");
                    counters.drop_many(Drop::SendFailed, send.count as u64);
                }
            }
        }
        self.len = 0;
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO))
}
