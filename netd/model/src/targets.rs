//! Targets: the declared steps by which a node or a workspace comes up, and what `netctl explain` shows of them.
use serde::{Deserialize, Serialize};

/// What a target is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetState {
    /// Waits for the targets in `after` that are not done.
    Waiting,
    /// At work on its first attempt, or on another.
    Running,
    /// True now.
    Done,
    /// Tried and failed; is tried again.
    Failed,
    /// Does not apply to this node or workspace.
    Skipped,
}

/// One target's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetReport {
    /// Its name, for example `tunnel-verified`.
    pub name: String,
    /// What it is doing.
    pub state: TargetState,
    /// The targets that must be done first.
    pub after: Vec<String>,
    /// Since when it is in this state, in milliseconds since 1970.
    pub since_ms: u64,
    /// How long the last change to `done` took, in microseconds.
    pub took_us: Option<u64>,
    /// How often it was tried since it was last done.
    pub attempts: u32,
    /// Why it is not done: the last error, or what it waits for.
    pub reason: Option<String>,
}

/// What `netctl explain` prints: the targets in the order in which they are declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The object: `node a` or `workspace k3v7qz2mna`.
    pub object: String,
    /// Its targets.
    pub targets: Vec<TargetReport>,
    /// For a workspace: its node's targets, on which `published` and IPv4 depend.
    #[serde(default)]
    pub node: Vec<TargetReport>,
}

impl Explanation {
    /// Whether every target that applies is done.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.targets.iter().all(|target| matches!(target.state, TargetState::Done | TargetState::Skipped))
    }
}
