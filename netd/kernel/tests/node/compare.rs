//! The programs against `weft_plan::policy`: the same packets must get the same verdict, and the same reason.
#![allow(unsafe_code)]
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    io,
    net::Ipv6Addr,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};
use weft_plan::{
    desired,
    policy::{self, Context, Ingress, Judgement, Link, Verdict, Via},
    state::{TRANSLATOR, TUNNEL},
    view::{Member, Nat64, Peer},
};

use crate::{
    packet::{HOST_MAC, ethernet, ipv6},
    support::{Node, id},
};

/// How many packets each hook is tried with.
const CASES: u32 = 20_000;

fn bpf(command: libc::c_long, attributes: &mut [u64]) -> io::Result<i32> {
    let size = size_of_val(attributes);
    // SAFETY: the attributes are live and of the given size; the callers keep alive what they point to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn pinned(path: &Path) -> OwnedFd {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let fd = bpf(7, &mut [path.as_ptr() as u64, 0]).unwrap();
    // SAFETY: the kernel just gave it to us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// BPF_PROG_TEST_RUN of a frame at an interface; what the program returned.
fn run(program: &OwnedFd, frame: &[u8], ifindex: u32, ingress: u32) -> i32 {
    let mut skb = [0u32; 48]; // struct __sk_buff
    (skb[9], skb[10]) = (ingress, ifindex);
    let mut out = vec![0u8; frame.len() + 256];
    let sizes = |low: usize, high: usize| low as u64 | (high as u64) << 32;
    let mut attributes = [
        sizes(program.as_raw_fd() as usize, 0),
        sizes(frame.len(), out.len()),
        frame.as_ptr() as u64,
        out.as_mut_ptr() as u64,
        sizes(1, 0),
        sizes(size_of_val(&skb), 0),
        skb.as_mut_ptr() as u64,
        0,
        0,
        0,
    ];
    bpf(10, &mut attributes).unwrap_or_else(|error| panic!("test run of {frame:02x?}: {error}"));
    (attributes[0] >> 32) as u32 as i32
}

/// The sum of a reason's counter over the CPUs.
fn count(drops: &OwnedFd, reason: u32) -> u64 {
    let mut values = [0u64; 1024];
    bpf(1, &mut [drops.as_raw_fd() as u64, &raw const reason as u64, values.as_mut_ptr() as u64, 0]).unwrap();
    values.iter().sum()
}

fn address(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// Addresses that matter: everyone that a rule speaks of.
fn addresses(node: &Node) -> Vec<Ipv6Addr> {
    let mut pool: Vec<Ipv6Addr> = node.workspaces.iter().flat_map(|w| [w.address(), w.spec.address.twin()]).collect();
    let own = node.workspaces[0].address();
    pool.extend([own; 6]); // most often the workspace itself, so that the later rules are reached
    pool.extend(
        [
            "fd12:3456:789a:9:1:2:3:4", // a friend elsewhere
            "fd12:3456:789a:9::5:5",    // a stranger elsewhere
            "fd12:3456:789a:7::1",
            "fd12:3456:789a:7::2",
            "fd12:3456:789a:9::2", // a proxy
            "fd12:3456:789a::53",
            "2001:db8::1", // the node on the underlay
            "2001:db8:5::5",
            "2a00::1",
            "64:ff9b::8.8.8.8",
            "64:ff9b::10.0.0.1",
            "64:ff9b::198.18.0.1",
            "64:ff9b:1::10.0.0.1",
            "64:ff9b:1::8.8.8.8",
            "fd00:ec2::254",
            "fe80::1",
            "fe80::2",
            "ff02::1",
            "ff02::1:ff00:1",
            "::",
            "::1",
        ]
        .map(address),
    );
    pool
}

const PORTS: [u16; 6] = [53, 80, 8080, 33000, 40000, 7];

/// An upper layer with its number; `quoted` is what an error quotes.
fn upper(quoted: impl Strategy<Value = Vec<u8>> + 'static) -> BoxedStrategy<(u8, Vec<u8>)> {
    let port = || select(&PORTS[..]);
    let tcp = (port(), port(), 0u8..16, any::<u8>()).prop_map(|(from, to, offset, flags)| {
        let mut header =
            [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 8], &[offset << 4, flags], &[0; 6], &[0; 20]].concat();
        header.truncate(40);
        (6, header)
    });
    let whole = (port(), port(), any::<u8>()).prop_map(|(from, to, flags)| {
        (6, [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 8], &[0x50, flags], &[0; 6]].concat())
    });
    let udp = (port(), port(), any::<bool>()).prop_map(|(from, to, sum)| {
        (17, [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 8, u8::from(sum), 0]].concat())
    });
    let icmp = (
        select(&[1u8, 2, 3, 4, 128, 129, 133, 134, 135, 136, 137, 200][..]),
        port(),
        select(vec!["fe80::1", "2001:db8::9"]),
    )
        .prop_map(|(kind, id, target)| {
            let id = if (128..130).contains(&kind) { id.to_be_bytes() } else { [0; 2] };
            (58, [&[kind, 0, 0, 0][..], &id, &[0, 1], &address(target).octets()].concat())
        });
    let error = (1u8..5, quoted).prop_map(|(kind, quoted)| (58, [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &quoted].concat()));
    let other = (select(&[47u8, 50, 59, 132, 4, 41][..]), vec(any::<u8>(), 0..30));
    prop_oneof![2 => tcp, 4 => whole, 4 => udp, 4 => icmp, 3 => error, 1 => other].boxed()
}

