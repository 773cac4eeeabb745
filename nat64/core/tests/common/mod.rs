//! Packets for tests: built and checked without the code under test.
#![allow(dead_code, unreachable_pub)]
use std::net::{Ipv4Addr, Ipv6Addr};

use weft_nat64_core::{Config, Engine, HEADROOM, Offload, PacketBuf, Verdict};

pub const CONFIG: &str = r#"
tun = "weft64"
queues = 1
mtu6 = 1420
mtu4 = 1500
deny = ["198.18.7.0/24", "198.18.8.8/32"]
sources = ["fd12::/64"]
limits = { sessions = 1000, sessions_per_source = 500 }
[pool]
addresses = ["192.0.2.1"]
ports = "2000-2999"
[[prefix]]
prefix = "64:ff9b::/96"
permit = "global"
[[prefix]]
prefix = "64:ff9b:1::/96"
permit = ["198.18.0.0/15"]
"#;

pub const POOL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 80);

pub fn host(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd12, 0, 0, 0, 0, 0, 0, number)
}

/// An IPv4 address below the private prefix.
pub fn mapped(address: Ipv4Addr) -> Ipv6Addr {
    (0x0064_ff9b_0001u128 << 80 | u128::from(address.to_bits())).into()
}

pub fn config() -> Config {
    toml::from_str(CONFIG).unwrap()
}

pub fn engine() -> Engine {
    Engine::new(config(), 0, [1, 2]).unwrap()
}

pub fn naive_sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const FIN: u8 = 1;
pub const RST: u8 = 4;

/// A transport header with payload, its checksum zero.
pub fn tcp(source: u16, destination: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(source.to_be_bytes());
    out.extend(destination.to_be_bytes());
    out.extend(1000u32.to_be_bytes());
    out.extend(2000u32.to_be_bytes());
    out.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    out.extend(payload);
    out
}

pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(source.to_be_bytes());
    out.extend(destination.to_be_bytes());
    out.extend((8 + payload.len() as u16).to_be_bytes());
    out.extend([0, 0]);
    out.extend(payload);
    out
}

pub fn icmp(kind: u8, code: u8, rest: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, code, 0, 0];
    out.extend(rest.to_be_bytes());
    out.extend(payload);
    out
}

fn checksum_at(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        _ => 2,
    }
}

fn pseudo(source: &[u8], destination: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let mut out = [source, destination].concat();
    out.extend((length as u32).to_be_bytes());
    out.extend([0, 0, 0, protocol]);
    out
}

/// Fills a transport's checksum, or only the pseudo-header's sum.
fn fill(transport: &mut [u8], protocol: u8, pseudo: &[u8], partial: bool) {
    let at = checksum_at(protocol);
    let value = if partial {
        naive_sum(&[pseudo])
    } else {
        let value = !naive_sum(&[pseudo, transport]);
        if protocol == UDP && value == 0 { 0xffff } else { value }
    };
    transport[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub fn v6_with(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, transport: &[u8], partial: bool) -> Vec<u8> {
    let mut transport = transport.to_vec();
    let sum = pseudo(&source.octets(), &destination.octets(), protocol, transport.len());
    fill(&mut transport, protocol, &sum, partial);
    v6_raw(source, destination, protocol, &transport)
}

pub fn v6_raw(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    out.extend((payload.len() as u16).to_be_bytes());
    out.extend([next, 64]);
    out.extend(source.octets());
    out.extend(destination.octets());
    out.extend(payload);
    out
}

pub fn v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    v6_with(source, destination, protocol, transport, false)
}

pub fn v4_with(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, transport: &[u8], partial: bool) -> Vec<u8> {
    let mut transport = transport.to_vec();
    let sum = if protocol == ICMP {
        Vec::new()
    } else {
        pseudo(&source.octets(), &destination.octets(), protocol, transport.len())
    };
    fill(&mut transport, protocol, &sum, partial);
    v4_raw(source, destination, protocol, &transport, 0x4000, 0)
}

pub fn v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    v4_with(source, destination, protocol, transport, false)
}

/// `field`: flags and fragment offset.
pub fn v4_raw(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8], field: u16, id: u16) -> Vec<u8> {
    let mut out = vec![0x45, 0];
    out.extend((20 + payload.len() as u16).to_be_bytes());
    out.extend(id.to_be_bytes());
    out.extend(field.to_be_bytes());
    out.extend([64, protocol, 0, 0]);
    out.extend(source.octets());
    out.extend(destination.octets());
    finish_v4(&mut out);
    out.extend(payload);
    out
}

