//! The names that this node answers by itself: the fabric's, by who asks, and the special ones. Pure.
use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR, SOA},
    },
};
use ipnet::{IpNet, Ipv6Net};
use weft_model::{
    dns::{DnsName, DnsView},
    url::PortHost,
};

use crate::{answer::Answer, synthesis::Translation};

/// TTL of a workspace's name, in seconds: with the view's delay it stays below the reconcile period of 5 s.
pub const NAME_TTL: u32 = 3;
/// TTL of "there is none" about a workspace's name, in seconds: an attached workspace is found at once.
pub const NEGATIVE_TTL: u32 = 1;
/// TTL of what never changes, in seconds.
const CONSTANT_TTL: u32 = 3600;
/// Locally assigned addresses (RFC 4193): their reverse tree is never asked upstream (RFC 6303 4.4).
const ULA: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 8);
/// The well-known addresses of ipv4only.arpa (RFC 7050 2.2).
const WELL_KNOWN_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// What is to be done about a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is answered here.
    Answer(Answer),
    /// It asks for the name of a translated address: that is this IPv4 host's (RFC 6147 5.3.1).
    Translated(Ipv4Addr),
    /// It is for the upstream.
    Forward,
}

/// The names of a view, indexed.
#[derive(Debug)]
pub struct Names {
    domain: Name,
    domain_text: String,
    askers: Vec<Ipv6Net>,
    workspaces: Vec<DnsName>,
    by_id: HashMap<String, usize>,
    by_name: HashMap<String, usize>,
    by_address: HashMap<Ipv6Addr, usize>,
    serial: u32,
    special: Special,
}

/// Names with a meaning of their own, parsed once.
#[derive(Debug)]
struct Special {
    ipv4only: Name,
    localhost: Name,
    ula_reverse: Name,
    nowhere: [Name; 2],
}

impl Names {
    /// Indexes a view's names; `serial` is the SOA's. An error names the domain.
    pub fn new(view: &DnsView, serial: u32) -> Result<Self, String> {
        let domain_text = view.domain.trim_end_matches('.').to_ascii_lowercase();
        let mut domain = Name::from_ascii(&domain_text).map_err(|error| format!("{:?}: {error}", view.domain))?;
        domain.set_fqdn(true);
        if domain.is_root() {
            return Err(format!("{:?} is empty", view.domain));
        }
        let mut names = Self {
            domain,
            domain_text,
            askers: view.askers.clone(),
            workspaces: view.names.clone(),
            by_id: HashMap::new(),
            by_name: HashMap::new(),
            by_address: HashMap::new(),
            serial,
            special: Special {
                ipv4only: constant("ipv4only.arpa."),
                localhost: constant("localhost."),
                ula_reverse: constant("d.f.ip6.arpa."),
                nowhere: [constant("invalid."), constant("onion.")],
            },
        };
        for (index, workspace) in view.names.iter().enumerate() {
            names.by_id.insert(workspace.id.to_string(), index);
            names.by_address.insert(workspace.address, index);
            if let Some(name) = &workspace.name {
                names.by_name.entry(name.to_string()).or_insert(index);
            }
        }
        Ok(names)
    }

    /// Whether this source may ask at all.
    #[must_use]
    pub fn admits(&self, asker: Ipv6Addr) -> bool {
        self.askers.iter().any(|net| net.contains(&asker))
    }

    /// Decides a question of class IN.
    #[must_use]
    pub fn decide(&self, asker: Ipv6Addr, name: &Name, kind: RecordType, translation: &Translation) -> Decision {
        if self.domain.zone_of(name) {
            return self.forward_name(asker, name, kind);
        }
        if let Ok(net) = name.parse_arpa_name() {
            return self.reverse_name(asker, name, kind, net, translation);
        }
        if self.special.ula_reverse.zone_of(name) {
            return Decision::Answer(self.negative(&self.special.ula_reverse, ResponseCode::NXDomain));
        }
        self.special_name(name, kind, translation)
    }

