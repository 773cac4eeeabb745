//! The store of a node that joined: every call goes to a seed; watches come back by themselves.
use async_trait::async_trait;
use weft_model::object::{Kind, Object};

use crate::{
    Revision, Store, StoreError, Txn, Version, WatchStream,
    membership::{Identity, MembershipError},
};

/// The objects through a seed's API. Cheap to clone.
#[derive(Clone)]
pub struct SeedStore {}

impl SeedStore {
    /// A store that reaches the seeds which the identity names. Does not connect yet.
    pub fn new(identity: &Identity) -> Result<Self, MembershipError> {
        todo!("{identity:?}")
    }
}

#[async_trait]
impl Store for SeedStore {
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
