//! The node: what its parts share, and how it becomes a member of a fabric.
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use tokio::sync::{Notify, watch};
use weft_model::{
    ApiError, ErrorCode, NodeName, WorkspaceId,
    address::NON_GLOBAL_V4,
    api::{InitRequest, JoinRequest, MemberReply, TokenReply, TokenRequest},
    object::{Author, Kind, Role},
    targets::Explanation,
};
use weft_store::{
    Store,
    embedded::Embedded,
    membership::{Authority, Identity, Init, MembershipError, Token, create_token, init_fabric, join},
    seed::SeedStore,
};

use crate::{
    clock::{Clock, unix_ms},
    config::{Config, Paths},
    datapath::DataPath,
    journal::{Journal, JournalError},
    state::State,
    targets::{Graph, Moment, Verdict, declared},
    view::{self, Me},
    wire::Tunnel,
};

/// The domain of a fabric whose maker named none.
const DOMAIN: &str = "weft.internal";
/// The longest domain: a port's label and the dot before it still fit into a name (RFC 1035 2.3.4).
const DOMAIN_LIMIT: usize = 185;

/// A node that belongs to a fabric.
pub struct Member {
    /// Its name and prefix.
    pub me: Me,
    /// Its keys and certificate.
    pub identity: Identity,
    /// The fabric's objects.
    pub store: Arc<dyn Store>,
    /// Signs certificates; on seeds only.
    pub authority: Option<Arc<Authority>>,
}

/// The targets of the node and of its workspaces.
#[derive(Debug)]
pub struct Targets {
    /// The node's.
    pub node: Graph,
    /// The workspaces' that are attached here.
    pub workspaces: HashMap<WorkspaceId, Graph>,
}

/// How attaches went, for the metrics.
#[derive(Debug, Default, Clone, Copy)]
pub struct AttachStats {
    /// How many succeeded.
    pub count: u64,
    /// The time that they took together, in seconds.
    pub seconds: f64,
    /// How many failed.
    pub failed: u64,
    /// How many reconciliations there were.
    pub reconciled: u64,
    /// How many of them left something undone.
    pub unreconciled: u64,
    /// Whether the last one did.
    pub unsound: bool,
}

/// Everything that the parts of netd share.
pub struct Node {
    /// What the operator decided.
    pub config: Config,
    /// Where things are.
    pub paths: Paths,
    /// The clocks.
    pub clock: Clock,
    /// The kernel.
    pub data_path: Arc<dyn DataPath>,
    /// The tunnel's process.
    pub tunnel: Arc<dyn Tunnel>,
    /// The node's own truth.
    pub journal: Arc<Journal>,
    /// Wakes the reconciliation.
    pub changed: Notify,
    /// Wakes the publication.
    pub unpublished: Notify,
    /// Wakes the look at the targets.
    pub look: Notify,
    /// Told once, when the node becomes a member.
    pub joined: Notify,
    /// Wakes who waits to ask the store again: something that the store is reached by has come back.
    pub retry_store: Notify,
    /// Whether the kernel has been as it should be since this process started: before that nothing is attached.
    pub founded: watch::Sender<bool>,
    state: RwLock<State>,
    targets: Mutex<Targets>,
    stats: Mutex<AttachStats>,
    member: OnceLock<Arc<Member>>,
    joining: tokio::sync::Mutex<()>,
}

impl Node {
    /// A node as its disk knows it: attachments and the last view of the fabric are there before anything answers.
    pub fn open(
        config: Config,
        paths: Paths,
        data_path: Arc<dyn DataPath>,
        tunnel: Arc<dyn Tunnel>,
    ) -> Result<Arc<Self>, JournalError> {
        let clock = Clock::start();
        let journal = Journal::open(&paths.journal())?;
        let mut state = State::default();
        for object in journal.view()? {
            state.fabric.apply(&weft_store::Change::Put(object));
        }
        state.entries = journal.entries()?.into_iter().map(|entry| (entry.id, entry)).collect();
        state.forgotten = journal.forgotten()?.into_iter().collect();
        let now = clock.now();
        let mut workspaces = HashMap::new();
        for id in state.entries.keys() {
            let mut graph = workspace_graph(now);
            graph.observe("address", Verdict::Done, now);
            workspaces.insert(*id, graph);
        }
        let node = Graph::new(declared::node(), now).expect("the node's targets are declared without a circle");
        Ok(Arc::new(Self {
            config,
            paths,
            clock,
            data_path,
            tunnel,
            journal: Arc::new(journal),
            changed: Notify::new(),
            unpublished: Notify::new(),
            look: Notify::new(),
            joined: Notify::new(),
            retry_store: Notify::new(),
            founded: watch::channel(false).0,
            state: RwLock::new(state),
            targets: Mutex::new(Targets { node, workspaces }),
            stats: Mutex::default(),
            member: OnceLock::new(),
            joining: tokio::sync::Mutex::new(()),
        }))
    }

