//! A thread that owns a database connection: SQLite blocks, async callers must not.
use std::{io, thread};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::StoreError;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the thread; it ends when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    pub(super) fn spawn(name: &str, mut connection: Connection) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(256);
        thread::Builder::new().name(name.into()).spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                job(&mut connection);
            }
        })?;
        Ok(Self { jobs })
    }

    /// Runs work on the thread. It is done even if the caller stops waiting.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let gone = || StoreError::Unavailable { reason: "its thread has ended".into() };
        let (answer, wait) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Nobody waits any more: the work is done all the same.
            let _ = answer.send(work(connection));
        });
        self.jobs.send(job).await.map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?
    }
}
