//! The decision about one request: forward it to which address, or refuse it with which status. Its tests are its specification.
use std::net::Ipv6Addr;

use weft_model::{
    Label, WorkspaceId,
    object::Visibility,
    url::{PortHost, UrlError},
};

use crate::table::{Found, Table};

/// What the shell found out about the caller's right to open a private port of the host that it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// It showed none.
    Absent,
    /// It showed one that was verified and admits it to exactly this host.
    Admits,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The workspace.
    pub id: WorkspaceId,
    /// Its address.
    pub address: Ipv6Addr,
    /// The TCP port inside it.
    pub port: u16,
    /// The address to connect from.
    pub dial_from: Ipv6Addr,
    /// The attachment's epoch.
    pub epoch: u64,
    /// Separates connection pools: unique to this attachment of this workspace, never used again.
    pub group_key: u64,
}

/// Why a request is not forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No routes are known yet: netd was not reached, and nothing was kept on disk.
    NotReady,
    /// The host is not below the domain that is served here.
    UnknownDomain,
    /// The host is below the domain but is no port's host name.
    HostShape(UrlError),
    /// No workspace has this id or name.
    UnknownWorkspace(Label),
    /// Several workspaces claim this name at this moment.
    AmbiguousName(Label),
    /// The workspace has not declared this port.
    UndeclaredPort {
        /// The workspace.
        id: WorkspaceId,
        /// The port that was asked for.
        port: u16,
    },
    /// The port is private and the caller showed no credential that admits it.
    Private {
        /// The workspace.
        id: WorkspaceId,
        /// The port.
        port: u16,
    },
    /// The workspace is attached nowhere.
    Stopped {
        /// The workspace.
        id: WorkspaceId,
        /// The port.
        port: u16,
    },
}

impl Refusal {
    /// The HTTP status (RFC 9110 section 15).
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::UnknownDomain => 421,
            Self::HostShape(_) | Self::UnknownWorkspace(_) | Self::UndeclaredPort { .. } => 404,
            Self::Private { .. } => 401,
            Self::NotReady | Self::AmbiguousName(_) | Self::Stopped { .. } => 503,
        }
    }

    /// A stable name for programs: the JSON body's `error` and a metric's label.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotReady => "not-ready",
            Self::UnknownDomain => "unknown-domain",
            Self::HostShape(_) => "host-shape",
            Self::UnknownWorkspace(_) => "unknown-workspace",
            Self::AmbiguousName(_) => "ambiguous-name",
            Self::UndeclaredPort { .. } => "undeclared-port",
            Self::Private { .. } => "private",
            Self::Stopped { .. } => "stopped",
        }
    }

    /// After how many seconds trying again may help (RFC 9110 section 10.2.3).
    #[must_use]
    pub fn retry_after_s(&self) -> Option<u32> {
        match self {
            Self::NotReady | Self::AmbiguousName(_) => Some(2),
            Self::Stopped { .. } => Some(5),
            _ => None,
        }
    }

    /// The workspace that was asked for, if it is known.
    #[must_use]
    pub fn id(&self) -> Option<WorkspaceId> {
        match self {
            Self::UndeclaredPort { id, .. } | Self::Private { id, .. } | Self::Stopped { id, .. } => Some(*id),
            _ => None,
        }
    }
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Send it to the workspace.
    Forward(Forward),
    /// Answer it here.
    Refuse(Refusal),
}

/// Decides about a request for `authority`: the Host field's or `:authority`'s value (RFC 9110 section 7.2), with or without a port.
///
/// Whether a private port's workspace runs is told only to those who may enter.
#[must_use]
pub fn decide(authority: &str, credential: Credential, table: &Table) -> Decision {
    match admit(authority, credential, table) {
        Ok(forward) => Decision::Forward(forward),
        Err(refusal) => Decision::Refuse(refusal),
    }
}

