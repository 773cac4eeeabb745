//! The view of the fabric, kept up to date: list, then watch, again and again; and what this node publishes, as the
//! difference between what it knows and what the store has. Without the store the last view stays.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio::time::timeout;
use weft_model::{
    WorkspaceId,
    object::{Author, Kind, NodeStatus},
};
use weft_store::{Change, Store, StoreError, Txn, snapshot};

use crate::{
    clock::unix_ms,
    fabric::{Delta, KINDS, ListError},
    journal::Entry,
    node::{Member, Node},
    state::Unpublished,
    targets::Verdict,
    view,
};

/// First and longest delay before the store is asked again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// A full list is read now and then, in case a watch lost something.
const RESYNC: Duration = Duration::from_secs(600);
/// How long after a suspiciously short list the next one may confirm it.
const CONFIRM: Duration = Duration::from_secs(30);
/// How many objects are published at the same time.
const PARALLEL: usize = 8;

/// Delays that grow up to a bound, each with a random part, so that a fleet does not come back at once.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: RETRY.0 }
    }
}

impl Backoff {
    /// The delay before the next attempt; `random` gives its random half.
    pub fn delay(&mut self, random: u8) -> Duration {
        let half = self.next / 2;
        let delay = half + half.mul_f64(f64::from(random) / 255.0);
        self.next = self.next.mul_f64(1.5).min(RETRY.1);
        delay
    }

    /// Waits, or until something comes back by which the store is reached.
    async fn wait(&mut self, node: &Node) {
        let mut random = [128];
        // Without randomness the middle will do.
        let _ = getrandom::fill(&mut random);
        let _ = timeout(self.delay(random[0]), node.retry_store.notified()).await;
    }
}

/// Keeps the view until the process ends.
pub async fn watch(node: Arc<Node>, member: Arc<Member>) {
    let mut backoff = Backoff::default();
    let mut doubted: Option<Instant> = None;
    loop {
        let store = &*member.store;
        let revision = match snapshot(store, &KINDS).await {
            Ok((objects, revision)) => {
                let confirmed = doubted.is_some_and(|since| since.elapsed() >= CONFIRM);
                match node.take_list(&member, &objects, confirmed).await {
                    Ok(()) => doubted = None,
                    Err(error) => {
                        tracing::warn!(%error, "the store's list is not believed");
                        doubted = doubted.or(Some(Instant::now()));
                    }
                }
                revision
            }
            Err(error) => {
                node.store_lost(&error);
                backoff.wait(&node).await;
                continue;
            }
        };
        node.store_found();
        backoff = Backoff::default();
        let until = Instant::now() + if doubted.is_some() { CONFIRM } else { RESYNC };
        if let Err(error) = follow(&node, store, revision, until).await {
            node.store_lost(&error);
            backoff.wait(&node).await;
        }
    }
}

/// Takes changes until the watch ends, or until it is time for a full list.
async fn follow(node: &Node, store: &dyn Store, revision: u64, until: Instant) -> Result<(), StoreError> {
    let mut changes = store.watch(revision).await?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match timeout(left, changes.next()).await {
            Err(_) | Ok(Some(Change::Resync)) => return Ok(()),
            Ok(None) => return Err(StoreError::Unavailable { reason: "the watch ended".into() }),
            Ok(Some(change)) => {
                node.take_change(&change).await;
                node.store_found();
            }
        }
    }
}

/// The words for why the store cannot be reached.
fn reason(error: &StoreError) -> String {
    match error {
        StoreError::Unavailable { reason } => reason.clone(),
        other => other.to_string(),
    }
}

impl Node {
    fn store_lost(&self, error: &StoreError) {
        let reason = reason(error);
        let changed = self.write().store_error.replace(reason.clone()).is_none_or(|before| before != reason);
        if changed {
            tracing::warn!(reason, "the store does not answer; this node works on with what it knows");
        }
        self.refresh_published(self.read().entries.keys().copied().collect());
    }

    fn store_found(&self) {
        // Usually it was never lost: that costs no write lock.
        if self.read().store_error.is_some() && self.write().store_error.take().is_some() {
            tracing::info!("the store answers");
            self.retry_store.notify_waiters();
            self.unpublished.notify_one();
        }
    }

