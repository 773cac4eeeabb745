//! The loop that keeps the kernel and the other processes as the node's view says: on every change, and every few seconds.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use weft_kernel::Facts;
use weft_model::{ErrorCode, WorkspaceId};
use weft_plan::LinkSpec;
use weft_wire::{config as wire_config, key::Secret};

use crate::{
    config::{self, Config},
    datapath::Reconciled,
    files::write_whole,
    journal::Entry,
    node::{Member, Node},
    state::State,
    targets::Verdict,
    view::{self, Me},
    wire,
};

/// How often everything is compared even if nothing is known to have changed.
const PERIOD: Duration = Duration::from_secs(5);
/// How soon it is tried again after something failed.
const AGAIN: Duration = Duration::from_millis(500);
/// How long changes may gather before they are reconciled together.
const GATHER: Duration = Duration::from_millis(20);

/// Runs until the process ends.
pub async fn run(node: Arc<Node>, member: Arc<Member>) {
    let mut events = node
        .data_path
        .watch()
        .map_err(|error| tracing::warn!(%error, "no events from the kernel: looking every 5 s"))
        .ok();
    let mut given = BTreeMap::new();
    loop {
        let sound = node.reconcile(&member, &mut given).await;
        let next = Instant::now() + if sound { PERIOD } else { AGAIN };
        let event = async {
            let ended = match &mut events {
                Some(events) => events.changed().await.is_err(),
                None => std::future::pending().await,
            };
            if ended {
                events = None;
            }
        };
        tokio::select! {
            () = node.changed.notified() => {}
            () = event => {}
            () = tokio::time::sleep_until(next) => {}
        }
        sleep(GATHER).await;
    }
}

impl Node {
    /// One round: what is seen of the machine, the kernel, the links, the files, the tunnel. Whether the kernel is as it
    /// should be.
    pub async fn reconcile(&self, member: &Member, given: &mut BTreeMap<String, SocketAddr>) -> bool {
        self.refresh_facts().await;
        let view = || view::node_view(&self.config, &member.me, &self.read());
        let mut sound = true;
        if view().is_some() {
            let settled = self.settled();
            let result = self.data_path.reconcile(&view).await;
            sound = result.errors.is_empty();
            self.report(&result, &settled);
            if sound {
                self.founded.send_replace(true);
            }
            self.complete(&result, &settled).await;
        }
        if let Err(error) = self.write_files(member) {
            let reason = error.to_string();
            tracing::error!(reason, "cannot write what the other processes read");
            self.write().reconcile_errors.push(reason);
        }
        self.tune(member, given).await;
        if let Ok(counters) = self.data_path.counters().await {
            self.write().counters = counters;
        }
        if let Err(error) = self.data_path.expire_flows().await {
            tracing::debug!(%error, "cannot expire flows");
        }
        self.look.notify_one();
        sound
    }

    /// The attachments whose link was made before now, by their epochs: only of these does a look at the kernel that begins
    /// now say that a link is missing.
    fn settled(&self) -> BTreeMap<WorkspaceId, u64> {
        let state = self.read();
        let settled = state.entries.values().filter(|entry| !state.linking.contains(&entry.id));
        settled.map(|entry| (entry.id, entry.epoch)).collect()
    }

    async fn refresh_facts(&self) {
        match self.data_path.facts().await {
            Ok(facts) => {
                let mut state = self.write();
                let facts = keep_uplink(facts, &state.facts);
                state.mtu = view::mtu(&self.config, &facts).unwrap_or(state.mtu);
                if state.facts != facts {
                    tracing::info!(uplink = ?facts.uplink, "the underlay changed");
                    state.facts = facts;
                    drop(state);
                    self.unpublished.notify_one();
                }
            }
            Err(error) => tracing::warn!(%error, "cannot see this machine's interfaces"),
        }
    }

    /// Records what a reconciliation found, and what follows for the workspaces' targets.
    fn report(&self, result: &Reconciled, settled: &BTreeMap<WorkspaceId, u64>) {
        let persists = {
            let mut stats = self.stats();
            stats.reconciled += 1;
            let before = std::mem::replace(&mut stats.unsound, !result.errors.is_empty());
            stats.unreconciled += u64::from(stats.unsound);
            before && stats.unsound
        };
        if !result.applied.is_empty() {
            let (steps, first) = (result.applied.len(), result.applied.first());
            tracing::info!(steps, first, "changed the kernel to what it should be");
            tracing::debug!(steps = ?result.applied, "all steps");
        }
        // A kernel that changes while it is read fails a look now and then: what counts is what the next one says too.
        let errors: &[String] = if persists { &result.errors } else { &[] };
        let ids: Vec<WorkspaceId> = {
            let mut state = self.write();
            for error in result.errors.iter().filter(|_| state.reconcile_errors != result.errors) {
                if persists {
                    tracing::error!(error, "the kernel is not as it should be");
                } else {
                    tracing::warn!(error, "the kernel could not be brought to what it should be; trying again");
                }
            }
            state.reconcile_errors = errors.to_vec();
            let same = |id: &&WorkspaceId| state.entries.get(*id).map(|entry| entry.epoch) == settled.get(*id).copied();
            settled.keys().filter(same).copied().collect()
        };
        let clat = self.clat_verdict();
        for id in ids {
            if result.missing.contains(&id) {
                let missing = format!("the link {} is missing", id.ifname());
                self.observe_workspace(id, "link", Verdict::Failed(missing));
            } else if result.links.contains(&id) {
                self.observe_workspace(id, "link", Verdict::Done);
                let policy = errors.first().map_or(Verdict::Done, |error| Verdict::Failed(error.clone()));
                self.observe_workspace(id, "policy", policy);
                self.observe_workspace(id, "clat", clat.clone());
                self.refresh_published(vec![id]);
            }
        }
    }

