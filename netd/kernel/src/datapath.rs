//! The data path's programs: loaded once, pinned with their maps and links, adopted by whoever comes next.
use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{EbpfLoader, include_bytes_aligned, programs::SchedClassifier};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use weft_plan::Hook;

use crate::{
    Error, Result,
    messages::{self as msg, Side},
    netlink::{ATTACH, CREATE, Netlink, Request},
    sys,
    tables::{LinkRecord, Maps, NAMES},
};

/// Where the kernel keeps its BPF file system.
const BPFFS: &str = "/sys/fs/bpf";
/// The maps' version: a digest of bpf/maps.h.
const SCHEMA: &str = env!("WEFT_SCHEMA");
/// The programs' version: a digest of their sources.
const PROGRAMS: &str = env!("WEFT_PROGRAMS");
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft.bpf.o"));

/// A program of the object.
#[derive(Debug)]
pub(crate) struct Program {
    fd: OwnedFd,
    id: u32,
}

/// Programs and maps of this version.
#[derive(Debug)]
pub(crate) struct DataPath {
    dir: PathBuf,
    pub(crate) maps: Maps,
    from_workspace: Program,
    to_workspace: Program,
    from_uplink: Program,
    from_tunnel: Program,
}

impl DataPath {
    /// Adopts what is pinned in the folder, or loads and pins it.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let unusable = |source| Error::BpfDir { path: dir.to_owned(), source };
        let _lock = mounted(dir).map_err(unusable)?;
        let (maps, programs) = (dir.join(format!("maps-{SCHEMA}")), dir.join(format!("programs-{PROGRAMS}")));
        for folder in [&maps, &programs, &dir.join("links")] {
            fs::create_dir_all(folder).map_err(unusable)?;
        }
        let names = ["from_workspace", "to_workspace", "from_uplink", "from_tunnel"];
        let whole =
            names.iter().all(|name| programs.join(name).exists()) && NAMES.iter().all(|name| maps.join(name).exists());
        if !whole {
            load(&maps, &programs, &names)?;
        }
        let program = |name: &str| -> Result<Program> {
            let open = || -> io::Result<Program> {
                let fd = sys::get_pinned(&programs.join(name))?;
                let id = sys::program_id(fd.as_fd())?;
                Ok(Program { fd, id })
            };
            open().map_err(Error::bpf(format!("open the pinned program {name}")))
        };
        Ok(Self {
            dir: dir.to_owned(),
            maps: Maps::open(&maps)?,
            from_workspace: program("from_workspace")?,
            to_workspace: program("to_workspace")?,
            from_uplink: program("from_uplink")?,
            from_tunnel: program("from_tunnel")?,
        })
    }

    fn link_path(&self, name: &str) -> PathBuf {
        self.dir.join("links").join(name)
    }

    /// The requests that attach both programs to a workspace's link, or put this version in the place of another's.
    ///
    /// They are filters of clsact and no tcx links: attaching a tcx link waits for an RCU grace period, 10 ms each. Like a
    /// pinned link, a filter stays when we go.
    pub(crate) fn attach_workspace(&self, ifname: &str, index: u32) -> Vec<Request> {
        let filter = |side, program: &Program, name: &str| {
            let message = msg::filter(index, side, program.fd.as_raw_fd(), name);
            Request::new(format!("attach the program {name} to {ifname}"), message, ATTACH)
        };
        vec![
            Request::new(format!("make the hooks of {ifname}"), msg::clsact(index), CREATE).or(&[libc::EEXIST]),
            filter(Side::Ingress, &self.from_workspace, "from_workspace"),
            filter(Side::Egress, &self.to_workspace, "to_workspace"),
        ]
    }

    /// Whether both programs of this version are attached to the link of that index.
    pub(crate) fn is_workspace_attached(&self, netlink: &Netlink, index: u32) -> bool {
        [(Side::Ingress, &self.from_workspace), (Side::Egress, &self.to_workspace)].iter().all(|(side, program)| {
            let filters = netlink.dump("list the filters of a link", &msg::filters(index, *side));
            filters.is_ok_and(|filters| filters.iter().filter_map(msg::filter_program).any(|id| id == program.id))
        })
    }

    fn hook_program(&self, hook: &Hook) -> &Program {
        if *hook == Hook::Tunnel { &self.from_tunnel } else { &self.from_uplink }
    }

    /// Attaches a program of the node.
    pub(crate) fn attach_hook(&self, hook: &Hook, index: u32) -> Result<()> {
        self.attach(&hook_pin(hook), self.hook_program(hook), index)
    }

    /// Whether it is attached in this version.
    pub(crate) fn is_hook_attached(&self, hook: &Hook, index: u32) -> bool {
        self.is_attached(&hook_pin(hook), self.hook_program(hook), index)
    }

    /// Detaches it.
    pub(crate) fn detach_hook(&self, hook: &Hook) -> Result<()> {
        self.remove(&format!("links/{}", hook_pin(hook)))
    }

    fn is_attached(&self, pin: &str, program: &Program, index: u32) -> bool {
        let target = sys::get_pinned(&self.link_path(pin)).and_then(|link| sys::link_target(link.as_fd()));
        target.is_ok_and(|target| target == (program.id, index))
    }

    fn attach(&self, pin: &str, program: &Program, index: u32) -> Result<()> {
        let path = self.link_path(pin);
        let attach = || -> io::Result<()> {
            if let Ok(link) = sys::get_pinned(&path) {
                if sys::link_target(link.as_fd())?.1 == index {
                    return sys::link_update(link.as_fd(), program.fd.as_fd());
                }
                fs::remove_file(&path)?; // its interface is gone
            }
            let link = sys::link_create(program.fd.as_fd(), index)?;
            sys::pin(link.as_fd(), &path)
        };
        attach().map_err(Error::bpf(format!("attach the program {pin} to interface {index}")))
    }

    /// The names of all pinned links.
    pub(crate) fn links(&self) -> Result<Vec<String>> {
        names_in(&self.dir.join("links"))
    }

    /// Folders of other versions.
    pub(crate) fn other_versions(&self) -> Result<Vec<String>> {
        let ours = [format!("maps-{SCHEMA}"), format!("programs-{PROGRAMS}"), "links".to_owned()];
        Ok(names_in(&self.dir)?.into_iter().filter(|name| !ours.contains(name)).collect())
    }

    /// Removes a pin or a folder of pins, by its path below ours; one that is not there is no error.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        match fs::symlink_metadata(&path)
            .and_then(|meta| if meta.is_dir() { remove_folder(&path) } else { fs::remove_file(&path) })
        {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::BpfDir { path, source }),
            _ => Ok(()),
        }
    }

    /// Removes everything that is pinned, and the folder.
    pub(crate) fn remove_all(&self) -> Result<()> {
        for name in names_in(&self.dir)? {
            self.remove(&name)?;
        }
        fs::remove_dir(&self.dir).map_err(|source| Error::BpfDir { path: self.dir.clone(), source })
    }

    /// What the programs believe of a link.
    pub(crate) fn link(&self, index: u32) -> Result<Option<LinkRecord>> {
        self.maps.links.get(&index).map_err(Error::bpf("read a link's entry"))
    }
}

