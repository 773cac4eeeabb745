//! What netd has in memory: its own attachments, its view of the fabric, and what other parts of the node said last.
//! All questions of the API are answered from here; nothing here waits for anything.
use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::sync::broadcast;
use weft_kernel::{Counters, Facts};
use weft_model::{
    NodeName, WorkspaceId,
    api::{Route, RouteEvent, WorkspaceView},
    object::{Attachment, Port, WorkspaceSpec, WorkspaceStatus},
    url::PortHost,
};

use crate::{fabric::Fabric, journal::Entry, wire::TunnelState};

/// How many route events a slow listener may be behind before it gets a snapshot instead.
const ROUTE_BACKLOG: usize = 1024;

/// The state.
#[derive(Debug)]
pub struct State {
    /// This node, once it is a member.
    pub node: Option<NodeName>,
    /// Attachments of this node that the journal holds.
    pub entries: BTreeMap<WorkspaceId, Entry>,
    /// Attachments that are being made: not in the journal yet, but their ids, addresses, names and namespaces are taken.
    pub reserved: BTreeMap<WorkspaceId, Entry>,
    /// Attachments whose link an attach request is making.
    pub linking: BTreeSet<WorkspaceId>,
    /// Workspaces that are to be deleted from the store.
    pub forgotten: BTreeSet<WorkspaceId>,
    /// The fabric.
    pub fabric: Fabric,
    /// What the kernel said last of uplink and addresses.
    pub facts: Facts,
    /// MTU of tunnel and links.
    pub mtu: u32,
    /// What the last reconciliation could not do.
    pub reconcile_errors: Vec<String>,
    /// Why the store cannot be reached; `None` while it can.
    pub store_error: Option<String>,
    /// Why the store refused what this node says of a workspace.
    pub refused: HashMap<WorkspaceId, String>,
    /// What the tunnel's process said last; an error while it does not answer.
    pub tunnel: Result<TunnelState, String>,
    /// The data path's counters.
    pub counters: Counters,
    routes: BTreeMap<WorkspaceId, Route>,
    events: broadcast::Sender<RouteEvent>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            node: None,
            entries: BTreeMap::new(),
            reserved: BTreeMap::new(),
            linking: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            fabric: Fabric::default(),
            facts: Facts::default(),
            mtu: 1420,
            reconcile_errors: Vec::new(),
            store_error: Some("not asked yet".into()),
            refused: HashMap::new(),
            tunnel: Err("not asked yet".into()),
            counters: Counters::default(),
            routes: BTreeMap::new(),
            events: broadcast::channel(ROUTE_BACKLOG).0,
        }
    }
}

/// What the store should hold of one object and does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unpublished {
    /// An attached workspace that the store does not know.
    New(WorkspaceId, WorkspaceSpec, WorkspaceStatus),
    /// Another status: attached, or not any more. With the object's version.
    Status(WorkspaceId, WorkspaceStatus, u64),
    /// Another spec, which this user wrote here. With the object's version.
    Spec(WorkspaceId, WorkspaceSpec, String, u64),
    /// It is to be deleted.
    Forget(WorkspaceId),
}

impl Unpublished {
    /// The workspace.
    #[must_use]
    pub fn id(&self) -> WorkspaceId {
        match self {
            Self::New(id, ..) | Self::Status(id, ..) | Self::Spec(id, ..) | Self::Forget(id) => *id,
        }
    }
}

impl State {
    /// Everything that is attached here or is just being attached.
    pub fn taken(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().chain(self.reserved.values())
    }

    /// The workspace with this id or name; an id is looked up first.
    #[must_use]
    pub fn resolve(&self, text: &str) -> Option<WorkspaceId> {
        let id = text.parse().ok().filter(|id| self.knows(*id));
        id.or_else(|| {
            let name = text.parse().ok()?;
            let here = self.entries.values().find(|entry| entry.spec.name.as_ref() == Some(&name));
            here.map(|entry| entry.id).or_else(|| self.fabric.named(&name).filter(|id| self.knows(*id)))
        })
    }

    fn knows(&self, id: WorkspaceId) -> bool {
        let listed = self.fabric.workspaces().contains_key(&id) && !self.forgotten.contains(&id);
        self.entries.contains_key(&id) || listed
    }

    /// All workspaces of the fabric that this node knows.
    #[must_use]
    pub fn ids(&self) -> BTreeSet<WorkspaceId> {
        let listed = self.fabric.workspaces().keys().filter(|id| !self.forgotten.contains(id));
        self.entries.keys().chain(listed).copied().collect()
    }

    /// The status that this node publishes of a workspace attached here.
    fn own_status(&self, entry: &Entry) -> WorkspaceStatus {
        let attachment = self.node.as_ref().map(|node| Attachment {
            node: node.clone(),
            address: entry.address.address(),
            epoch: entry.epoch,
            since_ms: entry.since_ms,
        });
        WorkspaceStatus { attachment }
    }

