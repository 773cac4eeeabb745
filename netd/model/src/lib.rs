//! The fabric's vocabulary: identifiers, addresses, objects and the API's requests and replies. Pure types: no clock, no I/O.
#![forbid(unsafe_code)]

pub mod address;
pub mod api;
pub mod dns;
pub mod error;
pub mod id;
pub mod object;
pub mod targets;
pub mod url;

pub use address::{FabricPrefix, NodePrefix, WorkspaceAddress};
pub use error::{ApiError, ErrorCode};
pub use id::{Label, NodeName, WorkspaceId};
