//! Why a packet was not forwarded: each reason is a counter.
use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)*) => {
        /// Why a packet was dropped or answered. Its text is the metric's label.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)* }

        impl Reason {
            /// Every reason, in the order of their counters.
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            /// The label.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// Shorter than its headers say.
    Truncated = "truncated",
    /// A header contradicts itself.
    Malformed = "malformed",
    /// An IPv4 header whose checksum is wrong.
    BadHeaderChecksum = "bad-header-checksum",
    /// The vnet_hdr does not fit the packet.
    BadOffload = "bad-offload",
    /// A transport protocol that cannot be translated; in NAT64 all but TCP, UDP and ICMP.
    UnsupportedProtocol = "unsupported-protocol",
    /// More extension headers than are walked.
    ExtensionHeaders = "extension-headers",
    /// An unexpired source route or routing header (RFC 7915 4.1, 5.1).
    SourceRoute = "source-route",
    /// The IPv6 destination is in none of the prefixes.
    NotOurPrefix = "not-our-prefix",
    /// The IPv6 source is none that this translator serves.
    SourceNotAllowed = "source-not-allowed",
    /// The prefix must not stand for this IPv4 address (RFC 6052 3.1), or it is not permitted.
    NotPermitted = "not-permitted",
    /// The IPv4 destination is on the deny list, or is the pool's own.
    Denied = "denied",
    /// The IPv4 packet matches no mapping.
    NoMapping = "no-mapping",
    /// A mapping exists, but not for this remote address (address-dependent filtering).
    Filtered = "filtered",
    /// TCP without a session that does not open one.
    NoTcpSession = "no-tcp-session",
    /// All sessions are taken.
    SessionLimit = "session-limit",
    /// This source has all the sessions that it may have.
    SourceLimit = "source-limit",
    /// No port or identifier is free.
    PortsExhausted = "ports-exhausted",
    /// Hop limit or TTL ran out.
    HopLimit = "hop-limit",
    /// An IPv4 packet with DF does not fit the IPv6 side.
    TooBig = "too-big",
    /// An IPv6 payload that no IPv4 packet can hold.
    TooLongForIpv4 = "too-long-for-ipv4",
    /// A later fragment whose first one was not seen.
    FragmentUnknown = "fragment-unknown",
    /// Too many fragmented packets at once.
    FragmentLimit = "fragment-limit",
    /// A first fragment without its whole transport header.
    TinyFragment = "tiny-fragment",
    /// Fragmented ICMP, which RFC 7915 1.2 leaves untranslated.
    FragmentedIcmp = "fragmented-icmp",
    /// A fragmented UDP packet without checksum (RFC 7915 4.5).
    ZeroChecksumFragment = "zero-checksum-fragment",
    /// A UDP packet without checksum, which the configuration refuses (RFC 7915 4.5).
    ZeroChecksum = "zero-checksum",
    /// An ICMP message without counterpart.
    IcmpType = "icmp-type",
    /// An ICMP error about a packet that passed here never.
    IcmpUnrelated = "icmp-unrelated",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
