//! What can go wrong between a client and netd, each with the way out.
use std::{path::PathBuf, time::Duration};

use weft_model::{ApiError, ErrorCode};

use crate::sse::SseError;

/// Why a call gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("netd is not running: nothing answers on {}; start it with `systemctl start netd`, or by hand as root with `netd run`, or name its socket with --socket", path.display())]
    NotRunning {
        /// The socket's path.
        path: PathBuf,
    },
    /// The socket exists, but not for this user.
    #[error("no permission to open {}: run this as root, or as a member of the group that owns the socket", path.display())]
    PermissionDenied {
        /// The socket's path.
        path: PathBuf,
    },
    /// No endpoint could be reached.
    #[error("cannot reach {tried}; check that netd runs there and that TCP to it is open")]
    Unreachable {
        /// What was tried, each with its reason.
        tried: String,
    },
    /// An endpoint answered, but the TLS handshake failed: somebody else's server, a wrong certificate, or a wrong clock.
    #[error("TLS with {endpoint} failed: {reason}; {hint}")]
    Tls {
        /// The endpoint.
        endpoint: String,
        /// What TLS says.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The deadline passed.
    #[error("{target} did not answer within {after:?}; try again, and see its log if that stays so")]
    Timeout {
        /// Who did not answer.
        target: String,
        /// The deadline.
        after: Duration,
    },
    /// The answer, or the question, is larger than the bound.
    #[error("{what} is larger than {limit} bytes; ask for less at a time")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The connection broke, or the peer does not speak HTTP.
    #[error("the connection to {target} broke: {reason}; try again")]
    Broken {
        /// The peer.
        target: String,
        /// What happened.
        reason: String,
    },
    /// netd answered with an error.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// An answer that is not the API's.
    #[error(
        "{target} answered {path} with status {status} and something that is not netd's API ({reason}); check that both sides are of the same version"
    )]
    Foreign {
        /// The peer.
        target: String,
        /// The request's path.
        path: String,
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        reason: String,
    },
    /// The request cannot be made: a path that is no path, or a body that JSON cannot hold.
    #[error("the request {path:?} cannot be made: {reason}; this is a fault of the caller")]
    Request {
        /// The path.
        path: String,
        /// Why.
        reason: String,
    },
    /// The stream of events is malformed.
    #[error("the events from {target} are malformed: {source}; check that both sides are of the same version")]
    Events {
        /// The peer.
        target: String,
        /// Why.
        source: SseError,
    },
}

impl ClientError {
    /// Whether the peer is away or overloaded, so that the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotRunning { .. } | Self::Unreachable { .. } | Self::Timeout { .. } | Self::Broken { .. } => true,
            Self::Api(error) => matches!(error.code, ErrorCode::Unavailable | ErrorCode::Limit),
            _ => false,
        }
    }
}

impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Api(error) => error,
            other => {
                let code = if other.is_transient() { ErrorCode::Unavailable } else { ErrorCode::Internal };
                let text = other.to_string();
                let (message, hint) = text.rsplit_once("; ").unwrap_or((text.as_str(), "try again"));
                Self::new(code, message, hint)
            }
        }
    }
}
