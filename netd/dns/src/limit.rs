//! Bounds on what an asker, and all of them together, may keep this process busy with.
use std::{
    collections::HashMap,
    net::Ipv6Addr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A number of places for all askers, and a smaller one for each.
#[derive(Debug)]
pub(crate) struct Limit {
    all: Arc<Semaphore>,
    each: u32,
    taken: Mutex<HashMap<Ipv6Addr, u32>>,
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    limit: Arc<Limit>,
    asker: Ipv6Addr,
    _permit: OwnedSemaphorePermit,
}

impl Limit {
    pub(crate) fn new(all: usize, each: u32) -> Arc<Self> {
        Arc::new(Self { all: Arc::new(Semaphore::new(all)), each, taken: Mutex::default() })
    }

    /// Takes a place, if there is one for this asker. The map is never larger than the number of places.
    pub(crate) fn take(self: &Arc<Self>, asker: Ipv6Addr) -> Option<Place> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.get(&asker).copied().unwrap_or(0);
        if count >= self.each {
            return None;
        }
        taken.insert(asker, count + 1);
        Some(Place { limit: self.clone(), asker, _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.limit.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.asker) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                taken.remove(&self.asker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asker_takes_its_share_and_no_more_and_leaves_no_trace() {
        let limit = Limit::new(3, 2);
        let (one, two) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let first = limit.take(one).unwrap();
        let second = limit.take(one).unwrap();
        assert!(limit.take(one).is_none(), "one asker has its two");
        let third = limit.take(two).unwrap();
        assert!(limit.take(two).is_none(), "all three are taken");
        drop(first);
        let fourth = limit.take(two).unwrap();
        drop((second, third, fourth));
        assert!(limit.taken.lock().unwrap().is_empty());
        assert_eq!(limit.all.available_permits(), 3);
    }
}
