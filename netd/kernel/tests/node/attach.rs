//! Attach, adopt, repair, detach: what is there afterwards, and what is not.
use std::{path::Path, process::Command};

use weft_kernel::Error;
use weft_plan::{LinkSpec, Op, desired, missing, plan, view::Nat64};
use weft_test_support::Netns;

use crate::support::{Node, id, stdout, succeeds};

#[test]
fn an_attached_workspace_has_one_random_128_and_a_second_plan_is_empty() {
    let mut node = Node::new("one");
    node.view.nat64 = Some(Nat64 { address: "198.18.0.1".parse().unwrap(), ports: (32768, 40959) });
    node.settle();
    let w = node.attach(1, None, &[8080]);
    node.settle();
    let workspace = &node.workspaces[w];
    let inside =
        stdout(&workspace.netns, "ip -6 -o addr show dev eth0; ip -6 route; ip -4 route; ip neigh; ip link show eth0");
    assert_eq!(inside.matches("inet6").count(), 1, "{inside}");
    for part in [
        &format!("{}/128", workspace.address()),
        "default via fe80::1 dev eth0",
        "default via 192.0.0.2 dev eth0",
        "mtu 1392",
        "192.0.0.2 dev eth0 lladdr 02:57:00:00:00:01 PERMANENT",
        "fe80::1 dev eth0 lladdr 02:57:00:00:00:01 PERMANENT",
        "mtu 1420",
    ] {
        assert!(inside.contains(part), "no {part} in {inside}");
    }
    let host =
        stdout(&node.netns, "ip -6 route; ip -6 -o addr; nft list ruleset; sysctl -n net.ipv4.ip_local_reserved_ports");
    for part in
        ["unreachable 64:ff9b::/96", "src fd12:3456:789a:7::1", "fd12:3456:789a::53/128", "masquerade", "32768-40959"]
    {
        assert!(host.contains(part), "no {part} in {host}");
    }
    assert_eq!(
        stdout(&node.netns, "ip -6 -o addr show dev w$(ip -o link | sed -n 's/.*: w\\([a-z2-7]\\{10\\}\\)@.*/\\1/p')")
            .matches("inet6")
            .count(),
        1
    );
}

#[test]
fn the_host_keeps_the_default_route_that_it_learned_when_forwarding_goes_on() {
    let node = Node::new("ra");
    node.settle();
    let values = stdout(&node.netns, "sysctl -n net.ipv6.conf.up0.accept_ra net.ipv6.conf.all.forwarding");
    assert_eq!(values.split_whitespace().collect::<Vec<_>>(), ["2", "1"]);
    let ops = plan(&desired(&node.view), &weft_plan::Observed::default());
    let at = |name: &str| ops.iter().position(|op| matches!(op, Op::SetSysctl(path, _) if path.ends_with(name)));
    assert!(at("up0/accept_ra") < at("all/forwarding"));
}

#[test]
fn nothing_is_left_after_detach_and_it_may_be_repeated_without_a_netns() {
    let mut node = Node::new("det");
    node.settle();
    let w = node.attach(1, Some("team"), &[80]);
    node.settle();
    let workspace = node.workspaces.remove(w);
    drop(workspace.netns); // the netns is gone first
    node.view.attachments.clear();
    node.with(async |kernel| {
        kernel.detach(id(1)).await.unwrap();
        kernel.detach(id(1)).await.unwrap();
    });
    assert!(!stdout(&node.netns, "ip -o link; ip -6 route; ip -6 neigh").contains(&id(1).ifname()));
    let (ops, again) = node.reconcile();
    assert_eq!((ops, again), (vec![], vec![]), "detach left something to a plan");
}

