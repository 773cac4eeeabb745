//! Creating a TUN and attaching to its queues.
use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use crate::{
    link::{LinkInfo, interface_request, link_info},
    vnet::VNET_HDR_LEN,
};

/// The longest read: a vnet_hdr, an IPv6 header and the longest payload. Shorter buffers truncate silently.
pub const MAX_READ: usize = VNET_HDR_LEN + 40 + 65_535;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

const IFF_TUN: i32 = 0x0001;
const IFF_NO_PI: i32 = 0x1000;
const IFF_VNET_HDR: i32 = 0x4000;
const IFF_MULTI_QUEUE: i32 = 0x0100;
const IFF_TUN_EXCL: i32 = 0x8000;

const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;

/// How a TUN is created and attached to; the same for both (see the crate's documentation).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether several queues may be attached, each by one [`Tun::open`].
    pub multi_queue: bool,
    /// Whether the kernel may hand over partial checksums and super-packets (TSO; USO where the kernel has it, 6.2).
    pub offload: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { multi_queue: true, offload: true }
    }
}

impl Options {
    fn flags(self) -> i32 {
        IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | if self.multi_queue { IFF_MULTI_QUEUE } else { 0 }
    }
}

/// One attached queue of a TUN, non-blocking: poll its descriptor, then read until `WouldBlock`.
#[derive(Debug)]
pub struct Tun {
    file: File,
    uso: bool,
}

impl Tun {
    /// Makes a device that outlives every process, and attaches to none of its queues. A device of that name and kind
    /// that is there already is left as it is, also while others are attached; one of another kind is an error.
    pub fn create_persistent(name: &str, options: Options) -> io::Result<()> {
        match attach(name, options.flags() | IFF_TUN_EXCL) {
            Ok(file) => persist(&file, name),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                let Some(existing) = link_info(name)? else {
                    return Err(explain(name, "was there and went away while it was looked at", &error, "try again"));
                };
                same_kind(name, &existing, options)?;
                if !existing.persistent {
                    persist(&attach(name, options.flags()).map_err(|e| attach_error(name, &e))?, name)?;
                }
                Ok(())
            }
            Err(error) => Err(attach_error(name, &error)),
        }
    }

    /// Attaches one queue to a device that is there; `NotFound` if it is not.
    pub fn open(name: &str, options: Options) -> io::Result<Self> {
        // TUNSETIFF would create the device, without persistence and below nobody's control.
        let Some(existing) = link_info(name)? else {
            let what = format!("TUN device {name} does not exist: create it first (netd does, or `ip tuntap add`)");
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        };
        same_kind(name, &existing, options)?;
        let file = attach(name, options.flags()).map_err(|error| attach_error(name, &error))?;
        let size = VNET_HDR_LEN as libc::c_int;
        // SAFETY: the descriptor is a TUN's; the kernel reads one int from a pointer to one.
        let set = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw const size) };
        if set < 0 {
            let error = io::Error::last_os_error();
            return Err(explain(name, "refused a vnet_hdr of 10 bytes", &error, "use Linux 6.1 or newer"));
        }
        let uso = set_offload(&file, options.offload)
            .map_err(|error| explain(name, "refused its offloads", &error, "use Linux 6.1 or newer"))?;
        Ok(Self { file, uso })
    }

    /// Whether UDP super-packets pass (both ways) besides TCP's.
    #[must_use]
    pub fn uso(&self) -> bool {
        self.uso
    }

    /// Reads one vnet_hdr and packet; give [`MAX_READ`] bytes of room.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buf)
    }

    /// Writes one vnet_hdr and packet, gathered from slices. The kernel takes all or nothing.
    pub fn write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.file).write_vectored(slices)
    }

    /// Writes one vnet_hdr and packet that lie in one piece. The kernel takes all or nothing.
    pub fn write(&self, packet: &[u8]) -> io::Result<usize> {
        (&self.file).write(packet)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Tun> for OwnedFd {
    fn from(tun: Tun) -> Self {
        tun.file.into()
    }
}

/// Opens the control device and binds it to a queue of `name`.
fn attach(name: &str, flags: i32) -> io::Result<File> {
    let mut request = interface_request(name)?;
    // IFF_TUN_EXCL is the sign bit of the field: the cast keeps the bits.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun")?;
    // SAFETY: the request is a whole, initialised ifreq that outlives the call; the kernel writes back the name into it.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}

fn persist(file: &File, name: &str) -> io::Result<()> {
    let on: libc::c_ulong = 1;
    // SAFETY: the descriptor is a TUN's; the argument is a number, not a pointer.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETPERSIST as _, on) } < 0 {
        let error = io::Error::last_os_error();
        return Err(explain(name, "cannot be made persistent", &error, "run as root or with CAP_NET_ADMIN"));
    }
    Ok(())
}

/// Tells the kernel what it may leave undone; answers whether UDP segmentation is part of it.
fn set_offload(file: &File, offload: bool) -> io::Result<bool> {
    let set = |flags: libc::c_uint| {
        // SAFETY: the descriptor is a TUN's; the argument is a number, not a pointer.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    if !offload {
        return set(0).map(|()| false);
    }
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    match set(tcp | TUN_F_USO4 | TUN_F_USO6) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => set(tcp).map(|()| false),
        Err(error) => Err(error),
    }
}

fn same_kind(name: &str, existing: &LinkInfo, options: Options) -> io::Result<()> {
    let wrong = if existing.kind != "tun" || !existing.layer3 {
        "is no TUN"
    } else if existing.multi_queue != options.multi_queue {
        if options.multi_queue { "has one queue only" } else { "has several queues" }
    } else {
        return Ok(());
    };
    let what =
        format!("device {name} exists and {wrong}: delete it with `ip link delete {name}`, or choose another name");
    Err(io::Error::new(io::ErrorKind::AlreadyExists, what))
}

fn attach_error(name: &str, error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EBUSY) => explain(name, "has another reader", error, "stop that process first"),
        Some(libc::EPERM) => explain(name, "may not be opened", error, "run as root or with CAP_NET_ADMIN"),
        Some(libc::ENOENT | libc::ENODEV) => {
            explain(name, "cannot be opened: /dev/net/tun is missing", error, "load the kernel module tun")
        }
        _ => explain(name, "cannot be opened", error, "check the name and that the kernel has TUN"),
    }
}

fn explain(name: &str, what: &str, error: &io::Error, way_out: &str) -> io::Error {
    io::Error::new(error.kind(), format!("TUN device {name:?} {what} ({error}): {way_out}"))
}
