//! The service: what is checked before anything is changed, and the tasks that then run side by side.
use std::{
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{Mutex, watch},
};
use weft_kernel::{Kernel, KernelConfig};
use weft_store::seed::{SeedState, serve as serve_seed};

use crate::{
    api::{self, Api},
    clock::unix_ms,
    config::{Config, Paths},
    datapath::{DataPath, KernelPath},
    node::{Member, Node},
    reconcile, sync,
    targets::probe::{self, Verified},
    wire::WireProcess,
};

/// CAP_NET_ADMIN's bit in the effective set.
const CAP_NET_ADMIN: u64 = 1 << 12;
/// How long connections may take to end at a stop.
const GRACE: Duration = Duration::from_secs(2);

/// Whether a process with this `/proc/self/status` may change the network.
fn may_administer(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|effective| effective & CAP_NET_ADMIN != 0)
}

/// Refuses a process without rights, before anything is changed.
pub fn require_rights(command: &str) -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !may_administer(&status) {
        bail!("netd {command} needs CAP_NET_ADMIN: run it as root, for example with sudo");
    }
    Ok(())
}

/// Makes a directory that only root reads, if there is none.
fn make_dir(path: &Path, mode: u32) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.with_context(|| format!("cannot make the directory {}: give another with a flag", path.display()))
}

/// One netd for a state directory: a second one would undo what the first does.
fn lock(path: &Path) -> anyhow::Result<Flock<std::fs::File>> {
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!(
            "another netd works with {} ({error}): stop it first, or give this one a --state-dir of its own",
            path.display()
        )
    })
}

async fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        bail!("another netd answers on {}: stop it first, or give this one a --run-dir of its own", path.display());
    }
    // What a killed netd left behind.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot make {} private", path.display()))?;
    Ok(listener)
}

fn open_kernel(config: &Config, paths: &Paths) -> anyhow::Result<Kernel> {
    let kernel = KernelConfig { bpf_dir: paths.bpf.clone(), uplink: config.uplink.clone() };
    Kernel::open(kernel).context("cannot set up the data path")
}

/// Removes everything of ours from the kernel; remembers nothing and needs no memory.
pub async fn teardown(config: &Config, paths: &Paths) -> anyhow::Result<()> {
    require_rights("teardown")?;
    open_kernel(config, paths)?.teardown().await.context("cannot remove everything")?;
    tracing::info!("the kernel holds nothing of ours any more; the state directory is as it was");
    Ok(())
}

/// `netd run`: until SIGTERM or SIGINT. What is in the kernel then works on.
pub async fn run(config: Config, paths: Paths) -> anyhow::Result<()> {
    require_rights("run")?;
    make_dir(&paths.state, 0o700)?;
    // Other processes, without rights, read what is in the run directory.
    make_dir(&paths.run, 0o755)?;
    let _lock = lock(&paths.state.join("netd.lock"))?;
    let listener = listen(&paths.socket()).await?;
    let data_path: Arc<dyn DataPath> = Arc::new(KernelPath::new(open_kernel(&config, &paths)?));
    let tunnel = Arc::new(WireProcess { socket: paths.wire_socket() });
    let socket = paths.socket();
    let node = Node::open(config, paths, data_path, tunnel)?;
    let (stop, stopped) = watch::channel(false);
    let verified = Arc::new(Mutex::new(Verified::default()));
    let api = Api { node: node.clone(), verified: verified.clone() };
    if !node.resume().await? {
        tracing::info!("this node is not part of a fabric: waiting for netctl init or netctl join");
    }
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(member_tasks(node.clone(), stopped.clone()));
    tasks.spawn(probe::run(node.clone(), verified));
    let mut serving = tokio::spawn(api::serve(listener, api, until(stopped)));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        served = &mut serving => Err(anyhow::anyhow!("the API ended by itself: {served:?}")),
        Some(ended) = tasks.join_next() => Err(anyhow::anyhow!("a part of netd ended by itself: {ended:?}")),
    };
    tracing::info!("stopping; what is in the kernel works on");
    stop.send_replace(true);
    let _ = tokio::time::timeout(GRACE, &mut serving).await;
    tasks.shutdown().await;
    let _ = std::fs::remove_file(socket);
    result
}

/// Ready when the process is to stop.
async fn until(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// What runs once the node is a member.
pub async fn member_tasks(node: Arc<Node>, stopped: watch::Receiver<bool>) {
    let member = loop {
        if let Some(member) = node.member() {
            break member.clone();
        }
        node.joined.notified().await;
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(sync::watch(node.clone(), member.clone()));
    tasks.spawn(sync::publish(node.clone(), member.clone()));
    tasks.spawn(reconcile::run(node.clone(), member.clone()));
    if member.identity.seed {
        tasks.spawn(seed(node, member, stopped.clone()));
    }
    let ended = tasks.join_next().await;
    if !*stopped.borrow() {
        tracing::error!(?ended, "a part of netd ended by itself");
    }
}

/// Answers other nodes; waits for the address to listen on, and says so once.
async fn seed(node: Arc<Node>, member: Arc<Member>, stopped: watch::Receiver<bool>) {
    let Some(authority) = member.authority.clone() else {
        tracing::error!(
            "this seed's ca.json is missing: no node can join through it; restore the file and restart netd"
        );
        return until(stopped).await;
    };
    let mut said = false;
    loop {
        let result = match TcpListener::bind(node.config.api_listen).await {
            Ok(listener) => {
                let seeds = node.seed_endpoints(&member).await;
                let state =
                    SeedState { store: member.store.clone(), authority: authority.clone(), seeds, clock: unix_ms };
                tracing::info!(listen = %node.config.api_listen, "answering other nodes");
                serve_seed(listener, &member.identity, state, until(stopped.clone()))
                    .await
                    .map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if *stopped.borrow() {
            return;
        }
        if let (Err(error), false) = (&result, said) {
            tracing::error!(listen = %node.config.api_listen, error, "cannot answer other nodes; trying again every 2 s");
            said = true;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_read_from_the_effective_set() {
        assert!(may_administer("Name:\tnetd\nCapEff:\t000001ffffffffff\n"));
        assert!(may_administer("CapEff:\t0000000000001000\n"));
        assert!(!may_administer("CapEff:\t0000000000000000\n"));
        assert!(!may_administer("CapPrm:\t000001ffffffffff\n"));
    }

    #[test]
    fn a_second_netd_on_the_same_state_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netd.lock");
        let _first = lock(&path).unwrap();
        let error = lock(&path).unwrap_err().to_string();
        assert!(error.contains("another netd") && error.contains("--state-dir"), "{error}");
    }
}
