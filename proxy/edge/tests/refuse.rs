//! Requests that do not reach a workspace, and what the caller is told; and a proxy that cannot start.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that does not hold")]
mod support;

use std::{sync::atomic::Ordering, time::Duration};

use support::{
    Answer, BOX, Netd, Netns, Proxy, Workspace, command, read_to_close, route, socket, write_certificate, write_config,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const STOPPED: &str = "aaaaaaaaaa";

#[tokio::test]
async fn programs_get_json_and_people_a_page() {
    let workspace = Workspace::start().await;
    let routes = vec![
        route(BOX, Some("box"), Some("::1"), 1, &[(workspace.port, true), (3000, false), (9, true)]),
        route(STOPPED, None, None, 0, &[(8080, true)]),
    ];
    let (proxy, _netd) = Proxy::with(routes, "").await;
    for (host, status, error, says) in [
        ("8080-nobody.ws.test", 404, "unknown-workspace", "8080-nobody.ws.test"),
        ("8081-box.ws.test", 404, "undeclared-port", "netctl expose k3v7qz2mna 8081"),
        ("box.ws.test", 404, "host-shape", "8080-k3v7qz2mna"),
        ("3000-box.ws.test", 401, "private", "--public"),
        ("8080-aaaaaaaaaa.ws.test", 503, "stopped", "not running"),
        ("9-box.ws.test", 502, "port-silent", "nothing listens on port 9 in this workspace"),
    ] {
        for version in ["--http1.1", "--http2"] {
            let answer = proxy.curl(host, "/", &[version]).await;
            assert_eq!((answer.status, answer.json()["error"].as_str().unwrap()), (status, error), "{host} {version}");
            let body = answer.json();
            assert!(format!("{} {}", body["message"], body["hint"]).contains(says), "{says:?} in {body}");
            assert_eq!(answer.headers["cache-control"], "no-store");
        }
        let page = proxy.curl(host, "/", &["-H", "Accept: text/html,*/*", "-H", "Sec-Fetch-Mode: navigate"]).await;
        assert_eq!(page.status, status);
        assert!(page.headers["content-type"].starts_with("text/html"), "{page:?}");
        assert!(page.text().contains("<h1>"), "{page:?}");
        let script = proxy.curl(host, "/", &["-H", "Accept: text/html", "-H", "Sec-Fetch-Mode: cors"]).await;
        assert_eq!(script.headers["content-type"], "application/json");
        let head = proxy.curl(host, "/", &["--head"]).await;
        assert_eq!((head.status, head.body.len()), (status, 0));
    }
    assert!(proxy.curl("8080-aaaaaaaaaa.ws.test", "/", &[]).await.headers.contains_key("retry-after"));
    assert!(proxy.curl("3000-box.ws.test", "/", &[]).await.headers["www-authenticate"].starts_with("Bearer"));
    let foreign = proxy.curl("8080-box.other.test", "/", &["--insecure"]).await;
    assert_eq!((foreign.status, foreign.json()["error"].as_str().unwrap()), (421, "unknown-domain"));
    assert_eq!(workspace.requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_port_that_is_opened_and_closed_acts_on_the_next_request() {
    let workspace = Workspace::start().await;
    let as_route = |public| route(BOX, None, Some("::1"), 1, &[(workspace.port, public)]);
    let (proxy, netd) = Proxy::with(vec![as_route(false)], "").await;
    let host = format!("{}-{BOX}.ws.test", workspace.port);
    assert_eq!(proxy.curl(&host, "/", &[]).await.status, 401);
    netd.upsert(as_route(true));
    support::wait_for("the open port", async || (proxy.curl(&host, "/", &[]).await.status == 200).then_some(())).await;
    netd.upsert(as_route(false));
    support::wait_for("the closed port", async || (proxy.curl(&host, "/", &[]).await.status == 401).then_some(()))
        .await;
}

#[tokio::test]
async fn what_others_could_read_differently_is_refused_and_the_connection_closed() {
    let workspace = Workspace::start().await;
    let (proxy, _netd) = Proxy::with(vec![route(BOX, None, Some("::1"), 1, &[(workspace.port, true)])], "").await;
    let host = format!("{}-{BOX}.ws.test", workspace.port);
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n");
    for request in [
        format!(
            "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd{smuggled}"),
        format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: +4\r\n\r\nabcd{smuggled}"),
        format!("POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("POST / HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n\r\n{smuggled}"),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nHost: other.ws.test\r\n\r\n{smuggled}"),
        format!("GET / HTTP/1.1\r\n\r\n{smuggled}"),
        format!("GET / HTTP/1.1\nHost: {host}\n\n{smuggled}"),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: a\r\n folded\r\n\r\n{smuggled}"),
        format!("GET http://other.ws.test/ HTTP/1.1\r\nHost: {host}\r\n\r\n{smuggled}"),
        format!("nonsense\r\n\r\n{smuggled}"),
    ] {
        let answer = proxy.raw(&host, request.as_bytes()).await;
        assert_eq!(Answer::parse(&answer).status, 400, "{request:?}");
        let answers = answer.windows(9).filter(|window| *window == b"HTTP/1.1 ").count();
        assert_eq!(answers, 1, "{request:?}: {}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(workspace.requests.load(Ordering::SeqCst), 0);
    assert_eq!(proxy.curl(&host, "/", &[]).await.status, 200);
}

#[tokio::test]
async fn one_hosts_connection_does_not_carry_anothers_requests() {
    let workspace = Workspace::start().await;
    let routes = vec![
        route(BOX, None, Some("::1"), 1, &[(workspace.port, true)]),
        route("bbbbbbbbbb", None, Some("::1"), 1, &[(workspace.port, true)]),
    ];
    let (proxy, _netd) = Proxy::with(routes, "").await;
    let (mine, other) = (format!("{}-{BOX}.ws.test", workspace.port), format!("{}-bbbbbbbbbb.ws.test", workspace.port));
    let request = format!("GET / HTTP/1.1\r\nHost: {other}\r\nConnection: close\r\n\r\n");
    let answer = Answer::parse(&proxy.raw(&mine, request.as_bytes()).await);
    assert_eq!((answer.status, answer.json()["error"].as_str().unwrap()), (421, "misdirected"));
    assert_eq!(Answer::parse(&proxy.raw(&other, request.as_bytes()).await).status, 200);
    // HTTP/2: :authority differs from the connection's name.
    let answer = proxy.curl(&mine, "/", &["--http2", "-H", &format!("Host: {other}")]).await;
    assert_eq!((answer.version.as_str(), answer.status), ("HTTP/2", 421));
}

#[tokio::test]
async fn a_node_whose_proxy_address_is_missing_is_said_to_the_caller_and_to_the_operator() {
    let folder = tempfile::tempdir().unwrap();
    let routes = vec![route(BOX, None, Some("::1"), 1, &[(8080, true)])];
    let _netd = Netd::start_from(&socket(folder.path()), routes, "2001:db8::2".parse().unwrap());
    let proxy = Proxy::start(folder, "").await;
    proxy.wait_log("following netd's routes").await;
    let answer = proxy.curl("8080-k3v7qz2mna.ws.test", "/", &[]).await;
    assert_eq!((answer.status, answer.json()["error"].as_str().unwrap()), (504, "unreachable"));
    support::wait_for("the error in the log", async || {
        proxy.logged(|line| line["level"] == "ERROR" && line["dial_from"] == "2001:db8::2")
    })
    .await;
}

#[tokio::test]
async fn what_the_network_answers_is_told_at_once() {
    let netns = Netns::with_routes(&["prohibit 2001:db8:1::/64", "unreachable 2001:db8:2::/64"]).await;
    let folder = tempfile::tempdir().unwrap();
    let routes = vec![
        route(BOX, None, Some("2001:db8:1::7"), 1, &[(8080, true)]),
        route("bbbbbbbbbb", None, Some("2001:db8:2::7"), 1, &[(8080, true)]),
    ];
    let _netd = Netd::start(&socket(folder.path()), routes);
    let proxy = Proxy::start_in(netns, folder).await;
    proxy.wait_log("following netd's routes").await;
    for (id, says) in [(BOX, "does not admit this proxy"), ("bbbbbbbbbb", "no route leads to it")] {
        let answer = proxy.curl(&format!("8080-{id}.ws.test"), "/", &[]).await;
        assert_eq!((answer.status, answer.json()["error"].as_str().unwrap()), (504, "unreachable"));
        assert!(answer.json()["message"].as_str().unwrap().contains(says), "{answer:?}");
    }
}

#[tokio::test]
async fn a_caller_that_says_nothing_is_cut_in_http2_too() {
    let (proxy, _netd) = Proxy::with(vec![], "[limits]\nheader_timeout_s = 1\nidle_timeout_s = 1").await;
    for opening in [&b""[..], b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"] {
        let mut stream = proxy.try_connect("8080-box.ws.test", "h2").await.unwrap();
        stream.write_all(opening).await.unwrap();
        read_to_close(&mut stream).await;
    }
}

#[tokio::test]
async fn slow_large_and_broken_requests_end() {
    let workspace = Workspace::start().await;
    let more = "[limits]\nheader_timeout_s = 1\nheader_bytes = 8192\nbody_timeout_s = 1";
    let (proxy, _netd) = Proxy::with(vec![route(BOX, None, Some("::1"), 1, &[(workspace.port, true)])], more).await;
    let host = format!("{}-{BOX}.ws.test", workspace.port);
    // One byte now and then holds a connection for the header's time, not for ever.
    let mut slow = proxy.connect(&host).await;
    let (mut receive, mut send) = tokio::io::split(&mut slow);
    let drip = async {
        for byte in format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: {}", "x".repeat(4000)).bytes() {
            if send.write_all(&[byte]).await.and(send.flush().await).is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let closed = async {
        let mut rest = Vec::new();
        let _ = receive.read_to_end(&mut rest).await;
    };
    tokio::time::timeout(Duration::from_secs(10), async {
        tokio::select! { () = drip => panic!("never cut"), () = closed => {} }
    })
    .await
    .expect("cut after the header's time");
    // The same on a connection that has served a request before.
    let mut kept = proxy.connect(&host).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    kept.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 4096];
    assert!(kept.read(&mut answer).await.unwrap() > 0);
    kept.write_all(b"GET / HT").await.unwrap();
    read_to_close(&mut kept).await;
    // Too many header bytes.
    let large = format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n", "x".repeat(9000));
    assert_eq!(Answer::parse(&proxy.raw(&host, large.as_bytes()).await).status, 431);
    let endless = format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: {}", "x".repeat(100_000));
    let mut stream = proxy.connect(&host).await;
    let _ = stream.write_all(endless.as_bytes()).await;
    read_to_close(&mut stream).await;
    // A body that does not come.
    let body = format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!(Answer::parse(&proxy.raw(&host, body.as_bytes()).await).status, 408);
    // A caller that leaves in the middle of its header, and one in the middle of its handshake.
    let mut stream = proxy.connect(&host).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHos").await.unwrap();
    drop(stream);
    drop(tokio::net::TcpStream::connect(proxy.address).await.unwrap());
    assert_eq!(proxy.curl(&host, "/", &[]).await.status, 200);
}

#[tokio::test]
async fn a_workspace_that_does_not_answer_or_breaks_off_is_said() {
    let full = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
    full.bind(&"[::1]:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let deaf = full.local_addr().unwrap().as_socket().unwrap();
    // A full backlog drops further connection requests, as a dead host would.
    let _queued: Vec<_> = (0..2)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&deaf.into());
            socket
        })
        .collect();
    let rude = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
    let rude_port = rude.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = rude.accept().await.unwrap();
            let mut asked = [0; 1024];
            let read = stream.read(&mut asked).await.unwrap();
            if asked[..read].starts_with(b"GET /nonsense") {
                stream.write_all(b"220 smtp.example ready\r\n").await.unwrap();
            }
        }
    });
    let routes = vec![route(BOX, None, Some("::1"), 1, &[(deaf.port(), true), (rude_port, true)])];
    let (proxy, _netd) = Proxy::with(routes, "[limits]\nconnect_timeout_s = 1").await;
    let ask = async |port, path: &str| {
        let answer = proxy.curl(&format!("{port}-{BOX}.ws.test"), path, &[]).await;
        (answer.status, answer.json()["error"].as_str().unwrap().to_owned())
    };
    assert_eq!(ask(deaf.port(), "/").await, (504, "unreachable".into()));
    assert_eq!(ask(rude_port, "/").await, (502, "bad-upstream".into()));
    assert_eq!(ask(rude_port, "/nonsense").await, (502, "bad-upstream".into()));
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_at_once() {
    let workspace = Workspace::start().await;
    let routes = vec![route(BOX, None, Some("::1"), 1, &[(workspace.port, true)])];
    let (proxy, _netd) = Proxy::with(routes, "[limits]\nconnections = 2").await;
    let host = format!("{}-{BOX}.ws.test", workspace.port);
    let first = proxy.connect(&host).await;
    let _second = proxy.connect(&host).await;
    assert!(proxy.try_connect(&host, "http/1.1").await.is_err());
    drop(first);
    support::wait_for("a free place", async || proxy.try_connect(&host, "http/1.1").await.ok()).await;
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart() {
    let workspace = Workspace::start().await;
    let (proxy, _netd) = Proxy::with(vec![route(BOX, None, Some("::1"), 1, &[(workspace.port, true)])], "").await;
    let host = format!("{}-{BOX}.ws.test", workspace.port);
    let _before = proxy.connect(&host).await;
    write_certificate(proxy.folder.path());
    proxy.signal(nix::sys::signal::Signal::SIGHUP);
    proxy.wait_log("showing a new certificate").await;
    let _after = proxy.connect(&host).await;
}

#[tokio::test]
async fn it_runs_without_privileges() {
    let (proxy, _netd) = Proxy::with(vec![], "").await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
    for (field, expected) in [("CapEff:", "0000000000000000"), ("CapPrm:", "0000000000000000"), ("NoNewPrivs:", "1")] {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        assert_eq!(line.split_whitespace().nth(1), Some(expected), "{line}");
    }
    for task in std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.contains("CapEff:\t0000000000000000"), "a thread kept a capability");
    }
}