    async fn take_list(
        &self,
        member: &Member,
        objects: &[weft_model::object::Object],
        confirmed: bool,
    ) -> Result<(), ListError> {
        let result = self.write().fabric.replace(objects, &member.me.node, confirmed);
        let (delta, doubt) = match result {
            Ok(delta) => (delta, Ok(())),
            Err((delta, doubt)) => (delta, Err(doubt)),
        };
        self.taken(delta).await;
        doubt
    }

    /// Takes one change of the store, with all that follows from it.
    pub async fn take_change(&self, change: &Change) {
        let delta = self.write().fabric.apply(change);
        self.taken(delta).await;
    }

    /// What follows from a change of the view: specs that users changed elsewhere, routes, the journal, a reconciliation.
    async fn taken(&self, delta: Delta) {
        if delta.is_empty() {
            return;
        }
        let ids: Vec<WorkspaceId> = delta.workspaces().collect();
        let adopted = {
            let mut state = self.write();
            let adopted: Vec<Entry> = ids.iter().filter_map(|id| adopt(&mut state, *id)).collect();
            for id in &ids {
                state.refused.remove(id);
            }
            state.announce(ids.iter().copied());
            adopted
        };
        for entry in adopted {
            tracing::info!(workspace = %entry.id, "its spec was changed in the store");
            if let Err(error) = self.journalled(move |journal| journal.put(&entry)).await {
                tracing::error!(%error, "cannot write a changed spec to the journal; the store has it still");
            }
        }
        self.remember(delta).await;
        self.refresh_published(ids);
        self.changed.notify_one();
        self.unpublished.notify_one();
    }

    /// Writes a change of the view to the journal, for a start without the store.
    pub async fn remember(&self, delta: Delta) {
        if delta.is_empty() {
            return;
        }
        let gone: Vec<_> = delta.gone.into_iter().map(|(kind, name)| (kind.to_string(), name)).collect();
        let puts = delta.puts;
        if let Err(error) = self.journalled(move |journal| journal.change_view(&puts, &gone)).await {
            tracing::error!(%error, "cannot write the view of the fabric to the journal; a start without the store would not know it");
        }
    }

    /// Whether the store has what it should have of these workspaces.
    pub fn refresh_published(&self, ids: Vec<WorkspaceId>) {
        for id in ids {
            let verdict = {
                let state = self.read();
                match (state.unpublished_of(id), &state.store_error, state.refused.get(&id)) {
                    (None, ..) => Verdict::Done,
                    (_, Some(error), _) => Verdict::Waits(format!("the store: {error}")),
                    (_, None, Some(refusal)) => Verdict::Failed(refusal.clone()),
                    (Some(_), None, None) => Verdict::Running("being written to the store".into()),
                }
            };
            self.observe_workspace(id, "published", verdict);
        }
    }
}

/// Takes a spec that was changed in the store over, unless there is a change of ours that the store has not taken yet.
fn adopt(state: &mut crate::state::State, id: WorkspaceId) -> Option<Entry> {
    let seen = state.fabric.workspaces().get(&id)?;
    let entry = state.entries.get_mut(&id)?;
    let same = entry.spec == seen.workspace.spec;
    if (same && entry.changed_by.is_none()) || (!same && entry.changed_by.is_some()) {
        return None;
    }
    entry.spec = seen.workspace.spec.clone();
    entry.changed_by = None;
    Some(entry.clone())
}

/// Publishes what the store lacks, whenever there is something, until the process ends.
pub async fn publish(node: Arc<Node>, member: Arc<Member>) {
    let mut backoff = Backoff::default();
    loop {
        match node.publish_once(&member).await {
            Ok(0) => {
                backoff = Backoff::default();
                // The timer is for what was refused: it may be accepted later.
                let _ = timeout(Duration::from_secs(5), node.unpublished.notified()).await;
            }
            Ok(_) => node.store_found(),
            Err(error) => {
                if matches!(error, StoreError::Unavailable { .. }) {
                    node.store_lost(&error);
                }
                // A wake-up that came meanwhile is not lost: the next round looks at everything.
                backoff.wait(&node).await;
            }
        }
    }
}

