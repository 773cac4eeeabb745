//! The real netd on the real kernel, in namespaces of its own: killed between any two steps of attach and detach, it leaves
//! nothing half-made; and it refuses to start where it must, before it changes anything.
#![allow(clippy::unwrap_used, reason = "tests may stop at the first thing that does not hold")]
use std::{
    collections::BTreeSet,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use weft_client::{Client, ClientError};
use weft_model::{api::WorkspaceView, targets::Explanation};
use weft_test_support::{ChildGuard, Netns, is_root, wait_for, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// A node: its namespace with an uplink, and its folders.
struct Machine {
    // Declared first: ends before its namespace goes.
    netd: Option<ChildGuard>,
    node: Netns,
    _underlay: Netns,
    dir: tempfile::TempDir,
    bpf: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Machine {
    fn new(tag: &str) -> Self {
        let (node, underlay) = (Netns::unique(tag).unwrap(), Netns::unique(&format!("{tag}u")).unwrap());
        let peer = underlay.name();
        node.ip(&format!(
            "link add up0 type veth peer name down0 netns {peer}\nlink set up0 up\naddr add 198.18.0.1/24 dev up0"
        ))
        .unwrap();
        underlay.ip("link set down0 up\naddr add 198.18.0.254/24 dev down0").unwrap();
        node.ip("route add default via 198.18.0.254").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bpf = PathBuf::from(format!("/sys/fs/bpf/{}", node.name()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { netd: None, node, _underlay: underlay, dir, bpf, runtime }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netd"));
        let at = |name: &str| self.dir.path().join(name);
        command.arg(verb).arg("--config").arg(at("netd.toml")).arg("--state-dir").arg(at("state"));
        command.arg("--run-dir").arg(at("run")).arg("--bpf-dir").arg(&self.bpf);
        command
    }

    /// Starts netd and waits until it answers; with a fault it dies at that point.
    fn start(&mut self, fault: Option<&str>) {
        let mut command = self.command("run");
        command.stdin(Stdio::null()).stderr(std::fs::File::create(self.dir.path().join("log")).unwrap());
        if let Some(fault) = fault {
            command.env("WEFT_FAULT", fault);
        }
        self.netd = Some(ChildGuard::new(self.node.spawn(&mut command).unwrap()));
        wait_for("netd to answer", DEADLINE, || {
            self.call(|client| async move { client.get::<Value>("/v1/status").await })
        })
        .unwrap_or_else(|error| panic!("{error}: {}", self.log()));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn kill(&mut self) {
        drop(self.netd.take());
    }

    fn call<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        work: impl FnOnce(Client) -> F,
    ) -> Result<T, ClientError> {
        let client = Client::unix(self.dir.path().join("run/netd.sock"));
        self.runtime.block_on(work(client))
    }

    fn init(&mut self) {
        self.start(None);
        let body = json!({"prefix": "fd12:3456:789a::/48", "node": "a", "domain": "ws.dev"});
        self.call(|client| async move { client.post::<_, Value>("/v1/init", &body).await }).unwrap();
    }

    fn attach(&self, netns: &Path, name: &str) -> Result<WorkspaceView, ClientError> {
        let body = json!({"netns": netns, "name": name});
        self.call(|client| async move { client.post("/v1/workspaces", &body).await })
    }

    fn list(&self) -> Vec<WorkspaceView> {
        self.call(|client| async move { client.get("/v1/workspaces").await }).unwrap()
    }

    fn ready(&self, name: &str) -> bool {
        let path = format!("/v1/explain/workspaces/{name}");
        self.call(|client| async move { client.get::<Explanation>(&path).await })
            .is_ok_and(|explained| explained.ready())
    }

    /// The workspaces' links in the node's namespace.
    fn links(&self) -> BTreeSet<String> {
        let output = self.node.output(Command::new("ip").args(["-j", "link", "show"])).unwrap();
        let links: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let names = links.iter().filter_map(|link| link["ifname"].as_str());
        names.filter(|name| weft_model::WorkspaceId::from_ifname(name).is_some()).map(ToString::to_string).collect()
    }

    fn wait_dead(&mut self) {
        let mut netd = self.netd.take().unwrap();
        wait_until("netd to die of its fault", DEADLINE, || netd.exited().is_some()).unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        let removed = self.node.output(self.command("teardown").stdin(Stdio::null()));
        if !std::thread::panicking() {
            let output = removed.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let _ = std::fs::remove_dir_all(&self.bpf);
    }
}

/// A workspace's namespace.
fn workspace(tag: &str) -> Netns {
    Netns::unique(tag).unwrap()
}

#[test]
fn a_kill_between_any_two_steps_of_attach_leaves_all_or_nothing() {
    let mut machine = Machine::new("nka");
    machine.init();
    machine.kill();
    for (fault, attached) in [("attach-reserved", false), ("attach-journalled", true), ("attach-linked", true)] {
        let netns = workspace("nkw");
        machine.start(Some(fault));
        assert!(machine.attach(netns.path(), fault).is_err(), "{fault}: netd dies before it answers");
        machine.wait_dead();
        machine.start(None);
        if attached {
            wait_until(&format!("{fault} to be completed"), DEADLINE, || machine.ready(fault))
                .unwrap_or_else(|error| panic!("{error}: {}", machine.log()));
            let view = machine
                .list()
                .into_iter()
                .find(|view| view.name.as_ref().is_some_and(|name| name.as_str() == fault))
                .unwrap();
            assert_eq!(machine.links(), [view.ifname.unwrap()].into(), "{fault}");
            // The same namespace is known by what it is, not by what was answered.
            assert!(machine.attach(netns.path(), "again").is_err());
            machine
                .call(|client| async move { client.delete::<Value>(&format!("/v1/workspaces/{fault}?forget")).await })
                .unwrap();
        }
        assert!(machine.list().is_empty(), "{fault}: {:?}", machine.list());
        wait_until("no link to be left", DEADLINE, || machine.links().is_empty()).unwrap();
        machine.kill();
    }
}

#[test]
fn a_kill_between_any_two_steps_of_detach_ends_detached() {
    let mut machine = Machine::new("nkd");
    machine.init();
    machine.kill();
    for fault in ["detach-journalled", "detach-unlinked"] {
        let netns = workspace("nkv");
        machine.start(Some(fault));
        machine.attach(netns.path(), fault).unwrap();
        assert_eq!(machine.links().len(), 1);
        assert!(
            machine
                .call(|client| async move { client.delete::<Value>(&format!("/v1/workspaces/{fault}")).await })
                .is_err()
        );
        machine.wait_dead();
        machine.start(None);
        wait_until("the link to go", DEADLINE, || machine.links().is_empty()).unwrap();
        wait_until("the store to hear of it", DEADLINE, || machine.list().iter().all(|view| view.node.is_none()))
            .unwrap();
        // What is detached can be attached again, by its name, and is the same workspace.
        let id = machine
            .list()
            .iter()
            .find(|view| view.name.as_ref().is_some_and(|name| name.as_str() == fault))
            .unwrap()
            .id;
        assert_eq!(machine.attach(netns.path(), fault).unwrap().id, id);
        machine
            .call(|client| async move { client.delete::<Value>(&format!("/v1/workspaces/{id}?forget=true")).await })
            .unwrap();
        machine.kill();
    }
}

#[test]
fn attached_workspaces_outlive_netd_and_those_whose_namespace_is_gone_do_not() {
    let mut machine = Machine::new("nkk");
    machine.init();
    let (kept, gone) = (workspace("nkp"), workspace("nkg"));
    let before = machine.attach(kept.path(), "kept").unwrap();
    machine.attach(gone.path(), "gone").unwrap();
    wait_until("both to be ready", DEADLINE, || machine.ready("kept") && machine.ready("gone")).unwrap();
    machine.kill();
    drop(gone);
    assert!(machine.links().contains(before.ifname.as_ref().unwrap()), "links stay without netd");
    machine.start(None);
    wait_until("the restart to settle", DEADLINE, || {
        let now = machine.list();
        machine.ready("kept") && now.iter().filter(|view| view.node.is_some()).count() == 1
    })
    .unwrap_or_else(|error| panic!("{error}: {:?} {}", machine.list(), machine.log()));
    let after = machine.list().into_iter().find(|view| view.id == before.id).unwrap();
    assert_eq!(after.address, before.address);
    assert_eq!(machine.links(), [before.ifname.unwrap()].into());
    // A namespace that goes while netd runs is noticed as well.
    drop(kept);
    wait_until("the last one to be given up", DEADLINE, || {
        machine.links().is_empty() && machine.list().iter().all(|view| view.node.is_none())
    })
    .unwrap();
}

fn refused(output: &Output) -> String {
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.trim().lines().count(), 1, "one sentence: {text}");
    text
}

#[test]
fn without_rights_nothing_is_changed() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Others must reach the binary's arguments, not its folder: only the state directory counts.
    let state = dir.path().join("state");
    let program = dir.path().join("netd");
    std::fs::copy(env!("CARGO_BIN_EXE_netd"), &program).unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    for verb in ["run", "teardown"] {
        let mut command = Command::new(&program);
        command
            .arg(verb)
            .arg("--state-dir")
            .arg(&state)
            .arg("--run-dir")
            .arg(dir.path().join("run"))
            .uid(65534)
            .gid(65534);
        let text = refused(&command.output().unwrap());
        assert!(text.contains("root"), "{text}");
        assert!(!state.exists());
    }
}

#[test]
fn a_bad_configuration_a_newer_journal_and_a_second_netd_are_refused() {
    let mut machine = Machine::new("nkr");
    let config = machine.dir.path().join("netd.toml");
    std::fs::write(&config, "listn_port = 1").unwrap();
    let text = refused(&machine.node.output(machine.command("run").stdin(Stdio::null())).unwrap());
    assert!(text.contains("listn_port") && text.contains("netd.toml"), "{text}");
    assert!(!machine.dir.path().join("state").exists());
    std::fs::remove_file(&config).unwrap();
    machine.start(None);
    let second = machine.node.output(machine.command("run").stdin(Stdio::null())).unwrap();
    assert!(refused(&second).contains("another netd"));
    machine.kill();
    let journal = machine.dir.path().join("state/journal.db");
    rusqlite::Connection::open(&journal).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let text =
        refused(&machine.node.output(machine.command("run").env("RUST_LOG", "off").stdin(Stdio::null())).unwrap());
    assert!(text.contains("schema 99") && text.contains("journal.db"), "{text}");
}
