//! One request's way through: checked, decided, forwarded or answered, logged. The decisions themselves are weft-proxy-core's.
use std::{
    io::ErrorKind,
    net::{SocketAddr, SocketAddrV6},
    sync::{Arc, PoisonError, RwLock, atomic::Ordering},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::header;
use pingora::{
    Error, ErrorSource, ErrorType,
    connectors::l4::BindTo,
    http::{RequestHeader, ResponseHeader},
    modules::http::HttpModules,
    protocols::Digest,
    proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session},
    upstreams::peer::HttpPeer,
};
use tracing::info;
use weft_proxy_core::{Credential, Decision, Forward, Table, decide, decide::sni_matches, http1, navigation::Reader};

use crate::{
    answer::Answer,
    config::Limits,
    downstream::{Connection, Phase},
    headers,
    live::{Live, Place},
    metrics::Metrics,
};

/// For how long an unused connection to a workspace is kept. Shorter than the servers' own patience (Node's is 5 s), since
/// a request that meets a connection just closed by the server cannot always be sent again.
const UPSTREAM_IDLE: Duration = Duration::from_secs(4);

/// The proxy's part in the engine.
pub(crate) struct Ingress {
    /// The routing table.
    pub(crate) table: Arc<RwLock<Table>>,
    /// The counters.
    pub(crate) metrics: Arc<Metrics>,
    /// The requests in progress.
    pub(crate) live: Arc<Live>,
    /// The limits.
    pub(crate) limits: Limits,
}

/// What is known of one request while it is served.
pub(crate) struct Request {
    started: Instant,
    connection: Option<Arc<Connection>>,
    authority: String,
    as_page: bool,
    to: Option<Forward>,
    place: Option<Place>,
    kind: Option<&'static str>,
    reused: Option<bool>,
}

impl Request {
    fn is_cut(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.lease.is_cut())
    }

    /// An HTTP/1 connection is cut as a whole, at once; an HTTP/2 stream when its next piece passes, since its connection
    /// carries others.
    fn still_permitted(&self) -> pingora::Result<()> {
        if self.is_cut() { Err(Error::explain(ErrorType::InternalError, "the route has changed")) } else { Ok(()) }
    }
}

impl Ingress {
    /// Checks a request and decides about it.
    fn judge(&self, session: &Session, request: &mut Request) -> Result<Forward, Answer> {
        let asked = session.req_header();
        if session.as_http1().is_some() {
            let section = session.to_h1_raw();
            if section.len() > self.limits.header_bytes {
                return Err(Answer::header_too_large(self.limits.header_bytes));
            }
            http1::check(&section).map_err(Answer::bad_request)?;
        }
        let field = |name| asked.headers.get(name).and_then(|value| value.to_str().ok());
        request.as_page = Reader { accept: field("accept"), fetch_mode: field("sec-fetch-mode") }.wants_page();
        let from_target = asked.uri.authority().map(http::uri::Authority::as_str);
        let authority = from_target.or_else(|| field("host")).unwrap_or_default();
        request.authority = authority.into();
        if authority.is_empty() {
            return Err(Answer::bad_request("the Host field is missing or empty"));
        }
        let sni = request.connection.as_ref().and_then(|connection| connection.sni.as_deref());
        if let Some(sni) = sni.filter(|sni| !sni_matches(sni, authority)) {
            return Err(Answer::misdirected(sni, authority));
        }
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        match decide(authority, Credential::Absent, &table) {
            Decision::Forward(to) => {
                request.place = Some(self.live.enter(to, authority, Credential::Absent));
                Ok(to)
            }
            Decision::Refuse(refusal) => Err(Answer::refusal(&refusal, authority)),
        }
    }

    async fn answer(&self, session: &mut Session, request: &mut Request, answer: &Answer) -> pingora::Result<()> {
        request.kind = Some(answer.kind);
        self.metrics.refused(answer.kind);
        if answer.status == 400 || answer.status == 408 || answer.status == 431 {
            // Where this request ends and another begins is not certain.
            session.set_keepalive(None);
        }
        let head = session.req_header().method == http::Method::HEAD;
        let (header, body) = answer.write(&request.authority, request.as_page)?;
        session.write_response_header(Box::new(header), head).await?;
        // An HTTP/2 stream must be ended here also when there is no body: after a failure nobody else does.
        let body = if head { Bytes::new() } else { Bytes::from(body) };
        session.write_response_body(Some(body), true).await?;
        Ok(())
    }

