//! RFC 6147's rules, section by section, against an upstream that says what the test wants.
use super::*;
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use std::{collections::HashMap, sync::Mutex};
use weft_model::address::{NAT64_GLOBAL, NAT64_PRIVATE};

#[derive(Default)]
struct Fake {
    answers: HashMap<(String, RecordType), Result<Answer, Failure>>,
    asked: Mutex<Vec<RecordType>>,
}

impl Fake {
    fn with(mut self, name: &str, kind: RecordType, answer: Result<Answer, Failure>) -> Self {
        self.answers.insert((name.into(), kind), answer);
        self
    }

    fn asked(&self) -> Vec<RecordType> {
        self.asked.lock().unwrap().clone()
    }
}

impl Upstream for Fake {
    async fn lookup(&self, name: &Name, kind: RecordType, _: Security, _: Duration) -> Result<Answer, Failure> {
        self.asked.lock().unwrap().push(kind);
        self.answers.get(&(name.to_string(), kind)).cloned().unwrap_or(Err(Failure::Silent))
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn a(owner: &str, ttl: u32, host: &str) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A(host.parse().unwrap())))
}

fn aaaa(owner: &str, address: &str) -> Record {
    Record::from_rdata(name(owner), 300, RData::AAAA(AAAA(address.parse().unwrap())))
}

fn cname(owner: &str, target: &str) -> Record {
    Record::from_rdata(name(owner), 700, RData::CNAME(CNAME(name(target))))
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let soa = SOA::new(name("ns.test."), name("root.test."), 1, 2, 3, 4, minimum);
    Record::from_rdata(name("test."), ttl, RData::SOA(soa))
}

fn some(answers: Vec<Record>) -> Result<Answer, Failure> {
    Ok(Answer { rcode: ResponseCode::NoError, answers, authorities: vec![], authoritative: false })
}