    /// Links that should be there and are not: made again if the workspace still lives, given up if it is gone.
    async fn complete(&self, result: &Reconciled, settled: &BTreeMap<WorkspaceId, u64>) {
        for id in &result.missing {
            let entry = self.read().entries.get(id).filter(|entry| settled.get(id) == Some(&entry.epoch)).cloned();
            let Some(entry) = entry else { continue };
            let alive = self.data_path.netns(&entry.netns).is_ok_and(|netns| netns == entry.netns_id);
            if alive { self.link_again(&entry).await } else { self.give_up(&entry).await }
        }
    }

    async fn link_again(&self, entry: &Entry) {
        let spec = LinkSpec { ws: view::attached(entry), mtu: self.read().mtu };
        match self.data_path.attach(&spec, &entry.netns).await {
            Ok(()) => {
                tracing::info!(workspace = %entry.id, "made its link again");
                self.observe_workspace(entry.id, "link", Verdict::Done);
                self.observe_workspace(entry.id, "policy", Verdict::Done);
                let clat = self.clat_verdict();
                self.observe_workspace(entry.id, "clat", clat);
            }
            Err(error) if error.code == ErrorCode::Invalid => self.give_up(entry).await,
            Err(error) => {
                tracing::warn!(workspace = %entry.id, %error, "cannot make its link; trying again");
                self.observe_workspace(entry.id, "link", Verdict::Failed(error.to_string()));
            }
        }
    }

    async fn give_up(&self, entry: &Entry) {
        let id = entry.id;
        tracing::info!(workspace = %id, netns = %entry.netns.display(), "its network namespace is gone: detached");
        if let Err(error) = self.journalled(move |journal| journal.remove(id, false)).await {
            tracing::error!(workspace = %id, %error, "cannot take it out of the journal; trying again");
            return;
        }
        {
            let mut state = self.write();
            state.entries.remove(&id);
            state.refused.remove(&id);
            state.announce([id]);
        }
        self.targets().workspaces.remove(&id);
        if let Err(error) = self.data_path.detach(id).await {
            tracing::warn!(workspace = %id, %error, "cannot remove what is left of its link");
        }
        self.changed.notify_one();
        self.unpublished.notify_one();
    }

    /// What the other processes read, each file whole and only if it says something new.
    fn write_files(&self, member: &Member) -> anyhow::Result<()> {
        let state = self.read();
        let conf = wire_conf(&self.config, member, &state)?;
        write_whole(&self.paths.wire_conf(), &conf, 0o600)?;
        if let Some(dns) = view::dns(&member.me, &state, self.upstreams(&state)) {
            write_whole(&self.paths.dns_view(), &format!("{}\n", serde_json::to_string_pretty(&dns)?), 0o644)?;
        }
        if let Some(nat64) = nat64_conf(&self.config, &member.me, &state) {
            nat64.validate()?;
            let text = format!("# Written by netd: changes are lost.\n{}", toml::to_string(&nat64)?);
            if write_whole(&self.paths.nat64_conf(), &text, 0o644)? {
                self.reload_nat64();
            }
        }
        Ok(())
    }

    fn upstreams(&self, state: &State) -> Vec<SocketAddr> {
        if !self.config.dns_upstreams.is_empty() {
            return self.config.dns_upstreams.iter().map(|upstream| upstream.0).collect();
        }
        let own = state.fabric.spec().and_then(|fabric| fabric.prefixes.first()).map(|prefix| IpAddr::V6(prefix.dns()));
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        config::resolv_conf(&text, &own.into_iter().collect::<Vec<_>>())
    }

