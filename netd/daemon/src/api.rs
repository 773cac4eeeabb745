//! The API on the local socket: JSON over HTTP/1.1. Every error is an `ApiError` with the way out.
use std::{convert::Infallible, net::Ipv6Addr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, Path, Query, State, connect_info::Connected},
    http::{StatusCode, Uri, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{delete, get, post, put},
    serve::IncomingStream,
};
use futures_util::{Stream, stream};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixListener,
    sync::{Mutex, broadcast::error::RecvError},
};
use weft_model::{
    ApiError, ErrorCode,
    api::{AttachRequest, ExposeRequest, InitRequest, JoinRequest, PeerView, RouteEvent, StatusView, TokenRequest},
    object::{Author, Kind, Port},
};

use crate::{
    attach::PortChange,
    metrics,
    node::{Node, internal},
    targets::probe::Verified,
};

/// Largest body of a request, in bytes.
const BODY_LIMIT: usize = 256 << 10;
/// How often a silent stream of events shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    /// The node.
    pub node: Arc<Node>,
    /// What echoes through the tunnel have shown.
    pub verified: Arc<Mutex<Verified>>,
}

/// Who asks, as the kernel says.
#[derive(Clone, Debug)]
pub struct Caller(String);

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(match stream.io().peer_cred() {
            Ok(credentials) if credentials.uid() == 0 => "root".into(),
            Ok(credentials) => format!("uid-{}", credentials.uid()),
            Err(_) => "unknown".into(),
        })
    }
}

/// An error on its way out.
struct Refusal(ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, &self.0)
    }
}

type Answer = Result<Response, Refusal>;

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn ok(value: &impl Serialize) -> Answer {
    Ok(json(StatusCode::OK, value))
}

/// Reads a body; the error names the field.
fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, ApiError> {
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| {
        let hint = "see the API's description for the fields and their forms";
        ApiError::new(ErrorCode::Invalid, format!("the request's body is not what this call takes: {error}"), hint)
    })
}

/// The routes.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/init", post(init))
        .route("/v1/join", post(join))
        .route("/v1/tokens", post(token))
        .route("/v1/status", get(status))
        .route("/v1/nodes", get(nodes))
        .route("/v1/workspaces", get(list).post(attach))
        .route("/v1/workspaces/{x}", get(show).delete(detach))
        .route("/v1/workspaces/{x}/ports/{port}", put(expose).delete(unexpose))
        .route("/v1/workspaces/{x}/history", get(history))
        .route("/v1/explain/node", get(explain_node))
        .route("/v1/explain/workspaces/{x}", get(explain_workspace))
        .route("/v1/routes/watch", get(watch))
        .route("/metrics", get(metrics))
        .route("/v1/workspaces/", delete(no_name))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(api)
}

/// Serves the API until `shutdown` is ready.
pub async fn serve(
    listener: UnixListener,
    api: Api,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let service = router(api).into_make_service_with_connect_info::<Caller>();
    axum::serve(listener, service).with_graceful_shutdown(shutdown).await
}

async fn unknown(uri: Uri) -> Refusal {
    let message = format!("there is nothing at {}", uri.path());
    Refusal(ApiError::new(ErrorCode::NotFound, message, "this netd may be older than its caller: compare the versions"))
}

async fn wrong_method(uri: Uri) -> Response {
    let message = format!("{} does not take this method", uri.path());
    let error = ApiError::new(ErrorCode::Invalid, message, "see the API's description");
    json(StatusCode::METHOD_NOT_ALLOWED, &error)
}

async fn no_name() -> Refusal {
    Refusal(ApiError::new(ErrorCode::Invalid, "no workspace is named", "give its id or name"))
}

async fn init(State(api): State<Api>, ConnectInfo(caller): ConnectInfo<Caller>, bytes: Bytes) -> Answer {
    let request: InitRequest = body(&bytes)?;
    // A change that has begun is finished also if the caller goes away.
    let work = tokio::spawn(async move { api.node.init(request, Author::User(caller.0)).await });
    ok(&work.await.map_err(|error| internal(&error))??)
}

