//! Counters of the resolver, in the text format of Prometheus, over HTTP on a unix socket.
use std::{
    fmt::Write,
    io,
    os::unix::net::UnixListener as StdUnixListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::timeout,
};

macro_rules! counters {
    ($($field:ident $kind:ident $name:literal $labels:literal $help:literal;)*) => {
        /// What has happened since the start; gauges are marked as such in the text.
        #[derive(Debug, Default)]
        pub(crate) struct Metrics { $(pub(crate) $field: AtomicU64,)* }

        impl Metrics {
            /// The text format, version 0.0.4.
            pub(crate) fn render(&self) -> String {
                let mut text = String::new();
                let mut last = "";
                $(
                    if last != $name {
                        // Writing to a String cannot fail.
                        let _ = writeln!(text, "# HELP {} {}\n# TYPE {} {}", $name, $help, $name, stringify!($kind));
                        last = $name;
                    }
                    let _ = writeln!(text, "{}{} {}", $name, $labels, self.$field.load(Relaxed));
                )*
                let _ = last;
                text
            }
        }
    };
}

counters! {
    queries_udp counter "weft_dns_queries_total" r#"{transport="udp"}"# "Questions received.";
    queries_tcp counter "weft_dns_queries_total" r#"{transport="tcp"}"# "Questions received.";
    code_noerror counter "weft_dns_responses_total" r#"{rcode="noerror"}"# "Responses sent, by code.";
    code_formerr counter "weft_dns_responses_total" r#"{rcode="formerr"}"# "Responses sent, by code.";
    code_servfail counter "weft_dns_responses_total" r#"{rcode="servfail"}"# "Responses sent, by code.";
    code_nxdomain counter "weft_dns_responses_total" r#"{rcode="nxdomain"}"# "Responses sent, by code.";
    code_notimp counter "weft_dns_responses_total" r#"{rcode="notimp"}"# "Responses sent, by code.";
    code_refused counter "weft_dns_responses_total" r#"{rcode="refused"}"# "Responses sent, by code.";
    code_other counter "weft_dns_responses_total" r#"{rcode="other"}"# "Responses sent, by code.";
    truncated counter "weft_dns_truncated_total" "" "Responses over UDP that did not fit and told the asker to use TCP.";
    dropped_malformed counter "weft_dns_dropped_total" r#"{reason="malformed"}"# "Packets without an answer.";
    dropped_busy counter "weft_dns_dropped_total" r#"{reason="busy"}"# "Packets without an answer.";
    strangers counter "weft_dns_strangers_total" "" "Questions refused since their source is none of this node's prefixes.";
    local counter "weft_dns_local_total" "" "Questions answered from the fabric's names and the special names.";
    synthesised counter "weft_dns_synthesised_total" "" "Answers with AAAA records made of A records.";
    cache_hits counter "weft_dns_cache_total" r#"{result="hit"}"# "Look-ups in the cache.";
    cache_misses counter "weft_dns_cache_total" r#"{result="miss"}"# "Look-ups in the cache.";
    upstream_answers counter "weft_dns_upstream_total" r#"{result="answer"}"# "Queries sent upstream, by result.";
    upstream_codes counter "weft_dns_upstream_total" r#"{result="code"}"# "Queries sent upstream, by result.";
    upstream_silent counter "weft_dns_upstream_total" r#"{result="silent"}"# "Queries sent upstream, by result.";
    limited counter "weft_dns_limited_total" "" "Questions not sent upstream since too many were outstanding.";
    outstanding gauge "weft_dns_outstanding" "" "Queries now outstanding upstream.";
    connections gauge "weft_dns_tcp_connections" "" "TCP connections now open.";
    listeners gauge "weft_dns_listeners" "" "Addresses that are listened on.";
    views counter "weft_dns_views_total" r#"{result="taken"}"# "Views read.";
    views_refused counter "weft_dns_views_total" r#"{result="refused"}"# "Views read.";
}

/// Adds one to a gauge for as long as it lives.
pub(crate) struct Gauge<'a>(&'a AtomicU64);

impl<'a> Gauge<'a> {
    pub(crate) fn raise(gauge: &'a AtomicU64) -> Self {
        gauge.fetch_add(1, Relaxed);
        Self(gauge)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Binds the socket, in place of one that an earlier process left.
pub(crate) fn bind(path: &Path) -> io::Result<StdUnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdUnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers every request on the socket with the counters.
pub(crate) async fn serve(listener: UnixListener, metrics: Arc<Metrics>) {
    loop {
        match listener.accept().await {
            // One at a time, each with a time limit: scrapers are few, and none may hold on to memory.
            Ok((stream, _)) => {
                let _ = timeout(Duration::from_secs(2), answer(stream, &metrics)).await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the metrics socket; trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, metrics: &Metrics) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < 8192 {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let body = metrics.render();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_each_metric_once_and_has_every_label() {
        let metrics = Metrics::default();
        count(&metrics.queries_tcp);
        let text = metrics.render();
        assert_eq!(text.matches("# TYPE weft_dns_queries_total counter").count(), 1);
        assert!(text.contains("weft_dns_queries_total{transport=\"udp\"} 0\n"));
        assert!(text.contains("weft_dns_queries_total{transport=\"tcp\"} 1\n"));
        assert!(text.lines().all(|line| line.starts_with("# ") || line.starts_with("weft_dns_")));
    }
}
