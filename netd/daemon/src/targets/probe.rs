//! The shell around the node's targets: looks when a look is due, each within its limit.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use nix::net::if_::InterfaceFlags;
use tokio::{net::UdpSocket, sync::Mutex, time::timeout};
use weft_model::NodeName;
use weft_plan::state::TRANSLATOR;

use crate::{
    icmp,
    node::{Member, Node},
    targets::Verdict,
    view,
};

/// How many peers besides the seeds are asked through the tunnel.
const RANDOM_PEERS: usize = 3;
/// How long an answer through the tunnel counts.
const FRESH: Duration = Duration::from_secs(5);
/// How long one echo may take.
const ECHO_WAIT: Duration = Duration::from_millis(1500);

/// What echoes through the tunnel have shown.
#[derive(Debug, Default)]
pub struct Verified {
    answers: BTreeMap<NodeName, (Instant, Duration)>,
    chosen: BTreeSet<NodeName>,
}

impl Verified {
    /// Round-trip time of a peer's last answer, and whether it is fresh.
    #[must_use]
    pub fn of(&self, node: &NodeName) -> Option<(Duration, bool)> {
        self.answers.get(node).map(|(at, rtt)| (*rtt, at.elapsed() < FRESH))
    }

    /// Chooses whom to ask: the seeds, and others by a draw that stays until one of them falls silent.
    fn choose(&mut self, peers: &BTreeMap<NodeName, (Ipv6Addr, bool)>, random: u64) -> Vec<(NodeName, Ipv6Addr)> {
        let fresh = |name: &NodeName| self.answers.get(name).is_some_and(|(at, _)| at.elapsed() < FRESH);
        let kept: BTreeSet<NodeName> =
            self.chosen.iter().filter(|name| peers.contains_key(*name) && fresh(name)).cloned().collect();
        let others: Vec<&NodeName> =
            peers.iter().filter(|(name, (_, seed))| !seed && !kept.contains(*name)).map(|(name, _)| name).collect();
        self.chosen = kept;
        let start = usize::try_from(random % u64::try_from(others.len().max(1)).unwrap_or(1)).unwrap_or(0);
        for name in others.iter().cycle().skip(start).take(others.len()) {
            if self.chosen.len() >= RANDOM_PEERS {
                break;
            }
            self.chosen.insert((*name).clone());
        }
        let asked = peers.iter().filter(|(name, (_, seed))| *seed || self.chosen.contains(*name));
        asked.map(|(name, (address, _))| (name.clone(), *address)).collect()
    }

    /// The seeds must answer, and of the others at least one: a single dead node is not this node's fault.
    fn verdict(&self, peers: &BTreeMap<NodeName, (Ipv6Addr, bool)>, asked: &[(NodeName, Ipv6Addr)]) -> Verdict {
        let fresh = |name: &NodeName| self.answers.get(name).is_some_and(|(at, _)| at.elapsed() < FRESH);
        let silent: Vec<&str> =
            asked.iter().map(|(name, _)| name).filter(|name| !fresh(name)).map(NodeName::as_str).collect();
        let seeds_answer = asked
            .iter()
            .filter(|(name, _)| peers.get(name).is_some_and(|(_, seed)| *seed))
            .all(|(name, _)| fresh(name));
        if seeds_answer && silent.len() < asked.len().max(1) {
            return Verdict::Done;
        }
        Verdict::Failed(format!(
            "no answer through the tunnel from {}; check that UDP passes between the nodes' endpoints",
            silent.join(", ")
        ))
    }
}

/// Looks at the node's targets until the process ends.
pub async fn run(node: Arc<Node>, verified: Arc<Mutex<Verified>>) {
    loop {
        let now = node.clock.now();
        let due = node.targets().node.due(now);
        let looks = due.into_iter().map(|name| {
            let (node, verified) = (&node, &verified);
            async move {
                let limit = node.targets().node.limit(&name);
                let verdict = timeout(limit, look(node, verified, &name)).await;
                let late = || Verdict::Failed(format!("no result within {limit:?}"));
                (name, verdict.unwrap_or_else(|_| late()))
            }
        });
        let was_ready = node.targets().node.satisfied("ready");
        for (name, verdict) in join_all(looks).await {
            let (reason, done) = (format!("{verdict:?}"), verdict == Verdict::Done);
            if node.targets().node.observe(&name, verdict, node.clock.now()) {
                tracing::info!(object = name, found = reason, "a target of the node changed");
                if done && name == "underlay" {
                    node.retry_store.notify_waiters();
                }
            }
        }
        let ready = node.targets().node.satisfied("ready");
        if ready != was_ready {
            tracing::info!(ready, "the node's readiness changed");
            node.unpublished.notify_one();
        }
        let now = node.clock.now();
        let next = node.targets().node.next_look().map_or(Duration::from_secs(1), |next| next.saturating_sub(now.mono));
        let _ = timeout(next, node.look.notified()).await;
    }
}

