//! The seam between netd and the kernel: all that netd asks of it, so that everything above can be tested without one.
use std::{
    collections::BTreeSet,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use tokio::sync::{Mutex, watch};
use weft_kernel::{Counters, Error, Facts, Kernel};
use weft_model::{ApiError, ErrorCode, WorkspaceId};
use weft_plan::{LinkSpec, NodeView, desired, missing, plan};

use crate::journal::NetnsId;

/// What netd asks of the kernel.
#[async_trait]
pub trait DataPath: Send + Sync + 'static {
    /// Uplink and local addresses as they are now.
    async fn facts(&self) -> Result<Facts, ApiError>;
    /// Which network namespace is at a path.
    fn netns(&self, path: &Path) -> Result<NetnsId, ApiError>;
    /// Makes a workspace's link: all of it or nothing.
    async fn attach(&self, spec: &LinkSpec, netns: &Path) -> Result<(), ApiError>;
    /// Removes a workspace's link; again, it succeeds too.
    async fn detach(&self, id: WorkspaceId) -> Result<(), ApiError>;
    /// Observes, plans, applies and verifies. `view` may be asked several times: what it gives then is what counts.
    async fn reconcile(&self, view: &(dyn Fn() -> Option<NodeView> + Sync)) -> Reconciled;
    /// The data path's counters.
    async fn counters(&self) -> Result<Counters, ApiError>;
    /// Forgets flows that have been idle for too long.
    async fn expire_flows(&self) -> Result<(), ApiError>;
    /// Fires when links, addresses or routes change.
    fn watch(&self) -> Result<watch::Receiver<u64>, ApiError>;
}

/// What a reconciliation did and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// The steps that were taken.
    pub applied: Vec<String>,
    /// What failed, or was still to be done afterwards; empty if the kernel is as it should be.
    pub errors: Vec<String>,
    /// Workspaces whose link is there.
    pub links: BTreeSet<WorkspaceId>,
    /// Workspaces whose link is not there at all.
    pub missing: BTreeSet<WorkspaceId>,
}

/// The kernel of this process's network namespace.
#[derive(Debug)]
pub struct KernelPath {
    kernel: Kernel,
    change: Mutex<()>,
    generation: AtomicU64,
}

/// How often a reconciliation looks again because a workspace came or went meanwhile; the last look excludes that.
const OPTIMISTIC_LOOKS: usize = 3;

impl KernelPath {
    /// Around an open kernel.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self { kernel, change: Mutex::new(()), generation: AtomicU64::new(0) }
    }
}

/// A link that is being made or removed: what is seen before it begins, or while it goes on, is worth nothing afterwards.
struct Moves<'a>(&'a AtomicU64);

impl<'a> Moves<'a> {
    fn begin(generation: &'a AtomicU64) -> Self {
        generation.fetch_add(1, Ordering::SeqCst);
        Self(generation)
    }
}

impl Drop for Moves<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn api_error(error: &Error) -> ApiError {
    let code = match error {
        Error::NoNetns { .. } | Error::NotANetns { .. } | Error::OwnNetns { .. } => ErrorCode::Invalid,
        Error::HasEth0 { .. } => ErrorCode::Conflict,
        _ => ErrorCode::Internal,
    };
    let text = error.to_string();
    let (message, hint) =
        text.rsplit_once(": ").or_else(|| text.rsplit_once("; ")).unwrap_or((&text, "see netd's log"));
    let answer = ApiError::new(code, message, hint);
    match error {
        Error::NoNetns { path, .. }
        | Error::NotANetns { path }
        | Error::OwnNetns { path }
        | Error::HasEth0 { path } => answer.blame("netns", path.display()),
        _ => answer,
    }
}

