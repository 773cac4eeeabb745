//! Keeps the routing table true: follows netd's stream of events, and the last state on disk for when netd is away.
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};
use weft_client::Client;
use weft_model::api::RouteEvent;
use weft_proxy_core::{Applied, Table};

use crate::{live::Live, metrics::Metrics};

/// The stream's path in netd's API.
const WATCH: &str = "/v1/routes/watch";
/// Waiting times between attempts to reach netd.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long changes are gathered before they are written.
const SETTLE: Duration = Duration::from_millis(500);

/// The table's feeder.
pub(crate) struct Feed {
    /// netd.
    pub(crate) client: Client,
    /// The table.
    pub(crate) table: Arc<RwLock<Table>>,
    /// The requests in progress, which follow its changes.
    pub(crate) live: Arc<Live>,
    /// The counters.
    pub(crate) metrics: Arc<Metrics>,
    /// Where the last state is kept.
    pub(crate) file: PathBuf,
}

impl Feed {
    /// Loads the last state. A file that cannot be used is said and passed over: netd knows better anyway.
    pub(crate) fn restore(&self) {
        let text = match std::fs::read(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => {
                warn!(file = %self.file.display(), %error, "cannot read the last routes; waiting for netd's");
                return;
            }
        };
        match serde_json::from_slice::<RouteEvent>(&text) {
            Ok(event @ RouteEvent::Snapshot { .. }) => {
                self.apply(event);
                info!(file = %self.file.display(), routes = self.metrics.routes.load(Ordering::Relaxed), "serving the last known routes until netd answers");
            }
            Ok(_) => warn!(file = %self.file.display(), "the last routes are not a snapshot; waiting for netd's"),
            Err(error) => {
                warn!(file = %self.file.display(), %error, "the last routes cannot be understood; waiting for netd's")
            }
        }
    }

    /// Follows netd for ever.
    pub(crate) async fn run(self) {
        let mut wait = BACK_OFF.0;
        let mut said = false;
        loop {
            let ended = match self.client.events(WATCH).await {
                Ok(events) => {
                    let (applied, reason) = self.follow(events).await;
                    if applied > 0 {
                        wait = BACK_OFF.0;
                        said = false;
                    }
                    reason
                }
                Err(error) => error.to_string(),
            };
            self.metrics.netd_connected.store(false, Ordering::Relaxed);
            // Said once an outage: the metric tells that it lasts.
            if !std::mem::replace(&mut said, true) {
                warn!(reason = ended, "netd's routes cannot be followed; serving the last known ones and trying again");
            }
            sleep(wait).await;
            wait = (wait * 2).min(BACK_OFF.1);
        }
    }

    /// Applies a stream's events until it ends; returns how many there were, and why it ended.
    async fn follow(&self, mut events: weft_client::EventStream) -> (u64, String) {
        let mut applied = 0;
        let mut unsaved: Option<Instant> = None;
        let reason = loop {
            let settle = async {
                match unsaved {
                    Some(since) => sleep_until(since + SETTLE).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = events.next() => event,
                () = settle => {
                    unsaved = None;
                    self.save().await;
                    continue;
                }
            };
            let event = match event {
                None => break "netd closed the stream".into(),
                Some(Err(error)) => break error.to_string(),
                Some(Ok(event)) => event,
            };
            let event = match serde_json::from_str::<RouteEvent>(&event.data) {
                Ok(event) => event,
                // After an event that was missed the table may be wrong: begin again with a snapshot.
                Err(error) => {
                    break format!("an event cannot be understood ({error}): are netd and weft-proxy of one version?");
                }
            };
            if applied == 0 && !matches!(event, RouteEvent::Snapshot { .. }) {
                break "the stream did not begin with a snapshot: are netd and weft-proxy of one version?".into();
            }
            if applied == 0 {
                self.metrics.netd_connected.store(true, Ordering::Relaxed);
            }
            applied += 1;
            if self.apply(event) == Applied::Changed {
                unsaved.get_or_insert_with(Instant::now);
            }
            if applied == 1 {
                info!(routes = self.metrics.routes.load(Ordering::Relaxed), "following netd's routes");
            }
        };
        if unsaved.is_some() {
            self.save().await;
        }
        (applied, reason)
    }

    fn apply(&self, event: RouteEvent) -> Applied {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let about = match &event {
            RouteEvent::Snapshot { .. } => None,
            RouteEvent::Upsert { route } => Some(route.id),
            RouteEvent::Remove { id } => Some(*id),
        };
        let applied = table.apply(event);
        if applied == Applied::Changed {
            self.live.recheck(about, &table);
        }
        self.metrics.route_events.fetch_add(1, Ordering::Relaxed);
        self.metrics.routes.store(table.len() as u64, Ordering::Relaxed);
        match applied {
            Applied::Stale => {
                warn!(workspace = ?about, "netd told of an older attachment than the one that is known; ignored")
            }
            Applied::Changed | Applied::Unchanged => debug!(workspace = ?about, ?applied, "route event"),
        }
        applied
    }

    async fn save(&self) {
        let snapshot = self.table.read().unwrap_or_else(PoisonError::into_inner).snapshot();
        let Some(snapshot) = snapshot else { return };
        let file = self.file.clone();
        let written = tokio::task::spawn_blocking(move || write_whole(&file, &snapshot)).await;
        let error = match written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        warn!(file = %self.file.display(), error, "cannot keep the routes on disk: a restart while netd is away would begin empty; make --state-dir writable");
    }
}

/// Writes a file so that a crash leaves the old one or the new one.
fn write_whole(path: &Path, snapshot: &RouteEvent) -> std::io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(snapshot)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
}
