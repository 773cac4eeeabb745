//! A running lab: its machines and processes, and the certainty that they go away.
use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use weft_test_support::{ChildGuard, Netns, is_root, netns_path, run_in_netns, wait_for};

use crate::{
    plumbing,
    spawn::{self, Inside},
    state::{self, Place},
    topology::Topology,
};

/// How long a built-in server may take to listen.
const LISTEN: Duration = Duration::from_secs(5);

/// A lab that is up. Cheap to clone; it goes down with `down`, or when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Lab {
    inner: Arc<Inner>,
}

/// A lab that may be down by now.
#[derive(Debug, Clone)]
pub struct WeakLab {
    inner: Weak<Inner>,
}

impl WeakLab {
    /// The lab, if somebody still holds it.
    #[must_use]
    pub fn upgrade(&self) -> Option<Lab> {
        self.inner.upgrade().map(|inner| Lab { inner })
    }
}

#[derive(Debug)]
struct Inner {
    topology: Topology,
    place: Place,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    /// Set by the first `down`: nothing is started any more.
    closed: bool,
    machines: BTreeMap<String, Netns>,
    processes: Vec<Process>,
}

#[derive(Debug)]
struct Process {
    machine: String,
    name: String,
    argv: Vec<String>,
    guard: ChildGuard,
}

impl Lab {
    /// Claims an id and collects what dead runners left; nothing is built yet. Needs root.
    pub fn claim(topology: Topology) -> Result<Self> {
        ensure!(is_root(), "a lab makes network namespaces: run it as root");
        let machines = topology.machines().map(|machine| machine.name.to_owned());
        let all = machines.chain(topology.workspaces.iter().map(|one| one.name.to_string())).collect();
        let place = state::claim(&topology.title, all)?;
        // From here on dropping the lab removes whatever there is of it.
        Ok(Self { inner: Arc::new(Inner { topology, place, running: Mutex::default() }) })
    }

    /// Builds the machines and starts the hosts' servers: everything but the fabric.
    pub fn build(&self) -> Result<()> {
        bpffs()?;
        {
            // Held all the while: a signal that takes the lab down waits for whole machines.
            let mut running = self.running();
            ensure!(!running.closed, "the lab is going down");
            running.machines = plumbing::build(self.topology(), self.place())?;
        }
        self.start_servers()
    }

    /// Claims and builds.
    pub fn up(topology: Topology) -> Result<Self> {
        let lab = Self::claim(topology)?;
        lab.build()?;
        Ok(lab)
    }

    /// A handle that does not keep the lab up.
    #[must_use]
    pub fn downgrade(&self) -> WeakLab {
        WeakLab { inner: Arc::downgrade(&self.inner) }
    }

