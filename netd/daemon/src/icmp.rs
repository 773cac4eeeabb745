//! Echo requests through the tunnel: the proof that a peer is really there. Nothing else pings.
use std::{
    collections::HashMap,
    io,
    net::{Ipv6Addr, SocketAddrV6},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

/// ICMPv6 echo request and reply (RFC 4443 4.1, 4.2).
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
/// Type, code, checksum, identifier, sequence, and 16 bytes that only we know.
const LENGTH: usize = 24;

/// Sends one echo request to each target and waits for the answers; the round-trip time of those that came.
pub async fn echo(source: Ipv6Addr, targets: &[Ipv6Addr], wait: Duration) -> io::Result<HashMap<Ipv6Addr, Duration>> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV6::new(source, 0, 0, 0).into())?;
    // Datagrams are datagrams: the runtime's UDP type sends and receives on a raw socket just as well.
    let socket = UdpSocket::from_std(socket.into())?;
    let mut open = HashMap::new();
    for target in targets {
        let mut cookie = [0; 16];
        getrandom::fill(&mut cookie).map_err(|error| io::Error::other(error.to_string()))?;
        // One that cannot be sent is one that is not answered.
        if socket.send_to(&request(cookie), SocketAddrV6::new(*target, 0, 0, 0)).await.is_ok() {
            open.insert(cookie, (*target, Instant::now()));
        }
    }
    let mut answered = HashMap::new();
    let collect = async {
        let mut buffer = [0; 2048];
        while !open.is_empty() {
            let (length, _) = socket.recv_from(&mut buffer).await?;
            if let Some((target, sent)) = buffer.get(..length).and_then(reply).and_then(|cookie| open.remove(&cookie)) {
                answered.insert(target, sent.elapsed());
            }
        }
        io::Result::Ok(())
    };
    match tokio::time::timeout(wait, collect).await {
        Ok(Err(error)) => Err(error),
        Ok(Ok(())) | Err(_) => Ok(answered),
    }
}

/// An echo request. The kernel fills the checksum in (RFC 3542 3.1).
fn request(cookie: [u8; 16]) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    packet[0] = ECHO_REQUEST;
    packet[8..].copy_from_slice(&cookie);
    packet
}

/// The cookie of an echo reply; `None` for everything else.
fn reply(packet: &[u8]) -> Option<[u8; 16]> {
    let (kind, code) = (packet.first()?, packet.get(1)?);
    let whole = packet.len() == LENGTH && *kind == ECHO_REPLY && *code == 0;
    packet.get(8..LENGTH).filter(|_| whole)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_packet_panics(packet: Vec<u8>) {
            let _ = reply(&packet);
        }
    }

    #[test]
    fn only_our_own_echo_counts() {
        let mut packet = request([7; 16]);
        assert_eq!(reply(&packet), None, "a request is no reply");
        packet[0] = ECHO_REPLY;
        assert_eq!(reply(&packet), Some([7; 16]));
        assert_eq!(reply(&packet[..23]), None);
    }
}
