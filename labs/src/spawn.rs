//! Starts programs inside of a machine of the lab, so that none outlives the runner and each sees the machine's resolver.
//!
//! A program is started through `lab enter`, which changes the namespaces of its own process and then becomes the program.
use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        OnceLock,
        mpsc::{Sender, channel},
    },
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::getppid,
};

/// Where the project's binaries are: `WEFT_BIN_DIR`, or beside this program (tests are one folder deeper).
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("WEFT_BIN_DIR") {
        return Ok(dir.into());
    }
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let dir = own.parent().context("this program's file is in no folder")?;
    let above = dir.parent().filter(|_| dir.ends_with("deps")).unwrap_or(dir);
    Ok(above.to_owned())
}

/// One of the project's binaries.
pub fn bin(name: &str) -> Result<PathBuf> {
    let path = bin_dir()?.join(name);
    ensure!(
        path.exists(),
        "{} is not built: run `cargo build --workspace --bins`, or set WEFT_BIN_DIR",
        path.display()
    );
    Ok(path)
}

/// How a program is to be started.
#[derive(Debug, Clone)]
pub struct Inside {
    /// The network namespace.
    pub netns: PathBuf,
    /// What the program finds as /etc/resolv.conf.
    pub resolv_conf: Option<PathBuf>,
}

impl Inside {
    /// A command that runs `program` inside. It must be started on a thread that lives as long as the program may.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = Command::new(bin("lab")?);
        command.arg("enter").arg("--parent").arg(std::process::id().to_string()).arg("--netns").arg(&self.netns);
        if let Some(file) = &self.resolv_conf {
            command.arg("--resolv-conf").arg(file);
        }
        command.arg("--").arg(program);
        Ok(command)
    }
}

/// `lab enter`: ties this process to its parent's life, enters the namespaces and becomes the program. Returns only an error.
pub fn enter(netns: &Path, resolv_conf: Option<&Path>, parent: Option<i32>, program: &[String]) -> Result<()> {
    if let Some(parent) = parent {
        set_pdeathsig(Signal::SIGKILL).context("cannot ask for the parent-death signal")?;
        ensure!(getppid().as_raw() == parent, "the lab runner ended before its child began");
    }
    let file = File::open(netns).with_context(|| format!("no network namespace {}: see `lab ls`", netns.display()))?;
    setns(&file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter the network namespace {}: run this as root", netns.display()))?;
    drop(file);
    if let Some(resolv_conf) = resolv_conf {
        own_resolv_conf(resolv_conf)?;
    }
    let (program, arguments) = program.split_first().context("no program is given: write it after --")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {program}: install it, or build it"))
}

/// Puts a file over /etc/resolv.conf, for this process and its children alone.
fn own_resolv_conf(file: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace: run this as root")?;
    // Slave and not private: an unmount outside, of a namespace's file, must also happen in here.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .context("cannot make the mounts slaves")?;
    let target = "/etc/resolv.conf";
    mount(Some(file), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot put {} over {target}: make sure that {target} exists", file.display()))
}

type Job = Box<dyn FnOnce() + Send>;

/// Starts a command on a thread that lives as long as this process: a child's parent-death signal is sent when the
/// thread that made it ends, and the threads of tests and of async runtimes come and go.
pub fn spawn(mut command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (send, jobs) = channel::<Job>();
        thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        send
    });
    let (answer, wait) = channel();
    let shown = format!("{command:?}");
    let job: Job = Box::new(move || {
        // Nobody waits any more only if the caller's thread panicked.
        let _ = answer.send(command.spawn());
    });
    spawner.send(job).ok().context("the thread that starts children is gone")?;
    let child = wait.recv().context("the thread that starts children is gone")?;
    child.with_context(|| format!("cannot start {shown}"))
}
