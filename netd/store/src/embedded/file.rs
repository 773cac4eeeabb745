//! The file: opening it, its schema, and what its errors mean.
use std::{
    fs::{DirBuilder, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode};

use super::SCHEMA;
use crate::StoreError;

/// "Weft" in ASCII: tells our files from other SQLite files, and file(1) shows it.
const APPLICATION_ID: i64 = 0x5765_6674;

/// Tables for people too: `sqlite3 store.db 'select kind, name, author, datetime(time_ms/1000, "unixepoch"), spec from objects'`.
const TABLES: &str = "
    CREATE TABLE objects (
        kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, revision INTEGER NOT NULL,
        author TEXT NOT NULL, time_ms INTEGER NOT NULL, spec TEXT NOT NULL, status TEXT NOT NULL,
        PRIMARY KEY (kind, name)
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX workspace_name ON objects (json_extract(spec, '$.name')) WHERE kind = 'workspace';
    CREATE TABLE history (
        kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, revision INTEGER NOT NULL,
        author TEXT NOT NULL, time_ms INTEGER NOT NULL, spec TEXT NOT NULL, status TEXT NOT NULL,
        deleted INTEGER NOT NULL,
        PRIMARY KEY (kind, name, version)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE log (
        revision INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
        deleted INTEGER NOT NULL
    ) STRICT;
";

/// Opens a connection to the file, which is made (0600) if it does not exist.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    create_private(path).map_err(|error| io_error(path, &error))?;
    let failed = |error| failure(path, &error);
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
    check_schema(path, &mut connection)?;
    // FULL: with WAL, only this syncs the log before a commit is acknowledged.
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    Ok(connection)
}

fn create_private(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

/// Makes the tables in an empty file; refuses, without changing anything, a file of a newer schema and one that is not ours.
fn check_schema(path: &Path, connection: &mut Connection) -> Result<(), StoreError> {
    let failed = |error| failure(path, &error);
    let number =
        |connection: &Connection, sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(failed);
    let found = number(connection, "PRAGMA user_version")?;
    if found > SCHEMA {
        return Err(StoreError::Newer { path: path.display().to_string(), found, supported: SCHEMA });
    }
    let tables = number(connection, "SELECT count(*) FROM sqlite_schema")?;
    let ours = number(connection, "PRAGMA application_id")? == APPLICATION_ID;
    if tables > 0 && !ours {
        let reason = "it is an SQLite file, but not a store of Weft".into();
        return Err(StoreError::Io { path: path.display().to_string(), reason });
    }
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    if found == SCHEMA {
        return Ok(());
    }
    let transaction = connection.transaction().map_err(failed)?;
    transaction.execute_batch(TABLES).map_err(failed)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    transaction.pragma_update(None, "user_version", SCHEMA).map_err(failed)?;
    transaction.commit().map_err(failed)
}

/// What an error of SQLite means for the caller.
pub(super) fn failure(path: &Path, error: &rusqlite::Error) -> StoreError {
    let path = path.display().to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { path },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StoreError::Unavailable { reason: format!("another process has locked {path}") }
        }
        _ => StoreError::Io { path, reason: error.to_string() },
    }
}

pub(super) fn io_error(path: &Path, error: &io::Error) -> StoreError {
    let path = path.display().to_string();
    if error.kind() == io::ErrorKind::StorageFull {
        return StoreError::Full { path };
    }
    StoreError::Io { path, reason: error.to_string() }
}
