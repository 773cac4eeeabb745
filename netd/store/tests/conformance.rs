//! One suite that every backend passes: the embedded store, and a seed's store through TLS.
#![allow(clippy::unwrap_used)] // also outside of the test functions themselves
mod support;

use serde_json::{Value, json};
use support::{Fabric, NOW, address_on, next, node, revision};
use weft_model::object::{Kind, WorkspaceSpec, WorkspaceStatus};
use weft_store::{Change, Expected, ObjectExt, Revision, Store, StoreError, Txn, Write, snapshot};

const W: Kind = Kind::Workspace;
const ONE: &str = "aaaaaaaaaa";
const TWO: &str = "bbbbbbbbbb";

fn spec(owner: &str) -> Value {
    json!({"name": null, "owner": owner, "group": null, "ports": []})
}

fn txn() -> Txn {
    Txn::new(node("b"), NOW)
}

/// Node `b` with a store that it writes to.
struct Node<'a> {
    store: &'a dyn Store,
    address: String,
}

impl<'a> std::ops::Deref for Node<'a> {
    type Target = dyn Store + 'a;
    fn deref(&self) -> &Self::Target {
        self.store
    }
}

impl Node<'_> {
    /// The status of a workspace that is attached here.
    fn status(&self, epoch: u64) -> Value {
        json!({"attachment": {"node": "b", "address": self.address, "epoch": epoch, "since_ms": NOW}})
    }

    fn create(&self, id: &str) -> Txn {
        txn().put_both(W, id, &spec("u"), &self.status(1))
    }
}

/// What the trait promises, as node `b`, in an order that builds on itself.
async fn conforms(store: &dyn Store) {
    let store = &Node { store, address: address_on(store, "b").await };
    absent_objects(store).await;
    comparisons(store).await;
    parts_and_versions(store).await;
    ownership(store).await;
    deletion_and_history(store).await;
    watching(store).await;
    nonsense(store).await;
}

async fn absent_objects(store: &Node<'_>) {
    assert_eq!(store.get(W, ONE).await.unwrap(), None);
    assert_eq!(store.list(W).await.unwrap().0, []);
    assert_eq!(store.history(W, ONE).await.unwrap(), []);
    let before = revision(store.store).await;
    assert_eq!(store.commit(txn().delete(W, ONE)).await.unwrap(), before, "nothing to delete is nothing done");
    let error = store.commit(txn().put_status(W, ONE, &store.status(1))).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { .. }), "a new object needs a spec: {error}");
}

async fn comparisons(store: &Node<'_>) {
    let before = revision(store.store).await;
    let revision = store.commit(store.create(ONE).expect_absent(W, ONE)).await.unwrap();
    assert_eq!(revision, before + 1);
    let object = store.get(W, ONE).await.unwrap().unwrap();
    assert_eq!((object.version, object.revision, object.time_ms), (1, revision, NOW));
    assert_eq!((&object.author, &object.spec, &object.status), (&node("b"), &spec("u"), &store.status(1)));
    assert_eq!(object.read_spec::<WorkspaceSpec>().unwrap().owner, "u");
    assert_eq!(object.read_status::<WorkspaceStatus>().unwrap().attachment.unwrap().epoch, 1);

    let again = store.commit(store.create(ONE).expect_absent(W, ONE)).await.unwrap_err();
    let conflict = |expected, found| StoreError::Conflict { kind: W, name: ONE.into(), expected, found };
    assert_eq!(again, conflict(Expected::Absent, Some(1)));
    let stale = txn().expect_version(W, ONE, 7).put_status(W, ONE, &store.status(9));
    assert_eq!(store.commit(stale).await.unwrap_err(), conflict(Expected::Version(7), Some(1)));
    let missing = txn().expect_version(W, TWO, 1).delete(W, TWO);
    assert!(store.commit(missing).await.unwrap_err().is_conflict());

    // All or nothing: the first write is fine, the comparison on another object is not.
    let torn = store.create(TWO).expect_version(W, ONE, 7);
    assert!(store.commit(torn).await.unwrap_err().is_conflict());
    assert_eq!(store.get(W, TWO).await.unwrap(), None);
    // The second write is refused: the first must not stay.
    let mut half = store.create(TWO);
    half.writes.push(Write::Put { kind: W, name: "no id".into(), spec: Some(spec("u")), status: None });
    assert!(matches!(store.commit(half).await.unwrap_err(), StoreError::Invalid { .. }));
    assert_eq!(store.get(W, TWO).await.unwrap(), None);
    assert_eq!(store.list(W).await.unwrap().1, revision);
}

async fn parts_and_versions(store: &Node<'_>) {
    let object = store.get(W, ONE).await.unwrap().unwrap();
    let revision = store.commit(txn().expect_unchanged(&object).put_status(W, ONE, &store.status(2))).await.unwrap();
    let changed = store.get(W, ONE).await.unwrap().unwrap();
    assert_eq!((changed.version, changed.revision), (object.version + 1, revision));
    assert_eq!((&changed.spec, &changed.status), (&object.spec, &store.status(2)), "a part that is not written stays");
    let same = store.commit(txn().put_both(W, ONE, &spec("u"), &store.status(2))).await.unwrap();
    assert_eq!(same, revision, "the same values make no version");
    assert_eq!(store.get(W, ONE).await.unwrap().unwrap(), changed);
    let both = store.commit(store.create(TWO).put_status(W, ONE, &store.status(3))).await.unwrap();
    let (listed, at) = store.list(W).await.unwrap();
    assert_eq!(at, both);
    let seen: Vec<_> = listed.iter().map(|object| (object.name.as_str(), object.version, object.revision)).collect();
    assert_eq!(seen, [(ONE, 3, both), (TWO, 1, both - 1)], "by name, each write with a revision of its own");
}

