//! A child process that does not outlive its guard.
use std::process::{Child, ExitStatus};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Kills (SIGKILL) and reaps its child when dropped.
#[derive(Debug)]
pub struct ChildGuard {
    child: Child,
}

impl ChildGuard {
    /// Guards a child.
    #[must_use]
    pub fn new(child: Child) -> Self {
        Self { child }
    }

    /// The child's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child, to read from its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How the child ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal; a child that has been reaped is never signalled, since its id may be another's by now.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.exited() {
            anyhow::bail!("process {} has ended already: {status}", self.pid());
        }
        let pid = i32::try_from(self.pid()).context("a process id does not fit")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to process {pid}"))
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if self.exited().is_none() {
            self.child.kill().context("cannot kill a child")?;
        }
        self.child.wait().context("cannot wait for a child")
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // Nothing can be done here about a child that cannot be killed; the parent-death signal is the second net.
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait_until;
    use std::{path::Path, process::Command, time::Duration};

    #[test]
    fn a_dropped_guard_leaves_no_process() {
        let guard = ChildGuard::new(Command::new("sleep").arg("1000").spawn().unwrap());
        let entry = format!("/proc/{}", guard.pid());
        assert!(Path::new(&entry).exists());
        drop(guard);
        wait_until("the child's end", Duration::from_secs(5), || !Path::new(&entry).exists()).unwrap();
    }

    #[test]
    fn an_ended_child_is_not_signalled() {
        let mut guard = ChildGuard::new(Command::new("true").spawn().unwrap());
        wait_until("the child's end", Duration::from_secs(5), || guard.exited().is_some()).unwrap();
        assert!(guard.signal(Signal::SIGTERM).unwrap_err().to_string().contains("ended"));
    }
}