fn admit(authority: &str, credential: Credential, table: &Table) -> Result<Forward, Refusal> {
    let (Some(domain), Some(dial_from)) = (table.domain(), table.dial_from()) else { return Err(Refusal::NotReady) };
    let host = host_of(authority).ok_or(Refusal::UnknownDomain)?;
    let asked = PortHost::parse(host, domain).map_err(|error| match error {
        UrlError::Domain => Refusal::UnknownDomain,
        shape => Refusal::HostShape(shape),
    })?;
    let entry = match table.find(&asked.workspace) {
        Found::One(entry) => entry,
        Found::Several => return Err(Refusal::AmbiguousName(asked.workspace)),
        Found::None => return Err(Refusal::UnknownWorkspace(asked.workspace)),
    };
    let (id, port) = (entry.route.id, asked.port);
    match entry.visibility(port) {
        None => return Err(Refusal::UndeclaredPort { id, port }),
        Some(Visibility::Private) if credential != Credential::Admits => return Err(Refusal::Private { id, port }),
        Some(_) => {}
    }
    let address = entry.route.address.ok_or(Refusal::Stopped { id, port })?;
    Ok(Forward { id, address, port, dial_from, epoch: entry.route.epoch, group_key: entry.generation })
}

/// The host of an authority without its port; `None` for IP literals in brackets, user information and anything else
/// that is not `host[:port]`.
#[must_use]
pub fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
    let plain = !host.is_empty() && !host.contains(['@', '[', ']', '/', '\\']);
    (plain && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(host)
}

