//! What each kind may hold: the store refuses names and parts that its readers could not read. Pure.
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_model::{
    Label, NodePrefix, WorkspaceId,
    object::{FabricSpec, Kind, NodeSpec, NodeStatus, WorkspaceSpec, WorkspaceStatus},
};

use crate::{
    StoreError,
    membership::{PrefixSpec, TokenSpec},
};

/// Largest part of an object, in bytes of JSON: room for thousands of ports, and a bound on what one writer can store.
const PART_LIMIT: usize = 64 << 10;

/// Refuses a name that is none of its kind.
pub(crate) fn name(kind: Kind, name: &str) -> Result<(), StoreError> {
    let reason = match kind {
        Kind::Fabric => (name != "fabric").then(|| "the one fabric object is named fabric".into()),
        Kind::Node | Kind::Grant => name.parse::<Label>().err().map(|error| error.to_string()),
        Kind::Workspace => name.parse::<WorkspaceId>().err().map(|error| error.to_string()),
        Kind::Token => {
            let ok = (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
            (!ok).then(|| format!("{name:?} is no token id: 1 to 32 letters and digits"))
        }
        Kind::Prefix => match name.parse::<NodePrefix>() {
            Ok(prefix) => (prefix.to_string() != name).then(|| format!("write it as {prefix}")),
            Err(error) => Some(error.to_string()),
        },
    };
    reason.map_or(Ok(()), |reason: String| Err(StoreError::invalid(kind, name, "name", &reason)))
}

/// Refuses a spec that its readers could not read.
pub(crate) fn spec(kind: Kind, name: &str, value: &Value) -> Result<(), StoreError> {
    let readable = match kind {
        Kind::Fabric => reads::<FabricSpec>(value),
        Kind::Node => reads::<NodeSpec>(value),
        Kind::Workspace => reads::<WorkspaceSpec>(value),
        Kind::Token => reads::<TokenSpec>(value),
        Kind::Prefix => reads::<PrefixSpec>(value),
        Kind::Grant => reads::<serde_json::Map<String, Value>>(value),
    };
    readable.and_then(|()| fits(value)).map_err(|reason| StoreError::invalid(kind, name, "spec", &reason))
}

/// Refuses a status that its readers could not read; `null` stands for none.
pub(crate) fn status(kind: Kind, name: &str, value: &Value) -> Result<(), StoreError> {
    let readable = match kind {
        _ if value.is_null() => Ok(()),
        Kind::Node => reads::<NodeStatus>(value),
        Kind::Workspace => reads::<WorkspaceStatus>(value),
        Kind::Fabric | Kind::Token | Kind::Prefix | Kind::Grant => Err("this kind has no status".into()),
    };
    readable.and_then(|()| fits(value)).map_err(|reason| StoreError::invalid(kind, name, "status", &reason))
}

fn reads<T: DeserializeOwned>(value: &Value) -> Result<(), String> {
    T::deserialize(value).map(drop).map_err(|error| error.to_string())
}

fn fits(value: &Value) -> Result<(), String> {
    let size = value.to_string().len();
    if size <= PART_LIMIT { Ok(()) } else { Err(format!("it takes {size} bytes of at most {PART_LIMIT}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_of_their_kind() {
        for (kind, good) in [
            (Kind::Fabric, "fabric"),
            (Kind::Node, "a-1"),
            (Kind::Workspace, "abcdefghi2"),
            (Kind::Token, "0f3a"),
            (Kind::Prefix, "fd00:0:0:1::/64"),
        ] {
            assert_eq!(name(kind, good), Ok(()), "{kind} {good}");
        }
        for (kind, bad) in [
            (Kind::Fabric, "other"),
            (Kind::Node, "A"),
            (Kind::Workspace, "short"),
            (Kind::Token, "a b"),
            (Kind::Token, ""),
            (Kind::Prefix, "fd00:0000:0:1::/64"),
            (Kind::Prefix, "fd00::/48"),
        ] {
            assert!(matches!(name(kind, bad), Err(StoreError::Invalid { .. })), "{kind} {bad}");
        }
    }

    #[test]
    fn a_part_that_no_reader_understands_is_refused() {
        assert!(spec(Kind::Workspace, "abcdefghi2", &json!({"owner": "u"})).is_ok());
        assert!(spec(Kind::Workspace, "abcdefghi2", &json!({"owner": 7})).is_err());
        assert!(spec(Kind::Workspace, "abcdefghi2", &json!({"owner": "u".repeat(70_000)})).is_err());
        assert!(status(Kind::Token, "t", &json!({})).is_err());
        assert!(status(Kind::Node, "a", &json!({"endpoints": ["nonsense"]})).is_err());
    }
}
