//! Who learns which name, and what is never asked upstream.
use super::*;
use proptest::prelude::*;
use weft_model::address::{NAT64_GLOBAL, NAT64_PRIVATE};

const DOMAIN: &str = "ws.example.dev";

fn workspace(id: &str, name: Option<&str>, address: &str, group: Option<&str>) -> DnsName {
    DnsName {
        id: id.parse().unwrap(),
        name: name.map(|name| name.parse().unwrap()),
        address: address.parse().unwrap(),
        group: group.map(|group| group.parse().unwrap()),
    }
}

fn view(names: Vec<DnsName>) -> DnsView {
    DnsView {
        schema: DnsView::SCHEMA,
        listen: vec!["fd00:1::53".parse().unwrap()],
        askers: vec!["fd00:1:0:1::/64".parse().unwrap(), "2001:db8:5::/64".parse().unwrap()],
        upstreams: vec![],
        domain: DOMAIN.into(),
        names,
        nat64_global: NAT64_GLOBAL,
        nat64_private: NAT64_PRIVATE,
        private: vec!["10.0.0.0/8".parse().unwrap()],
        native_aaaa: true,
    }
}

fn friends() -> DnsView {
    view(vec![
        workspace("aaaaaaaaaa", Some("alpha"), "fd00:1:0:1::a:1", Some("team")),
        workspace("bbbbbbbbbb", None, "fd00:1:0:2::b:1", Some("team")),
        workspace("cccccccccc", Some("gamma"), "fd00:1:0:1::c:1", Some("other")),
        workspace("dddddddddd", Some("delta"), "2001:db8:5::d:1", None),
        workspace("eeeeeeeeee", Some("aaaaaaaaaa"), "fd00:1:0:1::e:1", Some("team")),
    ])
}

const ALPHA: &str = "fd00:1:0:1::a:1";
const GAMMA: &str = "fd00:1:0:1::c:1";
const DELTA: &str = "2001:db8:5::d:1";

fn decide(view: &DnsView, asker: &str, name: &str, kind: RecordType) -> Decision {
    let translation = Translation::new(view.nat64_global, view.nat64_private, view.private.clone(), view.native_aaaa);
    let name = Name::from_ascii(name).unwrap();
    Names::new(view, 1).unwrap().decide(asker.parse().unwrap(), &name, kind, &translation)
}

/// What an answer says, shortly: its code, or the address or name of its first record.
fn says(decision: Decision) -> String {
    let answer = match decision {
        Decision::Answer(answer) => answer,
        Decision::Translated(host) => return format!("name of {host}"),
        Decision::Forward => return "upstream".into(),
    };
    assert!(answer.authoritative);
    match answer.answers.first() {
        Some(record) => record.data.to_string(),
        None => {
            let [soa] = answer.authorities.as_slice() else { panic!("no SOA: {answer:?}") };
            assert_eq!((soa.record_type(), soa.ttl), (RecordType::SOA, NEGATIVE_TTL));
            match answer.rcode {
                ResponseCode::NoError => "no data".into(),
                ResponseCode::NXDomain => "no such name".into(),
                code => panic!("{code}"),
            }
        }
    }
}

fn asked(asker: &str, name: &str, kind: RecordType) -> String {
    says(decide(&friends(), asker, name, kind))
}

fn pointer(address: &str) -> String {
    Name::from(address.parse::<std::net::IpAddr>().unwrap()).to_string()
}

#[test]
fn names_are_for_the_own_group_and_oneself() {
    for (asker, name, expected) in [
        (ALPHA, "alpha.ws.example.dev.", "fd00:1:0:1::a:1"),
        (ALPHA, "bbbbbbbbbb.ws.example.dev.", "fd00:1:0:2::b:1"),
        (ALPHA, "BBBBBBBBBB.Ws.Example.Dev.", "fd00:1:0:2::b:1"),
        (ALPHA, "gamma.ws.example.dev.", "no such name"),
        (ALPHA, "cccccccccc.ws.example.dev.", "no such name"),
        (ALPHA, "delta.ws.example.dev.", "no such name"),
        (ALPHA, "nobody.ws.example.dev.", "no such name"),
        (ALPHA, "a.alpha.ws.example.dev.", "no such name"),
        (GAMMA, "alpha.ws.example.dev.", "no such name"),
        (GAMMA, "gamma.ws.example.dev.", "fd00:1:0:1::c:1"),
        (DELTA, "delta.ws.example.dev.", "2001:db8:5::d:1"),
        (DELTA, "alpha.ws.example.dev.", "no such name"),
        ("fd00:1:0:1::1", "alpha.ws.example.dev.", "no such name"),
    ] {
        assert_eq!(asked(asker, name, RecordType::AAAA), expected, "{asker} asks {name}");
    }
}

#[test]
fn an_id_goes_before_a_name_that_is_spelt_the_same() {
    assert_eq!(asked(ALPHA, "aaaaaaaaaa.ws.example.dev.", RecordType::AAAA), "fd00:1:0:1::a:1");
    assert_eq!(asked(ALPHA, "eeeeeeeeee.ws.example.dev.", RecordType::AAAA), "fd00:1:0:1::e:1");
}

#[test]
fn other_types_of_a_known_name_are_no_data_and_of_an_unknown_one_no_name() {
    for kind in [RecordType::A, RecordType::TXT, RecordType::HTTPS, RecordType::CNAME] {
        assert_eq!(asked(ALPHA, "alpha.ws.example.dev.", kind), "no data");
        assert_eq!(asked(ALPHA, "gamma.ws.example.dev.", kind), "no such name");
    }
    assert_eq!(asked(ALPHA, "ws.example.dev.", RecordType::AAAA), "no data");
    assert!(asked(ALPHA, "ws.example.dev.", RecordType::SOA).starts_with("dns.ws.example.dev."));
}