    /// What to answer when forwarding failed; `None` if the caller is gone.
    fn failure(&self, error: &Error, to: Option<&Forward>) -> Option<Answer> {
        let Some(to) = to else { return Some(Answer::internal()) };
        let cause = io_cause(error);
        match (error.esource(), error.etype(), cause) {
            (ErrorSource::Upstream, ErrorType::ConnectRefused, _) => Some(Answer::port_silent(to.port, to.id)),
            (ErrorSource::Upstream, ErrorType::ConnectTimedout, _) => {
                Some(Answer::unreachable(to.id, "it does not answer"))
            }
            (ErrorSource::Upstream, ErrorType::ConnectNoRoute, _) => {
                Some(Answer::unreachable(to.id, "no route leads to it"))
            }
            (ErrorSource::Upstream, _, Some(ErrorKind::PermissionDenied)) => {
                Some(Answer::unreachable(to.id, "its node does not admit this proxy to the port"))
            }
            (ErrorSource::Upstream, _, Some(ErrorKind::AddrNotAvailable)) => {
                tracing::error!(dial_from = %to.dial_from, "cannot connect from the node's proxy address: is netd running, and has this node the role proxy?");
                Some(Answer::unreachable(to.id, "this proxy's own address is not ready"))
            }
            (ErrorSource::Upstream, ErrorType::ReadTimedout | ErrorType::WriteTimedout, _) => {
                Some(Answer::upstream_timeout(to.port, to.id))
            }
            (ErrorSource::Upstream, ErrorType::ConnectError, _) => {
                Some(Answer::unreachable(to.id, "the connection cannot be made"))
            }
            (ErrorSource::Upstream, ErrorType::InternalError, _) => Some(Answer::internal()),
            (ErrorSource::Upstream, ..) => Some(Answer::bad_upstream(to.port, to.id)),
            (ErrorSource::Downstream, ErrorType::ReadTimedout, _) => Some(Answer::request_timeout()),
            (
                ErrorSource::Downstream,
                ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed,
                _,
            ) => None,
            (ErrorSource::Downstream, ..) => Some(Answer::bad_request("its body or its header fields are malformed")),
            _ => Some(Answer::internal()),
        }
    }
}

