//! Binds every socket before anything else runs, so that a taken port is said at once and privileges can be dropped after.
use std::{
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{Config, MetricsAddress};

/// A listening socket for metrics.
pub(crate) enum MetricsListener {
    /// On loopback.
    Tcp(TcpListener),
    /// On a path.
    Unix(UnixListener),
}

/// All sockets of this process, bound and listening.
pub(crate) struct Listeners {
    /// TLS.
    pub(crate) tls: Vec<TcpListener>,
    /// Redirects to https.
    pub(crate) redirect: Vec<TcpListener>,
    /// Metrics.
    pub(crate) metrics: Option<MetricsListener>,
}

impl Listeners {
    /// Binds what the configuration names.
    pub(crate) fn bind(config: &Config) -> Result<Self> {
        let all = |field: &str, addresses: &[SocketAddr]| {
            let bind = |address: &SocketAddr| tcp(*address).with_context(|| cannot_listen(field, *address));
            addresses.iter().map(bind).collect::<Result<Vec<_>>>()
        };
        let metrics = match &config.metrics {
            None => None,
            Some(MetricsAddress::Tcp(address)) => {
                Some(MetricsListener::Tcp(tcp(*address).with_context(|| cannot_listen("metrics", *address))?))
            }
            Some(MetricsAddress::Unix(path)) => Some(MetricsListener::Unix(unix(path)?)),
        };
        Ok(Self { tls: all("listen", &config.listen)?, redirect: all("redirect", &config.redirect)?, metrics })
    }
}

fn cannot_listen(field: &str, address: SocketAddr) -> String {
    format!(
        "cannot listen on {address} ({field}): see who has it with `ss -ltnp`, whether the address is this machine's, \
         and, below port 1024, whether the process has CAP_NET_BIND_SERVICE"
    )
}

fn tcp(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // IPv4 has listeners of its own: one socket for both would show IPv4 callers as mapped addresses.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn unix(path: &Path) -> Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("metrics = {path:?}: another process answers there; stop it or name another path");
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error)
                .with_context(|| format!("metrics = {path:?}: cannot replace what lies there; remove it"));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| {
        format!("metrics = {path:?}: cannot listen there; create its folder, writable for this user")
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
