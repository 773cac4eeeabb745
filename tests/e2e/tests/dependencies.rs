//! Holds the rules about crates that a reviewer would forget: dependencies point down, pure crates stay pure, and unsafe
//! code stays in its rooms.
#![allow(clippy::unwrap_used)] // all of it is a test

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Pure crates take bytes, time and randomness as arguments.
const PURE: [&str; 4] = ["weft-model", "weft-plan", "weft-nat64-core", "weft-proxy-core"];

/// What a pure crate must not depend on, however indirectly: by name, or by the name's beginning if it ends with '*'.
const IMPURE: [&str; 27] = [
    "async-io",
    "async-std",
    "axum",
    "aya*",
    "chrono",
    "etcd-client",
    "getrandom",
    "hickory-*",
    "hyper*",
    "libc",
    "mio",
    "netlink-*",
    "nix",
    "pingora*",
    "quinn*",
    "rand",
    "rand_core",
    "reqwest",
    "rtnetlink",
    "rusqlite",
    "rustix",
    "rustls",
    "smol",
    "socket2",
    "time",
    "tokio*",
    "tun-rs",
];

/// Calls by which a pure crate would see the clock, the network or the disk through the standard library.
const IMPURE_CALLS: [&str; 8] = [
    "Instant::now",
    "SystemTime::now",
    "thread::sleep",
    "std::fs",
    "TcpStream",
    "UdpSocket",
    "std::process",
    "std::env",
];

/// Where unsafe code may be allowed: each use with a SAFETY comment, which clippy holds.
const UNSAFE_ROOMS: [&str; 4] = ["nat64/tun/", "netd/kernel/", "netd/wire/src/io.rs", "netd/wire/src/io/"];

