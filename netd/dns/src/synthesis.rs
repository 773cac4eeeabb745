//! DNS64's arithmetic (RFC 6147): which AAAA records count, and which A records become AAAA records. Pure.
use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::{RData, Record, RecordType, rdata::AAAA};
use ipnet::{Ipv4Net, Ipv6Net};
use weft_model::address::{NAT64_LEN, NON_GLOBAL_V4};

/// TTL of synthesised records when the AAAA answer brought no SOA, in seconds (RFC 6147 5.1.7).
pub const TTL_WITHOUT_SOA: u32 = 600;

/// What stands for no host: never synthesised, whatever an operator permits.
const UNUSABLE_V4: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
    Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32),
];

/// IPv4-mapped addresses, which no host can be reached by (RFC 6147 5.1.4).
const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// How this node translates: its prefixes, what it may translate, and whether it has IPv6 of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    global: Ipv6Net,
    private: Ipv6Net,
    permitted: Vec<Ipv4Net>,
    native_aaaa: bool,
}

/// What is left of an AAAA answer once the excluded addresses are taken out (RFC 6147 5.1.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Native {
    /// There is nothing excluded: the answer is given as it came.
    Whole,
    /// Some are excluded: these records remain. Signatures are gone, since they no longer match.
    Part(Vec<Record>),
    /// Nothing remains: treated as an empty answer.
    Empty,
}

impl Translation {
    /// Takes the two /96 prefixes by their address, the permitted private ranges, and whether native AAAA are given.
    #[must_use]
    pub fn new(global: Ipv6Addr, private: Ipv6Addr, permitted: Vec<Ipv4Net>, native_aaaa: bool) -> Self {
        let prefix = |address| Ipv6Net::new_assert(address, NAT64_LEN).trunc();
        Self { global: prefix(global), private: prefix(private), permitted, native_aaaa }
    }

    /// Whether native AAAA records are given at all.
    #[must_use]
    pub fn native_aaaa(&self) -> bool {
        self.native_aaaa
    }

    /// The address of this IPv4 host in the NAT64 prefix for public IPv4 (RFC 6052 2.2), without any policy.
    #[must_use]
    pub fn embed_global(&self, host: Ipv4Addr) -> Ipv6Addr {
        embed(self.global, host)
    }

    /// The address by which workspaces reach this IPv4 host; `None` if it is not to be reached by name.
    ///
    /// Public IPv4 is embedded in the public prefix, permitted private IPv4 in the private one, and everything else
    /// that is not global in none (RFC 6052 3.1).
    #[must_use]
    pub fn embed(&self, host: Ipv4Addr) -> Option<Ipv6Addr> {
        if !NON_GLOBAL_V4.iter().any(|net| net.contains(&host)) {
            return Some(embed(self.global, host));
        }
        let usable = !UNUSABLE_V4.iter().any(|net| net.contains(&host));
        let permitted = self.permitted.iter().any(|net| net.contains(&host));
        (usable && permitted).then(|| embed(self.private, host))
    }

    /// The IPv4 host that an address inside either prefix stands for; policy is not asked.
    #[must_use]
    pub fn extract(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let [.., a, b, c, d] = address.octets();
        let inside = self.global.contains(&address) || self.private.contains(&address);
        inside.then(|| Ipv4Addr::new(a, b, c, d))
    }

    /// Whether an AAAA record with this address is treated as though it were not there (RFC 6147 5.1.4).
    #[must_use]
    pub fn excluded(&self, address: Ipv6Addr) -> bool {
        !self.native_aaaa || MAPPED.contains(&address) || self.extract(address).is_some()
    }

    /// What of an AAAA answer may be given.
    #[must_use]
    pub fn native(&self, answers: &[Record]) -> Native {
        let addresses = || answers.iter().filter_map(aaaa);
        if !addresses().any(|address| !self.excluded(address)) {
            return Native::Empty;
        }
        if !addresses().any(|address| self.excluded(address)) {
            return Native::Whole;
        }
        let stays = |record: &&Record| match aaaa(record) {
            Some(address) => !self.excluded(address),
            None => !record.record_type().is_dnssec(),
        };
        Native::Part(answers.iter().filter(stays).cloned().collect())
    }

    /// The answer that an A answer becomes: A records turn into AAAA records, whose TTL is at most `limit` seconds;
    /// CNAME and DNAME records stay as they are and in their order; signatures go (RFC 6147 5.1.7, 5.4).
    #[must_use]
    pub fn synthesise(&self, answers: &[Record], limit: u32) -> Vec<Record> {
        let one = |record: &Record| match (&record.data, record.record_type()) {
            (RData::A(host), _) => {
                let address = self.embed(host.0)?;
                Some(Record::from_rdata(record.name.clone(), record.ttl.min(limit), RData::AAAA(AAAA(address))))
            }
            (_, RecordType::CNAME | RecordType::DNAME) => Some(record.clone()),
            _ => None,
        };
        answers.iter().filter_map(one).collect()
    }
}

/// RFC 6052 2.2 for a /96: the IPv4 address is the last 32 bits.
fn embed(prefix: Ipv6Net, host: Ipv4Addr) -> Ipv6Addr {
    (prefix.addr().to_bits() | u128::from(host.to_bits())).into()
}

