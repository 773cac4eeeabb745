//! Questions for the upstreams: hickory's pool of name servers behind a bounded cache and bounded numbers of questions.
use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_net::{
    DnsError, NetError, NoRecords,
    runtime::TokioRuntimeProvider,
    xfer::{DnsHandle, FirstAnswer, RetryDnsHandle},
};
use hickory_proto::{
    op::{DnsRequest, DnsRequestOptions, DnsResponse, Edns, Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use hickory_resolver::{
    NameServerPool, PoolContext, ResponseCache, TlsConfig, TtlConfig,
    config::{ConnectionConfig, NameServerConfig, ResolverOpts},
};

use crate::{
    answer::{Answer, LONGEST_CHAIN, negative_ttl, open_end},
    dns64::{Failure, Security, Upstream},
    limit::Limit,
    metrics::{Gauge, Metrics, count},
    respond::UDP_PAYLOAD,
};

/// Queries outstanding upstream: of all askers, and of each.
const OUTSTANDING: (usize, u32) = (1024, 64);
/// Responses in the cache: for plain questions, and for each other combination of DO and CD.
const CACHED: [u64; 4] = [16384, 2048, 2048, 2048];
/// Responses larger than this are not cached, so that the cache's memory is bounded too; bytes.
const LARGEST_CACHED: usize = 4096;
/// The longest that records, and "there is none", are kept.
const LONGEST: (Duration, Duration) = (Duration::from_secs(6 * 3600), Duration::from_secs(900));
/// One attempt at the pool; there are two of them in a question's time.
const ATTEMPT: Duration = Duration::from_millis(2100);

/// The upstreams, and what they have answered.
pub(crate) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    pool: RetryDnsHandle<NameServerPool<TokioRuntimeProvider>>,
    caches: [ResponseCache; 4],
    outstanding: Arc<Limit>,
    metrics: Arc<Metrics>,
}

/// The forwarder as one asker sees it: its limits count.
pub(crate) struct ForwarderOf<'a> {
    pub(crate) forwarder: &'a Forwarder,
    pub(crate) asker: Ipv6Addr,
}

impl Forwarder {
    /// Prepares the upstreams; nothing is sent. Must be called inside of the runtime.
    pub(crate) fn new(upstreams: &[SocketAddr], metrics: Arc<Metrics>) -> Result<Self, NetError> {
        let mut options = ResolverOpts::default();
        options.timeout = ATTEMPT;
        options.positive_max_ttl = Some(LONGEST.0);
        options.negative_max_ttl = Some(LONGEST.1);
        // The kernel draws the source port: it keeps off the ports of the node's address that belong to NAT64, whose
        // answers would be taken at the uplink.
        options.os_port_selection = true;
        let servers: Vec<_> = upstreams.iter().map(name_server).collect();
        let ttl = TtlConfig::from_opts(&options);
        let context = Arc::new(PoolContext::new(options, TlsConfig::new()?));
        let pool = NameServerPool::from_config(servers, context, TokioRuntimeProvider::default());
        Ok(Self {
            upstreams: upstreams.to_vec(),
            pool: RetryDnsHandle::new(pool, 1),
            caches: CACHED.map(|size| ResponseCache::new(size, ttl.clone())),
            outstanding: Limit::new(OUTSTANDING.0, OUTSTANDING.1),
            metrics,
        })
    }

    /// Where it asks.
    pub(crate) fn upstreams(&self) -> &[SocketAddr] {
        &self.upstreams
    }