    /// What was asked for.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.inner.topology
    }

    /// Its id and directory.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.inner.place
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        // A panic elsewhere must not keep the lab from being taken down.
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path of a machine's network namespace.
    #[must_use]
    pub fn netns(&self, machine: &str) -> PathBuf {
        netns_path(&self.place().netns(machine))
    }

    /// Makes the namespace of one more machine or workspace, not wired to anything.
    pub fn add_machine(&self, name: &str, resolver: Option<IpAddr>) -> Result<PathBuf> {
        let mut running = self.running();
        ensure!(!running.closed, "the lab is going down");
        if !running.machines.contains_key(name) {
            let netns = plumbing::namespace(self.place(), name)?;
            running.machines.insert(name.into(), netns);
        }
        plumbing::resolv_conf(self.place(), name, resolver)?;
        Ok(self.netns(name))
    }

    /// Tells programs on a machine another resolver; running programs keep the old one.
    pub fn set_resolver(&self, machine: &str, resolver: Option<IpAddr>) -> Result<()> {
        plumbing::resolv_conf(self.place(), machine, resolver)
    }

    /// Runs `work` on a thread inside a machine: sockets that it opens belong to the machine.
    pub fn on<T: Send>(&self, machine: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        run_in_netns(&self.netns(machine), work)
    }

    /// Runs `ip` on a machine.
    pub fn ip(&self, machine: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.place().netns(machine)]).args(arguments);
        said(&mut command, &format!("on {machine}: ip {}", arguments.join(" ")))
    }

    /// A command that will run on a machine, with its resolver. The calling thread must outlive it.
    pub fn command(&self, machine: &str, program: &str) -> Result<Command> {
        let resolv_conf = self.place().machine(machine).join("resolv.conf");
        let inside = Inside { netns: self.netns(machine), resolv_conf: resolv_conf.exists().then_some(resolv_conf) };
        inside.command(program)
    }

    /// Runs a program on a machine to its end; fails with what it said if it failed.
    pub fn run(&self, machine: &str, argv: &[&str]) -> Result<String> {
        let output = self.output(machine, argv)?;
        judge(&output, &format!("on {machine}: {}", argv.join(" ")))
    }

    /// Runs a program on a machine to its end, whatever it says.
    pub fn output(&self, machine: &str, argv: &[&str]) -> Result<Output> {
        let (program, arguments) = argv.split_first().context("no program is given")?;
        let mut command = self.command(machine, program)?;
        command.args(arguments).stdin(Stdio::null());
        command.output().with_context(|| format!("on {machine}: cannot run {program}"))
    }

    /// Starts a program that runs until it is killed or the lab goes down. Its output goes to its log.
    pub fn start(&self, machine: &str, name: &str, argv: &[String]) -> Result<()> {
        let guard = self.launch(machine, name, argv)?;
        let process = Process { machine: machine.into(), name: name.into(), argv: argv.to_vec(), guard };
        let mut running = self.running();
        // Dropping the guard of a program that came too late ends it.
        ensure!(!running.closed, "the lab is going down");
        running.processes.push(process);
        Ok(())
    }

    fn launch(&self, machine: &str, name: &str, argv: &[String]) -> Result<ChildGuard> {
        let (program, arguments) = argv.split_first().context("no program is given")?;
        let path = self.log(machine, name);
        let log = File::options().append(true).create(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = self.command(machine, program)?;
        // A group of its own: Ctrl-C in the terminal is for the runner, which then ends the others in order.
        command.args(arguments).process_group(0).stdin(Stdio::null());
        // Logs are files, and are shown inside of other texts.
        command.env("NO_COLOR", "1");
        command.stdout(log.try_clone().context("cannot share a log")?).stderr(log);
        Ok(ChildGuard::new(spawn::spawn(command)?))
    }

    /// Where a process of a machine says things.
    #[must_use]
    pub fn log(&self, machine: &str, name: &str) -> PathBuf {
        self.place().machine(machine).join(format!("{name}.log"))
    }

    /// The last lines of every log of a machine, for a failure's report.
    #[must_use]
    pub fn logs(&self, machine: &str, lines: usize) -> String {
        let running = self.running();
        let mut out = String::new();
        for process in running.processes.iter().filter(|process| process.machine == machine) {
            let text = fs::read_to_string(self.log(machine, &process.name)).unwrap_or_default();
            let all: Vec<_> = text.lines().collect();
            for line in all.iter().skip(all.len().saturating_sub(lines)) {
                out.push_str(&format!("    {machine} {}: {line}\n", process.name));
            }
        }
        out
    }

    /// The process id of a program that was started.
    pub fn pid(&self, machine: &str, name: &str) -> Result<u32> {
        Ok(find(&mut self.running(), machine, name)?.guard.pid())
    }

    /// Kills a process with SIGKILL and waits for its end.
    pub fn kill(&self, machine: &str, name: &str) -> Result<()> {
        let mut running = self.running();
        let process = find(&mut running, machine, name)?;
        if let Some(status) = process.guard.exited() {
            bail!("{name} on {machine} had ended by itself: {status}; see {}", self.log(machine, name).display());
        }
        process.guard.kill()?;
        Ok(())
    }

    /// Starts a process again that was killed, with the same arguments.
    pub fn restart(&self, machine: &str, name: &str) -> Result<()> {
        let argv = find(&mut self.running(), machine, name)?.argv.clone();
        let guard = self.launch(machine, name, &argv)?;
        let mut running = self.running();
        ensure!(!running.closed, "the lab is going down");
        find(&mut running, machine, name)?.guard = guard;
        Ok(())
    }

    /// Names the processes that ended by themselves.
    #[must_use]
    pub fn ended(&self) -> Vec<String> {
        let mut running = self.running();
        let ended = running.processes.iter_mut().filter_map(|process| {
            let status = process.guard.exited()?;
            Some(format!("{} on {}: {status}", process.name, process.machine))
        });
        ended.collect()
    }

    /// Waits until something listens on a TCP address of a machine.
    pub fn wait_listening(&self, machine: &str, address: SocketAddr) -> Result<()> {
        wait_for(&format!("{machine} to listen on {address}"), LISTEN, || {
            let connected =
                self.on(machine, || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)))?;
            connected.map(drop).map_err(anyhow::Error::from)
        })
    }

    fn start_servers(&self) -> Result<()> {
        for host in &self.topology().hosts {
            if !host.http.is_empty() || !host.echo.is_empty() {
                self.start_server(&host.name, &host.http, &host.echo)?;
            }
            if let Some(dns) = &host.dns {
                let path = self.place().machine(&host.name).join("unbound.conf");
                fs::write(&path, unbound_conf(dns)).with_context(|| format!("cannot write {}", path.display()))?;
                let argv = ["unbound", "-d", "-p", "-c", &path.to_string_lossy()].map(str::to_owned);
                self.start(&host.name, "unbound", &argv)?;
            }
        }
        for host in &self.topology().hosts {
            for address in host.http.iter().chain(&host.echo) {
                self.wait_listening(&host.name, *address)?;
            }
            for ip in host.dns.iter().flat_map(|dns| &dns.listen) {
                self.wait_listening(&host.name, SocketAddr::new(*ip, 53))
                    .with_context(|| format!("unbound does not start:\n{}", self.logs(&host.name, 5)))?;
            }
        }
        Ok(())
    }

    /// Starts the built-in server on a machine.
    pub fn start_server(&self, machine: &str, http: &[SocketAddr], echo: &[SocketAddr]) -> Result<()> {
        let mut argv = vec![text(&spawn::bin("lab")?), "serve".into(), "--name".into(), machine.into()];
        argv.extend(http.iter().flat_map(|address| ["--http".to_owned(), address.to_string()]));
        argv.extend(echo.iter().flat_map(|address| ["--echo".to_owned(), address.to_string()]));
        self.start(machine, "serve", &argv)
    }

    /// Takes everything down. Calling it again does nothing more.
    pub fn down(&self) -> Result<()> {
        self.inner.down()
    }
}

