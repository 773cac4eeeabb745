//! Weft on a lab's nodes: starts each node's processes, forms the fabric and attaches the workspaces, as an operator would
//! by netctl.
use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use weft_model::{
    ApiError, FabricPrefix,
    api::{MemberReply, StatusView, TokenReply, WorkspaceView},
    targets::{Explanation, TargetReport, TargetState},
};
use weft_test_support::wait_for;

use crate::{
    lab::{Lab, text},
    pki::Pki,
    spawn::bin,
    topology::{Node, Workspace},
};

/// How long a node may take to answer its socket, and to be ready.
pub const READY: Duration = Duration::from_secs(20);

/// The port on which every workspace echoes, over TCP and UDP.
pub const ECHO: u16 = 7;

/// A fabric that is up on a lab.
#[derive(Debug, Clone)]
pub struct Fabric {
    lab: Lab,
    pki: Pki,
    members: BTreeMap<String, MemberReply>,
    workspaces: BTreeMap<String, WorkspaceView>,
}

impl Fabric {
    /// Brings the fabric of the lab's topology up, and waits until every node and workspace is ready.
    pub fn start(lab: &Lab) -> Result<Self> {
        let fabric = Self::form(lab);
        fabric.with_context(|| {
            let logs: String = lab.topology().nodes.iter().map(|node| lab.logs(&node.name, 6)).collect();
            format!(
                "the fabric does not come up; processes that ended: {:?}; the last of the logs:\n{logs}",
                lab.ended()
            )
        })
    }

    fn form(lab: &Lab) -> Result<Self> {
        let topology = lab.topology();
        let wanted = topology.fabric.as_ref().context("the topology has no [fabric]: add one")?;
        let pki = Pki::create(&lab.place().dir, &wanted.domain)?;
        let mut fabric = Self { lab: lab.clone(), pki, members: BTreeMap::new(), workspaces: BTreeMap::new() };
        for node in &topology.nodes {
            fabric.start_node(node)?;
        }
        let seed = topology.node(&wanted.seed)?;
        let mut init =
            vec!["init".to_owned(), "--domain".into(), wanted.domain.clone(), "--node".into(), seed.name.clone()];
        init.extend(seed.roles.iter().flat_map(|role| ["--role".into(), format!("{role:?}").to_lowercase()]));
        init.extend(wanted.nat64_private.iter().flat_map(|net| ["--nat64-private".into(), net.to_string()]));
        fabric.wait_socket(&seed.name)?;
        let member = fabric.netctl(&seed.name, &init)?;
        fabric.members.insert(seed.name.clone(), member);
        for node in topology.nodes.iter().filter(|node| node.name != seed.name) {
            fabric.wait_socket(&node.name)?;
            if node.outside {
                continue;
            }
            let mut create = vec!["token".to_owned(), "create".into()];
            create.extend(node.roles.iter().flat_map(|role| ["--role".into(), format!("{role:?}").to_lowercase()]));
            let token: TokenReply = fabric.netctl(&seed.name, &create)?;
            let member = fabric.netctl(&node.name, &["join", &token.token, "--node", &node.name])?;
            fabric.members.insert(node.name.clone(), member);
        }
        for workspace in &topology.workspaces {
            fabric.attach(workspace)?;
        }
        for node in topology.nodes.iter().filter(|node| !node.outside) {
            fabric.wait_ready(&node.name)?;
        }
        fabric.wait_served()?;
        Ok(fabric)
    }

