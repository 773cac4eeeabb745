//! What a TUN is by its name: asked over rtnetlink, since /sys shows the namespace that it was mounted in, not ours.
use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// What the kernel says of a link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkInfo {
    /// Its index.
    pub index: u32,
    /// Its kind, `tun` for a TUN or TAP; empty for hardware.
    pub kind: String,
    /// A TUN (IP packets), not a TAP.
    pub layer3: bool,
    /// Whether it outlives its readers.
    pub persistent: bool,
    /// Whether it was made for several queues.
    pub multi_queue: bool,
    /// Its MTU.
    pub mtu: u32,
}

/// A request about the interface of that name, the rest of it zero.
pub(crate) fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    let fits = !name.is_empty() && name.len() < libc::IFNAMSIZ;
    if !fits || name.bytes().any(|byte| byte == b'/' || byte == b':' || byte == b'%' || !byte.is_ascii_graphic()) {
        let what = format!("{name:?} cannot be a device's name: use 1 to 15 letters, digits, '-', '_' or '.'");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    // SAFETY: ifreq is a plain C structure of integers and a union of such: all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Asks the calling thread's network namespace for a link; `None` if there is none of that name.
pub fn link_info(name: &str) -> io::Result<Option<LinkInfo>> {
    interface_request(name)?;
    let socket = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    let request = get_link(name);
    // SAFETY: the pointer and length are those of one live buffer.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut reply = vec![0u8; 32 * 1024];
    // SAFETY: the pointer and length are those of one live, writable buffer.
    let got = unsafe { libc::recv(socket.as_raw_fd(), reply.as_mut_ptr().cast(), reply.len(), 0) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    let reply = reply.get(..got as usize).unwrap_or_default();
    parse_reply(reply)
}

/// RTM_GETLINK by name.
fn get_link(name: &str) -> Vec<u8> {
    let attribute_len = 4 + name.len() + 1;
    let total = 16 + 16 + attribute_len.next_multiple_of(4);
    let mut message = Vec::with_capacity(total);
    message.extend_from_slice(&(total as u32).to_ne_bytes());
    message.extend_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    message.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend_from_slice(&[0; 8 + 16]); // sequence and port; struct ifinfomsg of zeroes
    message.extend_from_slice(&(attribute_len as u16).to_ne_bytes());
    message.extend_from_slice(&libc::IFLA_IFNAME.to_ne_bytes());
    message.extend_from_slice(name.as_bytes());
    message.resize(total, 0);
    message
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

/// The netlink attributes in a buffer, as (type, value); ends at the first that does not fit.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, kind) = (usize::from(word(bytes, 0)?), word(bytes, 2)?);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & 0x3fff, value))
    })
}

fn parse_reply(reply: &[u8]) -> io::Result<Option<LinkInfo>> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "rtnetlink sent a short reply: update the kernel");
    if word(reply, 4).ok_or_else(short)? == libc::NLMSG_ERROR as u16 {
        let code = long(reply, 16).ok_or_else(short)? as i32;
        return if code == -libc::ENODEV { Ok(None) } else { Err(io::Error::from_raw_os_error(-code)) };
    }
    let mut info = LinkInfo { index: long(reply, 20).ok_or_else(short)?, ..LinkInfo::default() };
    for (kind, value) in attributes(reply.get(32..).unwrap_or_default()) {
        match kind {
            libc::IFLA_MTU => info.mtu = long(value, 0).unwrap_or_default(),
            libc::IFLA_LINKINFO => parse_link_info(value, &mut info),
            _ => {}
        }
    }
    Ok(Some(info))
}

fn parse_link_info(value: &[u8], info: &mut LinkInfo) {
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    const IFLA_TUN_TYPE: u16 = 3;
    const IFLA_TUN_PERSIST: u16 = 6;
    const IFLA_TUN_MULTI_QUEUE: u16 = 7;
    for (kind, value) in attributes(value) {
        match kind {
            IFLA_INFO_KIND => info.kind = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            IFLA_INFO_DATA => {
                for (kind, value) in attributes(value) {
                    let set = value.first().is_some_and(|byte| *byte != 0);
                    match kind {
                        IFLA_TUN_TYPE => info.layer3 = value.first() == Some(&1),
                        IFLA_TUN_PERSIST => info.persistent = set,
                        IFLA_TUN_MULTI_QUEUE => info.multi_queue = set,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

/// Sets a link's MTU and brings it up: for a device that no one else configures.
pub fn set_up(name: &str, mtu: u32) -> io::Result<()> {
    let socket = socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
    let call = |request: &mut libc::ifreq, operation: libc::c_ulong, what: &str| {
        // SAFETY: the request is a whole, initialised ifreq that outlives the call.
        if unsafe { libc::ioctl(socket.as_raw_fd(), operation as _, &raw mut *request) } < 0 {
            let error = io::Error::last_os_error();
            let what = format!("cannot {what} of {name} ({error}): check the device and run as root");
            return Err(io::Error::new(error.kind(), what));
        }
        Ok(())
    };
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_mtu = mtu as libc::c_int;
    call(&mut request, libc::SIOCSIFMTU as _, &format!("set the MTU {mtu}"))?;
    let mut request = interface_request(name)?;
    call(&mut request, libc::SIOCGIFFLAGS as _, "read the flags")?;
    // SAFETY: SIOCGIFFLAGS filled in this field of the union, and every bit pattern is a valid integer.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    call(&mut request, libc::SIOCSIFFLAGS as _, "set the flags")
}