async fn join(State(api): State<Api>, bytes: Bytes) -> Answer {
    let request: JoinRequest = body(&bytes)?;
    let work = tokio::spawn(async move { api.node.join(request).await });
    ok(&work.await.map_err(|error| internal(&error))??)
}

async fn token(State(api): State<Api>, ConnectInfo(caller): ConnectInfo<Caller>, bytes: Bytes) -> Answer {
    let request: TokenRequest = body(&bytes)?;
    ok(&api.node.create_token(&request, Author::User(caller.0)).await?)
}

async fn status(State(api): State<Api>) -> Answer {
    let node = &api.node;
    let member = node.member().and_then(|member| node.member_reply(member).ok());
    let ready = node.targets().node.satisfied("ready");
    let verified = api.verified.lock().await;
    let state = node.read();
    let me = node.member().map(|member| &member.me.node);
    let others = state.fabric.nodes().iter().filter(|(name, _)| Some(*name) != me);
    let now_s = crate::clock::unix_ms() / 1000;
    let peers = others.map(|(name, seen)| {
        let tunnel = state.tunnel.as_ref().ok().and_then(|tunnel| tunnel.peers.get(&seen.spec.wireguard_public_key));
        let echo = verified.of(name);
        PeerView {
            node: name.clone(),
            prefix: seen.spec.prefix,
            endpoint: tunnel.and_then(|peer| peer.endpoint),
            last_handshake_s: tunnel.and_then(|peer| peer.last_handshake_s).map(|at| now_s.saturating_sub(at)),
            rx_bytes: tunnel.map_or(0, |peer| peer.rx_bytes),
            tx_bytes: tunnel.map_or(0, |peer| peer.tx_bytes),
            rtt_us: echo.map(|(rtt, _)| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            verified: echo.is_some_and(|(_, fresh)| fresh),
        }
    });
    let view = StatusView {
        version: env!("CARGO_PKG_VERSION").into(),
        member,
        roles: node.member().map(|member| crate::view::roles(&member.me, &state)).unwrap_or_default(),
        ready,
        workspaces: state.entries.len(),
        peers: peers.collect(),
        uplink: state.facts.uplink.as_ref().map(|uplink| uplink.name.clone()),
        drops: metrics::drops(&state),
    };
    ok(&view)
}

async fn nodes(State(api): State<Api>) -> Answer {
    api.node.require_member()?;
    let state = api.node.read();
    let nodes = state.fabric.nodes().iter();
    let nodes = nodes.map(|(name, node)| serde_json::json!({ "name": name, "spec": node.spec, "status": node.status }));
    ok(&nodes.collect::<Vec<_>>())
}

async fn list(State(api): State<Api>) -> Answer {
    api.node.require_member()?;
    let state = api.node.read();
    let views: Vec<_> = state.ids().into_iter().filter_map(|id| state.view(id)).collect();
    ok(&views)
}

async fn attach(State(api): State<Api>, ConnectInfo(caller): ConnectInfo<Caller>, bytes: Bytes) -> Answer {
    api.node.require_member()?;
    let request: AttachRequest = body(&bytes)?;
    let work = tokio::spawn(async move { api.node.attach(request, &caller.0).await });
    let view = work.await.map_err(|error| internal(&error))??;
    Ok(json(StatusCode::CREATED, &view))
}

async fn show(State(api): State<Api>, Path(x): Path<String>) -> Answer {
    api.node.require_member()?;
    let id = api.node.find(&x)?;
    let view = api.node.read().view(id);
    ok(&view.ok_or_else(|| internal(&"a workspace vanished while it was shown"))?)
}

#[derive(serde::Deserialize)]
struct DetachQuery {
    #[serde(default)]
    forget: Option<String>,
}

async fn detach(
    State(api): State<Api>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path(x): Path<String>,
    Query(query): Query<DetachQuery>,
) -> Answer {
    // `?forget` alone says it too.
    let forget = match query.forget.as_deref() {
        None | Some("false") => false,
        Some("" | "true") => true,
        Some(other) => {
            let error = ApiError::new(ErrorCode::Invalid, "forget is true or false", "write ?forget=true");
            return Err(error.blame("forget", other).into());
        }
    };
    let work = tokio::spawn(async move { api.node.detach(&x, forget, &caller.0).await });
    let id = work.await.map_err(|error| internal(&error))??;
    ok(&serde_json::json!({ "id": id, "forgotten": forget }))
}

async fn expose(
    State(api): State<Api>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path((x, port)): Path<(String, String)>,
    bytes: Bytes,
) -> Answer {
    let request: ExposeRequest = body(&bytes)?;
    let change = PortChange::Expose(Port { port: parse_port(&port)?, visibility: request.visibility });
    ok(&api.node.change_ports(&x, &caller.0, change).await?)
}

async fn unexpose(
    State(api): State<Api>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path((x, port)): Path<(String, String)>,
) -> Answer {
    let change = PortChange::Unexpose(parse_port(&port)?);
    ok(&api.node.change_ports(&x, &caller.0, change).await?)
}

fn parse_port(text: &str) -> Result<u16, ApiError> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| {
        ApiError::new(ErrorCode::Invalid, format!("{text:?} is no TCP port"), "give 1 to 65535").blame("port", text)
    })
}

