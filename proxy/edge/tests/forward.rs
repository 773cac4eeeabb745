//! Requests that reach their workspace: protocols, header fields, streams, pools, and routes that change.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that does not hold")]
mod support;

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::{SinkExt, StreamExt};
use support::{Answer, BOX, Netd, Proxy, Workspace, route, socket, wait_for};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

async fn one() -> (Proxy, Netd, Workspace, String) {
    let workspace = Workspace::start().await;
    let (proxy, netd) = Proxy::with(vec![route(BOX, Some("box"), Some("::1"), 1, &[(workspace.port, true)])], "").await;
    let host = format!("{}-{BOX}.ws.test", workspace.port);
    (proxy, netd, workspace, host)
}

#[tokio::test]
async fn http1_and_http2_reach_the_workspace_by_id_and_by_name() {
    let (proxy, _netd, workspace, host) = one().await;
    for (version, host, expected) in [
        ("--http1.1", host.clone(), "HTTP/1.1"),
        ("--http2", host, "HTTP/2"),
        ("--http2", format!("{}-box.ws.test", workspace.port), "HTTP/2"),
    ] {
        let claims = ["-H", "X-Forwarded-For: 10.0.0.1", "-H", "Forwarded: for=10.0.0.1", "-H", "X-Real-IP: 10.0.0.1"];
        let answer = proxy.curl(&host, "/a/b?c=d", &[&[version][..], &claims].concat()).await;
        assert_eq!((answer.version.as_str(), answer.status), (expected, 200));
        assert!(!answer.headers.contains_key("keep-alive"), "a field of the workspace's own hop came through");
        let told = answer.json();
        assert_eq!(told["target"], "/a/b?c=d");
        assert_eq!(told["headers"]["host"], host);
        assert_eq!(told["headers"]["x-forwarded-for"], "127.0.0.1");
        assert_eq!(told["headers"]["x-forwarded-proto"], "https");
        assert_eq!(told["headers"]["x-forwarded-host"], host);
        assert_eq!(told["headers"]["forwarded"], format!("for=127.0.0.1;host=\"{host}\";proto=https"));
        assert!(told["headers"].get("x-real-ip").is_none());
    }
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    let (proxy, _netd, _workspace, host) = one().await;
    let upload = proxy.folder.path().join("upload");
    std::fs::write(&upload, vec![b'y'; 5 << 20]).unwrap();
    let file = format!("@{}", upload.display());
    for version in ["--http1.1", "--http2"] {
        let sent = proxy.curl(&host, "/", &[version, "--data-binary", &file]).await;
        assert_eq!(sent.json()["received"], 5 << 20);
        let got = proxy.curl(&host, "/large", &[version]).await;
        assert_eq!(got.body.len(), 3 << 20);
    }
}

#[tokio::test]
async fn a_websocket_passes_and_may_be_silent() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.unwrap();
            }
        }
    });
    // The time limit for request bodies must not end a WebSocket whose caller listens.
    let more = "[limits]\nbody_timeout_s = 1\nheader_timeout_s = 1";
    let (proxy, _netd) = Proxy::with(vec![route(BOX, None, Some("::1"), 1, &[(port, true)])], more).await;
    let host = format!("{port}-{BOX}.ws.test");
    let stream = proxy.connect(&host).await;
    let request = format!("wss://{host}/echo").into_client_request().unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(answer.status(), 101);
    for payload in ["first".to_owned(), "x".repeat(200_000)] {
        socket.send(Message::text(payload.clone())).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(payload));
    }
    let silent = tokio::time::timeout(Duration::from_millis(2500), socket.next()).await;
    assert!(silent.is_err(), "nothing comes while both are silent, not even an end: {silent:?}");
    socket.send(Message::text("later")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("later"));
}

#[tokio::test]
async fn a_websocket_ends_when_its_port_is_no_longer_open_to_it() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (closed, mut seen_closed) = tokio::sync::mpsc::channel::<()>(4);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { continue };
            while let Some(Ok(_)) = socket.next().await {}
            closed.send(()).await.unwrap();
        }
    });
    let open = |epoch| route(BOX, None, Some("::1"), epoch, &[(port, true)]);
    let (proxy, netd) = Proxy::with(vec![open(1)], "").await;
    let host = format!("{port}-{BOX}.ws.test");
    for change in
        [open(2), route(BOX, None, Some("::1"), 2, &[(port, false)]), route(BOX, None, None, 0, &[(port, true)])]
    {
        let stream = proxy.connect(&host).await;
        let request = format!("wss://{host}/").into_client_request().unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        netd.upsert(change);
        let end = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.expect("it ends at once");
        assert!(!matches!(end, Some(Ok(_))), "{end:?}");
        tokio::time::timeout(Duration::from_secs(10), seen_closed.recv())
            .await
            .expect("the workspace sees it too")
            .unwrap();
        netd.upsert(open(2));
        // That server answers nobody but WebSockets.
        let open = async || (proxy.curl(&host, "/", &[]).await.json()["error"] == "bad-upstream").then_some(());
        wait_for("the open port", open).await;
    }
    assert!(proxy.logged(|line| line["kind"] == "cut").is_some());
}