    /// Tells a running translator that its file is new. Without a process id it looks for itself.
    fn reload_nat64(&self) {
        let pid = std::fs::read_to_string(self.paths.nat64_pid()).ok().and_then(|text| text.trim().parse::<i32>().ok());
        let Some(pid) = pid.filter(|pid| *pid > 1) else { return };
        // A stale file may name a process that is somebody else's: only a translator is told.
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() != "nat64" {
            return;
        }
        let signal = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGHUP);
        if let Err(error) = signal {
            tracing::debug!(pid, %error, "cannot signal the translator");
        }
    }

    /// Brings the running tunnel's peers to what the fabric says.
    async fn tune(&self, member: &Member, given: &mut BTreeMap<String, SocketAddr>) {
        let seen = self.ask_tunnel().await;
        let Ok(seen) = seen else { return };
        let changes = {
            let state = self.read();
            let wanted = wire::wanted(&state.fabric, &member.me.node);
            // Before the first view there is nobody to remove.
            if state.fabric.spec().is_none() {
                Vec::new()
            } else {
                wire::changes(&wanted, &seen, &state.facts.local_addresses, given)
            }
        };
        if changes.is_empty() {
            return;
        }
        tracing::info!(changes = changes.len(), "changing the tunnel's peers");
        if let Err(error) = self.tunnel.set(&changes).await {
            tracing::warn!(error, "the tunnel refused a change");
        }
        let _ = self.ask_tunnel().await;
    }

    /// What the tunnel's process has; remembered, errors too.
    pub async fn ask_tunnel(&self) -> Result<wire::TunnelState, String> {
        let answer = timeout(Duration::from_secs(3), self.tunnel.get()).await;
        let answer = answer.unwrap_or_else(|_| Err("`netd wire` does not answer on its socket; restart it".into()));
        self.write().tunnel.clone_from(&answer);
        answer
    }
}

/// The uplink that was is still the uplink while its default route is away: the walls at it must stay.
fn keep_uplink(mut facts: Facts, last: &Facts) -> Facts {
    if facts.uplink.is_none() {
        let still = |uplink: &&weft_kernel::UplinkFacts| {
            nix::net::if_::if_nametoindex(uplink.name.as_str()).is_ok_and(|index| index == uplink.index)
        };
        facts.uplink = last.uplink.as_ref().filter(still).cloned();
    }
    facts
}

/// The tunnel's configuration, for its next start.
fn wire_conf(config: &Config, member: &Member, state: &State) -> anyhow::Result<String> {
    let private_key: Secret = member.identity.keys.wireguard_private_key.parse()?;
    let mut peers = Vec::new();
    for wanted in wire::wanted(&state.fabric, &member.me.node) {
        let mut peer = wire_config::Peer::new(wanted.public_key.parse()?);
        peer.endpoint = wire::choose(&wanted.endpoints, &state.facts.local_addresses);
        peer.allowed_ips = wanted.allowed_ips.into_iter().collect();
        peers.push(peer);
    }
    let conf = wire_config::Config {
        private_key: Some(private_key),
        listen_port: Some(config.listen_port),
        fwmark: None,
        peers,
    };
    Ok(conf.format().to_string())
}

/// The translator's configuration; `None` on a node without IPv4, or while the fabric is not known.
fn nat64_conf(config: &Config, me: &Me, state: &State) -> Option<weft_nat64_core::Config> {
    use weft_nat64_core::config::{Config as Nat64, Permit, PermitWord, Pool, PortRange, PrefixConfig};
    let (nat64, fabric) = (view::nat64(config, &state.facts)?, state.fabric.spec()?);
    let uplink = state.facts.uplink.as_ref()?;
    let nodes =
        state.fabric.nodes().values().flat_map(|node| {
            node.status.addresses.iter().copied().chain(node.status.endpoints.iter().map(SocketAddr::ip))
        });
    let deny: BTreeSet<ipnet::Ipv4Net> = state
        .facts
        .local_addresses
        .iter()
        .copied()
        .chain(nodes)
        .filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(ipnet::Ipv4Net::from(ip)) } else { None })
        .collect();
    let mut sources: Vec<ipnet::Ipv6Net> = fabric.prefixes.iter().map(weft_model::FabricPrefix::net).collect();
    if !sources.iter().any(|net| net.contains(&me.prefix.net())) {
        sources.push(me.prefix.net());
    }
    let prefix = |address, permit| PrefixConfig {
        prefix: ipnet::Ipv6Net::new_assert(address, weft_model::address::NAT64_LEN),
        permit,
    };
    let mut prefixes = vec![prefix(weft_model::address::NAT64_GLOBAL, Permit::Word(PermitWord::Global))];
    if !fabric.nat64_private.is_empty() {
        prefixes.push(prefix(weft_model::address::NAT64_PRIVATE, Permit::Ranges(fabric.nat64_private.clone())));
    }
    Some(Nat64 {
        tun: weft_plan::state::TRANSLATOR.into(),
        queues: 2,
        mtu6: u16::try_from(state.mtu).unwrap_or(u16::MAX),
        mtu4: u16::try_from(uplink.mtu).unwrap_or(u16::MAX),
        deny: deny.into_iter().collect(),
        sources,
        pool: Pool { addresses: vec![nat64.address], ports: PortRange { first: nat64.ports.0, last: nat64.ports.1 } },
        prefix: prefixes,
        ..Nat64::default()
    })
}
