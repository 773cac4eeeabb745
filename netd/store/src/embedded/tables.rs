//! The statements: objects, their history, and the log of revisions that watches are served from.
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde_json::Value;
use weft_model::{
    NodePrefix,
    object::{Author, Kind, NodeSpec, Object},
};

use crate::{
    Change, Compare, Expected, ObjectExt, Revision, StoreError, Txn, Version, Write, check, ownership::Writer,
};

/// Versions kept of each object.
const VERSIONS: u64 = 64;
/// Changes that a watch reads at a time.
const BATCH: u32 = 256;

/// Why a transaction was not done: refused by a rule, or failed in SQLite.
pub(super) enum Failure {
    Refused(StoreError),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

pub(super) fn revision(connection: &Connection) -> rusqlite::Result<Revision> {
    connection.prepare_cached("SELECT coalesce(max(revision), 0) FROM log")?.query_row([], |row| unsigned(row, 0))
}

pub(super) fn get(connection: &Connection, kind: Kind, name: &str) -> rusqlite::Result<Option<Object>> {
    let sql =
        "SELECT kind, name, version, revision, author, time_ms, spec, status FROM objects WHERE kind = ? AND name = ?";
    connection.prepare_cached(sql)?.query_row([kind.as_str(), name], read_object).optional()
}

pub(super) fn list(connection: &mut Connection, kind: Kind) -> rusqlite::Result<(Vec<Object>, Revision)> {
    let snapshot = connection.transaction()?;
    let revision = revision(&snapshot)?;
    let sql =
        "SELECT kind, name, version, revision, author, time_ms, spec, status FROM objects WHERE kind = ? ORDER BY name";
    let objects = snapshot.prepare_cached(sql)?.query_map([kind.as_str()], read_object)?.collect::<Result<_, _>>()?;
    Ok((objects, revision))
}

pub(super) fn history(connection: &Connection, kind: Kind, name: &str) -> rusqlite::Result<Vec<Version>> {
    let sql = "SELECT kind, name, version, revision, author, time_ms, spec, status, deleted FROM history
               WHERE kind = ? AND name = ? ORDER BY version DESC";
    let read = |row: &Row<'_>| Ok(Version { deleted: row.get(8)?, object: read_object(row)? });
    connection.prepare_cached(sql)?.query_map([kind.as_str(), name], read)?.collect()
}

/// What a watch finds in the log.
pub(super) enum Page {
    /// Changes, and the revision up to which there are no others.
    Changes(Vec<Change>, Revision),
    /// The log does not reach back, or not forward, to the revision.
    Gap,
}

pub(super) fn changes(connection: &mut Connection, after: Revision) -> rusqlite::Result<Page> {
    let snapshot = connection.transaction()?;
    let newest = revision(&snapshot)?;
    let oldest =
        snapshot.prepare_cached("SELECT coalesce(min(revision), 1) FROM log")?.query_row([], |row| unsigned(row, 0))?;
    if after > newest || after + 1 < oldest {
        return Ok(Page::Gap);
    }
    let sql = "SELECT log.kind, log.name, h.version, log.revision, h.author, h.time_ms, h.spec, h.status, log.deleted
               FROM log LEFT JOIN history h USING (kind, name, version) WHERE log.revision > ? ORDER BY log.revision LIMIT ?";
    let mut statement = snapshot.prepare_cached(sql)?;
    let mut rows = statement.query(params![signed(after), BATCH])?;
    let (mut found, mut upto) = (Vec::new(), after);
    while let Some(row) = rows.next()? {
        upto = unsigned(row, 3)?;
        if row.get(8)? {
            found.push(Change::Delete { kind: read_kind(row, 0)?, name: row.get(1)?, revision: upto });
        } else if row.get::<_, Option<i64>>(2)?.is_some() {
            found.push(Change::Put(read_object(row)?));
        }
        // A version that history has dropped was superseded: its successor stands later in the log.
    }
    Ok(Page::Changes(found, upto))
}

/// Does a transaction; `kept` is how many changes the log keeps.
pub(super) fn commit(connection: &mut Connection, txn: &Txn, kept: u64) -> Result<Revision, Failure> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for compare in &txn.compares {
        hold(&transaction, compare)?;
    }
    let writer = Writer { author: &txn.author, via: txn.via.as_ref(), prefix: prefix_of(&transaction, &txn.author)? };
    for write in &txn.writes {
        apply(&transaction, &writer, txn.time_ms, write)?;
    }
    let revision = revision(&transaction)?;
    trim(&transaction, revision.saturating_sub(kept))?;
    transaction.commit()?;
    Ok(revision)
}

