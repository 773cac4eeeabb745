//! UDP and TCP port 53 on the addresses of the view; sockets come and go with it.
use std::{
    collections::HashMap,
    io,
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use crate::{
    limit::Limit,
    metrics::{Gauge, count},
    respond::{Service, Transport},
};

/// The port of DNS.
const PORT: u16 = 53;
/// Requests over UDP that are worked on at a time, on each address; more are dropped.
const WORKING: usize = 4096;
/// TCP connections: of all askers, and of each.
const CONNECTIONS: (usize, u32) = (512, 16);
/// How long a TCP connection may be idle, and a response may take to be taken (RFC 7766 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// The largest request that is read over UDP; bytes.
const LARGEST_REQUEST: usize = 4096;
/// Room for a burst of requests; bytes.
const RECEIVE_BUFFER: usize = 1 << 20;

/// The sockets that are open, by address.
pub(crate) struct Listeners {
    service: Arc<Service>,
    connections: Arc<Limit>,
    open: HashMap<Ipv6Addr, JoinSet<()>>,
    failed: HashMap<Ipv6Addr, String>,
}

impl Listeners {
    pub(crate) fn new(service: Arc<Service>) -> Self {
        let connections = Limit::new(CONNECTIONS.0, CONNECTIONS.1);
        Self { service, connections, open: HashMap::new(), failed: HashMap::new() }
    }

    /// Listens on exactly these addresses. What cannot be opened is said once and tried again at the next call.
    pub(crate) fn reconcile(&mut self, wanted: &[Ipv6Addr]) {
        self.open.retain(|address, _| {
            let stays = wanted.contains(address);
            if !stays {
                tracing::info!(%address, "no longer listening");
            }
            stays
        });
        self.failed.retain(|address, _| wanted.contains(address));
        for address in wanted {
            if self.open.contains_key(address) {
                continue;
            }
            match self.open_address(*address) {
                Ok(tasks) => {
                    tracing::info!(%address, port = PORT, "listening on UDP and TCP");
                    self.failed.remove(address);
                    self.open.insert(*address, tasks);
                }
                Err(error) => {
                    let error = error.to_string();
                    if self.failed.get(address) != Some(&error) {
                        tracing::error!(
                            %address, error,
                            "cannot listen on port 53; trying again: stop the process that holds it (`ss -lnp sport = 53`), \
                             or give this one CAP_NET_BIND_SERVICE"
                        );
                    }
                    self.failed.insert(*address, error);
                }
            }
        }
        self.service.metrics.listeners.store(self.open.len() as u64, Relaxed);
    }

    fn open_address(&self, address: Ipv6Addr) -> io::Result<JoinSet<()>> {
        let udp = socket(address, Type::DGRAM, Protocol::UDP)?;
        // A smaller buffer than asked for is no error: the kernel caps it.
        udp.set_recv_buffer_size(RECEIVE_BUFFER)?;
        let udp = UdpSocket::from_std(udp.into())?;
        let tcp = socket(address, Type::STREAM, Protocol::TCP)?;
        tcp.listen(128)?;
        let tcp = TcpListener::from_std(tcp.into())?;
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(Arc::new(udp), self.service.clone()));
        tasks.spawn(serve_tcp(tcp, self.service.clone(), self.connections.clone()));
        Ok(tasks)
    }
}

/// A bound socket. FREEBIND: the address may come later than this process, and go for a while.
fn socket(address: Ipv6Addr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(true)?;
    socket.set_freebind_v6(true)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::V6(SocketAddrV6::new(address, PORT, 0, 0)).into())?;
    Ok(socket)
}

async fn serve_udp(socket: Arc<UdpSocket>, service: Arc<Service>) {
    let working = Arc::new(Semaphore::new(WORKING));
    let mut buffer = vec![0; LARGEST_REQUEST];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Errors about earlier responses surface here; none of them ends the socket.
                tracing::debug!(%error, "receiving over UDP");
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        };
        let SocketAddr::V6(asker) = from else { continue };
        let Ok(permit) = working.clone().try_acquire_owned() else {
            count(&service.metrics.dropped_busy);
            continue;
        };
        let request = buffer.get(..length).unwrap_or_default().to_vec();
        let (socket, service) = (socket.clone(), service.clone());
        tokio::spawn(async move {
            let _permit = permit;
            if asker.port() == 0 {
                return;
            }
            let Some(response) = service.respond(&request, *asker.ip(), Transport::Udp).await else { return };
            if let Err(error) = socket.send_to(&response, from).await {
                tracing::debug!(%error, asker = %from, "sending over UDP");
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, service: Arc<Service>, connections: Arc<Limit>) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer gave up: accepting goes on after a breath.
                tracing::debug!(%error, "accepting over TCP");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let SocketAddr::V6(asker) = from else { continue };
        let Some(place) = connections.take(*asker.ip()) else {
            count(&service.metrics.dropped_busy);
            continue;
        };
        let service = service.clone();
        tokio::spawn(async move {
            let _place = place;
            let _gauge = Gauge::raise(&service.metrics.connections);
            if let Err(error) = serve_stream(stream, *asker.ip(), &service).await {
                tracing::debug!(%error, asker = %from, "a TCP connection ended");
            }
        });
    }
}

/// Requests one after another, each preceded by its length (RFC 1035 4.2.2), until the peer is idle or leaves.
async fn serve_stream(mut stream: TcpStream, asker: Ipv6Addr, service: &Service) -> io::Result<()> {
    loop {
        let request = timeout(IDLE, async {
            let length = stream.read_u16().await?;
            let mut request = vec![0; usize::from(length)];
            stream.read_exact(&mut request).await?;
            io::Result::Ok(request)
        })
        .await??;
        let Some(response) = service.respond(&request, asker, Transport::Tcp).await else { return Ok(()) };
        let length = u16::try_from(response.len()).map_err(io::Error::other)?;
        let mut framed = Vec::with_capacity(response.len() + 2);
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&response);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