/// What each crate may use of ours, besides the pure crates below it. Crates that are not named may use none.
const MAY_USE: [(&str, &[&str]); 14] = [
    ("weft-nat64-core", &["weft-model"]),
    ("weft-plan", &["weft-model"]),
    ("weft-proxy-core", &["weft-model"]),
    ("nat64", &["weft-nat64-core", "weft-tun"]),
    ("weft-client", &["weft-model"]),
    ("weft-store", &["weft-model", "weft-client"]),
    ("weft-kernel", &["weft-model", "weft-plan", "weft-tun"]),
    ("weft-wire", &["weft-tun"]),
    ("weft-dns", &["weft-model"]),
    ("netctl", &["weft-model", "weft-client"]),
    (
        "netd",
        &[
            "weft-model",
            "weft-plan",
            "weft-nat64-core",
            "weft-store",
            "weft-client",
            "weft-kernel",
            "weft-wire",
            "weft-dns",
        ],
    ),
    ("weft-proxy", &["weft-proxy-core", "weft-model", "weft-client"]),
    ("weft-lab", &["weft-model", "weft-test-support"]),
    ("weft-e2e", &["weft-lab", "weft-test-support", "weft-model", "weft-client"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

struct Graph {
    names: BTreeMap<String, String>,
    normal: BTreeMap<String, Vec<String>>,
    members: BTreeSet<String>,
}

/// The normal dependencies (not those of tests and build scripts) of every package, by package id.
fn graph() -> Graph {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let names = list(&metadata["packages"]).iter().map(|one| (text(&one["id"]), text(&one["name"]))).collect();
    let is_normal = |dependency: &Value| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
    let nodes = list(&metadata["resolve"]["nodes"]);
    let normal = nodes.iter().map(|node| {
        let used = list(&node["deps"]).into_iter().filter(|one| is_normal(one)).map(|one| text(&one["pkg"])).collect();
        (text(&node["id"]), used)
    });
    Graph { normal: normal.collect(), names, members: list(&metadata["workspace_members"]).iter().map(text).collect() }
}

impl Graph {
    fn member(&self, name: &str) -> &str {
        self.members.iter().find(|id| self.names[*id] == name).unwrap_or_else(|| panic!("no crate {name}"))
    }

    /// Everything below a package, each with the way there.
    fn below(&self, id: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut open = vec![(id.to_owned(), self.names[id].clone())];
        while let Some((id, way)) = open.pop() {
            for used in &self.normal[&id] {
                let way = format!("{way} -> {}", self.names[used]);
                if found.insert(used.clone(), way.clone()).is_none() {
                    open.push((used.clone(), way));
                }
            }
        }
        found
    }
}

#[test]
fn pure_crates_see_no_runtime_no_kernel_and_no_clock() {
    let graph = graph();
    let impure = |name: &str| {
        IMPURE.iter().any(|bad| bad.strip_suffix('*').map_or(name == *bad, |beginning| name.starts_with(beginning)))
    };
    for name in PURE {
        for (id, way) in graph.below(graph.member(name)) {
            assert!(
                !impure(&graph.names[&id]),
                "{way}: a pure crate must not depend on it; move the use to an IO crate"
            );
        }
    }
}

#[test]
fn the_rule_about_pure_crates_can_fail() {
    let graph = graph();
    let below = graph.below(graph.member("weft-client"));
    assert!(below.keys().any(|id| graph.names[id] == "tokio"), "weft-client is known to use tokio");
}

#[test]
fn pure_crates_call_neither_the_clock_nor_the_system() {
    for folder in ["netd/model", "netd/plan", "nat64/core", "proxy/core"] {
        for path in sources(&root().join(folder).join("src")) {
            let text = fs::read_to_string(&path).unwrap();
            // Tests at a file's end may read files; what comes before may not.
            let code = text.split("#[cfg(test)]").next().unwrap();
            let is_code = |line: &&str| !line.trim_start().starts_with("//");
            for line in code.lines().filter(is_code) {
                let bad = IMPURE_CALLS.iter().find(|call| line.contains(*call));
                assert_eq!(bad, None, "{}: {line}: take it as an argument", path.display());
            }
        }
    }
}

#[test]
fn dependencies_between_our_crates_point_down() {
    let graph = graph();
    let allowed: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    for id in &graph.members {
        let name = &graph.names[id];
        for used in graph.normal[id].iter().filter(|used| graph.members.contains(*used)) {
            let used = &graph.names[used];
            let may = allowed.get(name.as_str()).is_some_and(|list| list.contains(&used.as_str()));
            assert!(may, "{name} uses {used}: that is not a layer below it; see docs/ARCHITECTURE.md, Crates");
        }
    }
}

#[test]
fn unsafe_code_is_allowed_only_in_its_rooms() {
    let root = root();
    for folder in ["nat64", "netd", "proxy", "labs", "tests"] {
        for path in sources(&root.join(folder)) {
            let text = fs::read_to_string(&path).unwrap();
            let shown = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            // Spelt in two parts, so that this file does not find itself.
            let allows =
                text.contains(concat!("allow(", "unsafe_code")) || text.contains(concat!("expect(", "unsafe_code"));
            let room = UNSAFE_ROOMS.iter().any(|room| shown.starts_with(room));
            assert!(!allows || room, "{shown} allows unsafe code: its rooms are {UNSAFE_ROOMS:?}");
        }
    }
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let root = root();
    let manifest: Vec<_> = fs::read_to_string(root.join("Cargo.toml")).unwrap().lines().map(str::to_owned).collect();
    assert!(manifest.iter().any(|line| line.starts_with("unsafe_code = \"deny\"")), "the workspace denies unsafe code");
    for path in manifests(&root) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("[lints]\nworkspace = true"), "{} does not take the workspace's lints", path.display());
    }
}

fn manifests(root: &Path) -> Vec<PathBuf> {
    let groups = ["nat64", "netd", "proxy", "tests"].map(|folder| root.join(folder));
    let inside = groups.iter().flat_map(|group| fs::read_dir(group).unwrap().flatten()).map(|entry| entry.path());
    inside.chain([root.join("labs")]).map(|folder| folder.join("Cargo.toml")).filter(|path| path.exists()).collect()
}

/// Every Rust source below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
