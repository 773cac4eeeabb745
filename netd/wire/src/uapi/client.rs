//! A blocking client of the UAPI socket.
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use zeroize::Zeroizing;

use super::{
    Delta, State,
    text::{UapiError, parse_state, write_set},
};

/// How long one read or write may take: the other side answers from memory.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer: some 500 bytes a peer.
const MAX_ANSWER_LEN: u64 = 256 << 20;

/// Why the tunnel's process could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket.
    #[error("cannot talk to the tunnel's socket {path}: {error}; start `netd wire`, or wait until it is up")]
    Socket {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// An answer that is none.
    #[error(
        "the tunnel's socket {path} answered with what is not the protocol ({error}): restart `netd wire` with this version"
    )]
    Answer {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        error: UapiError,
    },
    /// A refusal.
    #[error("the tunnel at {path} refused the change with errno {errno}: its log says why")]
    Refused {
        /// Which.
        path: PathBuf,
        /// As in errno.h.
        errno: i64,
    },
}

impl ClientError {
    /// Whether the process is merely not there (yet).
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Socket { error, .. }
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
    }
}

/// Asks and changes a running tunnel. Each call is a connection of its own: the process may have been restarted.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the socket at this path; nothing is opened yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The tunnel's state.
    pub fn get(&self) -> Result<State, ClientError> {
        self.exchange("get=1\n\n")
    }

    /// Changes the tunnel.
    pub fn set(&self, delta: &Delta) -> Result<(), ClientError> {
        self.exchange(&write_set(delta)).map(drop)
    }

    fn exchange(&self, request: &str) -> Result<State, ClientError> {
        let answer = self.talk(request).map_err(|error| ClientError::Socket { path: self.path.clone(), error })?;
        let failed = |error| ClientError::Answer { path: self.path.clone(), error };
        let text = std::str::from_utf8(&answer).map_err(|_| failed(UapiError::Value(1)))?;
        match parse_state(text).map_err(failed)? {
            (state, 0) => Ok(state),
            (_, errno) => Err(ClientError::Refused { path: self.path.clone(), errno }),
        }
    }

    fn talk(&self, request: &str) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(request.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Zeroizing::new(Vec::with_capacity(64 << 10));
        stream.take(MAX_ANSWER_LEN).read_to_end(&mut answer)?;
        if answer.ends_with(b"\n\n") {
            return Ok(answer);
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer ended early"))
    }
}