impl Node {
    /// One round; how many objects were written. An error of the store as a whole ends it.
    async fn publish_once(&self, member: &Member) -> Result<usize, StoreError> {
        let work = self.read().unpublished();
        let mut written = self.publish_self(member).await?;
        let results = stream::iter(work).map(|work| async move { (work.id(), self.publish_one(member, work).await) });
        let mut results = results.buffer_unordered(PARALLEL);
        let mut lost = None;
        while let Some((id, result)) = results.next().await {
            match result {
                Ok(()) => {
                    written += 1;
                    self.write().refused.remove(&id);
                }
                Err(error @ StoreError::Unavailable { .. }) => lost = Some(error),
                // Somebody else was faster: what they wrote is read, and the next round compares again.
                Err(error) if error.is_conflict() => {
                    self.refresh_object(&*member.store, id).await?;
                    written += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    let known = self.write().refused.insert(id, text.clone());
                    if known.as_ref() != Some(&text) {
                        tracing::warn!(workspace = %id, reason = text, "the store refuses what this node publishes");
                    }
                }
            }
            self.refresh_published(vec![id]);
        }
        lost.map_or(Ok(written), Err)
    }

    async fn publish_one(&self, member: &Member, work: Unpublished) -> Result<(), StoreError> {
        let (kind, now, me) = (Kind::Workspace, unix_ms(), Author::Node(member.me.node.clone()));
        let id = work.id();
        let name = id.as_str();
        let txn = match &work {
            Unpublished::New(_, spec, status) => {
                Txn::new(me, now).expect_absent(kind, name).put_both(kind, name, spec, status)
            }
            Unpublished::Status(_, status, version) => {
                Txn::new(me, now).expect_version(kind, name, *version).put_status(kind, name, status)
            }
            Unpublished::Spec(_, spec, user, version) => Txn::new(Author::User(user.clone()), now)
                .expect_version(kind, name, *version)
                .put_spec(kind, name, spec),
            Unpublished::Forget(_) => Txn::new(me, now).delete(kind, name),
        };
        let revision = member.store.commit(txn).await?;
        if matches!(work, Unpublished::Forget(_)) {
            // Out of the view first: between the two it would be back, as a stopped one.
            self.take_change(&Change::Delete { kind, name: name.into(), revision }).await;
            self.write().forgotten.remove(&id);
            if let Err(error) = self.journalled(move |journal| journal.forgotten_done(id)).await {
                tracing::warn!(workspace = %id, %error, "the store deleted it; the journal will ask again");
            }
            return Ok(());
        }
        self.refresh_object(&*member.store, id).await?;
        self.settle(id).await;
        Ok(())
    }

    /// A change of a spec that the store has taken is no longer ours to publish.
    async fn settle(&self, id: WorkspaceId) {
        let settled = adopt(&mut self.write(), id);
        if let Some(entry) = settled
            && let Err(error) = self.journalled(move |journal| journal.put(&entry)).await
        {
            tracing::warn!(workspace = %id, %error, "the journal will publish the spec again");
        }
    }

    /// This node's own status, if it has changed.
    async fn publish_self(&self, member: &Member) -> Result<usize, StoreError> {
        let ready = self.targets().node.satisfied("ready");
        let (status, seen): (NodeStatus, _) = {
            let state = self.read();
            let seen = state.fabric.nodes().get(&member.me.node).cloned();
            (view::node_status(&self.config, &state.facts, member.identity.seed, ready), seen)
        };
        // Without an uplink there is nothing new to say of where this node is.
        let silent = self.read().facts.uplink.is_none();
        let Some(seen) = seen.filter(|seen| !silent && seen.status != status) else { return Ok(0) };
        let name = member.me.node.as_str();
        let txn = Txn::new(Author::Node(member.me.node.clone()), unix_ms())
            .expect_version(Kind::Node, name, seen.version)
            .put_status(Kind::Node, name, &status);
        match member.store.commit(txn).await {
            Ok(_) => {}
            Err(error) if error.is_conflict() => {}
            Err(error @ StoreError::Unavailable { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "the store refuses this node's status");
                return Ok(0);
            }
        }
        if let Some(object) = member.store.get(Kind::Node, name).await? {
            self.take_change(&Change::Put(object)).await;
        }
        Ok(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_are_never_zero() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..12u8).map(|random| backoff.delay(random * 20)).collect();
        assert!(delays.iter().all(|delay| *delay >= RETRY.0 / 2 && *delay <= RETRY.1));
        assert!(delays[11] >= RETRY.1 / 2);
    }
}
