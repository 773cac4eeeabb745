//! Every field has one owner: who may write what. Pure.
//!
//! | author | may write |
//! |---|---|
//! | a user of the seed | every spec; may remove every object |
//! | a user that a node vouches for | the spec of workspaces attached on that node; may remove those |
//! | a node | its own status; the status of a workspace that is attached on it, or becomes so (taking one over from another node needs a higher epoch); the spec of a workspace that it attaches and nobody declared; may remove a workspace that is attached on it |
//!
//! A node attaches at addresses of its own prefix, or at the one that a workspace brings along: else it could point a
//! workspace's URL at somebody else's.
//!
//! Writing the value that is there already is no write and always permitted.
use weft_model::{
    NodeName, NodePrefix,
    object::{Attachment, Author, Kind, Object, WorkspaceStatus},
};

use crate::{ObjectExt, StoreError, Write};

/// Who writes.
#[derive(Clone, Copy)]
pub(crate) struct Writer<'a> {
    /// As the transaction says.
    pub(crate) author: &'a Author,
    /// The node that vouches for it.
    pub(crate) via: Option<&'a NodeName>,
    /// The prefix of the node that writes, if it is recorded.
    pub(crate) prefix: Option<NodePrefix>,
}

const PLATFORM: &str = "the user or platform";
const SEED_USERS: &str = "the users of a seed node";

impl Writer<'_> {
    /// The author as history shows it: a user of another node than the seed is told apart by the node.
    pub(crate) fn recorded(&self) -> Author {
        match (self.author, self.via) {
            (Author::User(name), Some(node)) => Author::User(format!("{name}@{node}")),
            (author, _) => author.clone(),
        }
    }

    /// Refuses a write to what belongs to somebody else, naming the owner. `current` is the object before the write.
    pub(crate) fn permit(&self, current: Option<&Object>, write: &Write) -> Result<(), StoreError> {
        match (self.author, write) {
            (_, Write::Delete { .. }) if current.is_none() => Ok(()),
            (Author::User(_), Write::Delete { kind, name }) => self.user(current, *kind, name, "object"),
            (Author::User(_), Write::Put { kind, name, spec, status }) => {
                if status.as_ref().is_some_and(|status| changes_status(current, status)) {
                    return Err(self.refuse(*kind, name, "status", status_owner(current, *kind, name)?));
                }
                let changes = spec.as_ref().is_some_and(|spec| current.is_none_or(|object| object.spec != *spec));
                if changes { self.user(current, *kind, name, "spec") } else { Ok(()) }
            }
            (Author::Node(node), write) => self.node(node, current, write),
        }
    }

    /// A user's write to a spec, or removal.
    fn user(&self, current: Option<&Object>, kind: Kind, name: &str, field: &str) -> Result<(), StoreError> {
        let Some(node) = self.via else { return Ok(()) };
        if kind != Kind::Workspace {
            return Err(self.refuse(kind, name, field, SEED_USERS.into()));
        }
        match attachment(current)? {
            Some(attached) if attached.node == *node => Ok(()),
            Some(attached) => Err(self.refuse(
                kind,
                name,
                field,
                format!("the users of node {}, where it is attached", attached.node),
            )),
            None => Err(self.refuse(kind, name, field, format!("{SEED_USERS} until it is attached on {node}"))),
        }
    }

    fn node(&self, node: &NodeName, current: Option<&Object>, write: &Write) -> Result<(), StoreError> {
        match write {
            Write::Delete { kind: Kind::Workspace, name } => match attachment(current)? {
                Some(attached) if attached.node == *node => Ok(()),
                Some(attached) => Err(self.refuse(Kind::Workspace, name, "object", format!("node {}", attached.node))),
                None => Err(self.refuse(Kind::Workspace, name, "object", PLATFORM.into())),
            },
            Write::Delete { kind, name } => Err(self.refuse(*kind, name, "object", PLATFORM.into())),
            Write::Put { kind, name, spec, status } => {
                let status = status.as_ref().filter(|status| changes_status(current, status));
                let attaches = match (kind, status) {
                    (Kind::Workspace, Some(status)) => self.attach(node, current, name, status)?,
                    (Kind::Node, Some(_)) if name == node.as_str() => false,
                    (_, Some(_)) => {
                        return Err(self.refuse(*kind, name, "status", status_owner(current, *kind, name)?));
                    }
                    (_, None) => false,
                };
                let declares = *kind == Kind::Workspace && current.is_none() && attaches;
                let changes = spec.as_ref().is_some_and(|spec| current.is_none_or(|object| object.spec != *spec));
                if changes && !declares { Err(self.refuse(*kind, name, "spec", PLATFORM.into())) } else { Ok(()) }
            }
        }
    }

    /// Judges a node's write to a workspace's status; says whether the workspace is attached on the node afterwards.
    fn attach(
        &self,
        node: &NodeName,
        current: Option<&Object>,
        name: &str,
        status: &serde_json::Value,
    ) -> Result<bool, StoreError> {
        let before = attachment(current)?;
        let after = parse(name, status)?.attachment;
        let foreign = before.as_ref().filter(|attached| attached.node != *node);
        if let (Some(after), Some(prefix)) = (&after, self.prefix) {
            let kept = before.as_ref().is_some_and(|before| before.address == after.address);
            if after.node == *node && !kept && prefix.workspace(after.address).is_none() {
                let reason =
                    format!("{} is no workspace's address of {prefix}, the prefix of node {node}", after.address);
                return Err(StoreError::invalid(Kind::Workspace, name, "status", &reason));
            }
        }
        match (after, foreign) {
            (Some(after), _) if after.node != *node => {
                Err(self.refuse(Kind::Workspace, name, "status", format!("node {}", after.node)))
            }
            (Some(after), Some(before)) if after.epoch <= before.epoch => {
                let owner = format!(
                    "node {} since epoch {} (a move needs a higher epoch than that)",
                    before.node, before.epoch
                );
                Err(self.refuse(Kind::Workspace, name, "status", owner))
            }
            (Some(after), None) if before.as_ref().is_some_and(|before| after.epoch < before.epoch) => {
                Err(StoreError::invalid(Kind::Workspace, name, "status", &"the attachment's epoch goes back"))
            }
            (None, Some(before)) => Err(self.refuse(Kind::Workspace, name, "status", format!("node {}", before.node))),
            (after, _) => Ok(after.is_some()),
        }
    }

    fn refuse(&self, kind: Kind, name: &str, field: &str, owner: String) -> StoreError {
        StoreError::NotOwner { author: self.recorded(), kind, name: name.into(), field: field.into(), owner }
    }
}