impl Inner {
    fn down(&self) -> Result<()> {
        let (machines, processes) = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.closed = true;
            (std::mem::take(&mut running.machines), std::mem::take(&mut running.processes))
        };
        // Each guard kills and reaps; what a child started itself is found by its namespace afterwards.
        drop(processes);
        let removed = self.place.remove();
        drop(machines);
        removed
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.down() {
            // The next lab to start collects what is left; the reason must not be lost.
            tracing::error!("lab {} is not taken down whole: {error:#}", self.place.id);
        }
    }
}

fn find<'a>(running: &'a mut Running, machine: &str, name: &str) -> Result<&'a mut Process> {
    let found = running.processes.iter_mut().find(|process| process.machine == machine && process.name == name);
    found.with_context(|| format!("no process {name} was started on {machine}"))
}

/// A path as an argument. The lab's own paths are plain ASCII.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs a command to its end and gives what it said; fails with what it said if it failed.
pub(crate) fn said(command: &mut Command, what: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {:?}: install it", command.get_program()))?;
    judge(&output, what)
}

fn judge(output: &Output, what: &str) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let reason = if error.trim().is_empty() { out.trim() } else { error.trim() };
        bail!("{what}: {}: {reason}", output.status);
    }
    Ok(out)
}

/// Mounts the BPF file system where every distribution has it, if this machine has not.
fn bpffs() -> Result<()> {
    let target = "/sys/fs/bpf";
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mounted = mounts.lines().any(|line| line.split(' ').skip(1).take(2).eq([target, "bpf"]));
    if !mounted {
        mount(Some("bpf"), target, Some("bpf"), MsFlags::empty(), None::<&str>).with_context(|| {
            format!("cannot mount the BPF file system on {target}: run this as root, on a kernel with BPF")
        })?;
    }
    Ok(())
}

fn unbound_conf(dns: &crate::topology::Dns) -> String {
    let mut lines = vec![
        "server:".to_owned(),
        "  username: \"\"\n  chroot: \"\"\n  directory: \"/\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"".into(),
        // Nothing but what is said here: no root servers, no trust anchors.
        "  module-config: \"iterator\"\n  num-threads: 1\n  do-daemonize: no\n  access-control: 0.0.0.0/0 allow\n  access-control: ::/0 allow".into(),
        "  local-zone: \".\" static\n  local-zone: \"test.\" static\n  local-data: \"test. SOA dns.test. root.test. 1 3600 900 86400 60\"".into(),
    ];
    lines.extend(dns.listen.iter().map(|ip| format!("  interface: {ip}")));
    lines.extend(dns.records.iter().map(|record| format!("  local-data: \"{record}\"")));
    for redirect in &dns.redirects {
        lines.push(format!("  local-zone: \"{}\" redirect", redirect.zone));
        lines.extend(redirect.records.iter().map(|record| format!("  local-data: \"{} {record}\"", redirect.zone)));
    }
    lines.push("remote-control:\n  control-enable: no\n".into());
    lines.join("\n")
}
