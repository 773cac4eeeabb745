//! Clients that act from inside a machine or workspace: a page by curl, ping, echo over TCP and UDP, a WebSocket over TLS.
use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use rustls_pki_types::ServerName;
use tokio::{runtime::Runtime, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::{lab::Lab, pki::Pki};

/// How long an answer may take that should be there at once.
pub const ANSWER: Duration = Duration::from_secs(5);
/// How long an open connection may take to answer again after an interruption: TCP's retransmissions back off.
pub const RECOVERY: Duration = Duration::from_secs(20);

/// A page that curl fetched.
#[derive(Debug, Clone)]
pub struct Page {
    /// Its text.
    pub body: String,
    /// The address that curl connected to.
    pub remote: IpAddr,
}

/// Fetches a page by curl, with more arguments if need be.
pub fn fetch(lab: &Lab, machine: &str, url: &str, more: &[&str]) -> Result<Page> {
    let argv = [&["curl", "-gsSf", "--noproxy", "*", "-m", "5", "-w", "\\n%{remote_ip}", url], more].concat();
    let said = lab.run(machine, &argv)?;
    let (body, remote) = said.rsplit_once('\n').context("curl gives no address")?;
    let remote = remote.parse().with_context(|| format!("curl gives no address: {remote:?}"))?;
    Ok(Page { body: body.trim_end().to_owned(), remote })
}

/// Fails unless curl fails, and gives what it says.
pub fn fetch_refused(lab: &Lab, machine: &str, url: &str) -> Result<String> {
    let output = lab.output(machine, &["curl", "-gsSf", "--noproxy", "*", "-m", "1", url])?;
    ensure!(!output.status.success(), "{machine} could open {url}: {}", String::from_utf8_lossy(&output.stdout).trim());
    Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Pings once, waiting up to two seconds; gives the time in words.
pub fn ping(lab: &Lab, machine: &str, target: IpAddr) -> Result<String> {
    let said = lab.run(machine, &["ping", "-n", "-c1", "-W2", &target.to_string()])?;
    let time = said.split("time=").nth(1).and_then(|rest| rest.lines().next());
    time.map(str::to_owned).with_context(|| format!("ping says something else: {said}"))
}

/// Fails if a ping is answered; gives the error that came back in its place, if one did.
pub fn ping_refused(lab: &Lab, machine: &str, target: IpAddr) -> Result<Option<String>> {
    let output = lab.output(machine, &["ping", "-n", "-c1", "-W1", &target.to_string()])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "{machine} could ping {target}");
    let error = said.lines().find(|line| line.starts_with("From "));
    Ok(error.map(|line| line.split("icmp_seq=").nth(1).unwrap_or(line).trim_start_matches("1 ").to_owned()))
}

/// An open TCP connection to an echo server.
#[derive(Debug)]
pub struct Echo {
    stream: BufReader<TcpStream>,
    count: u32,
}

impl Echo {
    /// Connects from a machine.
    pub fn connect(lab: &Lab, machine: &str, target: SocketAddr) -> Result<Self> {
        let stream = lab.on(machine, || TcpStream::connect_timeout(&target, ANSWER))?;
        let stream = stream.with_context(|| format!("{machine} cannot connect to {target}"))?;
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        stream.set_read_timeout(Some(RECOVERY)).context("cannot set a deadline")?;
        stream.set_write_timeout(Some(RECOVERY)).context("cannot set a deadline")?;
        Ok(Self { stream: BufReader::new(stream), count: 0 })
    }

    /// Sends a line with `text` and waits until it is back; gives how long that took.
    pub fn ask(&mut self, text: &str) -> Result<Duration> {
        self.count += 1;
        let line = format!("{text} {}\n", self.count);
        let start = Instant::now();
        self.stream.get_mut().write_all(line.as_bytes()).context("the connection is dead")?;
        let mut back = String::new();
        self.stream.read_line(&mut back).context("the connection is silent")?;
        ensure!(back == line, "the echo answers {back:?} to {line:?}");
        Ok(start.elapsed())
    }
}

/// Sends a datagram from a machine and waits until it is back.
pub fn udp_echo(lab: &Lab, machine: &str, target: SocketAddr, text: &str) -> Result<Duration> {
    let start = Instant::now();
    let answer = lab.on(machine, || -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind(any(target))?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.connect(target)?;
        socket.send(text.as_bytes())?;
        let mut buffer = vec![0; 2048];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    })?;
    let answer = answer.with_context(|| format!("{machine} gets no answer over UDP from {target}"))?;
    ensure!(answer == text.as_bytes(), "the echo answers {:?} to {text:?}", String::from_utf8_lossy(&answer));
    Ok(start.elapsed())
}