/// Extension headers before an upper layer.
fn extended(next: u8, body: Vec<u8>, headers: &[u8]) -> (u8, Vec<u8>) {
    headers.iter().rev().fold((next, body), |(next, body), header| match header {
        0 | 60 | 43 => (*header, [&[next, 0, 0, 0, 0, 0, 0, 0][..], &body].concat()),
        // 44: whole or first; 45: first of several; 46: a later one
        44 => (44, [&[next, 0, 0, 0, 0, 0, 0, 9][..], &body].concat()),
        45 => (44, [&[next, 0, 0, 1, 0, 0, 0, 9][..], &body].concat()),
        _ => (44, [&[next, 0, 0, 9, 0, 0, 0, 9][..], &body].concat()),
    })
}

fn packets6(pool: Vec<Ipv6Addr>) -> impl Strategy<Value = Vec<u8>> {
    let plain = {
        let pool = pool.clone();
        let inner = (select(pool.clone()), select(pool), upper(Just(Vec::new())))
            .prop_map(|(src, dst, (next, body))| ipv6(src, dst, next, 64, &body));
        inner.boxed()
    };
    let headers = prop_oneof![
        6 => Just(vec![]),
        2 => vec(select(&[0u8, 60, 44, 45, 46][..]), 1..3),
        1 => vec(select(&[0u8, 60, 43, 44, 45, 46][..]), 1..9),
    ];
    let hops = select(&[64u8, 255, 1, 0][..]);
    (select(pool.clone()), select(pool), upper(plain), headers, hops).prop_map(
        |(src, dst, (next, body), headers, hops)| {
            let (next, body) = extended(next, body, &headers);
            ipv6(src, dst, next, hops, &body)
        },
    )
}