fn none(rcode: ResponseCode, authorities: Vec<Record>) -> Result<Answer, Failure> {
    Ok(Answer { rcode, answers: vec![], authorities, authoritative: false })
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

fn asked_with(upstream: &Fake, native: bool, security: Security) -> Answer {
    let translation = Translation::new(NAT64_GLOBAL, NAT64_PRIVATE, vec!["10.0.0.0/8".parse().unwrap()], native);
    run(resolve(upstream, &translation, &name("a.test."), RecordType::AAAA, security))
}

fn asked(upstream: &Fake) -> Answer {
    asked_with(upstream, true, Security::default())
}

fn data(answer: &Answer) -> Vec<String> {
    answer.answers.iter().map(|record| format!("{} {}", record.ttl, record.data)).collect()
}

#[test]
fn s5_1_a_native_address_is_given_and_ipv4_is_not_asked() {
    let upstream = Fake::default().with("a.test.", RecordType::AAAA, some(vec![aaaa("a.test.", "2001:db8::1")]));
    assert_eq!(data(&asked(&upstream)), ["300 2001:db8::1"]);
    assert_eq!(upstream.asked(), [RecordType::AAAA]);
}

#[test]
fn s5_1_6_ipv4_is_made_ipv6_when_there_is_no_native_address() {
    let upstream =
        Fake::default().with("a.test.", RecordType::AAAA, none(ResponseCode::NoError, vec![soa(120, 60)])).with(
            "a.test.",
            RecordType::A,
            some(vec![a("a.test.", 3600, "8.8.8.8"), a("a.test.", 30, "10.1.2.3"), a("a.test.", 30, "192.168.0.1")]),
        );
    assert_eq!(data(&asked(&upstream)), ["60 64:ff9b::808:808", "30 64:ff9b:1::a01:203"]);
}

#[test]
fn s5_1_7_without_an_soa_the_ttl_is_at_most_600() {
    let upstream = Fake::default().with("a.test.", RecordType::AAAA, none(ResponseCode::NoError, vec![])).with(
        "a.test.",
        RecordType::A,
        some(vec![a("a.test.", 3600, "8.8.8.8"), a("a.test.", 599, "8.8.4.4")]),
    );
    assert_eq!(data(&asked(&upstream)), ["600 64:ff9b::808:808", "599 64:ff9b::808:404"]);
}

#[test]
fn s5_1_2_no_such_name_is_returned_as_it_is() {
    let upstream = Fake::default().with("a.test.", RecordType::AAAA, none(ResponseCode::NXDomain, vec![soa(9, 9)]));
    let answer = asked(&upstream);
    assert_eq!((answer.rcode, answer.authorities), (ResponseCode::NXDomain, vec![soa(9, 9)]));
    assert_eq!(upstream.asked(), [RecordType::AAAA]);
}

#[test]
fn s5_1_2_and_5_1_3_another_code_or_silence_about_aaaa_does_not_hide_ipv4() {
    for failure in [Failure::Code(ResponseCode::ServFail), Failure::Code(ResponseCode::NotImp), Failure::Silent] {
        let upstream = Fake::default().with("a.test.", RecordType::AAAA, Err(failure)).with(
            "a.test.",
            RecordType::A,
            some(vec![a("a.test.", 30, "8.8.8.8")]),
        );
        assert_eq!(data(&asked(&upstream)), ["30 64:ff9b::808:808"], "{failure:?}");
    }
}

#[test]
fn failures_of_both_are_a_server_failure_and_a_limit_asks_only_once() {
    assert_eq!(asked(&Fake::default()).rcode, ResponseCode::ServFail);
    let refused = Fake::default().with("a.test.", RecordType::A, Err(Failure::Code(ResponseCode::Refused)));
    assert_eq!(asked(&refused).rcode, ResponseCode::ServFail);
    let limited = Fake::default().with("a.test.", RecordType::AAAA, Err(Failure::Limited));
    assert_eq!(asked(&limited).rcode, ResponseCode::ServFail);
    assert_eq!(limited.asked(), [RecordType::AAAA]);
}

#[test]
fn s5_1_4_excluded_addresses_are_as_if_not_there() {
    let a_record = || some(vec![a("a.test.", 30, "8.8.8.8")]);
    let all = Fake::default()
        .with("a.test.", RecordType::AAAA, some(vec![aaaa("a.test.", "::ffff:8.8.8.8"), aaaa("a.test.", "64:ff9b::1")]))
        .with("a.test.", RecordType::A, a_record());
    assert_eq!(data(&asked(&all)), ["30 64:ff9b::808:808"]);
    let part = Fake::default().with(
        "a.test.",
        RecordType::AAAA,
        some(vec![aaaa("a.test.", "::ffff:8.8.8.8"), aaaa("a.test.", "2001:db8::2")]),
    );
    assert_eq!(data(&asked(&part)), ["300 2001:db8::2"]);
}

#[test]
fn s5_1_4_without_an_uplink_no_native_address_is_given_nor_asked_for() {
    let both = Fake::default().with("a.test.", RecordType::AAAA, some(vec![aaaa("a.test.", "2001:db8::1")])).with(
        "a.test.",
        RecordType::A,
        some(vec![a("a.test.", 30, "8.8.8.8")]),
    );
    assert_eq!(data(&asked_with(&both, false, Security::default())), ["30 64:ff9b::808:808"]);
    assert_eq!(both.asked(), [RecordType::A]);
    let six = Fake::default().with("a.test.", RecordType::AAAA, some(vec![aaaa("a.test.", "2001:db8::1")])).with(
        "a.test.",
        RecordType::A,
        none(ResponseCode::NoError, vec![soa(5, 5)]),
    );
    let answer = asked_with(&six, false, Security::default());
    assert_eq!((answer.rcode, data(&answer), answer.authorities), (ResponseCode::NoError, vec![], vec![soa(5, 5)]));
}

#[test]
fn s5_1_5_aliases_stay_before_what_is_made() {
    let upstream = Fake::default().with("a.test.", RecordType::AAAA, some(vec![cname("a.test.", "b.test.")])).with(
        "a.test.",
        RecordType::A,
        some(vec![cname("a.test.", "b.test."), a("b.test.", 30, "8.8.8.8")]),
    );
    assert_eq!(data(&asked(&upstream)), ["700 b.test.", "30 64:ff9b::808:808"]);
}

#[test]
fn private_ipv4_that_is_not_permitted_is_no_data_with_the_soa() {
    let upstream = Fake::default()
        .with("a.test.", RecordType::AAAA, none(ResponseCode::NoError, vec![soa(9, 9)]))
        .with("a.test.", RecordType::A, some(vec![a("a.test.", 30, "192.168.0.1")]));
    let answer = asked(&upstream);
    assert_eq!((answer.rcode, data(&answer), answer.authorities), (ResponseCode::NoError, vec![], vec![soa(9, 9)]));
}

#[test]
fn s5_5_only_an_asker_that_validates_itself_gets_no_synthesis() {
    let upstream = || {
        Fake::default().with("a.test.", RecordType::AAAA, none(ResponseCode::NoError, vec![soa(9, 9)])).with(
            "a.test.",
            RecordType::A,
            some(vec![a("a.test.", 5, "8.8.8.8")]),
        )
    };
    for (dnssec_ok, checking_disabled, made) in
        [(false, false, true), (true, false, true), (false, true, true), (true, true, false)]
    {
        let upstream = upstream();
        let answer = asked_with(&upstream, true, Security { dnssec_ok, checking_disabled });
        assert_eq!(answer.answers.len(), usize::from(made), "DO={dnssec_ok} CD={checking_disabled}");
        assert_eq!(upstream.asked().contains(&RecordType::A), made);
    }
}

fn pointed(upstream: &Fake) -> Answer {
    let name = Name::from("64:ff9b::808:808".parse::<std::net::IpAddr>().unwrap());
    run(resolve_pointer(upstream, &name, Ipv4Addr::new(8, 8, 8, 8), Security::default()))
}

#[test]
fn s5_3_1_a_translated_address_is_an_alias_of_its_ipv4_name() {
    let target = "8.8.8.8.in-addr.arpa.";
    let pointer = |owner: &str| Record::from_rdata(name(owner), 77, RData::PTR(PTR(name("dns.test."))));
    let plain = Fake::default().with(target, RecordType::PTR, some(vec![pointer(target)]));
    assert_eq!(data(&pointed(&plain)), ["77 8.8.8.8.in-addr.arpa.", "77 dns.test."]);
    let chain = some(vec![cname(target, "8.0-25.8.8.in-addr.arpa."), pointer("8.0-25.8.8.in-addr.arpa.")]);
    let answer = pointed(&Fake::default().with(target, RecordType::PTR, chain));
    assert_eq!(data(&answer), ["77 dns.test."]);
    assert!(answer.answers[0].name.to_string().ends_with("ip6.arpa."));
    let nothing = Fake::default().with(target, RecordType::PTR, none(ResponseCode::NXDomain, vec![soa(1, 1)]));
    assert_eq!((pointed(&nothing).rcode, pointed(&nothing).answers), (ResponseCode::NXDomain, vec![]));
    assert_eq!(pointed(&Fake::default()).rcode, ResponseCode::ServFail);
}
