//! The grammar of a port's URL: `<port>-<workspace id or name>.<domain>`.
use std::str::FromStr;

use crate::id::{Label, WorkspaceId};

/// How a URL names its workspace. An id is also a valid label: the id is looked up first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PortHost {
    /// The TCP port inside the workspace.
    pub port: u16,
    /// The workspace's id or name.
    pub workspace: Label,
}

/// Why a host name is no port's host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// The host is not below the fabric's domain.
    #[error("the host is not below the domain that this proxy serves")]
    Domain,
    /// The first label is not `<port>-<workspace>`.
    #[error("the host's first label is not <port>-<workspace>, for example 8080-k3v7qz2mna")]
    Shape,
    /// The port is 0, too large, or has leading zeros.
    #[error("the port before the first '-' is not a number from 1 to 65535 without leading zeros")]
    Port,
}

impl PortHost {
    /// Reads a host name (without a port of its own, in any case) below `domain` (lower case, no dots at its ends).
    pub fn parse(host: &str, domain: &str) -> Result<Self, UrlError> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let label = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.')).ok_or(UrlError::Domain)?;
        let (port, workspace) = label.split_once('-').ok_or(UrlError::Shape)?;
        let workspace = Label::from_str(workspace).map_err(|_| UrlError::Shape)?;
        // Digits alone, and one spelling for each port: "+80" and "080" would be other names for the same origin.
        if port.is_empty() || port.starts_with('0') || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(UrlError::Port);
        }
        Ok(Self { port: port.parse().map_err(|_| UrlError::Port)?, workspace })
    }

    /// The workspace's id, if it is spelt as one.
    #[must_use]
    pub fn id(&self) -> Option<WorkspaceId> {
        self.workspace.as_str().parse().ok()
    }

    /// The host name of this port below a domain.
    #[must_use]
    pub fn host(&self, domain: &str) -> String {
        format!("{}-{}.{domain}", self.port, self.workspace)
    }

    /// Whether the first label of this port's host name fits in the 63 bytes of a DNS label (RFC 1035 2.3.4).
    #[must_use]
    pub fn fits(&self) -> bool {
        self.port.to_string().len() + 1 + self.workspace.as_str().len() <= 63
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_port_and_name_survives_the_way_through_a_host(port in 1u16.., name in "[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?") {
            let host = PortHost { port, workspace: name.parse().unwrap() };
            prop_assert_eq!(PortHost::parse(&host.host("ws.example.dev"), "ws.example.dev"), Ok(host.clone()));
            prop_assert_eq!(PortHost::parse(&host.host("WS.example.dev").to_uppercase(), "ws.example.dev"), Ok(host));
        }

        #[test]
        fn no_host_panics(host: String, domain in "[a-z.]{1,20}") {
            let _ = PortHost::parse(&host, &domain);
        }
    }

    #[test]
    fn what_is_no_port_host_says_why() {
        for (host, why) in [
            ("8080-abc.other.dev", UrlError::Domain),
            ("ws.dev", UrlError::Domain),
            ("evilws.dev", UrlError::Domain),
            ("8080.ws.dev", UrlError::Shape),
            ("8080-.ws.dev", UrlError::Shape),
            ("8080-a.b.ws.dev", UrlError::Shape),
            ("0-abc.ws.dev", UrlError::Port),
            ("080-abc.ws.dev", UrlError::Port),
            ("+80-abc.ws.dev", UrlError::Port),
            ("65536-abc.ws.dev", UrlError::Port),
            ("-abc.ws.dev", UrlError::Port),
        ] {
            assert_eq!(PortHost::parse(host, "ws.dev"), Err(why), "{host}");
        }
    }
}