async fn look(node: &Node, verified: &Mutex<Verified>, name: &str) -> Verdict {
    let Some(member) = node.member() else {
        return Verdict::Waits("waits for netctl init or netctl join".into());
    };
    match name {
        "identity" => Verdict::Done,
        "underlay" => underlay(node),
        "wireguard" => wireguard(node, member).await,
        "tunnel-verified" => tunnel_verified(node, member, verified).await,
        "nat64" => nat64(node),
        "dns" => dns(node, member).await,
        "ready" => match node.read().reconcile_errors.first() {
            None => Verdict::Done,
            Some(error) => Verdict::Failed(format!("the kernel is not as it should be: {error}")),
        },
        other => Verdict::Failed(format!("nobody knows how to look at {other}")),
    }
}

/// The flags of an interface in this network namespace; `None` if there is no such interface.
fn flags(name: &str) -> Option<InterfaceFlags> {
    nix::ifaddrs::getifaddrs().ok()?.find(|interface| interface.interface_name == name).map(|interface| interface.flags)
}

fn underlay(node: &Node) -> Verdict {
    let state = node.read();
    let Some(uplink) = &state.facts.uplink else {
        let wanted = node
            .config
            .uplink
            .as_deref()
            .map_or("interface with a default route".into(), |name| format!("interface {name}"));
        return Verdict::Failed(format!("there is no {wanted}; bring it up, or set `uplink` in netd.toml"));
    };
    match flags(&uplink.name) {
        None => return Verdict::Failed(format!("the uplink {} is gone", uplink.name)),
        Some(flags) if !flags.contains(InterfaceFlags::IFF_UP) => {
            return Verdict::Failed(format!(
                "the uplink {0} is down; bring it up with ip link set {0} up",
                uplink.name
            ));
        }
        Some(flags) if !flags.contains(InterfaceFlags::IFF_RUNNING) => {
            return Verdict::Failed(format!(
                "the uplink {} has no carrier; check the cable or the other end",
                uplink.name
            ));
        }
        Some(_) => {}
    }
    if uplink.ipv4.is_none() && state.facts.local_addresses.is_empty() {
        return Verdict::Failed(format!("the uplink {} has no address; give it one", uplink.name));
    }
    Verdict::Done
}

async fn wireguard(node: &Node, member: &Member) -> Verdict {
    let own = match member.identity.keys.wireguard_public_key() {
        Ok(key) => key,
        Err(error) => return Verdict::Failed(error.to_string()),
    };
    match node.ask_tunnel().await {
        Ok(tunnel) if tunnel.public_key.as_ref() == Some(&own) => Verdict::Done,
        Ok(_) => Verdict::Failed("`netd wire` runs with another key; restart it".into()),
        Err(error) => Verdict::Failed(error),
    }
}

async fn tunnel_verified(node: &Node, member: &Member, verified: &Mutex<Verified>) -> Verdict {
    let peers: BTreeMap<NodeName, (Ipv6Addr, bool)> = {
        let state = node.read();
        let seeds: BTreeSet<&NodeName> = state.fabric.seeds().map(|(name, _)| name).collect();
        let others = state.fabric.nodes().iter().filter(|(name, _)| **name != member.me.node);
        others.map(|(name, seen)| (name.clone(), (seen.spec.prefix.node_address(), seeds.contains(name)))).collect()
    };
    if peers.is_empty() {
        return Verdict::Done;
    }
    let mut verified = verified.lock().await;
    let mut random = [0; 8];
    let _ = getrandom::fill(&mut random);
    let asked = verified.choose(&peers, u64::from_le_bytes(random));
    let targets: Vec<Ipv6Addr> = asked.iter().map(|(_, address)| *address).collect();
    let answers = match icmp::echo(member.me.prefix.node_address(), &targets, ECHO_WAIT).await {
        Ok(answers) => answers,
        Err(error) => {
            return Verdict::Failed(format!(
                "cannot send an echo request from {}: {error}",
                member.me.prefix.node_address()
            ));
        }
    };
    let now = Instant::now();
    for (name, address) in &asked {
        if let Some(rtt) = answers.get(address) {
            verified.answers.insert(name.clone(), (now, *rtt));
        }
    }
    verified.answers.retain(|name, _| peers.contains_key(name));
    verified.verdict(&peers, &asked)
}

