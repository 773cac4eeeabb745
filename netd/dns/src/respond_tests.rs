//! Requests as bytes: whatever comes, a response is well formed, fits, and belongs to the request.
use super::*;
use hickory_proto::rr::{Name, RData, Record, rdata::TXT};
use proptest::prelude::*;
use weft_model::{
    address::{NAT64_GLOBAL, NAT64_PRIVATE},
    dns::{DnsName, DnsView},
};

const ASKER: &str = "fd00:1:0:1::a:1";

fn service() -> Service {
    let view = DnsView {
        schema: DnsView::SCHEMA,
        listen: vec![],
        askers: vec!["fd00:1:0:1::/64".parse().unwrap()],
        upstreams: vec![],
        domain: "ws.test".into(),
        names: vec![DnsName {
            id: "aaaaaaaaaa".parse().unwrap(),
            name: None,
            address: ASKER.parse().unwrap(),
            group: None,
        }],
        nat64_global: NAT64_GLOBAL,
        nat64_private: NAT64_PRIVATE,
        private: vec![],
        native_aaaa: true,
    };
    let metrics = Arc::new(Metrics::default());
    let state = State {
        names: Names::new(&view, 1).unwrap(),
        translation: Translation::new(NAT64_GLOBAL, NAT64_PRIVATE, vec![], true),
        forwarder: Arc::new(Forwarder::new(&[], metrics.clone()).unwrap()),
    };
    Service { state: ArcSwap::from_pointee(state), metrics }
}

fn ask_from(asker: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { service().respond(bytes, asker.parse().unwrap(), Transport::Udp).await })
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.metadata.recursion_desired = true;
    message
}

fn ask(message: &Message) -> Message {
    Message::from_vec(&ask_from(ASKER, &message.to_vec().unwrap()).unwrap()).unwrap()
}

#[test]
fn a_response_repeats_the_question_and_says_who_is_the_authority() {
    let response = ask(&question("aAaaaaaaaa.ws.test.", RecordType::AAAA));
    assert_eq!(response.metadata.id, 77);
    assert!(
        response.metadata.authoritative && response.metadata.recursion_available && !response.metadata.authentic_data
    );
    assert_eq!(response.queries[0].name().to_string(), "aAaaaaaaaa.ws.test.");
    assert_eq!(response.answers[0].data.to_string(), ASKER);
    assert!(response.edns.is_none());
}

#[test]
fn edns_is_answered_with_edns_and_only_its_version_0_is_known() {
    let mut message = question("aaaaaaaaaa.ws.test.", RecordType::AAAA);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    message.set_edns(edns.clone());
    let response = ask(&message);
    let answered = response.edns.unwrap();
    assert_eq!((answered.max_payload(), answered.flags().dnssec_ok), (UDP_PAYLOAD, true));
    edns.set_version(1);
    message.set_edns(edns);
    let response = ask(&message);
    // The code is 16, which another name shares.
    assert_eq!(u16::from(response.metadata.response_code), u16::from(ResponseCode::BADVERS));
    assert!(response.answers.is_empty());
}

#[test]
fn what_is_not_served_has_its_code() {
    let mut class = question("aaaaaaaaaa.ws.test.", RecordType::AAAA);
    class.queries[0].set_query_class(DNSClass::CH);
    let mut two = question("aaaaaaaaaa.ws.test.", RecordType::AAAA);
    two.add_query(two.queries[0].clone());
    let mut none = question("a.test.", RecordType::A);
    none.queries.clear();
    let mut update = question("a.test.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    for (request, code) in [
        (question("aaaaaaaaaa.ws.test.", RecordType::ANY), ResponseCode::Refused),
        (question("aaaaaaaaaa.ws.test.", RecordType::AXFR), ResponseCode::Refused),
        (class, ResponseCode::Refused),
        (two, ResponseCode::FormErr),
        (none, ResponseCode::FormErr),
        (update, ResponseCode::NotImp),
        (question("nowhere.example.", RecordType::A), ResponseCode::ServFail),
    ] {
        assert_eq!(ask(&request).metadata.response_code, code, "{request}");
    }
}

#[test]
fn a_stranger_is_refused_whatever_it_asks() {
    for name in ["aaaaaaaaaa.ws.test.", "example.", "ipv4only.arpa."] {
        let bytes = question(name, RecordType::AAAA).to_vec().unwrap();
        let response = Message::from_vec(&ask_from("2001:db8::1", &bytes).unwrap()).unwrap();
        assert_eq!((response.metadata.response_code, response.answers.len()), (ResponseCode::Refused, 0));
    }
}

#[test]
fn what_does_not_fit_is_sent_empty_so_that_the_asker_comes_by_tcp() {
    let service = service();
    let request = question("big.test.", RecordType::TXT);
    let text =
        Record::from_rdata(Name::from_ascii("big.test.").unwrap(), 5, RData::TXT(TXT::new(vec!["x".repeat(200)])));
    let answer = Answer { answers: vec![text; 5], ..Answer::code(ResponseCode::NoError) };
    let udp = service.write(&request, answer.clone(), Transport::Udp).unwrap();
    let udp = Message::from_vec(&udp).unwrap();
    assert!(udp.metadata.truncation && udp.answers.is_empty() && udp.queries == request.queries);
    let tcp = Message::from_vec(&service.write(&request, answer, Transport::Tcp).unwrap()).unwrap();
    assert!(!tcp.metadata.truncation && tcp.answers.len() == 5);
}

#[test]
fn responses_are_not_answered() {
    let mut message = question("a.test.", RecordType::A);
    message.metadata.message_type = MessageType::Response;
    assert_eq!(ask_from(ASKER, &message.to_vec().unwrap()), None);
    assert_eq!(ask_from(ASKER, &[0; 11]), None);
}

proptest! {
    #[test]
    fn any_bytes_get_a_small_well_formed_response_or_none(
        bytes in proptest::collection::vec(any::<u8>(), 0..600), header: bool,
    ) {
        let mut bytes = bytes;
        if header && bytes.len() >= 12 {
            bytes[2] &= 0x07;
            bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        }
        if let Some(response) = ask_from(ASKER, &bytes) {
            let message = Message::from_vec(&response).unwrap();
            prop_assert_eq!(message.metadata.message_type, MessageType::Response);
            prop_assert_eq!(&response[..2], &bytes[..2]);
            prop_assert!(response.len() <= usize::from(UDP_PAYLOAD));
        }
    }

    #[test]
    fn a_cut_or_bent_request_never_panics(cut in 0usize..60, at in 0usize..60, value: u8) {
        let mut message = question("aaaaaaaaaa.ws.test.", RecordType::AAAA);
        message.set_edns(Edns::new());
        let mut bytes = message.to_vec().unwrap();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Some(response) = ask_from(ASKER, &bytes) {
            prop_assert!(Message::from_vec(&response).is_ok());
        }
    }
}
