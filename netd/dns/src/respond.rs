//! From the bytes of a request to the bytes of its response: checks, EDNS (RFC 6891), truncation.
use std::{net::Ipv6Addr, sync::Arc};

use arc_swap::ArcSwap;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, RecordType},
};

use crate::{
    answer::Answer,
    dns64::{self, Security},
    forward::{Forwarder, ForwarderOf},
    metrics::{Metrics, count},
    names::{Decision, Names},
    synthesis::Translation,
};

/// The largest UDP payload that is sent and announced: no fragments at an MTU of 1,280; bytes.
pub(crate) const UDP_PAYLOAD: u16 = 1232;
/// The smallest that every asker takes (RFC 1035 4.2.1); bytes.
const SMALLEST_PAYLOAD: u16 = 512;

/// Everything that a view means, as one value that is swapped whole.
pub(crate) struct State {
    pub(crate) names: Names,
    pub(crate) translation: Translation,
    pub(crate) forwarder: Arc<Forwarder>,
}

/// What answers requests.
pub(crate) struct Service {
    pub(crate) state: ArcSwap<State>,
    pub(crate) metrics: Arc<Metrics>,
}

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// What a request turns out to be before anybody is asked.
#[derive(Debug)]
enum Request {
    /// No answer: it is not a request.
    Nothing,
    /// An answer with this code, without looking further.
    Code(ResponseCode, Option<Message>),
    /// A question.
    Question(Message, Query),
}

impl Service {
    /// The response to a request, if there is to be one.
    pub(crate) async fn respond(&self, bytes: &[u8], asker: Ipv6Addr, transport: Transport) -> Option<Vec<u8>> {
        count(match transport {
            Transport::Udp => &self.metrics.queries_udp,
            Transport::Tcp => &self.metrics.queries_tcp,
        });
        let state = self.state.load_full();
        let (request, answer) = match read(bytes) {
            Request::Nothing => {
                count(&self.metrics.dropped_malformed);
                return None;
            }
            request if !state.names.admits(asker) => {
                count(&self.metrics.strangers);
                let message = match request {
                    Request::Question(message, _) => Some(message),
                    Request::Code(_, message) => message,
                    Request::Nothing => None,
                };
                (message, Answer::code(ResponseCode::Refused))
            }
            Request::Code(code, message) => (message, Answer::code(code)),
            Request::Question(message, query) => {
                let answer = self.answer(&state, asker, &message, &query).await;
                (Some(message), answer)
            }
        };
        self.count_code(answer.rcode);
        let response = match request {
            Some(request) => self.write(&request, answer, transport),
            None => None,
        };
        response.or_else(|| header(bytes, ResponseCode::ServFail))
    }

    async fn answer(&self, state: &State, asker: Ipv6Addr, message: &Message, query: &Query) -> Answer {
        let security = Security {
            dnssec_ok: message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
            checking_disabled: message.metadata.checking_disabled,
        };
        let upstream = ForwarderOf { forwarder: &state.forwarder, asker };
        match state.names.decide(asker, query.name(), query.query_type(), &state.translation) {
            Decision::Answer(answer) => {
                count(&self.metrics.local);
                answer
            }
            Decision::Translated(host) => dns64::resolve_pointer(&upstream, query.name(), host, security).await,
            Decision::Forward => {
                let (name, kind) = (query.name(), query.query_type());
                let answer = dns64::resolve(&upstream, &state.translation, name, kind, security).await;
                let made = kind == RecordType::AAAA
                    && answer.answers.iter().filter_map(|record| record.data.ip_addr()).any(|address| match address {
                        std::net::IpAddr::V6(address) => state.translation.extract(address).is_some(),
                        std::net::IpAddr::V4(_) => false,
                    });
                if made {
                    count(&self.metrics.synthesised);
                }
                answer
            }
        }
    }

