//! The system calls that no crate wraps for us: bpf(2) on maps, links and pins, and questions about namespaces.
#![allow(unsafe_code)]
use std::{
    ffi::CString,
    fs::File,
    io,
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

/// A value whose bytes the kernel may read and write: no padding that matters, any bytes valid.
///
/// # Safety
/// Every bit pattern is a value of the type, and it holds no padding.
pub(crate) unsafe trait Plain: Copy + 'static {}
// SAFETY: integers and arrays of them have neither padding nor invalid values.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [u8; N] {}

const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;
const MAP_NEXT_KEY: libc::c_long = 4;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_INFO: libc::c_long = 15;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

const TCX_INGRESS: u32 = 46;

#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoRequest {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` is a live, exclusively borrowed structure of the command's layout; the pointers inside of it
    // are those of buffers that the callers below keep alive and that are as large as the map's keys and values.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(0)) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative")
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens a pinned object.
pub(crate) fn get_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    bpf(OBJ_GET, &mut Object { path: path.as_ptr() as u64, fd: 0, flags: 0 }).map(owned)
}

/// Pins an object.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    bpf(OBJ_PIN, &mut Object { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 }).map(drop)
}

fn info<const N: usize>(fd: BorrowedFd<'_>) -> io::Result<[u32; N]> {
    let mut info = [0u32; N];
    let length = u32::try_from(size_of::<[u32; N]>()).expect("a small constant");
    bpf(OBJ_INFO, &mut InfoRequest { fd: raw(fd), length, info: info.as_mut_ptr() as u64 })?;
    Ok(info)
}

/// The id of a program (`struct bpf_prog_info`).
pub(crate) fn program_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    info::<2>(fd).map(|[_kind, id]| id)
}

/// The program's id and the ifindex of a tcx link (`struct bpf_link_info`); an index of 0: its interface is gone.
pub(crate) fn link_target(fd: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    info::<6>(fd).map(|[_kind, _id, program, _pad, ifindex, _attach_type]| (program, ifindex))
}

/// Attaches a program to an interface's ingress by a tcx link, which detaches it when the last reference goes.
pub(crate) fn link_create(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    let program = raw(program);
    bpf(
        LINK_CREATE,
        &mut LinkCreate { program, ifindex, attach_type: TCX_INGRESS, flags: 0, relative: 0, pad: 0, revision: 0 },
    )
    .map(owned)
}

/// Puts another program in the place of a link's, without a gap.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_UPDATE, &mut LinkUpdate { link: raw(link), program: raw(program), flags: 0, old_program: 0 }).map(drop)
}

