//! The fabric's objects behind one trait (embedded SQLite, or a seed node over TLS), and who belongs to the fabric.
//!
//! - [`Store`]: get, list, compare-and-put transactions, history, and watches that resume from a revision.
//! - [`embedded::Embedded`]: one SQLite file, on a seed.
//! - [`seed::SeedStore`]: the same objects through a seed's API, on a node that joined; [`seed::serve`] is the other end.
//! - [`membership`]: the fabric's certificate authority, a node's identity, join tokens, `init` and `join`.
//!
//! Not supported yet: leases, and rollback other than by writing an old version again.
#![forbid(unsafe_code)]

mod check;
pub mod embedded;
mod error;
pub mod membership;
mod ownership;
pub mod seed;
mod store;

pub use error::StoreError;
pub use store::{Change, Compare, Expected, ObjectExt, Revision, Store, Txn, Version, WatchStream, Write, snapshot};
