//! Why the store refused or failed. It travels between nodes as JSON, so that a comparison fails alike everywhere.
use serde::{Deserialize, Serialize};
use weft_model::{
    ApiError, ErrorCode,
    object::{Author, Kind},
};

use crate::Expected;

/// A refusal or a failure of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", rename_all = "kebab-case")]
pub enum StoreError {
    /// A comparison does not hold: somebody else was faster.
    #[error("{kind} {name} {}, but {} was expected; read it again and repeat the change", found_text(*found), expected_text(*expected))]
    Conflict {
        /// The object's kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// What was to be.
        expected: Expected,
        /// Its version now; `None` if it does not exist.
        found: Option<u64>,
    },
    /// A value that must be unique in the fabric is in use.
    #[error("{kind} {name} cannot have the {field} {value:?}: {by} has it; choose another {field}")]
    Taken {
        /// The object's kind.
        kind: Kind,
        /// The refused object's name.
        name: String,
        /// The field.
        field: String,
        /// The value.
        value: String,
        /// The name of the object that has it.
        by: String,
    },
    /// The author may not write this field.
    #[error("{author} may not write the {field} of {kind} {name}: it belongs to {owner}; ask there")]
    NotOwner {
        /// Who tried.
        author: Author,
        /// The object's kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// The field: `spec`, `status`, `object`.
        field: String,
        /// Who may write it.
        owner: String,
    },
    /// A part is not what its kind holds, or is missing.
    #[error(
        "the {field} of {kind} {name} is not valid: {reason}; correct it, or upgrade the side that does not know it"
    )]
    Invalid {
        /// The object's kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// The part: `name`, `spec`, `status`.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// The file was written by a newer version.
    #[error(
        "{path} has schema {found}, this version reads up to {supported}; install the version that wrote it, or restore a copy from before the upgrade (nothing was changed)"
    )]
    Newer {
        /// The file.
        path: String,
        /// Its schema.
        found: i64,
        /// The newest that this version reads.
        supported: i64,
    },
    /// The store does not answer.
    #[error("the store does not answer: {reason}; this node works on with what it knows, try again later")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// This node is not, or no longer, a member.
    #[error("the seed refuses this node: {reason}; if it was removed, join again with a new token")]
    Refused {
        /// What the seed says.
        reason: String,
    },
    /// No space is left.
    #[error("no space is left for {path}; free some, nothing was lost")]
    Full {
        /// The file.
        path: String,
    },
    /// The file cannot be read or written.
    #[error("{path} cannot be used: {reason}; check the disk and the permissions, or restore a copy")]
    Io {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
}

fn found_text(found: Option<u64>) -> String {
    found.map_or_else(|| "does not exist".into(), |version| format!("has version {version}"))
}

fn expected_text(expected: Expected) -> String {
    match expected {
        Expected::Absent => "that it does not exist".into(),
        Expected::Version(version) => format!("version {version}"),
    }
}

impl StoreError {
    pub(crate) fn invalid(kind: Kind, name: &str, field: &str, reason: &dyn std::fmt::Display) -> Self {
        Self::Invalid { kind, name: name.into(), field: field.into(), reason: reason.to_string() }
    }

    /// Whether a comparison failed, so that reading again and repeating can help.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// The API's code for it.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Conflict { .. } | Self::Taken { .. } => ErrorCode::Conflict,
            Self::NotOwner { .. } | Self::Refused { .. } => ErrorCode::Forbidden,
            Self::Invalid { .. } => ErrorCode::Invalid,
            Self::Unavailable { .. } => ErrorCode::Unavailable,
            Self::Full { .. } => ErrorCode::Limit,
            Self::Newer { .. } | Self::Io { .. } => ErrorCode::Internal,
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        let (message, hint) = text.rsplit_once("; ").unwrap_or((text.as_str(), "try again"));
        Self::new(error.code(), message, hint)
    }
}