fn changes_status(current: Option<&Object>, status: &serde_json::Value) -> bool {
    current.map_or(!status.is_null(), |object| object.status != *status)
}

fn parse(name: &str, status: &serde_json::Value) -> Result<WorkspaceStatus, StoreError> {
    use serde::Deserialize;
    if status.is_null() {
        return Ok(WorkspaceStatus::default());
    }
    WorkspaceStatus::deserialize(status).map_err(|error| StoreError::invalid(Kind::Workspace, name, "status", &error))
}

fn attachment(current: Option<&Object>) -> Result<Option<Attachment>, StoreError> {
    Ok(current.map(ObjectExt::read_status::<WorkspaceStatus>).transpose()?.unwrap_or_default().attachment)
}

fn status_owner(current: Option<&Object>, kind: Kind, name: &str) -> Result<String, StoreError> {
    Ok(match kind {
        Kind::Node => format!("node {name}"),
        Kind::Workspace => match attachment(current)? {
            Some(attached) => format!("node {}", attached.node),
            None => "the node that attaches it".into(),
        },
        _ => "nobody: this kind has no status".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const ID: &str = "abcdefghi2";

    fn node(name: &str) -> Author {
        Author::Node(name.parse().unwrap())
    }

    fn attached(node: &str, epoch: u64) -> Value {
        json!({"attachment": {"node": node, "address": "fd00::1:0:0:1", "epoch": epoch, "since_ms": 1}})
    }

    fn object(kind: Kind, name: &str, spec: Value, status: Value) -> Object {
        Object { kind, name: name.into(), version: 1, revision: 1, author: node("a"), time_ms: 1, spec, status }
    }

    fn put(kind: Kind, name: &str, spec: Option<Value>, status: Option<Value>) -> Write {
        Write::Put { kind, name: name.into(), spec, status }
    }

    /// The owner that a refusal names, or `ok`.
    fn verdict(author: &Author, via: Option<&str>, current: Option<&Object>, write: &Write) -> String {
        let via: Option<NodeName> = via.map(|via| via.parse().unwrap());
        match (Writer { author, via: via.as_ref(), prefix: None }).permit(current, write) {
            Ok(()) => "ok".into(),
            Err(StoreError::NotOwner { owner, field, .. }) => format!("{field}: {owner}"),
            Err(other) => other.to_string(),
        }
    }

    #[test]
    fn a_node_writes_its_own_status_and_nothing_else_of_nodes() {
        let b = object(Kind::Node, "b", json!({"k": 1}), Value::Null);
        let status = put(Kind::Node, "b", None, Some(json!({"ready": true})));
        assert_eq!(verdict(&node("b"), None, Some(&b), &status), "ok");
        assert_eq!(verdict(&node("a"), None, Some(&b), &status), "status: node b");
        assert_eq!(verdict(&Author::User("u".into()), None, Some(&b), &status), "status: node b");
        let spec = put(Kind::Node, "b", Some(json!({"k": 2})), None);
        assert_eq!(verdict(&node("b"), None, Some(&b), &spec), format!("spec: {PLATFORM}"));
        assert_eq!(verdict(&Author::User("u".into()), None, Some(&b), &spec), "ok");
        assert_eq!(verdict(&node("b"), None, Some(&b), &put(Kind::Node, "b", Some(json!({"k": 1})), None)), "ok");
        let delete = Write::Delete { kind: Kind::Node, name: "b".into() };
        assert_eq!(verdict(&node("b"), None, Some(&b), &delete), format!("object: {PLATFORM}"));
    }

    #[test]
    fn a_workspace_belongs_to_the_node_that_it_is_attached_on() {
        let on_a = object(Kind::Workspace, ID, json!({"owner": "u"}), attached("a", 3));
        let take = |epoch| put(Kind::Workspace, ID, None, Some(attached("b", epoch)));
        assert!(verdict(&node("b"), None, Some(&on_a), &take(3)).starts_with("status: node a since epoch 3"));
        assert_eq!(verdict(&node("b"), None, Some(&on_a), &take(4)), "ok");
        assert_eq!(verdict(&node("a"), None, Some(&on_a), &take(4)), "status: node b");
        let detach = put(Kind::Workspace, ID, None, Some(json!({"attachment": null})));
        assert_eq!(verdict(&node("b"), None, Some(&on_a), &detach), "status: node a");
        assert_eq!(verdict(&node("a"), None, Some(&on_a), &detach), "ok");
        assert!(
            verdict(&node("a"), None, Some(&on_a), &put(Kind::Workspace, ID, None, Some(attached("a", 2))))
                .contains("epoch goes back")
        );
        let delete = Write::Delete { kind: Kind::Workspace, name: ID.into() };
        assert_eq!(verdict(&node("b"), None, Some(&on_a), &delete), "object: node a");
        assert_eq!(verdict(&node("a"), None, Some(&on_a), &delete), "ok");
    }

    #[test]
    fn a_node_declares_a_workspace_only_by_attaching_it() {
        let spec = || Some(json!({"owner": "u"}));
        assert_eq!(verdict(&node("a"), None, None, &put(Kind::Workspace, ID, spec(), Some(attached("a", 1)))), "ok");
        assert_eq!(
            verdict(&node("a"), None, None, &put(Kind::Workspace, ID, spec(), None)),
            format!("spec: {PLATFORM}")
        );
        assert_eq!(
            verdict(&node("a"), None, None, &put(Kind::Workspace, ID, spec(), Some(attached("b", 1)))),
            "status: node b"
        );
        let on_a = object(Kind::Workspace, ID, json!({"owner": "u"}), attached("a", 1));
        let respec = put(Kind::Workspace, ID, Some(json!({"owner": "v"})), Some(attached("a", 2)));
        assert_eq!(verdict(&node("a"), None, Some(&on_a), &respec), format!("spec: {PLATFORM}"));
    }

    #[test]
    fn a_user_behind_a_node_reaches_only_that_nodes_workspaces() {
        let user = Author::User("u".into());
        let on_a = object(Kind::Workspace, ID, json!({"owner": "u"}), attached("a", 1));
        let spec = put(Kind::Workspace, ID, Some(json!({"owner": "v"})), None);
        assert_eq!(verdict(&user, Some("a"), Some(&on_a), &spec), "ok");
        assert!(verdict(&user, Some("b"), Some(&on_a), &spec).starts_with("spec: the users of node a"));
        assert!(verdict(&user, Some("b"), None, &spec).starts_with(&format!("spec: {SEED_USERS}")));
        let fabric = put(Kind::Fabric, "fabric", Some(json!({})), None);
        assert_eq!(verdict(&user, Some("a"), None, &fabric), format!("spec: {SEED_USERS}"));
        assert_eq!(verdict(&user, None, None, &fabric), "ok");
        let recorded = Writer { author: &user, via: Some(&"a".parse().unwrap()), prefix: None }.recorded();
        assert_eq!(recorded, Author::User("u@a".into()));
    }

    #[test]
    fn a_node_attaches_only_at_its_own_addresses_and_those_that_move_in() {
        let at = |address: &str| json!({"attachment": {"node": "b", "address": address, "epoch": 2, "since_ms": 1}});
        let b = node("b");
        let writer = Writer { author: &b, via: None, prefix: Some("fd00:0:0:2::/64".parse().unwrap()) };
        let on_a = object(Kind::Workspace, ID, json!({"owner": "u"}), attached("a", 1));
        for (address, fine) in [
            ("fd00:0:0:2::1:2", true),
            ("fd00:0:0:2::ffff", false),
            ("fd00:0:0:2:8000::1:0", false),
            ("fd00:0:0:2::1", false),
            ("fd00:0:0:3:1::1", false),
            ("fd00::1:0:0:1", true),
        ] {
            let outcome = writer.permit(Some(&on_a), &put(Kind::Workspace, ID, None, Some(at(address))));
            assert_eq!(outcome.is_ok(), fine, "{address}: {outcome:?}");
        }
    }
}
