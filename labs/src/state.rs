//! What a lab leaves on disk while it runs, and how the remains of a lab whose runner was killed are collected.
//!
//! Everything of a lab carries its id: the directory, the network namespaces `weft-<id>-<machine>`, the BPF pins. So
//! collecting needs no memory of what was made.
use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use weft_test_support::{delete_netns, netns_path, processes_in, wait_until};

/// Where labs keep their directories.
const ROOT: &str = "/run/weft-lab";
/// Where BPF pins live.
const BPF: &str = "/sys/fs/bpf";

/// Who runs a lab: a process id alone could be another process's by now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The runner's process id.
    pub pid: i32,
    /// When the runner started, in clock ticks since boot.
    pub started: u64,
}

impl Owner {
    /// This process.
    pub fn this() -> Result<Self> {
        let pid = i32::try_from(std::process::id()).context("a process id does not fit")?;
        let started = start_time(pid).context("cannot read this process's start time from /proc: mount /proc")?;
        Ok(Self { pid, started })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// The 22nd field of /proc/<pid>/stat, counted after the name, which may hold spaces and parentheses.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // A zombie holds its id but does nothing any more.
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The record of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The lab's id.
    pub id: String,
    /// The topology's title.
    pub title: String,
    /// Who runs it.
    pub owner: Owner,
    /// Its machines and workspaces.
    pub machines: Vec<String>,
}

/// A lab's place on disk.
#[derive(Debug, Clone)]
pub struct Place {
    /// The lab's id: six characters.
    pub id: String,
    /// Its directory.
    pub dir: PathBuf,
}

impl Place {
    fn of(id: &str) -> Self {
        Self { id: id.into(), dir: Path::new(ROOT).join(id) }
    }

    /// The network namespace's name of a machine.
    #[must_use]
    pub fn netns(&self, machine: &str) -> String {
        format!("weft-{}-{machine}", self.id)
    }

    /// The directory of a machine's files.
    #[must_use]
    pub fn machine(&self, machine: &str) -> PathBuf {
        self.dir.join(machine)
    }

    /// Where the lab's nodes pin their programs.
    #[must_use]
    pub fn bpf(&self) -> PathBuf {
        Path::new(BPF).join(format!("weft-{}", self.id))
    }

    /// What there is of this lab now, in words; empty when nothing is left over.
    pub fn remains(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for name in self.namespaces()? {
            for pid in processes_in(&netns_path(&name))? {
                found.push(format!("process {pid} in {name}"));
            }
            found.push(format!("network namespace {name}"));
        }
        for path in [&self.dir, &self.bpf()] {
            if path.exists() {
                found.push(format!("directory {}", path.display()));
            }
        }
        Ok(found)
    }

    fn namespaces(&self) -> Result<Vec<String>> {
        let prefix = self.netns("");
        let entries = match fs::read_dir("/run/netns") {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("cannot list /run/netns"),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter(|name| name.starts_with(&prefix)).collect())
    }

    /// Removes everything that carries the lab's id: processes in its namespaces, the namespaces, the pins, the directory.
    pub fn remove(&self) -> Result<()> {
        let names = self.namespaces()?;
        for name in &names {
            kill_inside(&netns_path(name))?;
        }
        for name in &names {
            delete_netns(name)?;
        }
        for path in [&self.bpf(), &self.dir] {
            match fs::remove_dir_all(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}: remove it by hand", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Kills every process in a namespace and waits until none is there. Only the lab's own programs ever enter it.
fn kill_inside(netns: &Path) -> Result<()> {
    let deadline = Duration::from_secs(5);
    wait_until("the lab's processes to end", deadline, || {
        let Ok(pids) = processes_in(netns) else { return false };
        for pid in &pids {
            // It may have ended since it was found.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        pids.is_empty()
    })
}

/// Holds the lock under which labs are made and collected.
fn lock() -> Result<Flock<File>> {
    fs::create_dir_all(ROOT).with_context(|| format!("cannot make {ROOT}: run this as root"))?;
    let file = File::create(Path::new(ROOT).join(".lock"))
        .with_context(|| format!("cannot write in {ROOT}: run this as root"))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| anyhow::anyhow!("cannot lock {ROOT}: {error}"))
}

/// Claims a new id and writes the record; collects what dead runners left first.
pub fn claim(title: &str, machines: Vec<String>) -> Result<Place> {
    let _lock = lock()?;
    collect_locked()?;
    let mut number = fs::read_to_string("/proc/sys/kernel/random/uuid").context("cannot draw a random id")?;
    number.retain(|character| character.is_ascii_hexdigit());
    let place = Place::of(number.get(..6).context("a random id is too short")?);
    fs::create_dir(&place.dir).with_context(|| format!("cannot make {}: try again", place.dir.display()))?;
    // Keys lie below; nobody else needs to look.
    fs::set_permissions(&place.dir, fs::Permissions::from_mode(0o700)).context("cannot close the lab's directory")?;
    let record = Record { id: place.id.clone(), title: title.into(), owner: Owner::this()?, machines };
    let text = serde_json::to_string_pretty(&record).context("cannot write the lab's record")?;
    fs::write(place.dir.join("lab.json"), text).context("cannot write the lab's record")?;
    Ok(place)
}

/// Every lab that there is, with its record (`None` if its runner died before writing one).
pub fn list() -> Result<Vec<(Place, Option<Record>)>> {
    let entries = match fs::read_dir(ROOT) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {ROOT}")),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut labs: Vec<_> = names.filter(|name| !name.starts_with('.')).map(|name| with_record(&name)).collect();
    labs.sort_by(|one, other| one.0.id.cmp(&other.0.id));
    Ok(labs)
}

fn with_record(id: &str) -> (Place, Option<Record>) {
    let place = Place::of(id);
    let text = fs::read_to_string(place.dir.join("lab.json")).ok();
    let record = text.and_then(|text| serde_json::from_str(&text).ok());
    (place, record)
}

/// Removes what dead runners left; gives the ids.
pub fn collect() -> Result<Vec<String>> {
    let _lock = lock()?;
    collect_locked()
}

fn collect_locked() -> Result<Vec<String>> {
    let dead = list()?.into_iter().filter(|(_, record)| record.as_ref().is_none_or(|record| !record.owner.alive()));
    let mut collected = Vec::new();
    for (place, _) in dead {
        match place.remove() {
            Ok(()) => collected.push(place.id),
            // What is left of a dead lab carries its own id: it is in nobody's way.
            Err(error) => tracing::warn!("cannot collect the remains of lab {}: {error:#}", place.id),
        }
    }
    Ok(collected)
}

/// Ends a running lab, by asking its runner, or collects a dead one.
pub fn down(id: &str) -> Result<()> {
    let Some((place, record)) = list()?.into_iter().find(|(place, _)| place.id == id) else {
        bail!("there is no lab {id:?}: `lab ls` shows those that there are");
    };
    if let Some(owner) = record.map(|record| record.owner).filter(Owner::alive) {
        kill(Pid::from_raw(owner.pid), Signal::SIGTERM).with_context(|| format!("cannot end process {}", owner.pid))?;
        wait_until(&format!("the runner of lab {id} to end"), Duration::from_secs(20), || !owner.alive())?;
    }
    let _lock = lock()?;
    place.remove()
}
