//! What the fabric promises, each promise as a check on real traffic. The demo shows them as a table; the end-to-end
//! tests run the same.
mod inside;
mod outward;
mod survival;
mod underlay;
mod visit;

use anyhow::Result;
pub(crate) use visit::host;

use crate::fabric::Fabric;

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What was seen, in one line.
    pub detail: String,
    /// More to show below: output of a command.
    pub exhibit: Option<String>,
}

impl From<String> for Outcome {
    fn from(detail: String) -> Self {
        Self { detail, exhibit: None }
    }
}

/// One promise.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// A name without spaces, to choose it by.
    pub name: &'static str,
    /// The promise, in words.
    pub promise: &'static str,
    /// Looks whether it is kept; the error is the reason why it is not.
    pub run: fn(&Fabric) -> Result<Outcome>,
}

/// The promises that are shown on the topology of two nodes, in the order of the demo.
pub const TWO_NODES: &[Check] = &[
    Check {
        name: "one-address",
        promise: "each workspace has one random /128 and no other IPv6",
        run: inside::one_address,
    },
    Check { name: "friends", promise: "friends reach each other across nodes", run: inside::friends },
    Check { name: "stranger", promise: "the stranger reaches nobody, nobody the stranger", run: inside::stranger },
    Check { name: "ipv4-by-name", promise: "curl -6 http://ipv4only.test/ (DNS64, NAT64)", run: outward::by_name },
    Check { name: "ipv4-literal", promise: "curl http://198.18.4.10/ (CLAT, NAT64)", run: outward::literal },
    Check { name: "ipv4-udp-ping", promise: "UDP and ping over IPv4", run: outward::udp_and_ping },
    Check { name: "ipv6-uplink", promise: "IPv6-only server from node a (masqueraded)", run: outward::ipv6_uplink },
    Check { name: "no-ipv6-uplink", promise: "from node b a clear error at once", run: outward::no_ipv6_uplink },
    Check { name: "url-ipv4", promise: "https://8080-<workspace> over IPv4", run: visit::over_ipv4 },
    Check { name: "url-ipv6", promise: "https://8080-<workspace> over IPv6", run: visit::over_ipv6 },
    Check { name: "websocket", promise: "WebSocket through the same URL", run: visit::websocket },
    Check { name: "forged", promise: "a packet forged on the underlay reaches nobody", run: underlay::forged },
    Check {
        name: "sealed",
        promise: "only WireGuard on the underlay, netd and wire killed too",
        run: underlay::sealed,
    },
    Check { name: "restart", promise: "kill -9 of each netd: all that is open survives", run: survival::restart },
    Check { name: "explain", promise: "underlay cut: explain says why; healed: recovers", run: survival::cut },
];

/// The promises that are shown on the topology of one node.
pub const ONE_NODE: &[Check] = &[
    Check {
        name: "one-address",
        promise: "each workspace has one random /128 and no other IPv6",
        run: inside::one_address,
    },
    Check {
        name: "same-node",
        promise: "friends reach each other on one node, a stranger nobody",
        run: inside::same_node,
    },
    Check {
        name: "same-node-restart",
        promise: "kill -9 of netd: connections on the node survive",
        run: survival::same_node,
    },
];
