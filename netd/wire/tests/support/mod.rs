//! Two nodes on a veth, and traffic whose every byte is checked.
#![allow(dead_code)] // each test file uses its own part
#![allow(clippy::unwrap_used)] // a fixture that cannot be laid ends its test
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use weft_test_support::{ChildGuard, Netns, wait_for, wait_until};
use weft_wire::{
    Key, Secret,
    config::{Config, Peer},
    keypair,
    uapi::Client,
};

const SOON: Duration = Duration::from_secs(10);
const METRICS: &str = "127.0.0.1:9587";

/// What lies between two nodes.
pub(crate) struct Underlay {
    pub(crate) v6: bool,
    pub(crate) mtu: u32,
    pub(crate) offload: bool,
}

impl Underlay {
    pub(crate) fn ipv4() -> Self {
        Self { v6: false, mtu: 1500, offload: true }
    }

    pub(crate) fn ipv6() -> Self {
        Self { v6: true, ..Self::ipv4() }
    }

    fn address(&self, number: u8) -> String {
        if self.v6 { format!("2001:db8:7::{number}") } else { format!("198.18.7.{number}") }
    }

    fn endpoint(&self, number: u8) -> SocketAddr {
        SocketAddr::new(self.address(number).parse().unwrap(), 51820)
    }

    fn lay(&self) -> (Netns, Netns) {
        let (a, b) = (Netns::unique("a").unwrap(), Netns::unique("b").unwrap());
        a.ip(&format!("link add u0 type veth peer name u0 netns {}", b.name())).unwrap();
        for (netns, number) in [(&a, 1), (&b, 2)] {
            let (address, len) = (self.address(number), if self.v6 { "64 nodad" } else { "24" });
            let address = address + "/" + len;
            netns.ip(&format!("addr add {address} dev u0\nlink set u0 mtu {} up", self.mtu)).unwrap();
            if !self.offload {
                let off = ["-K", "u0", "tso", "off", "gso", "off", "gro", "off", "tx-udp-segmentation", "off"];
                assert!(netns.output(Command::new("ethtool").args(off)).unwrap().status.success());
                assert!(
                    netns.output(Command::new("ethtool").args(["-K", "u0", "tx", "off"])).unwrap().status.success()
                );
            }
        }
        (a, b)
    }
}

/// Something at the end of a tunnel, with the inner address `fd00:<number>::1`.
pub(crate) trait End: Sync {
    fn netns(&self) -> &Netns;
    fn number(&self) -> u8;
    fn inner(&self) -> String {
        format!("fd00:{}::1", self.number())
    }
}

/// A namespace with our engine.
pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) public: Key,
    number: u8,
    config: Config,
    directory: TempDir,
    child: Option<ChildGuard>,
    /// What `wg` calls it.
    alias: String,
}

/// A namespace with wireguard-go.
pub(crate) struct WireguardGo {
    pub(crate) netns: Netns,
    number: u8,
    socket: PathBuf,
    _directory: TempDir,
    _child: ChildGuard,
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        // Killed, it leaves its socket behind.
        let _ = fs::remove_file(&self.socket);
    }
}

impl End for Node {
    fn netns(&self) -> &Netns {
        &self.netns
    }
    fn number(&self) -> u8 {
        self.number
    }
}

impl End for WireguardGo {
    fn netns(&self) -> &Netns {
        &self.netns
    }
    fn number(&self) -> u8 {
        self.number
    }
}

fn net(number: u8) -> String {
    format!("fd00:{number}::/64")
}

fn peer(key: Key, number: u8, endpoint: Option<SocketAddr>) -> Peer {
    Peer { allowed_ips: vec![net(number).parse().unwrap()], endpoint, ..Peer::new(key) }
}

fn address_tun(netns: &Netns, name: &str, number: u8, other: u8) {
    let lines = format!(
        "link set {name} mtu 1420 up\naddr add fd00:{number}::1/64 dev {name} nodad\nroute add {} dev {name}",
        net(other)
    );
    netns.ip(&lines).unwrap();
}

