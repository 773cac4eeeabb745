//! Judges frames seen on the underlay: is it WireGuard between the nodes, or something that should have been inside?
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use weft_model::address::{NAT64_GLOBAL, NAT64_LEN, NAT64_PRIVATE};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// WireGuard's port.
const WIREGUARD: u16 = 51820;
/// The port of the API between nodes.
const CONTROL: u16 = 7443;

/// What a frame is to the fabric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// Not between two nodes, and nothing of the inside.
    Other,
    /// UDP between the nodes' WireGuard ports.
    Wireguard,
    /// The API between nodes, over TLS.
    Control,
    /// Address resolution, and what hosts say to groups.
    Neighbour,
    /// An error about the outer packets: a process was not there.
    OuterError,
    /// Something that belongs inside the tunnel, in words.
    Leak(String),
}

/// What is known of the lab when frames are judged.
#[derive(Debug, Clone)]
pub struct Underlay {
    /// The nodes' addresses on the underlay.
    pub nodes: Vec<IpAddr>,
    /// Addresses that only exist inside.
    pub inside: Vec<Ipv6Net>,
    /// A text that is sent inside: seen in clear, it has leaked.
    pub marker: String,
}

/// What a packet's headers say, as far as the judgement needs it.
struct Packet {
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    /// Source and target port, if there are any in this packet.
    ports: Option<(u16, u16)>,
}

impl Underlay {
    /// What only exists inside of a fabric with this prefix.
    #[must_use]
    pub fn inside(fabric: Ipv6Net) -> Vec<Ipv6Net> {
        let nat64 = [NAT64_GLOBAL, NAT64_PRIVATE].map(|prefix| Ipv6Net::new_assert(prefix, NAT64_LEN));
        [fabric].into_iter().chain(nat64).collect()
    }

    /// Judges one Ethernet frame.
    #[must_use]
    pub fn judge(&self, frame: &[u8]) -> Class {
        let marker = self.marker.as_bytes();
        if !marker.is_empty() && frame.windows(marker.len()).any(|window| window == marker) {
            return Class::Leak("the payload in clear text".into());
        }
        let Some((kind, packet)) = ethernet(frame) else { return Class::Other };
        let packet = match kind {
            0x0806 => return Class::Neighbour,
            0x0800 => ipv4(packet),
            0x86dd => ipv6(packet),
            _ => return Class::Other,
        };
        packet.map_or(Class::Other, |packet| self.judge_packet(&packet))
    }

    fn judge_packet(&self, packet: &Packet) -> Class {
        let Packet { source, target, protocol, ports } = packet;
        for address in [source, target] {
            let inner = match address {
                IpAddr::V6(address) => self.inside.iter().any(|net| net.contains(address)),
                // Every workspace is 192.0.0.1 to itself (RFC 7335).
                IpAddr::V4(address) => Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 0, 0), 29).contains(address),
            };
            if inner {
                return Class::Leak(format!("{source} -> {target}, protocol {protocol}"));
            }
        }
        let to_group = target.is_multicast() || matches!(target, IpAddr::V4(address) if address.is_broadcast());
        let local = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        if to_group || (*protocol == ICMPV6 && local(source)) {
            return Class::Neighbour;
        }
        if !(self.nodes.contains(source) && self.nodes.contains(target)) {
            return Class::Other;
        }
        let uses = |port: u16| ports.is_some_and(|(from, to)| from == port || to == port);
        match *protocol {
            UDP if uses(WIREGUARD) => Class::Wireguard,
            TCP if uses(CONTROL) => Class::Control,
            ICMPV6 | ICMP => Class::OuterError,
            _ => Class::Leak(format!("{source} -> {target}, protocol {protocol}, ports {ports:?}")),
        }
    }
}

/// The type and content of an Ethernet frame.
fn ethernet(frame: &[u8]) -> Option<(u16, &[u8])> {
    Some((word(frame, 12)?, frame.get(14..)?))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn ipv4(packet: &[u8]) -> Option<Packet> {
    let address = |at: usize| Some(IpAddr::V4(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into()));
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let first = word(packet, 6)? & 0x1fff == 0;
    let ports = word(packet, header).zip(word(packet, header + 2)).filter(|_| first);
    Some(Packet { source: address(12)?, target: address(16)?, protocol: *packet.get(9)?, ports })
}

fn ipv6(packet: &[u8]) -> Option<Packet> {
    let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?)));
    // Hop-by-hop options come before MLD; other extension headers count as what they are.
    let (protocol, header) = match *packet.get(6)? {
        0 => (*packet.get(40)?, 40 + (usize::from(*packet.get(41)?) + 1) * 8),
        other => (other, 40),
    };
    Some(Packet {
        source: address(8)?,
        target: address(24)?,
        protocol,
        ports: word(packet, header).zip(word(packet, header + 2)),
    })
}

