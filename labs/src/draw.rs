//! Draws a topology as text: each router with its segments, on each segment the machines, on each node the workspaces.
use std::fmt::Write;

use crate::topology::{Link, Machine, Topology};

/// The drawing, one line a thing.
#[must_use]
pub fn draw(topology: &Topology) -> String {
    let mut out = format!("{}\n", topology.title);
    let routers = topology.hosts.iter().filter(|host| topology.segments.iter().any(|one| one.router == host.name));
    for router in routers {
        line(&mut out, "", &router.name, "router");
        let segments: Vec<_> = topology.segments.iter().filter(|segment| segment.router == router.name).collect();
        for (index, segment) in segments.iter().enumerate() {
            let (branch, below) = fork(index + 1 == segments.len());
            line(&mut out, branch, &format!("[{}]", segment.name), &join(&segment.addresses));
            let machines = plugged(topology, &segment.name);
            for (index, (machine, link)) in machines.iter().enumerate() {
                let (branch, deeper) = fork(index + 1 == machines.len());
                let about = format!("{:<36} {}", join(&link.addresses), purpose(topology, machine.name));
                line(&mut out, &format!("{below}{branch}"), machine.name, about.trim_end());
                let here: Vec<_> = topology.workspaces.iter().filter(|one| one.node == machine.name).collect();
                for (index, workspace) in here.iter().enumerate() {
                    let (branch, _) = fork(index + 1 == here.len());
                    let group = workspace.group.as_ref().map_or("alone".into(), |group| format!("group {group}"));
                    line(
                        &mut out,
                        &format!("{below}{deeper}{branch}"),
                        &format!("({})", workspace.name),
                        &format!("workspace, {group}"),
                    );
                }
            }
        }
    }
    out
}

fn fork(last: bool) -> (&'static str, &'static str) {
    if last { ("└─ ", "   ") } else { ("├─ ", "│  ") }
}

fn line(out: &mut String, branch: &str, name: &str, about: &str) {
    let width = 22usize.saturating_sub(branch.chars().count());
    // Writing to a String cannot fail.
    let _ = writeln!(out, "  {}", format!("{branch}{name:<width$} {about}").trim_end());
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn plugged<'a>(topology: &'a Topology, segment: &str) -> Vec<(Machine<'a>, &'a Link)> {
    let links = topology.machines().flat_map(|machine| machine.links.iter().map(move |link| (machine, link)));
    links.filter(|(_, link)| link.segment == segment).collect()
}

fn purpose(topology: &Topology, name: &str) -> String {
    if let Ok(node) = topology.node(name) {
        let seed = topology.fabric.as_ref().is_some_and(|fabric| fabric.seed == name);
        let roles = seed
            .then(|| "seed".to_owned())
            .into_iter()
            .chain(node.roles.iter().map(|role| format!("{role:?}").to_lowercase()));
        return format!("node {}", roles.collect::<Vec<_>>().join(", ")).trim_end().to_owned();
    }
    let Some(host) = topology.hosts.iter().find(|host| host.name == name) else { return String::new() };
    let services = [("http", !host.http.is_empty()), ("echo", !host.echo.is_empty()), ("dns", host.dns.is_some())];
    services.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_in_the_file_is_in_the_drawing() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("two-nodes/topology.toml");
        let topology = Topology::load(&path).unwrap();
        let drawing = draw(&topology);
        let machines = topology.machines().map(|machine| machine.name.to_owned());
        for name in machines.chain(topology.workspaces.iter().map(|one| one.name.to_string())) {
            assert!(drawing.contains(&name), "{name} is missing in\n{drawing}");
        }
        assert!(drawing.lines().all(|line| line.chars().count() <= 110), "{drawing}");
    }
}
