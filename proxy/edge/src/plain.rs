//! The two plain HTTP servers: redirects to https for people who typed an address, and metrics.
use std::{
    convert::Infallible,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use weft_proxy_core::{Table, decide::host_of};

use crate::{ingress::plain_target, listen::MetricsListener, metrics::Metrics};

/// How long a plain connection may live: it has one short answer to carry.
const LIFETIME: Duration = Duration::from_secs(10);

type Reply = Response<Full<Bytes>>;

/// Answers with redirects to https for hosts of the domain, on at most `connections` connections.
pub(crate) async fn redirect(
    listener: std::net::TcpListener,
    table: Arc<RwLock<Table>>,
    https_port: u16,
    connections: usize,
) {
    let limit = Arc::new(Semaphore::new(connections));
    let Some(listener) = said(TcpListener::from_std(listener)) else { return };
    loop {
        let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
        let Ok(permit) = limit.clone().try_acquire_owned() else { continue };
        let table = table.clone();
        tokio::spawn(async move {
            serve(stream, |request| {
                let table = table.read().unwrap_or_else(PoisonError::into_inner);
                to_https(&request, table.domain(), https_port)
            })
            .await;
            drop(permit);
        });
    }
}

/// Serves `GET /metrics`.
pub(crate) async fn metrics(listener: MetricsListener, metrics: Arc<Metrics>) {
    let show = |metrics: &Metrics, request: &Request<Incoming>| match request.uri().path() {
        "/metrics" => reply(StatusCode::OK, metrics.render()),
        _ => reply(StatusCode::NOT_FOUND, "only /metrics is here\n".into()),
    };
    match listener {
        MetricsListener::Tcp(listener) => {
            let Some(listener) = said(TcpListener::from_std(listener)) else { return };
            loop {
                let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
                let metrics = metrics.clone();
                tokio::spawn(async move { serve(stream, |request| show(&metrics, &request)).await });
            }
        }
        MetricsListener::Unix(listener) => {
            let Some(listener) = said(UnixListener::from_std(listener)) else { return };
            loop {
                let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
                let metrics = metrics.clone();
                tokio::spawn(async move { serve(stream, |request| show(&metrics, &request)).await });
            }
        }
    }
}

fn said<T>(result: std::io::Result<T>) -> Option<T> {
    result.inspect_err(|error| tracing::error!(%error, "cannot use a listening socket")).ok()
}

/// A new connection; out of files or memory it waits a moment instead of spinning.
pub(crate) async fn accepted<T>(result: std::io::Result<T>) -> Option<T> {
    match result {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, answer: impl Fn(Request<Incoming>) -> Reply) {
    let answer = &answer;
    let service = service_fn(move |request| async move { Ok::<_, Infallible>(answer(request)) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LIFETIME)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    // A caller that breaks off is no event.
    let _ = tokio::time::timeout(LIFETIME, connection).await;
}

fn reply(status: StatusCode, body: String) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

/// 308 keeps the method (RFC 9110 section 15.4.9); a request that carried anything secret in the clear is not repeated for it.
fn to_https<B>(request: &Request<B>, domain: Option<&str>, port: u16) -> Reply {
    let (authority, target) = plain_target(request);
    let host = host_of(authority).map(str::to_ascii_lowercase).unwrap_or_default();
    let ours = domain
        .is_some_and(|domain| host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
    if !ours {
        return reply(StatusCode::MISDIRECTED_REQUEST, "this host is not served here; check the address\n".into());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return reply(StatusCode::FORBIDDEN, "this host is served over https only: send the request there\n".into());
    }
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let mut answer = reply(StatusCode::PERMANENT_REDIRECT, String::new());
    match format!("https://{host}{port}{target}").parse() {
        Ok(location) => {
            answer.headers_mut().insert(header::LOCATION, location);
            answer
        }
        Err(_) => reply(StatusCode::BAD_REQUEST, "the address cannot be understood\n".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, host: &str, target: &str, port: u16) -> (u16, Option<String>) {
        let request = Request::builder().method(method).uri(target).header("host", host).body(()).unwrap();
        let answer = to_https(&request, Some("ws.dev"), port);
        let location = answer.headers().get("location").map(|location| location.to_str().unwrap().to_owned());
        (answer.status().as_u16(), location)
    }

    #[test]
    fn only_navigations_to_our_own_hosts_are_sent_to_https() {
        assert_eq!(
            ask("GET", "8080-box.ws.dev:80", "/a?b=c", 443),
            (308, Some("https://8080-box.ws.dev/a?b=c".into()))
        );
        assert_eq!(ask("GET", "8080-box.ws.dev", "/", 8443), (308, Some("https://8080-box.ws.dev:8443/".into())));
        assert_eq!(ask("POST", "8080-box.ws.dev", "/", 443), (403, None));
        assert_eq!(ask("GET", "evil.dev", "/", 443), (421, None));
        assert_eq!(ask("GET", "evilws.dev", "/", 443), (421, None));
        assert_eq!(ask("GET", "", "/", 443), (421, None));
    }
}
