//! One SQLite file that survives kill -9 at any time and that an operator can open with sqlite3.
mod file;
mod tables;
mod worker;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::stream;
use tokio::sync::watch;
use weft_model::object::{Kind, Object};

use self::{
    tables::{Failure, Page},
    worker::Worker,
};
use crate::{Change, Revision, Store, StoreError, Txn, Version, WatchStream};

/// The newest schema that this version reads and writes.
pub const SCHEMA: i64 = 1;
/// Changes that the log keeps for watches that resume.
const LOG: u64 = 100_000;

/// The store of a seed. Cheap to clone.
#[derive(Clone)]
pub struct Embedded {
    path: Arc<PathBuf>,
    writer: Worker,
    reader: Worker,
    /// Rings after each commit with the newest revision; watches then read the log.
    doorbell: Arc<watch::Sender<Revision>>,
    log: u64,
}

impl Embedded {
    /// Opens the file, or makes it (0600). Blocks for a few milliseconds.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with_log(path, LOG)
    }

    fn open_with_log(path: &Path, log: u64) -> Result<Self, StoreError> {
        let connection = file::open(path)?;
        let revision = tables::revision(&connection).map_err(|error| file::failure(path, &error))?;
        let thread = |name, connection| Worker::spawn(name, connection).map_err(|error| file::io_error(path, &error));
        Ok(Self {
            writer: thread("store-write", connection)?,
            // A connection of its own: with WAL, long lists do not hold up writers.
            reader: thread("store-read", file::open(path)?)?,
            path: Arc::new(path.into()),
            doorbell: Arc::new(watch::Sender::new(revision)),
            log,
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let path = self.path.clone();
        self.reader.run(move |connection| work(connection).map_err(|error| file::failure(&path, &error))).await
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Object>, StoreError> {
        let name = name.to_owned();
        self.read(move |connection| tables::get(connection, kind, &name)).await
    }

    async fn list(&self, kind: Kind) -> Result<(Vec<Object>, Revision), StoreError> {
        self.read(move |connection| tables::list(connection, kind)).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        let (path, doorbell, log) = (self.path.clone(), self.doorbell.clone(), self.log);
        let work = move |connection: &mut rusqlite::Connection| match tables::commit(connection, &txn, log) {
            Ok(revision) => {
                doorbell.send_if_modified(|newest| std::mem::replace(newest, revision) != revision);
                Ok(revision)
            }
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Sqlite(error)) => Err(file::failure(&path, &error)),
        };
        self.writer.run(work).await
    }

    async fn history(&self, kind: Kind, name: &str) -> Result<Vec<Version>, StoreError> {
        let name = name.to_owned();
        self.read(move |connection| tables::history(connection, kind, &name)).await
    }

    async fn watch(&self, from: Revision) -> Result<WatchStream, StoreError> {
        let watch =
            Watch { store: self.clone(), doorbell: self.doorbell.subscribe(), last: from, ready: VecDeque::new() };
        Ok(Box::pin(stream::unfold(Some(watch), Watch::next)))
    }
}

/// A watch in progress. It holds no queue of its own beyond one page: a slow reader costs no memory.
struct Watch {
    store: Embedded,
    doorbell: watch::Receiver<Revision>,
    last: Revision,
    ready: VecDeque<Change>,
}

impl Watch {
    /// The next change and the state after it; a resync is the last.
    async fn next(state: Option<Self>) -> Option<(Change, Option<Self>)> {
        let mut state = state?;
        loop {
            if let Some(change) = state.ready.pop_front() {
                return Some((change, Some(state)));
            }
            // Marked as seen before the log is read: a commit in between rings again.
            state.doorbell.borrow_and_update();
            let after = state.last;
            match state.store.read(move |connection| tables::changes(connection, after)).await {
                Ok(Page::Changes(changes, upto)) => {
                    state.ready.extend(changes);
                    if upto == state.last {
                        state.doorbell.changed().await.ok()?;
                    }
                    state.last = upto;
                }
                Ok(Page::Gap) => return Some((Change::Resync, None)),
                Err(error) => {
                    tracing::warn!(%error, "a watch ends");
                    return Some((Change::Resync, None));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
