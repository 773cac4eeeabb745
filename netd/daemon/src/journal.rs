//! The node's journal: the truth about its own attachments, and the last view of the fabric, on its own disk. One SQLite
//! file that an operator can open; every write is durable before it returns.
use std::{
    net::Ipv6Addr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rusqlite::{Connection, Row, params};
use weft_model::{
    NodePrefix, WorkspaceAddress, WorkspaceId,
    object::{Object, WorkspaceSpec},
};

/// The schema that this code writes; an older one is brought up to it, a newer one is refused.
pub const SCHEMA: i64 = 1;

/// A network namespace's identity: a path can be reused, this cannot while the namespace lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// The device of the nsfs.
    pub dev: u64,
    /// The inode in it.
    pub inode: u64,
}

/// An attachment as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The workspace.
    pub id: WorkspaceId,
    /// What it should be, as far as this node knows.
    pub spec: WorkspaceSpec,
    /// Who changed `spec` here, while the store has not taken that change yet.
    pub changed_by: Option<String>,
    /// Its address.
    pub address: WorkspaceAddress,
    /// Grows each time that the workspace is attached.
    pub epoch: u64,
    /// Its network namespace's path, as it was given.
    pub netns: PathBuf,
    /// Which namespace that was.
    pub netns_id: NetnsId,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It was written by a newer netd.
    #[error(
        "the journal {path} has schema {found}, and this netd knows {SCHEMA}: start the netd that wrote it, or a newer one; to begin anew (attached workspaces are detached), move the file away"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// SQLite refuses.
    #[error("the journal {path}: {error}; {}", way_out(error))]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What it says.
        error: rusqlite::Error,
    },
    /// A row that does not say what it should.
    #[error(
        "the journal {path} holds what no netd writes ({what}): restore it from a backup, or move it away to begin anew"
    )]
    Row {
        /// The file.
        path: PathBuf,
        /// Which row and why.
        what: String,
    },
}

/// What an operator does about SQLite's refusal.
fn way_out(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => "free space on its disk, and try again",
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            "restore it from a backup; to begin anew (attached workspaces are detached), move the file away"
        }
        _ => "check the file's owner and mode, and that its disk can be written",
    }
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    connection: Mutex<Connection>,
}

