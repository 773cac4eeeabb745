//! The client against real sockets: a netd that is away, forbidden, silent, foreign, too talkative, or well.
#![allow(clippy::unwrap_used)] // also outside of the test functions themselves
use std::{io, path::Path, time::Duration};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};
use weft_client::{Client, ClientError, encode};
use weft_model::{ApiError, ErrorCode};

/// Answers each request of each connection with the next of the given texts, then closes.
fn serve(path: &Path, answers: Vec<Vec<String>>) {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        for connection in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in connection {
                if request(&mut stream).await.is_ok() {
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        }
    });
}

/// Reads one request, body included, and gives it.
async fn request(stream: &mut UnixStream) -> io::Result<String> {
    let mut text = String::new();
    loop {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return Ok(text);
        }
    }
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_netd_that_is_not_there_says_how_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("netd.sock");
    let error = Client::unix(&missing).get::<Value>("/v1/status").await.unwrap_err();
    assert!(matches!(&error, ClientError::NotRunning { path } if *path == missing), "{error}");
    let text = error.to_string();
    assert!(text.contains("systemctl start netd") && text.contains(missing.to_str().unwrap()), "{text}");
    // A socket that nobody listens on any more: netd was killed.
    drop(UnixListener::bind(&missing).unwrap());
    let error = Client::unix(&missing).get::<Value>("/v1/status").await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }) && error.is_transient(), "{error}");
    assert_eq!(ApiError::from(error).code, ErrorCode::Unavailable);
}

#[tokio::test]
async fn calls_share_a_connection_and_survive_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    serve(&path, vec![vec![answer("200 OK", "1"), answer("200 OK", "")], vec![answer("200 OK", "[3]")]]);
    let client = Client::unix(&path);
    assert_eq!(client.get::<u8>("/").await.unwrap(), 1);
    client.put::<_, ()>("/", &json!({"a": 1})).await.unwrap();
    // The server has closed the kept connection: the call is made on a new one.
    assert_eq!(client.delete::<Vec<u8>>("/x").await.unwrap(), [3]);
}

#[tokio::test]
async fn errors_of_the_api_and_foreign_answers_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let known =
        ApiError::new(ErrorCode::Conflict, "workspace x is attached already", "detach it first").blame("netns", "/x");
    let body = serde_json::to_string(&known).unwrap();
    serve(
        &path,
        vec![
            vec![answer("409 Conflict", &body)],
            vec![answer("502 Bad Gateway", "<html>")],
            vec![answer("200 OK", "{\"not\": \"a number\"}")],
            vec!["SSH-2.0-OpenSSH\r\n".into()],
        ],
    );
    let client = Client::unix(&path);
    match client.post::<_, u8>("/v1/workspaces", &()).await.unwrap_err() {
        ClientError::Api(error) => assert_eq!(error, known),
        other => panic!("{other}"),
    }
    let foreign = client.get::<u8>("/").await.unwrap_err();
    assert!(matches!(&foreign, ClientError::Foreign { status: 502, reason, .. } if reason == "<html>"), "{foreign}");
    assert!(matches!(client.get::<u8>("/").await.unwrap_err(), ClientError::Foreign { status: 200, .. }));
    assert!(matches!(client.get::<u8>("/").await.unwrap_err(), ClientError::Broken { .. }));
    assert!(matches!(client.get::<u8>("not a path").await.unwrap_err(), ClientError::Request { .. }));
}

#[tokio::test]
async fn silence_and_floods_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    serve(
        &path,
        vec![
            vec![String::new()],
            vec![format!("HTTP/1.1 500 E\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(100_000))],
        ],
    );
    let client = Client::unix(&path).with_deadline(Duration::from_millis(200));
    // The server closes at once after its empty answer; a listener that accepts and keeps silent is the other case.
    assert!(client.get::<u8>("/").await.unwrap_err().is_transient());
    assert!(matches!(client.get::<u8>("/").await.unwrap_err(), ClientError::TooLarge { .. }));
    let silent = dir.path().join("silent");
    let _listener = UnixListener::bind(&silent).unwrap();
    let error = Client::unix(&silent).with_deadline(Duration::from_millis(50)).get::<u8>("/").await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn events_come_one_by_one_and_the_end_is_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n";
    serve(
        &path,
        vec![
            vec![format!("{head}: hello\n\nid: 1\ndata: a\n\nevent: x\ndata: b\n\ndata: unfinished")],
            vec![answer("403 Forbidden", "{\"code\": \"forbidden\", \"message\": \"no\"}")],
            vec![format!("{head}data: \u{fffd}\n\n").replace('\u{fffd}', "ok")],
        ],
    );
    let client = Client::unix(&path);
    let events: Vec<_> = client.events("/").await.unwrap().map(Result::unwrap).collect().await;
    let seen: Vec<_> =
        events.iter().map(|event| (event.id.as_deref(), event.event.as_str(), event.data.as_str())).collect();
    assert_eq!(seen, [(Some("1"), "message", "a"), (Some("1"), "x", "b")]);
    assert!(matches!(client.events("/").await.err(), Some(ClientError::Api(_))));
    assert_eq!(client.events("/").await.unwrap().next().await.unwrap().unwrap().data, "ok");
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let client = Client::unix(&path).with_silence(Duration::from_millis(100));
    let open = client.events("/");
    let answer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\ndata: a\n\n").await.unwrap();
        stream
    };
    let (events, _stream) = futures_util::join!(open, answer);
    let mut events = events.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().data, "a");
    assert!(matches!(events.next().await.unwrap(), Err(ClientError::Timeout { .. })));
    assert!(events.next().await.is_none());
}

#[test]
fn values_are_encoded_for_queries() {
    assert_eq!(encode("fd00::/64 a&b=ü~"), "fd00%3A%3A%2F64%20a%26b%3D%C3%BC~");
}