/// The unspecified address of the target's family, any port.
pub(crate) fn any(target: SocketAddr) -> SocketAddr {
    match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// Connects where nothing can be reached: gives the error and how long it took to come.
pub fn unreachable(lab: &Lab, machine: &str, target: SocketAddr) -> Result<(String, Duration)> {
    let start = Instant::now();
    let error = match lab.on(machine, || TcpStream::connect_timeout(&target, ANSWER))? {
        Ok(_) => bail!("{machine} could connect to {target}"),
        Err(error) => error,
    };
    let clear = matches!(
        error.kind(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied
    );
    ensure!(clear, "{machine} to {target}: {error} is no clear answer from the network");
    Ok((error.to_string(), start.elapsed()))
}

/// The runtime of asynchronous clients.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let made =
        RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().ok());
    made.as_ref().context("cannot start a runtime: too many threads or files are open")
}

/// An open WebSocket over TLS.
#[derive(Debug)]
pub struct WebSocket {
    stream: WebSocketStream<TlsStream<tokio::net::TcpStream>>,
    count: u32,
}

impl WebSocket {
    /// Opens `wss://<host>/ws` at an address, from a machine; the certificate must be the lab authority's, for the host.
    pub fn connect(lab: &Lab, machine: &str, address: SocketAddr, host: &str, pki: &Pki) -> Result<Self> {
        let stream = lab.on(machine, || TcpStream::connect_timeout(&address, ANSWER))?;
        let stream = stream.with_context(|| format!("{machine} cannot connect to {address}"))?;
        stream.set_nonblocking(true).context("cannot make a socket asynchronous")?;
        let name = ServerName::try_from(host.to_owned()).with_context(|| format!("{host} is no host name"))?;
        let connector = TlsConnector::from(pki.client()?);
        let open = async {
            let stream = tokio::net::TcpStream::from_std(stream).context("cannot make a socket asynchronous")?;
            let stream = connector.connect(name, stream).await.context("TLS fails")?;
            let (stream, _) = client_async(format!("wss://{host}/ws"), stream).await.context("no WebSocket")?;
            Ok::<_, anyhow::Error>(stream)
        };
        let opened = runtime()?.block_on(async { timeout(ANSWER, open).await });
        let stream = opened.with_context(|| format!("{host} at {address} does not answer"))??;
        Ok(Self { stream, count: 0 })
    }

    /// Sends a text and waits for the server's echo of it, which names the server.
    pub fn ask(&mut self, text: &str) -> Result<String> {
        self.count += 1;
        let text = format!("{text} {}", self.count);
        let exchange = async {
            self.stream.send(Message::text(text.clone())).await.context("the WebSocket is dead")?;
            loop {
                match self.stream.next().await.context("the WebSocket was closed")?.context("the WebSocket is dead")? {
                    Message::Text(answer) => return Ok::<_, anyhow::Error>(answer.to_string()),
                    Message::Close(_) => bail!("the WebSocket was closed"),
                    _ => {}
                }
            }
        };
        let answer =
            runtime()?.block_on(async { timeout(RECOVERY, exchange).await }).context("the WebSocket is silent")??;
        ensure!(answer.ends_with(&text), "the WebSocket answers {answer:?} to {text:?}");
        Ok(answer)
    }
}