const CREATE: &str = "
    CREATE TABLE attachments (
        id TEXT PRIMARY KEY, spec TEXT NOT NULL, changed_by TEXT, address TEXT NOT NULL UNIQUE, prefix TEXT NOT NULL,
        epoch INTEGER NOT NULL, netns TEXT NOT NULL, netns_dev INTEGER NOT NULL, netns_inode INTEGER NOT NULL,
        since_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE forgotten (id TEXT PRIMARY KEY) STRICT;
    CREATE TABLE view (kind TEXT NOT NULL, name TEXT NOT NULL, object TEXT NOT NULL, PRIMARY KEY (kind, name)) STRICT;
    PRAGMA user_version = 1;
";

impl Journal {
    /// Opens the journal, making it if there is none.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let sqlite = |error| JournalError::Sqlite { path: path.into(), error };
        let connection = Connection::open(path).map_err(sqlite)?;
        connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(sqlite)?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sqlite)?;
        if found > SCHEMA {
            return Err(JournalError::Newer { path: path.into(), found });
        }
        connection.pragma_update(None, "journal_mode", "WAL").map_err(sqlite)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(sqlite)?;
        if found == 0 {
            connection.execute_batch(&format!("BEGIN; {CREATE} COMMIT;")).map_err(sqlite)?;
        }
        Ok(Self { path: path.into(), connection: Mutex::new(connection) })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A thread that panicked left no open transaction behind: rusqlite rolls back on drop.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sqlite(&self, error: rusqlite::Error) -> JournalError {
        JournalError::Sqlite { path: self.path.clone(), error }
    }

    /// All attachments, oldest first.
    pub fn entries(&self) -> Result<Vec<Entry>, JournalError> {
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached(
                "SELECT id, spec, changed_by, address, prefix, epoch, netns, netns_dev, netns_inode, since_ms
                 FROM attachments ORDER BY since_ms, id",
            )
            .map_err(|error| self.sqlite(error))?;
        let rows = statement.query_map([], |row| Ok(read_entry(row))).map_err(|error| self.sqlite(error))?;
        let rows: Result<Vec<_>, _> = rows.collect();
        let rows = rows.map_err(|error| self.sqlite(error))?;
        rows.into_iter().map(|row| row.map_err(|what| JournalError::Row { path: self.path.clone(), what })).collect()
    }

    /// Writes an attachment, new or changed.
    pub fn put(&self, entry: &Entry) -> Result<(), JournalError> {
        let spec = serde_json::to_string(&entry.spec).expect("a workspace's spec is plain data");
        self.execute(
            "INSERT INTO attachments (id, spec, changed_by, address, prefix, epoch, netns, netns_dev, netns_inode, since_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (id) DO UPDATE SET spec = ?2, changed_by = ?3, address = ?4, prefix = ?5, epoch = ?6, netns = ?7,
                 netns_dev = ?8, netns_inode = ?9, since_ms = ?10",
            params![
                entry.id.as_str(),
                spec,
                entry.changed_by,
                entry.address.address().to_string(),
                entry.address.prefix().to_string(),
                entry.epoch.cast_signed(),
                entry.netns.to_string_lossy(),
                entry.netns_id.dev.cast_signed(),
                entry.netns_id.inode.cast_signed(),
                entry.since_ms.cast_signed(),
            ],
        )
    }

    /// Takes an attachment out; with `forget`, also notes that the workspace is to be deleted from the store.
    pub fn remove(&self, id: WorkspaceId, forget: bool) -> Result<(), JournalError> {
        let mut connection = self.lock();
        let result = connection.transaction().and_then(|change| {
            change.execute("DELETE FROM attachments WHERE id = ?1", [id.as_str()])?;
            if forget {
                change.execute("INSERT OR REPLACE INTO forgotten (id) VALUES (?1)", [id.as_str()])?;
            }
            change.commit()
        });
        result.map_err(|error| self.sqlite(error))
    }

    /// The workspaces that are still to be deleted from the store.
    pub fn forgotten(&self) -> Result<Vec<WorkspaceId>, JournalError> {
        let connection = self.lock();
        let result = connection.prepare_cached("SELECT id FROM forgotten").and_then(|mut statement| {
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.collect::<Result<Vec<_>, _>>()
        });
        let rows = result.map_err(|error| self.sqlite(error))?;
        let id = |text: String| {
            text.parse()
                .map_err(|error| JournalError::Row { path: self.path.clone(), what: format!("forgotten: {error}") })
        };
        rows.into_iter().map(id).collect()
    }

    /// The store has deleted it.
    pub fn forgotten_done(&self, id: WorkspaceId) -> Result<(), JournalError> {
        self.execute("DELETE FROM forgotten WHERE id = ?1", params![id.as_str()])
    }

    /// The fabric's objects as they were seen last. A row that cannot be read is left out: the store has it still.
    pub fn view(&self) -> Result<Vec<Object>, JournalError> {
        let connection = self.lock();
        let result = connection.prepare_cached("SELECT object FROM view").and_then(|mut statement| {
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.collect::<Result<Vec<_>, _>>()
        });
        let rows = result.map_err(|error| self.sqlite(error))?;
        Ok(rows.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }

    /// Replaces the whole view.
    pub fn replace_view(&self, objects: &[Object]) -> Result<(), JournalError> {
        let mut connection = self.lock();
        let result = connection.transaction().and_then(|change| {
            change.execute("DELETE FROM view", [])?;
            for object in objects {
                put_object(&change, object)?;
            }
            change.commit()
        });
        result.map_err(|error| self.sqlite(error))
    }

    /// Changes the view: objects as they are now, and the kinds and names of those that are gone.
    pub fn change_view(&self, puts: &[Object], gone: &[(String, String)]) -> Result<(), JournalError> {
        let mut connection = self.lock();
        let result = connection.transaction().and_then(|change| {
            for object in puts {
                put_object(&change, object)?;
            }
            for (kind, name) in gone {
                change.execute("DELETE FROM view WHERE kind = ?1 AND name = ?2", params![kind, name])?;
            }
            change.commit()
        });
        result.map_err(|error| self.sqlite(error))
    }

    fn execute(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<(), JournalError> {
        let connection = self.lock();
        let result = connection.prepare_cached(sql).and_then(|mut statement| statement.execute(values));
        result.map(drop).map_err(|error| self.sqlite(error))
    }
}

fn put_object(connection: &Connection, object: &Object) -> rusqlite::Result<()> {
    let text = serde_json::to_string(object).expect("an object is plain data");
    let mut statement =
        connection.prepare_cached("INSERT OR REPLACE INTO view (kind, name, object) VALUES (?1, ?2, ?3)")?;
    statement.execute(params![object.kind.to_string(), object.name, text])?;
    Ok(())
}

fn read_entry(row: &Row<'_>) -> Result<Entry, String> {
    let text = |column: usize| row.get::<_, String>(column).map_err(|error| format!("attachments: {error}"));
    let number = |column: usize| row.get::<_, i64>(column).map_err(|error| format!("attachments: {error}"));
    let id: WorkspaceId = text(0)?.parse().map_err(|error| format!("attachments: {error}"))?;
    let wrong = |error: &dyn std::fmt::Display| format!("attachment {id}: {error}");
    let prefix: NodePrefix = text(4)?.parse().map_err(|error| wrong(&error))?;
    let address: Ipv6Addr = text(3)?.parse().map_err(|error| wrong(&error))?;
    let outside = || wrong(&format!("{address} is no workspace's address of {prefix}"));
    Ok(Entry {
        id,
        spec: serde_json::from_str(&text(1)?).map_err(|error| wrong(&error))?,
        changed_by: row.get(2).map_err(|error| wrong(&error))?,
        address: prefix.workspace(address).ok_or_else(outside)?,
        epoch: number(5)?.cast_unsigned(),
        netns: text(6)?.into(),
        netns_id: NetnsId { dev: number(7)?.cast_unsigned(), inode: number(8)?.cast_unsigned() },
        since_ms: number(9)?.cast_unsigned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, last: u64) -> Entry {
        let prefix: NodePrefix = "fd12:3456:789a:7::/64".parse().unwrap();
        Entry {
            id: id.parse().unwrap(),
            spec: WorkspaceSpec { name: Some("box".parse().unwrap()), owner: "ann".into(), group: None, ports: vec![] },
            changed_by: Some("root".into()),
            address: prefix.draw((1 << 20 | last).to_be_bytes()).unwrap(),
            epoch: u64::MAX,
            netns: "/run/netns/x".into(),
            netns_id: NetnsId { dev: 4, inode: u64::from(u32::MAX) },
            since_ms: 1_700_000_000_000 + last,
        }
    }

    #[test]
    fn what_was_written_is_read_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        let (first, second) = (entry("aaaaaaaaaa", 1), entry("bbbbbbbbbb", 2));
        let journal = Journal::open(&path).unwrap();
        journal.put(&second).unwrap();
        journal.put(&first).unwrap();
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.entries().unwrap(), [first.clone(), second.clone()]);
        journal.put(&Entry { changed_by: None, ..first.clone() }).unwrap();
        journal.remove(second.id, true).unwrap();
        assert_eq!(journal.entries().unwrap(), [Entry { changed_by: None, ..first.clone() }]);
        assert_eq!(journal.forgotten().unwrap(), [second.id]);
        journal.forgotten_done(second.id).unwrap();
        assert!(journal.forgotten().unwrap().is_empty());
    }

    #[test]
    fn one_address_is_never_written_for_two() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal.db")).unwrap();
        let first = entry("aaaaaaaaaa", 1);
        journal.put(&first).unwrap();
        assert!(journal.put(&Entry { id: "bbbbbbbbbb".parse().unwrap(), ..first.clone() }).is_err());
        assert_eq!(journal.entries().unwrap(), [first]);
    }

    #[test]
    fn a_newer_journal_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        Journal::open(&path).unwrap().lock().pragma_update(None, "user_version", 99).unwrap();
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.contains("schema 99") && error.contains("newer"), "{error}");
        assert!(error.contains("journal.db"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_journal_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        let text = "this is no database, whatever it may be, and long enough to tell";
        std::fs::write(&path, text).unwrap();
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.contains("journal.db") && error.contains("restore it from a backup"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "it is left as it was");
    }
}
