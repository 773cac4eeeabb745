//! Targets: the declared steps by which a node or a workspace comes up. A pure engine: it is told what was seen and when,
//! and says what is to be looked at next. The shell that looks is in `probe`.
pub mod declared;
pub mod probe;

use std::{collections::BTreeMap, time::Duration};

use weft_model::targets::{TargetReport, TargetState};

/// A moment on two clocks: one that never jumps, for intervals; and the wall's, to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Since some fixed start.
    pub mono: Duration,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

/// A target as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// What must be done (or skipped) first.
    pub after: Vec<String>,
    /// How long one look may take.
    pub limit: Duration,
    /// How often it is looked at again while it is done.
    pub every: Duration,
}

impl Declared {
    /// A target with the usual limits: a look takes 2 s at most, and is repeated every 5 s.
    #[must_use]
    pub fn new(name: &str, after: &[&str]) -> Self {
        let after = after.iter().map(ToString::to_string).collect();
        Self { name: name.into(), after, limit: Duration::from_secs(2), every: Duration::from_secs(5) }
    }

    /// Looked at again after this time while it is done.
    #[must_use]
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }
}

/// What a look at a target found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// True now.
    Done,
    /// Does not apply here, and why.
    Skipped(String),
    /// At work; the text says on what.
    Running(String),
    /// Not true, by no fault of its own: what it waits for.
    Waits(String),
    /// Tried, and failed: why, and what to do.
    Failed(String),
}

/// Why a set of declared targets cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// The same name twice.
    #[error("target {0} is declared twice: rename one")]
    Twice(String),
    /// An edge to nowhere.
    #[error("target {target} is to come after {after}, which is not declared: correct the name or declare it")]
    Unknown {
        /// The target with the edge.
        target: String,
        /// The name that nobody has.
        after: String,
    },
    /// Targets that wait for each other.
    #[error("targets wait for each other in a circle: {0}: remove one of these edges")]
    Cycle(String),
}

/// The delay before a failed target is tried again: doubles up to the time between looks.
const FIRST_RETRY: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct Target {
    declared: Declared,
    state: TargetState,
    since_ms: u64,
    started: Option<Duration>,
    took: Option<Duration>,
    attempts: u32,
    reason: Option<String>,
    due: Duration,
}

/// The targets of one object.
#[derive(Debug)]
pub struct Graph {
    targets: Vec<Target>,
    index: BTreeMap<String, usize>,
}

impl Graph {
    /// Checks the declarations: a name used twice, an edge to nowhere and a circle are refused.
    pub fn new(declared: Vec<Declared>, now: Moment) -> Result<Self, GraphError> {
        let mut index = BTreeMap::new();
        for (place, target) in declared.iter().enumerate() {
            if index.insert(target.name.clone(), place).is_some() {
                return Err(GraphError::Twice(target.name.clone()));
            }
        }
        for target in &declared {
            if let Some(after) = target.after.iter().find(|after| !index.contains_key(*after)) {
                return Err(GraphError::Unknown { target: target.name.clone(), after: after.clone() });
            }
        }
        refuse_cycles(&declared)?;
        let targets = declared.into_iter().map(|declared| Target {
            declared,
            state: TargetState::Waiting,
            since_ms: now.unix_ms,
            started: None,
            took: None,
            attempts: 0,
            reason: None,
            due: now.mono,
        });
        let mut graph = Self { targets: targets.collect(), index };
        graph.propagate(now);
        Ok(graph)
    }

    /// The targets to look at now: their edges are satisfied and their time has come.
    #[must_use]
    pub fn due(&self, now: Moment) -> Vec<String> {
        let due = self.targets.iter().filter(|target| target.due <= now.mono && self.blocker(target).is_none());
        due.map(|target| target.declared.name.clone()).collect()
    }

    /// When the next look is due.
    #[must_use]
    pub fn next_look(&self) -> Option<Duration> {
        self.targets.iter().filter(|target| self.blocker(target).is_none()).map(|target| target.due).min()
    }

    /// How long one look at this target may take.
    #[must_use]
    pub fn limit(&self, name: &str) -> Duration {
        self.get(name).map_or(Duration::ZERO, |target| target.declared.limit)
    }

    /// Work on this target begins: the time that it takes counts from here.
    pub fn begin(&mut self, name: &str, now: Moment) {
        let Some(target) = self.get_mut(name) else { return };
        if target.started.is_none() && target.state != TargetState::Done {
            target.started = Some(now.mono);
        }
    }

    /// Asks for a look at this target at once: something it depends on has changed.
    pub fn poke(&mut self, name: &str, now: Moment) {
        if let Some(target) = self.get_mut(name) {
            target.due = now.mono;
        }
    }

    /// Records what a look found. Whether anything that `explain` shows has changed.
    pub fn observe(&mut self, name: &str, verdict: Verdict, now: Moment) -> bool {
        let Some(&place) = self.index.get(name) else { return false };
        let blocked = self.blocker(&self.targets[place]).is_some();
        let target = &mut self.targets[place];
        // A look that began before its edge broke says nothing: the edge decides.
        if blocked && !matches!(verdict, Verdict::Skipped(_)) {
            return false;
        }
        let before = (target.state, target.reason.clone());
        target.see(verdict, now);
        let changed = before != (target.state, target.reason.clone());
        changed | self.propagate(now)
    }

