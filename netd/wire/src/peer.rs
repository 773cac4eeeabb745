//! A peer and its session: what boringtun's `Tunn` needs around it to be lazy, to roam and to start again by itself.
//!
//! No sockets here: datagrams to send leave through a closure. A `Tunn` exists only while it is needed: it costs some 10 KB
//! and a Diffie-Hellman, a peer without one a few hundred bytes.
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use boringtun::{
    noise::{Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter},
    x25519::{PublicKey, StaticSecret},
};
use ipnet::IpNet;

use crate::{
    counters::{Drop, PeerCounters},
    key::{Key, Secret, public_key},
};

/// How often a session's timers are looked at while something is going on: boringtun's timers count in seconds.
const TICK_BUSY: Duration = Duration::from_millis(250);
/// And while nothing is: a session exists, and may have to expire or to send a keepalive.
const TICK_IDLE: Duration = Duration::from_secs(1);
/// What counts as busy.
const BUSY_FOR: Duration = Duration::from_secs(2);
/// How long a path that refused a segmented send is given single datagrams: its MTU may have fallen for a while only.
const PLAIN_FOR: Duration = Duration::from_secs(60);
/// No message may carry a counter beyond this (WireGuard paper 6.5: Reject-After-Messages).
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// How many packets of one peer wait for a session.
const MAX_WAITING: usize = 64;
/// And of all peers together: dead peers must not fill the memory, however many are called.
const MAX_WAITING_TOTAL: usize = 4096;

/// Length of a message's header and tag around the inner packet.
pub(crate) const DATA_OVERHEAD: usize = 32;
/// Room that a handshake message needs, whatever the packet's length.
pub(crate) const HANDSHAKE_ROOM: usize = 148;

/// This node's keys, and what is derived from them.
pub(crate) struct Identity {
    pub(crate) secret: Secret,
    pub(crate) public: Key,
    pub(crate) dalek_secret: StaticSecret,
    pub(crate) dalek_public: PublicKey,
    /// Judges handshake messages before they cost a Diffie-Hellman; shared by all peers.
    pub(crate) limiter: RateLimiter,
    /// Given to each `Tunn`, which would judge, and count, the same message again.
    unlimited: Arc<RateLimiter>,
    /// How many packets of all peers wait for a session.
    waiting: Arc<AtomicUsize>,
}

impl Identity {
    pub(crate) fn new(secret: Secret, handshakes_per_second: u64) -> Self {
        let public = public_key(&secret);
        let (dalek_secret, dalek_public) = (secret.dalek(), public.dalek());
        let limiter = RateLimiter::new(&dalek_public, handshakes_per_second);
        let unlimited = Arc::new(RateLimiter::new(&dalek_public, u64::MAX));
        let waiting = Arc::default();
        Self { secret, public, dalek_secret, dalek_public, limiter, unlimited, waiting }
    }
}

#[cfg(test)]
impl Identity {
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }
}

/// A peer: its name, and its session behind a lock.
pub(crate) struct Peer {
    pub(crate) key: Key,
    /// The upper 24 bits of the receiver indices that are drawn for it.
    pub(crate) index: u32,
    pub(crate) counters: PeerCounters,
    /// Whether the timer thread looks at it.
    pub(crate) scheduled: AtomicBool,
    session: Mutex<Session>,
}

impl Peer {
    pub(crate) fn new(key: Key, index: u32) -> Self {
        let (counters, scheduled) = (PeerCounters::default(), AtomicBool::new(false));
        Self { key, index, counters, scheduled, session: Mutex::new(Session::default()) }
    }

    /// Lock order: the table of peers first, then one session; never two sessions.
    pub(crate) fn session(&self) -> MutexGuard<'_, Session> {
        // A panic in another thread ends the process (see io); until then the state is no worse than a lost packet.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a packet that was to be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// This many bytes of data message are in the buffer.
    Data(usize),
    /// The packet waits for a session; this many bytes of handshake message are in the buffer.
    Handshake(usize),
    /// The packet waits for a session.
    Queued,
    /// Too many wait already. There may be this many bytes of handshake message in the buffer.
    QueueFull(usize),
    /// It is lost.
    Failed,
}

/// The packets of one peer that wait, as part of all that do.
#[derive(Default)]
struct Waiting {
    count: usize,
    total: Arc<AtomicUsize>,
}

