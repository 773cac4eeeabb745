//! Which ports and identifiers of the pool are free (RFC 6146 3.5.1.1), one bit each.
use std::net::Ipv4Addr;

use super::Endpoint4;
use crate::{config::Pool, packet::Protocol};

const PROTOCOLS: usize = 3;

/// Which of an address's rows is a protocol's.
fn row(protocol: Protocol) -> Option<usize> {
    match protocol {
        Protocol::Tcp => Some(0),
        Protocol::Udp => Some(1),
        Protocol::Icmp => Some(2),
        Protocol::Other(_) => None,
    }
}

/// The pool's bits: for each address and protocol one bit a port.
#[derive(Debug)]
pub struct Ports {
    addresses: Vec<u32>,
    first: u16,
    last: u16,
    /// Bit `port % 64` of word `port / 64 - first / 64`: set if in use.
    used: Vec<Vec<u64>>,
}

const EVEN: u64 = 0x5555_5555_5555_5555;

impl Ports {
    /// An empty pool.
    #[must_use]
    pub fn new(pool: &Pool) -> Self {
        let (first, last) = (pool.ports.first, pool.ports.last);
        let words = usize::from(last / 64 - first / 64) + 1;
        let addresses: Vec<u32> = pool.addresses.iter().copied().map(Ipv4Addr::to_bits).collect();
        let used = vec![vec![0; words]; addresses.len() * PROTOCOLS];
        Self { addresses, first, last, used }
    }

    /// Whether this address is the pool's.
    #[must_use]
    pub fn has_address(&self, address: u32) -> bool {
        self.addresses.contains(&address)
    }

    /// The pool's first address, by which the translator speaks of itself.
    #[must_use]
    pub fn first_address(&self) -> Ipv4Addr {
        self.addresses.first().copied().unwrap_or_default().into()
    }

    /// Takes a free port: on the preferred address while it has one (RFC 4787 REQ-2), of the same parity as `like` while
    /// there is one (REQ-4), else any; at a random place (RFC 6056).
    pub fn take(&mut self, protocol: Protocol, preferred: u64, like: u16, random: u64) -> Option<Endpoint4> {
        let count = self.addresses.len();
        let start = (preferred % count.max(1) as u64) as usize;
        let masks = if like.is_multiple_of(2) { [EVEN, u64::MAX] } else { [!EVEN, u64::MAX] };
        for index in (start..count).chain(0..start) {
            for mask in masks {
                if let Some(port) = self.take_at(index, protocol, mask, random) {
                    return Some(Endpoint4 { protocol, address: *self.addresses.get(index)?, port });
                }
            }
        }
        None
    }

    fn take_at(&mut self, index: usize, protocol: Protocol, mask: u64, random: u64) -> Option<u16> {
        let (first, last) = (self.first, self.last);
        let words = self.used.get_mut(index * PROTOCOLS + row(protocol)?)?;
        let (count, base) = (words.len(), usize::from(first / 64) * 64);
        let (start, turn) = ((random % count as u64) as usize, (random >> 32) as u32 % 64);
        for at in (start..count).chain(0..start) {
            let word = words.get_mut(at)?;
            let low = base + at * 64;
            let outside = outside(low, first.into(), last.into());
            let free = !*word & !outside & mask;
            if free != 0 {
                let bit = (free.rotate_right(turn).trailing_zeros() + turn) % 64;
                *word |= 1 << bit;
                return u16::try_from(low + bit as usize).ok();
            }
        }
        None
    }

    fn bit(&mut self, four: Endpoint4) -> Option<(&mut u64, u64)> {
        if !(self.first..=self.last).contains(&four.port) {
            return None;
        }
        let index = self.addresses.iter().position(|address| *address == four.address)?;
        let words = self.used.get_mut(index * PROTOCOLS + row(four.protocol)?)?;
        let word = words.get_mut(usize::from(four.port / 64 - self.first / 64))?;
        Some((word, 1 << (four.port % 64)))
    }

    /// Takes this very port; whether it is the pool's and was free.
    pub fn claim(&mut self, four: Endpoint4) -> bool {
        let Some((word, bit)) = self.bit(four) else { return false };
        let free = *word & bit == 0;
        *word |= bit;
        free
    }

    /// Whether a port is the pool's, free or not.
    #[must_use]
    pub fn holds(&self, four: Endpoint4) -> bool {
        (self.first..=self.last).contains(&four.port) && self.has_address(four.address)
    }

    /// Gives a port back.
    pub fn release(&mut self, four: Endpoint4) {
        if let Some((word, bit)) = self.bit(four) {
            *word &= !bit;
        }
    }

    /// How many ports of a protocol are taken, and how many there are.
    #[must_use]
    pub fn usage(&self, protocol: Protocol) -> (u64, u64) {
        let Some(row) = row(protocol) else { return (0, 0) };
        let words = self.used.iter().skip(row).step_by(PROTOCOLS).flatten();
        let used = words.map(|word| u64::from(word.count_ones())).sum();
        (used, self.addresses.len() as u64 * (u64::from(self.last - self.first) + 1))
    }
}

/// The bits of a word that starts at port `low` which are not ports of `first..=last`.
fn outside(low: usize, first: usize, last: usize) -> u64 {
    let below = first.saturating_sub(low).min(64);
    let above = (low + 63).saturating_sub(last).min(64);
    let mask = |bits: usize| if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    mask(below) | !mask(64 - above)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(first: u16, last: u16, addresses: u8) -> Ports {
        let addresses = (1..=addresses).map(|host| Ipv4Addr::new(192, 0, 2, host)).collect();
        Ports::new(&Pool { addresses, ports: crate::config::PortRange { first, last } })
    }

    proptest! {
        #[test]
        fn every_port_is_given_once_and_none_outside(first in 1u16..200, count in 0u16..200, random: Vec<u64>) {
            let last = first + count;
            let mut ports = pool(first, last, 2);
            let mut seen = std::collections::HashSet::new();
            let draws = random.into_iter().chain(0..).take(2 * (usize::from(count) + 1));
            for draw in draws {
                let four = ports.take(Protocol::Udp, draw, draw as u16, draw).unwrap();
                prop_assert!((first..=last).contains(&four.port));
                prop_assert!(seen.insert(four));
            }
            prop_assert_eq!(ports.take(Protocol::Udp, 0, 0, 0), None);
            prop_assert_eq!(ports.usage(Protocol::Udp), (seen.len() as u64, seen.len() as u64));
            prop_assert!(ports.take(Protocol::Tcp, 0, 0, 0).is_some());
            let one = *seen.iter().next().unwrap();
            ports.release(one);
            prop_assert!(ports.claim(one) && !ports.claim(one));
        }
    }

    #[test]
    fn parity_and_address_are_kept_while_they_can_be() {
        let mut ports = pool(1000, 1003, 2);
        let drawn: Vec<_> = (0..4).map(|draw| ports.take(Protocol::Tcp, 1, 7, draw).unwrap()).collect();
        assert!(drawn.iter().all(|four| four.address == Ipv4Addr::new(192, 0, 2, 2).to_bits()));
        assert!(drawn[..2].iter().all(|four| four.port % 2 == 1));
        assert_eq!(ports.take(Protocol::Tcp, 1, 7, 9).unwrap().address, Ipv4Addr::new(192, 0, 2, 1).to_bits());
    }
}
