//! Attach and detach through netd's API, beside the floor: the same kernel objects made by netlink alone.
//!
//!     node (netd run, one fabric of one node) ── w<id> ── pods, made beforehand
use std::{
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::link::{InfoData, InfoVeth},
};
use weft_client::Client;
use weft_model::{
    api::{AttachRequest, InitRequest, MemberReply, WorkspaceView},
    id::WorkspaceId,
};

use crate::{
    Bench,
    net::{self, Ns, veth},
    report::{Rows, quantile},
};

/// How many attaches a sample holds.
const SAMPLE: usize = 60;

/// Measures and adds the rows.
pub(crate) fn run(bench: &Bench, rows: &mut Rows) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let node = Node::start(bench)?;
    let client = Client::unix(&node.socket);
    runtime.block_on(async {
        let request = InitRequest { node: Some("bench".into()), ..InitRequest::default() };
        client.post::<_, MemberReply>("/v1/init", &request).await.context("init")
    })?;
    let mut crowd = Vec::new();
    for population in [0, bench.crowd] {
        while crowd.len() < population {
            let pod = Ns::new("crowd")?;
            runtime.block_on(attach(&client, &pod.path()))?;
            crowd.push(pod);
        }
        println!("attach: at {population} attached");
        let sample = runtime.block_on(sample(&node.ns, &client, bench.rounds))?;
        add(rows, population, &sample);
    }
    Ok(())
}

/// Durations in milliseconds.
#[derive(Default)]
struct Sample {
    floor: Vec<f64>,
    attach: Vec<f64>,
    detach: Vec<f64>,
}

fn add(rows: &mut Rows, population: usize, sample: &Sample) {
    for (what, ours, q) in
        [("attach p50", &sample.attach, 0.5), ("attach p99", &sample.attach, 0.99), ("detach p50", &sample.detach, 0.5)]
    {
        if let (Some(ours), Some(floor)) = (quantile(ours, q), quantile(&sample.floor, 0.5)) {
            rows.add(
                "attach",
                format!("{what} at {population}"),
                "ms (less is better)",
                ours,
                "kernel floor p50",
                floor,
            );
        }
    }
}

async fn sample(node: &Ns, client: &Client, rounds: usize) -> Result<Sample> {
    let mut sample = Sample::default();
    let floor = Floor::open(&node.path())?;
    for _ in 0..SAMPLE * rounds / 3 {
        let (bare, pod) = (Ns::new("floor")?, Ns::new("pod")?);
        sample.floor.push(floor.attach(&bare.path()).await?.as_secs_f64() * 1e3);
        let start = Instant::now();
        let id = attach(client, &pod.path()).await?;
        sample.attach.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        client.delete::<serde_json::Value>(&format!("/v1/workspaces/{id}?forget=true")).await?;
        sample.detach.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(sample)
}

async fn attach(client: &Client, netns: &Path) -> Result<WorkspaceId> {
    let request = AttachRequest { netns: netns.into(), group: Some("bench".parse()?), ..AttachRequest::default() };
    Ok(client.post::<_, WorkspaceView>("/v1/workspaces", &request).await?.id)
}

/// A namespace with an uplink and netd in it.
struct Node {
    ns: Ns,
    socket: PathBuf,
    _router: Ns,
    _directory: tempfile::TempDir,
    pins: PathBuf,
}

impl Node {
    fn start(bench: &Bench) -> Result<Self> {
        let (mut ns, router) = (Ns::new("node")?, Ns::new("router")?);
        veth((&ns, "uplink", &["198.18.68.2/24"]), (&router, "node", &["198.18.68.1/24"]))?;
        ns.ip("-4 route add default via 198.18.68.1")?;
        let directory = tempfile::tempdir()?;
        let [state, run] = ["state", "run"].map(|name| directory.path().join(name));
        let pins = PathBuf::from(format!("/sys/fs/bpf/weft-bench-{}", std::process::id()));
        let mut command = ns.command(bench.binary("netd")?);
        command.arg("run").arg("--state-dir").arg(&state).arg("--run-dir").arg(&run).arg("--bpf-dir").arg(&pins);
        ns.spawn(&mut command)?;
        let socket = run.join("netd.sock");
        net::wait_for("netd's socket", || socket.exists())?;
        Ok(Self { ns, socket, _router: router, _directory: directory, pins })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}

/// What any attach must ask of the kernel: a veth born in the pod, an address and a route on each side.
struct Floor {
    host: Handle,
    next: std::cell::Cell<u32>,
}

impl Floor {
    fn open(node: &Path) -> Result<Self> {
        Ok(Self { host: handle(node)?, next: std::cell::Cell::new(1) })
    }

    async fn attach(&self, pod: &Path) -> Result<Duration> {
        let number = self.next.replace(self.next.get() + 1);
        let inside = handle(pod)?;
        let netns = std::fs::File::open(pod)?;
        let (outer, inner) = (1_000_000 + number, 2);
        let peer =
            LinkMessageBuilder::<LinkUnspec>::new().name("eth0").index(inner).setns_by_fd(netns.as_raw_fd()).build();
        let mut link = LinkVeth::new(&format!("floor{number}"), "unused").index(outer).up();
        link = link.set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
        let address = std::net::Ipv6Addr::from_bits(0xfd00_0069 << 96 | u128::from(number));
        let gateway = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

        let start = Instant::now();
        self.host.link().add(link.build()).execute().await?;
        nodad(&self.host, outer, gateway, 64).await?;
        let route =
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(address, 128).output_interface(outer);
        self.host.route().add(route.build()).execute().await?;
        inside.link().change(LinkUnspec::new_with_index(inner).up().build()).execute().await?;
        nodad(&inside, inner, address, 128).await?;
        let route = RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway(gateway).output_interface(inner);
        inside.route().add(route.build()).execute().await?;
        Ok(start.elapsed())
    }
}

async fn nodad(handle: &Handle, index: u32, address: std::net::Ipv6Addr, len: u8) -> Result<()> {
    let mut message = AddressMessageBuilder::<std::net::Ipv6Addr>::new().index(index).address(address, len).build();
    message.header.flags = rtnetlink::packet_route::address::AddressHeaderFlags::Nodad;
    let mut request = handle.address().add(index, address.into(), len);
    *request.message_mut() = message;
    Ok(request.execute().await?)
}

/// A netlink connection that was opened inside a namespace; it keeps working from outside.
fn handle(netns: &Path) -> Result<Handle> {
    let runtime = tokio::runtime::Handle::current();
    let file = std::fs::File::open(netns)?;
    std::thread::scope(|scope| {
        let opened = scope.spawn(move || -> Result<Handle> {
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let _guard = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            runtime.spawn(connection);
            Ok(handle)
        });
        opened.join().ok().context("the thread that entered the namespace ended early")?
    })
}
