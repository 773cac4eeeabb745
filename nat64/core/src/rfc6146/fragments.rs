//! Which later fragments follow which first one (RFC 6146 3.4): a bounded store of fragmented packets under way.
//!
//! A later fragment that comes before its first one is dropped and counted: Linux and the common systems send in order.
use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

use crate::hash::Seed;

/// How many fragmented packets are followed at once, in each direction.
const MAX_PACKETS: usize = 4_096;
/// For how long, in milliseconds; at least 2 s (RFC 6146 4, FRAGMENT_MIN).
pub const LIFETIME: u64 = 10_000;

/// Fragmented packets under way, by what their fragments have in common.
#[derive(Debug)]
pub(crate) struct Fragments<K, V> {
    table: HashMap<K, (V, u64), Seed>,
    order: VecDeque<(K, u64)>,
}

impl<K: Copy + Eq + Hash, V: Copy> Fragments<K, V> {
    pub(crate) fn new(seed: Seed) -> Self {
        Self { table: HashMap::with_hasher(seed), order: VecDeque::new() }
    }

    /// Remembers a first fragment; whether there was room.
    pub(crate) fn insert(&mut self, key: K, value: V, now: u64) -> bool {
        if self.order.len() >= MAX_PACKETS {
            return false;
        }
        self.table.insert(key, (value, now + LIFETIME));
        self.order.push_back((key, now + LIFETIME));
        true
    }

    /// What the first fragment became.
    pub(crate) fn get(&self, key: &K, now: u64) -> Option<V> {
        self.table.get(key).filter(|(_, expires)| *expires > now).map(|(value, _)| *value)
    }

    /// Forgets what is over; gives each value to `gone`.
    pub(crate) fn expire(&mut self, now: u64, mut gone: impl FnMut(V)) {
        while let Some((key, expires)) = self.order.front().copied()
            && expires <= now
        {
            self.order.pop_front();
            // The same key may have come again since.
            if let Some((value, last)) = self.table.get(&key).copied() {
                gone(value);
                if last <= now {
                    self.table.remove(&key);
                }
            }
        }
    }

    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.order.front().map(|(_, expires)| *expires)
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }
}