async fn history(State(api): State<Api>, Path(x): Path<String>) -> Answer {
    let member = api.node.require_member()?;
    // A deleted workspace is not in the view any more, but its id has a history still.
    let name = api
        .node
        .find(&x)
        .map(|id| id.to_string())
        .or_else(|error| if x.parse::<weft_model::WorkspaceId>().is_ok() { Ok(x) } else { Err(error) })?;
    let versions = member.store.history(Kind::Workspace, &name).await.map_err(ApiError::from)?;
    let shown: Vec<serde_json::Value> = versions
        .into_iter()
        .map(|version| {
            let mut value = serde_json::to_value(&version.object).unwrap_or_default();
            if let Some(object) = value.as_object_mut() {
                object.insert("deleted".into(), version.deleted.into());
            }
            value
        })
        .collect();
    ok(&shown)
}

async fn explain_node(State(api): State<Api>) -> Answer {
    ok(&api.node.explain_node())
}

async fn explain_workspace(State(api): State<Api>, Path(x): Path<String>) -> Answer {
    ok(&api.node.explain_workspace(&x)?)
}

async fn metrics(State(api): State<Api>) -> Response {
    let text = metrics::render(&api.node);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// What a listener waits for: its next events, or everything anew because it was too slow.
struct Listener {
    node: Arc<Node>,
    dial_from: Ipv6Addr,
    events: Option<tokio::sync::broadcast::Receiver<RouteEvent>>,
}

impl Listener {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        let event = match &mut self.events {
            None => self.snapshot().await,
            Some(events) => match events.recv().await {
                Ok(event) => event,
                Err(RecvError::Lagged(_)) => self.snapshot().await,
                Err(RecvError::Closed) => return None,
            },
        };
        let text = serde_json::to_string(&event).ok()?;
        Some((Ok(Event::default().data(text)), self))
    }

    /// Everything, as soon as the fabric is known.
    async fn snapshot(&mut self) -> RouteEvent {
        loop {
            let listening = self.node.read().listen(self.dial_from);
            if let Some((snapshot, events)) = listening {
                self.events = Some(events);
                return snapshot;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn watch(State(api): State<Api>) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let dial_from = api.node.require_member()?.me.prefix.proxy_address();
    let listener = Listener { node: api.node, dial_from, events: None };
    let events = stream::unfold(listener, Listener::next);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("alive")))
}
