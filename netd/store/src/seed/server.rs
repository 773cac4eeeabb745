//! The server half: each request's author is the node that its certificate proves, and only members are answered.
use std::{convert::Infallible, future, net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequestParts, Query, State, rejection::JsonRejection},
    http::{StatusCode, request::Parts},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use weft_model::{
    ApiError, ErrorCode, NodeName,
    api::{SeedJoinReply, SeedJoinRequest},
    object::{Author, Kind, Object},
};

use super::{ALIVE, COMMIT_PATH, GET_PATH, HISTORY_PATH, JOIN_PATH, LIST_PATH, Outcome, WATCH_PATH};
use crate::{
    Change, Revision, Store, StoreError, Txn, Version,
    membership::{Authority, admit, holder, tls::Peer},
};

/// Largest join request.
const JOIN_LIMIT: usize = 16 << 10;
/// Largest transaction.
const COMMIT_LIMIT: usize = 1 << 20;
/// Most writes, and most comparisons, of a transaction.
const COMMIT_PARTS: usize = 1024;

/// What the seed's API works on. Cheap to clone.
#[derive(Clone)]
pub struct SeedState {
    /// The objects.
    pub store: Arc<dyn Store>,
    /// Signs the certificates of nodes that join.
    pub authority: Arc<Authority>,
    /// Where the seeds answer: told to nodes that join.
    pub seeds: Vec<SocketAddr>,
    /// Milliseconds since 1970.
    pub clock: fn() -> u64,
}

/// The seed's API. Who asks is taken from the request's extensions, where [`super::serve`] puts what the TLS handshake
/// proved; without that only `POST /v1/seed/join` answers.
pub fn router(state: SeedState) -> Router {
    Router::new()
        .route(JOIN_PATH, post(join).layer(DefaultBodyLimit::max(JOIN_LIMIT)))
        .route(GET_PATH, get(read))
        .route(LIST_PATH, get(list))
        .route(HISTORY_PATH, get(history))
        .route(COMMIT_PATH, post(commit).layer(DefaultBodyLimit::max(COMMIT_LIMIT)))
        .route(WATCH_PATH, get(watch))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(state)
}

/// An error as an answer.
struct Refusal(ApiError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

impl<E: Into<ApiError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

/// The node that asks: its certificate was verified, and it is (still) a member with that key.
struct Member(NodeName);

impl FromRequestParts<SeedState> for Member {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &SeedState) -> Result<Self, Refusal> {
        let Some(peer) = parts.extensions.get::<Peer>() else {
            let hint = "join the fabric with `netctl join TOKEN`";
            return Err(ApiError::new(ErrorCode::Unauthorized, "no certificate of this fabric was shown", hint).into());
        };
        let holder = holder(state.store.as_ref(), &peer.node).await?;
        if holder.is_some_and(|holder| holder.tls_key_sha256 == peer.tls_key_sha256) {
            return Ok(Self(peer.node.clone()));
        }
        let message = format!("node {} is not a member of this fabric, or with another key", peer.node);
        Err(ApiError::new(ErrorCode::Forbidden, message, "if it was removed, join again with a new token").into())
    }
}

async fn unknown(_member: Member) -> Refusal {
    Refusal(ApiError::new(
        ErrorCode::NotFound,
        "the seed has no such path",
        "check that both nodes are of the same version",
    ))
}

async fn join(
    State(state): State<SeedState>,
    request: Result<Json<SeedJoinRequest>, JsonRejection>,
) -> Result<Json<SeedJoinReply>, Refusal> {
    let Json(request) = request.map_err(malformed)?;
    let outcome = admit(state.store.as_ref(), &state.authority, &state.seeds, &request, (state.clock)()).await;
    match &outcome {
        Ok(reply) => tracing::info!(node = %request.node, prefix = %reply.spec.prefix, "a node joined"),
        Err(error) => tracing::warn!(node = %request.node, %error, "a join was refused"),
    }
    Ok(Json(outcome?))
}

fn malformed(rejection: JsonRejection) -> ApiError {
    ApiError::new(ErrorCode::Invalid, rejection.body_text(), "check that both nodes are of the same version")
}