async fn ownership(store: &Node<'_>) {
    let refused = |error: StoreError, field: &str, owner: &str| match error {
        StoreError::NotOwner { field: found, owner: by, .. } => {
            assert_eq!((found.as_str(), by.as_str()), (field, owner))
        }
        other => panic!("{other}"),
    };
    let error = store.commit(txn().put_status(Kind::Node, "a", &json!({"ready": true}))).await.unwrap_err();
    assert!(error.to_string().contains("node b may not write the status of node a: it belongs to node a"), "{error}");
    refused(error, "status", "node a");
    let error = store.commit(txn().put_spec(W, ONE, &spec("thief"))).await.unwrap_err();
    refused(error, "spec", "the user or platform");
    let elsewhere = json!({"attachment": {"node": "a", "address": store.address, "epoch": 9, "since_ms": 1}});
    let error = store.commit(txn().put_status(W, ONE, &elsewhere)).await.unwrap_err();
    refused(error, "status", "node a");
    let fabric = store.get(Kind::Fabric, "fabric").await.unwrap().unwrap();
    let error = store.commit(txn().delete(Kind::Fabric, &fabric.name)).await.unwrap_err();
    refused(error, "object", "the user or platform");
    store.commit(txn().put_status(Kind::Node, "b", &json!({"ready": true}))).await.unwrap();
}

async fn deletion_and_history(store: &Node<'_>) {
    let revision = store.commit(txn().delete(W, TWO)).await.unwrap();
    assert_eq!(store.get(W, TWO).await.unwrap(), None);
    let history = store.history(W, TWO).await.unwrap();
    let seen: Vec<_> = history.iter().map(|version| (version.object.version, version.deleted)).collect();
    assert_eq!(seen, [(2, true), (1, false)]);
    assert_eq!((history[0].object.revision, &history[0].object.author), (revision, &node("b")));
    store.commit(store.create(TWO)).await.unwrap();
    assert_eq!(store.get(W, TWO).await.unwrap().unwrap().version, 3, "a new object is never taken for an old one");
    assert_eq!(store.history(W, ONE).await.unwrap().len(), 3);
}

async fn watching(store: &Node<'_>) {
    let kinds = [Kind::Fabric, Kind::Node, W];
    let (objects, from) = snapshot(store.store, &kinds).await.unwrap();
    assert_eq!(objects.len(), 1 + 2 + 2);
    let mut early = store.watch(from).await.unwrap();
    let first = store.commit(txn().put_status(W, ONE, &store.status(10))).await.unwrap();
    let last = store.commit(txn().put_status(W, ONE, &store.status(11)).delete(W, TWO)).await.unwrap();
    let mut late = store.watch(from).await.unwrap();
    for watch in [&mut early, &mut late] {
        for (revision, epoch) in [(first, 10), (last - 1, 11)] {
            let Some(Change::Put(object)) = next(watch).await else { panic!("a change is missing") };
            assert_eq!((object.revision, &object.status), (revision, &store.status(epoch)));
        }
        assert_eq!(next(watch).await, Some(Change::Delete { kind: W, name: TWO.into(), revision: last }));
    }
    let mut resumed = store.watch(last - 1).await.unwrap();
    assert!(matches!(next(&mut resumed).await, Some(Change::Delete { .. })), "it resumes behind the revision");
    let mut ahead = store.watch(last + 1000).await.unwrap();
    assert_eq!(next(&mut ahead).await, Some(Change::Resync), "a revision that the store never had");
    assert_eq!(next(&mut ahead).await, None);
    many_changes(store, last).await;
}

/// More changes than fit in any one page, written while they are read.
async fn many_changes(store: &Node<'_>, from: Revision) {
    let mut watch = store.watch(from).await.unwrap();
    let write = async {
        for epoch in 100..400 {
            store.commit(txn().put_status(W, ONE, &store.status(epoch))).await.unwrap();
        }
    };
    let read = async {
        let mut seen = from;
        loop {
            let Some(Change::Put(object)) = next(&mut watch).await else { panic!("a change is missing") };
            assert!(object.revision > seen, "in order");
            seen = object.revision;
            if object.status == store.status(399) {
                break;
            }
        }
    };
    futures_util::join!(write, read);
}

async fn nonsense(store: &Node<'_>) {
    for (kind, name) in [(W, "../../etc"), (Kind::Node, "Ü"), (Kind::Fabric, "other"), (Kind::Prefix, "fd00::1")] {
        let error = store.commit(txn().put_spec(kind, name, &json!({}))).await.unwrap_err();
        assert!(matches!(error, StoreError::Invalid { .. } | StoreError::NotOwner { .. }), "{kind} {name}: {error}");
        assert_eq!(store.get(kind, name).await.unwrap(), None);
    }
    let unreadable = txn().put_status(W, ONE, &json!({"attachment": {"node": 7}}));
    assert!(matches!(store.commit(unreadable).await.unwrap_err(), StoreError::Invalid { .. }));
    let odd = "a b&kind=node/%00\u{1f980}";
    assert_eq!(store.get(W, odd).await.unwrap(), None, "a name that needs encoding is only a name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_conforms() {
    let fabric = Fabric::start().await;
    fabric.join("b").await;
    conforms(fabric.store.as_ref()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seeds_store_conforms() {
    let fabric = Fabric::start().await;
    conforms(&fabric.joined_store("b").await).await;
}