impl Node {
    pub(crate) fn pair(underlay: &Underlay) -> (Self, Self) {
        Self::pair_with_keepalive(underlay, 0)
    }

    /// The first node's keepalive; the second knows no endpoint then.
    pub(crate) fn pair_with_keepalive(underlay: &Underlay, seconds: u16) -> (Self, Self) {
        let (a, b) = underlay.lay();
        let (a_keys, b_keys) = (keypair().unwrap(), keypair().unwrap());
        let mut to_b = peer(b_keys.1, 2, Some(underlay.endpoint(2)));
        to_b.persistent_keepalive = (seconds != 0).then_some(seconds);
        let to_a = peer(a_keys.1, 1, (seconds == 0).then(|| underlay.endpoint(1)));
        (Self::new(a, 1, 2, a_keys, to_b), Self::new(b, 2, 1, b_keys, to_a))
    }

    /// Our engine and wireguard-go; `we_know` who knows the other's endpoint.
    pub(crate) fn with_wireguard_go(underlay: &Underlay, we_know: bool, preshared: bool) -> (Self, WireguardGo) {
        let (a, b) = underlay.lay();
        let (a_keys, b_keys) = (keypair().unwrap(), keypair().unwrap());
        let mut to_b = peer(b_keys.1, 2, we_know.then(|| underlay.endpoint(2)));
        let mut to_a = peer(a_keys.1, 1, (!we_know).then(|| underlay.endpoint(1)));
        if preshared {
            let shared = Secret::from_bytes([7; 32]);
            to_b.preshared_key = Some(shared.clone());
            to_a.preshared_key = Some(shared);
        }
        let theirs = Config { private_key: Some(b_keys.0), listen_port: Some(51820), fwmark: None, peers: vec![to_a] };
        (Self::new(a, 1, 2, a_keys, to_b), WireguardGo::new(b, 2, 1, &theirs))
    }

