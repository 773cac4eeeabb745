//! What was dropped, by reason, and what a peer carried.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! reasons {
    ($($variant:ident $name:literal $doc:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Drop { $(#[doc = $doc] $variant,)* }

        impl Drop {
            /// All reasons.
            pub const ALL: &[Drop] = &[$(Drop::$variant,)*];

            /// The label in metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Drop::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    NoPeer "no_peer" "Out: no allowed IPs hold the destination.",
    NoEndpoint "no_endpoint" "Out: nobody knows yet where the peer is.",
    NoKey "no_key" "Out: no private key is configured.",
    MalformedInner "malformed_inner" "Out: the TUN gave something that is no IP packet.",
    QueueFull "queue_full" "Out: no session yet, and enough packets wait for one.",
    SendFailed "send_failed" "Out: the socket refused the datagram.",
    Unsealed "unsealed" "Out: the session could not encrypt.",
    MalformedOuter "malformed_outer" "In: no WireGuard message.",
    InvalidMac "invalid_mac" "In: a handshake message for another key.",
    CookieSent "cookie_sent" "In: a handshake message beyond the limit, answered with a cookie.",
    UnknownPeer "unknown_peer" "In: a handshake of a key that is no peer's.",
    UnknownIndex "unknown_index" "In: no peer has this receiver index.",
    HandshakeRefused "handshake_refused" "In: a handshake message that is stale, replayed or not decryptable.",
    NoSession "no_session" "In: data for a session that is gone.",
    Replayed "replayed" "In: a counter that was seen, or is too old.",
    BadTag "bad_tag" "In: data that does not decrypt.",
    NotIp "not_ip" "In: decrypted to something that is no IP packet.",
    ForgedSource "forged_source" "In: an inner source that is not among the peer's allowed IPs.",
    TunRefused "tun_refused" "In: the TUN refused the packet.",
}

/// Counters of the whole tunnel.
#[derive(Debug, Default)]
pub struct Counters {
    drops: [AtomicU64; Drop::ALL.len()],
}

impl Counters {
    /// Counts a drop.
    pub fn drop(&self, reason: Drop) {
        self.drop_many(reason, 1);
    }

    /// Counts several drops of one reason.
    pub fn drop_many(&self, reason: Drop, count: u64) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.fetch_add(count, Relaxed);
        }
    }

    /// How many were dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: Drop) -> u64 {
        self.drops.get(reason as usize).map_or(0, |counter| counter.load(Relaxed))
    }
}

/// Counters of one peer.
#[derive(Debug, Default)]
pub(crate) struct PeerCounters {
    /// UDP payload bytes received and authenticated.
    pub(crate) rx_bytes: AtomicU64,
    /// UDP payload bytes sent.
    pub(crate) tx_bytes: AtomicU64,
    /// When the last handshake was completed: nanoseconds since 1970, 0 for never.
    pub(crate) last_handshake: AtomicU64,
}

impl PeerCounters {
    pub(crate) fn received(&self, bytes: usize) {
        self.rx_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.tx_bytes.fetch_add(bytes as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_and_a_name_of_its_own() {
        let counters = Counters::default();
        let mut names = std::collections::HashSet::new();
        for (index, reason) in Drop::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(names.insert(reason.name()));
            counters.drop(*reason);
            assert_eq!(counters.dropped(*reason), 1);
        }
    }
}