    /// Starts a node's processes. Their order does not matter: each waits for what it needs.
    fn start_node(&self, node: &Node) -> Result<()> {
        let (state, run) = (self.state_dir(&node.name), self.run_dir(&node.name));
        for dir in [&state, &run] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let config = self.lab.place().machine(&node.name).join("netd.toml");
        let upstreams: Vec<_> = self.lab.topology().resolver.iter().map(|ip| format!("{:?}", ip.to_string())).collect();
        fs::write(&config, format!("uplink = \"eth0\"\ndns_upstreams = [{}]\n", upstreams.join(", ")))
            .with_context(|| format!("cannot write {}", config.display()))?;
        let bpf = self.lab.place().bpf().join(&node.name);
        let netd = text(&bin("netd")?);
        let start = |name: &str, argv: &[&str]| {
            let argv: Vec<_> = argv.iter().map(|&word| word.to_owned()).collect();
            self.lab.start(&node.name, name, &argv)
        };
        let (config, wire_conf) = (text(&config), text(&state.join("wire.conf")));
        let (state, bpf) = (text(&state), text(&bpf));
        let in_run = |name: &str| text(&run.join(name));
        let directories = ["--state-dir", &state, "--run-dir", &text(&run), "--bpf-dir", &bpf];
        start("netd", &[&[netd.as_str(), "run", "--config", &config], directories.as_slice()].concat())?;
        start("wire", &[&netd, "wire", "--tun", "weft0", "--config", &wire_conf, "--uapi", &in_run("weft0.sock")])?;
        start("dns", &[&netd, "dns", "--view", &in_run("dns.json")])?;
        let nat64 = text(&bin("nat64")?);
        // By its pid file netd finds whom to tell that its configuration has changed.
        let pid_file = in_run("nat64.pid");
        start("nat64", &[&nat64, "--config", &in_run("nat64.toml"), "--pid-file", &pid_file])?;
        if !node.proxy.is_empty() {
            let config = self.proxy_toml(node)?;
            start("proxy", &[&text(&bin("weft-proxy")?), "--config", &text(&config)])?;
        }
        Ok(())
    }