#[tokio::test]
async fn events_arrive_as_they_are_sent() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (go_on, mut heard) = tokio::sync::mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head).await.unwrap();
        stream.write_all(b"9\r\ndata: 1\n\n\r\n").await.unwrap();
        heard.recv().await.unwrap();
        stream.write_all(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n").await.unwrap();
    });
    let (proxy, _netd) = Proxy::with(vec![route(BOX, None, Some("::1"), 1, &[(port, true)])], "").await;
    let host = format!("{port}-{BOX}.ws.test");
    let mut stream = proxy.connect(&host).await;
    stream.write_all(format!("GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    for wanted in ["data: 1", "data: 2"] {
        while !String::from_utf8_lossy(&seen).contains(wanted) {
            let read = tokio::time::timeout(Duration::from_secs(10), stream.read_buf(&mut seen)).await;
            assert_ne!(read.expect("the event arrives though the stream goes on").unwrap(), 0);
        }
        let _ = go_on.send(()).await;
    }
}

#[tokio::test]
async fn a_pooled_connection_serves_one_attachment_only() {
    let (proxy, netd, workspace, host) = one().await;
    let ask = async |host: &str| proxy.curl(host, "/", &[]).await.json()["connection"].as_u64().unwrap();
    assert_eq!(ask(&host).await, 1);
    assert_eq!(ask(&host).await, 1, "the connection is pooled");
    // Another attachment at the very same address: nothing on the wire tells them apart.
    netd.upsert(route(BOX, Some("box"), Some("::1"), 2, &[(workspace.port, true)]));
    wait_for("the new epoch", async || (ask(&host).await != 1).then_some(())).await;
    assert_eq!(ask(&host).await, 2);
    // Another workspace at the same address.
    netd.remove(BOX);
    netd.upsert(route("aaaaaaaaaa", Some("box"), Some("::1"), 2, &[(workspace.port, true)]));
    let other = format!("{}-aaaaaaaaaa.ws.test", workspace.port);
    wait_for("the other workspace", async || (proxy.curl(&other, "/", &[]).await.status == 200).then_some(())).await;
    assert_eq!(ask(&other).await, 3);
    assert_eq!(proxy.curl(&host, "/", &[]).await.status, 404, "the first one is gone");
}

/// Two workspaces take turns at one address and port while callers ask for both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_changes_hands_never_gets_anothers_requests() {
    let workspace = Workspace::start().await;
    let ids = [BOX, "aaaaaaaaaa"];
    let holder = |turn: usize, running: bool| {
        let id = ids[turn % 2];
        route(id, None, running.then_some("::1"), turn as u64 + 1, &[(workspace.port, true)])
    };
    let (proxy, netd) = Proxy::with(vec![holder(0, true), holder(1, false)], "").await;
    let proxy = std::sync::Arc::new(proxy);
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..4 {
        let (proxy, done) = (proxy.clone(), done.clone());
        let host = format!("{}-{}.ws.test", workspace.port, ids[caller % 2]);
        callers.spawn(async move {
            let mut served = Vec::new();
            while !done.load(Ordering::SeqCst) {
                let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
                let answer = proxy.raw(&host, request.as_bytes()).await;
                // A request in progress when the address changes hands is cut: there is no answer, or half of one.
                if !answer.windows(4).any(|window| window == b"\r\n\r\n") {
                    continue;
                }
                let answer = Answer::parse(&answer);
                match answer.status {
                    200 => {
                        let Ok(told) = serde_json::from_slice::<serde_json::Value>(&answer.body) else { continue };
                        assert_eq!(told["headers"]["host"], host.as_str());
                        served.push((told["connection"].as_u64().unwrap(), host.clone()));
                    }
                    status => assert_eq!(status, 503, "{answer:?}"),
                }
            }
            served
        });
    }
    for turn in 1..60 {
        netd.upsert(holder(turn - 1, false));
        netd.upsert(holder(turn, true));
        let before = workspace.requests.load(Ordering::SeqCst);
        wait_for("requests in this turn", async || {
            (workspace.requests.load(Ordering::SeqCst) > before + 3).then_some(())
        })
        .await;
    }
    done.store(true, Ordering::SeqCst);
    let mut host_of = std::collections::HashMap::new();
    let mut total = 0;
    while let Some(served) = callers.join_next().await {
        for (connection, host) in served.unwrap() {
            total += 1;
            assert_eq!(host_of.entry(connection).or_insert_with(|| host.clone()), &host, "connection {connection}");
        }
    }
    assert!(
        total > 100 && host_of.len() > 50 && total > host_of.len(),
        "{total} requests, {} connections",
        host_of.len()
    );
}