    /// The state, to read. Never held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, to change. Never held across an await.
    pub fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The targets. Taken after the state if both are needed.
    pub fn targets(&self) -> MutexGuard<'_, Targets> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The statistics.
    pub fn stats(&self) -> MutexGuard<'_, AttachStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The membership, if there is one.
    pub fn member(&self) -> Option<&Arc<Member>> {
        self.member.get()
    }

    /// The membership, or the error that says how to get it.
    pub fn require_member(&self) -> Result<&Arc<Member>, ApiError> {
        self.member().ok_or_else(|| {
            let hint = "make a fabric with `netctl init`, or join one with `netctl join TOKEN`";
            ApiError::new(ErrorCode::NotReady, "this node is not part of a fabric", hint)
        })
    }

    /// Runs a write to the journal where it may block.
    pub async fn journalled<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let journal = self.journal.clone();
        let result = tokio::task::spawn_blocking(move || work(&journal)).await;
        result.map_err(|error| internal(&error))?.map_err(|error| {
            let text = error.to_string();
            let (message, hint) = text.rsplit_once("; ").unwrap_or((&text, "see netd's log"));
            ApiError::new(ErrorCode::Internal, message, hint)
        })
    }

    /// Takes up the membership that the state directory holds, if it holds one.
    pub async fn resume(&self) -> Result<bool, MembershipError> {
        let Some(identity) = Identity::load(&self.paths.state)? else { return Ok(false) };
        let store: Arc<dyn Store> = if identity.seed {
            let path = self.paths.store();
            let opened = tokio::task::spawn_blocking(move || Embedded::open(&path)).await;
            Arc::new(opened.map_err(|error| MembershipError::Refused(internal(&error)))??)
        } else {
            Arc::new(SeedStore::new(&identity)?)
        };
        self.begin(identity, store)?;
        Ok(true)
    }

    /// `POST /v1/init`.
    pub async fn init(&self, request: InitRequest, author: Author) -> Result<MemberReply, ApiError> {
        let _one_at_a_time = self.joining.lock().await;
        self.refuse_member()?;
        let prefix = request.prefix.as_deref().map(|text| {
            let prefix = weft_model::api::parse_prefix(text);
            prefix.map_err(|error| invalid(&error.to_string(), "prefix", text))
        });
        let (prefix, domain) = (prefix.transpose()?, domain(request.domain.as_deref())?);
        let node = node_name(request.node.as_deref())?;
        check_private(&request.nat64_private)?;
        let facts = self.data_path.facts().await?;
        let seeds = view::api(&self.config, &facts);
        if seeds.is_empty() {
            let hint =
                "give the uplink an address, or set `uplink` or `api_listen` in netd.toml, and run netctl init again";
            return Err(ApiError::new(
                ErrorCode::NotReady,
                "this node has no address on which others could reach it",
                hint,
            ));
        }
        let mut roles = [request.roles, self.config.roles.clone()].concat();
        roles.sort_unstable();
        roles.dedup();
        let path = self.paths.store();
        let store =
            tokio::task::spawn_blocking(move || Embedded::open(&path)).await.map_err(|error| internal(&error))??;
        let init = Init { prefix, domain, nat64_private: request.nat64_private, node, roles, seeds, author };
        let (identity, ..) = init_fabric(&store, &self.paths.state, &init, unix_ms()).await?;
        let member = self.begin(identity, Arc::new(store))?;
        self.learn_fabric().await?;
        self.member_reply(&member)
    }

    /// `POST /v1/join`.
    pub async fn join(&self, request: JoinRequest) -> Result<MemberReply, ApiError> {
        let _one_at_a_time = self.joining.lock().await;
        self.refuse_member()?;
        let node = node_name(request.node.as_deref())?;
        let token: Token = request.token.trim().parse()?;
        let (identity, reply) = join(&self.paths.state, &token, &node, unix_ms()).await?;
        let store = Arc::new(SeedStore::new(&identity)?);
        let member = self.begin(identity, store)?;
        // The seed has just answered: what it says of the fabric is good until the first list.
        let fallback =
            MemberReply { node, prefix: member.me.prefix, fabric: reply.fabric.prefixes, domain: reply.fabric.domain };
        match self.learn_fabric().await {
            Ok(()) => self.member_reply(&member),
            Err(_) => Ok(fallback),
        }
    }

    /// `POST /v1/tokens`.
    pub async fn create_token(&self, request: &TokenRequest, author: Author) -> Result<TokenReply, ApiError> {
        let member = self.require_member()?;
        let Some(authority) = &member.authority else {
            let seeds: Vec<String> = self.read().fabric.seeds().map(|(name, _)| name.to_string()).collect();
            let hint = format!("run netctl token create on the seed {}", seeds.join(" or "));
            return Err(ApiError::new(ErrorCode::NotReady, "this node does not hold the fabric's authority", hint));
        };
        if request.uses == 0 || request.ttl_s == 0 {
            let (field, value) = if request.uses == 0 { ("uses", 0) } else { ("ttl_s", 0) };
            return Err(invalid("a token needs at least one use and one second", field, value));
        }
        let seeds = self.seed_endpoints(member).await;
        let reply = create_token(&*member.store, authority.pin(), &seeds, request, author, unix_ms()).await?;
        tracing::info!(token = %reply.id, uses = request.uses, ttl_s = request.ttl_s, "made a join token");
        Ok(reply)
    }

    /// Where the seeds answer now.
    pub async fn seed_endpoints(&self, member: &Member) -> Vec<SocketAddr> {
        if !member.identity.seed {
            return member.identity.seeds.clone();
        }
        let here = self.data_path.facts().await.map(|facts| view::api(&self.config, &facts)).unwrap_or_default();
        if here.is_empty() { member.identity.seeds.clone() } else { here }
    }

    fn refuse_member(&self) -> Result<(), ApiError> {
        let Some(member) = self.member() else { return Ok(()) };
        let message = format!("this node is part of a fabric already, as {}", member.me.node);
        let hint = "to leave it, stop netd, run `netd teardown` and move the state directory away";
        Err(ApiError::new(ErrorCode::Conflict, message, hint))
    }

    /// From here on this node is a member.
    fn begin(&self, identity: Identity, store: Arc<dyn Store>) -> Result<Arc<Member>, MembershipError> {
        let authority = if identity.seed { Authority::load(&self.paths.state)?.map(Arc::new) } else { None };
        let me = Me { node: identity.node.clone(), prefix: identity.prefix };
        tracing::info!(node = %me.node, prefix = %me.prefix, seed = identity.seed, "this node is a member");
        let member = Arc::new(Member { me, identity, store, authority });
        {
            let mut state = self.write();
            state.node = Some(member.me.node.clone());
            // Only who we are tells whose attachments the view's are.
            let ids = state.ids();
            state.announce(ids);
        }
        let member = self.member.get_or_init(|| member).clone();
        self.targets().node.poke("identity", self.clock.now());
        self.joined.notify_one();
        self.changed.notify_one();
        self.unpublished.notify_one();
        self.look.notify_one();
        Ok(member)
    }

    /// Asks for the fabric once, so that what follows an init or a join finds it.
    async fn learn_fabric(&self) -> Result<(), ApiError> {
        let member = self.require_member()?;
        for (kind, name) in [(Kind::Fabric, "fabric"), (Kind::Node, member.me.node.as_str())] {
            if let Some(object) = member.store.get(kind, name).await? {
                let delta = self.write().fabric.apply(&weft_store::Change::Put(object));
                self.remember(delta).await;
            }
        }
        Ok(())
    }

    /// What init, join and status say of the membership.
    pub fn member_reply(&self, member: &Member) -> Result<MemberReply, ApiError> {
        let state = self.read();
        let fabric = state.fabric.spec().ok_or_else(|| {
            ApiError::new(
                ErrorCode::Unavailable,
                "the fabric is not known here yet",
                "see `netctl explain`, and try again",
            )
        })?;
        Ok(MemberReply {
            node: member.me.node.clone(),
            prefix: member.me.prefix,
            fabric: fabric.prefixes.clone(),
            domain: fabric.domain.clone(),
        })
    }

    /// This node's roles.
    pub fn roles(&self) -> Vec<Role> {
        self.member().map(|member| view::roles(&member.me, &self.read())).unwrap_or_default()
    }

    /// `GET /v1/explain/node`.
    pub fn explain_node(&self) -> Explanation {
        let object = self.member().map_or_else(|| "this node".into(), |member| format!("node {}", member.me.node));
        Explanation { object, targets: self.targets().node.reports(), node: Vec::new() }
    }

    /// `GET /v1/explain/workspaces/{x}`: of a workspace that is attached here.
    pub fn explain_workspace(&self, text: &str) -> Result<Explanation, ApiError> {
        self.require_member()?;
        let id = self.find(text)?;
        let targets = self.targets();
        let Some(graph) = targets.workspaces.get(&id) else {
            drop(targets);
            let node =
                self.read().workspace(id).and_then(|(_, attachment)| attachment).map(|attachment| attachment.node);
            let (message, hint) = match node {
                Some(node) => (format!("workspace {text} is on node {node}"), format!("run netctl explain on {node}")),
                None => (format!("workspace {text} is stopped"), "attach it with netctl attach".into()),
            };
            return Err(ApiError::new(ErrorCode::NotReady, message, hint));
        };
        Ok(Explanation { object: format!("workspace {id}"), targets: graph.reports(), node: targets.node.reports() })
    }

    /// The workspace with this id or name.
    pub fn find(&self, text: &str) -> Result<WorkspaceId, ApiError> {
        self.read().resolve(text).ok_or_else(|| {
            let hint = "see `netctl list` for the ids and names of this fabric's workspaces";
            ApiError::new(ErrorCode::NotFound, format!("there is no workspace {text:?}"), hint)
        })
    }

    /// Records what was found of one of a workspace's targets.
    pub fn observe_workspace(&self, id: WorkspaceId, target: &str, verdict: Verdict) {
        let now = self.clock.now();
        if let Some(graph) = self.targets().workspaces.get_mut(&id) {
            graph.observe(target, verdict, now);
            // `ready` is nothing but its edges.
            graph.observe("ready", Verdict::Done, now);
        }
    }
}

