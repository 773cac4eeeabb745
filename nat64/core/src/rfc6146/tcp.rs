//! How TCP segments move a session (RFC 6146 3.5.2.2).
use super::Side;
use crate::packet::tcp_flag;

/// A TCP session's state. CLOSED is the absence of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TcpState {
    /// The IPv6 host sent a SYN.
    V6Init,
    /// The IPv4 host sent a SYN, where filtering admits it.
    V4Init,
    /// Both sent a SYN.
    Established,
    /// The IPv4 host sent a FIN.
    V4FinRcv,
    /// The IPv6 host sent a FIN.
    V6FinRcv,
    /// Both did.
    V4FinV6FinRcv,
    /// One sent a RST: closed, unless the other goes on.
    Trans,
}

/// Whether a segment may open a session.
#[must_use]
pub fn opens(flags: u8) -> bool {
    flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN) == tcp_flag::SYN
}

/// The state after a segment, and whether it counts as life.
///
/// Two additions to the RFC, for a host that reuses a port: a SYN from the IPv6 side opens anew what both sides closed
/// or one reset. Without them the new connection would end with the old one's timer.
#[must_use]
pub fn step(state: TcpState, side: Side, flags: u8) -> (TcpState, bool) {
    use TcpState as S;
    let (syn, fin, rst) = (flags & tcp_flag::SYN != 0, flags & tcp_flag::FIN != 0, flags & tcp_flag::RST != 0);
    let reopens = side == Side::V6 && opens(flags);
    match (state, side) {
        (S::V6Init, Side::V4) if syn => (S::Established, true),
        (S::V6Init, Side::V6) if syn => (S::V6Init, true),
        (S::V6Init, _) => (S::V6Init, false),
        (S::V4Init, Side::V6) if syn => (S::Established, true),
        (S::V4Init, Side::V4) if syn => (S::V4Init, true),
        (S::V4Init, _) => (S::V4Init, false),
        (S::Established | S::V4FinRcv | S::V6FinRcv, _) if rst => (S::Trans, true),
        (S::Established, Side::V4) if fin => (S::V4FinRcv, true),
        (S::Established, Side::V6) if fin => (S::V6FinRcv, true),
        (S::Established, _) => (S::Established, true),
        (S::V4FinRcv, Side::V6) | (S::V6FinRcv, Side::V4) if fin => (S::V4FinV6FinRcv, true),
        (S::V4FinRcv | S::V6FinRcv, _) => (state, true),
        (S::V4FinV6FinRcv | S::Trans, _) if reopens => (S::V6Init, true),
        (S::V4FinV6FinRcv, _) => (S::V4FinV6FinRcv, false),
        (S::Trans, _) if rst => (S::Trans, false),
        (S::Trans, _) => (S::Established, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Side::{V4, V6};
    use tcp_flag::{ACK, FIN, RST, SYN};

    fn walk(segments: &[(Side, u8)]) -> TcpState {
        segments.iter().fold(TcpState::V6Init, |state, (side, flags)| step(state, *side, *flags).0)
    }

    #[test]
    fn a_connection_opens_and_closes_from_either_side() {
        assert_eq!(walk(&[(V4, SYN | ACK), (V6, ACK)]), TcpState::Established);
        assert_eq!(walk(&[(V4, SYN | ACK), (V6, FIN | ACK), (V4, ACK)]), TcpState::V6FinRcv);
        assert_eq!(walk(&[(V4, SYN | ACK), (V6, FIN | ACK), (V4, FIN | ACK), (V6, ACK)]), TcpState::V4FinV6FinRcv);
        assert_eq!(walk(&[(V4, SYN | ACK), (V4, FIN | ACK), (V6, FIN | ACK)]), TcpState::V4FinV6FinRcv);
    }

    #[test]
    fn both_may_open_at_once() {
        assert_eq!(walk(&[(V4, SYN)]), TcpState::Established);
    }

    #[test]
    fn the_ipv4_side_may_open_where_it_is_admitted() {
        assert_eq!(step(TcpState::V4Init, V4, SYN), (TcpState::V4Init, true));
        assert_eq!(step(TcpState::V4Init, V6, SYN | ACK), (TcpState::Established, true));
        assert_eq!(step(TcpState::V4Init, V6, RST | ACK), (TcpState::V4Init, false));
    }

    #[test]
    fn a_reset_closes_unless_the_connection_goes_on() {
        assert_eq!(walk(&[(V4, SYN | ACK), (V4, RST)]), TcpState::Trans);
        assert_eq!(walk(&[(V4, SYN | ACK), (V4, RST), (V6, ACK)]), TcpState::Established);
        assert_eq!(step(TcpState::Trans, V6, RST), (TcpState::Trans, false));
        assert_eq!(walk(&[(V4, RST | ACK)]), TcpState::V6Init, "a refused connection stays until its short timer ends");
    }

    #[test]
    fn a_closed_session_is_not_kept_alive_but_reopened() {
        assert_eq!(step(TcpState::V4FinV6FinRcv, V4, ACK), (TcpState::V4FinV6FinRcv, false));
        assert_eq!(step(TcpState::V4FinV6FinRcv, V6, SYN), (TcpState::V6Init, true));
        assert_eq!(step(TcpState::Trans, V6, SYN), (TcpState::V6Init, true));
        assert_eq!(step(TcpState::Trans, V4, SYN), (TcpState::Established, true));
    }

    #[test]
    fn only_a_bare_syn_opens() {
        assert!(opens(SYN) && opens(SYN | 0xc0));
        for flags in [0, ACK, SYN | ACK, SYN | RST, SYN | FIN, RST] {
            assert!(!opens(flags), "{flags:#x}");
        }
    }
}
