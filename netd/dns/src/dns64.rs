//! How a forwarded question is resolved: DNS64's order of queries (RFC 6147 5.1, 5.3, 5.5) over any upstream.
use std::{future::Future, net::Ipv4Addr, time::Duration};

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RData, Record, RecordType, rdata::CNAME},
};

use crate::{
    answer::Answer,
    synthesis::{Native, TTL_WITHOUT_SOA, Translation},
};

/// How long a question may take upstream altogether: a stub resolver gives up after 5 s.
pub const TIME_LIMIT: Duration = Duration::from_millis(4400);
/// How long the AAAA query of the two may take.
const AAAA_TIME_LIMIT: Duration = Duration::from_millis(2200);

/// The two bits by which an asker says how much of DNSSEC it does itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Security {
    /// DO: the asker wants signatures (RFC 3225).
    pub dnssec_ok: bool,
    /// CD: the asker validates by itself (RFC 4035 3.2.2).
    pub checking_disabled: bool,
}

/// Why the upstream gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It answered with this code, neither "no error" nor "no such name".
    Code(ResponseCode),
    /// It did not answer in time, or cannot be reached.
    Silent,
    /// The asker or the node has too many questions outstanding.
    Limited,
}

/// Whoever answers what is not ours.
pub trait Upstream: Sync {
    /// Asks; the answer's code is "no error" or "no such name", everything else is a failure.
    fn lookup(
        &self,
        name: &Name,
        kind: RecordType,
        security: Security,
        limit: Duration,
    ) -> impl Future<Output = Result<Answer, Failure>> + Send;
}

/// Resolves a question that is not answered locally.
pub async fn resolve(
    upstream: &impl Upstream,
    translation: &Translation,
    name: &Name,
    kind: RecordType,
    security: Security,
) -> Answer {
    // An asker that validates would refuse what is synthesised: it gets the data and synthesises itself (5.5, 3).
    let validates = security.dnssec_ok && security.checking_disabled;
    let answer = if kind == RecordType::AAAA && !validates {
        translated(upstream, translation, name, security).await
    } else {
        upstream.lookup(name, kind, security, TIME_LIMIT).await
    };
    // What went wrong upstream is no code of ours: a REFUSED passed on would make an asker give up on this node.
    answer.unwrap_or_else(|_| Answer::code(ResponseCode::ServFail))
}

/// AAAA: native if there are any that may be given, else made of A (5.1).
async fn translated(
    upstream: &impl Upstream,
    translation: &Translation,
    name: &Name,
    security: Security,
) -> Result<Answer, Failure> {
    let native = if translation.native_aaaa() {
        match upstream.lookup(name, RecordType::AAAA, security, AAAA_TIME_LIMIT).await {
            // 5.1.2: "no such name" is returned as it is.
            Ok(answer) if answer.rcode != ResponseCode::NoError => return Ok(answer),
            Ok(mut answer) => match translation.native(&answer.answers) {
                Native::Whole => return Ok(answer),
                Native::Part(records) => {
                    answer.answers = records;
                    return Ok(answer);
                }
                Native::Empty => Some(answer),
            },
            Err(Failure::Limited) => return Err(Failure::Limited),
            // 5.1.2, 5.1.3: any other code, and silence, are treated as an empty answer.
            Err(_) => None,
        }
    } else {
        // Every AAAA is excluded: A alone decides, and it also tells whether the name exists.
        None
    };
    let limit = if translation.native_aaaa() { TIME_LIMIT - AAAA_TIME_LIMIT } else { TIME_LIMIT };
    let mut answer = upstream.lookup(name, RecordType::A, security, limit).await?;
    if answer.rcode != ResponseCode::NoError {
        return Ok(answer);
    }
    let ttl = native.as_ref().and_then(Answer::negative_ttl).unwrap_or(TTL_WITHOUT_SOA);
    answer.answers = translation.synthesise(&answer.answers, ttl);
    answer.authorities.retain(|record| !record.record_type().is_dnssec());
    if !answer.answers.iter().any(|record| record.record_type() == RecordType::AAAA) && answer.authorities.is_empty() {
        // 5.1.6: nothing to synthesise: the empty AAAA answer stands, with its SOA.
        answer.authorities = native.map(|native| native.authorities).unwrap_or_default();
        answer.authorities.retain(|record| record.record_type() == RecordType::SOA);
    }
    Ok(answer)
}

/// PTR of a translated address: a CNAME to the IPv4 host's name in in-addr.arpa, with what is there (5.3.1, second way).
pub async fn resolve_pointer(upstream: &impl Upstream, name: &Name, host: Ipv4Addr, security: Security) -> Answer {
    let target = Name::from(std::net::IpAddr::V4(host));
    let answer = upstream.lookup(&target, RecordType::PTR, security, TIME_LIMIT).await;
    let mut answer = answer.unwrap_or_else(|_| Answer::code(ResponseCode::ServFail));
    let pointers = || answer.answers.iter().filter(|record| record.record_type() == RecordType::PTR);
    let Some(ttl) = pointers().map(|record| record.ttl).min() else {
        // No alias to what is not there (5.3.1).
        answer.answers.clear();
        return answer;
    };
    if answer.answers.iter().any(|record| record.record_type() == RecordType::CNAME) {
        // No longer chain than there is: the names themselves (5.3.1, first way).
        let own = |record: &Record| Record::from_rdata(name.clone(), record.ttl, record.data.clone());
        answer.answers = pointers().map(own).collect();
    } else {
        answer.answers.insert(0, Record::from_rdata(name.clone(), ttl, RData::CNAME(CNAME(target))));
    }
    answer
}

#[cfg(test)]
#[path = "dns64_tests.rs"]
mod tests;