    /// `<id>.<domain>` and `<name>.<domain>`; a port's host name is public and asked upstream.
    fn forward_name(&self, asker: Ipv6Addr, name: &Name, kind: RecordType) -> Decision {
        let below = name.iter().len() - self.domain.iter().len();
        if below == 0 {
            return Decision::Answer(match kind {
                RecordType::SOA => Answer::local(vec![self.soa(&self.domain)]),
                _ => self.negative(&self.domain, ResponseCode::NoError),
            });
        }
        let nothing = || Decision::Answer(self.negative(&self.domain, ResponseCode::NXDomain));
        let Some(label) = name.iter().next().and_then(|label| std::str::from_utf8(label).ok()) else {
            return nothing();
        };
        let label = label.to_ascii_lowercase();
        if below != 1 {
            return nothing();
        }
        if PortHost::parse(&format!("{label}.{}", self.domain_text), &self.domain_text).is_ok() {
            return Decision::Forward;
        }
        // An id is also a valid name: the id goes first.
        let found = self.by_id.get(&label).or_else(|| self.by_name.get(&label));
        let Some(workspace) = found.and_then(|index| self.workspaces.get(*index)) else { return nothing() };
        if !self.may_learn(asker, workspace) {
            return nothing();
        }
        Decision::Answer(match kind {
            RecordType::AAAA => {
                Answer::local(vec![Record::from_rdata(name.clone(), NAME_TTL, RData::AAAA(AAAA(workspace.address)))])
            }
            _ => self.negative(&self.domain, ResponseCode::NoError),
        })
    }

    /// PTR of the fabric's addresses, of translated addresses, and of ipv4only.arpa's.
    fn reverse_name(
        &self,
        asker: Ipv6Addr,
        name: &Name,
        kind: RecordType,
        net: IpNet,
        translation: &Translation,
    ) -> Decision {
        let net = match net {
            IpNet::V4(net) => return self.reverse_v4(name, kind, net.addr(), net.prefix_len() == 32),
            IpNet::V6(net) => net,
        };
        let address = net.addr();
        if net.prefix_len() == 128
            && let Some(host) = translation.extract(address)
        {
            return self.reverse_translated(name, kind, address, host, translation);
        }
        let ours = (net.prefix_len() >= ULA.prefix_len() && ULA.contains(&address))
            || self.askers.iter().any(|asker| asker.contains(&net))
            || (net.prefix_len() == 128 && self.by_address.contains_key(&address));
        if !ours {
            return Decision::Forward;
        }
        let zone = self.reverse_zone(name, address);
        if net.prefix_len() < 128 {
            // There may be names below: "no such name" would deny them too (RFC 8020).
            return Decision::Answer(self.negative(&zone, ResponseCode::NoError));
        }
        let workspace = self.by_address.get(&address).and_then(|index| self.workspaces.get(*index));
        let Some(workspace) = workspace.filter(|workspace| self.may_learn(asker, workspace)) else {
            return Decision::Answer(self.negative(&zone, ResponseCode::NXDomain));
        };
        let label = workspace.name.as_ref().map_or(workspace.id.as_str(), |name| name.as_str());
        let target = Name::from_ascii(label).and_then(|label| label.append_domain(&self.domain));
        Decision::Answer(match (kind, target) {
            (RecordType::PTR, Ok(target)) => {
                Answer::local(vec![Record::from_rdata(name.clone(), NAME_TTL, RData::PTR(PTR(target)))])
            }
            _ => self.negative(&zone, ResponseCode::NoError),
        })
    }

    /// Addresses inside a NAT64 prefix: the IPv4 host's name, if the translator serves that host.
    fn reverse_translated(
        &self,
        name: &Name,
        kind: RecordType,
        address: Ipv6Addr,
        host: Ipv4Addr,
        translation: &Translation,
    ) -> Decision {
        if WELL_KNOWN_V4.contains(&host) {
            return self.reverse_v4(name, kind, host, true);
        }
        if translation.embed(host) != Some(address) {
            return Decision::Answer(self.negative(&name.trim_to(26), ResponseCode::NXDomain));
        }
        match kind {
            RecordType::PTR => Decision::Translated(host),
            _ => Decision::Answer(self.negative(&name.trim_to(26), ResponseCode::NoError)),
        }
    }

