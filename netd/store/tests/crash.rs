//! kill -9 at any time: a child process writes, its parent kills it, and every acknowledged write is there.
#![allow(clippy::unwrap_used)] // also outside of the test functions themselves
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::json;
use weft_model::object::{Author, Kind};
use weft_store::{Store, Txn, embedded::Embedded};

const STORE: &str = "WEFT_TEST_CRASHING_STORE";
const IDS: [&str; 3] = ["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"];

fn write(turn: u64) -> Txn {
    // Both halves of a transaction carry the turn: a torn one would show.
    let spec = json!({"owner": turn.to_string()});
    let txn = Txn::new(Author::User("u".into()), turn).put_spec(Kind::Workspace, IDS[0], &spec);
    let txn = txn.put_spec(Kind::Workspace, IDS[1], &spec);
    if turn.is_multiple_of(2) {
        txn.put_spec(Kind::Workspace, IDS[2], &spec)
    } else {
        txn.delete(Kind::Workspace, IDS[2])
    }
}

/// The child: writes until it is killed, and says after each write that it was acknowledged.
#[tokio::test]
#[ignore = "the child of the test below"]
async fn child() {
    let Ok(path) = std::env::var(STORE) else { return };
    let store = Embedded::open(Path::new(&path)).unwrap();
    let first = last_turn(&store).await + 1;
    for turn in first.. {
        store.commit(write(turn)).await.unwrap();
        println!("acknowledged {turn}");
    }
}

async fn last_turn(store: &Embedded) -> u64 {
    store.get(Kind::Workspace, IDS[0]).await.unwrap().map_or(0, |object| object.time_ms)
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_and_none_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let mut total = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(STORE, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut acknowledged = 0;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A different moment each round, always between or within writes.
        for _ in 0..3 + round * 17 {
            let line = lines.find_map(|line| line.unwrap().strip_prefix("acknowledged ").map(str::to_owned)).unwrap();
            acknowledged = line.parse().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            acknowledged =
                line.strip_prefix("acknowledged ").and_then(|turn| turn.parse().ok()).unwrap_or(acknowledged);
        }

        let store = Embedded::open(&path).unwrap();
        let last = last_turn(&store).await;
        assert!(last == acknowledged || last == acknowledged + 1, "acknowledged {acknowledged}, found {last}");
        let second = store.get(Kind::Workspace, IDS[1]).await.unwrap().unwrap();
        assert_eq!(second.time_ms, last);
        let third = store.get(Kind::Workspace, IDS[2]).await.unwrap();
        assert_eq!(third.map(|object| object.time_ms), last.is_multiple_of(2).then_some(last));
        assert_eq!(store.get(Kind::Workspace, IDS[0]).await.unwrap().unwrap().version, last, "one version a turn");
        assert!(last > total);
        total = last;
    }
}
