//! Attach and detach: local, durable before the kernel changes, published afterwards. A crash between any two steps leaves
//! either nothing or something that the next start completes.
use std::{
    path::Path,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use weft_model::{
    ApiError, ErrorCode, Label, NodePrefix, WorkspaceAddress, WorkspaceId,
    api::{AttachRequest, WorkspaceView},
    object::{Author, Kind, Port, WorkspaceSpec},
};
use weft_plan::LinkSpec;
use weft_store::{Change, Store, Txn};

use crate::{
    clock::unix_ms,
    fault,
    journal::{Entry, NetnsId},
    node::{Member, Node, internal, invalid, workspace_graph},
    state::State,
    targets::Verdict,
    view,
};

/// How many ports of one workspace may have URLs.
pub const PORT_LIMIT: usize = 64;
/// How long an owner's text may be, in bytes.
const OWNER_LIMIT: usize = 256;
/// How long an attach waits for the data path of a node that has just started.
const FOUNDED: Duration = Duration::from_secs(5);
/// How often an id or address is drawn again before the draw counts as broken.
const DRAWS: usize = 64;

impl Node {
    /// `POST /v1/workspaces`.
    pub async fn attach(&self, request: AttachRequest, caller: &str) -> Result<WorkspaceView, ApiError> {
        let started = Instant::now();
        let result = self.try_attach(request, caller).await;
        let mut stats = self.stats();
        match &result {
            Ok(view) => {
                stats.count += 1;
                stats.seconds += started.elapsed().as_secs_f64();
                tracing::info!(workspace = %view.id, address = ?view.address, took = ?started.elapsed(), "attached");
            }
            Err(error) => {
                stats.failed += 1;
                tracing::warn!(%error, "refused to attach");
            }
        }
        result
    }

    async fn try_attach(&self, request: AttachRequest, caller: &str) -> Result<WorkspaceView, ApiError> {
        let member = self.require_member()?.clone();
        check(&request)?;
        let netns_id = self.data_path.netns(&request.netns)?;
        self.wait_founded().await?;
        let began = self.clock.now();
        let entry = self.reserve(&member, request, netns_id, caller)?;
        let id = entry.id;
        let mut graph = workspace_graph(began);
        graph.begin("address", began);
        self.targets().workspaces.insert(id, graph);
        fault::point("attach-reserved");
        let written = entry.clone();
        if let Err(error) = self.journalled(move |journal| journal.put(&written)).await {
            self.write().reserved.remove(&id);
            self.targets().workspaces.remove(&id);
            return Err(error);
        }
        fault::point("attach-journalled");
        {
            let mut state = self.write();
            state.reserved.remove(&id);
            state.linking.insert(id);
            state.entries.insert(id, entry.clone());
        }
        self.observe_workspace(id, "address", Verdict::Done);
        if let Err(error) = self.link(&entry).await {
            self.undo(id).await;
            return Err(error);
        }
        fault::point("attach-linked");
        let view = {
            let mut state = self.write();
            state.linking.remove(&id);
            state.announce([id]);
            state.view(id)
        };
        self.refresh_published(vec![id]);
        self.changed.notify_one();
        self.unpublished.notify_one();
        view.ok_or_else(|| internal(&format!("workspace {id} went away while it was attached")))
    }

    /// Walls come before links: waits until the kernel has once been as it should be.
    async fn wait_founded(&self) -> Result<(), ApiError> {
        let mut founded = self.founded.subscribe();
        let waited = timeout(FOUNDED, founded.wait_for(|founded| *founded)).await;
        if matches!(waited, Ok(Ok(_))) {
            return Ok(());
        }
        let errors = self.read().reconcile_errors.join("; ");
        let why = if errors.is_empty() { "the fabric is not known here yet".into() } else { errors };
        let hint = "see netctl explain, and netd's log; then try again";
        Err(ApiError::new(ErrorCode::Unavailable, format!("this node's data path is not set up yet: {why}"), hint))
    }

    /// Makes the link of an attachment and records its targets.
    async fn link(&self, entry: &Entry) -> Result<(), ApiError> {
        let spec = LinkSpec { ws: view::attached(entry), mtu: self.read().mtu };
        let result = self.data_path.attach(&spec, &entry.netns).await;
        match &result {
            Ok(()) => {
                self.observe_workspace(entry.id, "link", Verdict::Done);
                self.observe_workspace(entry.id, "policy", Verdict::Done);
                let verdict = self.clat_verdict();
                self.observe_workspace(entry.id, "clat", verdict);
            }
            Err(error) => self.observe_workspace(entry.id, "link", Verdict::Failed(error.to_string())),
        }
        result
    }

    /// Whether workspaces here have IPv4.
    pub fn clat_verdict(&self) -> Verdict {
        match view::nat64(&self.config, &self.read().facts) {
            Some(_) => Verdict::Done,
            None if self.config.nat64.enabled => Verdict::Skipped("this node has no IPv4 uplink".into()),
            None => Verdict::Skipped("nat64.enabled is false in netd.toml".into()),
        }
    }

    /// An attach that failed leaves nothing behind.
    async fn undo(&self, id: WorkspaceId) {
        if let Err(error) = self.journalled(move |journal| journal.remove(id, false)).await {
            tracing::error!(workspace = %id, %error, "cannot take a failed attach out of the journal; detach it with netctl detach");
            self.write().linking.remove(&id);
            return;
        }
        {
            let mut state = self.write();
            state.linking.remove(&id);
            state.entries.remove(&id);
            state.announce([id]);
        }
        self.targets().workspaces.remove(&id);
        if let Err(error) = self.data_path.detach(id).await {
            tracing::warn!(workspace = %id, %error, "cannot remove what a failed attach left; the next reconciliation tries again");
        }
        self.changed.notify_one();
    }

    /// Checks a request against everything that is taken, and takes what it needs, in one step.
    fn reserve(
        &self,
        member: &Member,
        request: AttachRequest,
        netns_id: NetnsId,
        caller: &str,
    ) -> Result<Entry, ApiError> {
        let mut state = self.write();
        if let Some(other) = state.taken().find(|entry| entry.netns_id == netns_id) {
            let name = other.spec.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            let message = format!("{} is attached already, as workspace {}{name}", request.netns.display(), other.id);
            let hint = format!("detach it first with netctl detach {}", other.id);
            return Err(ApiError::new(ErrorCode::Conflict, message, hint).blame("netns", request.netns.display()));
        }
        if state.taken().count() >= self.config.max_workspaces {
            let message = format!("this node carries {} workspaces, as many as it may", self.config.max_workspaces);
            let hint = "detach one, attach on another node, or raise max_workspaces in netd.toml";
            return Err(ApiError::new(ErrorCode::Limit, message, hint));
        }
        let existing = existing(&state, &request)?;
        let id = match existing {
            Some(id) => id,
            None => draw_id(&state)?,
        };
        let (spec, changed_by) = spec(&state, existing, &request, caller);
        let seen = state.fabric.workspaces().get(&id);
        let last =
            seen.and_then(|seen| seen.workspace.status.attachment.as_ref()).map_or(0, |attachment| attachment.epoch);
        let since_ms = unix_ms();
        let entry = Entry {
            id,
            spec,
            changed_by,
            address: draw_address(&state, member.me.prefix)?,
            // The clock keeps it growing over a detach, after which nobody remembers the last one.
            epoch: since_ms.max(last + 1),
            netns: request.netns,
            netns_id,
            since_ms,
        };
        state.reserved.insert(id, entry.clone());
        Ok(entry)
    }

    /// `DELETE /v1/workspaces/{x}`.
    pub async fn detach(&self, text: &str, forget: bool, caller: &str) -> Result<WorkspaceId, ApiError> {
        let member = self.require_member()?.clone();
        let id = self.find(text)?;
        let here = self.read().entries.contains_key(&id);
        if !here {
            self.refuse_elsewhere(id, text, &member)?;
            if forget {
                // A stopped workspace is nobody's but the store's: whoever asks hears what the store says.
                let txn = Txn::new(Author::User(caller.into()), unix_ms()).delete(Kind::Workspace, id.as_str());
                let revision = member.store.commit(txn).await?;
                let gone = Change::Delete { kind: Kind::Workspace, name: id.to_string(), revision };
                self.take_change(&gone).await;
            }
            return Ok(id);
        }
        self.journalled(move |journal| journal.remove(id, forget)).await?;
        fault::point("detach-journalled");
        {
            let mut state = self.write();
            state.entries.remove(&id);
            state.linking.remove(&id);
            state.refused.remove(&id);
            if forget {
                state.forgotten.insert(id);
            }
            state.announce([id]);
        }
        self.targets().workspaces.remove(&id);
        let result = self.data_path.detach(id).await;
        fault::point("detach-unlinked");
        self.changed.notify_one();
        self.unpublished.notify_one();
        tracing::info!(workspace = %id, forget, "detached");
        result.map(|()| id)
    }

    fn refuse_elsewhere(&self, id: WorkspaceId, text: &str, member: &Member) -> Result<(), ApiError> {
        let node = self.read().workspace(id).and_then(|(_, attachment)| attachment).map(|attachment| attachment.node);
        match node.filter(|node| *node != member.me.node) {
            Some(node) => {
                let message = format!("workspace {text} is attached on node {node}");
                Err(ApiError::new(ErrorCode::Conflict, message, format!("run netctl detach on {node}")))
            }
            None => Ok(()),
        }
    }

    /// `PUT` and `DELETE /v1/workspaces/{x}/ports/{port}`.
    pub async fn change_ports(&self, text: &str, caller: &str, change: PortChange) -> Result<WorkspaceView, ApiError> {
        let member = self.require_member()?.clone();
        let id = self.find(text)?;
        let mut spec =
            self.read().workspace(id).map(|(spec, _)| spec.clone()).ok_or_else(|| internal(&"a workspace vanished"))?;
        change.apply(&mut spec, text)?;
        let here = self.read().entries.get(&id).cloned();
        if let Some(entry) = here {
            let entry = Entry { spec, changed_by: Some(caller.into()), ..entry };
            let written = entry.clone();
            self.journalled(move |journal| journal.put(&written)).await?;
            let mut state = self.write();
            if let Some(known) = state.entries.get_mut(&id) {
                *known = entry;
            }
            state.announce([id]);
        } else {
            self.change_elsewhere(&member, id, &spec, caller).await?;
        }
        self.changed.notify_one();
        self.unpublished.notify_one();
        let view = self.read().view(id);
        view.ok_or_else(|| internal(&format!("workspace {id} went away")))
    }

    /// Changes the spec of a workspace that is not here: its truth is in the store.
    async fn change_elsewhere(
        &self,
        member: &Member,
        id: WorkspaceId,
        spec: &WorkspaceSpec,
        caller: &str,
    ) -> Result<(), ApiError> {
        let version = self.read().fabric.workspaces().get(&id).map_or(0, |seen| seen.version);
        let txn = Txn::new(Author::User(caller.into()), unix_ms())
            .expect_version(Kind::Workspace, id.as_str(), version)
            .put_spec(Kind::Workspace, id.as_str(), spec);
        member.store.commit(txn).await?;
        self.refresh_object(&*member.store, id).await?;
        Ok(())
    }

    /// Reads a workspace's object again, so that a write of ours is seen at once.
    pub async fn refresh_object(&self, store: &dyn Store, id: WorkspaceId) -> Result<(), weft_store::StoreError> {
        let object = store.get(Kind::Workspace, id.as_str()).await?;
        let delta = {
            let mut state = self.write();
            let delta = match object {
                Some(object) => state.fabric.apply(&Change::Put(object)),
                None => return Ok(()),
            };
            state.announce([id]);
            delta
        };
        self.remember(delta).await;
        Ok(())
    }
}

/// A change of a workspace's ports.
#[derive(Debug, Clone, Copy)]
pub enum PortChange {
    /// Give a port a URL, or change who may open it.
    Expose(Port),
    /// Take it away.
    Unexpose(u16),
}

impl PortChange {
    fn apply(self, spec: &mut WorkspaceSpec, text: &str) -> Result<(), ApiError> {
        match self {
            Self::Expose(port) => {
                check_port(port.port)?;
                if let Some(known) = spec.ports.iter_mut().find(|known| known.port == port.port) {
                    *known = port;
                    return Ok(());
                }
                if spec.ports.len() >= PORT_LIMIT {
                    return Err(too_many_ports(spec.ports.len() + 1));
                }
                spec.ports.push(port);
                spec.ports.sort_unstable_by_key(|port| port.port);
                Ok(())
            }
            Self::Unexpose(port) => {
                let before = spec.ports.len();
                spec.ports.retain(|known| known.port != port);
                if spec.ports.len() == before {
                    let message = format!("port {port} of workspace {text} has no URL");
                    return Err(ApiError::new(ErrorCode::NotFound, message, "see netctl show for those that have one"));
                }
                Ok(())
            }
        }
    }
}

fn too_many_ports(count: usize) -> ApiError {
    let message = format!("{count} ports are more than the {PORT_LIMIT} that a workspace may have");
    ApiError::new(ErrorCode::Limit, message, "take one away with netctl unexpose").blame("ports", count)
}

fn check_port(port: u16) -> Result<(), ApiError> {
    if port == 0 { Err(invalid("0 is no TCP port: give 1 to 65535", "port", port)) } else { Ok(()) }
}

/// What a request must be whoever is attached.
fn check(request: &AttachRequest) -> Result<(), ApiError> {
    if request.netns == Path::new("") {
        return Err(invalid("no network namespace is named: give a path, as in /run/netns/NAME", "netns", ""));
    }
    if request.ports.len() > PORT_LIMIT {
        return Err(too_many_ports(request.ports.len()));
    }
    for (place, port) in request.ports.iter().enumerate() {
        check_port(port.port)?;
        if request.ports.iter().take(place).any(|other| other.port == port.port) {
            return Err(invalid(&format!("port {} is named twice: name it once", port.port), "ports", port.port));
        }
    }
    let owner = request.owner.as_deref().unwrap_or("-");
    if owner.is_empty() || owner.len() > OWNER_LIMIT || owner.chars().any(char::is_control) {
        return Err(invalid(
            "the owner is not usable: give 1 to 256 bytes without control characters",
            "owner",
            owner.escape_debug(),
        ));
    }
    Ok(())
}

/// The stopped workspace that a request means; `None` if it asks for a new one.
fn existing(state: &State, request: &AttachRequest) -> Result<Option<WorkspaceId>, ApiError> {
    if let Some(id) = request.id {
        return match state.resolve(id.as_str()).filter(|found| *found == id) {
            Some(id) => stopped(state, id, "id", id.as_str()).map(Some),
            None => {
                let hint = "see netctl list, or leave the id out to make a new workspace";
                Err(ApiError::new(ErrorCode::NotFound, format!("there is no workspace {id}"), hint).blame("id", id))
            }
        };
    }
    let Some(name) = &request.name else { return Ok(None) };
    if let Some(entry) = state.taken().find(|entry| entry.spec.name.as_ref() == Some(name)) {
        return Err(taken(name, entry.id, "here"));
    }
    let Some(id) = state.resolve(name.as_str()) else { return Ok(None) };
    let id = stopped(state, id, "name", name.as_str())?;
    let owner = state.workspace(id).map(|(spec, _)| spec.owner.clone());
    match (&request.owner, owner) {
        (Some(asks), Some(owner)) if *asks != owner => {
            let message = format!("the name {name} belongs to workspace {id} of {owner}");
            Err(ApiError::new(ErrorCode::Conflict, message, "choose another name").blame("name", name))
        }
        _ => Ok(Some(id)),
    }
}

fn taken(name: &Label, id: WorkspaceId, place: &str) -> ApiError {
    let message = format!("the name {name} is taken by workspace {id}, attached {place}");
    ApiError::new(ErrorCode::Conflict, message, format!("choose another name, or detach {id} first"))
        .blame("name", name)
}

fn stopped(state: &State, id: WorkspaceId, field: &str, value: &str) -> Result<WorkspaceId, ApiError> {
    if state.reserved.contains_key(&id) {
        let message = format!("workspace {id} is just being attached");
        return Err(ApiError::new(ErrorCode::Conflict, message, "wait for it").blame(field, value));
    }
    let Some(attachment) = state.workspace(id).and_then(|(_, attachment)| attachment) else { return Ok(id) };
    let message = format!("workspace {id} is attached on node {}", attachment.node);
    let hint = format!("detach it first: netctl detach {id}, on {}", attachment.node);
    Err(ApiError::new(ErrorCode::Conflict, message, hint).blame(field, value))
}

/// The spec of an attachment: what is known of a workspace, changed by what the request says; and who changed it.
fn spec(
    state: &State,
    existing: Option<WorkspaceId>,
    request: &AttachRequest,
    caller: &str,
) -> (WorkspaceSpec, Option<String>) {
    let known = existing.and_then(|id| state.workspace(id)).map(|(spec, _)| spec.clone());
    let mut spec = known.clone().unwrap_or_else(|| WorkspaceSpec {
        name: None,
        owner: caller.into(),
        group: None,
        ports: Vec::new(),
    });
    spec.name = request.name.clone().or(spec.name);
    spec.owner = request.owner.clone().unwrap_or(spec.owner);
    spec.group = request.group.clone().or(spec.group);
    if !request.ports.is_empty() {
        spec.ports = request.ports.clone();
        spec.ports.sort_unstable_by_key(|port| port.port);
    }
    let changed = known.is_some_and(|known| known != spec);
    (spec, changed.then(|| caller.into()))
}

fn random<const N: usize>() -> Result<[u8; N], ApiError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| internal(&format!("the system gives no random numbers: {error}")))?;
    Ok(bytes)
}

fn draw_id(state: &State) -> Result<WorkspaceId, ApiError> {
    for _ in 0..DRAWS {
        let id = WorkspaceId::from_random(random()?);
        let used = state.fabric.workspaces().contains_key(&id) || state.forgotten.contains(&id);
        if !used && !state.taken().any(|entry| entry.id == id) {
            return Ok(id);
        }
    }
    Err(internal(&"every drawn id was taken"))
}

fn draw_address(state: &State, prefix: NodePrefix) -> Result<WorkspaceAddress, ApiError> {
    for _ in 0..DRAWS {
        let Some(address) = prefix.draw(random()?) else { continue };
        // What was moved away from here keeps its address: it is not drawn again.
        let moved = state.fabric.workspaces().values().filter_map(|seen| seen.workspace.status.attachment.as_ref());
        let mut used =
            moved.map(|attachment| attachment.address).chain(state.taken().map(|entry| entry.address.address()));
        if !used.any(|used| used == address.address()) {
            return Ok(address);
        }
    }
    Err(internal(&"every drawn address was taken"))
}
