//! Network namespaces of a benchmark: made, wired with veth, and deleted when dropped.
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace and what runs in it.
pub(crate) struct Ns {
    name: String,
    children: Vec<Child>,
}

impl Ns {
    /// Makes a namespace of a unique name, with its loopback up.
    pub(crate) fn new(role: &str) -> Result<Self> {
        let name = format!("weft-bench-{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let ns = Self { name, children: Vec::new() };
        run(Command::new("ip").args(["netns", "add", &ns.name]))?;
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Its path.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A command that will run inside.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }

    /// `ip` inside, with arguments split at spaces.
    pub(crate) fn ip(&self, args: &str) -> Result<()> {
        run(self.command("ip").args(args.split(' '))).map(drop)
    }

    /// A shell line inside.
    pub(crate) fn sh(&self, line: &str) -> Result<String> {
        let output = run(self.command("sh").args(["-c", line]))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a process that lives until the namespace is dropped.
    pub(crate) fn spawn(&mut self, command: &mut Command) -> Result<u32> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(if std::env::var_os("BENCH_VERBOSE").is_some() { Stdio::inherit() } else { Stdio::null() })
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let pid = child.id();
        self.children.push(child);
        Ok(pid)
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Joins two namespaces by a veth: `(namespace, interface, addresses)`.
pub(crate) fn veth(left: (&Ns, &str, &[&str]), right: (&Ns, &str, &[&str])) -> Result<()> {
    left.0.ip(&format!("link add {} type veth peer name {} netns {}", left.1, right.1, right.0.name))?;
    for (ns, device, addresses) in [left, right] {
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            ns.ip(&format!("addr add {address} dev {device}{nodad}"))?;
        }
        ns.ip(&format!("link set {device} up"))?;
    }
    Ok(())
}

/// Runs a command and insists on success.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}{}",
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(output)
}

/// Waits until a condition holds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        if Instant::now() > deadline {
            bail!("waited 15 s for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