#[tokio::test]
async fn without_netd_the_last_routes_are_served_also_after_a_restart() {
    let (proxy, netd, workspace, host) = one().await;
    let kept = proxy.folder.path().join("state/routes.json");
    wait_for("the routes on disk", async || kept.exists().then_some(())).await;
    netd.stop().await;
    proxy.wait_log("netd's routes cannot be followed; serving the last known ones and trying again").await;
    assert_eq!(proxy.curl(&host, "/", &[]).await.status, 200);
    let proxy = proxy.restart().await;
    assert_eq!(proxy.curl(&host, "/", &[]).await.status, 200, "from disk");
    // netd comes back with another truth.
    let other = format!("{}-bbbbbbbbbb.ws.test", workspace.port);
    let routes = vec![route("bbbbbbbbbb", None, Some("::1"), 1, &[(workspace.port, true)])];
    let _netd = Netd::start(&socket(proxy.folder.path()), routes);
    wait_for("netd's new routes", async || (proxy.curl(&other, "/", &[]).await.status == 200).then_some(())).await;
    assert_eq!(proxy.curl(&host, "/", &[]).await.status, 404);
}

#[tokio::test]
async fn a_spoilt_state_file_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("state")).unwrap();
    std::fs::write(folder.path().join("state/routes.json"), "{half").unwrap();
    let workspace = Workspace::start().await;
    let proxy = Proxy::start(folder, "").await;
    let host = format!("{}-{BOX}.ws.test", workspace.port);
    let answer = proxy.curl(&host, "/", &[]).await;
    assert_eq!((answer.status, answer.json()["error"].as_str().unwrap()), (503, "not-ready"));
    let _netd =
        Netd::start(&socket(proxy.folder.path()), vec![route(BOX, None, Some("::1"), 1, &[(workspace.port, true)])]);
    wait_for("netd's routes", async || (proxy.curl(&host, "/", &[]).await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn what_is_in_progress_at_a_stop_is_finished() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (arrived, mut asked) = tokio::sync::mpsc::channel::<()>(1);
    let (go_on, mut answer_now) = tokio::sync::mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        arrived.send(()).await.unwrap();
        answer_now.recv().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await.unwrap();
    });
    let (mut proxy, _netd) = Proxy::with(vec![route(BOX, None, Some("::1"), 1, &[(port, true)])], "").await;
    let host = format!("{port}-{BOX}.ws.test");
    let mut stream = proxy.connect(&host).await;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    asked.recv().await.unwrap();
    proxy.signal(nix::sys::signal::Signal::SIGTERM);
    proxy.wait_log("stopping: no new connections, those in progress may end").await;
    go_on.send(()).await.unwrap();
    let answer = Answer::parse(&support::read_to_close(&mut stream).await);
    assert_eq!((answer.status, answer.text().as_str()), (200, "done"));
    assert!(proxy.exit().await.success());
    assert!(tokio::net::TcpStream::connect(proxy.address).await.is_err());
}

#[tokio::test]
async fn every_request_is_logged_and_counted() {
    let (workspace, folder) = (Workspace::start().await, tempfile::tempdir().unwrap());
    let metrics = folder.path().join("metrics.sock");
    let netd = Netd::start(&socket(folder.path()), vec![route(BOX, None, Some("::1"), 7, &[(workspace.port, true)])]);
    let proxy = Proxy::start(folder, &format!("metrics = {metrics:?}")).await;
    proxy.wait_log("following netd's routes").await;
    let host = format!("{}-{BOX}.ws.test", workspace.port);
    assert_eq!(proxy.curl(&host, "/page?secret=1", &[]).await.status, 200);
    assert_eq!(proxy.curl("1-nobody.ws.test", "/", &[]).await.status, 404);
    let line = wait_for("the access log", async || proxy.logged(|line| line["path"] == "/page")).await;
    for (field, expected) in [("status", "200"), ("epoch", "7"), ("method", "\"GET\""), ("client", "\"127.0.0.1\"")] {
        assert_eq!(line[field].to_string(), expected, "{line}");
    }
    assert_eq!(line["workspace"], BOX);
    assert_eq!(line["host"], host.as_str());
    assert!(!line.to_string().contains("secret"), "a query may hold secrets");
    let mut curl = tokio::process::Command::new("curl");
    curl.arg("-sS").arg("--unix-socket").arg(&metrics).arg("http://x/metrics");
    let text = String::from_utf8(curl.output().await.unwrap().stdout).unwrap();
    for line in [
        "weft_proxy_requests_total{status=\"200\"} 1",
        "weft_proxy_requests_total{status=\"404\"} 1",
        "weft_proxy_refusals_total{kind=\"unknown-workspace\"} 1",
        "weft_proxy_netd_connected 1",
        "weft_proxy_routes 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert_eq!(workspace.requests.load(Ordering::SeqCst), 1);
    drop(netd);
}
