//! One SQLite file that survives kill -9 at any time and that an operator can open with sqlite3.
use std::path::Path;

use async_trait::async_trait;
use weft_model::object::{Kind, Object};

use crate::{Revision, Store, StoreError, Txn, Version, WatchStream};

/// The newest schema that this version reads and writes.
pub const SCHEMA: i64 = 1;

/// The store of a seed. Cheap to clone.
#[derive(Clone)]
pub struct Embedded {}

impl Embedded {
    /// Opens the file, or makes it (0600). Blocks for a few milliseconds.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        todo!("{path:?}")
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, _kind: Kind, _name: &str) -> Result<Option<Object>, StoreError> {
        todo!()
    }
    async fn list(&self, _kind: Kind) -> Result<(Vec<Object>, Revision), StoreError> {
        todo!()
    }
    async fn commit(&self, _txn: Txn) -> Result<Revision, StoreError> {
        todo!()
    }
    async fn history(&self, _kind: Kind, _name: &str) -> Result<Vec<Version>, StoreError> {
        todo!()
    }
    async fn watch(&self, _from: Revision) -> Result<WatchStream, StoreError> {
        todo!()
    }
}