    /// Builds the message; one that does not fit over UDP is sent empty with TC, so that the asker comes by TCP.
    fn write(&self, request: &Message, answer: Answer, transport: Transport) -> Option<Vec<u8>> {
        let mut message = Message::response(request.metadata.id, request.metadata.op_code);
        message.metadata.recursion_desired = request.metadata.recursion_desired;
        message.metadata.checking_disabled = request.metadata.checking_disabled;
        message.metadata.recursion_available = true;
        message.metadata.authoritative = answer.authoritative;
        message.metadata.response_code = answer.rcode;
        message.add_queries(request.queries.iter().cloned());
        let mut room = SMALLEST_PAYLOAD;
        if let Some(asked) = &request.edns {
            room = asked.max_payload().clamp(SMALLEST_PAYLOAD, UDP_PAYLOAD);
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD).set_dnssec_ok(asked.flags().dnssec_ok);
            message.set_edns(edns);
        }
        message.answers = answer.answers;
        message.authorities = answer.authorities;
        let bytes = message.to_vec().ok()?;
        if transport == Transport::Tcp || bytes.len() <= usize::from(room) {
            return Some(bytes);
        }
        count(&self.metrics.truncated);
        message.truncate().to_vec().ok()
    }

    fn count_code(&self, code: ResponseCode) {
        count(match code {
            ResponseCode::NoError => &self.metrics.code_noerror,
            ResponseCode::FormErr => &self.metrics.code_formerr,
            ResponseCode::ServFail => &self.metrics.code_servfail,
            ResponseCode::NXDomain => &self.metrics.code_nxdomain,
            ResponseCode::NotImp => &self.metrics.code_notimp,
            ResponseCode::Refused => &self.metrics.code_refused,
            _ => &self.metrics.code_other,
        });
    }
}

/// Reads a request. The header is judged first: its counts are the sender's claim, and parsing trusts them.
fn read(bytes: &[u8]) -> Request {
    let Some((header, _)) = bytes.split_first_chunk::<12>() else { return Request::Nothing };
    let [id_high, id_low, flags, _, counts @ ..] = header;
    let id = u16::from_be_bytes([*id_high, *id_low]);
    if flags & 0x80 != 0 {
        // A response: answering it could make two servers talk for ever.
        return Request::Nothing;
    }
    let op_code = OpCode::from_u8((flags >> 3) & 0xf);
    let bare = |code| {
        let mut message = Message::new(id, MessageType::Query, op_code);
        message.metadata.recursion_desired = flags & 1 != 0;
        Request::Code(code, Some(message))
    };
    if op_code != OpCode::Query {
        return bare(ResponseCode::NotImp);
    }
    // One question, no records but what EDNS and a signature need.
    let [0, 1, 0, 0, 0, 0, 0, 0..=2] = counts else { return bare(ResponseCode::FormErr) };
    let Ok(message) = Message::from_vec(bytes) else { return bare(ResponseCode::FormErr) };
    let [query] = message.queries.as_slice() else { return bare(ResponseCode::FormErr) };
    let query = query.clone();
    match refusal(&message, &query) {
        Some(code) => Request::Code(code, Some(message)),
        None => Request::Question(message, query),
    }
}

/// The code for a question that is not answered whoever asks.
fn refusal(message: &Message, query: &Query) -> Option<ResponseCode> {
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Some(ResponseCode::BADVERS);
    }
    if query.query_class() != DNSClass::IN {
        return Some(ResponseCode::Refused);
    }
    match u16::from(query.query_type()) {
        // OPT and the reserved 0 are no questions.
        0 | 41 => Some(ResponseCode::FormErr),
        // TKEY, TSIG, transfers, ANY and their kin: QTYPEs and Meta-TYPEs (RFC 6895 3.1).
        128..=255 => Some(ResponseCode::Refused),
        _ => None,
    }
}

/// A response of nothing but a header, for a request that cannot be answered otherwise.
fn header(request: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let [id_high, id_low, flags, ..] = request else { return None };
    Some(vec![*id_high, *id_low, 0x80 | (flags & 0x79), 0x80 | code.low(), 0, 0, 0, 0, 0, 0, 0, 0])
}

#[cfg(test)]
#[path = "respond_tests.rs"]
mod tests;
