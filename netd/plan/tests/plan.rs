//! `plan` against a model of the kernel: from whatever is there, its steps lead to what should be, and touch nothing else.
#![allow(clippy::unwrap_used, reason = "a test states what must hold")]
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::Ipv6Net;
use proptest::{collection::vec, prelude::*, sample::subsequence};
use weft_model::{FabricPrefix, Label, WorkspaceId};
use weft_plan::{
    Entry, LinkState, NodeView, Observed, Op, Route, Target, TunState, desired, missing, plan,
    policy::{Zone4, Zone6},
    state::{METRIC, TRANSLATOR, TUNNEL, nft_digest},
    view::{AttachedWorkspace, Member, Nat64, Peer, Uplink},
};

fn fabric() -> FabricPrefix {
    "fd12:3456:789a::/48".parse().unwrap()
}

fn group(number: u8) -> Label {
    format!("g{number}").parse().unwrap()
}

fn workspace(number: u8, of_group: Option<u8>, ports: Vec<u16>) -> AttachedWorkspace {
    let address = fabric().node_prefix(7).unwrap().draw([number, 9, 9, 9, 9, 9, 9, 9]).unwrap();
    AttachedWorkspace { id: WorkspaceId::from_random([number; 10]), address, group: of_group.map(group), ports }
}

fn attachments() -> impl Strategy<Value = Vec<AttachedWorkspace>> {
    let one = (0u8..8, prop::option::of(0u8..3), vec(1u16..5, 0..3));
    vec(one, 0..6).prop_map(|list| {
        let unique: BTreeMap<u8, _> = list.into_iter().map(|(number, group, ports)| (number, (group, ports))).collect();
        unique.into_iter().map(|(number, (group, ports))| workspace(number, group, ports)).collect()
    })
}

prop_compose! {
    fn views()(
        attachments in attachments(),
        peers in vec((1u64..6, any::<bool>()), 0..4),
        members in vec((0u8..3, 1u16..4), 0..4),
        (uplink, ipv4, private, proxy, mtu) in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 1280u32..1500),
    ) -> NodeView {
        let peers: BTreeMap<u64, bool> = peers.into_iter().collect();
        NodeView {
            node: "n7".parse().unwrap(),
            fabric: vec![fabric()],
            prefix: fabric().node_prefix(7).unwrap(),
            proxy,
            uplink: uplink.then(|| Uplink { name: "eth0".into(), index: 2, ipv6: true }),
            local_addresses: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            peers: peers.into_iter().map(|(number, proxy)| Peer {
                node: format!("n{number}").parse().unwrap(),
                prefix: fabric().node_prefix(number).unwrap(),
                addresses: vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, u8::try_from(number).unwrap()))],
                proxy,
            }).collect(),
            attachments,
            members: members.into_iter().map(|(of, address)| Member {
                address: Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 3, 0, 0, 1, address),
                group: group(of),
            }).collect(),
            mtu,
            nat64: ipv4.then(|| Nat64 { address: Ipv4Addr::new(192, 0, 2, 7), ports: (32768, 40959) }),
            nat64_private: if private { vec!["10.0.0.0/8".parse().unwrap()] } else { vec![] },
        }
    }
}