#[test]
fn teardown_removes_all_without_a_memory() {
    let mut node = Node::new("down");
    let before = stdout(&node.netns, "ip -o link | cut -d: -f2; ip -6 route; ip -6 addr show scope global");
    node.view.nat64 = Some(Nat64 { address: "198.18.0.1".parse().unwrap(), ports: (32768, 40959) });
    node.settle();
    node.attach(1, None, &[]);
    node.settle();
    node.with(async |kernel| kernel.teardown().await.unwrap());
    assert_eq!(stdout(&node.netns, "ip -o link | cut -d: -f2; ip -6 route; ip -6 addr show scope global"), before);
    assert!(!stdout(&node.netns, "nft list ruleset").contains("weft"));
    assert!(!node.bpf_dir.exists());
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let node = Node::new("foreign");
    node.netns
        .ip("link add wforeign0 type veth peer name x0\nlink add weft-other type veth peer name x1\n\
             route add unreachable fd77::/64\naddr add fd77::9/128 dev lo")
        .unwrap();
    assert!(succeeds(&node.netns, "nft add table inet other && sysctl -w net.ipv4.ip_local_reserved_ports=1000-1002"));
    node.settle();
    node.with(async |kernel| kernel.teardown().await.unwrap());
    let after = stdout(
        &node.netns,
        "ip -o link; ip -6 route; ip -6 addr; nft list tables; sysctl net.ipv4.ip_local_reserved_ports",
    );
    for part in ["wforeign0", "weft-other", "fd77::/64", "fd77::9", "inet other", "1000-1002"] {
        assert!(after.contains(part), "no {part} in {after}");
    }
}

#[test]
fn what_somebody_broke_is_repaired() {
    let mut node = Node::new("repair");
    node.settle();
    let w = node.attach(1, Some("a"), &[]);
    let v = node.attach(2, Some("a"), &[]);
    node.settle();
    let ifname = id(1).ifname();
    for damage in [
        format!("ip link set {ifname} down"),
        format!("ip link set {ifname} mtu 1300"),
        format!("ip addr flush dev {ifname}"),
        format!("ip neigh flush dev {ifname} nud permanent"),
        "ip -6 route del unreachable 64:ff9b::/96 metric 4278198272".into(),
        "nft flush chain inet weft to-internet".into(),
        "nft delete table inet weft".into(),
        "sysctl -w net.ipv6.conf.all.forwarding=0".into(),
        "ip link set weft0 down".into(),
        "ip link del weft0".into(),
        "ip addr del fd12:3456:789a:7::1/128 dev lo".into(),
        format!("tc filter del dev {ifname} egress"),
        format!("tc filter del dev {ifname} ingress"),
        format!("tc qdisc del dev {ifname} clsact"),
        format!("rm {}/links/uplink_up0", node.bpf_dir.display()),
    ] {
        assert!(succeeds(&node.netns, &damage), "{damage}");
        let (ops, again) = node.reconcile();
        assert!(!ops.is_empty(), "{damage}: not seen");
        assert_eq!(again, Vec::new(), "{damage}: not repaired");
    }
    assert!(node.workspaces[w].pings(node.workspaces[v].address()));
    // a link that is gone is not in the plan but missing; what it left is cleaned up, and attach makes it anew
    assert!(succeeds(&node.netns, &format!("ip link del {ifname}")));
    node.reconcile();
    let lost = node.with(async |kernel| missing(&desired(&node.view), &kernel.observe().await.unwrap()));
    assert_eq!(lost, vec![id(1)]);
    node.try_attach(&node.workspaces[w].spec, node.workspaces[w].netns.path()).unwrap();
    node.settle();
    assert!(node.workspaces[w].pings(node.workspaces[v].address()));
}

#[test]
fn a_half_made_link_is_removed_and_made_anew() {
    let mut node = Node::new("half");
    node.settle();
    let spec = node.spec(1, None);
    node.view.attachments.push(spec.clone());
    node.netns
        .ip(&format!("link add {} type veth peer name x0\nlink set {} up", spec.id.ifname(), spec.id.ifname()))
        .unwrap();
    let (ops, _) = node.reconcile();
    assert!(ops.contains(&Op::RemoveLink(spec.id)), "{ops:?}");
    let netns = Netns::unique("half").unwrap();
    node.try_attach(&spec, netns.path()).unwrap();
    node.settle();
}

