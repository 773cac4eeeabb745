//! The built-in server that stands for what people run: a page, a WebSocket echo, and an echo over TCP and UDP.
use std::net::SocketAddr;

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

/// What every page of `name` begins with; the caller's address follows.
#[must_use]
pub fn greeting(name: &str) -> String {
    format!("{name} greets ")
}

/// Serves until the process ends.
pub async fn serve(name: String, http: Vec<SocketAddr>, echo: Vec<SocketAddr>) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for address in http {
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let pages = Router::new().route("/", get(page)).route("/ws", get(websocket)).with_state(name.clone());
        let service = pages.into_make_service_with_connect_info::<SocketAddr>();
        tasks.spawn(async move { axum::serve(listener, service).await.context("the page's server ended") });
    }
    for address in echo {
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let socket = UdpSocket::bind(address).await.with_context(|| format!("cannot listen on UDP {address}"))?;
        tasks.spawn(echo_tcp(listener));
        tasks.spawn(echo_udp(socket));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a server's task ended")??;
    }
    Ok(())
}

async fn page(State(name): State<String>, ConnectInfo(caller): ConnectInfo<SocketAddr>) -> String {
    format!("{}{}\n", greeting(&name), caller.ip().to_canonical())
}

/// Accepts a WebSocket (RFC 6455 4.2.2) and sends every text back with the server's name before it.
async fn websocket(State(name): State<String>, mut request: Request) -> Response {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).map(derive_accept_key)
    else {
        return (StatusCode::UPGRADE_REQUIRED, "this address speaks WebSocket: open it with a WebSocket client\n")
            .into_response();
    };
    let Ok(key) = HeaderValue::from_str(&key) else { return StatusCode::BAD_REQUEST.into_response() };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(text) = message
                && socket.send(Message::text(format!("{name} echoes {text}"))).await.is_err()
            {
                break;
            }
        }
    });
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

async fn echo_tcp(listener: TcpListener) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept")?;
        tokio::spawn(echo_stream(stream));
    }
}

async fn echo_stream(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    // A caller that goes away in the middle is no error of the server's.
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

async fn echo_udp(socket: UdpSocket) -> Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        let (length, caller) = socket.recv_from(&mut buffer).await.context("cannot receive")?;
        let datagram = buffer.get(..length).context("a datagram is longer than its buffer")?;
        // A caller that is unreachable by now is no error of the server's.
        let _ = socket.send_to(datagram, caller).await;
    }
}
