//! A caller's TLS connection as the proxy engine sees it. The seam: sockets, TLS and deadlines are ours, HTTP is pingora's.
use std::{
    fmt,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::fd::AsRawFd,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use pingora::{
    http::ResponseHeader,
    protocols::{
        ALPN, Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
        TimingDigest, UniqueID, raw_connect::ProxyDigest,
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, timeout},
};
use tokio_rustls::server::TlsStream;

use crate::{config::Limits, live::Lease, metrics::Gauge};

/// How long, and for how many bytes, a closing connection is still read, so that the answer is not lost to a reset.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 1 << 20);

/// Length of HTTP/2's connection preface (RFC 9113 section 3.4): once it is there, the engine's idle limit holds.
const H2_PREFACE: usize = 24;

/// What is expected of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Nothing, or the beginning of another request.
    Idle,
    /// The rest of a header section, before its deadline.
    Header,
    /// Anything: the engine's own time limits hold.
    Open,
}

/// What is known of a connection, shared by its stream and by the requests on it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The caller.
    pub(crate) remote: SocketAddr,
    /// The name in its TLS hello.
    pub(crate) sni: Option<String>,
    phase: AtomicU8,
    lease: Mutex<Option<Arc<Lease>>>,
}

impl Connection {
    /// The connection that a request came on.
    pub(crate) fn of(digest: Option<&Digest>) -> Option<Arc<Self>> {
        digest?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref::<Arc<Self>>().cloned()
    }

    /// Says what is expected next.
    pub(crate) fn expect(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Ties an HTTP/1 connection to its request's right to go on; `None` when the request is over.
    pub(crate) fn hold(&self, lease: Option<Arc<Lease>>) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    /// Fails when the request on this connection must end.
    fn poll_lease(&self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.lease.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|lease| lease.poll_cut(cx)) {
            Some(Poll::Ready(())) => Err(io::Error::new(ErrorKind::ConnectionAborted, "the route has changed")),
            Some(Poll::Pending) | None => Ok(()),
        }
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Header,
            _ => Phase::Open,
        }
    }
}

/// A caller's connection after its TLS handshake.
pub(crate) struct Downstream {
    io: TlsStream<TcpStream>,
    connection: Arc<Connection>,
    digest: Arc<ProxyDigest>,
    h2: bool,
    limits: Limits,
    deadline: Option<Pin<Box<Sleep>>>,
    header_bytes: usize,
    _permit: OwnedSemaphorePermit,
    _open: Gauge,
}

impl Downstream {
    /// Wraps a connection; `permit` and `open` are given back when it ends.
    pub(crate) fn new(
        io: TlsStream<TcpStream>,
        remote: SocketAddr,
        limits: Limits,
        permit: OwnedSemaphorePermit,
        open: Gauge,
    ) -> pingora::Result<Self> {
        let session = io.get_ref().1;
        let h2 = session.alpn_protocol() == Some(b"h2");
        let connection = Arc::new(Connection {
            remote,
            sni: session.server_name().map(Into::into),
            phase: AtomicU8::new(Phase::Header as u8),
            lease: Mutex::default(),
        });
        // The engine's only place for data of ours on a connection is the one meant for CONNECT proxies.
        let user_data: Box<dyn std::any::Any + Send + Sync> = Box::new(connection.clone());
        let digest = Arc::new(ProxyDigest::new(Box::new(ResponseHeader::build(200, None)?), Some(user_data)));
        Ok(Self { io, connection, digest, h2, limits, deadline: None, header_bytes: 0, _permit: permit, _open: open })
    }

    /// Fails once the header section's deadline has passed.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let limit = self.limits.header_timeout;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(ErrorKind::TimedOut, "the header section took too long")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Downstream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.connection.phase() {
            Phase::Header => self.poll_deadline(cx)?,
            Phase::Idle | Phase::Open => {
                self.connection.poll_lease(cx)?;
                self.deadline = None;
                self.header_bytes = 0;
            }
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        if read > 0 && self.connection.phase() == Phase::Idle {
            self.connection.expect(Phase::Header);
        }
        if self.connection.phase() == Phase::Header {
            self.header_bytes += read;
            if self.h2 && self.header_bytes >= H2_PREFACE {
                self.connection.expect(Phase::Open);
                return Poll::Ready(Ok(()));
            }
            // A section of up to twice the limit is read whole and answered; beyond that the connection is cut.
            if self.header_bytes > 2 * self.limits.header_bytes + 4096 {
                return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, "the header section is too large")));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Downstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Downstream {
    async fn shutdown(&mut self) {
        let (time, mut bytes) = LINGER;
        let linger = async {
            AsyncWriteExt::shutdown(&mut self.io).await?;
            // Unread bytes would turn the close into a reset, which can overtake the answer that was just written.
            let mut discarded = [0; 4096];
            let socket = self.io.get_mut().0;
            while bytes > 0 {
                match socket.read(&mut discarded).await? {
                    0 => break,
                    read => bytes = bytes.saturating_sub(read),
                }
            }
            io::Result::Ok(())
        };
        // Whatever goes wrong here, the connection is over.
        let _ = timeout(time, linger).await;
    }
}

impl Ssl for Downstream {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(if self.h2 { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetProxyDigest for Downstream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.digest.clone())
    }
}

impl GetSocketDigest for Downstream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

impl GetTimingDigest for Downstream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl UniqueID for Downstream {
    fn id(&self) -> i32 {
        self.io.get_ref().0.as_raw_fd()
    }
}

impl Peek for Downstream {}

impl fmt::Debug for Downstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Downstream").field("connection", &self.connection).finish_non_exhaustive()
    }
}