    async fn lookup(
        &self,
        asker: Ipv6Addr,
        query: Query,
        security: Security,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let [plain, dnssec, unchecked, both] = &self.caches;
        // Data that was not checked must not reach an asker that relies on the upstream's check.
        let cache = match (security.dnssec_ok, security.checking_disabled) {
            (false, false) => plain,
            (true, false) => dnssec,
            (false, true) => unchecked,
            (true, true) => both,
        };
        if let Some(result) = cache.get(&query, Instant::now()) {
            count(&self.metrics.cache_hits);
            return answer_of(result, query.query_type(), security);
        }
        count(&self.metrics.cache_misses);
        let Some(_place) = self.outstanding.take(asker) else {
            count(&self.metrics.limited);
            return Err(Failure::Limited);
        };
        let _gauge = Gauge::raise(&self.metrics.outstanding);
        let kind = query.query_type();
        let sent = self.pool.send(request(&query, security)).first_answer();
        let result = tokio::time::timeout(limit, sent).await.unwrap_or(Err(NetError::Timeout));
        let result = match result {
            Ok(response) => Ok(self.keep(cache, query, response)),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let result = Err(NetError::from(none));
                cache.insert(query, result.clone(), Instant::now());
                result
            }
            Err(error) => Err(error),
        };
        let answer = answer_of(result, kind, security);
        count(match &answer {
            Ok(_) => &self.metrics.upstream_answers,
            Err(Failure::Code(_)) => &self.metrics.upstream_codes,
            Err(_) => &self.metrics.upstream_silent,
        });
        answer
    }

    /// Puts a response with records into the cache.
    fn keep(&self, cache: &ResponseCache, query: Query, response: DnsResponse) -> Message {
        let size = response.as_buffer().len();
        let mut message = response.into_message();
        let complete = message.answers.iter().any(|record| record.record_type() == query.query_type());
        let none = negative_ttl(&message.authorities);
        if !complete && (none.is_some() || message.metadata.response_code == ResponseCode::NXDomain) {
            // An alias to nothing holds no longer than the "nothing" does.
            let ttl = none.unwrap_or(0);
            message.answers.iter_mut().for_each(|record| record.ttl = record.ttl.min(ttl));
        }
        if size <= LARGEST_CACHED && matches!(message.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
            cache.insert(query, Ok(message.clone()), Instant::now());
        }
        message
    }
}

impl Upstream for ForwarderOf<'_> {
    async fn lookup(
        &self,
        name: &Name,
        kind: RecordType,
        security: Security,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let end = Instant::now() + limit;
        let mut name = name.clone();
        let mut whole: Option<Answer> = None;
        for _ in 0..LONGEST_CHAIN {
            let left = end.saturating_duration_since(Instant::now());
            let query = Query::query(name.clone(), kind);
            let answer = self.forwarder.lookup(self.asker, query, security, left).await?;
            let next = open_end(&answer, &name, kind).map_err(|_| Failure::Code(ResponseCode::ServFail))?;
            let whole = match &mut whole {
                Some(whole) => {
                    whole.rcode = answer.rcode;
                    whole.answers.extend(answer.answers);
                    whole.authorities = answer.authorities;
                    whole
                }
                None => whole.insert(answer),
            };
            match next {
                Some(next) => name = next,
                None => return Ok(whole.clone()),
            }
        }
        Err(Failure::Code(ResponseCode::ServFail))
    }
}

/// An upstream over UDP, and TCP when an answer does not fit.
fn name_server(upstream: &SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    connections.iter_mut().for_each(|connection| connection.port = upstream.port());
    NameServerConfig::new(upstream.ip(), true, connections)
}

fn request(query: &Query, security: Security) -> DnsRequest {
    let mut message = Message::query();
    message.add_query(query.clone());
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = security.checking_disabled;
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD).set_dnssec_ok(security.dnssec_ok);
    message.set_edns(edns);
    DnsRequest::new(message, DnsRequestOptions::default())
}

/// What a result of the pool means for the asker.
fn answer_of(result: Result<Message, NetError>, kind: RecordType, security: Security) -> Result<Answer, Failure> {
    let mut answer = match result {
        Ok(message) => Answer {
            rcode: message.metadata.response_code,
            answers: message.answers,
            authorities: message.authorities,
            authoritative: false,
        },
        Err(NetError::Dns(DnsError::NoRecordsFound(NoRecords { response_code, authorities, .. }))) => Answer {
            rcode: response_code,
            answers: Vec::new(),
            authorities: authorities.map(|records| records.to_vec()).unwrap_or_default(),
            authoritative: false,
        },
        Err(NetError::Dns(DnsError::ResponseCode(code))) => return Err(Failure::Code(code)),
        Err(error) => {
            tracing::debug!(%error, "no answer from the upstreams");
            return Err(Failure::Silent);
        }
    };
    if !matches!(answer.rcode, ResponseCode::NoError | ResponseCode::NXDomain) {
        return Err(Failure::Code(answer.rcode));
    }
    if !security.dnssec_ok {
        // RFC 4035 3.2.1; of the authority section only the SOA means something to a stub.
        answer.answers.retain(|record| record.record_type() == kind || !record.record_type().is_dnssec());
        answer.authorities.retain(|record| record.record_type() == RecordType::SOA);
    }
    Ok(answer)
}