/// The identity of the network namespace at a path: its place in the nsfs.
fn nsfs_id(path: &Path) -> Result<NetnsId, ApiError> {
    let wrong = |message: String| {
        let hint = "give the path of a running workspace's, for example /run/netns/NAME or /proc/PID/ns/net";
        ApiError::new(ErrorCode::Invalid, message, hint).blame("netns", path.display())
    };
    if !path.is_absolute() {
        return Err(wrong(format!("{} is a relative path, and netd has another working directory", path.display())));
    }
    let none =
        |error: &dyn std::fmt::Display| wrong(format!("there is no network namespace at {} ({error})", path.display()));
    let kind = nix::sys::statfs::statfs(path).map_err(|error| none(&error))?.filesystem_type();
    if kind != nix::sys::statfs::NSFS_MAGIC {
        return Err(wrong(format!("{} is not a network namespace", path.display())));
    }
    let metadata = std::fs::metadata(path).map_err(|error| none(&error))?;
    Ok(NetnsId { dev: metadata.dev(), inode: metadata.ino() })
}

#[async_trait]
impl DataPath for KernelPath {
    async fn facts(&self) -> Result<Facts, ApiError> {
        self.kernel.facts().await.map_err(|error| api_error(&error))
    }

    fn netns(&self, path: &Path) -> Result<NetnsId, ApiError> {
        nsfs_id(path)
    }

    async fn attach(&self, spec: &LinkSpec, netns: &Path) -> Result<(), ApiError> {
        let _change = self.change.lock().await;
        let _moves = Moves::begin(&self.generation);
        self.kernel.attach(spec, netns).await.map_err(|error| api_error(&error))
    }

    async fn detach(&self, id: WorkspaceId) -> Result<(), ApiError> {
        let _change = self.change.lock().await;
        let _moves = Moves::begin(&self.generation);
        self.kernel.detach(id).await.map_err(|error| api_error(&error))
    }

    async fn reconcile(&self, view: &(dyn Fn() -> Option<NodeView> + Sync)) -> Reconciled {
        let mut looks = 0;
        loop {
            looks += 1;
            let early = if looks > OPTIMISTIC_LOOKS { Some(self.change.lock().await) } else { None };
            let generation = self.generation.load(Ordering::SeqCst);
            let Some(view) = view() else { return Reconciled::default() };
            let desired = desired(&view);
            let observed = match self.kernel.observe().await {
                Ok(observed) => observed,
                // A burst of attaches changes the kernel faster than it can be read: look again with that excluded.
                Err(_) if early.is_none() => {
                    looks = OPTIMISTIC_LOOKS;
                    continue;
                }
                Err(error) => return Reconciled { errors: vec![error.to_string()], ..Reconciled::default() },
            };
            let ops = plan(&desired, &observed);
            let links = observed.links.keys().filter(|id| desired.links.contains_key(id)).copied().collect();
            let mut result = Reconciled {
                links,
                missing: missing(&desired, &observed).into_iter().collect(),
                ..Reconciled::default()
            };
            // What was seen is worth something only if no workspace came or went since.
            let _change = match early {
                Some(change) => change,
                None => self.change.lock().await,
            };
            if self.generation.load(Ordering::SeqCst) != generation {
                continue;
            }
            if ops.is_empty() {
                return result;
            }
            for op in &ops {
                match self.kernel.apply(op).await {
                    Ok(()) => result.applied.push(format!("{op:?}")),
                    Err(error) => result.errors.push(error.to_string()),
                }
            }
            match self.kernel.observe().await {
                Ok(observed) => {
                    let left = plan(&desired, &observed);
                    if let (Some(first), true) = (left.first(), result.errors.is_empty()) {
                        result
                            .errors
                            .push(format!("{} steps are left after all were taken; the first: {first:?}", left.len()));
                    }
                }
                Err(error) => result.errors.push(error.to_string()),
            }
            return result;
        }
    }

    async fn counters(&self) -> Result<Counters, ApiError> {
        self.kernel.counters().await.map_err(|error| api_error(&error))
    }

    async fn expire_flows(&self) -> Result<(), ApiError> {
        self.kernel.gc_flows().await.map(drop).map_err(|error| api_error(&error))
    }

    fn watch(&self) -> Result<watch::Receiver<u64>, ApiError> {
        self.kernel.watch().map_err(|error| api_error(&error))
    }
}