    fn proxy_toml(&self, node: &Node) -> Result<PathBuf> {
        let path = self.lab.place().machine(&node.name).join("proxy.toml");
        let listen: Vec<_> = node.proxy.iter().map(|address| format!("{:?}", address.to_string())).collect();
        let text = format!(
            "listen = [{}]\ncertificate = {:?}\nkey = {:?}\napi = {:?}\n",
            listen.join(", "),
            self.pki.chain,
            self.pki.key,
            self.socket(&node.name)
        );
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Attaches a workspace as an operator would: its ports get public URLs, its servers run inside.
    fn attach(&mut self, workspace: &Workspace) -> Result<()> {
        let name = workspace.name.as_str();
        let netns = self.lab.add_machine(name, None)?;
        let mut argv = vec!["attach".to_owned(), text(&netns), "--name".into(), name.into()];
        if let Some(group) = &workspace.group {
            argv.extend(["--group".into(), group.to_string()]);
        }
        let mut view: WorkspaceView = self.netctl(&workspace.node, &argv)?;
        for port in &workspace.ports {
            view = self.netctl(&workspace.node, &["expose", name, &port.to_string(), "--public"])?;
        }
        self.lab.set_resolver(name, view.dns.map(Into::into))?;
        self.workspaces.insert(name.into(), view);
        let any = |port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let pages: Vec<_> = workspace.ports.iter().map(|port| any(*port)).collect();
        self.lab.start_server(name, &pages, &[any(ECHO)])
    }

    fn wait_socket(&self, node: &str) -> Result<()> {
        let what = format!("netd of node {node} to answer");
        wait_for(&what, READY, || self.netctl::<StatusView>(node, &["status"])).map(drop)
    }

    /// Waits until a node is ready.
    pub fn wait_ready(&self, node: &str) -> Result<()> {
        wait_for(&format!("node {node} to be ready"), READY, || {
            let explanation = self.explain(node, &["node"])?;
            ensure!(explanation.ready(), "{}", undone(&explanation.targets));
            Ok(())
        })
    }

    /// Waits until every workspace is ready and its servers answer inside.
    fn wait_served(&self) -> Result<()> {
        for workspace in &self.lab.topology().workspaces {
            let name = workspace.name.as_str();
            wait_for(&format!("workspace {name} to be ready"), READY, || {
                let explanation = self.explain(&workspace.node, &["workspace", name])?;
                ensure!(explanation.ready(), "{}", undone(&explanation.targets));
                Ok(())
            })?;
            for port in workspace.ports.iter().chain([&ECHO]) {
                self.lab.wait_listening(name, SocketAddr::from((Ipv6Addr::LOCALHOST, *port)))?;
            }
        }
        Ok(())
    }

    /// The lab below.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The lab's certificate authority.
    #[must_use]
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The fabric's domain.
    #[must_use]
    pub fn domain(&self) -> &str {
        self.lab.topology().fabric.as_ref().map_or("", |fabric| &fabric.domain)
    }

    /// A node as a member of the fabric.
    pub fn member(&self, node: &str) -> Result<&MemberReply> {
        self.members.get(node).with_context(|| format!("node {node:?} is no member"))
    }

    /// The fabric's prefix.
    pub fn prefix(&self) -> Result<FabricPrefix> {
        let member = self.members.values().next().context("the fabric has no node")?;
        member.fabric.first().copied().context("the fabric has no prefix")
    }

    /// A workspace, as it was when it was attached.
    pub fn workspace(&self, name: &str) -> Result<&WorkspaceView> {
        self.workspaces.get(name).with_context(|| format!("no workspace is called {name:?}"))
    }

    /// The workspaces' names.
    pub fn workspace_names(&self) -> impl Iterator<Item = &str> {
        self.workspaces.keys().map(String::as_str)
    }

    /// A workspace's address.
    pub fn address(&self, workspace: &str) -> Result<Ipv6Addr> {
        self.workspace(workspace)?.address.with_context(|| format!("workspace {workspace} has no address"))
    }

    /// Where a workspace echoes.
    pub fn echo(&self, workspace: &str) -> Result<SocketAddr> {
        Ok(SocketAddr::from((self.address(workspace)?, ECHO)))
    }

    /// The name of the node that a workspace is on.
    pub fn node_of(&self, workspace: &str) -> Result<&str> {
        let all = &self.lab.topology().workspaces;
        let found = all.iter().find(|one| one.name.as_str() == workspace);
        found.map(|one| one.node.as_str()).with_context(|| format!("no workspace is called {workspace:?}"))
    }

    /// A node's state directory.
    #[must_use]
    pub fn state_dir(&self, node: &str) -> PathBuf {
        self.lab.place().machine(node).join("state")
    }

    fn run_dir(&self, node: &str) -> PathBuf {
        self.lab.place().machine(node).join("run")
    }

    /// A node's API socket.
    #[must_use]
    pub fn socket(&self, node: &str) -> PathBuf {
        self.run_dir(node).join("netd.sock")
    }

    /// What `netctl` prints for people, whatever its exit code.
    pub fn netctl_text<A: AsRef<str>>(&self, node: &str, arguments: &[A]) -> Result<String> {
        let mut command = self.netctl_command(node)?;
        let output = command.args(arguments.iter().map(AsRef::as_ref)).output().context("cannot run netctl")?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    /// What `netctl --json` answers; fails with netctl's own error.
    pub fn netctl<T: DeserializeOwned>(&self, node: &str, arguments: &[impl AsRef<str>]) -> Result<T> {
        let words: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
        let mut command = self.netctl_command(node)?;
        let what = format!("on node {node}: netctl {}", words.join(" "));
        let output =
            command.arg("--json").args(&words).output().with_context(|| format!("{what}: cannot run netctl"))?;
        if !output.status.success() {
            bail!("{what}: {}", refusal(&String::from_utf8_lossy(&output.stderr)));
        }
        let answer = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&answer).with_context(|| format!("{what}: the answer is not what is expected: {answer}"))
    }

    fn netctl_command(&self, node: &str) -> Result<Command> {
        let mut command = Command::new(bin("netctl")?);
        command.arg("--socket").arg(self.socket(node));
        Ok(command)
    }

    /// `netctl explain`, which also answers (with exit code 1) while the object is not ready.
    pub fn explain(&self, node: &str, object: &[&str]) -> Result<Explanation> {
        let mut command = self.netctl_command(node)?;
        let output = command.arg("--json").arg("explain").args(object).output().context("cannot run netctl")?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("netctl explain gives no explanation: {}", String::from_utf8_lossy(&output.stderr).trim())
        })
    }
}

/// netctl's error in one line: what failed, what to do, and the field that is to blame.
fn refusal(stderr: &str) -> String {
    #[derive(serde::Deserialize)]
    struct Refusal {
        error: ApiError,
    }
    match serde_json::from_str::<Refusal>(stderr) {
        Ok(Refusal { error }) => {
            let blame = error
                .field
                .as_ref()
                .map(|field| format!(" ({field} = {})", error.value.as_deref().unwrap_or_default()));
            format!("{error}{}", blame.unwrap_or_default())
        }
        // What clap refuses is no JSON.
        Err(_) => stderr.trim().to_owned(),
    }
}

/// The targets that are not done, each with its reason.
#[must_use]
pub fn undone(targets: &[TargetReport]) -> String {
    let waiting = targets.iter().filter(|target| !matches!(target.state, TargetState::Done | TargetState::Skipped));
    let shown = waiting.map(|target| {
        let reason = target.reason.as_deref().unwrap_or("no reason given");
        format!("{} {:?}: {reason}", target.name, target.state)
    });
    shown.collect::<Vec<_>>().join("; ")
}
