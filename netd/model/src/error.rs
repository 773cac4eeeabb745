//! The one error that the API speaks: what failed, in which field, with which value, and what to do.
use serde::{Deserialize, Serialize};

/// What kind of failure it is: decides the HTTP status and netctl's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request is malformed or a value is out of range (400).
    Invalid,
    /// The caller did not prove who it is, or its token is spent (401).
    Unauthorized,
    /// The caller may not do this (403).
    Forbidden,
    /// No such object (404).
    NotFound,
    /// It exists already, or somebody else changed it (409).
    Conflict,
    /// The node is not in the state that this needs, for example not yet part of a fabric (412).
    NotReady,
    /// A limit is reached (429).
    Limit,
    /// Something that this needs does not answer; try again (503).
    Unavailable,
    /// A fault of ours (500).
    Internal,
}

impl ErrorCode {
    /// The HTTP status that carries this code.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::NotReady => 412,
            Self::Limit => 429,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }
}

/// An error of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default())]
pub struct ApiError {
    /// The kind of failure.
    pub code: ErrorCode,
    /// What failed, naming the object.
    pub message: String,
    /// The field of the request that is to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The value that was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// An error with a message and the way out.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: None, value: None, hint: Some(hint.into()) }
    }

    /// Blames a field of the request and shows its value.
    #[must_use]
    pub fn blame(mut self, field: &str, value: impl ToString) -> Self {
        self.field = Some(field.into());
        self.value = Some(value.to_string());
        self
    }
}