/// Sets the header's checksum anew.
pub fn finish_v4(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let sum = !naive_sum(&[&packet[..header]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// What a packet says, after every length and checksum in it was checked naively.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Seen {
    pub source: std::net::IpAddr,
    pub destination: std::net::IpAddr,
    pub protocol: u8,
    pub hops: u8,
    pub tos: u8,
    pub transport: Vec<u8>,
}

impl Seen {
    pub fn ports(&self) -> (u16, u16) {
        let word = |at| u16::from_be_bytes([self.transport[at], self.transport[at + 1]]);
        (word(0), word(2))
    }

    pub fn identifier(&self) -> u16 {
        u16::from_be_bytes([self.transport[4], self.transport[5]])
    }

    pub fn rest(&self) -> u32 {
        u32::from_be_bytes(self.transport[4..8].try_into().unwrap())
    }
}

/// Checks an unfragmented packet without extension headers. `partial`: the checksum holds the pseudo-header's sum.
pub fn see_with(packet: &[u8], partial: bool) -> Seen {
    let (source, destination, protocol, hops, tos, transport, sum);
    if packet[0] >> 4 == 6 {
        let field = |from: usize| <[u8; 16]>::try_from(&packet[from..from + 16]).unwrap();
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])), packet.len() - 40, "payload length");
        (source, destination) = (Ipv6Addr::from(field(8)).into(), Ipv6Addr::from(field(24)).into());
        (protocol, hops, tos) = (packet[6], packet[7], packet[0] << 4 | packet[1] >> 4);
        transport = &packet[40..];
        sum = pseudo(&packet[8..24], &packet[24..40], protocol, transport.len());
    } else {
        assert_eq!(packet[0], 0x45, "version and header length");
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len(), "total length");
        assert_eq!(naive_sum(&[&packet[..20]]), 0xffff, "header checksum");
        let field = |from: usize| <[u8; 4]>::try_from(&packet[from..from + 4]).unwrap();
        (source, destination) = (Ipv4Addr::from(field(12)).into(), Ipv4Addr::from(field(16)).into());
        (protocol, hops, tos) = (packet[9], packet[8], packet[1]);
        transport = &packet[20..];
        sum = match protocol {
            ICMP => Vec::new(),
            _ => pseudo(&packet[12..16], &packet[16..20], protocol, transport.len()),
        };
    }
    if partial {
        let at = checksum_at(protocol);
        let field = u16::from_be_bytes([transport[at], transport[at + 1]]);
        assert_eq!(field % 0xffff, naive_sum(&[&sum]) % 0xffff, "partial checksum");
    } else {
        assert_eq!(naive_sum(&[&sum, transport]), 0xffff, "checksum of protocol {protocol}");
    }
    Seen { source, destination, protocol, hops, tos, transport: transport.to_vec() }
}

pub fn see(packet: &[u8]) -> Seen {
    see_with(packet, false)
}

/// Translates a packet with room in front, as a TUN's reader has it.
pub fn run_with(engine: &mut Engine, now: u64, packet: &[u8], offload: &mut Offload) -> (Verdict, Vec<u8>) {
    let mut buf = vec![0; HEADROOM + packet.len().max(1500)];
    buf[HEADROOM..HEADROOM + packet.len()].copy_from_slice(packet);
    let mut view = PacketBuf::new(&mut buf, HEADROOM, HEADROOM + packet.len()).unwrap();
    let mut random = now.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ packet.len() as u64;
    let mut random = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random ^ random >> 29
    };
    let verdict = engine.translate(now, &mut random, &mut view, offload);
    let out = view.bytes().to_vec();
    (verdict, out)
}

pub fn run(engine: &mut Engine, now: u64, packet: &[u8]) -> (Verdict, Vec<u8>) {
    run_with(engine, now, packet, &mut Offload::default())
}

/// Translates a packet that must pass.
pub fn pass(engine: &mut Engine, now: u64, packet: &[u8]) -> Seen {
    let (verdict, out) = run(engine, now, packet);
    assert_eq!(verdict, Verdict::Forward);
    see(&out)
}

/// Opens a session by UDP, and says the pool's port.
pub fn open_udp(engine: &mut Engine, now: u64, source: Ipv6Addr, port: u16, remote: Ipv4Addr, remote_port: u16) -> u16 {
    pass(engine, now, &v6(source, mapped(remote), UDP, &udp(port, remote_port, b"open"))).ports().0
}

pub fn open_tcp(engine: &mut Engine, now: u64, source: Ipv6Addr, port: u16, remote: Ipv4Addr, remote_port: u16) -> u16 {
    pass(engine, now, &v6(source, mapped(remote), TCP, &tcp(port, remote_port, SYN, b""))).ports().0
}