fn packets4() -> impl Strategy<Value = Vec<u8>> {
    let known = || {
        select(vec![
            [192, 0, 0, 1],
            [192, 0, 0, 2],
            [8, 8, 8, 8],
            [10, 0, 0, 1],
            [172, 16, 0, 1],
            [198, 18, 0, 1],
            [169, 254, 169, 254],
            [224, 0, 0, 1],
        ])
    };
    let bodies = prop_oneof![
        (select(&PORTS[..]), select(&PORTS[..]), select(&[6u8, 17][..])).prop_map(|(from, to, protocol)| {
            (
                protocol,
                [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 8, 1, 1], &[0; 4], &[0x50, 2], &[0; 6]].concat(),
            )
        }),
        (select(&[0u8, 3, 8, 11, 13][..]), select(&PORTS[..]), known(), 0u8..2).prop_map(
            |(kind, port, inner, code)| {
                let quoted = [
                    &[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0][..],
                    &inner,
                    &[8, 8, 8, 8],
                    &port.to_be_bytes(),
                    &[0; 6],
                ]
                .concat();
                (1, [&[kind, code, 0, 0][..], &port.to_be_bytes(), &[0, 1], &quoted].concat())
            }
        ),
        (any::<u8>(), vec(any::<u8>(), 0..30)),
    ];
    let own = prop_oneof![3 => Just([192, 0, 0, 1]), 1 => known()];
    let odd = select(&[0x45u8, 0x45, 0x45, 0x46, 0x65][..]);
    let fragment = select(&[0u16, 0, 0, 0x4000, 0x2000, 5][..]);
    (own, known(), bodies, odd, fragment, select(&[64u8, 64, 1, 0][..])).prop_map(
        |(src, dst, (protocol, body), first, fragment, ttl)| {
            let length = (20 + body.len() as u16).to_be_bytes();
            let fragment = fragment.to_be_bytes();
            let header = [first, 0, length[0], length[1], 0, 9, fragment[0], fragment[1], ttl, protocol, 0, 0];
            [&header[..], &src, &dst, &body].concat()
        },
    )
}

fn frames(pool: Vec<Ipv6Addr>) -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        12 => packets6(pool).prop_map(|packet| (0x86dd, packet)),
        5 => packets4().prop_map(|packet| (0x0800, packet)),
        1 => vec(any::<u8>(), 1..60).prop_map(|bytes| (0x0806, bytes)),
        1 => (any::<u16>().prop_map(|ethertype| ethertype | 0x0800), vec(any::<u8>(), 1..60)),
        1 => vec(any::<u8>(), 1..120).prop_map(|bytes| (0x86dd, bytes)),
        1 => vec(any::<u8>(), 1..60).prop_map(|bytes| (0x0800, bytes)),
    ];
    (payload, prop::option::weighted(0.15, any::<prop::sample::Index>())).prop_map(|((ethertype, mut payload), cut)| {
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()) + 1);
        }
        // the kernel tries no program with less than an IP header
        let least = [(0x0800, 20), (0x86dd, 40)].iter().find(|(of, _)| *of == ethertype).map_or(1, |(_, least)| *least);
        payload.resize(payload.len().max(least), 0);
        ethernet(HOST_MAC, [2, 0, 0, 0, 0, 9], ethertype, &payload)
    })
}

/// What a verdict looks like from outside: what the program returns.
fn returned(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Forward(Via::Stack) => -1,
        Verdict::Forward(Via::Workspace(_) | Via::Translator | Via::Answer) => 7,
        Verdict::Drop(_) => 2,
    }
}

fn prepared() -> (Node, Context) {
    let mut node = Node::new("cmp");
    node.view.proxy = true;
    node.view.nat64 = Some(Nat64 { address: "198.18.0.1".parse().unwrap(), ports: (32768, 40959) });
    node.view.nat64_private = vec!["10.0.0.0/8".parse().unwrap()];
    node.view.peers.push(Peer {
        node: "n9".parse().unwrap(),
        prefix: node.view.fabric[0].node_prefix(9).unwrap(),
        addresses: vec!["2001:db8::9".parse().unwrap()],
        proxy: true,
    });
    node.view.members.push(Member { address: address("fd12:3456:789a:9:1:2:3:4"), group: "team".parse().unwrap() });
    node.settle();
    node.attach(1, Some("team"), &[8080]);
    node.attach(2, Some("team"), &[]);
    node.attach(3, None, &[80]);
    node.settle();
    let want = desired(&node.view);
    let links = node
        .view
        .attachments
        .iter()
        .map(|ws| (ws.address.address(), Link { twin: ws.address.twin(), group: ws.group.clone() }));
    let links = links.collect();
    let context =
        Context { config: want.config, tables: want.tables, links, flows: BTreeSet::new(), fragments: BTreeSet::new() };
    (node, context)
}