/// The prefix of the node that writes, for the addresses that it may attach at.
fn prefix_of(transaction: &Transaction<'_>, author: &Author) -> Result<Option<NodePrefix>, Failure> {
    let Author::Node(node) = author else { return Ok(None) };
    let Some(object) = get(transaction, Kind::Node, node.as_str())? else { return Ok(None) };
    Ok(Some(object.read_spec::<NodeSpec>()?.prefix))
}

fn hold(transaction: &Transaction<'_>, compare: &Compare) -> Result<(), Failure> {
    let found = get(transaction, compare.kind, &compare.name)?.map(|object| object.version);
    let holds = match compare.expected {
        Expected::Absent => found.is_none(),
        Expected::Version(version) => found == Some(version),
    };
    if holds {
        return Ok(());
    }
    let (kind, name, expected) = (compare.kind, compare.name.clone(), compare.expected);
    Err(StoreError::Conflict { kind, name, expected, found }.into())
}

fn apply(transaction: &Transaction<'_>, writer: &Writer<'_>, time_ms: u64, write: &Write) -> Result<(), Failure> {
    let (Write::Put { kind, name, .. } | Write::Delete { kind, name }) = write;
    check::name(*kind, name)?;
    let current = get(transaction, *kind, name)?;
    if let Write::Put { spec, status, .. } = write {
        // Judged before ownership, which reads inside them.
        spec.as_ref().map_or(Ok(()), |spec| check::spec(*kind, name, spec))?;
        status.as_ref().map_or(Ok(()), |status| check::status(*kind, name, status))?;
    }
    writer.permit(current.as_ref(), write)?;
    let (deleted, spec, status) = match (write, &current) {
        (Write::Delete { .. }, None) => return Ok(()),
        (Write::Delete { .. }, Some(current)) => (true, current.spec.clone(), current.status.clone()),
        (Write::Put { spec, status, .. }, Some(current)) => {
            let spec = spec.as_ref().unwrap_or(&current.spec).clone();
            let status = status.as_ref().unwrap_or(&current.status).clone();
            if spec == current.spec && status == current.status {
                return Ok(());
            }
            (false, spec, status)
        }
        (Write::Put { spec: Some(spec), status, .. }, None) => {
            (false, spec.clone(), status.clone().unwrap_or(Value::Null))
        }
        (Write::Put { spec: None, .. }, None) => {
            return Err(
                StoreError::invalid(*kind, name, "spec", &"it does not exist yet, and a new object needs one").into()
            );
        }
    };
    let object = Object {
        kind: *kind,
        name: name.clone(),
        version: next_version(transaction, *kind, name)?,
        revision: revision(transaction)? + 1,
        author: writer.recorded(),
        time_ms,
        spec,
        status,
    };
    if !deleted {
        unique(transaction, &object)?;
    }
    record(transaction, &object, deleted)?;
    Ok(())
}

/// Versions go on after a deletion, so that a comparison never takes a new object for an old one.
fn next_version(transaction: &Transaction<'_>, kind: Kind, name: &str) -> rusqlite::Result<u64> {
    let sql = "SELECT coalesce(max(version), 0) + 1 FROM history WHERE kind = ? AND name = ?";
    transaction.prepare_cached(sql)?.query_row([kind.as_str(), name], |row| unsigned(row, 0))
}

