//! What the tests of weft-proxy stand on: the binary itself, a netd that only streams routes, and servers in "workspaces".
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    reason = "test code, of which each file uses its own part"
)]
use std::{
    collections::HashMap,
    convert::Infallible,
    net::{Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UnixListener},
    process::{Child, Command},
    sync::broadcast,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_model::{
    api::{Route, RouteEvent},
    object::{Port, Visibility},
};

pub const DOMAIN: &str = "ws.test";
pub const BOX: &str = "k3v7qz2mna";
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` gives a value.
pub async fn wait_for<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn route(id: &str, name: Option<&str>, address: Option<&str>, epoch: u64, ports: &[(u16, bool)]) -> Route {
    Route {
        id: id.parse().unwrap(),
        name: name.map(|name| name.parse().unwrap()),
        address: address.map(|address| address.parse().unwrap()),
        epoch,
        ports: ports
            .iter()
            .map(|&(port, public)| Port {
                port,
                visibility: if public { Visibility::Public } else { Visibility::Private },
            })
            .collect(),
    }
}

/// A netd that streams routes and nothing else.
pub struct Netd {
    events: broadcast::Sender<RouteEvent>,
    routes: Arc<Mutex<Vec<Route>>>,
    streams: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl Netd {
    pub fn start(socket: &Path, routes: Vec<Route>) -> Self {
        Self::start_from(socket, routes, Ipv6Addr::LOCALHOST)
    }

    /// One whose node's proxy address is this.
    pub fn start_from(socket: &Path, routes: Vec<Route>, dial_from: Ipv6Addr) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let (events, _) = broadcast::channel(64);
        let routes = Arc::new(Mutex::new(routes));
        let streams = Arc::new(AtomicUsize::new(0));
        let server = tokio::spawn(Self::serve(listener, events.clone(), routes.clone(), streams.clone(), dial_from));
        Self { events, routes, streams, server }
    }

    async fn serve(
        listener: UnixListener,
        events: broadcast::Sender<RouteEvent>,
        routes: Arc<Mutex<Vec<Route>>>,
        streams: Arc<AtomicUsize>,
        dial_from: Ipv6Addr,
    ) {
        let mut open = tokio::task::JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut changes, routes, streams) = (events.subscribe(), routes.clone(), streams.clone());
            open.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                assert!(head.starts_with(b"GET /v1/routes/watch "), "{}", String::from_utf8_lossy(&head));
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
                    .await?;
                let mut event = {
                    let routes = routes.lock().unwrap().clone();
                    RouteEvent::Snapshot { domain: DOMAIN.into(), dial_from, routes }
                };
                streams.fetch_add(1, Ordering::SeqCst);
                loop {
                    stream
                        .write_all(format!("data: {}\n\n", serde_json::to_string(&event).unwrap()).as_bytes())
                        .await?;
                    event = changes.recv().await.map_err(std::io::Error::other)?;
                }
                #[allow(unreachable_code)]
                std::io::Result::Ok(())
            });
        }
    }

    /// Changes a workspace and tells of it.
    pub fn upsert(&self, route: Route) {
        let mut routes = self.routes.lock().unwrap();
        routes.retain(|known| known.id != route.id);
        routes.push(route.clone());
        self.events.send(RouteEvent::Upsert { route }).unwrap();
    }

    pub fn remove(&self, id: &str) {
        let id = id.parse().unwrap();
        self.routes.lock().unwrap().retain(|known| known.id != id);
        self.events.send(RouteEvent::Remove { id }).unwrap();
    }

    /// Ends at once, open streams included.
    pub async fn stop(self) {
        self.server.abort();
        let _ = self.server.await;
    }
}

/// An HTTP server in a "workspace" on ::1 that tells what it was asked, on which of its connections.
pub struct Workspace {
    pub port: u16,
    pub connections: Arc<AtomicUsize>,
    pub requests: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl Workspace {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(AtomicUsize::new(0));
        let (counted, answered) = (connections.clone(), requests.clone());
        let server = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
                let answered = answered.clone();
                open.spawn(async move {
                    let service = service_fn(move |request| {
                        answered.fetch_add(1, Ordering::SeqCst);
                        tell(request, number)
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { port, connections, requests, server }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn tell(request: Request<Incoming>, connection: usize) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let headers: HashMap<String, String> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let told = serde_json::json!({
        "method": parts.method.as_str(),
        "target": parts.uri.to_string(),
        "headers": headers,
        "received": body.len(),
        "connection": connection,
    });
    let answer = match parts.uri.path() {
        "/large" => Bytes::from(vec![b'x'; 3 << 20]),
        _ => Bytes::from(told.to_string()),
    };
    Ok(Response::builder()
        .header("content-type", "application/json")
        .header("keep-alive", "timeout=5")
        .body(Full::new(answer))
        .unwrap())
}

/// A folder with a certificate for the domain, and the proxy that runs in it.
pub struct Proxy {
    pub folder: tempfile::TempDir,
    pub address: SocketAddr,
    pub lines: Arc<Mutex<Vec<Value>>>,
    netns: Option<Netns>,
    child: Child,
}

/// A network namespace of a test's own; it ends with it.
pub struct Netns(String);

impl Netns {
    /// One with nothing but loopback, and these routes.
    pub async fn with_routes(routes: &[&str]) -> Self {
        let netns = Self(format!("weft-proxy-{}", std::process::id()));
        netns.ip(&["netns", "add", &netns.0]).await;
        netns.ip(&["-n", &netns.0, "link", "set", "lo", "up"]).await;
        for route in routes {
            let words: Vec<&str> = ["-n", &netns.0, "-6", "route", "add"].into_iter().chain(route.split(' ')).collect();
            netns.ip(&words).await;
        }
        netns
    }

    async fn ip(&self, words: &[&str]) {
        let output = Command::new("ip").args(words).output().await.unwrap();
        assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A command, in a namespace if one is given.
fn program(netns: Option<&Netns>, name: &str) -> Command {
    match netns {
        None => Command::new(name),
        Some(Netns(netns)) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{netns}")).arg(name);
            command
        }
    }
}

pub fn write_certificate(folder: &Path) {
    let made = rcgen::generate_simple_self_signed(vec![format!("*.{DOMAIN}")]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
}

pub fn socket(folder: &Path) -> PathBuf {
    folder.join("netd.sock")
}

/// The proxy's configuration for a folder; `more` is appended.
pub fn write_config(folder: &Path, more: &str) {
    let text = format!(
        "listen = [\"127.0.0.1:0\", \"[::1]:0\"]\ncertificate = {:?}\nkey = {:?}\n{more}\n",
        folder.join("cert.pem"),
        folder.join("key.pem")
    );
    std::fs::write(folder.join("proxy.toml"), text).unwrap();
}

pub fn command(folder: &Path) -> Command {
    command_in(None, folder)
}

fn command_in(netns: Option<&Netns>, folder: &Path) -> Command {
    let mut command = program(netns, env!("CARGO_BIN_EXE_weft-proxy"));
    command.arg("--config").arg(folder.join("proxy.toml"));
    command.arg("--state-dir").arg(folder.join("state")).arg("--run-dir").arg(folder).arg("--log-json");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

impl Proxy {
    /// A proxy and its netd, which knows these workspaces.
    pub async fn with(routes: Vec<Route>, more: &str) -> (Self, Netd) {
        let folder = tempfile::tempdir().unwrap();
        let netd = Netd::start(&socket(folder.path()), routes);
        let proxy = Self::start(folder, more).await;
        wait_for("the first snapshot", async || (netd.streams.load(Ordering::SeqCst) > 0).then_some(())).await;
        proxy.wait_log("following netd's routes").await;
        (proxy, netd)
    }

    pub async fn start(folder: tempfile::TempDir, more: &str) -> Self {
        write_certificate(folder.path());
        write_config(folder.path(), more);
        Self::spawn(folder, None).await
    }

    /// One in a namespace, where only [`Self::curl`] reaches it.
    pub async fn start_in(netns: Netns, folder: tempfile::TempDir) -> Self {
        write_certificate(folder.path());
        write_config(folder.path(), "");
        Self::spawn(folder, Some(netns)).await
    }

    async fn spawn(folder: tempfile::TempDir, netns: Option<Netns>) -> Self {
        let mut child = command_in(netns.as_ref(), folder.path()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let collected = lines.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = stderr.next_line().await {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                collected.lock().unwrap().push(value);
            }
        });
        let mut proxy = Self { folder, address: SocketAddr::from(([127, 0, 0, 1], 0)), lines, netns, child };
        let listening = proxy.wait_log("listening").await;
        proxy.address = listening["address"].as_str().unwrap().parse().unwrap();
        proxy
    }

    /// Stops this one and starts another in the same folder.
    pub async fn restart(mut self) -> Self {
        self.child.kill().await.unwrap();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        Self::spawn(folder, None).await
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id().unwrap()).unwrap()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    pub async fn exit(&mut self) -> std::process::ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap()
    }

    /// The first log line with this message.
    pub async fn wait_log(&self, message: &str) -> Value {
        wait_for(message, async || self.logged(|line| line["message"] == message)).await
    }

    pub fn logged(&self, matches: impl Fn(&Value) -> bool) -> Option<Value> {
        self.lines.lock().unwrap().iter().find(|line| matches(line)).cloned()
    }

    /// Asks with curl, which speaks HTTP/2 if it may.
    pub async fn curl(&self, host: &str, path: &str, more: &[&str]) -> Answer {
        let output: Output = program(self.netns.as_ref(), "curl")
            .args(["-sS", "-i", "--max-time", "20", "--http2"])
            .arg("--cacert")
            .arg(self.folder.path().join("cert.pem"))
            .arg("--connect-to")
            .arg(format!("::{}:{}", self.address.ip(), self.address.port()))
            .args(more)
            .arg(format!("https://{host}{path}"))
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
        Answer::parse(&output.stdout)
    }

    /// A TLS connection on which a test speaks by itself.
    pub async fn connect(&self, sni: &str) -> TlsStream<TcpStream> {
        self.try_connect(sni, "http/1.1").await.unwrap()
    }

    pub async fn try_connect(&self, sni: &str, alpn: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.folder.path().join("cert.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.into()];
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(sni.to_owned()).unwrap(), stream).await
    }

    /// Sends bytes on a connection of their own and reads until it is closed.
    pub async fn raw(&self, sni: &str, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect(sni).await;
        stream.write_all(bytes).await.unwrap();
        read_to_close(&mut stream).await
    }
}

/// Everything until the other end closes.
pub async fn read_to_close(stream: &mut TlsStream<TcpStream>) -> Vec<u8> {
    let mut answer = Vec::new();
    // How it is closed (with or without TLS's own goodbye) does not matter here.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection is closed");
    answer
}

/// An HTTP answer as curl prints it.
#[derive(Debug)]
pub struct Answer {
    pub version: String,
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn parse(bytes: &[u8]) -> Self {
        let mut rest = bytes;
        loop {
            let end = rest.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole header");
            let head = String::from_utf8_lossy(&rest[..end]).into_owned();
            rest = &rest[end + 4..];
            let mut lines = head.lines();
            let mut first = lines.next().unwrap().split(' ');
            let (version, status) = (first.next().unwrap().to_owned(), first.next().unwrap().parse().unwrap());
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let headers = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            return Self { version, status, headers, body: rest.to_vec() };
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