fn aaaa(record: &Record) -> Option<Ipv6Addr> {
    match &record.data {
        RData::AAAA(address) => Some(address.0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{
        Name,
        rdata::{A, CNAME},
    };
    use proptest::prelude::*;
    use weft_model::address::{NAT64_GLOBAL, NAT64_PRIVATE};

    fn translation(permitted: &[&str], native_aaaa: bool) -> Translation {
        let permitted = permitted.iter().map(|net| net.parse().unwrap()).collect();
        Translation::new(NAT64_GLOBAL, NAT64_PRIVATE, permitted, native_aaaa)
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn a(owner: &str, ttl: u32, host: Ipv4Addr) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A(host)))
    }

    fn six(owner: &str, address: &str) -> Record {
        Record::from_rdata(name(owner), 60, RData::AAAA(AAAA(address.parse().unwrap())))
    }

    fn cname(owner: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    proptest! {
        #[test]
        fn what_is_embedded_comes_out_again_and_is_global_or_permitted(host: u32) {
            let host = Ipv4Addr::from_bits(host);
            let translation = translation(&["10.0.0.0/8", "198.18.0.0/15"], true);
            let global = !NON_GLOBAL_V4.iter().any(|net| net.contains(&host));
            let permitted = host.octets()[0] == 10 || matches!(host.octets(), [198, 18 | 19, ..]);
            match translation.embed(host) {
                Some(address) => {
                    prop_assert!(global || permitted);
                    prop_assert_eq!(translation.extract(address), Some(host));
                    let prefix = if global { NAT64_GLOBAL } else { NAT64_PRIVATE };
                    prop_assert_eq!(address.to_bits() >> 32, prefix.to_bits() >> 32);
                }
                None => prop_assert!(!global && !permitted),
            }
        }

        #[test]
        fn synthesis_keeps_the_chain_and_turns_every_reachable_address(
            hosts in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..20), links in 0usize..5, limit: u32,
        ) {
            let translation = translation(&["172.16.0.0/12"], true);
            let mut answers: Vec<_> = (0..links).map(|n| cname(&format!("c{n}.test."), 5, &format!("c{}.test.", n + 1))).collect();
            let chain = answers.clone();
            answers.extend(hosts.iter().map(|(host, ttl)| a(&format!("c{links}.test."), *ttl, Ipv4Addr::from_bits(*host))));
            let made = translation.synthesise(&answers, limit);
            prop_assert_eq!(&made[..links], &chain[..]);
            let expected: Vec<_> = hosts.iter()
                .filter_map(|(host, ttl)| Some((translation.embed(Ipv4Addr::from_bits(*host))?, (*ttl).min(limit))))
                .collect();
            let found: Vec<_> = made[links..].iter().map(|record| (aaaa(record).unwrap(), record.ttl)).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_excluded_address_is_ever_given(addresses in proptest::collection::vec(
            prop_oneof![
                any::<u128>(),
                any::<u32>().prop_map(|host| 0xffff_0000_0000 | u128::from(host)),
                any::<u32>().prop_map(|host| NAT64_GLOBAL.to_bits() | u128::from(host)),
            ], 0..8), native: bool)
        {
            let translation = translation(&[], native);
            let answers: Vec<_> = addresses.iter()
                .map(|bits| Record::from_rdata(name("a.test."), 1, RData::AAAA(AAAA((*bits).into()))))
                .collect();
            let given = match translation.native(&answers) {
                Native::Whole => answers.clone(),
                Native::Part(records) => records,
                Native::Empty => Vec::new(),
            };
            prop_assert!(given.iter().filter_map(aaaa).all(|address| !translation.excluded(address)));
            let usable = addresses.iter().filter(|bits| !translation.excluded((**bits).into())).count();
            prop_assert_eq!(given.len(), usable);
        }
    }

    #[test]
    fn no_loopback_nor_multicast_is_synthesised_though_everything_is_permitted() {
        let translation = translation(&["0.0.0.0/0"], true);
        for host in ["0.1.2.3", "127.0.0.1", "224.0.0.251", "255.255.255.255"] {
            assert_eq!(translation.embed(host.parse().unwrap()), None, "{host}");
        }
        assert_eq!(translation.embed(Ipv4Addr::new(10, 0, 0, 1)), Some("64:ff9b:1::a00:1".parse().unwrap()));
        assert_eq!(translation.embed(Ipv4Addr::new(8, 8, 8, 8)), Some("64:ff9b::808:808".parse().unwrap()));
    }

    #[test]
    fn a_mixed_answer_keeps_only_its_usable_addresses() {
        let translation = translation(&[], true);
        let good = six("a.test.", "2001:db8::1");
        let mapped = six("a.test.", "::ffff:192.0.2.1");
        assert_eq!(translation.native(std::slice::from_ref(&good)), Native::Whole);
        assert_eq!(translation.native(&[mapped.clone(), good.clone()]), Native::Part(vec![good]));
        assert_eq!(translation.native(&[cname("a.test.", 1, "b.test."), mapped]), Native::Empty);
    }
}
