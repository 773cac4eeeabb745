//! The translator as a process between an IPv6-only client and an IPv4-only server, each a network namespace (root is needed).
#![allow(clippy::unwrap_used)]
use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        signal::{Signal, kill},
        socket::{setsockopt, sockopt},
    },
    unistd::Pid,
};

const SERVER: &str = "198.18.9.2";
const SERVER6: &str = "64:ff9b:1::198.18.9.2";
const DEADLINE: Duration = Duration::from_secs(20);

static LABS: AtomicU32 = AtomicU32::new(0);

/// Three namespaces and the translator; all gone when dropped.
struct Lab {
    prefix: String,
    nat64: Child,
    directory: tempfile::TempDir,
}

fn sh(command: &str) {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A stream of bytes that shows misplaced and missing ones.
fn pattern(seed: u64) -> impl FnMut(&mut [u8]) {
    let mut state = seed | 1;
    move |chunk: &mut [u8]| {
        for word in chunk.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_ne_bytes()[..word.len()]);
        }
    }
}

fn send_pattern(stream: &mut TcpStream, seed: u64, chunks: usize) {
    let mut fill = pattern(seed);
    let mut chunk = vec![0; 64 * 1024];
    for _ in 0..chunks {
        fill(&mut chunk);
        stream.write_all(&chunk).unwrap();
    }
}

fn check_pattern(stream: &mut TcpStream, seed: u64, chunks: usize) {
    let mut fill = pattern(seed);
    let (mut expected, mut got) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    for index in 0..chunks {
        fill(&mut expected);
        stream.read_exact(&mut got).unwrap();
        assert!(expected == got, "chunk {index} differs");
    }
}

impl Lab {
    fn start(offloads: bool) -> Self {
        Self::start_with(CONFIG, offloads)
    }

