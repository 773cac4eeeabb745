//! A named network namespace that is deleted when its guard is dropped, and code that runs inside of one.
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

/// Where `ip netns` keeps its namespaces.
const DIRECTORY: &str = "/run/netns";

/// What the names of test namespaces begin with; the process id follows.
const TEST_PREFIX: &str = "weft-t";

/// A network namespace with a name that `ip -n` and `nsenter --net=` understand; deleted on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
}

impl Netns {
    /// Makes a namespace with exactly this name; its loopback is up.
    pub fn create(name: &str) -> Result<Self> {
        share_directory()?;
        let path = netns_path(name);
        File::options().write(true).create_new(true).open(&path).with_context(|| {
            format!("cannot make the network namespace {name}: run this as root, and `ip netns del {name}` if it is a leftover")
        })?;
        // From here on the guard deletes the file, whatever fails.
        let netns = Self { name: name.into(), path };
        let target = netns.path.clone();
        in_thread(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: run this as root")?;
            // Never /proc/self here: that is the process's first thread, which stays in its own namespace.
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("cannot mount a network namespace on {}", target.display()))
        })??;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Makes a namespace for a test, with a name that no other test uses, and deletes those of tests that were killed.
    pub fn unique(tag: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        collect_dead_tests();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::create(&format!("{TEST_PREFIX}{}-{number}-{tag}", std::process::id()))
    }

    /// Its name, for `ip -n`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread inside of the namespace. Sockets that it opens stay in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        run_in_netns(&self.path, work)
    }

    /// Runs lines of `ip` commands (without the word `ip`) in the namespace; stops at the first that fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run `ip`: install iproute2")?;
        let mut input = child.stdin.take().context("a piped stdin is missing")?;
        // A batch that stops early closes its end; its message says more than the broken pipe would.
        let _ = input.write_all(lines.as_bytes()).and_then(|()| input.write_all(b"\n"));
        drop(input);
        let output = child.wait_with_output().context("cannot wait for `ip`")?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            bail!(
                "in {}: {}: ip {}",
                self.name,
                reason.lines().next().unwrap_or_default(),
                failed_line(&reason, lines)
            );
        }
        Ok(())
    }

    /// Writes a sysctl of the namespace, named as below /proc/sys with dots or slashes.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path =
            if key.contains('/') { format!("/proc/sys/{key}") } else { format!("/proc/sys/{}", key.replace('.', "/")) };
        self.run(|| fs::write(&path, value))?.with_context(|| format!("in {}: cannot set {key} to {value}", self.name))
    }

    /// Starts a command inside of the namespace.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let shown = format!("{command:?}");
        self.run(|| command.spawn())?.with_context(|| format!("in {}: cannot start {shown}", self.name))
    }

    /// Runs a command inside of the namespace and collects what it says.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let shown = format!("{command:?}");
        self.run(|| command.output())?.with_context(|| format!("in {}: cannot run {shown}", self.name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A guard cannot report; a namespace that is gone already is what is wanted.
        let _ = delete_netns(&self.name);
    }
}