#[async_trait]
impl ProxyHttp for Ingress {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request {
            started: Instant::now(),
            connection: None,
            authority: String::new(),
            as_page: false,
            to: None,
            place: None,
            kind: None,
            reused: None,
        }
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> pingora::Result<bool> {
        request.connection = Connection::of(session.digest());
        if let Some(connection) = &request.connection {
            connection.expect(Phase::Open);
        }
        if session.get_keepalive().is_some() {
            session.set_keepalive(Some(self.limits.idle_timeout.as_secs()));
        }
        // An upgraded connection is as silent as its two ends like.
        let patience =
            if session.is_upgrade_req() { self.limits.stream_idle_timeout } else { self.limits.body_timeout };
        session.set_read_timeout(Some(patience));
        // A caller that does not take its answer must not hold the workspace's connection for ever.
        session.set_write_timeout(Some(self.limits.body_timeout));
        session.set_total_drain_timeout(Some(self.limits.header_timeout));
        match self.judge(session, request) {
            Ok(to) => {
                request.to = Some(to);
                if let (Some(connection), Some(_)) = (&request.connection, session.as_http1()) {
                    connection.hold(request.place.as_ref().map(|place| place.lease.clone()));
                }
                Ok(false)
            }
            Err(answer) => {
                self.answer(session, request, &answer).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, request: &mut Request) -> pingora::Result<Box<HttpPeer>> {
        let to = request.to.ok_or_else(|| Error::explain(ErrorType::InternalError, "no decision was made"))?;
        let mut peer = HttpPeer::new(SocketAddrV6::new(to.address, to.port, 0, 0), false, String::new());
        peer.group_key = to.group_key;
        let mut bind = BindTo::default();
        bind.addr = Some(SocketAddr::V6(SocketAddrV6::new(to.dial_from, 0, 0, 0)));
        peer.options.bind_to = Some(bind);
        peer.options.connection_timeout = Some(self.limits.connect_timeout);
        peer.options.total_connection_timeout = Some(self.limits.connect_timeout);
        peer.options.read_timeout = Some(self.limits.stream_idle_timeout);
        peer.options.write_timeout = Some(self.limits.stream_idle_timeout);
        peer.options.idle_timeout = Some(UPSTREAM_IDLE);
        Ok(Box::new(peer))
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::fd::RawFd,
        _digest: Option<&Digest>,
        request: &mut Request,
    ) -> pingora::Result<()> {
        let counter = if reused { &self.metrics.upstream_reused } else { &self.metrics.upstream_new };
        counter.fetch_add(1, Ordering::Relaxed);
        request.reused = Some(reused);
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        upstream: &mut RequestHeader,
        request: &mut Request,
    ) -> pingora::Result<()> {
        match &request.connection {
            Some(connection) => headers::to_workspace(upstream, connection.remote, &request.authority),
            None => Ok(()),
        }
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        upstream: &mut ResponseHeader,
        _request: &mut Request,
    ) -> pingora::Result<()> {
        headers::to_caller(upstream);
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        _end_of_stream: bool,
        request: &mut Request,
    ) -> pingora::Result<Option<Duration>> {
        request.still_permitted().map(|()| None)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        _end_of_stream: bool,
        request: &mut Request,
    ) -> pingora::Result<()> {
        request.still_permitted()
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, request: &mut Request) -> FailToProxy {
        let answer = match request.to {
            Some(to) if request.is_cut() => Some(Answer::changed(to.id)),
            to => self.failure(error, to.as_ref()),
        };
        let status = answer.as_ref().map_or(0, |answer| answer.status);
        match answer {
            Some(answer) if session.response_written().is_none() => {
                if self.answer(session, request, &answer).await.is_err() {
                    request.kind = Some("caller-gone");
                }
            }
            // The answer had begun: all that is left is to break it off.
            Some(answer) => request.kind = Some(answer.kind),
            None => request.kind = Some("caller-gone"),
        }
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, request: &mut Request) {
        if let Some(connection) = request.connection.as_ref().filter(|_| session.as_http1().is_some()) {
            connection.hold(None);
            connection.expect(Phase::Idle);
        }
        if request.is_cut() {
            request.kind = Some("cut");
        }
        let took = request.started.elapsed();
        let status = session.response_written().map_or(0, |response| response.status.as_u16());
        self.metrics.request(status, took);
        let asked = session.req_header();
        info!(
            target: "weft_proxy::access",
            client = request.connection.as_ref().map(|connection| tracing::field::display(connection.remote.ip().to_canonical())),
            method = %asked.method,
            host = request.authority,
            path = asked.uri.path(), // without the query: it may hold secrets
            version = ?asked.version,
            status,
            kind = request.kind,
            workspace = request.to.map(|to| tracing::field::display(to.id)),
            port = request.to.map(|to| to.port),
            epoch = request.to.map(|to| to.epoch),
            reused = request.reused,
            sent = session.body_bytes_sent(),
            received = session.body_bytes_read(),
            took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            error = error.map(tracing::field::display),
            "request"
        );
    }

    // The access log tells how each request ended; the engine's own lines would say it twice.
    fn suppress_error_log(&self, _session: &Session, _request: &Request, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Request, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

/// What the kernel said, wherever in the chain of causes it stands.
fn io_cause(error: &Error) -> Option<ErrorKind> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error.root_cause());
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        cause = error.source();
    }
    None
}

/// The host that a plain HTTP request asks for, and its target.
pub(crate) fn plain_target<B>(request: &http::Request<B>) -> (&str, &str) {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    (host, request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str))
}
