//! What people read: tables, the tree of targets, errors with their way out. Pure: values in, text out.
use std::fmt::Write;

use serde_json::Value;
use weft_model::{
    ApiError,
    api::{MemberReply, StatusView, WorkspaceView},
    object::Visibility,
    targets::{Explanation, TargetReport, TargetState},
};

/// Columns as wide as their widest cell; `-` for what is empty.
fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count().max(1));
        }
    }
    let mut out = String::new();
    let header: Vec<String> = header.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&header).chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| {
            let cell = if cell.is_empty() { "-" } else { cell };
            format!("{cell:<width$}")
        });
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

fn text<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// An error with the field to blame and the way out.
pub(crate) fn error(error: &ApiError) -> String {
    let mut out = format!("error: {}\n", error.message);
    if let Some(field) = &error.field {
        let _ = writeln!(out, "  {field}: {}", error.value.as_deref().unwrap_or("-"));
    }
    if let Some(hint) = &error.hint {
        let _ = writeln!(out, "  hint: {hint}");
    }
    out
}

/// What init and join say.
pub(crate) fn member(headline: &str, reply: &MemberReply) -> String {
    let fabric: Vec<String> = reply.fabric.iter().map(ToString::to_string).collect();
    format!(
        "{headline}\n  node    {}\n  prefix  {}\n  fabric  {}\n  domain  {}\n",
        reply.node,
        reply.prefix,
        fabric.join(", "),
        reply.domain
    )
}

/// The fabric's workspaces.
pub(crate) fn workspaces(list: &[WorkspaceView]) -> String {
    if list.is_empty() {
        return "no workspaces; attach one with: netctl attach /run/netns/NAME --name NAME\n".into();
    }
    let rows = list.iter().map(|view| {
        let state = match (&view.node, view.published) {
            (None, _) => "stopped",
            (Some(_), true) => "attached",
            (Some(_), false) => "publishing",
        };
        let ports: Vec<String> = view.ports.iter().map(|port| port.port.to_string()).collect();
        let (name, group) = (text(view.name.as_ref()), text(view.group.as_ref()));
        let (node, address) = (text(view.node.as_ref()), text(view.address));
        vec![view.id.to_string(), name, group, view.owner.clone(), node, address, ports.join(","), state.into()]
    });
    let rows: Vec<_> = rows.collect();
    table(&["ID", "NAME", "GROUP", "OWNER", "NODE", "ADDRESS", "PORTS", "STATE"], &rows)
}

/// One workspace.
pub(crate) fn workspace(view: &WorkspaceView) -> String {
    let mut out = String::new();
    let fields = [
        ("id", view.id.to_string()),
        ("name", text(view.name.as_ref())),
        ("owner", view.owner.clone()),
        ("group", text(view.group.as_ref())),
        ("node", text(view.node.as_ref())),
        ("address", text(view.address)),
        ("link", text(view.ifname.as_ref())),
        ("mtu", text(view.mtu)),
        ("dns", text(view.dns)),
    ];
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(out, "{name:<8} {value}");
    }
    out + &urls(view)
}

/// The ports of a workspace and their URLs.
pub(crate) fn urls(view: &WorkspaceView) -> String {
    if view.ports.is_empty() {
        return format!("no port of {} has a URL; give one with: netctl expose {} 8080\n", view.id, view.id);
    }
    let mut out = String::new();
    for (port, url) in view.ports.iter().zip(&view.urls) {
        let who = if port.visibility == Visibility::Public { "public" } else { "private" };
        let _ = writeln!(out, "{:<8} {url}  ({who})", "url");
    }
    out
}