/// The targets of one workspace.
pub fn workspace_graph(now: Moment) -> Graph {
    Graph::new(declared::workspace(), now).expect("the workspace's targets are declared without a circle")
}

/// An error that blames a field.
pub fn invalid(message: &str, field: &str, value: impl ToString) -> ApiError {
    let (message, hint) = message.rsplit_once(": ").unwrap_or((message, "correct it and try again"));
    ApiError::new(ErrorCode::Invalid, message, hint).blame(field, value)
}

/// A fault of ours.
pub fn internal(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, error.to_string(), "this is a fault of netd: see its log")
}

/// Only what is not globally reachable can be permitted as private: the rest is reachable anyway, by the other prefix.
fn check_private(ranges: &[ipnet::Ipv4Net]) -> Result<(), ApiError> {
    let inside = |range: &ipnet::Ipv4Net| NON_GLOBAL_V4.iter().any(|known| known.contains(range));
    match ranges.iter().find(|range| !inside(range)) {
        Some(range) => Err(invalid(
            &format!(
                "{range} is not a private range: give ranges inside those of RFC 6890, as in 10.0.0.0/8; public IPv4 is reachable anyway"
            ),
            "nat64_private",
            range,
        )),
        None => Ok(()),
    }
}

fn domain(given: Option<&str>) -> Result<String, ApiError> {
    let text = given.unwrap_or(DOMAIN);
    let domain = text.trim_end_matches('.').to_ascii_lowercase();
    let labels = domain.split('.').all(|label| label.parse::<weft_model::Label>().is_ok());
    if !labels || domain.len() > DOMAIN_LIMIT {
        let message = format!(
            "{text:?} is not a domain: give labels of a-z, 0-9 and '-' with dots between, as in ws.example.dev"
        );
        return Err(invalid(&message, "domain", text));
    }
    Ok(domain)
}

fn node_name(given: Option<&str>) -> Result<NodeName, ApiError> {
    if let Some(text) = given {
        return text.parse().map_err(|error: weft_model::id::IdError| invalid(&error.to_string(), "node", text));
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let label = host.trim().split('.').next().unwrap_or_default().to_ascii_lowercase();
    label.parse().map_err(|_| {
        let message = format!("this machine's host name {:?} does not begin with a DNS label", host.trim());
        ApiError::new(ErrorCode::Invalid, message, "give the node's name with --node").blame("node", "")
    })
}