/// What the kernel does with a step.
fn apply(state: &mut Observed, op: &Op) {
    let device_gone = |name: &str, state: &Observed| {
        let id = WorkspaceId::from_ifname(name);
        !state.tuns.contains_key(name) && !id.is_some_and(|id| state.links.contains_key(&id))
    };
    match op {
        Op::SetSysctl(name, value) => drop(state.sysctls.insert(name.clone(), value.clone())),
        Op::ReservePorts(first, last) => state.reserved_ports.push((*first, *last)),
        Op::EnsureTun(name, mtu) => drop(state.tuns.insert(name.clone(), TunState { mtu: *mtu, up: true })),
        Op::AddLoopback(address) => drop(state.loopback.insert(*address)),
        Op::RemoveLoopback(address) => assert!(state.loopback.remove(address), "{address} is not ours"),
        Op::AddRoute(route) => {
            if let Target::Device { name, .. } = &route.target {
                assert!(!device_gone(name, state), "a route to {name}, which is not there");
            }
            let clash = |other: &&Route| {
                other.destination == route.destination && other.metric == route.metric && *other != route
            };
            assert_eq!(state.routes.iter().find(clash), None, "beside {route:?}");
            state.routes.insert(route.clone());
        }
        Op::RemoveRoute(route) => assert!(state.routes.remove(route), "{route:?} is not ours"),
        Op::SetConfig(config) => {
            assert!(state.tuns.contains_key(TUNNEL) && (config.nat64.is_none() || state.tuns.contains_key(TRANSLATOR)));
            state.config = Some(config.clone());
        }
        Op::Put(entry) => state.tables.put(entry.clone()),
        Op::Delete(entry) => state.tables.delete(entry),
        Op::AttachHook(hook) => drop(state.hooks.insert(hook.clone(), true)),
        Op::DetachHook(hook) => assert!(state.hooks.remove(hook).is_some()),
        Op::SetNft(text) => state.nft = Some(nft_digest(text)),
        Op::RepairLink(spec) => {
            let link = state.links.get_mut(&spec.ws.id).expect("a repair needs a link");
            let (address, twin) = (spec.ws.address.address(), spec.ws.address.twin());
            (link.up, link.mtu, link.gateway, link.programs) = (true, spec.mtu, true, true);
            link.neighbours.extend([address, twin]);
            link.entry = Some((address, twin, spec.ws.group.clone()));
            state.orphans.retain(|orphan| *orphan != address && *orphan != twin);
            let source = Some(spec.ws.address.prefix().node_address());
            for address in [address, twin] {
                let target = Target::Device { name: spec.ws.id.ifname(), source };
                state.routes.insert(Route { destination: Ipv6Net::new_assert(address, 128), target, metric: METRIC });
            }
        }
        Op::RemoveLink(id) => {
            assert!(state.links.remove(id).is_some());
            let gone = |route: &Route| matches!(&route.target, Target::Device { name, .. } if *name == id.ifname());
            state.routes.retain(|route| !gone(route));
        }
        Op::Forget(address) => assert!(state.orphans.remove(address)),
        Op::RemovePin(pin) => assert!(state.stale_pins.remove(pin)),
    }
}

/// What an attach leaves.
fn attach(state: &mut Observed, view: &NodeView, ws: &AttachedWorkspace) {
    let link = LinkState {
        index: 9,
        complete: true,
        mtu: 0,
        up: true,
        gateway: true,
        neighbours: BTreeSet::new(),
        programs: true,
        entry: None,
    };
    state.links.insert(ws.id, link);
    apply(state, &Op::RepairLink(weft_plan::LinkSpec { ws: ws.clone(), mtu: view.mtu }));
    ws.ports.iter().for_each(|port| state.tables.put(Entry::Port(ws.address.address(), *port)));
}

/// Settles a state, attaching what is missing, as netd does.
fn settle(state: &mut Observed, view: &NodeView) {
    let want = desired(view);
    for _ in 0..3 {
        for op in plan(&want, state) {
            apply(state, &op);
        }
        for id in missing(&want, state) {
            attach(state, view, &view.attachments.iter().find(|ws| ws.id == id).unwrap().clone());
        }
    }
}

