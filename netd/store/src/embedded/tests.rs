//! What only the embedded store does: files, schemas, the log's length, many writers.
use std::{fs, os::unix::fs::PermissionsExt};

use futures_util::StreamExt;
use serde_json::json;
use weft_model::object::Author;

use super::*;

fn user() -> Author {
    Author::User("u".into())
}

fn txn(id: &str, owner: &str) -> Txn {
    Txn::new(user(), 1).put_spec(Kind::Workspace, id, &json!({"owner": owner}))
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/store.db");
    let store = Embedded::open(&path).unwrap();
    store.commit(txn("aaaaaaaaaa", "u")).await.unwrap();
    for suffix in ["", "-wal"] {
        let mode = fs::metadata(format!("{}{suffix}", path.display())).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{suffix}");
    }
    drop(store);
    let store = Embedded::open(&path).unwrap();
    let object = store.get(Kind::Workspace, "aaaaaaaaaa").await.unwrap().unwrap();
    assert_eq!((object.version, object.revision, &object.author), (1, 1, &user()));
}

#[test]
fn a_file_of_a_newer_schema_is_refused_unchanged_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    drop(file::open(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "journal_mode", "DELETE").unwrap();
    connection.pragma_update(None, "user_version", SCHEMA + 6).unwrap();
    drop(connection);
    let before = fs::read(&path).unwrap();
    let error = Embedded::open(&path).err().unwrap();
    assert_eq!(error, StoreError::Newer { path: path.display().to_string(), found: SCHEMA + 6, supported: SCHEMA });
    assert!(error.to_string().contains("install the version that wrote it"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_file_that_is_not_ours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(Embedded::open(&path).err().unwrap().to_string().contains("not a store of Weft"));
    fs::write(&path, b"this is no database at all, but long enough to be looked at as one by the library").unwrap();
    assert!(matches!(Embedded::open(&path), Err(StoreError::Io { .. })));
    assert!(matches!(Embedded::open(dir.path()), Err(StoreError::Io { .. })));
}

#[tokio::test]
async fn a_watch_from_before_the_logs_beginning_says_resync_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open_with_log(&dir.path().join("store.db"), 10).unwrap();
    for turn in 0..30 {
        store.commit(txn("aaaaaaaaaa", &format!("u{turn}"))).await.unwrap();
    }
    let changes: Vec<_> = store.watch(19).await.unwrap().collect().await;
    assert_eq!(changes, [Change::Resync]);
    let mut watch = store.watch(20).await.unwrap();
    for revision in 21..=30 {
        let Some(Change::Put(object)) = watch.next().await else { panic!("a change is missing") };
        assert_eq!(object.revision, revision);
    }
}

#[tokio::test]
async fn history_keeps_the_newest_and_forgets_what_was_removed_long_ago() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open_with_log(&dir.path().join("store.db"), 100).unwrap();
    for turn in 0..70 {
        store.commit(txn("aaaaaaaaaa", &format!("u{turn}"))).await.unwrap();
    }
    let history = store.history(Kind::Workspace, "aaaaaaaaaa").await.unwrap();
    assert_eq!(
        history.iter().map(|version| version.object.version).collect::<Vec<_>>(),
        (7..=70).rev().collect::<Vec<_>>()
    );
    store.commit(Txn::new(user(), 2).delete(Kind::Workspace, "aaaaaaaaaa")).await.unwrap();
    assert!(store.history(Kind::Workspace, "aaaaaaaaaa").await.unwrap()[0].deleted);
    for turn in 0..100 {
        store.commit(txn("bbbbbbbbbb", &format!("u{turn}"))).await.unwrap();
    }
    assert_eq!(store.history(Kind::Workspace, "aaaaaaaaaa").await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_writers_with_one_expectation_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.db")).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..20 {
        let store = store.clone();
        let txn = txn("aaaaaaaaaa", &format!("u{writer}")).expect_absent(Kind::Workspace, "aaaaaaaaaa");
        tasks.spawn(async move { store.commit(txn).await });
    }
    let outcomes = tasks.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).all(StoreError::is_conflict));
}