    /// PTR of ipv4only.arpa's own addresses (RFC 8880 7.2); everything else of IPv4 is the upstream's.
    fn reverse_v4(&self, name: &Name, kind: RecordType, host: Ipv4Addr, whole: bool) -> Decision {
        if !whole || !WELL_KNOWN_V4.contains(&host) {
            return Decision::Forward;
        }
        Decision::Answer(match kind {
            RecordType::PTR => {
                let target = RData::PTR(PTR(self.special.ipv4only.clone()));
                Answer::local(vec![Record::from_rdata(name.clone(), CONSTANT_TTL, target)])
            }
            _ => self.negative(name, ResponseCode::NoError),
        })
    }

    /// ipv4only.arpa (RFC 7050), and names that are never asked upstream (RFC 6761 6.3, 6.4; RFC 7686).
    fn special_name(&self, name: &Name, kind: RecordType, translation: &Translation) -> Decision {
        let special = &self.special;
        let record = |data| Record::from_rdata(name.clone(), CONSTANT_TTL, data);
        if special.ipv4only == *name {
            let hosts = WELL_KNOWN_V4.into_iter();
            return Decision::Answer(match kind {
                RecordType::A => Answer::local(hosts.map(|host| record(RData::A(A(host)))).collect()),
                RecordType::AAAA => {
                    let addresses = hosts.map(|host| translation.embed_global(host));
                    Answer::local(addresses.map(|address| record(RData::AAAA(AAAA(address)))).collect())
                }
                RecordType::SOA => Answer::local(vec![self.soa(&special.ipv4only)]),
                _ => self.negative(&special.ipv4only, ResponseCode::NoError),
            });
        }
        if special.ipv4only.zone_of(name) {
            return Decision::Answer(self.negative(&special.ipv4only, ResponseCode::NXDomain));
        }
        if special.localhost.zone_of(name) {
            return Decision::Answer(match kind {
                RecordType::A => Answer::local(vec![record(RData::A(A(Ipv4Addr::LOCALHOST)))]),
                RecordType::AAAA => Answer::local(vec![record(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST)))]),
                _ => self.negative(&special.localhost, ResponseCode::NoError),
            });
        }
        match special.nowhere.iter().find(|zone| zone.zone_of(name)) {
            Some(zone) => Decision::Answer(self.negative(zone, ResponseCode::NXDomain)),
            None => Decision::Forward,
        }
    }

    /// A workspace learns of itself and of its group's members.
    fn may_learn(&self, asker: Ipv6Addr, workspace: &DnsName) -> bool {
        let asker = self.by_address.get(&asker).and_then(|index| self.workspaces.get(*index));
        asker.is_some_and(|asker| asker.id == workspace.id || (asker.group.is_some() && asker.group == workspace.group))
    }

    /// Where the reverse zone of an address begins: all locally assigned addresses, or the /64 (or shorter, as asked).
    fn reverse_zone(&self, name: &Name, address: Ipv6Addr) -> Name {
        if ULA.contains(&address) { self.special.ula_reverse.clone() } else { name.trim_to(name.iter().len().min(18)) }
    }

    /// "None" with the SOA that says for how long (RFC 2308 3).
    fn negative(&self, zone: &Name, rcode: ResponseCode) -> Answer {
        Answer { rcode, answers: Vec::new(), authorities: vec![self.soa(zone)], authoritative: true }
    }

    /// The SOA of a zone that is served here. Nobody transfers it: the timers have no meaning but the last.
    fn soa(&self, zone: &Name) -> Record {
        let below = |label: &str| self.domain.prepend_label(label).unwrap_or_else(|_| self.domain.clone());
        let soa = SOA::new(below("dns"), below("hostmaster"), self.serial, 3600, 600, 86400, NEGATIVE_TTL);
        Record::from_rdata(zone.clone(), NEGATIVE_TTL, RData::SOA(soa))
    }
}

fn constant(name: &'static str) -> Name {
    Name::from_ascii(name).expect("a constant name is a name")
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