proptest! {
    #[test]
    fn the_steps_lead_to_what_should_be_and_then_there_are_none(views in vec(views(), 1..4)) {
        let mut state = Observed::default();
        for view in &views {
            settle(&mut state, view);
            let want = desired(view);
            prop_assert_eq!(plan(&want, &state), vec![]);
            prop_assert_eq!(&state.routes, &want.routes);
            prop_assert_eq!(&state.tables, &want.tables);
            prop_assert_eq!(&state.loopback, &want.loopback);
            prop_assert_eq!(state.links.keys().collect::<Vec<_>>(), want.links.keys().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_breaks_is_repaired(
        view in views(), lost in subsequence((0..200usize).collect::<Vec<_>>(), 0..20), stale in any::<bool>(), half in any::<bool>(),
    ) {
        let mut state = Observed::default();
        settle(&mut state, &view);
        let at = |number: &usize, length: usize| if length == 0 { 0 } else { number % length };
        for number in &lost {
            match number % 8 {
                0 => drop(state.routes.clone().iter().nth(at(number, state.routes.len())).map(|route| state.routes.remove(route))),
                1 => {
                    let entry = state.tables.entries().nth(at(number, 20));
                    entry.iter().for_each(|entry| state.tables.delete(entry));
                }
                2 => state.hooks.values_mut().for_each(|current| *current = false),
                3 => state.links.values_mut().for_each(|link| { link.programs = false; link.up = number % 3 == 0 }),
                4 => state.config = None,
                5 => state.nft = None,
                6 => { state.sysctls.clear(); state.loopback.clear() }
                _ => { state.links.pop_first(); }
            }
        }
        if stale {
            state.stale_pins.insert("programs-old".into());
            state.orphans.insert("fd12:3456:789a:7::1:1".parse().unwrap());
        }
        if half {
            state.links.values_mut().for_each(|link| link.complete = false);
        }
        settle(&mut state, &view);
        prop_assert_eq!(plan(&desired(&view), &state), vec![]);
        prop_assert_eq!(missing(&desired(&view), &state), vec![]);
    }

    #[test]
    fn refusals_come_before_anything_forwards(view in views()) {
        let ops = plan(&desired(&view), &Observed::default());
        let first = |wanted: &dyn Fn(&Op) -> bool| ops.iter().position(wanted);
        let last = |wanted: &dyn Fn(&Op) -> bool| ops.iter().rposition(wanted);
        let forwards = first(&|op| matches!(op, Op::SetSysctl(name, _) if name.ends_with("all/forwarding"))).unwrap();
        let leads = first(&|op| matches!(op, Op::AddRoute(route) if route.target != Target::Unreachable)).unwrap_or(ops.len());
        for refusal in [
            last(&|op| matches!(op, Op::AddRoute(route) if route.target == Target::Unreachable)),
            last(&|op| matches!(op, Op::Put(_))),
            last(&|op| matches!(op, Op::AttachHook(_))),
            last(&|op| matches!(op, Op::SetNft(_))),
        ] {
            prop_assert!(refusal.unwrap() < forwards.min(leads));
        }
        if let Some(accepts) = first(&|op| matches!(op, Op::SetSysctl(name, _) if name.ends_with("accept_ra"))) {
            prop_assert!(accepts < forwards);
        }
    }
}

#[test]
fn a_permitted_private_range_opens_what_is_inside_and_never_a_node_or_metadata() {
    let view = NodeView {
        nat64_private: vec!["0.0.0.0/0".parse().unwrap()],
        nat64: Some(Nat64 { address: "192.0.2.7".parse().unwrap(), ports: (1, 2) }),
        ..empty()
    };
    let tables = desired(&view).tables;
    for (address, zone) in [
        ("10.1.2.3", Zone4::Private),
        ("192.0.2.7", Zone4::Denied),
        ("192.0.2.9", Zone4::Denied),
        ("169.254.169.254", Zone4::Denied),
    ] {
        assert_eq!(tables.zone4(address.parse().unwrap()), zone, "{address}");
    }
    let tables = desired(&empty()).tables;
    for (address, zone) in [("10.1.2.3", Zone4::NonGlobal), ("8.8.8.8", Zone4::Global), ("224.0.0.1", Zone4::NonGlobal)]
    {
        assert_eq!(tables.zone4(address.parse().unwrap()), zone, "{address}");
    }
}

#[test]
fn addresses_are_what_they_are() {
    let tables = desired(&empty()).tables;
    for (address, zone) in [
        ("2001:db8::7", Zone6::Denied),
        ("2001:db8::9", Zone6::Internet),
        ("fd12:3456:789a:9::1", Zone6::Fabric),
        ("fd99::1", Zone6::Denied),
        ("fe80::1", Zone6::Denied),
        ("fd00:ec2::254", Zone6::Denied),
        ("::1", Zone6::Denied),
        ("::ffff:10.0.0.1", Zone6::Denied),
        ("64:ff9b::8.8.8.8", Zone6::Nat64Global),
        ("64:ff9b:1::10.0.0.1", Zone6::Nat64Private),
        ("64:ff9b:2::1", Zone6::Denied),
    ] {
        assert_eq!(tables.zone6(address.parse().unwrap()), zone, "{address}");
    }
}

fn empty() -> NodeView {
    NodeView {
        node: "n7".parse().unwrap(),
        fabric: vec![fabric()],
        prefix: fabric().node_prefix(7).unwrap(),
        proxy: false,
        uplink: None,
        local_addresses: vec!["2001:db8::7".parse().unwrap(), fabric().node_prefix(7).unwrap().node_address().into()],
        peers: vec![Peer {
            node: "n9".parse().unwrap(),
            prefix: fabric().node_prefix(9).unwrap(),
            addresses: vec!["192.0.2.9".parse().unwrap()],
            proxy: false,
        }],
        attachments: vec![],
        members: vec![],
        mtu: 1420,
        nat64: None,
        nat64_private: vec![],
    }
}