impl Waiting {
    fn add(&mut self, total: &Arc<AtomicUsize>) {
        if self.count == 0 {
            self.total = Arc::clone(total);
        }
        self.count += 1;
        self.total.fetch_add(1, Relaxed);
    }

    fn clear(&mut self) {
        self.total.fetch_sub(std::mem::take(&mut self.count), Relaxed);
    }
}

impl std::ops::Drop for Waiting {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What became of a received data message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    /// An inner packet of this length, from this source, is in the buffer.
    Packet(usize, IpAddr),
    /// Authentic, and empty.
    Keepalive,
    /// Not for us.
    Refused(Drop),
}

/// What changes with a peer's configuration and traffic.
#[derive(Default)]
pub(crate) struct Session {
    tunn: Option<Box<Tunn>>,
    preshared: Option<Secret>,
    /// Seconds; 0 is off. Kept here and not in the `Tunn`, so that changing it does not end the session.
    pub(crate) keepalive: u16,
    pub(crate) allowed: BTreeSet<IpNet>,
    configured: Option<SocketAddr>,
    endpoint: Option<SocketAddr>,
    last_receiver: Option<u32>,
    confirmed: bool,
    waiting: Waiting,
    last_sent: Option<Instant>,
    last_busy: Option<Instant>,
    plain_until: Option<Instant>,
}

impl Session {
    /// Where to send now.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    /// What the configuration says of where to send.
    pub(crate) fn configured(&self) -> Option<SocketAddr> {
        self.configured
    }

    /// A configured endpoint. Saying the same one again must not undo what was learned from the peer itself.
    pub(crate) fn configure_endpoint(&mut self, endpoint: SocketAddr) {
        if self.configured != Some(endpoint) {
            self.configured = Some(endpoint);
            self.endpoint = Some(endpoint);
            self.plain_until = None;
        }
    }

    pub(crate) fn preshared(&self) -> Option<&Secret> {
        self.preshared.as_ref()
    }

    /// A change of the preshared key ends the session: it was made with the other one.
    pub(crate) fn set_preshared(&mut self, key: Option<Secret>) {
        if self.preshared != key {
            self.preshared = key;
            self.forget();
        }
    }

    /// Ends the session; the next packet begins another.
    pub(crate) fn forget(&mut self) {
        self.tunn = None;
        self.last_receiver = None;
        self.waiting.clear();
    }

    /// Whether packets can be encrypted right now.
    pub(crate) fn established(&self) -> bool {
        self.tunn.as_ref().is_some_and(|tunn| tunn.time_since_last_handshake().is_some())
    }

    /// Whether segmented sends are worth a try.
    pub(crate) fn may_segment(&mut self, now: Instant) -> bool {
        if self.plain_until.is_some_and(|until| until <= now) {
            self.plain_until = None;
        }
        self.plain_until.is_none()
    }

    /// The path refused a segmented send.
    pub(crate) fn refuse_segments(&mut self, now: Instant) {
        self.plain_until = Some(now + PLAIN_FOR);
    }

    fn wake(&mut self, peer: &Peer, identity: &Identity) -> &mut Tunn {
        let preshared = self.preshared.as_ref().map(|key| *key.expose());
        self.tunn.get_or_insert_with(|| {
            let unlimited = Arc::clone(&identity.unlimited);
            let secret = identity.dalek_secret.clone();
            Box::new(Tunn::new(secret, peer.key.dalek(), preshared, None, peer.index, Some(unlimited)))
        })
    }

