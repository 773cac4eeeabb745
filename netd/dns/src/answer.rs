//! What is to be said to an asker, before it becomes a message.
use hickory_proto::{
    op::ResponseCode,
    rr::{RData, Record},
};

/// An answer's records and code; the question, flags and EDNS come from the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The response code.
    pub rcode: ResponseCode,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section.
    pub authorities: Vec<Record>,
    /// Whether this node is the authority for it.
    pub authoritative: bool,
}

impl Answer {
    /// Records that this node is the authority for.
    #[must_use]
    pub fn local(answers: Vec<Record>) -> Self {
        Self { rcode: ResponseCode::NoError, answers, authorities: Vec::new(), authoritative: true }
    }

    /// A code without records.
    #[must_use]
    pub fn code(rcode: ResponseCode) -> Self {
        Self { rcode, answers: Vec::new(), authorities: Vec::new(), authoritative: false }
    }

    /// How long "there is none" holds, in seconds: the smaller of the SOA's TTL and its minimum (RFC 2308 5).
    #[must_use]
    pub fn negative_ttl(&self) -> Option<u32> {
        negative_ttl(&self.authorities)
    }
}

/// The negative TTL that an authority section gives, in seconds.
#[must_use]
pub fn negative_ttl(authorities: &[Record]) -> Option<u32> {
    authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    })
}
