//! The engine in virtual time: order, retries, recovery, and what `explain` shows of them.
use proptest::prelude::*;

use super::*;

fn at(ms: u64) -> Moment {
    Moment { mono: Duration::from_millis(ms), unix_ms: 1_000_000 + ms }
}

fn graph(declared: &[(&str, &[&str])]) -> Result<Graph, GraphError> {
    Graph::new(declared.iter().map(|(name, after)| Declared::new(name, after)).collect(), at(0))
}

fn report(graph: &Graph, name: &str) -> TargetReport {
    graph.reports().into_iter().find(|report| report.name == name).unwrap()
}

#[test]
fn the_declared_graphs_are_sound() {
    Graph::new(declared::node(), at(0)).unwrap();
    Graph::new(declared::workspace(), at(0)).unwrap();
}

#[test]
fn a_circle_a_double_and_an_unknown_edge_are_refused_by_name() {
    assert_eq!(graph(&[("a", &[]), ("a", &[])]).unwrap_err(), GraphError::Twice("a".into()));
    let error = graph(&[("a", &["b"])]).unwrap_err();
    assert_eq!(error, GraphError::Unknown { target: "a".into(), after: "b".into() });
    let error = graph(&[("z", &[]), ("a", &["z", "c"]), ("b", &["a"]), ("c", &["b"])]).unwrap_err();
    assert_eq!(error, GraphError::Cycle("a, b, c".into()));
    assert!(matches!(graph(&[("a", &["a"])]), Err(GraphError::Cycle(_))));
}

#[test]
fn what_stands_behind_waits_and_says_for_what() {
    let mut graph = graph(&[("a", &[]), ("b", &["a"]), ("c", &["b"])]).unwrap();
    assert_eq!(graph.due(at(0)), ["a"]);
    assert_eq!(report(&graph, "c").reason.as_deref(), Some("waits for b"));
    assert!(graph.observe("a", Verdict::Done, at(5)));
    assert_eq!(graph.due(at(5)), ["b"]);
    assert_eq!(report(&graph, "b").state, TargetState::Running);
    graph.observe("b", Verdict::Done, at(9));
    graph.observe("c", Verdict::Done, at(10));
    assert_eq!(graph.state("c"), Some(TargetState::Done));
    assert_eq!(report(&graph, "b").took_us, Some(4000));
    assert_eq!(report(&graph, "b").since_ms, 1_000_009);
}

#[test]
fn a_failure_is_tried_again_with_growing_delays_and_recovers() {
    let mut graph = graph(&[("a", &[]), ("b", &["a"])]).unwrap();
    let mut now = 0;
    let mut delays = Vec::new();
    for _ in 0..7 {
        graph.observe("a", Verdict::Failed("no".into()), at(now));
        let next = u64::try_from(graph.next_look().unwrap().as_millis()).unwrap();
        delays.push(next - now);
        assert!(graph.due(at(next - 1)).is_empty());
        now = next;
    }
    assert_eq!(delays, [200, 400, 800, 1600, 3200, 5000, 5000]);
    assert_eq!(report(&graph, "a").attempts, 7);
    assert_eq!(report(&graph, "a").since_ms, 1_000_000, "failed since the first failure, not the last");
    graph.observe("a", Verdict::Done, at(now));
    assert_eq!(report(&graph, "a").took_us, Some(now * 1000));
    assert_eq!(graph.due(at(now)), ["b"]);
}

#[test]
fn what_was_done_and_becomes_false_fails_and_takes_its_followers_along() {
    let mut graph = graph(&[("a", &[]), ("b", &["a"]), ("c", &["b"])]).unwrap();
    for name in ["a", "b", "c"] {
        graph.observe(name, Verdict::Done, at(1));
    }
    graph.observe("a", Verdict::Failed("the cable is cut".into()), at(1000));
    assert_eq!(report(&graph, "a").reason.as_deref(), Some("the cable is cut"));
    assert_eq!(report(&graph, "b").reason.as_deref(), Some("waits for a"));
    assert_eq!(report(&graph, "c").reason.as_deref(), Some("waits for b"));
    assert!(!graph.observe("b", Verdict::Done, at(1001)), "a late answer does not lift what its edge took down");
    graph.observe("a", Verdict::Done, at(2000));
    assert_eq!(graph.due(at(2000)), ["b"]);
    graph.observe("b", Verdict::Done, at(2001));
    graph.observe("c", Verdict::Done, at(2001));
    assert!(graph.satisfied("c"));
    assert_eq!(report(&graph, "a").took_us, Some(1_000_000));
}

#[test]
fn skipped_satisfies_and_a_wait_keeps_its_reason() {
    let mut graph = graph(&[("a", &[]), ("b", &["a"])]).unwrap();
    graph.observe("a", Verdict::Skipped("no IPv4 here".into()), at(1));
    assert_eq!(graph.due(at(1)), ["b"]);
    graph.observe("b", Verdict::Waits("waits for the store".into()), at(2));
    assert_eq!(report(&graph, "b").state, TargetState::Waiting);
    assert_eq!(report(&graph, "b").reason.as_deref(), Some("waits for the store"));
    graph.observe("b", Verdict::Waits("waits for the store".into()), at(300));
    assert_eq!(report(&graph, "b").attempts, 2);
    assert_eq!(report(&graph, "b").since_ms, 1_000_002);
}

proptest! {
    /// Whatever is seen in whatever order: nothing is done whose edge is not, and what is due can be looked at.
    #[test]
    fn nothing_is_done_before_its_edges(steps in proptest::collection::vec((0usize..7, 0u8..5, 0u64..4000), 0..200)) {
        let mut graph = Graph::new(declared::node(), at(0)).unwrap();
        let names: Vec<String> = declared::node().into_iter().map(|target| target.name).collect();
        let mut now = 0;
        for (which, verdict, wait) in steps {
            now += wait;
            let verdict = match verdict {
                0 => Verdict::Done,
                1 => Verdict::Skipped("s".into()),
                2 => Verdict::Running("r".into()),
                3 => Verdict::Waits("w".into()),
                _ => Verdict::Failed("f".into()),
            };
            graph.observe(&names[which], verdict, at(now));
            for report in graph.reports() {
                let open = report.after.iter().any(|after| !graph.satisfied(after));
                prop_assert!(!(open && report.state == TargetState::Done), "{report:?}");
                prop_assert!(report.state == TargetState::Done || report.state == TargetState::Running || report.reason.is_some());
            }
        }
        // Looked at whenever it is due, and found true: everything is done within the longest time between looks.
        let end = now + 60_000;
        while now < end && !graph.satisfied("ready") {
            for name in graph.due(at(now)) {
                graph.observe(&name, Verdict::Done, at(now));
            }
            now = u64::try_from(graph.next_look().unwrap().as_millis()).unwrap().max(now + 1);
        }
        prop_assert!(graph.satisfied("ready"));
    }
}