/// An IPv6 packet with a UDP datagram in it and right checksums: what a forger sends.
#[must_use]
pub fn udp_packet(source: (Ipv6Addr, u16), target: (Ipv6Addr, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
    let words = [source.1, target.1, length, 0];
    let mut datagram: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    datagram.extend_from_slice(payload);
    ipv6_packet(source.0, target.0, UDP, datagram, 6)
}

/// An IPv6 packet with an echo request in it.
#[must_use]
pub fn ping_packet(source: Ipv6Addr, target: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let mut request = vec![128, 0, 0, 0, 0x77, 0x77, 0, 1];
    request.extend_from_slice(payload);
    ipv6_packet(source, target, ICMPV6, request, 2)
}

/// An IPv6 packet with a TCP SYN in it.
#[must_use]
pub fn syn_packet(source: (Ipv6Addr, u16), target: (Ipv6Addr, u16)) -> Vec<u8> {
    let mut segment: Vec<u8> = [source.1, target.1].iter().flat_map(|port| port.to_be_bytes()).collect();
    segment.extend_from_slice(&[0x77, 0x65, 0x66, 0x74, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    ipv6_packet(source.0, target.0, TCP, segment, 16)
}

fn ipv6_packet(source: Ipv6Addr, target: Ipv6Addr, protocol: u8, mut content: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    let pseudo =
        [source.octets().as_slice(), &target.octets(), &u32::from(length).to_be_bytes(), &[0, 0, 0, protocol]].concat();
    let sum = checksum(&[pseudo.as_slice(), &content].concat());
    if let Some(field) = content.get_mut(checksum_at..checksum_at + 2) {
        // UDP's 0 means "none" (RFC 8200 8.1).
        field.copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    }
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[protocol, 64]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&target.octets());
    packet.extend_from_slice(&content);
    packet
}

/// The internet checksum (RFC 1071) of bytes whose checksum field is zero.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(u16::from_be_bytes([*high, 0])),
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn underlay() -> Underlay {
        Underlay {
            nodes: vec!["198.18.0.11".parse().unwrap(), "198.18.0.12".parse().unwrap()],
            inside: Underlay::inside("fd12:3456:789a::/48".parse().unwrap()),
            marker: "secret".into(),
        }
    }

    fn frame(kind: u16, packet: &[u8]) -> Vec<u8> {
        [&[0; 12], kind.to_be_bytes().as_slice(), packet].concat()
    }

    fn between_nodes(protocol: u8, ports: (u16, u16)) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0, 198, 18, 0, 11, 198, 18, 0, 12];
        packet.extend_from_slice(&ports.0.to_be_bytes());
        packet.extend_from_slice(&ports.1.to_be_bytes());
        frame(0x0800, &packet)
    }

    #[test]
    fn only_the_tunnel_and_the_control_api_are_in_order_between_nodes() {
        let underlay = underlay();
        assert_eq!(underlay.judge(&between_nodes(UDP, (51820, 51820))), Class::Wireguard);
        assert_eq!(underlay.judge(&between_nodes(TCP, (40000, 7443))), Class::Control);
        assert!(matches!(underlay.judge(&between_nodes(TCP, (40000, 8080))), Class::Leak(_)));
        assert!(matches!(underlay.judge(&between_nodes(41, (0, 0))), Class::Leak(_)));
    }

    #[test]
    fn addresses_of_the_inside_and_the_marker_are_leaks_whoever_sends_them() {
        let underlay = underlay();
        let (inside, outside): (Ipv6Addr, Ipv6Addr) =
            ("fd12:3456:789a:1::2".parse().unwrap(), "2001:db8::1".parse().unwrap());
        for (from, to) in [(inside, outside), (outside, inside), (outside, "64:ff9b:1::c612:40a".parse().unwrap())] {
            let packet = udp_packet((from, 1), (to, 2), b"x");
            assert!(matches!(underlay.judge(&frame(0x86dd, &packet)), Class::Leak(_)), "{from} -> {to}");
        }
        let packet = udp_packet((outside, 1), (outside, 2), b"a secret");
        assert!(matches!(underlay.judge(&frame(0x86dd, &packet)), Class::Leak(_)));
        assert_eq!(underlay.judge(&frame(0x86dd, &udp_packet((outside, 1), (outside, 2), b"x"))), Class::Other);
        assert_eq!(underlay.judge(&frame(0x0806, &[0; 28])), Class::Neighbour);
    }

    #[test]
    fn forged_packets_carry_right_checksums() {
        let (from, to): (Ipv6Addr, Ipv6Addr) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        for (packet, protocol) in [
            (udp_packet((from, 1), (to, 2), b"odd"), UDP),
            (ping_packet(from, to, b"odd"), ICMPV6),
            (syn_packet((from, 1), (to, 2)), TCP),
        ] {
            let content = &packet[40..];
            let length = u32::try_from(content.len()).unwrap().to_be_bytes();
            let pseudo = [&from.octets(), &to.octets(), length.as_slice(), &[0, 0, 0, protocol], content].concat();
            assert_eq!(checksum(&pseudo), 0, "protocol {protocol}");
        }
    }

    #[test]
    fn a_truncated_frame_is_judged_without_a_panic() {
        let whole = frame(0x86dd, &syn_packet(("fd00::1".parse().unwrap(), 1), ("fd00::2".parse().unwrap(), 2)));
        for length in 0..whole.len() {
            let _ = underlay().judge(&whole[..length]);
        }
    }
}