    /// Spec and attachment: of what is attached here the journal's, of everything else the store's.
    #[must_use]
    pub fn workspace(&self, id: WorkspaceId) -> Option<(&WorkspaceSpec, Option<Attachment>)> {
        if let Some(entry) = self.entries.get(&id) {
            return Some((&entry.spec, self.own_status(entry).attachment));
        }
        if self.forgotten.contains(&id) {
            return None;
        }
        let seen = &self.fabric.workspaces().get(&id)?.workspace;
        // What the store still says of this node, but the journal does not, is over.
        let attachment =
            seen.status.attachment.clone().filter(|attachment| Some(&attachment.node) != self.node.as_ref());
        Some((&seen.spec, attachment))
    }

    /// A workspace as the API shows it.
    #[must_use]
    pub fn view(&self, id: WorkspaceId) -> Option<WorkspaceView> {
        let (spec, attachment) = self.workspace(id)?;
        let here = self.entries.contains_key(&id);
        let domain = self.fabric.spec().map_or("weft.internal", |fabric| fabric.domain.as_str());
        Some(WorkspaceView {
            id,
            name: spec.name.clone(),
            owner: spec.owner.clone(),
            group: spec.group.clone(),
            node: attachment.as_ref().map(|attachment| attachment.node.clone()),
            address: attachment.as_ref().map(|attachment| attachment.address),
            ifname: here.then(|| id.ifname()),
            ports: spec.ports.clone(),
            urls: spec.ports.iter().map(|port| url(id, spec, *port, domain)).collect(),
            dns: self.fabric.spec().and_then(|fabric| fabric.prefixes.first()).map(weft_model::FabricPrefix::dns),
            mtu: here.then_some(self.mtu),
            published: !here || self.unpublished_of(id).is_none(),
        })
    }

    /// What the store lacks of one workspace.
    #[must_use]
    pub fn unpublished_of(&self, id: WorkspaceId) -> Option<Unpublished> {
        let node = self.node.as_ref()?;
        let seen = self.fabric.workspaces().get(&id);
        if self.forgotten.contains(&id) {
            return Some(Unpublished::Forget(id));
        }
        let Some(entry) = self.entries.get(&id) else {
            let seen = seen?;
            let stale = seen.workspace.status.attachment.as_ref().is_some_and(|attachment| attachment.node == *node);
            let busy = self.reserved.contains_key(&id);
            return (stale && !busy).then(|| Unpublished::Status(id, WorkspaceStatus::default(), seen.version));
        };
        let status = self.own_status(entry);
        let Some(seen) = seen else { return Some(Unpublished::New(id, entry.spec.clone(), status)) };
        if seen.workspace.status != status {
            return Some(Unpublished::Status(id, status, seen.version));
        }
        match &entry.changed_by {
            Some(user) if seen.workspace.spec != entry.spec => {
                Some(Unpublished::Spec(id, entry.spec.clone(), user.clone(), seen.version))
            }
            _ => None,
        }
    }

    /// Everything that the store lacks of this node's workspaces.
    #[must_use]
    pub fn unpublished(&self) -> Vec<Unpublished> {
        let mine = |attachment: &Attachment| Some(&attachment.node) == self.node.as_ref();
        let seen = self.fabric.workspaces().iter();
        let stale =
            seen.filter(|(_, seen)| seen.workspace.status.attachment.as_ref().is_some_and(mine)).map(|(id, _)| id);
        let ids: BTreeSet<WorkspaceId> = self.entries.keys().chain(&self.forgotten).chain(stale).copied().collect();
        ids.into_iter().filter_map(|id| self.unpublished_of(id)).collect()
    }

    /// Tells the listeners what has become of these workspaces. Call it after every change that could concern a route.
    pub fn announce(&mut self, ids: impl IntoIterator<Item = WorkspaceId>) {
        for id in ids {
            let route = self.workspace(id).map(|(spec, attachment)| Route {
                id,
                name: spec.name.clone(),
                address: attachment.as_ref().map(|attachment| attachment.address),
                epoch: attachment.as_ref().map_or(0, |attachment| attachment.epoch),
                ports: spec.ports.clone(),
            });
            let event = match route {
                Some(route) if self.routes.get(&id) == Some(&route) => continue,
                Some(route) => {
                    self.routes.insert(id, route.clone());
                    RouteEvent::Upsert { route }
                }
                None if self.routes.remove(&id).is_some() => RouteEvent::Remove { id },
                None => continue,
            };
            // Nobody listening is no error.
            let _ = self.events.send(event);
        }
    }

    /// Everything that a proxy needs, and the changes from exactly here on. `None` while the fabric is not known.
    #[must_use]
    pub fn listen(&self, dial_from: std::net::Ipv6Addr) -> Option<(RouteEvent, broadcast::Receiver<RouteEvent>)> {
        let domain = self.fabric.spec()?.domain.clone();
        let snapshot = RouteEvent::Snapshot { domain, dial_from, routes: self.routes.values().cloned().collect() };
        Some((snapshot, self.events.subscribe()))
    }
}

/// The URL of a port: by name if the label fits, else by id.
fn url(id: WorkspaceId, spec: &WorkspaceSpec, port: Port, domain: &str) -> String {
    let by_id = || PortHost { port: port.port, workspace: id.as_str().parse().expect("an id is a label") };
    let by_name = spec.name.clone().map(|workspace| PortHost { port: port.port, workspace });
    let host = by_name.filter(PortHost::fits).unwrap_or_else(by_id);
    format!("https://{}/", host.host(domain))
}