/// This node.
pub(crate) fn status(status: &StatusView) -> String {
    let mut out = String::new();
    let Some(member) = &status.member else {
        return format!(
            "netd {}\nThis node is not part of a fabric: make one with `netctl init`, or join one with `netctl join TOKEN`.\n",
            status.version
        );
    };
    let roles: Vec<String> = status.roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect();
    let ready = if status.ready { "ready" } else { "NOT ready (see: netctl explain)" };
    let _ = writeln!(out, "node       {} {ready}", member.node);
    let _ = writeln!(out, "version    {}", status.version);
    let _ = writeln!(out, "prefix     {}", member.prefix);
    let fabric: Vec<String> = member.fabric.iter().map(ToString::to_string).collect();
    let _ = writeln!(out, "fabric     {} ({})", fabric.join(", "), member.domain);
    let _ = writeln!(out, "roles      {}", if roles.is_empty() { "-".into() } else { roles.join(", ") });
    let _ = writeln!(out, "uplink     {}", status.uplink.as_deref().unwrap_or("none"));
    let _ = writeln!(out, "workspaces {}", status.workspaces);
    if !status.peers.is_empty() {
        let rows = status.peers.iter().map(|peer| {
            vec![
                peer.node.to_string(),
                peer.prefix.to_string(),
                text(peer.endpoint),
                peer.last_handshake_s.map_or_else(|| "never".into(), |ago| format!("{ago} s ago")),
                peer.rx_bytes.to_string(),
                peer.tx_bytes.to_string(),
                peer.rtt_us.map(duration).unwrap_or_default(),
                if peer.verified { "yes" } else { "no" }.into(),
            ]
        });
        let header = ["PEER", "PREFIX", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT", "RTT", "VERIFIED"];
        out.push('\n');
        out.push_str(&table(&header, &rows.collect::<Vec<_>>()));
    }
    let drops: Vec<_> = status.drops.iter().filter(|(_, count)| *count > 0).collect();
    if !drops.is_empty() {
        let rows = drops.iter().map(|(reason, count)| vec![reason.clone(), count.to_string()]);
        out.push('\n');
        out.push_str(&table(&["DROPPED", "PACKETS"], &rows.collect::<Vec<_>>()));
    }
    out
}

/// A field inside a JSON value, as text.
fn field(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            let items: Vec<String> = items.iter().map(|item| field(item, "")).collect();
            items.join(",")
        }
        Some(other) => other.to_string(),
    }
}

/// The fabric's nodes.
pub(crate) fn nodes(nodes: &[Value]) -> String {
    let row = |node: &Value| {
        let ready = if field(node, "/status/ready") == "true" { "yes" } else { "no" };
        let uplinks = [("/status/ipv4", "IPv4"), ("/status/ipv6", "IPv6")];
        let uplinks: Vec<&str> =
            uplinks.iter().filter(|(path, _)| field(node, path) == "true").map(|(_, name)| *name).collect();
        vec![
            field(node, "/name"),
            field(node, "/spec/prefix"),
            field(node, "/spec/roles"),
            field(node, "/status/endpoints"),
            uplinks.join(","),
            ready.into(),
        ]
    };
    let rows: Vec<_> = nodes.iter().map(row).collect();
    table(&["NODE", "PREFIX", "ROLES", "ENDPOINTS", "UPLINK", "READY"], &rows)
}

/// Who changed an object, newest first.
pub(crate) fn history(versions: &[Value]) -> String {
    let row = |version: &Value| {
        let author = ["user", "node"].iter().find_map(|kind| {
            let name = field(version, &format!("/author/{kind}"));
            (!name.is_empty()).then(|| format!("{kind} {name}"))
        });
        let spec = version.pointer("/spec").map(Value::to_string).unwrap_or_default();
        let status = version.pointer("/status").map(Value::to_string).unwrap_or_default();
        let time = version.pointer("/time_ms").and_then(Value::as_u64).map(utc).unwrap_or_default();
        vec![field(version, "/version"), time, author.unwrap_or_default(), spec, status]
    };
    table(&["VERSION", "TIME", "AUTHOR", "SPEC", "STATUS"], &versions.iter().map(row).collect::<Vec<_>>())
}

/// The targets as a tree: a tick, how long it took, since when, and why not.
pub(crate) fn explanation(explanation: &Explanation, now_ms: u64) -> String {
    let verdict = if explanation.ready() { "ready" } else { "NOT ready" };
    let mut out = format!("{}: {verdict}\n", explanation.object);
    targets(&mut out, &explanation.targets, now_ms);
    if !explanation.node.is_empty() {
        out.push_str("its node:\n");
        targets(&mut out, &explanation.node, now_ms);
    }
    out
}

fn targets(out: &mut String, targets: &[TargetReport], now_ms: u64) {
    let width = targets.iter().map(|target| target.name.len()).max().unwrap_or(0);
    for (place, target) in targets.iter().enumerate() {
        let branch = if place + 1 == targets.len() { "└─" } else { "├─" };
        let (mark, state) = match target.state {
            TargetState::Done => ("✔", "done"),
            TargetState::Running => ("…", "running"),
            TargetState::Waiting => ("·", "waiting"),
            TargetState::Failed => ("✘", "failed"),
            TargetState::Skipped => ("–", "skipped"),
        };
        let since = duration(now_ms.saturating_sub(target.since_ms).saturating_mul(1000));
        let mut line = format!("{branch} {mark} {:<width$}  {state:<7}", target.name);
        if target.state == TargetState::Done {
            let took = target.took_us.map(|took| format!("took {}, ", duration(took))).unwrap_or_default();
            let _ = write!(line, "  {took}{since} ago");
        } else if target.state != TargetState::Skipped {
            let _ = write!(line, "  for {since}");
            if target.attempts > 1 {
                let _ = write!(line, ", {} attempts", target.attempts);
            }
        }
        if let Some(reason) = &target.reason {
            let _ = write!(line, "  {reason}");
        }
        if !target.after.is_empty() && target.state == TargetState::Done {
            let _ = write!(line, "  (after {})", target.after.join(", "));
        }
        out.push_str(&line);
        out.push('\n');
    }
}

