//! What is to be said to an asker, before it becomes a message.
use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RData, Record, RecordType},
};

/// The longest chain of aliases that is followed.
pub const LONGEST_CHAIN: usize = 16;

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

/// Where an answer's aliases lead from `name`, if they lead away from it without reaching a record of this type or a
/// proof that there is none: an upstream that answers with authority gives such chains. `Err` if they go in circles.
pub fn open_end(answer: &Answer, name: &Name, kind: RecordType) -> Result<Option<Name>, Circle> {
    let reached = answer.answers.iter().any(|record| record.record_type() == kind);
    if kind == RecordType::CNAME || reached || answer.rcode != ResponseCode::NoError || answer.negative_ttl().is_some()
    {
        return Ok(None);
    }
    let alias = |from: &Name| {
        answer.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *from => Some(&target.0),
            _ => None,
        })
    };
    let mut end = name;
    for _ in 0..LONGEST_CHAIN {
        match alias(end) {
            Some(target) => end = target,
            None => return Ok((end != name).then(|| end.clone())),
        }
    }
    Err(Circle)
}

/// Aliases that lead back to themselves, or too far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circle;

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, CNAME};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn end(records: &[(&str, &str)]) -> Result<Option<String>, Circle> {
        let record = |(owner, target): &(&str, &str)| {
            let data = match target.parse() {
                Ok(host) => RData::A(A(host)),
                Err(_) => RData::CNAME(CNAME(name(target))),
            };
            Record::from_rdata(name(owner), 9, data)
        };
        let answer = Answer { answers: records.iter().map(record).collect(), ..Answer::code(ResponseCode::NoError) };
        open_end(&answer, &name("a."), RecordType::A).map(|end| end.map(|end| end.to_string()))
    }

    #[test]
    fn only_a_chain_without_an_end_leads_on() {
        assert_eq!(end(&[]), Ok(None));
        assert_eq!(end(&[("a.", "192.0.2.1")]), Ok(None));
        assert_eq!(end(&[("a.", "b."), ("b.", "192.0.2.1")]), Ok(None));
        assert_eq!(end(&[("b.", "c."), ("A.", "b.")]), Ok(Some("c.".into())));
        assert_eq!(end(&[("x.", "y.")]), Ok(None));
        assert_eq!(end(&[("a.", "a.")]), Err(Circle));
        assert_eq!(end(&[("a.", "b."), ("b.", "c."), ("c.", "b.")]), Err(Circle));
    }
}