    fn start_with(config_text: &str, offloads: bool) -> Self {
        let prefix = format!("wn64-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("nat64.toml");
        let mut lab = Self { nat64: Self::spawn(&prefix, directory.path()), prefix, directory };
        let p = &lab.prefix;
        sh(&format!(
            "ip -n {p}-r link add rc mtu 1420 type veth peer name c0 mtu 1420 netns {p}-c
             ip -n {p}-r link add rs type veth peer name s0 netns {p}-s
             ip -n {p}-c link set lo up; ip -n {p}-s link set lo up
             ip -n {p}-c addr add fd00:64::2/64 dev c0 nodad; ip -n {p}-c link set c0 up
             ip -n {p}-r addr add fd00:64::1/64 dev rc nodad; ip -n {p}-r link set rc up
             ip -n {p}-r addr add 198.18.9.1/24 dev rs; ip -n {p}-r link set rs up
             ip -n {p}-s addr add {SERVER}/24 dev s0; ip -n {p}-s link set s0 up
             ip -n {p}-c -6 route add default via fd00:64::1
             ip -n {p}-s route add default via 198.18.9.1
             nsenter --net=/run/netns/{p}-r sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
        ));
        if !offloads {
            let off = "tso off gso off gro off tx off rx off tx-udp-segmentation off";
            sh(&format!(
                "for i in c-c0 r-rc r-rs s-s0; do
                   nsenter --net=/run/netns/{p}-${{i%-*}} ethtool -K ${{i#*-}} {off} >/dev/null 2>&1; done"
            ));
        }
        // It waits for its file: written only now, whole.
        std::fs::write(directory_file(&lab, "new"), config_text).unwrap();
        std::fs::rename(directory_file(&lab, "new"), &config).unwrap();
        wait_for("the TUN device", || {
            assert!(lab.nat64.try_wait().unwrap().is_none(), "nat64 ended");
            let up = format!("ip -n {} link show weft64 2>/dev/null | grep -q LOWER_UP", lab.prefix);
            let up = up.replace(&lab.prefix, &format!("{}-r", lab.prefix));
            Command::new("sh").args(["-c", &up]).status().unwrap().success().then_some(())
        });
        let p = &lab.prefix;
        sh(&format!(
            "ip -n {p}-r -6 route add 64:ff9b::/96 dev weft64; ip -n {p}-r -6 route add 64:ff9b:1::/96 dev weft64
             ip -n {p}-r route add 198.18.64.1/32 dev weft64"
        ));
        lab
    }

    fn spawn(prefix: &str, directory: &Path) -> Child {
        sh(&format!("for n in c r s; do ip netns add {prefix}-$n; done"));
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{prefix}-r"))
            .arg(env!("CARGO_BIN_EXE_nat64"))
            .args(["--create-tun", "--log-json", "--config"])
            .arg(directory.join("nat64.toml"))
            .arg("--metrics-socket")
            .arg(directory.join("metrics.sock"))
            .stderr(Stdio::from(File::create(directory.join("log")).unwrap()))
            .spawn()
            .unwrap()
    }

    /// Runs on a thread inside a namespace: `c`, `r` or `s`.
    fn inside<T: Send + 'static>(
        &self,
        namespace: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let path = format!("/run/netns/{}-{namespace}", self.prefix);
        std::thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    fn now_inside<T: Send + 'static>(&self, namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.inside(namespace, work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn metrics(&self) -> String {
        let mut stream = UnixStream::connect(self.directory.path().join("metrics.sock")).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.0 200 OK\r\n"), "{text}");
        text
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.trim().parse().unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// No packet arrived with a wrong checksum, at either end.
    fn no_checksum_errors(&self) {
        for namespace in ["c", "s"] {
            let read = || {
                let path = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
                (path("snmp"), path("snmp6"))
            };
            let (four, six) = self.now_inside(namespace, read);
            for line in six.lines().filter(|line| line.contains("CsumErrors")) {
                assert!(line.ends_with("\t0") || line.ends_with(" 0"), "{namespace}: {line}");
            }
            let lines: Vec<&str> = four.lines().collect();
            for pair in lines.chunks(2) {
                let [names, values] = pair else { continue };
                for (name, value) in names.split(' ').zip(values.split(' ')) {
                    assert!(!name.contains("CsumErrors") || value == "0", "{namespace}: {names} {values}");
                }
            }
        }
    }
}

fn directory_file(lab: &Lab, name: &str) -> PathBuf {
    lab.directory.path().join(name)
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = self.nat64.kill();
        let _ = self.nat64.wait();
        for namespace in ["c", "r", "s"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}-{namespace}", self.prefix)]).status();
        }
    }
}

const CONFIG: &str = r#"
tun = "weft64"
queues = 2
mtu6 = 1420
mtu4 = 1500
deny = ["198.18.9.1/32"]
sources = ["fd00:64::/64"]
[pool]
addresses = ["198.18.64.1"]
ports = "16384-29999"
[[prefix]]
prefix = "64:ff9b::/96"
permit = "global"
[[prefix]]
prefix = "64:ff9b:1::/96"
permit = ["198.18.0.0/15"]
"#;

/// Without state: the client has an IPv4 address of its own, the server is known by prefix.
const SIIT: &str = r#"
tun = "weft64"
mode = "siit"
mtu6 = 1420
mtu4 = 1500
icmp_sources = ["198.18.64.9/32"]
[[eam]]
four = "198.18.64.1/32"
six = "fd00:64::2/128"
[[prefix]]
prefix = "64:ff9b:1::/96"
permit = ["198.18.0.0/15"]
"#;

fn bulk(lab: &Lab, megabytes: usize) {
    let from = transfer(lab, megabytes);
    assert!((16384..=29999).contains(&from.port()), "{from}");
}

/// Sends a stream to the server and another back; says from where the server saw it come.
fn transfer(lab: &Lab, megabytes: usize) -> SocketAddr {
    let chunks = megabytes * 16;
    let listener = lab.now_inside("s", || TcpListener::bind((SERVER, 8000)).unwrap());
    let server = lab.inside("s", move || {
        let (mut stream, from) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        check_pattern(&mut stream, 1, chunks);
        send_pattern(&mut stream, 2, chunks);
        from
    });
    lab.now_inside("c", move || {
        let mut stream = TcpStream::connect((SERVER6, 8000)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        send_pattern(&mut stream, 1, chunks);
        check_pattern(&mut stream, 2, chunks);
    });
    let from = server.join().unwrap();
    assert_eq!(from.ip().to_string(), "198.18.64.1");
    from
}

/// Sends datagrams of these sizes to an echo server and waits for each, again and again: the first of a size may be
/// answered by an ICMP error that teaches the path's MTU.
fn datagrams(lab: &Lab, sizes: &'static [usize]) {
    let server = lab.now_inside("s", || UdpSocket::bind((SERVER, 8001)).unwrap());
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let echo = lab.inside("s", move || {
        let mut buf = vec![0; 65_536];
        loop {
            let (len, from) = server.recv_from(&mut buf).unwrap();
            if len == 0 {
                return;
            }
            let _ = server.send_to(&buf[..len], from);
        }
    });
    lab.now_inside("c", move || {
        let client = UdpSocket::bind("[::]:0").unwrap();
        client.connect((SERVER6, 8001)).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        for size in sizes {
            let mut datagram = vec![0; *size];
            pattern(*size as u64)(&mut datagram);
            let mut answer = vec![0; 65_536];
            wait_for(&format!("an echo of {size} bytes"), || {
                let _ = client.send(&datagram);
                let len = client.recv(&mut answer).ok()?;
                (answer[..len] == datagram[..]).then_some(())
            });
        }
        client.send(&[]).unwrap();
    });
    echo.join().unwrap();
}

fn ping(lab: &Lab, arguments: &str) {
    sh(&format!("nsenter --net=/run/netns/{}-c ping -6 {arguments} {SERVER6}", lab.prefix));
}

#[test]
fn everything_passes_with_offloads_as_super_packets() {
    let lab = Lab::start(true);
    bulk(&lab, 128);
    datagrams(&lab, &[1, 2, 3, 100, 1200, 1360, 1372, 1373, 1400, 3000, 9000]);
    ping(&lab, "-c 3 -i 0.2 -s 1000");
    lab.no_checksum_errors();
    let (packets, bytes) = (lab.metric("weft_nat64_packets_total{direction=\"6to4\"}"), 128 << 20);
    assert!(packets < bytes / 8_000, "{packets} packets for {bytes} bytes: super-packets do not pass whole");
    assert_eq!(lab.metric("weft_nat64_write_errors_total"), 0);
}

#[test]
fn everything_passes_without_offloads_with_right_checksums() {
    let lab = Lab::start(false);
    bulk(&lab, 16);
    datagrams(&lab, &[1, 2, 3, 100, 1200, 1360, 1372, 1373, 1400, 3000, 9000]);
    ping(&lab, "-c 3 -i 0.2 -s 1000");
    lab.no_checksum_errors();
    assert_eq!(lab.metric("weft_nat64_write_errors_total"), 0);
}

#[test]
fn udp_super_packets_pass_both_ways_also_where_datagrams_must_be_cut() {
    let lab = Lab::start(true);
    sh(&format!("nsenter --net=/run/netns/{}-s sysctl -qw net.ipv4.ip_no_pmtu_disc=1", lab.prefix));
    let server = lab.now_inside("s", || UdpSocket::bind((SERVER, 8002)).unwrap());
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let client = lab.now_inside("c", || UdpSocket::bind("[::]:0").unwrap());
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.connect((SERVER6.parse::<Ipv6Addr>().unwrap(), 8002)).unwrap();
    setsockopt(&client, sockopt::UdpGsoSegment, &1000).unwrap();
    let mut sent = vec![0; 30_500];
    pattern(7)(&mut sent);
    client.send(&sent).unwrap();
    let mut buf = [0; 2048];
    let mut from: Option<SocketAddr> = None;
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let (len, source) = server.recv_from(&mut buf).unwrap();
        assert!(len == 1000 || len == 500);
        got.extend_from_slice(&buf[..len]);
        from = Some(source);
    }
    assert!(got == sent);
    // Back: datagrams that fit, and ones that fit only in fragments since IPv6's header is longer (no DF).
    for size in [1000u16, 1470] {
        setsockopt(&server, sockopt::UdpGsoSegment, &i32::from(size)).unwrap();
        let part = &sent[..usize::from(size) * 10];
        server.send_to(part, from.unwrap()).unwrap();
        let mut got = Vec::new();
        while got.len() < part.len() {
            let len = client.recv(&mut buf).unwrap();
            assert_eq!(len, usize::from(size));
            got.extend_from_slice(&buf[..len]);
        }
        assert!(got == part);
    }
    lab.no_checksum_errors();
}

#[test]
fn it_runs_without_privileges_reloads_with_its_sessions_and_ends_cleanly() {
    let mut lab = Lab::start(true);
    let pid = lab.nat64.id();
    let tasks: Vec<_> =
        std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path()).collect();
    assert_eq!(tasks.len(), 3);
    for task in tasks {
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        for line in
            ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"]
        {
            assert!(status.contains(line), "{line} in {status}");
        }
    }
    let listener = lab.now_inside("s", || TcpListener::bind((SERVER, 8003)).unwrap());
    let mut client = lab.now_inside("c", || TcpStream::connect((SERVER6, 8003)).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
    }
    let established = "weft_nat64_sessions{class=\"tcp-established\"}";
    assert_eq!(lab.metric(established), 1);
    let config = directory_file(&lab, "nat64.toml");
    // A wrong file changes nothing and says why; a right one is taken, and the connection goes on.
    for (text, says) in [(CONFIG.replace("1420", "1000"), "mtu6 = 1000"), (CONFIG.replace("1420", "1400"), "reloaded")]
    {
        std::fs::write(&config, text).unwrap();
        kill(Pid::from_raw(pid as i32), Signal::SIGHUP).unwrap();
        wait_for(says, || lab.log().contains(says).then_some(()));
        client.write_all(b"ping").unwrap();
        let mut buf = [0; 4];
        server.read_exact(&mut buf).unwrap();
        assert_eq!(lab.metric(established), 1);
    }
    // A destination that the file refuses now: its session ends, the client learns it at once.
    std::fs::write(&config, CONFIG.replace("198.18.9.1/32", "198.18.9.0/24")).unwrap();
    kill(Pid::from_raw(pid as i32), Signal::SIGHUP).unwrap();
    wait_for("the session's end", || (lab.metric(established) == 0).then_some(()));
    let refused = lab.now_inside("c", || TcpStream::connect((SERVER6, 8003)).unwrap_err());
    assert_eq!(refused.raw_os_error(), Some(nix::libc::EACCES), "{refused}");
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
    let status = wait_for("the end", || lab.nat64.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn a_port_that_nobody_listens_on_and_a_packet_too_far_are_answered() {
    let lab = Lab::start(true);
    let refused = lab.now_inside("c", || TcpStream::connect((SERVER6, 9)).unwrap_err());
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let unreachable = lab.now_inside("c", || {
        let client = UdpSocket::bind("[::]:0").unwrap();
        client.connect((SERVER6, 9)).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.send(b"x").unwrap();
        client.recv(&mut [0; 16]).unwrap_err()
    });
    assert_eq!(unreachable.kind(), std::io::ErrorKind::ConnectionRefused, "the ICMP error reaches the socket");
    // Three hops: the router on its way to the TUN, the translator, the router again.
    for (hops, hop) in [(1, "fd00:64::1"), (2, "64:ff9b:1::c612:4001"), (3, "64:ff9b:1::c612:")] {
        let command =
            format!("nsenter --net=/run/netns/{}-c ping -6 -n -c 1 -W 2 -t {hops} {SERVER6} || true", lab.prefix);
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&format!("From {hop}")) && text.contains("Time exceeded"), "{hops}: {text}");
    }
}

