//! The control socket: answers `get=1` and applies `set=1`, one thread a connection, a few at a time.
use std::{
    fs, io,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::AcqRel},
    },
    thread,
    time::Duration,
};

use zeroize::Zeroizing;

use super::{Error, udp::SharedSocket};
use crate::{
    engine::Engine,
    uapi::{Delta, MAX_REQUEST_LEN, Request, parse_request},
};

/// How many connections are served at a time.
const MAX_CONNECTIONS: usize = 8;
/// How long a connection may be silent.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the socket, in place of one that a killed process left behind.
pub(super) fn listen(path: &Path) -> Result<UnixListener, Error> {
    let what = format!("cannot open the control socket {}", path.display());
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        if UnixStream::connect(path).is_ok() {
            let error = io::Error::from(io::ErrorKind::AddrInUse);
            return Err(Error::io(what, error, "another `netd wire` serves it: stop that one first"));
        }
        fs::remove_file(path).map_err(|error| Error::io(&what, error, "remove the file"))?;
    }
    // The file has its rights from the start: nobody connects in between. Threads are started later.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener.map_err(|error| Error::io(&what, error, "make its directory, or choose another path"))?;
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(path, private).map_err(|error| Error::io(what, error, "check the directory"))?;
    Ok(listener)
}

pub(super) fn run(engine: &Arc<Engine>, socket: &Arc<SharedSocket>, listener: &UnixListener) -> Result<(), Error> {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: the data path must not end for that.
                tracing::warn!(%error, "cannot accept a control connection");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if open.fetch_add(1, AcqRel) >= MAX_CONNECTIONS {
            open.fetch_sub(1, AcqRel);
            continue;
        }
        let (engine, socket, done) = (Arc::clone(engine), Arc::clone(socket), Arc::clone(&open));
        let serve = move || {
            if let Err(error) = serve(&engine, &socket, &stream) {
                tracing::debug!(%error, "a control connection ended early");
            }
            done.fetch_sub(1, AcqRel);
        };
        if let Err(error) = thread::Builder::new().name("control".into()).spawn(serve) {
            tracing::warn!(%error, "cannot start a thread for a control connection");
            open.fetch_sub(1, AcqRel);
        }
    }
}

fn serve(engine: &Engine, socket: &SharedSocket, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader)? {
        let mut answer = Zeroizing::new(String::new());
        let errno = match parse_request(&request) {
            Ok(Request::Get) => {
                answer = engine.state(socket.port(), socket.mark());
                0
            }
            Ok(Request::Set(delta)) => set(engine, socket, &delta),
            Err(error) => {
                tracing::warn!(%error, "a control request was refused");
                libc::EINVAL
            }
        };
        writer.write_all(answer.as_bytes())?;
        writer.write_all(format!("errno={errno}\n\n").as_bytes())?;
    }
    Ok(())
}

/// Reads up to an empty line. `None` at the end; an unfinished request is an error.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Zeroizing<String>>> {
    let mut limited = reader.take(MAX_REQUEST_LEN as u64);
    let mut request = Zeroizing::new(Vec::with_capacity(4096));
    loop {
        let before = request.len();
        if limited.read_until(b'\n', &mut request)? == 0 {
            let unfinished =
                io::Error::new(io::ErrorKind::InvalidData, "a request without its empty last line, or too long");
            return if request.is_empty() { Ok(None) } else { Err(unfinished) };
        }
        if request.get(before..) == Some(b"\n".as_slice()) {
            request.truncate(before);
            let text =
                std::str::from_utf8(&request).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            return Ok(Some(Zeroizing::new(text.to_owned())));
        }
    }
}

/// Applies a delta; answers with errno, 0 for success. What can fail comes first.
fn set(engine: &Engine, socket: &SharedSocket, delta: &Delta) -> i32 {
    let moved = delta.listen_port.map_or(Ok(()), |port| socket.set_port(port));
    let marked = moved.and_then(|()| delta.fwmark.map_or(Ok(()), |mark| socket.set_mark(mark)));
    if let Err(error) = marked {
        tracing::warn!(%error, "the port or the mark could not be changed");
        return error.raw_os_error().unwrap_or(libc::EIO);
    }
    match engine.apply(delta) {
        Ok(()) => 0,
        Err(error) => {
            tracing::warn!(%error, "a change was refused");
            libc::ENOSPC
        }
    }
}