/// A workspace's name stands in URLs: two workspaces must not share one.
fn unique(transaction: &Transaction<'_>, object: &Object) -> Result<(), Failure> {
    let Some(wanted) = object.spec.get("name").and_then(Value::as_str).filter(|_| object.kind == Kind::Workspace)
    else {
        return Ok(());
    };
    let sql = "SELECT name FROM objects WHERE kind = 'workspace' AND json_extract(spec, '$.name') = ? AND name <> ?";
    let by: Option<String> =
        transaction.prepare_cached(sql)?.query_row([wanted, &object.name], |row| row.get(0)).optional()?;
    match by {
        None => Ok(()),
        Some(by) => Err(StoreError::Taken {
            kind: object.kind,
            name: object.name.clone(),
            field: "name".into(),
            value: wanted.into(),
            by: format!("workspace {by}"),
        }
        .into()),
    }
}

fn record(transaction: &Transaction<'_>, object: &Object, deleted: bool) -> rusqlite::Result<()> {
    let key = [object.kind.as_str(), object.name.as_str()];
    let (version, revision) = (signed(object.version), signed(object.revision));
    let author = object.author.to_string();
    let (spec, status) = (object.spec.to_string(), object.status.to_string());
    if deleted {
        transaction.prepare_cached("DELETE FROM objects WHERE kind = ? AND name = ?")?.execute(key)?;
    } else {
        transaction.prepare_cached("REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?.execute(params![
            key[0],
            key[1],
            version,
            revision,
            author,
            signed(object.time_ms),
            spec,
            status
        ])?;
    }
    transaction.prepare_cached("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")?.execute(params![
        key[0],
        key[1],
        version,
        revision,
        author,
        signed(object.time_ms),
        spec,
        status,
        deleted
    ])?;
    transaction
        .prepare_cached("DELETE FROM history WHERE kind = ? AND name = ? AND version <= ?")?
        .execute(params![key[0], key[1], signed(object.version.saturating_sub(VERSIONS))])?;
    transaction
        .prepare_cached("INSERT INTO log VALUES (?, ?, ?, ?, ?)")?
        .execute(params![revision, key[0], key[1], version, deleted])?;
    Ok(())
}

/// Drops the oldest part of the log, and with it the history of objects whose removal lies there.
fn trim(transaction: &Transaction<'_>, upto: Revision) -> rusqlite::Result<()> {
    let dead = "DELETE FROM history WHERE (kind, name) IN
                    (SELECT kind, name FROM log WHERE revision <= ?1 AND deleted)
                AND NOT EXISTS (SELECT 1 FROM objects o WHERE o.kind = history.kind AND o.name = history.name)";
    let oldest: Revision = transaction
        .prepare_cached("SELECT coalesce(min(revision), 0) FROM log")?
        .query_row([], |row| unsigned(row, 0))?;
    if oldest == 0 || oldest > upto {
        return Ok(());
    }
    transaction.prepare_cached(dead)?.execute([signed(upto)])?;
    transaction.prepare_cached("DELETE FROM log WHERE revision <= ?")?.execute([signed(upto)])?;
    Ok(())
}

fn read_object(row: &Row<'_>) -> rusqlite::Result<Object> {
    Ok(Object {
        kind: read_kind(row, 0)?,
        name: row.get(1)?,
        version: unsigned(row, 2)?,
        revision: unsigned(row, 3)?,
        author: read_author(row, 4)?,
        time_ms: unsigned(row, 5)?,
        spec: read_json(row, 6)?,
        status: read_json(row, 7)?,
    })
}

fn read_kind(row: &Row<'_>, column: usize) -> rusqlite::Result<Kind> {
    row.get::<_, String>(column)?.parse().map_err(|reason: String| unreadable(column, reason.into()))
}

fn read_author(row: &Row<'_>, column: usize) -> rusqlite::Result<Author> {
    let text: String = row.get(column)?;
    match text.split_once(' ') {
        Some(("user", name)) => Ok(Author::User(name.into())),
        Some(("node", name)) => name.parse().map(Author::Node).map_err(|error| unreadable(column, Box::new(error))),
        _ => Err(unreadable(column, format!("{text:?} is neither a user nor a node").into())),
    }
}

fn read_json(row: &Row<'_>, column: usize) -> rusqlite::Result<Value> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| unreadable(column, Box::new(error)))
}

fn unreadable(column: usize, error: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error)
}

/// SQLite's integers are signed; ours count from 0 and never come near 2^63.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, number))
}