/// Whether the name for which the TLS connection was made (SNI) is the host that a request on it asks for: a certificate
/// for all of a domain's hosts must not let one host's connection carry another's requests (RFC 9110 section 7.4).
#[must_use]
pub fn sni_matches(sni: &str, authority: &str) -> bool {
    let plain = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    host_of(authority).is_some_and(|host| plain(host) == plain(sni))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_model::{
        api::{Route, RouteEvent},
        object::Port,
    };

    use super::*;

    const ID: &str = "k3v7qz2mna";
    const STOPPED: &str = "aaaaaaaaaa";

    fn table() -> Table {
        let ports = vec![
            Port { port: 8080, visibility: Visibility::Public },
            Port { port: 3000, visibility: Visibility::Private },
        ];
        let route = |id: &str, name: Option<&str>, address: Option<&str>| Route {
            id: id.parse().unwrap(),
            name: name.map(|name| name.parse().unwrap()),
            address: address.map(|address| address.parse().unwrap()),
            epoch: 7,
            ports: ports.clone(),
        };
        let mut table = Table::new(None);
        table.apply(RouteEvent::Snapshot {
            domain: "ws.example.dev".into(),
            dial_from: "fd00:1:2:3::2".parse().unwrap(),
            routes: vec![
                route(ID, Some("box"), Some("fd00:1:2:3::1234:5678")),
                route(STOPPED, None, None),
                route("bbbbbbbbbb", Some("twin"), Some("fd00:1:2:3::b")),
                route("cccccccccc", Some("twin"), Some("fd00:1:2:3::c")),
                // Named like another's id: the id is looked up first.
                route("dddddddddd", Some(ID), Some("fd00:1:2:3::d")),
            ],
        });
        table
    }

    /// Status and kind, or "forward".
    fn outcome(authority: &str, credential: Credential) -> String {
        match decide(authority, credential, &table()) {
            Decision::Forward(to) => format!("{} [{}]:{}", to.id, to.address, to.port),
            Decision::Refuse(refusal) => format!("{} {}", refusal.status(), refusal.kind()),
        }
    }

    #[test]
    fn the_table_of_decisions() {
        use Credential::{Absent, Admits};
        let open = "k3v7qz2mna [fd00:1:2:3::1234:5678]:8080";
        let private = "k3v7qz2mna [fd00:1:2:3::1234:5678]:3000";
        for (authority, credential, expected) in [
            // public ports
            ("8080-k3v7qz2mna.ws.example.dev", Absent, open),
            ("8080-k3v7qz2mna.ws.example.dev:443", Absent, open),
            ("8080-K3V7QZ2MNA.WS.Example.Dev", Absent, open),
            ("8080-k3v7qz2mna.ws.example.dev.", Absent, open),
            ("8080-box.ws.example.dev", Absent, open),
            ("8080-box.ws.example.dev", Admits, open),
            // private ports
            ("3000-box.ws.example.dev", Absent, "401 private"),
            ("3000-box.ws.example.dev", Admits, private),
            // workspaces that are not there
            ("8080-nobody.ws.example.dev", Absent, "404 unknown-workspace"),
            ("8080-zzzzzzzzzz.ws.example.dev", Admits, "404 unknown-workspace"),
            ("8080-twin.ws.example.dev", Absent, "503 ambiguous-name"),
            ("8080-aaaaaaaaaa.ws.example.dev", Absent, "503 stopped"),
            ("3000-aaaaaaaaaa.ws.example.dev", Absent, "401 private"),
            ("3000-aaaaaaaaaa.ws.example.dev", Admits, "503 stopped"),
            // ports that are not declared
            ("8081-box.ws.example.dev", Absent, "404 undeclared-port"),
            ("8081-box.ws.example.dev", Admits, "404 undeclared-port"),
            ("8081-aaaaaaaaaa.ws.example.dev", Absent, "404 undeclared-port"),
            // hosts that are no port's
            ("box.ws.example.dev", Absent, "404 host-shape"),
            ("08080-box.ws.example.dev", Absent, "404 host-shape"),
            ("65536-box.ws.example.dev", Absent, "404 host-shape"),
            ("8080-a.box.ws.example.dev", Absent, "404 host-shape"),
            ("8080-.ws.example.dev", Absent, "404 host-shape"),
            // hosts that are not ours
            ("ws.example.dev", Absent, "421 unknown-domain"),
            ("8080-box.evil.dev", Absent, "421 unknown-domain"),
            ("8080-box.evilws.example.dev", Absent, "421 unknown-domain"),
            ("127.0.0.1", Absent, "421 unknown-domain"),
            ("[::1]:443", Absent, "421 unknown-domain"),
            ("", Absent, "421 unknown-domain"),
            ("user@8080-box.ws.example.dev", Absent, "421 unknown-domain"),
            ("8080-box.ws.example.dev:44x", Absent, "421 unknown-domain"),
            ("8080-box.ws.example.dev:443:443", Absent, "421 unknown-domain"),
        ] {
            assert_eq!(outcome(authority, credential), expected, "{authority} {credential:?}");
        }
    }

    #[test]
    fn nothing_is_decided_before_the_first_snapshot() {
        let refused = decide("8080-box.ws.example.dev", Credential::Absent, &Table::new(Some("ws.example.dev".into())));
        assert_eq!(refused, Decision::Refuse(Refusal::NotReady));
    }

    #[test]
    fn an_overridden_domain_is_the_only_one() {
        let mut table = Table::new(Some("other.dev".into()));
        table.apply(super::tests::table().snapshot().unwrap());
        let status = |host| match decide(host, Credential::Absent, &table) {
            Decision::Forward(_) => 200,
            Decision::Refuse(refusal) => refusal.status(),
        };
        assert_eq!(status("8080-box.other.dev"), 200);
        assert_eq!(status("8080-box.ws.example.dev"), 421);
    }

    #[test]
    fn a_connection_carries_requests_for_its_own_host_alone() {
        assert!(sni_matches("8080-box.ws.dev", "8080-box.ws.dev"));
        assert!(sni_matches("8080-box.ws.dev", "8080-BOX.ws.dev.:443"));
        assert!(!sni_matches("8080-box.ws.dev", "3000-box.ws.dev"));
        assert!(!sni_matches("8080-box.ws.dev", "[::1]"));
    }

    proptest! {
        #[test]
        fn no_authority_panics_or_reaches_an_undeclared_port(authority: String, label in "[0-9a-z-]{0,20}", admits: bool) {
            let credential = if admits { Credential::Admits } else { Credential::Absent };
            for authority in [authority, format!("{label}.ws.example.dev"), format!("{label}-box.ws.example.dev")] {
                if let Decision::Forward(to) = decide(&authority, credential, &table()) {
                    prop_assert!(to.port == 8080 || (to.port == 3000 && admits));
                }
            }
        }
    }
}