fn nat64(node: &Node) -> Verdict {
    if !node.config.nat64.enabled {
        return Verdict::Skipped("nat64.enabled is false in netd.toml".into());
    }
    if view::nat64(&node.config, &node.read().facts).is_none() {
        return Verdict::Skipped("this node has no IPv4 uplink".into());
    }
    match flags(TRANSLATOR) {
        Some(flags) if flags.contains(InterfaceFlags::IFF_RUNNING) => Verdict::Done,
        Some(_) => Verdict::Failed(format!("nobody reads {TRANSLATOR}; start nat64")),
        None => Verdict::Failed(format!("there is no {TRANSLATOR} yet")),
    }
}

/// Asks the node's own resolver a question; any answer will do.
async fn dns(node: &Node, member: &Member) -> Verdict {
    let target = {
        let state = node.read();
        state.fabric.spec().and_then(|fabric| Some((fabric.prefixes.first()?.dns(), fabric.domain.clone())))
    };
    let Some((address, domain)) = target else { return Verdict::Waits("waits for the view of the fabric".into()) };
    let mut id = [0; 2];
    let _ = getrandom::fill(&mut id);
    let ask = async {
        let source = SocketAddr::V6(SocketAddrV6::new(member.me.prefix.node_address(), 0, 0, 0));
        let socket = UdpSocket::bind(source).await?;
        socket.connect(SocketAddr::from((address, 53))).await?;
        socket.send(&question(id, &domain)).await?;
        let mut answer = [0; 1500];
        loop {
            let length = socket.recv(&mut answer).await?;
            // The same id, and the bit that says answer (RFC 1035 4.1.1).
            if answer
                .get(..length)
                .is_some_and(|answer| answer.starts_with(&id) && answer.get(2).is_some_and(|flags| flags & 0x80 != 0))
            {
                return std::io::Result::Ok(());
            }
        }
    };
    match timeout(Duration::from_millis(1500), ask).await {
        Ok(Ok(())) => Verdict::Done,
        Ok(Err(error)) => {
            Verdict::Failed(format!("the resolver at {address} does not answer ({error}); start `netd dns`"))
        }
        Err(_) => Verdict::Failed(format!("the resolver at {address} does not answer; start `netd dns`")),
    }
}

/// A question for the SOA record of a domain (RFC 1035 4.1).
fn question(id: [u8; 2], domain: &str) -> Vec<u8> {
    let mut packet = vec![id[0], id[1], 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in domain.split('.') {
        packet.push(u8::try_from(label.len().min(63)).unwrap_or(63));
        packet.extend(label.bytes().take(63));
    }
    packet.extend([0, 0, 6, 0, 1]);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(names: &[(&str, bool)]) -> BTreeMap<NodeName, (Ipv6Addr, bool)> {
        let entry = |(place, (name, seed)): (usize, &(&str, bool))| {
            (name.parse().unwrap(), (Ipv6Addr::from(place as u128 + 1), *seed))
        };
        names.iter().enumerate().map(entry).collect()
    }

    fn answer(verified: &mut Verified, name: &str) {
        verified.answers.insert(name.parse().unwrap(), (Instant::now(), Duration::from_millis(1)));
    }

    #[test]
    fn seeds_and_three_others_are_asked() {
        let peers = peers(&[("a", true), ("b", false), ("c", false), ("d", false), ("e", false), ("f", false)]);
        for random in 0..10 {
            let asked = Verified::default().choose(&peers, random);
            assert_eq!(asked.len(), 4);
            assert!(asked.iter().any(|(name, _)| name.as_str() == "a"));
        }
    }

    #[test]
    fn a_silent_seed_fails_and_a_silent_other_does_not() {
        let peers = peers(&[("a", true), ("b", false), ("c", false)]);
        let mut verified = Verified::default();
        let asked = verified.choose(&peers, 0);
        assert!(matches!(verified.verdict(&peers, &asked), Verdict::Failed(why) if why.contains("a, b, c")));
        answer(&mut verified, "b");
        assert!(matches!(verified.verdict(&peers, &asked), Verdict::Failed(_)));
        answer(&mut verified, "a");
        assert_eq!(verified.verdict(&peers, &asked), Verdict::Done);
    }

    #[test]
    fn a_seed_needs_one_of_the_others() {
        let peers = peers(&[("b", false), ("c", false)]);
        let mut verified = Verified::default();
        let asked = verified.choose(&peers, 7);
        assert!(matches!(verified.verdict(&peers, &asked), Verdict::Failed(_)));
        answer(&mut verified, "c");
        assert_eq!(verified.verdict(&peers, &asked), Verdict::Done);
    }

    #[test]
    fn the_question_is_well_formed() {
        assert_eq!(
            question([1, 2], "ws.dev"),
            b"\x01\x02\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02ws\x03dev\x00\x00\x06\x00\x01"
        );
    }
}
