//! The fabric as this node sees it: the store's objects in memory, read once into the model's types, and found by id or name.
use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_model::{
    Label, NodeName, WorkspaceId,
    object::{FabricSpec, Kind, NodeSpec, NodeStatus, Object, Role, Workspace},
};
use weft_store::{Change, ObjectExt};

/// The kinds of objects that every node watches.
pub const KINDS: [Kind; 3] = [Kind::Fabric, Kind::Node, Kind::Workspace];

/// A node as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenNode {
    /// What the operator decided.
    pub spec: NodeSpec,
    /// What it says of itself.
    pub status: NodeStatus,
    /// The object's version.
    pub version: u64,
}

/// A workspace as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenWorkspace {
    /// The workspace.
    pub workspace: Workspace,
    /// The object's version.
    pub version: u64,
}

/// The view. Empty until the node is a member.
#[derive(Debug, Default)]
pub struct Fabric {
    spec: Option<FabricSpec>,
    nodes: BTreeMap<NodeName, SeenNode>,
    workspaces: BTreeMap<WorkspaceId, SeenWorkspace>,
    by_name: HashMap<Label, BTreeSet<WorkspaceId>>,
    revisions: BTreeMap<(Kind, String), u64>,
}

/// What a change of the view did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Objects that are new or have changed.
    pub puts: Vec<Object>,
    /// Kinds and names of those that are gone.
    pub gone: Vec<(Kind, String)>,
}

impl Delta {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.gone.is_empty()
    }

    /// The workspaces that it touches.
    pub fn workspaces(&self) -> impl Iterator<Item = WorkspaceId> {
        let puts = self.puts.iter().map(|object| (object.kind, &object.name));
        let gone = self.gone.iter().map(|(kind, name)| (*kind, name));
        puts.chain(gone).filter(|(kind, _)| *kind == Kind::Workspace).filter_map(|(_, name)| name.parse().ok())
    }
}

/// Why a list was not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// This node belongs to the fabric, so every true list holds it and the fabric.
    #[error(
        "the store's list lacks {0}: nothing is removed; if the store was restored or replaced, join again with a new token"
    )]
    Lacks(String),
    /// Much shorter than what was known: believed when the next list says so too.
    #[error(
        "the store's list has {listed} {kind}s where {known} were known: nothing is removed until another list confirms it"
    )]
    Short {
        /// Of which kind.
        kind: Kind,
        /// How many were known.
        known: usize,
        /// How many it has.
        listed: usize,
    },
}

impl Fabric {
    /// The fabric's own object.
    #[must_use]
    pub fn spec(&self) -> Option<&FabricSpec> {
        self.spec.as_ref()
    }

