//! The one interface of every backend: objects, transactions, history and watches.
use std::pin::Pin;

use async_trait::async_trait;
use futures_util::Stream;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use weft_model::{
    NodeName,
    object::{Author, Kind, Object},
};

use crate::StoreError;

/// The store's clock: grows by one with every write to any object.
pub type Revision = u64;

/// Where the fabric's objects are kept.
#[async_trait]
pub trait Store: Send + Sync {
    /// One object as it is now.
    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Object>, StoreError>;

    /// All objects of a kind, by name, and the revision at which this was so: the place to watch from.
    async fn list(&self, kind: Kind) -> Result<(Vec<Object>, Revision), StoreError>;

    /// Does all writes if all comparisons hold, else nothing. Durable when it returns. Gives the revision of the last write.
    ///
    /// A write that would change nothing makes no version; a transaction of such writes gives the store's revision.
    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError>;

    /// The kept versions of an object (64 at most), newest first; empty if there never was one.
    async fn history(&self, kind: Kind, name: &str) -> Result<Vec<Version>, StoreError>;

    /// Every change after `from`, in the order of revisions, without a gap, for as long as the stream is read.
    ///
    /// Changes that lie back are there at once. If `from` is too far back, or ahead of the store, the stream gives
    /// [`Change::Resync`] and ends: list again, and watch from the list's revision. Versions that were superseded
    /// before the watch came to them may be left out; the newest is not.
    async fn watch(&self, from: Revision) -> Result<WatchStream, StoreError>;
}

/// Changes as they come.
pub type WatchStream = Pin<Box<dyn Stream<Item = Change> + Send>>;

/// One change of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// An object is new or has changed.
    Put(Object),
    /// An object is gone.
    Delete {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// The revision of the deletion.
        revision: Revision,
    },
    /// Changes were missed, and the stream ends here: list again, and watch from the list's revision.
    Resync,
}

/// What an object must be for a transaction to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// It must not exist.
    Absent,
    /// It must have this version.
    Version(u64),
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The object's kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What it must be.
    pub expected: Expected,
}

/// A change that a transaction makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Write {
    /// Creates or changes an object; `None` leaves a part as it is. A new object needs a spec.
    Put {
        /// The object's kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// What the user or platform wants.
        #[serde(default)]
        spec: Option<Value>,
        /// What the owning node says.
        #[serde(default)]
        status: Option<Value>,
    },
    /// Removes an object; nothing happens if it does not exist.
    Delete {
        /// The object's kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
}

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Done in this order, each seeing those before it.
    pub writes: Vec<Write>,
    /// Who writes.
    pub author: Author,
    /// The node that vouches for a user, set by the seed from the node's certificate: such a user may write only
    /// specs of workspaces on that node. `None` for users of the seed itself.
    #[serde(skip)]
    pub via: Option<NodeName>,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
}

impl Txn {
    /// An empty transaction.
    #[must_use]
    pub fn new(author: Author, time_ms: u64) -> Self {
        Self { compares: Vec::new(), writes: Vec::new(), author, via: None, time_ms }
    }

    /// Only if the object does not exist.
    #[must_use]
    pub fn expect_absent(mut self, kind: Kind, name: &str) -> Self {
        self.compares.push(Compare { kind, name: name.into(), expected: Expected::Absent });
        self
    }

    /// Only if the object has this version.
    #[must_use]
    pub fn expect_version(mut self, kind: Kind, name: &str, version: u64) -> Self {
        self.compares.push(Compare { kind, name: name.into(), expected: Expected::Version(version) });
        self
    }

    /// Only if the object is still as it was read.
    #[must_use]
    pub fn expect_unchanged(self, object: &Object) -> Self {
        self.expect_version(object.kind, &object.name, object.version)
    }

    /// Writes an object's spec and leaves its status.
    #[must_use]
    pub fn put_spec<T: Serialize>(self, kind: Kind, name: &str, spec: &T) -> Self {
        let spec = json(spec);
        self.put(kind, name, Some(spec), None)
    }

    /// Writes an object's status and leaves its spec.
    #[must_use]
    pub fn put_status<T: Serialize>(self, kind: Kind, name: &str, status: &T) -> Self {
        let status = json(status);
        self.put(kind, name, None, Some(status))
    }

    /// Writes both parts: a node does so when it attaches a workspace that nobody declared.
    #[must_use]
    pub fn put_both<T: Serialize, S: Serialize>(self, kind: Kind, name: &str, spec: &T, status: &S) -> Self {
        let (spec, status) = (json(spec), json(status));
        self.put(kind, name, Some(spec), Some(status))
    }

    fn put(mut self, kind: Kind, name: &str, spec: Option<Value>, status: Option<Value>) -> Self {
        self.writes.push(Write::Put { kind, name: name.into(), spec, status });
        self
    }

    /// Removes an object.
    #[must_use]
    pub fn delete(mut self, kind: Kind, name: &str) -> Self {
        self.writes.push(Write::Delete { kind, name: name.into() });
        self
    }
}

fn json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("the model's types have string keys and serialise without errors")
}

/// One version of an object's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Whether this version removed the object; spec and status are then the last ones.
    pub deleted: bool,
    /// The object at this version, with who wrote it and when.
    pub object: Object,
}

/// Reads an object's parts as the model's types.
pub trait ObjectExt {
    /// The spec.
    fn read_spec<T: DeserializeOwned>(&self) -> Result<T, StoreError>;
    /// The status; its default while nobody has written it.
    fn read_status<T: DeserializeOwned + Default>(&self) -> Result<T, StoreError>;
}

impl ObjectExt for Object {
    fn read_spec<T: DeserializeOwned>(&self) -> Result<T, StoreError> {
        T::deserialize(&self.spec).map_err(|error| StoreError::invalid(self.kind, &self.name, "spec", &error))
    }

    fn read_status<T: DeserializeOwned + Default>(&self) -> Result<T, StoreError> {
        if self.status.is_null() {
            return Ok(T::default());
        }
        T::deserialize(&self.status).map_err(|error| StoreError::invalid(self.kind, &self.name, "status", &error))
    }
}

/// Objects of several kinds, and the revision to watch from so that no change is missed (one may be seen twice:
/// compare [`Object::revision`]).
pub async fn snapshot(store: &dyn Store, kinds: &[Kind]) -> Result<(Vec<Object>, Revision), StoreError> {
    let mut objects = Vec::new();
    let mut oldest = Revision::MAX;
    for kind in kinds {
        let (listed, revision) = store.list(*kind).await?;
        objects.extend(listed);
        oldest = oldest.min(revision);
    }
    Ok((objects, oldest))
}
