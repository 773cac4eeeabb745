//! Counters of what the proxy does, in the text format of Prometheus. Labels are bounded: statuses, kinds, no workspaces.
use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Upper bounds of the duration histogram's buckets, in microseconds.
const BUCKETS_US: [u64; 10] =
    [1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000, 10_000_000, 60_000_000];

/// All counters of the process.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Connections accepted.
    pub(crate) accepted: AtomicU64,
    /// Connections closed at once because there were too many.
    pub(crate) over_limit: AtomicU64,
    /// TLS handshakes that failed or took too long.
    pub(crate) handshake_failures: AtomicU64,
    /// Requests sent on a new connection to a workspace.
    pub(crate) upstream_new: AtomicU64,
    /// Requests sent on a pooled one.
    pub(crate) upstream_reused: AtomicU64,
    /// Events of netd that were applied.
    pub(crate) route_events: AtomicU64,
    /// Workspaces in the table.
    pub(crate) routes: AtomicU64,
    /// Whether netd's stream is open.
    pub(crate) netd_connected: AtomicBool,
    open: Arc<AtomicI64>,
    statuses: Vec<AtomicU64>,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    durations: [AtomicU64; BUCKETS_US.len() + 1],
    duration_sum_us: AtomicU64,
}

/// One open connection; counts down when it is dropped.
#[derive(Debug)]
pub(crate) struct Gauge(Arc<AtomicI64>);

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            accepted: AtomicU64::new(0),
            over_limit: AtomicU64::new(0),
            handshake_failures: AtomicU64::new(0),
            upstream_new: AtomicU64::new(0),
            upstream_reused: AtomicU64::new(0),
            route_events: AtomicU64::new(0),
            routes: AtomicU64::new(0),
            netd_connected: AtomicBool::new(false),
            open: Arc::default(),
            statuses: (0..600).map(|_| AtomicU64::new(0)).collect(),
            refusals: Mutex::default(),
            durations: Default::default(),
            duration_sum_us: AtomicU64::new(0),
        }
    }

    /// Counts a connection as open until the gauge is dropped.
    pub(crate) fn connection(&self) -> Gauge {
        self.open.fetch_add(1, Ordering::Relaxed);
        Gauge(self.open.clone())
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> i64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Counts a finished request; status 0 is a caller that left before the answer.
    pub(crate) fn request(&self, status: u16, took: Duration) {
        if let Some(counter) = self.statuses.get(usize::from(status)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_US.iter().position(|&bound| us <= bound).unwrap_or(BUCKETS_US.len());
        if let Some(counter) = self.durations.get(bucket) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.duration_sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Counts an answer of the proxy's own, by its kind.
    pub(crate) fn refused(&self, kind: &'static str) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
    }

    /// All counters as text.
    pub(crate) fn render(&self) -> String {
        let mut out = String::with_capacity(4096);
        let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = writeln!(
                out,
                "# HELP weft_proxy_{name} {help}\n# TYPE weft_proxy_{name} {kind}\nweft_proxy_{name} {value}"
            );
        };
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        metric("connections_open", "gauge", "Connections of callers that are open.", self.open().max(0).unsigned_abs());
        metric("connections_total", "counter", "Connections accepted.", of(&self.accepted));
        metric(
            "connections_over_limit_total",
            "counter",
            "Connections closed because there were too many.",
            of(&self.over_limit),
        );
        metric(
            "handshake_failures_total",
            "counter",
            "TLS handshakes that failed or took too long.",
            of(&self.handshake_failures),
        );
        metric("route_events_total", "counter", "Events of netd that were applied.", of(&self.route_events));
        metric("routes", "gauge", "Workspaces in the routing table.", of(&self.routes));
        metric(
            "netd_connected",
            "gauge",
            "Whether netd's stream of routes is open.",
            self.netd_connected.load(Ordering::Relaxed).into(),
        );
        self.render_labelled(&mut out);
        out
    }

    fn render_labelled(&self, out: &mut String) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP weft_proxy_upstream_requests_total Requests sent to workspaces, by connection.");
        let _ = writeln!(out, "# TYPE weft_proxy_upstream_requests_total counter");
        let _ = writeln!(out, "weft_proxy_upstream_requests_total{{connection=\"new\"}} {}", of(&self.upstream_new));
        let _ =
            writeln!(out, "weft_proxy_upstream_requests_total{{connection=\"reused\"}} {}", of(&self.upstream_reused));
        let _ = writeln!(
            out,
            "# HELP weft_proxy_requests_total Requests, by the answer's status; 0: the caller left first."
        );
        let _ = writeln!(out, "# TYPE weft_proxy_requests_total counter");
        for (status, counter) in self.statuses.iter().enumerate().filter(|(_, counter)| of(counter) > 0) {
            let _ = writeln!(out, "weft_proxy_requests_total{{status=\"{status}\"}} {}", of(counter));
        }
        let _ = writeln!(out, "# HELP weft_proxy_refusals_total Requests that the proxy answered itself, by kind.");
        let _ = writeln!(out, "# TYPE weft_proxy_refusals_total counter");
        for (kind, count) in self.refusals.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "weft_proxy_refusals_total{{kind=\"{kind}\"}} {count}");
        }
        let _ =
            writeln!(out, "# HELP weft_proxy_request_duration_seconds From a request's header to its answer's end.");
        let _ = writeln!(out, "# TYPE weft_proxy_request_duration_seconds histogram");
        let mut total = 0;
        for (bound, counter) in BUCKETS_US.iter().map(Some).chain([None]).zip(&self.durations) {
            total += of(counter);
            let le = bound.map_or("+Inf".to_owned(), |us| format!("{}", *us as f64 / 1e6));
            let _ = writeln!(out, "weft_proxy_request_duration_seconds_bucket{{le=\"{le}\"}} {total}");
        }
        let _ = writeln!(out, "weft_proxy_request_duration_seconds_sum {}", of(&self.duration_sum_us) as f64 / 1e6);
        let _ = writeln!(out, "weft_proxy_request_duration_seconds_count {total}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown_once_with_its_help() {
        let metrics = Metrics::new();
        let open = metrics.connection();
        metrics.request(200, Duration::from_millis(3));
        metrics.request(404, Duration::from_secs(3600));
        metrics.refused("unknown-workspace");
        let text = metrics.render();
        for line in [
            "weft_proxy_connections_open 1",
            "weft_proxy_requests_total{status=\"200\"} 1",
            "weft_proxy_refusals_total{kind=\"unknown-workspace\"} 1",
            "weft_proxy_request_duration_seconds_bucket{le=\"0.001\"} 0",
            "weft_proxy_request_duration_seconds_bucket{le=\"0.005\"} 1",
            "weft_proxy_request_duration_seconds_bucket{le=\"+Inf\"} 2",
            "weft_proxy_request_duration_seconds_count 2",
        ] {
            assert_eq!(text.lines().filter(|shown| *shown == line).count(), 1, "{line} in {text}");
        }
        drop(open);
        assert_eq!(metrics.open(), 0);
    }
}
