//! Requests in progress: when a route changes, those that would not be forwarded there any more are cut, streams above all.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use weft_model::WorkspaceId;
use weft_proxy_core::{Credential, Decision, Forward, Table, decide};

/// The right of one request to go on.
#[derive(Debug)]
pub(crate) struct Lease {
    to: Forward,
    authority: String,
    credential: Credential,
    cut: AtomicBool,
    waker: AtomicWaker,
}

impl Lease {
    /// Whether the request must end.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Ready when the request must end.
    pub(crate) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.is_cut() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn holds(&self, table: &Table) -> bool {
        matches!(decide(&self.authority, self.credential, table), Decision::Forward(to) if to == self.to)
    }
}

/// All requests in progress, by workspace.
#[derive(Debug, Default)]
pub(crate) struct Live {
    leases: Mutex<HashMap<WorkspaceId, HashMap<u64, Arc<Lease>>>>,
    last: AtomicU64,
}

/// A request's place among those in progress; it leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    live: Arc<Live>,
    number: u64,
    /// Its right to go on.
    pub(crate) lease: Arc<Lease>,
}

impl Live {
    /// Enters a request that was just decided. To be called while the table that decided it is still locked for reading:
    /// then no change can fall between the decision and the entry.
    pub(crate) fn enter(self: &Arc<Self>, to: Forward, authority: &str, credential: Credential) -> Place {
        let cut = AtomicBool::new(false);
        let lease = Arc::new(Lease { to, authority: authority.into(), credential, cut, waker: AtomicWaker::new() });
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        self.lock().entry(to.id).or_default().insert(number, lease.clone());
        Place { live: self.clone(), number, lease }
    }

    /// Cuts the requests that the table, as it is now, would not forward to where they are; of one workspace, or of all.
    pub(crate) fn recheck(&self, about: Option<WorkspaceId>, table: &Table) {
        let leases = self.lock();
        let of_one = about.and_then(|id| leases.get(&id)).into_iter();
        let of_all = leases.values().filter(|_| about.is_none());
        for lease in of_one.chain(of_all).flat_map(HashMap::values).filter(|lease| !lease.holds(table)) {
            lease.cut.store(true, Ordering::Release);
            lease.waker.wake();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<WorkspaceId, HashMap<u64, Arc<Lease>>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut leases = self.live.lock();
        let id = self.lease.to.id;
        if let Some(of_workspace) = leases.get_mut(&id) {
            of_workspace.remove(&self.number);
            if of_workspace.is_empty() {
                leases.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_model::{
        api::{Route, RouteEvent},
        object::{Port, Visibility},
    };

    use super::*;

    fn event(epoch: u64, visibility: Visibility) -> RouteEvent {
        let route = Route {
            id: "k3v7qz2mna".parse().unwrap(),
            name: None,
            address: Some("fd00::1:2:3".parse().unwrap()),
            epoch,
            ports: vec![Port { port: 80, visibility }],
        };
        RouteEvent::Snapshot { domain: "ws.dev".into(), dial_from: "fd00::2".parse().unwrap(), routes: vec![route] }
    }

    #[test]
    fn a_request_goes_on_while_it_would_be_forwarded_to_the_same_attachment() {
        let authority = "80-k3v7qz2mna.ws.dev";
        for (change, cut) in [
            (event(1, Visibility::Public), false),
            (event(1, Visibility::Private), true),
            (event(2, Visibility::Public), true),
            (RouteEvent::Remove { id: "k3v7qz2mna".parse().unwrap() }, true),
            (RouteEvent::Remove { id: "aaaaaaaaaa".parse().unwrap() }, false),
        ] {
            let live = Arc::new(Live::default());
            let mut table = Table::new(None);
            table.apply(event(1, Visibility::Public));
            let Decision::Forward(to) = decide(authority, Credential::Absent, &table) else { panic!("not forwarded") };
            let place = live.enter(to, authority, Credential::Absent);
            table.apply(change.clone());
            live.recheck(None, &table);
            assert_eq!(place.lease.is_cut(), cut, "{change:?}");
            drop(place);
            assert!(live.lock().is_empty());
        }
    }
}