    fn new(netns: Netns, number: u8, other: u8, keys: (Secret, Key), peer: Peer) -> Self {
        netns.run(|| weft_tun::Tun::create_persistent("weft0", weft_tun::Options::default())).unwrap().unwrap();
        address_tun(&netns, "weft0", number, other);
        let config = Config { private_key: Some(keys.0), listen_port: Some(51820), fwmark: None, peers: vec![peer] };
        let directory = TempDir::new().unwrap();
        let mut node = Self { netns, public: keys.1, number, config, directory, child: None, alias: unique("wt") };
        node.write_config();
        node.start();
        node.wait_up();
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.path("weft0.sock"))
    }

    pub(crate) fn write_config(&self) {
        let (path, new) = (self.path("wire.conf"), self.path("wire.conf.new"));
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new).unwrap();
        file.write_all(self.config.format().as_bytes()).unwrap();
        fs::rename(new, path).unwrap();
    }

    pub(crate) fn remove_config(&self) {
        fs::remove_file(self.path("wire.conf")).unwrap();
    }

    pub(crate) fn set_config_mode(&self, mode: u32) {
        fs::set_permissions(self.path("wire.conf"), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(crate) fn private_base64(&self) -> String {
        self.config.private_key.as_ref().unwrap().to_base64().to_string()
    }

    pub(crate) fn start(&mut self) {
        self.start_with(&[]);
    }

    pub(crate) fn start_with(&mut self, arguments: &[&str]) {
        // Tests and examples are built side by side.
        let program = std::env::current_exe().unwrap().parent().unwrap().join("../examples/wire");
        let log = fs::File::options().append(true).create(true).open(self.path("log")).unwrap();
        let mut command = Command::new(program);
        command.args(["--tun", "weft0", "--metrics", METRICS, "--config"]).arg(self.path("wire.conf"));
        command.arg("--uapi").arg(self.path("weft0.sock")).stderr(log).stdin(Stdio::null()).args(arguments);
        self.child = Some(ChildGuard::new(self.netns.spawn(&mut command).unwrap()));
    }

    pub(crate) fn wait_up(&mut self) {
        let client = self.client();
        let up = wait_for("the engine", SOON, || client.get());
        assert!(up.is_ok(), "{:?}: {}", up.err(), self.log());
    }

    pub(crate) fn kill(&mut self) {
        self.child.take().unwrap().kill().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.kill();
        self.start();
        self.wait_up();
    }

    pub(crate) fn ended(&mut self) -> bool {
        self.child.as_mut().unwrap().exited().is_some()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().pid()
    }

    /// Bytes of memory in use.
    pub(crate) fn resident(&self) -> usize {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid())).unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Runs `wg` on this node's engine; `{}` stands for its name.
    pub(crate) fn wg(&self, arguments: &[&str]) -> Result<String> {
        let link = PathBuf::from(format!("/var/run/wireguard/{}.sock", self.alias));
        fs::create_dir_all("/var/run/wireguard")?;
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(self.path("weft0.sock"), &link)?;
        let arguments = arguments.iter().map(|argument| argument.replace("{}", &self.alias));
        let output = Command::new("wg").args(arguments).output();
        fs::remove_file(&link)?;
        let output = output?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}

fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl WireguardGo {
    pub(crate) fn new(netns: Netns, number: u8, other: u8, config: &Config) -> Self {
        let name = unique("wg");
        let mut command = Command::new("wireguard-go");
        command.args(["-f", &name]).stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::null());
        let child = ChildGuard::new(netns.spawn(&mut command).unwrap());
        let socket = PathBuf::from(format!("/var/run/wireguard/{name}.sock"));
        wait_until("wireguard-go's socket", SOON, || socket.exists()).unwrap();
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("conf");
        fs::write(&path, config.format().as_bytes()).unwrap();
        let set = Command::new("wg").arg("setconf").arg(&name).arg(&path).output().unwrap();
        assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
        address_tun(&netns, &name, number, other);
        Self { netns, number, socket, _directory: directory, _child: child }
    }
}

pub(crate) trait StatusIn {
    fn status_in(&mut self, end: &impl End) -> Result<bool>;
}

impl StatusIn for Command {
    fn status_in(&mut self, end: &impl End) -> Result<bool> {
        Ok(end.netns().output(self)?.status.success())
    }
}

/// Three echoes; the first may make the session.
pub(crate) fn ping(from: &impl End, to: &impl End) -> Result<()> {
    let arguments = ["-c3", "-i0.1", "-W2", &to.inner()];
    let output = from.netns().output(Command::new("ping").args(arguments))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// The count of a reason for drops.
pub(crate) fn metric(node: &Node, reason: &str) -> Result<u64> {
    let page = node.netns.run(|| -> Result<String> {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    })??;
    let line = format!("weft_wire_dropped_packets_total{{reason=\"{reason}\"}} ");
    let value = page.lines().find_map(|other| other.strip_prefix(&line)).context("no such metric")?;
    Ok(value.parse()?)
}

/// Bytes that repeat nowhere soon, so that a lost, doubled or moved segment shows.
fn pattern(at: u64, buf: &mut [u8]) {
    for (chunk, number) in buf.chunks_mut(8).zip(at / 8..) {
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ number;
        chunk.copy_from_slice(&mixed.to_le_bytes()[..chunk.len()]);
    }
}

/// Sends this many bytes over TCP and compares each.
pub(crate) fn transfer_tcp(from: &impl End, to: &impl End, bytes: u64) -> Result<()> {
    let listener = to.netns().run(|| TcpListener::bind((to.inner().as_str(), 0)))??;
    let target = listener.local_addr()?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || -> Result<u64> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(SOON * 2))?;
            let (mut got, mut expected) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            let mut at = 0u64;
            loop {
                let len = stream.read(&mut got)?;
                if len == 0 {
                    return Ok(at);
                }
                let skew = (at % 8) as usize;
                pattern(at - skew as u64, &mut expected);
                // A read may be longer than what is left of the pattern behind the skew.
                let mut rest = &got[..len];
                let first = rest.len().min(expected.len() - skew);
                ensure!(rest[..first] == expected[skew..skew + first], "bytes differ near {at}");
                rest = &rest[first..];
                if !rest.is_empty() {
                    let next = at + first as u64;
                    pattern(next, &mut expected);
                    ensure!(next.is_multiple_of(8) && *rest == expected[..rest.len()], "bytes differ near {next}");
                }
                at += len as u64;
            }
        });
        let mut stream = from.netns().run(|| TcpStream::connect_timeout(&target, SOON))??;
        stream.set_write_timeout(Some(SOON * 2))?;
        let mut buf = vec![0; 1 << 18];
        let mut at = 0;
        while at < bytes {
            pattern(at, &mut buf);
            stream.write_all(&buf)?;
            at += buf.len() as u64;
        }
        drop(stream);
        let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
        ensure!(received == at, "{received} of {at} bytes arrived");
        Ok(())
    })
}

