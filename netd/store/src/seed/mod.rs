//! A seed node's API: the same objects over mutual TLS, for nodes that joined.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/seed/join`, the only one without a client certificate | `SeedJoinReply` |
//! | `GET /v1/seed/get?kind=&name=` | `Outcome<Option<Object>>` |
//! | `GET /v1/seed/list?kind=` | `Outcome<(Vec<Object>, Revision)>` |
//! | `GET /v1/seed/history?kind=&name=` | `Outcome<Vec<Version>>` |
//! | `POST /v1/seed/commit`, a `Txn` | `Outcome<Revision>` |
//! | `GET /v1/seed/watch?from=` | server-sent events: id = revision, data = `Change`; a comment every 5 s |
//!
//! What the store itself refuses comes with status 200 as `{"Err": StoreError}`, so that a failed comparison reads alike
//! on every backend; everything else is an `ApiError` with its status.
mod client;
mod listen;
mod server;

use crate::StoreError;

pub use client::SeedStore;
pub use listen::serve;
pub use server::{SeedState, router};

/// Where a node asks to join.
pub(crate) const JOIN_PATH: &str = "/v1/seed/join";
const GET_PATH: &str = "/v1/seed/get";
const LIST_PATH: &str = "/v1/seed/list";
const HISTORY_PATH: &str = "/v1/seed/history";
const COMMIT_PATH: &str = "/v1/seed/commit";
const WATCH_PATH: &str = "/v1/seed/watch";
/// How often a silent watch says that it lives.
const ALIVE: std::time::Duration = std::time::Duration::from_secs(5);

/// An answer of the store, whether it did what was asked or refused.
type Outcome<T> = Result<T, StoreError>;
