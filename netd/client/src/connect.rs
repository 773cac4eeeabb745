//! Opens connections: the local socket, or the first endpoint that answers over TLS.
use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::ClientError;

/// How long one endpoint may take to accept a connection before the next is tried.
const CONNECT: Duration = Duration::from_secs(2);

/// Where netd is.
pub(crate) enum Target {
    /// On this machine.
    Unix(PathBuf),
    /// On a node.
    Tls {
        endpoints: Vec<SocketAddr>,
        connector: TlsConnector,
        server_name: ServerName<'static>,
        /// The endpoint that answered last: tried first, so that one that is away costs its time only once.
        preferred: AtomicUsize,
    },
}

impl Target {
    pub(crate) fn tls(
        endpoints: Vec<SocketAddr>,
        config: Arc<rustls::ClientConfig>,
        server_name: ServerName<'static>,
    ) -> Self {
        Self::Tls { endpoints, connector: TlsConnector::from(config), server_name, preferred: AtomicUsize::new(0) }
    }

    /// The target's name in errors.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Unix(path) => format!("netd on {}", path.display()),
            Self::Tls { endpoints, .. } => {
                let list: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
                format!("the seed at {}", list.join(", "))
            }
        }
    }

    /// A fresh HTTP connection.
    pub(crate) async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|error| unix_error(path, &error))?;
                self.handshake(stream).await
            }
            Self::Tls { endpoints, connector, server_name, preferred } => {
                let mut tried = Vec::new();
                let mut refused = None;
                let first = preferred.load(Ordering::Relaxed);
                let order = endpoints.iter().enumerate().cycle().skip(first).take(endpoints.len());
                for (index, endpoint) in order {
                    match open_tls(*endpoint, connector, server_name.clone()).await {
                        Ok(stream) => {
                            preferred.store(index, Ordering::Relaxed);
                            return self.handshake(stream).await;
                        }
                        Err(Refused::Network(reason)) => tried.push(format!("{endpoint} ({reason})")),
                        Err(Refused::Tls(error)) => refused = Some(error),
                    }
                }
                if tried.is_empty() && refused.is_none() {
                    tried.push("a node: no endpoint is known".into());
                }
                // A server that answers with the wrong certificate says more than one that does not answer.
                Err(refused.unwrap_or(ClientError::Unreachable { tried: tried.join(", ") }))
            }
        }
    }

    async fn handshake<S>(&self, stream: S) -> Result<SendRequest<Full<Bytes>>, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let broken = |error: hyper::Error| ClientError::Broken { target: self.name(), reason: error.to_string() };
        let (sender, connection) =
            http1::Builder::new().max_buf_size(64 * 1024).handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // The connection's errors reach the caller through its request; when the sender is dropped the task ends.
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn unix_error(path: &std::path::Path, error: &io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning { path: path.into() },
        io::ErrorKind::PermissionDenied => ClientError::PermissionDenied { path: path.into() },
        _ => ClientError::Unreachable { tried: format!("{} ({error})", path.display()) },
    }
}

enum Refused {
    Network(String),
    Tls(ClientError),
}

async fn open_tls(
    endpoint: SocketAddr,
    connector: &TlsConnector,
    server_name: ServerName<'static>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Refused> {
    let network = |error: io::Error| Refused::Network(error.to_string());
    let late = |_| Refused::Network(format!("no answer within {CONNECT:?}"));
    let stream = timeout(CONNECT, TcpStream::connect(endpoint)).await.map_err(late)?.map_err(network)?;
    stream.set_nodelay(true).map_err(network)?;
    let handshake = timeout(CONNECT, connector.connect(server_name, stream)).await.map_err(late)?;
    handshake.map_err(|error| match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => Refused::Tls(tls_error(endpoint, tls)),
        None => network(error),
    })
}

/// Names the likely cause: TLS alone says little that an operator can act on.
pub(crate) fn tls_error(endpoint: SocketAddr, error: &rustls::Error) -> ClientError {
    use rustls::{CertificateError, Error};
    let hint = match error {
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired, or this machine's clock runs ahead: check both"
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "this machine's clock is behind: set it"
        }
        Error::InvalidCertificate(_) => "that server is not a seed of this fabric: check the address, and the token",
        _ => "check that netd of this fabric listens there, and that both versions fit",
    };
    ClientError::Tls { endpoint: endpoint.to_string(), reason: error.to_string(), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_not_ours_is_told_from_one_that_is_not_there() {
        let path = std::path::Path::new("/run/weft/netd.sock");
        let denied = unix_error(path, &io::ErrorKind::PermissionDenied.into());
        assert!(denied.to_string().contains("run this as root"), "{denied}");
        assert!(!denied.is_transient());
        assert!(unix_error(path, &io::ErrorKind::NotFound.into()).to_string().contains("netd is not running"));
    }

    #[test]
    fn a_wrong_clock_is_named() {
        use rustls::CertificateError::{Expired, NotValidYet, UnknownIssuer};
        let says =
            |error| tls_error("192.0.2.1:7443".parse().unwrap(), &rustls::Error::InvalidCertificate(error)).to_string();
        assert!(says(NotValidYet).contains("clock is behind"));
        assert!(says(Expired).contains("clock runs ahead"));
        assert!(says(UnknownIssuer).contains("not a seed of this fabric"));
    }
}