/// Sends datagrams of many sizes, a few at a time, and compares each that comes back.
pub(crate) fn transfer_udp(from: &impl End, to: &impl End, count: u32) -> Result<()> {
    let server = to.netns().run(|| UdpSocket::bind((to.inner().as_str(), 0)))??;
    let target = server.local_addr()?;
    let client = from.netns().run(|| UdpSocket::bind((from.inner().as_str(), 0)))??;
    client.connect(target)?;
    client.set_read_timeout(Some(Duration::from_secs(2)))?;
    server.set_read_timeout(Some(Duration::from_secs(2)))?;
    let (mut buf, mut expected, mut back) = (vec![0; 2000], vec![0; 2000], 0);
    let size = |number: u32| if number % 50 < 25 { 1000 } else { 1 + (number as usize * 37) % 1372 };
    for first in (0..count).step_by(25) {
        for number in first..first + 25 {
            pattern(u64::from(number) * 8, &mut expected);
            client.send(&expected[..size(number)])?;
        }
        for number in first..first + 25 {
            let (len, peer) = server.recv_from(&mut buf).with_context(|| format!("datagram {number}"))?;
            ensure!(len == size(number), "datagram {number} has {len} bytes");
            server.send_to(&buf[..len], peer)?;
        }
        for number in first..first + 25 {
            let len = client.recv(&mut buf).with_context(|| format!("answer {number}"))?;
            pattern(u64::from(number) * 8, &mut expected);
            ensure!(buf[..len] == expected[..size(number)], "answer {number} differs");
            back += 1;
        }
    }
    if back != count.next_multiple_of(25) {
        bail!("{back} of {count} came back");
    }
    Ok(())
}

/// One TCP connection that is asked again and again.
pub(crate) struct Flow {
    stream: TcpStream,
}

impl Flow {
    pub(crate) fn open(from: &impl End, to: &impl End) -> Result<Self> {
        let listener = to.netns().run(|| TcpListener::bind((to.inner().as_str(), 0)))??;
        let target = listener.local_addr()?;
        std::thread::spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut buf = [0; 4096];
            loop {
                let len = stream.read(&mut buf)?;
                if len == 0 {
                    return Ok(());
                }
                stream.write_all(&buf[..len])?;
            }
        });
        let stream = from.netns().run(|| TcpStream::connect_timeout(&target, SOON))??;
        stream.set_read_timeout(Some(SOON * 2))?;
        Ok(Self { stream })
    }

    /// How long an echo over the connection takes.
    pub(crate) fn echo(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.stream.write_all(b"are you there?")?;
        let mut buf = [0; 14];
        self.stream.read_exact(&mut buf)?;
        ensure!(&buf == b"are you there?");
        Ok(start.elapsed())
    }
}