    /// Encrypts a packet into `out`, or queues it and begins a handshake. `out` has room for the packet and
    /// [`DATA_OVERHEAD`], and at least [`HANDSHAKE_ROOM`].
    pub(crate) fn seal(
        &mut self,
        peer: &Peer,
        identity: &Identity,
        now: Instant,
        packet: &[u8],
        out: &mut [u8],
    ) -> Sealed {
        if out.len() < (packet.len() + DATA_OVERHEAD).max(HANDSHAKE_ROOM) {
            return Sealed::Failed;
        }
        let full = self.waiting.count >= MAX_WAITING || identity.waiting.load(Relaxed) >= MAX_WAITING_TOTAL;
        let sealed = if full && !self.established() {
            match self.wake(peer, identity).format_handshake_initiation(out, false) {
                TunnResult::WriteToNetwork(message) => Sealed::QueueFull(message.len()),
                _ => Sealed::QueueFull(0),
            }
        } else {
            match self.wake(peer, identity).encapsulate(packet, out) {
                TunnResult::WriteToNetwork(message) if message.first() == Some(&4) => Sealed::Data(message.len()),
                TunnResult::WriteToNetwork(message) => Sealed::Handshake(message.len()),
                TunnResult::Done => Sealed::Queued,
                _ => Sealed::Failed,
            }
        };
        if matches!(sealed, Sealed::Handshake(_) | Sealed::Queued) {
            self.waiting.add(&identity.waiting);
        }
        self.last_busy = Some(now);
        if let Sealed::Data(len) | Sealed::Handshake(len) | Sealed::QueueFull(len @ 1..) = sealed {
            self.last_sent = Some(now);
            peer.counters.sent(len);
        }
        sealed
    }

    /// Begins a handshake unless there is a session or a handshake under way.
    pub(crate) fn begin(
        &mut self,
        peer: &Peer,
        identity: &Identity,
        now: Instant,
        send: &mut impl FnMut(&[u8], SocketAddr),
    ) {
        let (false, Some(to)) = (self.established(), self.endpoint) else { return };
        let mut out = [0; HANDSHAKE_ROOM];
        if let TunnResult::WriteToNetwork(message) =
            self.wake(peer, identity).format_handshake_initiation(&mut out, false)
        {
            peer.counters.sent(message.len());
            send(message, to);
            self.last_sent = Some(now);
            self.last_busy = Some(now);
        }
    }

    /// Decrypts a data message into `out`, which has at least the message's length.
    pub(crate) fn open(
        &mut self,
        peer: &Peer,
        now: Instant,
        from: SocketAddr,
        message: &[u8],
        out: &mut [u8],
    ) -> Opened {
        let Some((receiver, counter)) = data_header(message) else { return Opened::Refused(Drop::MalformedOuter) };
        // boringtun adds to the counter before it compares.
        if counter >= REJECT_AFTER_MESSAGES {
            return Opened::Refused(Drop::Replayed);
        }
        let Some(tunn) = &mut self.tunn else { return Opened::Refused(Drop::NoSession) };
        if out.len() < message.len() {
            return Opened::Refused(Drop::MalformedOuter);
        }
        let opened = match tunn.decapsulate(None, message, out) {
            TunnResult::WriteToTunnelV4(packet, source) => Opened::Packet(packet.len(), source.into()),
            TunnResult::WriteToTunnelV6(packet, source) => Opened::Packet(packet.len(), source.into()),
            TunnResult::Done => Opened::Keepalive,
            TunnResult::Err(WireGuardError::NoCurrentSession | WireGuardError::WrongIndex) => {
                return Opened::Refused(Drop::NoSession);
            }
            TunnResult::Err(WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter) => {
                return Opened::Refused(Drop::Replayed);
            }
            // Decrypted, but no IP packet: authentic all the same, but worth nothing.
            TunnResult::Err(WireGuardError::InvalidPacket) => return Opened::Refused(Drop::NotIp),
            _ => return Opened::Refused(Drop::BadTag),
        };
        peer.counters.received(message.len());
        self.last_busy = Some(now);
        self.learn(from);
        if self.last_receiver != Some(receiver) {
            // As responder a session is confirmed by its first data message, not before.
            self.last_receiver = Some(receiver);
            self.confirmed = true;
            completed(peer);
        }
        opened
    }

    /// Whether a session was confirmed since this was last asked: packets may be waiting for it.
    pub(crate) fn take_confirmed(&mut self) -> bool {
        std::mem::take(&mut self.confirmed)
    }