/// A map with keys `K` and values `V`. Opening it checks their sizes against the kernel's.
#[derive(Debug)]
pub(crate) struct Map<K, V> {
    fd: OwnedFd,
    _types: PhantomData<fn(K, V)>,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// Opens a pinned map. A per-CPU map has `V` an array over the possible CPUs: use [`PerCpu`].
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let map = Self { fd: get_pinned(path)?, _types: PhantomData };
        map.check(size_of::<V>())?;
        Ok(map)
    }

    fn check(&self, value: usize) -> io::Result<()> {
        let [_kind, _id, key_size, value_size] = info::<4>(self.fd.as_fd())?;
        if key_size as usize == size_of::<K>() && value_size as usize == value {
            return Ok(());
        }
        let found = format!("keys of {key_size} and values of {value_size} bytes, not {} and {value}", size_of::<K>());
        Err(io::Error::new(io::ErrorKind::InvalidData, found))
    }

    fn element(&self, key: *const K, value: *mut V, flags: u64) -> Element {
        Element { map: raw(self.fd.as_fd()), pad: 0, key: key as u64, value: value as u64, flags }
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        match bpf(MAP_LOOKUP, &mut self.element(key, value.as_mut_ptr(), 0)) {
            // SAFETY: the call succeeded, so the kernel wrote `size_of::<V>()` bytes, and any bytes are a `V`.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds or replaces.
    pub(crate) fn put(&self, key: &K, value: &V) -> io::Result<()> {
        bpf(MAP_UPDATE, &mut self.element(key, std::ptr::from_ref(value).cast_mut(), 0)).map(drop)
    }

    /// Replaces what is there; a key that is not there stays so.
    pub(crate) fn replace(&self, key: &K, value: &V) -> io::Result<()> {
        const EXIST: u64 = 2;
        match bpf(MAP_UPDATE, &mut self.element(key, std::ptr::from_ref(value).cast_mut(), EXIST)) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes; says whether it was there.
    pub(crate) fn delete(&self, key: &K) -> io::Result<bool> {
        match bpf(MAP_DELETE, &mut self.element(key, std::ptr::null_mut(), 0)) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All keys, one call a key: for small maps and tries.
    pub(crate) fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let mut next = MaybeUninit::<K>::uninit();
            let last = keys.last().map_or(std::ptr::null(), std::ptr::from_ref);
            match bpf(MAP_NEXT_KEY, &mut self.element(last, next.as_mut_ptr().cast(), 0)) {
                // SAFETY: the call succeeded, so the kernel wrote a key of `size_of::<K>()` bytes.
                Ok(_) => keys.push(unsafe { next.assume_init() }),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    /// All entries of a hash, thousands a call.
    pub(crate) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        let mut room: usize = 4096;
        let mut cursor: Option<u32> = None;
        loop {
            let mut keys: Vec<MaybeUninit<K>> = vec![MaybeUninit::uninit(); room];
            let mut values: Vec<MaybeUninit<V>> = vec![MaybeUninit::uninit(); room];
            let mut from = cursor.unwrap_or(0);
            let mut to = 0u32;
            let mut batch = Batch {
                from: if cursor.is_some() { std::ptr::from_mut(&mut from) as u64 } else { 0 },
                to: std::ptr::from_mut(&mut to) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(room).unwrap_or(u32::MAX),
                map: raw(self.fd.as_fd()),
                element_flags: 0,
                flags: 0,
            };
            let done = match bpf(MAP_LOOKUP_BATCH, &mut batch) {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => {
                    room *= 2; // one bucket holds more than there is room for
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (key, value) in keys.iter().zip(&values).take(batch.count as usize) {
                // SAFETY: the kernel wrote the first `count` keys and values.
                all.push(unsafe { (key.assume_init(), value.assume_init()) });
            }
            if done {
                return Ok(all);
            }
            cursor = Some(to);
        }
    }
}

/// A per-CPU map: a value is one `[u64; N]` for each possible CPU; reading adds them up.
#[derive(Debug)]
pub(crate) struct PerCpu<const N: usize> {
    map: Map<u32, [u8; 8]>,
    cpus: usize,
}

impl<const N: usize> PerCpu<N> {
    /// Opens a pinned map.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let map = Map { fd: get_pinned(path)?, _types: PhantomData };
        map.check(8 * N)?;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        Ok(Self { map, cpus })
    }

    /// The sum over all CPUs.
    pub(crate) fn sum(&self, key: u32) -> io::Result<Option<[u64; N]>> {
        let mut values = vec![[0u64; N]; self.cpus];
        match bpf(MAP_LOOKUP, &mut self.map.element(&raw const key, values.as_mut_ptr().cast(), 0)) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut sum = [0u64; N];
        for value in &values {
            sum.iter_mut().zip(value).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
        }
        Ok(Some(sum))
    }

    /// Sets all CPUs' values to zero, making the entry.
    pub(crate) fn reset(&self, key: u32) -> io::Result<()> {
        let mut values = vec![[0u64; N]; self.cpus];
        bpf(MAP_UPDATE, &mut self.map.element(&raw const key, values.as_mut_ptr().cast(), 0)).map(drop)
    }

    /// Deletes an entry.
    pub(crate) fn delete(&self, key: u32) -> io::Result<bool> {
        self.map.delete(&key)
    }
}

/// The index of the interface with this name in the calling thread's netns.
pub(crate) fn index_of(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// The coarse monotonic clock, which the programs stamp flows with, in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).map(std::time::Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// Whether an open file is a network namespace: `NS_GET_NSTYPE` on the nsfs.
pub(crate) fn is_netns(file: &File) -> bool {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    let nsfs = nix::sys::statfs::fstatfs(file).is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC);
    // SAFETY: the request takes no argument, and the file is an nsfs file, whose ioctls are known.
    nsfs && unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) } == libc::CLONE_NEWNET
}

/// Whether two open files are the same namespace.
pub(crate) fn same_file(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (a.metadata()?, b.metadata()?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}