    /// What `explain` shows.
    #[must_use]
    pub fn reports(&self) -> Vec<TargetReport> {
        let report = |target: &Target| TargetReport {
            name: target.declared.name.clone(),
            state: target.state,
            after: target.declared.after.clone(),
            since_ms: target.since_ms,
            took_us: target.took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            attempts: target.attempts,
            reason: target.reason.clone(),
        };
        self.targets.iter().map(report).collect()
    }

    /// The state of one target.
    #[must_use]
    pub fn state(&self, name: &str) -> Option<TargetState> {
        self.get(name).map(|target| target.state)
    }

    /// Whether this target is done or does not apply.
    #[must_use]
    pub fn satisfied(&self, name: &str) -> bool {
        self.get(name).is_some_and(Target::satisfied)
    }

    fn get(&self, name: &str) -> Option<&Target> {
        self.targets.get(*self.index.get(name)?)
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut Target> {
        self.targets.get_mut(*self.index.get(name)?)
    }

    /// The edges of a target that are not satisfied, as text.
    fn blocker(&self, target: &Target) -> Option<String> {
        let open = target.declared.after.iter().filter(|after| !self.satisfied(after));
        let open: Vec<&str> = open.map(String::as_str).collect();
        (!open.is_empty()).then(|| open.join(", "))
    }

    /// Lets the edges decide: what stands after something that is not done waits, and is looked at once it is.
    fn propagate(&mut self, now: Moment) -> bool {
        let mut changed = false;
        // One pass for each possible length of a chain is enough: there are no circles.
        for _ in 0..self.targets.len() {
            let mut again = false;
            for place in 0..self.targets.len() {
                let blocker = self.blocker(&self.targets[place]);
                again |= self.targets[place].block(blocker, now);
            }
            changed |= again;
            if !again {
                break;
            }
        }
        changed
    }
}

impl Target {
    fn satisfied(&self) -> bool {
        matches!(self.state, TargetState::Done | TargetState::Skipped)
    }

    fn enter(&mut self, state: TargetState, reason: Option<String>, now: Moment) {
        if self.state != state {
            self.state = state;
            self.since_ms = now.unix_ms;
        }
        self.reason = reason;
    }

    fn see(&mut self, verdict: Verdict, now: Moment) {
        let started = *self.started.get_or_insert(now.mono);
        // The count starts again with the first look after it was done.
        let attempts = if self.satisfied() { 1 } else { self.attempts.saturating_add(1) };
        match verdict {
            Verdict::Done => {
                if self.state != TargetState::Done {
                    self.took = Some(now.mono.saturating_sub(started));
                    self.attempts = attempts;
                }
                self.started = None;
                self.enter(TargetState::Done, None, now);
                self.due = now.mono + self.declared.every;
            }
            Verdict::Skipped(why) => {
                self.started = None;
                self.attempts = 0;
                self.enter(TargetState::Skipped, Some(why), now);
                self.due = now.mono + self.declared.every;
            }
            Verdict::Running(what) => self.retry(TargetState::Running, what, attempts, now),
            Verdict::Waits(what) => self.retry(TargetState::Waiting, what, attempts, now),
            Verdict::Failed(why) => self.retry(TargetState::Failed, why, attempts, now),
        }
    }

    fn retry(&mut self, state: TargetState, reason: String, attempts: u32, now: Moment) {
        self.attempts = attempts;
        self.enter(state, Some(reason), now);
        let delay = FIRST_RETRY.saturating_mul(1 << (attempts - 1).min(5));
        self.due = now.mono + delay.min(self.declared.every);
    }

    /// Applies what the edges say; whether that changed anything.
    fn block(&mut self, blocker: Option<String>, now: Moment) -> bool {
        let before = (self.state, self.reason.clone());
        match blocker {
            Some(blocker) if self.state != TargetState::Skipped => {
                self.started = None;
                self.enter(TargetState::Waiting, Some(format!("waits for {blocker}")), now);
                self.due = now.mono;
            }
            None if self.state == TargetState::Waiting && self.started.is_none() => {
                self.attempts = 0;
                self.started = Some(now.mono);
                self.enter(TargetState::Running, None, now);
                self.due = now.mono;
            }
            _ => {}
        }
        before != (self.state, self.reason.clone())
    }
}

/// Takes away, again and again, what waits for nothing; what is left waits for itself.
fn refuse_cycles(declared: &[Declared]) -> Result<(), GraphError> {
    let mut left: Vec<&Declared> = declared.iter().collect();
    loop {
        let names: Vec<&str> = left.iter().map(|target| target.name.as_str()).collect();
        let (stuck, free): (Vec<_>, Vec<_>) =
            left.iter().partition(|target| target.after.iter().any(|after| names.contains(&after.as_str())));
        if stuck.is_empty() {
            return Ok(());
        }
        if free.is_empty() {
            return Err(GraphError::Cycle(names.join(", ")));
        }
        left = stuck;
    }
}

#[cfg(test)]
mod tests;