#[test]
fn a_group_that_changes_takes_effect_without_a_new_attach() {
    let mut node = Node::new("group");
    node.settle();
    let a = node.attach(1, Some("a"), &[]);
    let b = node.attach(2, Some("b"), &[]);
    node.settle();
    assert!(!node.workspaces[a].pings(node.workspaces[b].address()));
    node.view.attachments[1].group = Some("a".parse().unwrap());
    node.settle();
    assert!(node.workspaces[a].pings(node.workspaces[b].address()));
    node.view.attachments[1].group = None;
    node.settle();
    assert!(!node.workspaces[a].pings(node.workspaces[b].address()));
}

#[test]
fn a_bad_attach_says_what_to_do_and_leaves_nothing() {
    let mut node = Node::new("bad");
    node.settle();
    let w = node.attach(1, None, &[]);
    node.settle();
    let spec = node.spec(2, None);
    let refused = |path: &Path| node.try_attach(&spec, path).unwrap_err();
    assert!(matches!(refused(Path::new("/run/netns/no-such-netns")), Error::NoNetns { .. }));
    assert!(matches!(refused(Path::new("/proc/self/ns/mnt")), Error::NotANetns { .. }));
    assert!(matches!(refused(Path::new("/etc/passwd")), Error::NotANetns { .. }));
    assert!(matches!(refused(node.netns.path()), Error::OwnNetns { .. }));
    assert!(matches!(refused(node.workspaces[w].netns.path()), Error::HasEth0 { .. }));
    let other = Netns::unique("other").unwrap();
    let twice = node.try_attach(&node.workspaces[w].spec, other.path()).unwrap_err();
    assert!(matches!(twice, Error::AlreadyAttached { .. }));
    assert!(twice.to_string().ends_with("detach it first"), "{twice}");
    let (ops, _) = node.reconcile();
    assert_eq!(ops, Vec::new(), "a refused attach left something");
}

#[test]
fn an_attach_that_fails_inside_is_taken_back() {
    let mut node = Node::new("roll");
    node.settle();
    let spec = node.spec(1, None);
    node.view.attachments.push(spec.clone());
    let netns = Netns::unique("roll").unwrap();
    // the default route is taken inside: the batch in the workspace fails after the link, entries and programs are there
    netns.ip("link add x0 type veth peer name x1\nlink set x0 up\nroute add ::/0 dev x0 metric 1024").unwrap();
    let result = node.try_attach(&spec, netns.path());
    assert!(result.unwrap_err().to_string().contains("route the default of IPv6"));
    node.view.attachments.clear();
    let (ops, _) = node.reconcile();
    assert_eq!(ops, Vec::new(), "a failed attach left something");
    assert!(!succeeds(&netns, "ip link show eth0"));
}

#[test]
fn a_hundred_attaches_take_milliseconds_each() {
    let mut node = Node::new("speed");
    node.settle();
    let specs: Vec<_> =
        (1..=100).map(|number| (node.spec(number, Some("a")), Netns::unique("speed").unwrap())).collect();
    node.view.attachments = specs.iter().map(|(spec, _)| spec.clone()).collect();
    let mtu = node.view.mtu;
    let mut times = node.with(async |kernel| {
        let mut times = Vec::new();
        for (spec, netns) in &specs {
            let begin = std::time::Instant::now();
            kernel.attach(&LinkSpec { ws: spec.clone(), mtu }, netns.path()).await.unwrap();
            times.push(begin.elapsed());
        }
        times
    });
    times.sort();
    println!("attach: min {:?} p50 {:?} p99 {:?}", times[0], times[50], times[98]);
    node.settle();
    let begin = std::time::Instant::now();
    node.with(async |kernel| kernel.observe().await.unwrap());
    println!("open and observe with 100 workspaces: {:?}", begin.elapsed());
    node.view.attachments.clear();
    node.settle();
    assert!(times[50] < std::time::Duration::from_millis(10), "p50 {:?}", times[50]);
}

#[test]
fn events_reach_the_watcher() {
    let node = Node::new("watch");
    let name = node.netns.name().to_owned();
    node.with(async |kernel| {
        let mut events = kernel.watch().unwrap();
        assert!(
            Command::new("ip").args(["-n", &name, "link", "add", "x0", "type", "veth"]).status().unwrap().success()
        );
        tokio::time::timeout(std::time::Duration::from_secs(5), events.changed()).await.unwrap().unwrap();
    });
}
