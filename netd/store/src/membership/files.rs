//! Secret files: written whole, private to their owner, refused when others can read them.
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::MembershipError;
use crate::StoreError;

/// The newest schema of these files that this version reads and writes.
const SCHEMA: i64 = 1;
/// No file of ours comes near this size.
const LIMIT: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    schema: i64,
    #[serde(flatten)]
    body: T,
}

/// Writes a file (0600) so that it holds either its old or its new content, whatever happens.
pub(super) fn write<T: Serialize>(path: &Path, body: &T) -> Result<(), MembershipError> {
    let text = serde_json::to_vec_pretty(&Versioned { schema: SCHEMA, body }).map(Zeroizing::new);
    let text =
        text.map_err(|error| file_error(path, format!("cannot be written: {error}"), "this is a fault of ours"))?;
    write_whole(path, &text).map_err(|error| {
        file_error(path, format!("cannot be written: {error}"), "check the disk and that this runs as root")
    })
}

fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temporary = path.with_extension("tmp");
    // What a crash left may have other permissions.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

/// Reads a file; `None` if there is none.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, MembershipError> {
    let unreadable =
        |error: &io::Error| file_error(path, format!("cannot be read: {error}"), "check that this runs as root");
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&error)),
    };
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    if !metadata.is_file() {
        return Err(file_error(path, "is not a regular file".into(), "move it away"));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let reason = format!("holds private keys, and others can read it (mode {mode:o})");
        return Err(file_error(
            path,
            reason,
            "run chmod 600 on it, and consider its keys known if others use this machine",
        ));
    }
    let mut text = Zeroizing::new(Vec::new());
    file.take(LIMIT).read_to_end(&mut text).map_err(|error| unreadable(&error))?;
    parse(path, &text).map(Some)
}

/// Reads a file's content. Errors show where it is wrong, never what stands there.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, MembershipError> {
    #[derive(Deserialize)]
    struct Schema {
        schema: i64,
    }
    let damaged = |error: serde_json::Error| {
        let reason = format!("is damaged at line {}, column {}", error.line(), error.column());
        file_error(path, reason, "restore it from a copy, or move it away and join again")
    };
    let found = serde_json::from_slice::<Schema>(text).map_err(damaged)?.schema;
    if found > SCHEMA {
        return Err(StoreError::Newer { path: path.display().to_string(), found, supported: SCHEMA }.into());
    }
    Ok(serde_json::from_slice::<Versioned<T>>(text).map_err(damaged)?.body)
}

/// Removes a file and makes that last.
pub(super) fn remove(path: &Path) -> Result<(), MembershipError> {
    let gone = match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let sync = |()| path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all());
    gone.and_then(sync).map_err(|error| file_error(path, format!("cannot be removed: {error}"), "remove it by hand"))
}

fn file_error(path: &Path, reason: String, hint: &'static str) -> MembershipError {
    MembershipError::File { path: path.display().to_string(), reason, hint }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{Identity, NodeKeys};
    use proptest::prelude::*;

    #[test]
    fn a_file_is_private_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/keys.json");
        assert_eq!(read::<NodeKeys>(&path).unwrap(), None);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path.with_extension("tmp"), "left by a crash").unwrap();
        let keys = NodeKeys::generate().unwrap();
        write(&path, &keys).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read::<NodeKeys>(&path).unwrap(), Some(keys));
        assert!(!path.with_extension("tmp").exists());
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read::<NodeKeys>(&path).unwrap(), None);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        write(&path, &NodeKeys::generate().unwrap()).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read::<NodeKeys>(&path).unwrap_err().to_string();
            assert!(error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn a_newer_or_damaged_file_says_so_without_its_secrets() {
        let path = Path::new("/x/keys.json");
        let newer = parse::<NodeKeys>(path, br#"{"schema": 9, "unknown": true}"#).unwrap_err().to_string();
        assert!(newer.contains("/x/keys.json has schema 9, this version reads up to 1"), "{newer}");
        let damaged = parse::<NodeKeys>(path, br#"{"schema": 1, "wireguard_private_key": ["hunter2"]}"#).unwrap_err();
        assert!(damaged.to_string().contains("damaged") && !damaged.to_string().contains("hunter2"), "{damaged}");
    }

    proptest! {
        #[test]
        fn no_content_panics(bytes: Vec<u8>, text in r#"\{"schema": ?[0-9]{1,20}, ?"(node|keys|seeds)": ?("[a-z]{0,3}"|\[\]|\{\}|null)\}"#) {
            let path = Path::new("identity.json");
            let _ = parse::<Identity>(path, &bytes);
            let _ = parse::<Identity>(path, text.as_bytes());
        }
    }
}