#[derive(Deserialize)]
struct Named {
    kind: Kind,
    name: String,
}

#[derive(Deserialize)]
struct Listed {
    kind: Kind,
}

#[derive(Deserialize)]
struct Since {
    from: Revision,
}

/// Nodes have no business with tokens.
fn visible(kind: Kind) -> Result<(), Refusal> {
    if kind != Kind::Token {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Forbidden, "nodes may not read tokens", "ask on the seed").into())
}

async fn read(
    _member: Member,
    State(state): State<SeedState>,
    Query(query): Query<Named>,
) -> Result<Json<Outcome<Option<Object>>>, Refusal> {
    visible(query.kind)?;
    answer(state.store.get(query.kind, &query.name).await)
}

async fn list(
    _member: Member,
    State(state): State<SeedState>,
    Query(query): Query<Listed>,
) -> Result<Json<Outcome<(Vec<Object>, Revision)>>, Refusal> {
    visible(query.kind)?;
    answer(state.store.list(query.kind).await)
}

async fn history(
    _member: Member,
    State(state): State<SeedState>,
    Query(query): Query<Named>,
) -> Result<Json<Outcome<Vec<Version>>>, Refusal> {
    visible(query.kind)?;
    answer(state.store.history(query.kind, &query.name).await)
}

async fn commit(
    Member(node): Member,
    State(state): State<SeedState>,
    txn: Result<Json<Txn>, JsonRejection>,
) -> Result<Json<Outcome<Revision>>, Refusal> {
    let Json(mut txn) = txn.map_err(malformed)?;
    if txn.writes.len() > COMMIT_PARTS || txn.compares.len() > COMMIT_PARTS {
        let message = format!("the transaction has more than {COMMIT_PARTS} parts");
        return Err(ApiError::new(ErrorCode::Limit, message, "split it").into());
    }
    // History has one clock, the seed's: the nodes' differ.
    txn.time_ms = (state.clock)();
    match &txn.author {
        // A node may vouch for its users, whose reach the store then limits to that node.
        Author::User(_) => txn.via = Some(node),
        Author::Node(author) if *author == node => {}
        Author::Node(author) => {
            let message = format!("node {node} may not write as node {author}");
            return Err(ApiError::new(ErrorCode::Forbidden, message, "write as yourself")
                .blame("author", author)
                .into());
        }
    }
    answer(state.store.commit(txn).await)
}

/// Refusals travel as they are; what fails in the seed's own file is, seen from a node, a store that does not answer.
fn answer<T: Serialize>(outcome: Outcome<T>) -> Result<Json<Outcome<T>>, Refusal> {
    match outcome {
        Err(error @ (StoreError::Io { .. } | StoreError::Full { .. } | StoreError::Newer { .. })) => {
            tracing::error!(%error, "the store fails");
            Err(ApiError::new(ErrorCode::Unavailable, "the seed's store fails", "see netd's log on the seed").into())
        }
        outcome => Ok(Json(outcome)),
    }
}

async fn watch(
    Member(node): Member,
    State(state): State<SeedState>,
    Query(query): Query<Since>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let changes = state.store.watch(query.from).await?;
    let events = changes
        // A node that is removed learns no more.
        .take_while(move |change| future::ready(!removes(change, &node)))
        .filter_map(|change| future::ready(event(&change)));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)))
}

fn removes(change: &Change, node: &NodeName) -> bool {
    matches!(change, Change::Delete { kind: Kind::Node, name, .. } if name == node.as_str())
}

fn event(change: &Change) -> Option<Result<Event, Infallible>> {
    let (kind, id) = match change {
        Change::Put(object) => (Some(object.kind), object.revision.to_string()),
        Change::Delete { kind, revision, .. } => (Some(*kind), revision.to_string()),
        Change::Resync => (None, String::new()),
    };
    if kind == Some(Kind::Token) {
        return None;
    }
    let data = serde_json::to_string(change).expect("a change has string keys and serialises without errors");
    Some(Ok(Event::default().id(id).event("change").data(data)))
}