/// The name of a hook's pin; names in a BPF file system have no dots.
pub(crate) fn hook_pin(hook: &Hook) -> String {
    match hook {
        Hook::Uplink(name) => format!("uplink_{}", name.replace('%', "%25").replace('.', "%2e")),
        Hook::Tunnel => "tunnel".to_owned(),
    }
}

/// The hook whose pin has this name.
pub(crate) fn pin_hook(pin: &str) -> Option<Hook> {
    let name = pin.strip_prefix("uplink_").map(|name| Hook::Uplink(name.replace("%2e", ".").replace("%25", "%")));
    name.or_else(|| (pin == "tunnel").then_some(Hook::Tunnel))
}

fn names_in(dir: &Path) -> Result<Vec<String>> {
    let list = || -> io::Result<Vec<String>> {
        let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    };
    list().map_err(|source| Error::BpfDir { path: dir.to_owned(), source })
}

fn remove_folder(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { remove_folder(&entry.path())? } else { fs::remove_file(entry.path())? }
    }
    fs::remove_dir(path)
}

/// Sees to a BPF file system above the folder. Holds a lock until the result is dropped: two mounts at one place would
/// hide each other's pins, and two loads at once would pin over each other.
fn mounted(dir: &Path) -> io::Result<Flock<fs::File>> {
    let lock = Flock::lock(fs::File::open("/sys/fs")?, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let is_bpf = |path: &Path| statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    if dir.starts_with(BPFFS) && !is_bpf(Path::new(BPFFS)) {
        mount(
            Some("bpf"),
            BPFFS,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )?;
    }
    let existing = dir.ancestors().find(|path| path.exists());
    if existing.is_some_and(is_bpf) && dir != Path::new(BPFFS) {
        return Ok(lock);
    }
    Err(io::Error::other("it is not below a BPF file system, or the root of one"))
}

fn load(maps: &Path, programs: &Path, names: &[&str]) -> Result<()> {
    let text = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            source = inner.source();
        }
        Error::Load(text)
    };
    let mut object = EbpfLoader::new().default_map_pin_directory(maps).load(OBJECT).map_err(|error| text(&error))?;
    for name in names {
        let program =
            object.program_mut(name).ok_or_else(|| Error::Load(format!("the object has no program {name}")))?;
        let program: &mut SchedClassifier =
            program.try_into().map_err(|error: aya::programs::ProgramError| text(&error))?;
        program.load().map_err(|error| text(&error))?;
        let path = programs.join(name);
        let _ = fs::remove_file(&path); // left by a load that was cut short
        program.pin(&path).map_err(|error| text(&error))?;
    }
    Ok(())
}
