//! The client of netd's API: JSON over HTTP/1.1 on the local socket, or over mutual TLS between nodes.
//!
//! Every call has a deadline and a bound on what it reads. Errors of the API come back as [`weft_model::ApiError`].
#![forbid(unsafe_code)]

mod connect;
mod error;
mod request;
mod sse;

pub use error::ClientError;
pub use request::{Client, EventStream, encode};
pub use sse::{SseError, SseEvent, SseParser};