#[test]
fn siit_passes_everything_both_ways_without_sessions() {
    for offloads in [true, false] {
        let lab = Lab::start_with(SIIT, offloads);
        transfer(&lab, if offloads { 64 } else { 8 });
        datagrams(&lab, &[1, 2, 3, 100, 1200, 1360, 1372, 1373, 1400, 3000, 9000]);
        ping(&lab, "-c 3 -i 0.2 -s 1000");
        // The IPv4 side may begin, too: the client is reached by its IPv4 address.
        let p = &lab.prefix;
        sh(&format!("nsenter --net=/run/netns/{p}-s ping -4 -c 3 -i 0.2 -s 1000 198.18.64.1"));
        let listener = lab.now_inside("c", || TcpListener::bind("[::]:8003").unwrap());
        let client = lab.inside("c", move || {
            let (mut stream, from) = listener.accept().unwrap();
            check_pattern(&mut stream, 5, 32);
            from
        });
        lab.now_inside("s", || {
            let mut stream = TcpStream::connect("198.18.64.1:8003").unwrap();
            send_pattern(&mut stream, 5, 32);
        });
        assert_eq!(client.join().unwrap().ip(), SERVER6.parse::<std::net::IpAddr>().unwrap());
        // Two hops from the IPv4 side; the router behind the translator speaks by the pool (RFC 6791).
        for (hops, hop) in [(2, "198.18.64.9"), (3, "198.18.64.9")] {
            let command = format!("nsenter --net=/run/netns/{p}-s ping -4 -n -c 1 -W 2 -t {hops} 198.18.64.1 || true");
            let output = Command::new("sh").args(["-c", &command]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains(&format!("From {hop}")) && text.contains("Time to live exceeded"), "{hops}: {text}");
        }
        lab.no_checksum_errors();
        assert_eq!(lab.metric("weft_nat64_sessions_created_total"), 0);
        assert_eq!(lab.metric("weft_nat64_write_errors_total"), 0);
    }
}