/// Tries a program with random frames and compares each time with the model.
fn compare(
    name: &str,
    ingresses: &'static [Ingress],
    interface: &str,
    judge: impl Fn(&Context, Ipv6Addr, Ingress, &[u8]) -> Judgement + Sync,
) {
    let (node, mut context) = prepared();
    let own = node.workspaces[0].address();
    let pool = addresses(&node);
    let version = std::fs::read_dir(&node.bpf_dir).unwrap().map(|entry| entry.unwrap().path());
    let version: Vec<_> = version.collect();
    let folder =
        |kind: &str| version.iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with(kind)).unwrap();
    let program = pinned(&folder("programs-").join(name));
    let drops = pinned(&folder("maps-").join("drops"));
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    node.netns
        .run(|| {
            let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
            let ifindex = index(interface);
            let other = id(2).ifname();
            let from = |ingress: Ingress| match ingress {
                Ingress::Local => 0,
                Ingress::Tunnel => index(TUNNEL),
                Ingress::Translator => index(TRANSLATOR),
                Ingress::Workspace => index(&other),
                Ingress::Other => index("up0"),
            };
            let mut runner = TestRunner::new(Config {
                cases: CASES,
                failure_persistence: None,
                max_shrink_iters: 0,
                max_global_rejects: CASES,
                ..Config::default()
            });
            let context = std::cell::RefCell::new(&mut context);
            let seen = std::cell::RefCell::new(&mut seen);
            let result = runner.run(&(frames(pool), select(ingresses)), |(frame, ingress)| {
                // the model leaves IPv4's later fragments at the uplink to the program's memory of first ones
                let later = frame[12..14] == [8, 0] && (frame[20] & 0x1f, frame[21]) != (0, 0);
                prop_assume!(name != "from_uplink" || !later);
                let expected = judge(&context.borrow(), own, ingress, &frame);
                // the stack's own chatter is counted meanwhile: only the expected reason is looked at
                let reason =
                    if let Verdict::Drop(reason) = expected.verdict { Some(u32::from(reason.code())) } else { None };
                let before = reason.map(|reason| count(&drops, reason));
                let got = run(&program, &frame, ifindex, from(ingress));
                let counted = reason.map(|reason| count(&drops, reason)) > before || reason.is_none();
                prop_assert_eq!(
                    (got, counted),
                    (returned(expected.verdict), true),
                    "{:?} {:?} {:02x?}",
                    expected,
                    ingress,
                    &frame
                );
                context.borrow_mut().flows.extend(expected.opens);
                *seen
                    .borrow_mut()
                    .entry(format!("{:?}", expected.verdict).split("Addr").next().unwrap().into())
                    .or_default() += 1;
                if matches!(expected.verdict, Verdict::Forward(_)) && name == "to_workspace" {
                    context.borrow_mut().note_fragment(&frame);
                }
                Ok(())
            });
            result.unwrap();
        })
        .unwrap();
    println!("{name}: {seen:#?}");
    assert!(seen.len() > 3, "the packets are not varied enough: {seen:?}");
}

trait NoteFragment {
    /// Remembers a first fragment that was let in, as the program does.
    fn note_fragment(&mut self, frame: &[u8]);
}

impl NoteFragment for &mut Context {
    fn note_fragment(&mut self, frame: &[u8]) {
        if let Some(first) = policy::first_fragment(frame) {
            self.fragments.insert(first);
        }
    }
}

#[test]
fn from_workspace_judges_as_the_model_does() {
    compare("from_workspace", &[Ingress::Other], &id(1).ifname(), |context, own, _, frame| {
        policy::from_workspace(context, own, frame)
    });
}

#[test]
fn to_workspace_judges_as_the_model_does() {
    const WAYS: &[Ingress] =
        &[Ingress::Local, Ingress::Tunnel, Ingress::Translator, Ingress::Workspace, Ingress::Other];
    compare("to_workspace", WAYS, &id(1).ifname(), policy::to_workspace);
}

#[test]
fn from_uplink_judges_as_the_model_does() {
    compare("from_uplink", &[Ingress::Other], "up0", |context, _, _, frame| policy::from_uplink(context, frame));
}
