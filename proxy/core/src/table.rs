//! The routing table: every workspace by id and by name, kept by events from netd, with a generation for connection pools.
use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv6Addr,
};

use weft_model::{
    Label, WorkspaceId,
    api::{Route, RouteEvent},
    object::Visibility,
};

/// One workspace as the table knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What netd said.
    pub route: Route,
    /// Identifies this attachment among all that this table has ever held: it changes whenever the address or the epoch
    /// does and is never used again, so connections pooled under it can serve no other workspace or attachment.
    pub generation: u64,
}

impl Entry {
    /// Who may open this port; `None` if it is not declared. A port declared twice is as private as the stricter one.
    #[must_use]
    pub fn visibility(&self, port: u16) -> Option<Visibility> {
        let mut declared = self.route.ports.iter().filter(|declared| declared.port == port).map(|port| port.visibility);
        let first = declared.next()?;
        Some(declared.fold(first, |strict, next| if strict == Visibility::Private { strict } else { next }))
    }
}

/// What an event did to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The table is different now.
    Changed,
    /// It said what was known already.
    Unchanged,
    /// It told of an older attachment than the one that is known (the highest epoch wins) and was ignored.
    Stale,
}

/// How a label in a host name resolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// To this workspace.
    One(&'a Entry),
    /// To several that claim the same name at this moment; none of them may be chosen.
    Several,
    /// To none.
    None,
}

/// Every workspace that has or had a URL, by id and by name.
#[derive(Debug, Clone, Default)]
pub struct Table {
    domain_override: Option<String>,
    domain: Option<String>,
    dial_from: Option<Ipv6Addr>,
    entries: HashMap<WorkspaceId, Entry>,
    names: HashMap<Label, BTreeSet<WorkspaceId>>,
    last_generation: u64,
}

impl Table {
    /// An empty table, not ready until it is fed a snapshot. `domain` (lower case, without dots at its ends) overrides
    /// the domain that snapshots bring.
    #[must_use]
    pub fn new(domain: Option<String>) -> Self {
        Self { domain_override: domain, ..Self::default() }
    }

    /// The domain below which host names are served; `None` until a snapshot or an override gives it.
    #[must_use]
    pub fn domain(&self) -> Option<&str> {
        self.domain_override.as_deref().or(self.domain.as_deref())
    }

    /// The address that connections to workspaces are opened from; `None` until there was a snapshot.
    #[must_use]
    pub fn dial_from(&self) -> Option<Ipv6Addr> {
        self.dial_from
    }

    /// How many workspaces are known, stopped ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no workspace is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The workspace with this id.
    #[must_use]
    pub fn by_id(&self, id: WorkspaceId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// What a host name's label means: a workspace's id first, then a name.
    #[must_use]
    pub fn find(&self, label: &Label) -> Found<'_> {
        if let Some(entry) = label.as_str().parse().ok().and_then(|id| self.by_id(id)) {
            return Found::One(entry);
        }
        let mut holders = self.names.get(label).into_iter().flatten();
        match (holders.next(), holders.next()) {
            (Some(id), None) => self.by_id(*id).map_or(Found::None, Found::One),
            (Some(_), Some(_)) => Found::Several,
            (None, _) => Found::None,
        }
    }

    /// Applies one event, in the order in which netd sent them.
    pub fn apply(&mut self, event: RouteEvent) -> Applied {
        match event {
            RouteEvent::Snapshot { domain, dial_from, routes } => self.replace(domain, dial_from, routes),
            RouteEvent::Upsert { route } => self.upsert(route),
            RouteEvent::Remove { id } => self.remove(id),
        }
    }