    /// All nodes, by name.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeName, SeenNode> {
        &self.nodes
    }

    /// All workspaces, by id.
    #[must_use]
    pub fn workspaces(&self) -> &BTreeMap<WorkspaceId, SeenWorkspace> {
        &self.workspaces
    }

    /// The nodes that hold the store.
    pub fn seeds(&self) -> impl Iterator<Item = (&NodeName, &SeenNode)> {
        self.nodes.iter().filter(|(_, node)| node.spec.roles.contains(&Role::Seed))
    }

    /// The workspace with this name; the lowest id if nodes that could not see each other gave it to two.
    #[must_use]
    pub fn named(&self, name: &Label) -> Option<WorkspaceId> {
        self.by_name.get(name)?.first().copied()
    }

    /// Takes one change of the store; what is older than what is known, or cannot be read, changes nothing.
    pub fn apply(&mut self, change: &Change) -> Delta {
        let mut delta = Delta::default();
        match change {
            Change::Put(object) => {
                if self.put(object) {
                    delta.puts.push(object.clone());
                }
            }
            Change::Delete { kind, name, revision } => {
                let key = (*kind, name.clone());
                if self.revisions.get(&key).is_some_and(|known| known < revision) {
                    self.remove(&key);
                    delta.gone.push(key);
                }
            }
            Change::Resync => {}
        }
        delta
    }

    /// Takes a whole list. `node` is this node, which a true list must hold; `confirmed` says that the list before this
    /// one was as short.
    pub fn replace(
        &mut self,
        objects: &[Object],
        node: &NodeName,
        confirmed: bool,
    ) -> Result<Delta, (Delta, ListError)> {
        let doubt = self.doubt(objects, node, confirmed);
        let mut delta = Delta::default();
        for object in objects {
            if self.put(object) {
                delta.puts.push(object.clone());
            }
        }
        if let Some(doubt) = doubt {
            return Err((delta, doubt));
        }
        let listed: BTreeSet<(Kind, &str)> = objects.iter().map(|object| (object.kind, object.name.as_str())).collect();
        let known: Vec<_> = self.revisions.keys().cloned().collect();
        for key in known.into_iter().filter(|(kind, name)| !listed.contains(&(*kind, name.as_str()))) {
            self.remove(&key);
            delta.gone.push(key);
        }
        Ok(delta)
    }

    fn doubt(&self, objects: &[Object], node: &NodeName, confirmed: bool) -> Option<ListError> {
        let has = |kind, name: &str| objects.iter().any(|object| object.kind == kind && object.name == name);
        if !objects.iter().any(|object| object.kind == Kind::Fabric) {
            return Some(ListError::Lacks("the fabric".into()));
        }
        if !has(Kind::Node, node.as_str()) {
            return Some(ListError::Lacks(format!("this node, {node}")));
        }
        let known = [(Kind::Node, self.nodes.len()), (Kind::Workspace, self.workspaces.len())];
        known.into_iter().filter(|_| !confirmed).find_map(|(kind, known)| {
            let listed = objects.iter().filter(|object| object.kind == kind).count();
            // Half of a handful goes away every day; half of a fleet does not.
            (known > 8 && listed < known / 2).then_some(ListError::Short { kind, known, listed })
        })
    }

    fn put(&mut self, object: &Object) -> bool {
        let key = (object.kind, object.name.clone());
        if self.revisions.get(&key).is_some_and(|known| *known >= object.revision) {
            return false;
        }
        match self.read(object) {
            Ok(()) => {
                self.revisions.insert(key, object.revision);
                true
            }
            Err(reason) => {
                tracing::warn!(kind = %object.kind, name = %object.name, reason, "the store holds an object that this version cannot read; upgrade netd");
                false
            }
        }
    }

    fn read(&mut self, object: &Object) -> Result<(), String> {
        match object.kind {
            Kind::Fabric => self.spec = Some(object.read_spec().map_err(|error| error.to_string())?),
            Kind::Node => {
                let name: NodeName = object.name.parse().map_err(|error: weft_model::id::IdError| error.to_string())?;
                let spec = object.read_spec().map_err(|error| error.to_string())?;
                let status = object.read_status().map_err(|error| error.to_string())?;
                self.nodes.insert(name, SeenNode { spec, status, version: object.version });
            }
            Kind::Workspace => {
                let id: WorkspaceId =
                    object.name.parse().map_err(|error: weft_model::id::IdError| error.to_string())?;
                let spec = object.read_spec().map_err(|error| error.to_string())?;
                let status = object.read_status().map_err(|error| error.to_string())?;
                self.forget_name(id);
                let workspace = Workspace { id, spec, status };
                if let Some(name) = &workspace.spec.name {
                    self.by_name.entry(name.clone()).or_default().insert(id);
                }
                self.workspaces.insert(id, SeenWorkspace { workspace, version: object.version });
            }
            other => return Err(format!("{other} is not watched")),
        }
        Ok(())
    }

    fn forget_name(&mut self, id: WorkspaceId) {
        let Some(name) = self.workspaces.get(&id).and_then(|seen| seen.workspace.spec.name.clone()) else { return };
        if let Some(ids) = self.by_name.get_mut(&name) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_name.remove(&name);
            }
        }
    }

    fn remove(&mut self, key: &(Kind, String)) {
        self.revisions.remove(key);
        match key.0 {
            Kind::Fabric => self.spec = None,
            Kind::Node => {
                if let Ok(name) = key.1.parse::<NodeName>() {
                    self.nodes.remove(&name);
                }
            }
            Kind::Workspace => {
                if let Ok(id) = key.1.parse() {
                    self.forget_name(id);
                    self.workspaces.remove(&id);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;
    use weft_model::object::Author;

    pub(crate) fn object(
        kind: Kind,
        name: &str,
        revision: u64,
        spec: serde_json::Value,
        status: serde_json::Value,
    ) -> Object {
        let author = Author::User("root".into());
        Object { kind, name: name.into(), version: 1, revision, author, time_ms: 0, spec, status }
    }

    pub(crate) fn fabric_object() -> Object {
        let spec = json!({"prefixes": ["fd12:3456:789a::/48"], "domain": "ws.dev", "ca_pem": "none"});
        object(Kind::Fabric, "fabric", 1, spec, json!(null))
    }

    pub(crate) fn node_object(name: &str, subnet: u16, revision: u64) -> Object {
        let key = format!("{name:A<43}=");
        let spec = json!({"prefix": format!("fd12:3456:789a:{subnet:x}::/64"), "wireguard_public_key": key});
        object(
            Kind::Node,
            name,
            revision,
            spec,
            json!({"endpoints": ["198.18.0.9:51820"], "addresses": ["198.18.0.9"]}),
        )
    }

    pub(crate) fn workspace_object(id: &str, name: Option<&str>, revision: u64) -> Object {
        let spec = json!({"name": name, "owner": "ann", "ports": [{"port": 80}]});
        object(Kind::Workspace, id, revision, spec, json!({"attachment": null}))
    }

    fn list(workspaces: u64) -> Vec<Object> {
        let id = |number: u64| {
            WorkspaceId::from_random((number + (1 << 40)).to_be_bytes().repeat(2)[..10].try_into().unwrap())
        };
        let mut objects = vec![fabric_object(), node_object("a", 7, 2), node_object("b", 8, 3)];
        objects.extend((0..workspaces).map(|number| workspace_object(id(number).as_str(), None, 10 + number)));
        objects.dedup_by(|left, right| left.name == right.name);
        objects
    }

    #[test]
    fn a_view_is_read_changed_and_searched_by_name() {
        let (mut fabric, me) = (Fabric::default(), "a".parse().unwrap());
        assert_eq!(fabric.replace(&list(0), &me, false).unwrap().puts.len(), 3);
        assert_eq!(fabric.replace(&list(0), &me, false).unwrap(), Delta::default());
        let delta = fabric.apply(&Change::Put(workspace_object("aaaaaaaaaa", Some("box"), 20)));
        assert_eq!(delta.workspaces().count(), 1);
        let (name, id) = ("box".parse().unwrap(), "aaaaaaaaaa".parse().unwrap());
        assert_eq!(fabric.named(&name), Some(id));
        assert!(fabric.apply(&Change::Put(workspace_object("aaaaaaaaaa", Some("old"), 19))).is_empty(), "older");
        fabric.apply(&Change::Put(workspace_object("aaaaaaaaaa", Some("crate"), 21)));
        assert_eq!(fabric.named(&name), None);
        let gone = Change::Delete { kind: Kind::Workspace, name: "aaaaaaaaaa".into(), revision: 22 };
        assert_eq!(fabric.apply(&gone).gone.len(), 1);
        assert!(fabric.workspaces().is_empty());
        assert_eq!(fabric.named(&"crate".parse().unwrap()), None);
    }

    #[test]
    fn a_list_without_this_node_or_the_fabric_removes_nothing() {
        let (mut fabric, me) = (Fabric::default(), "a".parse().unwrap());
        fabric.replace(&list(0), &me, false).unwrap();
        for bad in
            [vec![], vec![fabric_object()], vec![node_object("a", 7, 9)], vec![fabric_object(), node_object("b", 8, 9)]]
        {
            let (_, error) = fabric.replace(&bad, &me, true).unwrap_err();
            assert!(matches!(error, ListError::Lacks(_)));
            assert_eq!(fabric.nodes().len(), 2);
            assert!(fabric.spec().is_some());
        }
    }

    #[test]
    fn a_much_shorter_list_removes_nothing_until_it_is_confirmed() {
        let (mut fabric, me) = (Fabric::default(), "a".parse().unwrap());
        fabric.replace(&list(40), &me, false).unwrap();
        let known = fabric.workspaces().len();
        assert!(known > 8);
        let (_, error) = fabric.replace(&list(2), &me, false).unwrap_err();
        assert!(matches!(error, ListError::Short { kind: Kind::Workspace, .. }));
        assert_eq!(fabric.workspaces().len(), known);
        fabric.replace(&list(2), &me, true).unwrap();
        assert!(fabric.workspaces().len() <= 2);
    }

    #[test]
    fn an_object_that_cannot_be_read_keeps_the_one_before_it() {
        let mut fabric = Fabric::default();
        fabric.apply(&Change::Put(node_object("a", 7, 1)));
        let broken = object(Kind::Node, "a", 2, json!({"prefix": "fd12::/48"}), json!(null));
        assert!(fabric.apply(&Change::Put(broken)).is_empty());
        assert_eq!(fabric.nodes().len(), 1);
    }
}
