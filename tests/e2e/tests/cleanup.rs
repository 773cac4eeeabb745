//! A lab goes away whatever ends its runner: its end, a signal, a panic, or kill -9 (then at the next start).
#![allow(clippy::unwrap_used)] // all of it is a test

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use weft_lab::{Lab, Topology, spawn::bin, state};
use weft_test_support::{ChildGuard, wait_until};

const SOON: Duration = Duration::from_secs(10);

fn file() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../labs/one-node/topology.toml")
}

/// A runner as a process of its own, and the lab that it brought up.
fn runner() -> (ChildGuard, state::Place) {
    let mut command = Command::new(bin("lab").unwrap());
    command.args(["up", "--bare"]).arg(file()).stdout(Stdio::piped());
    let mut guard = ChildGuard::new(command.spawn().unwrap());
    let out = BufReader::new(guard.child().stdout.take().unwrap());
    let line = out.lines().map(|line| line.unwrap()).find(|line| line.contains(" is up until ")).unwrap();
    let id = line.split_whitespace().nth(1).unwrap();
    let place = state::list().unwrap().into_iter().find(|(place, _)| place.id == id).unwrap().0;
    (guard, place)
}

#[test]
fn a_lab_that_is_dropped_leaves_nothing() {
    let lab = Lab::up(Topology::load(&file()).unwrap()).unwrap();
    let place = lab.place().clone();
    assert!(place.remains().unwrap().iter().any(|what| what.starts_with("process ")), "{:?}", place.remains());
    drop(lab);
    assert_eq!(place.remains().unwrap(), Vec::<String>::new());
}

#[test]
fn a_lab_whose_owner_panics_leaves_nothing() {
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let lab = Lab::up(Topology::load(&file()).unwrap()).unwrap();
        send.send(lab.place().clone()).unwrap();
        panic!("on purpose");
    });
    assert!(thread.join().is_err());
    assert_eq!(receive.recv().unwrap().remains().unwrap(), Vec::<String>::new());
}

#[test]
fn a_signal_takes_the_lab_down() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let (mut guard, place) = runner();
        guard.signal(signal).unwrap();
        wait_until("the runner's end", SOON, || guard.exited().is_some()).unwrap();
        assert_eq!(place.remains().unwrap(), Vec::<String>::new(), "after {signal}");
    }
}

#[test]
fn what_a_killed_runner_leaves_is_collected_by_the_next_and_others_are_not_touched() {
    let (mut killed, dead) = runner();
    let (_running, alive) = runner();
    killed.kill().unwrap();
    assert!(!dead.remains().unwrap().is_empty(), "there is something to collect");
    let next = Lab::up(Topology::load(&file()).unwrap()).unwrap();
    assert_eq!(dead.remains().unwrap(), Vec::<String>::new());
    assert!(alive.remains().unwrap().iter().any(|what| what.starts_with("process ")));
    let names: Vec<_> = state::list().unwrap().into_iter().map(|(place, _)| place.id).collect();
    assert!(names.contains(&alive.id) && names.contains(&next.place().id) && !names.contains(&dead.id), "{names:?}");
}

#[test]
fn no_process_outlives_a_killed_runner() {
    let (mut killed, dead) = runner();
    killed.kill().unwrap();
    wait_until("the children's end", SOON, || dead.remains().unwrap().iter().all(|what| !what.starts_with("process ")))
        .unwrap();
    state::down(&dead.id).unwrap();
    assert_eq!(dead.remains().unwrap(), Vec::<String>::new());
    assert!(state::down(&dead.id).unwrap_err().to_string().contains("lab ls"));
}

#[test]
fn programs_on_a_machine_see_its_network_and_its_resolver_only() {
    let lab = Lab::up(Topology::load(&file()).unwrap()).unwrap();
    let page = weft_lab::probe::fetch(&lab, "a", "http://ipv4only.test/", &[]).unwrap();
    assert_eq!(page.body, "web4 greets 198.18.0.11");
    assert_eq!(lab.run("a", &["cat", "/etc/resolv.conf"]).unwrap().lines().next(), Some("nameserver 198.18.53.53"));
    let own = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    assert!(!own.contains("198.18.53.53"), "the machine's own resolver was changed");
}
