//! What an MTU on one side is on the other (RFC 7915 4.2 and 5.2).

/// The MTUs of the translator's two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mtus {
    /// Towards IPv6 hosts: at least 1280.
    pub v6: u16,
    /// Towards IPv4 hosts.
    pub v4: u16,
}

/// By how much a packet grows from IPv4 to IPv6.
pub const GROWTH: u16 = 20;
/// The least MTU of IPv6 (RFC 8200 5).
pub const MIN_V6: u16 = 1280;
/// Common MTUs, for routers that do not say theirs (RFC 1191 7.1).
const PLATEAUS: [u16; 10] = [32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68];

/// The MTU for an ICMPv6 Packet Too Big, from an ICMPv4 Fragmentation Needed that reported `reported` (0 from routers
/// older than RFC 1191) about a packet of `quoted` bytes.
#[must_use]
pub fn for_packet_too_big(reported: u16, quoted: u16, mtus: Mtus) -> u32 {
    let reported = match reported {
        0 => PLATEAUS.into_iter().find(|plateau| *plateau < quoted).unwrap_or(68),
        reported => reported,
    };
    let least = reported.min(mtus.v4).saturating_add(GROWTH).min(mtus.v6);
    least.max(MIN_V6).into()
}

/// The MTU for an ICMPv4 Fragmentation Needed, from an ICMPv6 Packet Too Big that reported `reported`.
#[must_use]
pub fn for_fragmentation_needed(reported: u32, mtus: Mtus) -> u16 {
    let reported = u16::try_from(reported).unwrap_or(u16::MAX).min(mtus.v6);
    reported.saturating_sub(GROWTH).min(mtus.v4).max(68)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTUS: Mtus = Mtus { v6: 1420, v4: 1500 };

    #[test]
    fn fragmentation_needed_becomes_packet_too_big_20_bytes_larger_and_never_below_1280() {
        for (reported, quoted, expected) in
            [(1300, 1500, 1320), (1500, 1500, 1420), (576, 1500, 1280), (0, 1500, 1420), (0, 1400, 1280), (0, 60, 1280)]
        {
            assert_eq!(for_packet_too_big(reported, quoted, MTUS), expected, "{reported} {quoted}");
        }
    }

    #[test]
    fn packet_too_big_becomes_fragmentation_needed_20_bytes_smaller() {
        for (reported, expected) in [(1400, 1380), (1280, 1260), (9000, 1400), (u32::MAX, 1400), (0, 68)] {
            assert_eq!(for_fragmentation_needed(reported, MTUS), expected, "{reported}");
        }
    }
}
