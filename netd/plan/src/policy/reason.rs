//! Names and numbers that the Rust model and the C programs share: the header that the programs include is made of these lists.
use std::fmt;

macro_rules! numbered {
    ($(#[$doc:meta])* $type:ident { $($(#[$item_doc:meta])* $item:ident = $code:literal, $name:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $type { $($(#[$item_doc])* $item = $code,)* }

        impl $type {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$item,)*];

            /// The number in the programs' maps.
            #[must_use]
            pub fn code(self) -> u8 {
                self as u8
            }

            /// The one with this number.
            #[must_use]
            pub fn from_code(code: u8) -> Option<Self> {
                Self::ALL.iter().copied().find(|item| item.code() == code)
            }

            /// The stable name, in kebab case.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$item => $name,)* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

numbered! {
    /// Why a packet is dropped. Numbers and names never change; new ones are added at the end.
    Reason {
        /// The programs know nothing of this link (yet).
        NoEntry = 1, "no-entry";
        /// Neither IPv6 nor IPv4 nor ARP, or a VLAN tag.
        Ethertype = 2, "ethertype";
        /// Shorter than its headers say.
        Truncated = 3, "truncated";
        /// The source is not the workspace's own.
        BadSource = 4, "bad-source";
        /// To or from a multicast or link-local address.
        Multicast = 5, "multicast";
        /// Neighbour discovery other than a question for the gateway.
        NeighbourDiscovery = 6, "neighbour-discovery";
        /// ARP other than a question for the gateway.
        Arp = 7, "arp";
        /// A routing header, or more extension headers than are walked.
        ExtensionHeader = 8, "extension-header";
        /// A first fragment without its whole header, or a later one whose first was not permitted.
        Fragment = 9, "fragment";
        /// No group or grant permits it, and it answers nothing.
        NotPermitted = 10, "not-permitted";
        /// A service address, but not a service that is offered there.
        Service = 11, "service";
        /// Not a global address (RFC 6052 3.1 for NAT64's prefix), or a range that nobody may reach.
        NotGlobal = 12, "not-global";
        /// An address of a node, or a metadata service.
        Denied = 13, "denied";
        /// IPv4 that only the engine translates: fragments, options, ICMP errors.
        ClatSlowPath = 14, "clat-slow-path";
        /// The workspace has as many flows as it may have.
        FlowLimit = 15, "flow-limit";
        /// The node's table of flows is full.
        FlowTableFull = 16, "flow-table-full";
        /// The twin of a workspace, addressed by someone other than the translator.
        Twin = 17, "twin";
        /// From a source that only the tunnel, a workspace or the translator may use.
        ForgedSource = 18, "forged-source";
        /// An inside destination, from the underlay.
        UplinkDestination = 19, "uplink-destination";
        /// From the tunnel, for somewhere else than this node.
        Transit = 20, "transit";
        /// An ICMPv6 error that quotes what the receiver did not send.
        IcmpError = 21, "icmp-error";
        /// The hop limit is used up.
        HopLimit = 22, "hop-limit";
        /// Too big for the other protocol's length field.
        TooBig = 23, "too-big";
        /// The kernel refused to rewrite the packet.
        Rewrite = 24, "rewrite";
    }
}

numbered! {
    /// What an IPv6 address is to the data path.
    Zone6 {
        /// Not reachable for workspaces (no entry means the same).
        Denied = 1, "denied";
        /// Inside the fabric.
        Fabric = 2, "fabric";
        /// The NAT64 prefix of the public IPv4 internet.
        Nat64Global = 3, "nat64-global";
        /// The NAT64 prefix of permitted private IPv4.
        Nat64Private = 4, "nat64-private";
        /// The IPv6 internet.
        Internet = 5, "internet";
    }
}

numbered! {
    /// What an IPv4 address is to the data path.
    Zone4 {
        /// A node's own, or a metadata service.
        Denied = 1, "denied";
        /// Not globally reachable, and not permitted.
        NonGlobal = 2, "non-global";
        /// Private, and permitted by the operator.
        Private = 3, "private";
        /// The public internet (no entry means the same).
        Global = 4, "global";
    }
}