#[test]
fn a_ports_host_name_is_public() {
    for (name, expected) in [
        ("8080-alpha.ws.example.dev.", "upstream"),
        ("8080-bbbbbbbbbb.ws.example.dev.", "upstream"),
        ("443-not-there.WS.example.dev.", "upstream"),
        ("0-alpha.ws.example.dev.", "no such name"),
        ("99999-alpha.ws.example.dev.", "no such name"),
        ("8080-.ws.example.dev.", "no such name"),
        ("8080-a.b.ws.example.dev.", "no such name"),
        ("evilws.example.dev.", "upstream"),
        ("example.dev.", "upstream"),
    ] {
        assert_eq!(asked(ALPHA, name, RecordType::AAAA), expected, "{name}");
    }
}

#[test]
fn pointers_follow_the_same_rule_and_never_leave() {
    for (asker, address, expected) in [
        (ALPHA, "fd00:1:0:1::a:1", "alpha.ws.example.dev."),
        (ALPHA, "fd00:1:0:2::b:1", "bbbbbbbbbb.ws.example.dev."),
        (ALPHA, "fd00:1:0:1::c:1", "no such name"),
        (ALPHA, "fd00:1:0:1:8000::a:1", "no such name"),
        (ALPHA, "fdff::1", "no such name"),
        (ALPHA, "2001:db8:5::d:1", "no such name"),
        (ALPHA, "2001:db8:5::ffff", "no such name"),
        (DELTA, "2001:db8:5::d:1", "delta.ws.example.dev."),
        (ALPHA, "2001:db8:6::1", "upstream"),
    ] {
        assert_eq!(asked(asker, &pointer(address), RecordType::PTR), expected, "{asker} asks {address}");
    }
    assert_eq!(asked(ALPHA, &pointer("fd00:1:0:1::a:1"), RecordType::TXT), "no data");
    assert_eq!(asked(ALPHA, "1.0.0.0.d.f.ip6.arpa.", RecordType::NS), "no data", "there may be names below");
    assert_eq!(asked(ALPHA, "x.d.f.ip6.arpa.", RecordType::PTR), "no such name");
    assert_eq!(asked(ALPHA, "ip6.arpa.", RecordType::NS), "upstream");
}

#[test]
fn pointers_of_translated_addresses_ask_for_the_ipv4_hosts_that_are_served() {
    for (address, expected) in [
        ("64:ff9b::808:808", "name of 8.8.8.8"),
        ("64:ff9b::a00:1", "no such name"),
        ("64:ff9b:1::a00:1", "name of 10.0.0.1"),
        ("64:ff9b:1::c0a8:1", "no such name"),
        ("64:ff9b:1::808:808", "no such name"),
        ("64:ff9b::c000:aa", "ipv4only.arpa."),
        ("192.0.0.171", "ipv4only.arpa."),
        ("192.0.0.1", "upstream"),
    ] {
        assert_eq!(asked(ALPHA, &pointer(address), RecordType::PTR), expected, "{address}");
    }
}

#[test]
fn the_prefix_is_discovered_without_the_upstream() {
    let Decision::Answer(answer) = decide(&friends(), ALPHA, "IPv4only.arpa.", RecordType::AAAA) else { panic!() };
    let found: Vec<_> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    assert_eq!(found, ["64:ff9b::c000:aa", "64:ff9b::c000:ab"]);
    let Decision::Answer(answer) = decide(&friends(), ALPHA, "ipv4only.arpa.", RecordType::A) else { panic!() };
    let found: Vec<_> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    assert_eq!(found, ["192.0.0.170", "192.0.0.171"]);
    assert_eq!(asked(ALPHA, "ipv4only.arpa.", RecordType::TXT), "no data");
    assert_eq!(asked(ALPHA, "x.ipv4only.arpa.", RecordType::A), "no such name");
    assert_eq!(asked(ALPHA, "localhost.", RecordType::AAAA), "::1");
    assert_eq!(asked(ALPHA, "a.onion.", RecordType::AAAA), "no such name");
}

proptest! {
    #[test]
    fn an_asker_learns_exactly_its_group_and_itself(
        groups in proptest::collection::vec(proptest::option::of(0u8..4), 2..12), asker in 0usize..12, target in 0usize..12,
    ) {
        let (asker, target) = (asker % groups.len(), target % groups.len());
        let id = |n: usize| format!("aaaaaaaaa{}", char::from(b'a' + u8::try_from(n).unwrap()));
        let address = |n: usize| format!("fd00:1:0:1::{:x}:1", n + 1);
        let names = groups.iter().enumerate()
            .map(|(n, group)| workspace(&id(n), None, &address(n), group.map(|group| format!("g{group}")).as_deref()))
            .collect();
        let said = says(decide(&view(names), &address(asker), &format!("{}.{DOMAIN}.", id(target)), RecordType::AAAA));
        let may = asker == target || (groups[asker].is_some() && groups[asker] == groups[target]);
        prop_assert_eq!(said, if may { address(target) } else { "no such name".into() });
    }

    #[test]
    fn no_fabric_name_reaches_the_upstream(label in "[a-zA-Z0-9_-]{1,20}", deeper in "([a-z]{1,5}\\.){0,3}", asker: u128) {
        let view = friends();
        let name = format!("{deeper}{label}.{DOMAIN}.");
        prop_assume!(Name::from_ascii(&name).is_ok());
        let port = PortHost::parse(&name, DOMAIN).is_ok();
        let asker = std::net::Ipv6Addr::from_bits(asker).to_string();
        let forwarded = decide(&view, &asker, &name, RecordType::AAAA) == Decision::Forward;
        prop_assert_eq!(forwarded, port);
    }
}