#[test]
fn a_static_binding_lets_the_ipv4_side_begin_and_a_hairpin_lets_hosts_meet_there() {
    let bindings = "[[static]]\nprotocol = \"tcp\"\nsix = \"[fd00:64::2]:8004\"\nfour = \"198.18.64.1:80\"\n";
    let config = CONFIG.replace("queues = 2", "queues = 2\nhairpinning = true") + bindings;
    let lab = Lab::start_with(&config, true);
    // So that all neighbours know each other: the first packet to a host whose address just came up may fail.
    datagrams(&lab, &[1]);
    // From the IPv4 side, and from the IPv6 side by the same IPv4 address.
    for (namespace, address) in [("s", "198.18.64.1:80"), ("c", "[64:ff9b:1::198.18.64.1]:80")] {
        let listener = lab.now_inside("c", || TcpListener::bind("[::]:8004").unwrap());
        let host = lab.inside("c", move || {
            let (mut stream, from) = listener.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            check_pattern(&mut stream, 5, 64);
            send_pattern(&mut stream, 6, 64);
            from.ip().to_string()
        });
        lab.now_inside(namespace, move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            send_pattern(&mut stream, 5, 64);
            check_pattern(&mut stream, 6, 64);
        });
        let seen_from = if namespace == "s" { SERVER6 } else { "64:ff9b:1::198.18.64.1" };
        assert_eq!(host.join().unwrap(), seen_from.parse::<Ipv6Addr>().unwrap().to_string());
    }
    lab.no_checksum_errors();
}

