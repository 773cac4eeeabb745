//! The store of a node that joined: every call goes to a seed; watches come back by themselves.
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tokio::time::sleep;
use weft_client::{Client, ClientError, EventStream, SseEvent, encode};
use weft_model::{
    ErrorCode,
    object::{Kind, Object},
};

use super::{ALIVE, COMMIT_PATH, GET_PATH, HISTORY_PATH, LIST_PATH, Outcome, WATCH_PATH};
use crate::{
    Change, Revision, Store, StoreError, Txn, Version, WatchStream,
    membership::{Identity, MembershipError, tls::seed_server_name},
};

/// How long a call may take: a node must notice soon that the seed is away, and go on without it.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long a list may take: it may be large, and the way slow.
const LIST_DEADLINE: Duration = Duration::from_secs(30);
/// The first pause before a watch connects again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The objects through a seed's API. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SeedStore {
    client: Client,
}

impl SeedStore {
    /// A store that reaches the seeds which the identity names. Does not connect yet.
    pub fn new(identity: &Identity) -> Result<Self, MembershipError> {
        let client = Client::tls(identity.seeds.clone(), identity.client_config()?, seed_server_name());
        Ok(Self { client: client.with_deadline(DEADLINE).with_silence(ALIVE * 3) })
    }
}

#[async_trait]
impl Store for SeedStore {
    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Object>, StoreError> {
        let path = format!("{GET_PATH}?kind={kind}&name={}", encode(name));
        self.client.get::<Outcome<_>>(&path).await.map_err(failure)?
    }

    async fn list(&self, kind: Kind) -> Result<(Vec<Object>, Revision), StoreError> {
        let client = self.client.clone().with_deadline(LIST_DEADLINE);
        client.get::<Outcome<_>>(&format!("{LIST_PATH}?kind={kind}")).await.map_err(failure)?
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        self.client.post::<_, Outcome<_>>(COMMIT_PATH, &txn).await.map_err(failure)?
    }

    async fn history(&self, kind: Kind, name: &str) -> Result<Vec<Version>, StoreError> {
        let path = format!("{HISTORY_PATH}?kind={kind}&name={}", encode(name));
        self.client.get::<Outcome<_>>(&path).await.map_err(failure)?
    }

    /// Never fails: the stream connects, and after a break connects again where it stopped, for as long as it is read.
    async fn watch(&self, from: Revision) -> Result<WatchStream, StoreError> {
        let watch = Watch { client: self.client.clone(), last: from, events: None, pause: FIRST_PAUSE, told: None };
        Ok(Box::pin(stream::unfold(Some(watch), Watch::next)))
    }
}

/// What a failed call means to a user of the store.
fn failure(error: ClientError) -> StoreError {
    match error {
        ClientError::Api(error) if matches!(error.code, ErrorCode::Forbidden | ErrorCode::Unauthorized) => {
            StoreError::Refused { reason: error.message }
        }
        other => StoreError::Unavailable { reason: other.to_string() },
    }
}

/// A watch in progress.
struct Watch {
    client: Client,
    last: Revision,
    events: Option<EventStream>,
    pause: Duration,
    /// The last failure, so that a long absence is logged once.
    told: Option<String>,
}

impl Watch {
    /// The next change and the state after it; a resync is the last.
    async fn next(state: Option<Self>) -> Option<(Change, Option<Self>)> {
        let mut state = state?;
        loop {
            match state.advance().await {
                Ok(Some(Change::Resync)) => return Some((Change::Resync, None)),
                Ok(Some(change)) => return Some((change, Some(state))),
                Ok(None) => {}
                Err(reason) => state.back_off(reason).await,
            }
        }
    }

    /// One step: connects if need be, and reads an event.
    async fn advance(&mut self) -> Result<Option<Change>, String> {
        let Some(events) = &mut self.events else {
            let path = format!("{WATCH_PATH}?from={}", self.last);
            self.events = Some(self.client.events(&path).await.map_err(|error| error.to_string())?);
            if self.told.take().is_some() {
                tracing::info!(revision = self.last, "the seed answers again");
            }
            return Ok(None);
        };
        let event = match events.next().await {
            Some(event) => event.map_err(|error| error.to_string())?,
            None => return Err("the seed has ended the watch".into()),
        };
        let change = read(&event)?;
        self.pause = FIRST_PAUSE;
        match &change {
            Change::Put(object) => self.last = object.revision,
            Change::Delete { revision, .. } => self.last = *revision,
            Change::Resync => {}
        }
        Ok(Some(change))
    }

    async fn back_off(&mut self, reason: String) {
        self.events = None;
        if self.told.as_ref() != Some(&reason) {
            tracing::warn!(%reason, revision = self.last, "the watch on the seed is interrupted; trying again");
            self.told = Some(reason);
        }
        // Somewhere between half and all of it: after an outage the nodes must not come back in step.
        let mut random = [0; 1];
        let _ = getrandom::fill(&mut random);
        let half = self.pause / 2;
        sleep(half + half * u32::from(random[0]) / 255).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

fn read(event: &SseEvent) -> Result<Change, String> {
    serde_json::from_str(&event.data).map_err(|error| format!("an event of the seed cannot be read: {error}"))
}