/// A time in the unit that reads best.
fn duration(us: u64) -> String {
    let (s, m) = (us / 1_000_000, us / 60_000_000);
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        10_000..1_000_000 => format!("{} ms", us / 1000),
        1_000_000..10_000_000 => format!("{s}.{} s", us % 1_000_000 / 100_000),
        10_000_000..120_000_000 => format!("{s} s"),
        120_000_000..7_200_000_000 => format!("{m} min"),
        7_200_000_000..172_800_000_000 => format!("{} h", m / 60),
        _ => format!("{} d", m / 1440),
    }
}

/// A time of the wall's clock, in UTC (days to date after Howard Hinnant's civil-from-days).
fn utc(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_model::{ErrorCode, object::Port};

    fn view() -> WorkspaceView {
        WorkspaceView {
            id: "k3v7qz2mna".parse().unwrap(),
            name: Some("box".parse().unwrap()),
            owner: "ann".into(),
            group: None,
            node: Some("a".parse().unwrap()),
            address: Some("fd12:3456:789a:7:1::1".parse().unwrap()),
            ifname: Some("wk3v7qz2mna".into()),
            ports: vec![Port { port: 8080, visibility: Visibility::Public }],
            urls: vec!["https://8080-box.ws.dev/".into()],
            dns: Some("fd12:3456:789a::53".parse().unwrap()),
            mtu: Some(1420),
            published: true,
        }
    }

    #[test]
    fn a_list_is_a_table() {
        let expected = "\
ID          NAME  GROUP  OWNER  NODE  ADDRESS                PORTS  STATE
k3v7qz2mna  box   -      ann    a     fd12:3456:789a:7:1::1  8080   attached
";
        assert_eq!(workspaces(&[view()]), expected);
        assert!(workspaces(&[]).contains("netctl attach"));
    }

    #[test]
    fn a_workspace_shows_its_urls() {
        let shown = workspace(&view());
        assert!(shown.contains("address  fd12:3456:789a:7:1::1\n"), "{shown}");
        assert!(shown.ends_with("url      https://8080-box.ws.dev/  (public)\n"), "{shown}");
        assert!(!shown.contains("group"), "{shown}");
    }

    #[test]
    fn an_error_shows_the_field_and_the_way_out() {
        let shown = error(&ApiError::new(ErrorCode::Invalid, "no such netns", "see ip netns").blame("netns", "/x"));
        assert_eq!(shown, "error: no such netns\n  netns: /x\n  hint: see ip netns\n");
    }

    #[test]
    fn the_targets_are_a_tree_with_times_and_reasons() {
        let target = |name: &str, state, after: &[&str], took_us, attempts, reason: Option<&str>| TargetReport {
            name: name.into(),
            state,
            after: after.iter().map(ToString::to_string).collect(),
            since_ms: 1000,
            took_us,
            attempts,
            reason: reason.map(Into::into),
        };
        let explained = Explanation {
            object: "workspace box".into(),
            targets: vec![
                target("address", TargetState::Done, &[], Some(180), 1, None),
                target("published", TargetState::Waiting, &["address"], None, 4, Some("the store: timed out")),
                target("ready", TargetState::Waiting, &["published"], None, 0, Some("waits for published")),
            ],
            node: vec![target("nat64", TargetState::Skipped, &[], None, 0, Some("no IPv4 uplink"))],
        };
        let expected = "\
workspace box: NOT ready
├─ ✔ address    done     took 180 µs, 5.0 s ago
├─ · published  waiting  for 5.0 s, 4 attempts  the store: timed out
└─ · ready      waiting  for 5.0 s  waits for published
its node:
└─ – nat64  skipped  no IPv4 uplink
";
        assert_eq!(explanation(&explained, 6000), expected);
    }

    #[test]
    fn times_read_well() {
        for (us, says) in
            [(7, "7 µs"), (1_540, "1.5 ms"), (99_000, "99 ms"), (3_210_000, "3.2 s"), (61_000_000, "61 s")]
        {
            assert_eq!(duration(us), says);
        }
        assert_eq!(duration(u64::MAX / 2).split(' ').nth(1), Some("d"));
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_315_147_000), "2026-11-22T02:39:07Z");
    }
}