    /// Everything as one event: what is kept on disk. `None` until there was a snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Option<RouteEvent> {
        let mut routes: Vec<Route> = self.entries.values().map(|entry| entry.route.clone()).collect();
        routes.sort_unstable_by_key(|route| route.id);
        Some(RouteEvent::Snapshot { domain: self.domain.clone()?, dial_from: self.dial_from?, routes })
    }

    /// A snapshot is netd's whole truth: it may go back behind an epoch that was known (a node restored from backup).
    fn replace(&mut self, domain: String, dial_from: Ipv6Addr, routes: Vec<Route>) -> Applied {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        let kept: BTreeSet<WorkspaceId> = routes.iter().map(|route| route.id).collect();
        let gone: Vec<WorkspaceId> = self.entries.keys().filter(|id| !kept.contains(id)).copied().collect();
        let mut changed =
            !gone.is_empty() || self.dial_from != Some(dial_from) || self.domain.as_deref() != Some(&domain);
        for id in gone {
            self.remove(id);
        }
        for route in routes {
            changed |= self.insert(route) == Applied::Changed;
        }
        self.domain = Some(domain);
        self.dial_from = Some(dial_from);
        if changed { Applied::Changed } else { Applied::Unchanged }
    }

    fn upsert(&mut self, route: Route) -> Applied {
        // A stopped workspace carries no attachment, so its epoch says nothing: stopping always takes effect.
        let known = self.entries.get(&route.id).map(|entry| entry.route.epoch);
        if route.address.is_some() && known.is_some_and(|known| route.epoch < known) {
            return Applied::Stale;
        }
        self.insert(route)
    }

    fn insert(&mut self, route: Route) -> Applied {
        let known = self.entries.get(&route.id);
        if known.is_some_and(|entry| entry.route == route) {
            return Applied::Unchanged;
        }
        let same_attachment = |entry: &&Entry| entry.route.address == route.address && entry.route.epoch == route.epoch;
        let generation = known.filter(same_attachment).map(|entry| entry.generation).unwrap_or_else(|| {
            self.last_generation += 1;
            self.last_generation
        });
        let id = route.id;
        if let Some(name) = self.entries.get(&id).and_then(|entry| entry.route.name.clone()) {
            self.unname(&name, id);
        }
        if let Some(name) = route.name.clone() {
            self.names.entry(name).or_default().insert(id);
        }
        self.entries.insert(id, Entry { route, generation });
        Applied::Changed
    }

    fn remove(&mut self, id: WorkspaceId) -> Applied {
        let Some(entry) = self.entries.remove(&id) else { return Applied::Unchanged };
        if let Some(name) = entry.route.name {
            self.unname(&name, id);
        }
        Applied::Changed
    }

    fn unname(&mut self, name: &Label, id: WorkspaceId) {
        if let Some(holders) = self.names.get_mut(name) {
            holders.remove(&id);
            if holders.is_empty() {
                self.names.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use proptest::prelude::*;
    use weft_model::object::Port;

    use super::*;

    fn id(number: u8) -> WorkspaceId {
        WorkspaceId::from_random([number; 10])
    }

    fn route(number: u8, epoch: u64, address: Option<u16>, name: Option<&str>) -> Route {
        Route {
            id: id(number),
            name: name.map(|name| name.parse().unwrap()),
            address: address.map(|last| Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, last)),
            epoch,
            ports: vec![Port { port: 8080, visibility: Visibility::Public }],
        }
    }

    fn snapshot(routes: Vec<Route>) -> RouteEvent {
        RouteEvent::Snapshot { domain: "ws.dev".into(), dial_from: "fd00:1:2:3::2".parse().unwrap(), routes }
    }

    fn arbitrary_route() -> impl Strategy<Value = Route> {
        (0u8..6, 0u64..5, proptest::option::of(0u16..4), proptest::option::of(0u8..4)).prop_map(
            |(number, epoch, address, name)| {
                route(
                    number,
                    epoch,
                    address,
                    name.map(|name| ["red", "green", "blue", "aaaaaaaaaa"][usize::from(name)]),
                )
            },
        )
    }

    fn arbitrary_event() -> impl Strategy<Value = RouteEvent> {
        prop_oneof![
            6 => arbitrary_route().prop_map(|route| RouteEvent::Upsert { route }),
            3 => (0u8..6).prop_map(|number| RouteEvent::Remove { id: id(number) }),
            1 => proptest::collection::vec(arbitrary_route(), 0..6).prop_map(snapshot),
        ]
    }

    /// The table without its indexes: what any sequence of events must amount to.
    fn apply_to_model(model: &mut BTreeMap<WorkspaceId, Route>, event: &RouteEvent) {
        match event {
            RouteEvent::Snapshot { routes, .. } => {
                *model = routes.iter().map(|route| (route.id, route.clone())).collect();
            }
            RouteEvent::Upsert { route } => {
                let stale = model.get(&route.id).is_some_and(|known| route.epoch < known.epoch);
                if route.address.is_none() || !stale {
                    model.insert(route.id, route.clone());
                }
            }
            RouteEvent::Remove { id } => {
                model.remove(id);
            }
        }
    }

    proptest! {
        #[test]
        fn under_churn_the_indexes_say_what_the_events_amount_to(events in proptest::collection::vec(arbitrary_event(), 1..60)) {
            let mut table = Table::new(None);
            let mut model = BTreeMap::new();
            for event in events {
                apply_to_model(&mut model, &event);
                table.apply(event);
                prop_assert_eq!(table.len(), model.len());
                for route in model.values() {
                    prop_assert_eq!(&table.by_id(route.id).unwrap().route, route);
                }
                for name in ["red", "green", "blue", "aaaaaaaaaa"] {
                    let label: Label = name.parse().unwrap();
                    let by_id = label.as_str().parse().ok().and_then(|id: WorkspaceId| model.get(&id));
                    let holders: Vec<&Route> = model.values().filter(|route| route.name.as_ref() == Some(&label)).collect();
                    let expected = match (by_id, holders.as_slice()) {
                        (Some(route), _) => Some(route.id),
                        (None, [route]) => Some(route.id),
                        (None, _) => None,
                    };
                    match table.find(&label) {
                        Found::One(entry) => prop_assert_eq!(Some(entry.route.id), expected),
                        Found::Several => prop_assert!(holders.len() > 1 && expected.is_none()),
                        Found::None => prop_assert!(holders.is_empty() && expected.is_none()),
                    }
                }
            }
        }

        #[test]
        fn a_generation_is_never_shared_by_two_attachments(events in proptest::collection::vec(arbitrary_event(), 1..80)) {
            let mut table = Table::new(None);
            let mut current: BTreeMap<WorkspaceId, (u64, Option<Ipv6Addr>, u64)> = BTreeMap::new();
            let mut ended: HashSet<u64> = HashSet::new();
            for event in events {
                table.apply(event);
                let mut now = BTreeMap::new();
                for entry in table.entries.values() {
                    let attachment = (entry.generation, entry.route.address, entry.route.epoch);
                    prop_assert!(!ended.contains(&entry.generation), "generation {} came back", entry.generation);
                    now.insert(entry.route.id, attachment);
                }
                let distinct: HashSet<u64> = now.values().map(|attachment| attachment.0).collect();
                prop_assert_eq!(distinct.len(), now.len());
                for (id, before) in &current {
                    match now.get(id) {
                        Some(after) if after.0 == before.0 => prop_assert_eq!(after, before),
                        _ => { ended.insert(before.0); }
                    }
                }
                current = now;
            }
        }

        #[test]
        fn what_is_kept_on_disk_is_what_was_known(events in proptest::collection::vec(arbitrary_event(), 1..40)) {
            let mut table = Table::new(None);
            table.apply(snapshot(vec![]));
            for event in events {
                table.apply(event);
            }
            let mut restored = Table::new(None);
            restored.apply(table.snapshot().unwrap());
            prop_assert_eq!(restored.snapshot(), table.snapshot());
        }
    }

    #[test]
    fn the_highest_epoch_wins_and_stopping_always_does() {
        let mut table = Table::new(None);
        assert_eq!(table.apply(RouteEvent::Upsert { route: route(1, 5, Some(1), None) }), Applied::Changed);
        assert_eq!(table.apply(RouteEvent::Upsert { route: route(1, 4, Some(2), None) }), Applied::Stale);
        assert_eq!(table.apply(RouteEvent::Upsert { route: route(1, 5, Some(1), None) }), Applied::Unchanged);
        assert_eq!(table.apply(RouteEvent::Upsert { route: route(1, 0, None, None) }), Applied::Changed);
        assert_eq!(table.by_id(id(1)).unwrap().route.address, None);
        assert_eq!(table.apply(RouteEvent::Upsert { route: route(1, 6, Some(3), None) }), Applied::Changed);
    }

    #[test]
    fn declaring_a_port_or_a_name_keeps_pooled_connections() {
        let mut table = Table::new(None);
        table.apply(RouteEvent::Upsert { route: route(1, 5, Some(1), None) });
        let before = table.by_id(id(1)).unwrap().generation;
        let mut renamed = route(1, 5, Some(1), Some("red"));
        renamed.ports.push(Port { port: 3000, visibility: Visibility::Private });
        table.apply(RouteEvent::Upsert { route: renamed });
        assert_eq!(table.by_id(id(1)).unwrap().generation, before);
    }

    #[test]
    fn a_name_that_two_claim_means_neither_until_one_lets_go() {
        let mut table = Table::new(None);
        table.apply(RouteEvent::Upsert { route: route(1, 1, Some(1), Some("red")) });
        table.apply(RouteEvent::Upsert { route: route(2, 1, Some(2), Some("red")) });
        let red = "red".parse().unwrap();
        assert_eq!(table.find(&red), Found::Several);
        table.apply(RouteEvent::Upsert { route: route(2, 1, Some(2), Some("blue")) });
        assert!(matches!(table.find(&red), Found::One(entry) if entry.route.id == id(1)));
    }

    #[test]
    fn a_port_declared_twice_is_as_private_as_the_stricter_one() {
        let mut both = route(1, 1, Some(1), None);
        both.ports.push(Port { port: 8080, visibility: Visibility::Private });
        assert_eq!(Entry { route: both, generation: 1 }.visibility(8080), Some(Visibility::Private));
    }
}