#[test]
fn a_trace_tells_each_rule_and_the_resulting_packet() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("nat64.toml");
    let trace = |arguments: &[&str]| {
        let command = [&["trace", "--config", file.to_str().unwrap()], arguments].concat();
        let output = Command::new(env!("CARGO_BIN_EXE_nat64")).args(command).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    // UDP from fd00:64::2 port 5 to 64:ff9b:1::198.18.9.2 port 53, and its answer in SIIT.
    let packet =
        "6000000000091140 fd000064000000000000000000000002 0064ff9b000100000000000 0c6120902 0005003500094b5c78";
    let answer = "4500001d00004000401165a8 c6120902 c6124001 0035000500090000 78";
    std::fs::write(&file, CONFIG).unwrap();
    let (good, text) = trace(&[packet]);
    assert!(good, "{text}");
    for says in ["RFC 6052 2.2", "RFC 6146 3.5.1", "RFC 7915 5.1", "RFC 7915 5.5", "\n  forward\n", "c6124001c6120902"]
    {
        assert!(text.contains(says), "{says}: {text}");
    }
    let (_, text) = trace(&["45"]);
    assert!(text.contains("drop (truncated)"), "{text}");
    std::fs::write(&file, SIIT).unwrap();
    let (good, text) = trace(&["--json", packet, answer]);
    assert!(good, "{text}");
    let traced: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(traced[0]["verdict"], "forward");
    assert_eq!(traced[0]["steps"][1]["rfc"], 7757);
    let translated = traced[0]["packets"][0].as_str().unwrap();
    assert!(translated.starts_with("4500001d") && translated.contains("c6124001c612090200050035"), "{text}");
    let header_checksum = trace(&["--json", &answer.replace("65a8", "0000")]).1;
    assert!(header_checksum.contains("bad-header-checksum"), "{header_checksum}");
    let (good, text) = trace(&["xyz"]);
    assert!(!good && text.contains("is no packet in hex: give its bytes"), "{text}");
}

#[test]
fn a_wrong_file_is_refused_with_a_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("nat64.toml");
    let check = || Command::new(env!("CARGO_BIN_EXE_nat64")).args(["check", "--config"]).arg(&file).output().unwrap();
    assert!(String::from_utf8_lossy(&check().stderr).contains("give the file's path"));
    std::fs::write(&file, CONFIG.replace("mtu6 = 1420", "mtu6 = 100")).unwrap();
    let output = check();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("mtu6 = 100 is out of range: give 1280"));
    std::fs::write(&file, CONFIG).unwrap();
    assert!(check().status.success());
}
