//! What each IPv6 source holds and did: for limits, and for whoever asks who used the translator. Bounded.
use std::collections::{HashMap, VecDeque};

use crate::hash::Seed;

/// How many sources are remembered; those without sessions go first.
const MAX_SOURCES: usize = 16_384;

/// One source's figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Source {
    /// Sessions that it has now.
    pub sessions: u32,
    /// Fragmented packets that are followed for it now.
    pub fragments: u32,
    /// Packets from it that were translated.
    pub packets_out: u64,
    /// Their bytes, as they came.
    pub bytes_out: u64,
    /// Packets to it.
    pub packets_in: u64,
    /// Their bytes, as they came.
    pub bytes_in: u64,
    /// Packets from it that were dropped or answered.
    pub drops: u64,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Sources {
    table: HashMap<u128, Source, Seed>,
    idle: VecDeque<u128>,
}

impl Sources {
    pub(crate) fn new(seed: Seed) -> Self {
        Self { table: HashMap::with_hasher(seed), idle: VecDeque::new() }
    }

    pub(crate) fn get(&self, address: u128) -> Option<&Source> {
        self.table.get(&address)
    }

    pub(crate) fn get_mut(&mut self, address: u128) -> Option<&mut Source> {
        self.table.get_mut(&address)
    }

    /// Counts a new session.
    pub(crate) fn open(&mut self, address: u128) {
        self.table.entry(address).or_default().sessions += 1;
        while self.table.len() > MAX_SOURCES {
            let Some(oldest) = self.idle.pop_front() else { break };
            if self.table.get(&oldest).is_some_and(|source| source.sessions == 0) {
                self.table.remove(&oldest);
            }
        }
    }

    /// Counts a session's end.
    pub(crate) fn close(&mut self, address: u128) {
        let Some(source) = self.table.get_mut(&address) else { return };
        source.sessions = source.sessions.saturating_sub(1);
        if source.sessions == 0 {
            self.idle.push_back(address);
            // Addresses that came back are in the queue twice: keep it as short as the table.
            while self.idle.len() > 2 * MAX_SOURCES {
                let Some(oldest) = self.idle.pop_front() else { break };
                if self.table.get(&oldest).is_some_and(|source| source.sessions == 0) {
                    self.table.remove(&oldest);
                }
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u128, &Source)> {
        self.table.iter().map(|(address, source)| (*address, source))
    }
}