#[tokio::test]
async fn plain_http_is_sent_to_https() {
    let (proxy, _netd) = Proxy::with(vec![], "redirect = [\"127.0.0.1:0\"]").await;
    let address = proxy.wait_log("redirecting to https").await["address"].as_str().unwrap().to_owned();
    let output = tokio::process::Command::new("curl")
        .args(["-sS", "-i", "-H", "Host: 8080-box.ws.test", &format!("http://{address}/a?b")])
        .output()
        .await
        .unwrap();
    let answer = Answer::parse(&output.stdout);
    assert_eq!(answer.status, 308);
    assert!(answer.headers["location"].starts_with("https://8080-box.ws.test:"), "{answer:?}");
    assert!(answer.headers["location"].ends_with("/a?b"), "{answer:?}");
}

#[tokio::test]
async fn a_proxy_that_cannot_start_says_why_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let fails = async || {
        let output = command(folder.path()).output().await.unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(fails().await.contains("--config"), "{}", fails().await);
    write_config(folder.path(), "");
    let said = fails().await;
    assert!(said.contains("cert.pem") && said.contains("put the file there"), "{said}");
    write_certificate(folder.path());
    write_config(folder.path(), "colour = \"red\"");
    let said = fails().await;
    assert!(said.contains("unknown field `colour`"), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = format!(
        "listen = [\"{}\"]\ncertificate = {:?}\nkey = {:?}\n",
        taken.local_addr().unwrap(),
        folder.path().join("cert.pem"),
        folder.path().join("key.pem")
    );
    std::fs::write(folder.path().join("proxy.toml"), config).unwrap();
    let said = fails().await;
    assert!(said.contains("cannot listen on 127.0.0.1") && said.contains("ss -ltnp"), "{said}");
}
