//! Metrics in the text format of Prometheus, by HTTP/1.0 on a unix socket.
use std::{
    fmt::Write as _,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use anyhow::Context;
use weft_nat64_core::{Engine, Reason, packet::Protocol, rfc6146::table::Class};

use crate::worker::{IoCounters, Shared};

/// How many sources are listed, those with the most sessions.
const MAX_SOURCES: usize = 1_000;
/// How long a client may take: the thread that answers has timers to serve.
const PATIENCE: Duration = Duration::from_millis(200);

/// Listens; a socket that an earlier process left behind is replaced.
pub(crate) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error)
            .with_context(|| format!("cannot replace {}: choose another --metrics-socket", path.display()));
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot listen on {}: check that its directory exists", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers those who wait.
pub(crate) fn answer(listener: &UnixListener, shared: &Shared) {
    while let Ok((stream, _)) = listener.accept() {
        if let Err(error) = answer_one(stream, shared) {
            tracing::debug!(%error, "a client of the metrics went away");
        }
    }
}

fn answer_one(mut stream: UnixStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = [0; 1024];
    let len = stream.read(&mut request)?;
    let line = request.get(..len).unwrap_or_default();
    let (status, body) = if line.starts_with(b"GET /metrics ") || line.starts_with(b"GET / ") {
        ("200 OK", text(&shared.engine(), &shared.io))
    } else {
        ("404 Not Found", "ask for GET /metrics\n".to_owned())
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.0 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// One metric's lines.
fn family(out: &mut String, name: &str, kind: &str, help: &str, rows: &[(String, u64)]) {
    let _ = writeln!(out, "# HELP weft_nat64_{name} {help}\n# TYPE weft_nat64_{name} {kind}");
    for (labels, value) in rows {
        let _ = writeln!(out, "weft_nat64_{name}{labels} {value}");
    }
}

fn text(engine: &Engine, io: &IoCounters) -> String {
    let counters = engine.counters();
    let mut out = String::new();
    let direction =
        |six: u64, four: u64| [("{direction=\"6to4\"}".to_owned(), six), ("{direction=\"4to6\"}".to_owned(), four)];
    let packets = direction(counters.packets_6to4, counters.packets_4to6);
    family(&mut out, "packets_total", "counter", "Translated packets; a super-packet is one.", &packets);
    let bytes = direction(counters.bytes_6to4, counters.bytes_4to6);
    family(&mut out, "bytes_total", "counter", "Their bytes, before translation.", &bytes);
    let by_reason = |counts: &[u64]| -> Vec<(String, u64)> {
        let rows = Reason::ALL.iter().zip(counts);
        rows.map(|(reason, count)| (format!("{{reason=\"{reason}\"}}"), *count)).collect()
    };
    family(&mut out, "drops_total", "counter", "Dropped packets.", &by_reason(&counters.drops));
    family(&mut out, "replies_total", "counter", "Packets answered with an error.", &by_reason(&counters.replies));
    let one = |value: u64| [(String::new(), value)];
    family(&mut out, "sessions_created_total", "counter", "Sessions made.", &one(counters.sessions_created));
    family(&mut out, "sessions_ended_total", "counter", "Sessions ended.", &one(counters.sessions_ended));
    let reclaimed = one(counters.sessions_reclaimed);
    family(&mut out, "sessions_reclaimed_total", "counter", "Closed sessions ended early to free a port.", &reclaimed);
    let sessions =
        Class::ALL.map(|class| (format!("{{class=\"{}\"}}", class.text()), engine.session_count(class).into()));
    family(&mut out, "sessions", "gauge", "Sessions now.", &sessions);
    let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("icmp", Protocol::Icmp)];
    let label = |name: &str| format!("{{protocol=\"{name}\"}}");
    let used = protocols.map(|(name, protocol)| (label(name), engine.port_usage(protocol).0));
    family(&mut out, "ports_used", "gauge", "Ports of the pool in use.", &used);
    let size = protocols.map(|(name, protocol)| (label(name), engine.port_usage(protocol).1));
    family(&mut out, "ports", "gauge", "Ports of the pool.", &size);
    family(
        &mut out,
        "fragmented_packets",
        "gauge",
        "Fragmented packets that are followed.",
        &one(engine.fragments() as u64),
    );
    family(&mut out, "reads_total", "counter", "Reads from the TUN device.", &one(io.reads.load(Relaxed)));
    family(&mut out, "writes_total", "counter", "Writes to the TUN device.", &one(io.writes.load(Relaxed)));
    let errors = one(io.write_errors.load(Relaxed));
    family(&mut out, "write_errors_total", "counter", "Writes that the kernel refused.", &errors);
    sources(&mut out, engine);
    out
}

fn sources(out: &mut String, engine: &Engine) {
    let mut sources: Vec<_> = engine.sources().collect();
    sources.sort_by_key(|source| (std::cmp::Reverse(source.counters.sessions), source.address));
    sources.truncate(MAX_SOURCES);
    let mut add = |name: &str, kind: &str, help: &str, value: fn(&weft_nat64_core::SourceCounters) -> u64| {
        let rows: Vec<_> =
            sources.iter().map(|source| (format!("{{source=\"{}\"}}", source.address), value(source))).collect();
        family(out, name, kind, help, &rows);
    };
    add("source_sessions", "gauge", "Sessions of a source.", |source| source.counters.sessions.into());
    add("source_bytes_out_total", "counter", "Bytes from a source.", |source| source.counters.bytes_out);
    add("source_bytes_in_total", "counter", "Bytes to a source.", |source| source.counters.bytes_in);
    add("source_drops_total", "counter", "Packets of a source dropped or answered.", |source| source.counters.drops);
}