    /// Takes a handshake message that the shared limiter let pass.
    ///
    /// The answer to an initiation goes to where it came from, but the endpoint is learned from what follows only: an
    /// initiation can be a replay of one that a former session took.
    pub(crate) fn handshake(
        &mut self,
        peer: &Peer,
        identity: &Identity,
        now: Instant,
        (message, from): (&[u8], SocketAddr),
        send: &mut impl FnMut(&[u8], SocketAddr),
    ) -> Result<(), Drop> {
        let initiation = message.first() == Some(&1);
        if !initiation && self.tunn.is_none() {
            return Err(Drop::NoSession);
        }
        let mut out = [0; 256];
        match self.wake(peer, identity).decapsulate(None, message, &mut out) {
            TunnResult::WriteToNetwork(answer) => {
                peer.counters.received(message.len());
                peer.counters.sent(answer.len());
                send(answer, from);
                self.last_sent = Some(now);
                self.last_busy = Some(now);
                if !initiation {
                    self.learn(from);
                    self.last_receiver = receiver_index(message);
                    completed(peer);
                    self.flush(peer, send);
                }
                Ok(())
            }
            TunnResult::Done => Ok(()), // a cookie
            _ => Err(Drop::HandshakeRefused),
        }
    }

    /// Sends what waited for a session.
    pub(crate) fn flush(&mut self, peer: &Peer, send: &mut impl FnMut(&[u8], SocketAddr)) {
        let (true, Some(to)) = (self.established(), self.endpoint) else { return };
        let Some(tunn) = &mut self.tunn else { return };
        let mut out = vec![0; 66_000];
        while let TunnResult::WriteToNetwork(message) = tunn.decapsulate(None, &[], &mut out) {
            peer.counters.sent(message.len());
            send(message, to);
        }
        self.waiting.clear();
    }

    /// Looks at the timers; answers when to look again, or `None` if nothing is to be done before the next packet.
    pub(crate) fn tick(
        &mut self,
        peer: &Peer,
        identity: &Identity,
        now: Instant,
        send: &mut impl FnMut(&[u8], SocketAddr),
    ) -> Option<Duration> {
        let mut out = [0; HANDSHAKE_ROOM];
        if let Some(tunn) = &mut self.tunn {
            match tunn.update_timers(&mut out) {
                TunnResult::WriteToNetwork(message) => self.send_timed(peer, now, message, send),
                TunnResult::Err(WireGuardError::ConnectionExpired) => {
                    // The `Tunn` would stay expired; and where the peer was last seen it is not any more.
                    self.forget();
                    self.endpoint = self.configured.or(self.endpoint);
                }
                _ => {}
            }
        }
        let interval = Duration::from_secs(self.keepalive.into());
        let keepalive = self.keepalive != 0 && self.endpoint.is_some();
        if keepalive && self.last_sent.is_none_or(|sent| now.duration_since(sent) >= interval) {
            if let TunnResult::WriteToNetwork(message) = self.wake(peer, identity).encapsulate(&[], &mut out) {
                self.send_timed(peer, now, message, send);
            }
            self.last_sent = Some(now);
        }
        if self.tunn.is_none() {
            return keepalive.then_some(TICK_IDLE);
        }
        let busy = !self.established() || self.last_busy.is_some_and(|busy| now.duration_since(busy) < BUSY_FOR);
        Some(if busy { TICK_BUSY } else { TICK_IDLE })
    }

    fn send_timed(&mut self, peer: &Peer, now: Instant, message: &[u8], send: &mut impl FnMut(&[u8], SocketAddr)) {
        let Some(to) = self.endpoint else { return };
        peer.counters.sent(message.len());
        send(message, to);
        self.last_sent = Some(now);
        // A peer that does not answer where it was seen last may be back where it is configured to be.
        if let Some(configured) = self.configured.filter(|other| *other != to && message.first() == Some(&1)) {
            peer.counters.sent(message.len());
            send(message, configured);
        }
    }

    #[cfg(test)]
    pub(crate) fn learn_for_test(&mut self, from: SocketAddr) {
        self.learn(from);
    }

    fn learn(&mut self, from: SocketAddr) {
        if self.endpoint != Some(from) {
            self.endpoint = Some(from);
            self.plain_until = None;
        }
    }
}

fn completed(peer: &Peer) {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    peer.counters.last_handshake.store(since_1970.as_nanos() as u64, Relaxed);
}

/// Receiver index and counter of a data message.
fn data_header(message: &[u8]) -> Option<(u32, u64)> {
    let receiver = message.get(4..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))?;
    let counter = message.get(8..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))?;
    Some((receiver, counter))
}

/// Which of our indices a message is for: data and cookies carry it behind the type, responses behind the sender's.
pub(crate) fn receiver_index(message: &[u8]) -> Option<u32> {
    let at = match message.first()? {
        2 => 8,
        3 | 4 => 4,
        _ => return None,
    };
    message.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}