/// The path of the namespace with this name.
#[must_use]
pub fn netns_path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Makes the directory a shared mount, as `ip netns add` does (ip-netns(8)): if that came later, it would put a second
/// mount over the namespaces made before, which then could be neither unmounted nor removed.
fn share_directory() -> Result<()> {
    fs::create_dir_all(DIRECTORY).with_context(|| format!("cannot make {DIRECTORY}: run this as root"))?;
    let directory = File::open(DIRECTORY).with_context(|| format!("cannot open {DIRECTORY}"))?;
    // The lock that `ip netns` takes for the same purpose.
    let _lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("cannot lock /run/netns")?;
    let none = None::<&str>;
    let share = || mount(none, DIRECTORY, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    if share() == Err(Errno::EINVAL) {
        mount(Some(DIRECTORY), DIRECTORY, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .with_context(|| format!("cannot make {DIRECTORY} a mount: run this as root"))?;
        share().with_context(|| format!("cannot share the mount {DIRECTORY}"))?;
    }
    Ok(())
}

/// Deletes a namespace's name; one that does not exist is no error. The kernel frees it with its last process.
pub fn delete_netns(name: &str) -> Result<()> {
    let path = netns_path(name);
    loop {
        match umount2(&path, MntFlags::MNT_DETACH) {
            Ok(()) => {} // there may be another mount below
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(error) => return Err(error).with_context(|| format!("cannot unmount {}", path.display())),
        }
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Runs `work` on a thread inside of the namespace at `path`.
pub fn run_in_netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(path).with_context(|| format!("cannot open the network namespace {}", path.display()))?;
    in_thread(move || -> Result<T> {
        setns(&file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the network namespace {}: run this as root", path.display()))?;
        Ok(work())
    })?
}

/// Runs `work` on a thread of its own, so that a changed namespace ends with it; its panic is passed on.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread =
            thread::Builder::new().name("netns".into()).spawn_scoped(scope, work).context("cannot start a thread")?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The processes (not this one) that are in the namespace at `path`.
pub fn processes_in(path: &Path) -> Result<Vec<i32>> {
    let wanted = match fs::metadata(path) {
        Ok(metadata) => (metadata.dev(), metadata.ino()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    };
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let all = fs::read_dir("/proc").context("cannot list /proc")?.flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inside = |pid: &i32| {
        // A process that ended between listing and looking is not there any more.
        fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|found| (found.dev(), found.ino()) == wanted)
    };
    Ok(pids.filter(|pid| *pid != own).filter(inside).collect())
}

/// The line of a batch that `ip` names in its message (`Command failed -:7`); the whole batch if it names none.
fn failed_line<'a>(reason: &str, lines: &'a str) -> &'a str {
    let number = reason.rsplit("-:").next().and_then(|rest| rest.trim().parse::<usize>().ok());
    number.and_then(|number| lines.lines().nth(number.checked_sub(1)?)).unwrap_or(lines)
}

/// Deletes the namespaces of test processes that no longer run.
fn collect_dead_tests() {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let pid = name
            .strip_prefix(TEST_PREFIX)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another test may delete the same one at the same time.
            let _ = delete_netns(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_its_own_and_goes_with_its_guard() {
        let netns = Netns::unique("own").unwrap();
        netns.ip("link add v0 type veth peer name v1\naddr add 198.18.0.1/24 dev v0\nlink set v0 up").unwrap();
        let inside = netns.run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        assert!(inside.contains("v0:"), "{inside}");
        assert!(!fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("v0:"));
        let path = netns.path().to_owned();
        drop(netns);
        assert!(!path.exists());
    }

    #[test]
    fn a_child_started_inside_is_found_and_its_namespace_outlives_no_guard() {
        let netns = Netns::unique("child").unwrap();
        let child = netns.spawn(Command::new("sleep").arg("1000")).unwrap();
        let guard = crate::ChildGuard::new(child);
        let pid = i32::try_from(guard.pid()).unwrap();
        assert_eq!(processes_in(netns.path()).unwrap(), vec![pid]);
        drop(guard);
        assert_eq!(processes_in(netns.path()).unwrap(), Vec::<i32>::new());
    }

    #[test]
    fn a_failing_batch_names_the_namespace_and_the_line() {
        let netns = Netns::unique("batch").unwrap();
        let error = netns.ip("link set lo up\nlink set nothing up\nlink set lo down").unwrap_err().to_string();
        assert!(error.contains(netns.name()) && error.ends_with("ip link set nothing up"), "{error}");
    }

    #[test]
    fn sysctls_are_written_inside_only() {
        let netns = Netns::unique("sysctl").unwrap();
        let outside = fs::read_to_string("/proc/sys/net/ipv6/conf/default/hop_limit").unwrap();
        netns.sysctl("net.ipv6.conf.default.hop_limit", "33").unwrap();
        let inside = netns.run(|| fs::read_to_string("/proc/sys/net/ipv6/conf/default/hop_limit").unwrap()).unwrap();
        assert_eq!(inside.trim(), "33");
        assert_eq!(fs::read_to_string("/proc/sys/net/ipv6/conf/default/hop_limit").unwrap(), outside);
        assert!(netns.sysctl("net.no.such", "1").is_err());
    }

    #[test]
    fn two_guards_never_share_a_name() {
        let first = Netns::unique("same").unwrap();
        assert!(Netns::create(first.name()).is_err());
        assert!(first.path().exists(), "a refused second one must not delete the first");
    }
}
