//! A node to test on: a netns with an uplink into another one, its own BPF directory, and workspaces.
use std::{
    net::Ipv6Addr,
    path::{Path, PathBuf},
    process::Command,
};

use weft_kernel::{Error, Kernel, KernelConfig};
use weft_model::{FabricPrefix, NodePrefix, WorkspaceId};
use weft_plan::{
    LinkSpec, NodeView, Op, desired, plan,
    view::{AttachedWorkspace, Uplink},
};
use weft_test_support::Netns;

pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) underlay: Netns,
    pub(crate) view: NodeView,
    pub(crate) bpf_dir: PathBuf,
    pub(crate) workspaces: Vec<Workspace>,
}

pub(crate) struct Workspace {
    pub(crate) netns: Netns,
    pub(crate) spec: AttachedWorkspace,
}

impl Workspace {
    pub(crate) fn address(&self) -> Ipv6Addr {
        self.spec.address.address()
    }

    /// Whether a command inside ends with success.
    pub(crate) fn does(&self, command: &str) -> bool {
        succeeds(&self.netns, command)
    }

    pub(crate) fn pings(&self, to: Ipv6Addr) -> bool {
        self.does(&format!("ping -6 -c 1 -W 1 {to}"))
    }
}

pub(crate) fn succeeds(netns: &Netns, command: &str) -> bool {
    let output = netns.output(Command::new("sh").args(["-c", command])).unwrap();
    output.status.success()
}

pub(crate) fn stdout(netns: &Netns, command: &str) -> String {
    let output = netns.output(Command::new("sh").args(["-c", command])).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn id(number: u8) -> WorkspaceId {
    WorkspaceId::from_random([number, number >> 5, 0, 0, 0, 0, 0, 0, 0, 0])
}

impl Node {
    pub(crate) fn new(tag: &str) -> Self {
        let netns = Netns::unique(&format!("{tag}n")).unwrap();
        let underlay = Netns::unique(&format!("{tag}u")).unwrap();
        netns
            .ip(&format!(
                "link add up0 type veth peer name n0 netns {}\naddr add 198.18.0.1/24 dev up0\n\
                 addr add 2001:db8::1/64 dev up0 nodad\nlink set up0 up",
                underlay.name()
            ))
            .unwrap();
        underlay.ip("addr add 198.18.0.2/24 dev n0\naddr add 2001:db8::2/64 dev n0 nodad\nlink set n0 up").unwrap();
        netns.ip("route add default via 198.18.0.2\nroute add default via 2001:db8::2").unwrap();
        let fabric: FabricPrefix = "fd12:3456:789a::/48".parse().unwrap();
        let prefix: NodePrefix = fabric.node_prefix(7).unwrap();
        let bpf_dir = PathBuf::from(format!("/sys/fs/bpf/{}", netns.name()));
        let mut node = Self { netns, underlay, view: empty_view(fabric, prefix), bpf_dir, workspaces: Vec::new() };
        node.view.uplink = node.with(async |kernel| {
            let uplink = kernel.facts().await.unwrap().uplink.unwrap();
            Some(Uplink { name: uplink.name, index: uplink.index, ipv6: uplink.ipv6_default })
        });
        node
    }

    /// Runs something with a freshly opened kernel in the node's netns.
    pub(crate) fn with<T: Send>(&self, work: impl AsyncFnOnce(&Kernel) -> T + Send) -> T {
        let config = KernelConfig { bpf_dir: self.bpf_dir.clone(), uplink: None };
        self.netns
            .run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let kernel = Kernel::open(config).unwrap();
                    work(&kernel).await
                })
            })
            .unwrap()
    }

    /// Observes, plans and applies; returns the steps taken and what a second plan still wants.
    pub(crate) fn reconcile(&self) -> (Vec<Op>, Vec<Op>) {
        let desired = desired(&self.view);
        self.with(async |kernel| {
            let ops = plan(&desired, &kernel.observe().await.unwrap());
            for op in &ops {
                kernel.apply(op).await.unwrap_or_else(|error| panic!("{op:?}: {error}"));
            }
            let again = plan(&desired, &kernel.observe().await.unwrap());
            (ops, again)
        })
    }

    pub(crate) fn settle(&self) {
        let (_, again) = self.reconcile();
        assert_eq!(again, Vec::new());
    }

    pub(crate) fn spec(&self, number: u8, group: Option<&str>) -> AttachedWorkspace {
        let address = self.view.prefix.draw([number, 1, 2, 3, 4, 5, 6, number]).unwrap();
        AttachedWorkspace {
            id: id(number),
            address,
            group: group.map(|group| group.parse().unwrap()),
            ports: Vec::new(),
        }
    }

    pub(crate) fn try_attach(&self, spec: &AttachedWorkspace, netns: &Path) -> Result<(), Error> {
        let link = LinkSpec { ws: spec.clone(), mtu: self.view.mtu };
        self.with(async |kernel| kernel.attach(&link, netns).await)
    }

    /// Attaches a workspace in a netns of its own, as netd does: the view first.
    pub(crate) fn attach(&mut self, number: u8, group: Option<&str>, ports: &[u16]) -> usize {
        let mut spec = self.spec(number, group);
        spec.ports = ports.to_vec();
        let netns = Netns::unique(&format!("w{number}")).unwrap();
        self.view.attachments.push(spec.clone());
        self.try_attach(&spec, netns.path()).unwrap();
        self.workspaces.push(Workspace { netns, spec });
        self.workspaces.len() - 1
    }

    pub(crate) fn drops(&self, reason: weft_plan::policy::Reason) -> u64 {
        self.with(async |kernel| kernel.counters().await.unwrap().drops[&reason])
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // the namespaces go by themselves; pins would stay
        let _ = Command::new("rm").args(["-rf"]).arg(&self.bpf_dir).status();
    }
}

fn empty_view(fabric: FabricPrefix, prefix: NodePrefix) -> NodeView {
    NodeView {
        node: "n1".parse().unwrap(),
        fabric: vec![fabric],
        prefix,
        proxy: false,
        uplink: None,
        local_addresses: vec!["198.18.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        peers: Vec::new(),
        attachments: Vec::new(),
        members: Vec::new(),
        mtu: 1420,
        nat64: None,
        nat64_private: Vec::new(),
    }
}
