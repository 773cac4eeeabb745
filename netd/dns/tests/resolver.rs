//! The resolver as a process in a network namespace, with unbound as its upstream.
#![allow(clippy::unwrap_used, reason = "a test's own functions may stop at what does not hold")]
use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use weft_model::{
    address::{NAT64_GLOBAL, NAT64_PRIVATE},
    dns::{DnsName, DnsView},
};
use weft_test_support::{ChildGuard, Netns, is_root, wait_for, wait_until};

const RESOLVER: &str = "fd00:1::53";
const ALPHA: &str = "fd00:1:0:1::a:1";
const BETA: &str = "fd00:1:0:1::b:1";
const GAMMA: &str = "fd00:1:0:1::c:1";
const STRANGER: &str = "fd00:1:0:2::1:1";
const UNBOUND: &str = "192.0.2.1:53";
const SILENT: &str = "192.0.2.9:53";
const DEADLINE: Duration = Duration::from_secs(10);

const ZONE: &str = "
$ORIGIN test.
$TTL 1000
@        IN SOA ns.test. root.test. 1 3600 600 86400 50
@        IN NS ns.test.
ns       IN A 192.0.2.1
four     IN A 8.8.8.8
private  IN A 198.18.0.5
hidden   IN A 10.0.0.1
mixed    IN A 10.0.0.1
mixed    IN A 9.9.9.9
six      IN AAAA 2001:db8::6
both     IN A 8.8.4.4
both     IN AAAA 2001:db8::64
mapped   IN AAAA ::ffff:8.8.8.8
mapped   IN A 8.8.8.8
one      IN CNAME two.test.
two      IN CNAME four.test.
dangling IN CNAME nothing.test.
away     IN CNAME dns.8.8.in-addr.arpa.
round    IN CNAME trip.test.
trip     IN CNAME round.test.
text     IN TXT \"hello\"
8080-alpha.ws IN A 198.18.0.7
";

struct Fixture {
    directory: tempfile::TempDir,
    view: DnsView,
    server: Option<ChildGuard>,
    _unbound: ChildGuard,
    netns: Netns,
}

/// The example beside this test: `cargo test` builds both.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples/dns")
}

fn view() -> DnsView {
    let workspace = |id: &str, name: &str, address: &str, group: &str| DnsName {
        id: id.parse().unwrap(),
        name: Some(name.parse().unwrap()),
        address: address.parse().unwrap(),
        group: Some(group.parse().unwrap()),
    };
    DnsView {
        schema: DnsView::SCHEMA,
        listen: vec![RESOLVER.parse().unwrap()],
        askers: vec!["fd00:1:0:1::/64".parse().unwrap()],
        upstreams: vec![UNBOUND.parse().unwrap()],
        domain: "ws.test".into(),
        names: vec![
            workspace("aaaaaaaaaa", "alpha", ALPHA, "team"),
            workspace("bbbbbbbbbb", "beta", BETA, "team"),
            workspace("cccccccccc", "gamma", GAMMA, "other"),
        ],
        nat64_global: NAT64_GLOBAL,
        nat64_private: NAT64_PRIVATE,
        private: vec!["198.18.0.0/15".parse().unwrap()],
        native_aaaa: true,
    }
}

