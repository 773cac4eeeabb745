//! What the threads share: the table of peers, the counters, and which peers' timers are to be looked at.
use std::{
    collections::BinaryHeap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::Ordering::{AcqRel, Acquire, Relaxed},
    },
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use crate::{
    counters::{Counters, Drop},
    key::Secret,
    peer::{Identity, Peer},
    table::{Table, TooManyPeers},
    uapi::{Delta, PeerState, StateSource, write_state},
};

/// See the module's documentation.
pub(crate) struct Engine {
    table: RwLock<Table>,
    pub(crate) counters: Counters,
    pub(crate) timers: Timers,
    handshakes_per_second: u64,
}

impl Engine {
    pub(crate) fn new(handshakes_per_second: u64) -> Self {
        let (table, counters, timers) = (RwLock::default(), Counters::default(), Timers::default());
        Self { table, counters, timers, handshakes_per_second }
    }

    pub(crate) fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies what a delta says of keys and peers; port and mark are the socket's. The lock is let go between peers, so
    /// that packets flow while thousands of them change.
    pub(crate) fn apply(&self, delta: &Delta) -> Result<(), TooManyPeers> {
        if let Some(secret) = &delta.private_key {
            self.set_private_key(secret);
        }
        if delta.replace_peers {
            self.table_mut().clear();
        }
        for change in &delta.peers {
            let peer = self.table_mut().apply(change, &mut random)?;
            if let Some(peer) = peer
                && peer.session().keepalive != 0
            {
                self.timers.schedule(&peer);
            }
        }
        Ok(())
    }

    fn set_private_key(&self, secret: &Secret) {
        let mut table = self.table_mut();
        if table.identity.as_ref().is_some_and(|identity| identity.secret == *secret) {
            return;
        }
        if secret.is_zero() {
            table.identity = None;
            table.peers().for_each(|peer| peer.session().forget());
        } else {
            table.set_identity(Identity::new(secret.clone(), self.handshakes_per_second));
        }
    }

    /// The answer to `get=1`.
    pub(crate) fn state(&self, listen_port: u16, fwmark: u32) -> Zeroizing<String> {
        let table = self.table();
        let private_key = table.identity.as_ref().map(|identity| &identity.secret);
        let source = StateSource { private_key, listen_port, fwmark };
        write_state(&source, table.peers().len(), |each| {
            for peer in table.peers() {
                let session = peer.session();
                let since = peer.counters.last_handshake.load(Relaxed);
                let state = PeerState {
                    public_key: peer.key,
                    preshared: session.preshared().is_some(),
                    endpoint: session.endpoint(),
                    last_handshake: (since != 0).then(|| Duration::from_nanos(since)),
                    rx_bytes: peer.counters.rx_bytes.load(Relaxed),
                    tx_bytes: peer.counters.tx_bytes.load(Relaxed),
                    persistent_keepalive: session.keepalive,
                    allowed_ips: session.allowed.iter().copied().collect(),
                };
                each(&state, session.preshared());
            }
        })
    }

    /// Counters in the text format of Prometheus.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::from("# TYPE weft_wire_dropped_packets_total counter\n");
        for reason in Drop::ALL {
            let (name, count) = (reason.name(), self.counters.dropped(*reason));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "weft_wire_dropped_packets_total{{reason=\"{name}\"}} {count}");
        }
        let table = self.table();
        type Read = fn(&Peer) -> f64;
        let families: [(&str, &str, Read); 3] = [
            ("weft_wire_peer_received_bytes_total", "counter", |peer| peer.counters.rx_bytes.load(Relaxed) as f64),
            ("weft_wire_peer_sent_bytes_total", "counter", |peer| peer.counters.tx_bytes.load(Relaxed) as f64),
            ("weft_wire_peer_last_handshake_seconds", "gauge", |peer| {
                peer.counters.last_handshake.load(Relaxed) as f64 / 1e9
            }),
        ];
        for (family, kind, read) in families {
            let _ = writeln!(text, "# TYPE {family} {kind}");
            for peer in table.peers() {
                let _ = writeln!(text, "{family}{{peer=\"{}\"}} {}", peer.key, read(peer));
            }
        }
        text
    }

    /// One round of the timer thread: waits until a peer is due, and looks at its timers.
    pub(crate) fn run_timers(&self, heap: &mut TimerHeap, send: &mut impl FnMut(&[u8], SocketAddr)) {
        self.timers.wait(heap);
        let now = Instant::now();
        while let Some(due) = heap.0.peek().filter(|due| due.at <= now) {
            let index = due.index;
            heap.0.pop();
            let found = {
                let table = self.table();
                table.by_index(index).cloned().zip(table.identity.clone())
            };
            // A peer that was removed, or a tunnel without a key: nothing is left to look at.
            let Some((peer, identity)) = found else { continue };
            let next = {
                let mut session = peer.session();
                let next = session.tick(&peer, &identity, now, send);
                if next.is_none() {
                    // Under the session's lock, so that whoever wakes it afterwards schedules it again.
                    peer.scheduled.store(false, Relaxed);
                }
                next
            };
            if let Some(next) = next {
                heap.0.push(Due { at: now + next, index });
            }
        }
    }
}

fn random() -> u32 {
    // The system's generator does not fail once it was seeded, which is long before a tunnel starts.
    getrandom::u32().unwrap_or_else(|_| Instant::now().elapsed().subsec_nanos().wrapping_mul(0x9e37_79b9))
}

/// When to look at a peer; the earliest is the greatest, as `BinaryHeap` wants it.
#[derive(PartialEq, Eq)]
struct Due {
    at: Instant,
    index: u32,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.at.cmp(&self.at).then(other.index.cmp(&self.index))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The peers with a session, by when to look at them: idle peers without one are not in it.
#[derive(Default)]
pub(crate) struct TimerHeap(BinaryHeap<Due>);

/// The way into the timer thread's heap.
#[derive(Default)]
pub(crate) struct Timers {
    woken: Mutex<Vec<u32>>,
    bell: Condvar,
}

impl Timers {
    /// Has the timer thread look at a peer from now on, until nothing is left to do.
    pub(crate) fn schedule(&self, peer: &Arc<Peer>) {
        // Looked at first: this is asked for every packet, and is true for all but the first.
        if !peer.scheduled.load(Acquire) && !peer.scheduled.swap(true, AcqRel) {
            self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(peer.index);
            self.bell.notify_one();
        }
    }

    fn wait(&self, heap: &mut TimerHeap) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        if woken.is_empty() {
            let until = heap.0.peek().map(|due| due.at.saturating_duration_since(Instant::now()));
            woken = match until {
                Some(until) => {
                    self.bell.wait_timeout(woken, until).map_or_else(|e| e.into_inner().0, |(woken, _)| woken)
                }
                None => self.bell.wait(woken).unwrap_or_else(PoisonError::into_inner),
            };
        }
        let now = Instant::now();
        heap.0.extend(woken.drain(..).map(|index| Due { at: now, index }));
    }
}