impl Fixture {
    fn new(tag: &str) -> Option<Self> {
        if !is_root() {
            eprintln!("skipped: run as root, network namespaces need it");
            return None;
        }
        let netns = Netns::unique(tag).unwrap();
        netns.ip("addr add 192.0.2.1/32 dev lo\naddr add 192.0.2.9/32 dev lo").unwrap();
        for address in [ALPHA, BETA, GAMMA, STRANGER] {
            netns.ip(&format!("addr add {address}/128 dev lo nodad")).unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let unbound = start_unbound(&netns, directory.path());
        let fixture = Self { directory, view: view(), server: None, _unbound: unbound, netns };
        wait_until("unbound", DEADLINE, || {
            fixture
                .netns
                .run(|| exchange_udp("192.0.2.7", UNBOUND, &question("four.test", RecordType::A)))
                .unwrap()
                .is_some()
        })
        .ok();
        Some(fixture)
    }

    /// With the resolver's address there and its process answering.
    fn started(tag: &str) -> Option<Self> {
        let mut fixture = Self::new(tag)?;
        fixture.netns.ip(&format!("addr add {RESOLVER}/128 dev lo nodad")).unwrap();
        fixture.write();
        fixture.start();
        fixture.wait_answering();
        Some(fixture)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// As netd writes it: a temporary file, then a rename.
    fn write(&self) {
        self.write_bytes(&serde_json::to_vec(&self.view).unwrap());
    }

    fn write_bytes(&self, bytes: &[u8]) {
        fs::write(self.path("dns.json.tmp"), bytes).unwrap();
        fs::rename(self.path("dns.json.tmp"), self.path("dns.json")).unwrap();
    }

    fn change(&mut self, change: impl FnOnce(&mut DnsView)) {
        change(&mut self.view);
        self.write();
    }

    fn start(&mut self) {
        let log = fs::File::create(self.path("log")).unwrap();
        let mut command = Command::new(program());
        command.arg("--view").arg(self.path("dns.json")).arg("--metrics-socket").arg(self.path("metrics"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.server = Some(ChildGuard::new(self.netns.spawn(&mut command).unwrap()));
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn wait_answering(&mut self) {
        let answered = wait_until("the resolver's first answer", DEADLINE, || {
            self.try_udp(ALPHA, &question("localhost", RecordType::AAAA)).is_some()
        });
        assert!(answered.is_ok(), "{}", self.log());
    }

    fn try_udp(&self, from: &str, request: &Message) -> Option<Message> {
        let resolver = format!("[{RESOLVER}]:53");
        self.netns.run(|| exchange_udp(from, &resolver, request)).unwrap()
    }

    fn ask_message(&self, from: &str, request: &Message) -> Message {
        self.try_udp(from, request).unwrap_or_else(|| panic!("no answer to {request}; {}", self.log()))
    }

    fn ask(&self, from: &str, name: &str, kind: RecordType) -> Message {
        self.ask_message(from, &question(name, kind))
    }

    /// The answer section's data, or the code.
    fn says(&self, from: &str, name: &str, kind: RecordType) -> Vec<String> {
        data(&self.ask(from, name, kind))
    }

    fn metrics(&self) -> String {
        let mut stream = UnixStream::connect(self.path("metrics")).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

fn start_unbound(netns: &Netns, directory: &Path) -> ChildGuard {
    let zone = directory.join("test.zone");
    // Larger than a UDP payload: upstream over TCP, and to the asker with TC.
    let big: String = (1..=120).map(|n| format!("big IN A 8.8.1.{n}\n")).collect();
    fs::write(&zone, format!("{ZONE}{big}")).unwrap();
    let reverse = directory.join("reverse.zone");
    let soa = "@ 1000 IN SOA ns.test. root.test. 1 3600 600 86400 50\n@ 1000 IN NS ns.test.\n";
    fs::write(&reverse, format!("$ORIGIN 8.8.in-addr.arpa.\n{soa}8.8 700 IN PTR dns.test.\ndns 700 IN A 9.9.9.9\n"))
        .unwrap();
    let configuration = directory.join("unbound.conf");
    let auth = |name: &str, file: &Path| {
        format!(
            "auth-zone:\n name: \"{name}\"\n zonefile: \"{}\"\n for-downstream: yes\n for-upstream: no\n",
            file.display()
        )
    };
    fs::write(
        &configuration,
        format!(
            "server:\n interface: 192.0.2.1\n port: 53\n chroot: \"\"\n username: \"\"\n directory: \"{}\"\n pidfile: \"\"\n \
             do-daemonize: no\n use-syslog: no\n module-config: \"iterator\"\n local-zone: \"test.\" nodefault\n access-control: 0.0.0.0/0 allow\n num-threads: 1\n\
             remote-control:\n control-enable: no\n{}{}",
            directory.display(),
            auth("test.", &zone),
            auth("8.8.in-addr.arpa.", &reverse),
        ),
    )
    .unwrap();
    let mut command = Command::new("unbound");
    command.arg("-d").arg("-c").arg(&configuration).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(fs::File::create(directory.join("unbound.log")).unwrap());
    ChildGuard::new(netns.spawn(&mut command).expect("unbound: apt-get install unbound"))
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Query;
    message.metadata.message_type = MessageType::Query;
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

fn data(message: &Message) -> Vec<String> {
    if message.answers.is_empty() {
        return vec![message.metadata.response_code.to_string()];
    }
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

fn exchange_udp(from: &str, to: &str, request: &Message) -> Option<Message> {
    let to: SocketAddr = to.parse().unwrap();
    let from: IpAddr = if to.is_ipv4() { "192.0.2.9".parse().unwrap() } else { from.parse().unwrap() };
    let socket = UdpSocket::bind((from, 0)).ok()?;
    socket.connect(to).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
    socket.send(&request.to_vec().unwrap()).ok()?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).ok()?;
    let response = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(response.metadata.id, request.metadata.id);
    Some(response)
}

fn exchange_tcp(stream: &mut TcpStream, request: &[u8]) -> std::io::Result<Message> {
    stream.write_all(&u16::try_from(request.len()).unwrap().to_be_bytes())?;
    stream.write_all(request)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut response = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut response)?;
    Ok(Message::from_vec(&response).unwrap())
}

fn connect(fixture: &Fixture) -> TcpStream {
    let to = SocketAddrV6::new(RESOLVER.parse::<Ipv6Addr>().unwrap(), 53, 0, 0);
    // The kernel picks the source; bound by name with an address of the right prefix preferred.
    let stream = fixture
        .netns
        .run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
            let from: SocketAddr = SocketAddrV6::new(ALPHA.parse().unwrap(), 0, 0, 0).into();
            socket.bind(&from.into()).unwrap();
            socket.connect(&SocketAddr::V6(to).into()).unwrap();
            TcpStream::from(socket)
        })
        .unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn forwards_and_synthesises() {
    let Some(fixture) = Fixture::started("dns64") else { return };
    let aaaa = |name: &str| fixture.says(ALPHA, name, RecordType::AAAA);
    assert_eq!(fixture.says(ALPHA, "four.test", RecordType::A), ["8.8.8.8"]);
    assert_eq!(fixture.says(ALPHA, "text.test", RecordType::TXT), ["hello"]);
    assert_eq!(aaaa("four.test"), ["64:ff9b::808:808"]);
    assert_eq!(aaaa("private.test"), ["64:ff9b:1::c612:5"]);
    assert_eq!(aaaa("hidden.test"), ["No Error"]);
    assert_eq!(aaaa("mixed.test"), ["64:ff9b::909:909"]);
    assert_eq!(aaaa("six.test"), ["2001:db8::6"]);
    assert_eq!(aaaa("both.test"), ["2001:db8::64"]);
    assert_eq!(aaaa("mapped.test"), ["64:ff9b::808:808"]);
    assert_eq!(aaaa("one.test"), ["two.test.", "four.test.", "64:ff9b::808:808"]);
    assert_eq!(aaaa("ipv4only.arpa"), ["64:ff9b::c000:aa", "64:ff9b::c000:ab"]);

    let made = fixture.ask(ALPHA, "four.test", RecordType::AAAA);
    assert!(made.answers[0].ttl <= 50, "the TTL is the negative TTL's: {made}");
    let none = fixture.ask(ALPHA, "nothing.test", RecordType::AAAA);
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(none.authorities[0].record_type(), RecordType::SOA);
    let dangling = fixture.ask(ALPHA, "dangling.test", RecordType::AAAA);
    assert_eq!(dangling.metadata.response_code, ResponseCode::NXDomain, "{dangling}");
    assert_eq!(aaaa("away.test"), ["dns.8.8.in-addr.arpa.", "64:ff9b::909:909"]);
    assert_eq!(aaaa("round.test"), ["Server Failure"]);
    let hidden = fixture.ask(ALPHA, "hidden.test", RecordType::AAAA);
    assert_eq!(hidden.authorities[0].record_type(), RecordType::SOA);

    let pointer = Name::from("64:ff9b::808:808".parse::<IpAddr>().unwrap()).to_string();
    assert_eq!(fixture.says(ALPHA, &pointer, RecordType::PTR), ["8.8.8.8.in-addr.arpa.", "dns.test."]);

    let mut validating = question("four.test", RecordType::AAAA);
    validating.metadata.checking_disabled = true;
    let mut edns = Edns::new();
    edns.set_dnssec_ok(true);
    validating.set_edns(edns);
    let response = fixture.ask_message(ALPHA, &validating);
    assert!(response.answers.is_empty() && response.edns.unwrap().flags().dnssec_ok);

    fixture.ask(ALPHA, "four.test", RecordType::A);
    let metrics = fixture.metrics();
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"));
    for at_least_one in
        ["cache_total{result=\"hit\"}", "synthesised_total", "local_total", "upstream_total{result=\"answer\"}"]
    {
        let line = metrics.lines().find(|line| line.starts_with(&format!("weft_dns_{at_least_one} "))).unwrap();
        assert!(!line.ends_with(" 0"), "{line}");
    }
    assert!(metrics.contains("weft_dns_outstanding 0\n"), "{metrics}");
}

#[test]
fn answers_the_fabrics_names_by_who_asks() {
    let Some(fixture) = Fixture::started("names") else { return };
    assert_eq!(fixture.says(ALPHA, "beta.ws.test", RecordType::AAAA), [BETA]);
    assert_eq!(fixture.says(BETA, "aaaaaaaaaa.ws.test", RecordType::AAAA), [ALPHA]);
    assert_eq!(fixture.says(GAMMA, "beta.ws.test", RecordType::AAAA), ["Non-Existent Domain"]);
    assert_eq!(
        fixture.says(ALPHA, "8080-alpha.ws.test", RecordType::AAAA),
        ["64:ff9b:1::c612:7"],
        "a port's URL is public"
    );
    let pointer = Name::from(BETA.parse::<IpAddr>().unwrap()).to_string();
    assert_eq!(fixture.says(ALPHA, &pointer, RecordType::PTR), ["beta.ws.test."]);
    assert_eq!(fixture.says(GAMMA, &pointer, RecordType::PTR), ["Non-Existent Domain"]);
    for name in ["beta.ws.test", "four.test", "ipv4only.arpa"] {
        assert_eq!(fixture.says(STRANGER, name, RecordType::AAAA), ["Query Refused"]);
    }
    assert_eq!(fixture.says(ALPHA, "four.test", RecordType::ANY), ["Query Refused"]);
}

#[test]
fn a_node_without_uplink_gives_no_native_address_and_a_change_is_seen_within_a_second() {
    let Some(mut fixture) = Fixture::started("change") else { return };
    assert_eq!(fixture.says(ALPHA, "both.test", RecordType::AAAA), ["2001:db8::64"]);
    let second = Duration::from_secs(1);
    fixture.change(|view| view.native_aaaa = false);
    wait_until("a view without native AAAA", second, || {
        fixture.says(ALPHA, "both.test", RecordType::AAAA) == ["64:ff9b::808:404"]
    })
    .unwrap();
    assert_eq!(fixture.says(ALPHA, "six.test", RecordType::AAAA), ["No Error"]);

    fixture.change(|view| view.names.retain(|name| name.address.to_string() != BETA));
    wait_until("a detached workspace's name to go", second, || {
        fixture.says(ALPHA, "beta.ws.test", RecordType::AAAA) == ["Non-Existent Domain"]
    })
    .unwrap();

    for bad in [&b"{\"schema\": 99}"[..], b"half", b""] {
        fixture.write_bytes(bad);
    }
    wait_until("the bad view's refusal", DEADLINE, || fixture.log().contains("the view is not taken")).unwrap();
    assert_eq!(fixture.says(ALPHA, "alpha.ws.test", RecordType::AAAA), [ALPHA], "the last good view stays");
    fs::remove_file(fixture.path("dns.json")).unwrap();
    assert_eq!(fixture.says(ALPHA, "alpha.ws.test", RecordType::AAAA), [ALPHA], "also without a file");

    fixture.change(|view| view.listen = vec!["fd00:1::54".parse().unwrap()]);
    fixture.netns.ip("addr add fd00:1::54/128 dev lo nodad").unwrap();
    let request = question("alpha.ws.test", RecordType::AAAA);
    wait_until("the other address", DEADLINE, || {
        fixture.netns.run(|| exchange_udp(ALPHA, "[fd00:1::54]:53", &request)).unwrap().is_some()
    })
    .unwrap();
    assert!(fixture.try_udp(ALPHA, &request).is_none(), "the first address is left");
}

#[test]
fn waits_for_its_view_and_for_its_address_and_keeps_one_right() {
    let Some(mut fixture) = Fixture::new("wait") else { return };
    fixture.start();
    wait_until("the word that it waits", DEADLINE, || fixture.log().contains("waiting for the view")).unwrap();
    fixture.write();
    wait_until("its sockets", DEADLINE, || fixture.log().contains("listening on UDP and TCP")).unwrap();
    let pid = fixture.server.as_ref().unwrap().pid();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        // Bit 10 is CAP_NET_BIND_SERVICE.
        for (key, expected) in
            [("CapEff:", 1 << 10), ("CapPrm:", 1 << 10), ("CapBnd:", 1 << 10), ("CapInh:", 0), ("CapAmb:", 0)]
        {
            assert_eq!(u64::from_str_radix(&value(key), 16).unwrap(), expected, "{key}");
        }
        assert_eq!(value("NoNewPrivs:"), "1");
    }
    fixture.netns.ip(&format!("addr add {RESOLVER}/128 dev lo nodad")).unwrap();
    fixture.wait_answering();
    assert_eq!(fixture.log().matches("waiting for the view").count(), 1);
    fixture.server.as_mut().unwrap().signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    let server = fixture.server.as_mut().unwrap();
    assert!(wait_for("the end", DEADLINE, || server.exited().ok_or("it runs")).unwrap().success());
}

#[test]
fn a_dead_upstream_is_a_quick_server_failure_and_another_takes_over() {
    let Some(mut fixture) = Fixture::started("dead") else { return };
    // A socket that never answers: silence, not "port unreachable".
    let _silent = fixture.netns.run(|| UdpSocket::bind(SILENT).unwrap()).unwrap();
    fixture.change(|view| view.upstreams = vec![SILENT.parse().unwrap()]);
    wait_until("the new upstream", DEADLINE, || fixture.metrics().contains("weft_dns_views_total{result=\"taken\"} 2"))
        .unwrap();
    for kind in [RecordType::AAAA, RecordType::A] {
        let start = Instant::now();
        assert_eq!(fixture.says(ALPHA, "four.test", kind), ["Server Failure"]);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    assert_eq!(fixture.says(ALPHA, "beta.ws.test", RecordType::AAAA), [BETA], "the fabric's names need no upstream");
    fixture.change(|view| view.upstreams = vec!["192.0.2.77:53".parse().unwrap()]);
    wait_until("an unreachable upstream", DEADLINE, || {
        fixture.metrics().contains("weft_dns_views_total{result=\"taken\"} 3")
    })
    .unwrap();
    assert_eq!(fixture.says(ALPHA, "four.test", RecordType::AAAA), ["Server Failure"]);
    fixture.change(|view| view.upstreams = vec![SILENT.parse().unwrap(), UNBOUND.parse().unwrap()]);
    wait_until("a living upstream beside a dead one", DEADLINE, || {
        fixture.says(ALPHA, "four.test", RecordType::AAAA) == ["64:ff9b::808:808"]
    })
    .unwrap();
}

#[test]
fn asks_from_ports_that_the_kernel_draws_so_that_reserved_ones_stay_free() {
    let Some(mut fixture) = Fixture::started("dns-ports") else { return };
    fixture.netns.sysctl("net.ipv4.ip_local_port_range", "40000 40999").unwrap();
    fixture.netns.sysctl("net.ipv4.ip_local_reserved_ports", "40000-40499").unwrap();
    let upstream = fixture.netns.run(|| UdpSocket::bind(SILENT).unwrap()).unwrap();
    fixture.change(|view| view.upstreams = vec![SILENT.parse().unwrap()]);
    let asker = fixture.netns.run(|| UdpSocket::bind((ALPHA, 0)).unwrap()).unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 512];
    let mut asked = 0;
    // The first questions may still go to the upstream of before.
    while seen.len() < 30 {
        assert!(asked < 500, "only {} of {asked} questions reached the upstream", seen.len());
        let request = question(&format!("name-{asked}.test"), RecordType::A).to_vec().unwrap();
        asker.send_to(&request, (RESOLVER, 53)).unwrap();
        asked += 1;
        upstream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        if let Ok((_, from)) = upstream.recv_from(&mut buffer) {
            seen.push(from.port());
        }
    }
    assert!(seen.iter().all(|port| (40500..=40999).contains(port)), "{seen:?}");
}

#[test]
fn large_answers_go_over_tcp_and_many_questions_over_one_connection() {
    let Some(fixture) = Fixture::started("tcp") else { return };
    let udp = fixture.ask(ALPHA, "big.test", RecordType::A);
    assert!(udp.metadata.truncation && udp.answers.is_empty(), "{udp}");
    let mut stream = connect(&fixture);
    for kind in [RecordType::A, RecordType::AAAA] {
        let response = exchange_tcp(&mut stream, &question("big.test", kind).to_vec().unwrap()).unwrap();
        assert!(!response.metadata.truncation && response.answers.len() == 120, "{kind}");
    }
    let response = exchange_tcp(&mut stream, &question("beta.ws.test", RecordType::AAAA).to_vec().unwrap()).unwrap();
    assert_eq!(data(&response), [BETA]);
}

#[test]
fn bad_bytes_do_no_harm() {
    let Some(mut fixture) = Fixture::started("bytes") else { return };
    let whole = question("four.test", RecordType::AAAA).to_vec().unwrap();
    fixture
        .netns
        .run(|| {
            let socket = UdpSocket::bind((ALPHA.parse::<Ipv6Addr>().unwrap(), 0)).unwrap();
            let to: SocketAddr = format!("[{RESOLVER}]:53").parse().unwrap();
            for length in 0..whole.len() {
                socket.send_to(&whole[..length], to).unwrap();
            }
            // A fixed seed: what fails once fails again.
            let mut random = 0x9e37_79b9_7f4a_7c15_u64;
            for round in 0..3000_usize {
                let mut bytes: Vec<u8> = (0..round % 120)
                    .map(|_| {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        random.to_le_bytes()[0]
                    })
                    .collect();
                if round % 2 == 0 && bytes.len() >= 12 {
                    bytes[2] &= 0x07;
                    bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
                }
                socket.send_to(&bytes, to).unwrap();
            }
        })
        .unwrap();
    let mut stream = connect(&fixture);
    stream.write_all(&[0xff, 0xff, 1, 2, 3]).unwrap();
    drop(stream);
    let mut stream = connect(&fixture);
    let response = exchange_tcp(&mut stream, &[0, 7, 1, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xc0]).unwrap();
    assert_eq!((response.metadata.id, response.metadata.response_code), (7, ResponseCode::FormErr));
    fixture.wait_answering();
    assert_eq!(fixture.says(ALPHA, "four.test", RecordType::AAAA), ["64:ff9b::808:808"]);
    assert!(fixture.server.as_mut().unwrap().exited().is_none());
    assert!(!fixture.log().contains("panicked"), "{}", fixture.log());
}
