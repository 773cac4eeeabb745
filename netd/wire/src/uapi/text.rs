//! The protocol's text: requests to deltas and back, states to answers and back. No panic on any bytes.
use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use zeroize::Zeroizing;

use super::{Change, Delta, PeerDelta, PeerState, State};
use crate::{
    config::parse_net,
    key::{Key, Secret, public_key},
};

/// The longest request, in bytes.
pub const MAX_REQUEST_LEN: usize = 16 << 20;

/// Why a request or an answer cannot be read. The value is not repeated: it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UapiError {
    /// Neither `get=1` nor `set=1`.
    #[error("the request begins with neither get=1 nor set=1")]
    Operation,
    /// A line without `=`, or with a name that the protocol has not at this place.
    #[error("line {0} is no key=value of the protocol at this place")]
    Name(usize),
    /// A value that cannot be read.
    #[error("line {0} has a value that cannot be read")]
    Value(usize),
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Tell the state.
    Get,
    /// Change it.
    Set(Delta),
}

/// Reads a request, without its empty last line.
pub(crate) fn parse_request(text: &str) -> Result<Request, UapiError> {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    match first {
        "get=1" => Ok(Request::Get),
        "set=1" => parse_set(rest).map(Request::Set),
        _ => Err(UapiError::Operation),
    }
}

fn parse_set(text: &str) -> Result<Delta, UapiError> {
    let mut delta = Delta::default();
    for (index, line) in text.lines().enumerate() {
        // The operation was line 1.
        let number = index + 2;
        let (name, value) = line.split_once('=').ok_or(UapiError::Name(number))?;
        let bad = UapiError::Value(number);
        if name == "public_key" {
            delta.peers.push(PeerDelta::new(Key::from_hex(value).map_err(|_| bad)?));
            continue;
        }
        let known = match delta.peers.last_mut() {
            Some(peer) => set_peer(peer, name, value),
            None => set_interface(&mut delta, name, value),
        };
        match known {
            Some(true) => {}
            Some(false) => return Err(bad),
            None => return Err(UapiError::Name(number)),
        }
    }
    Ok(delta)
}

/// `None`: no such name. `Some(false)`: no such value.
fn set_interface(delta: &mut Delta, name: &str, value: &str) -> Option<bool> {
    match name {
        "private_key" => delta.private_key = Some(Secret::from_hex(value).ok()).flatten(),
        "listen_port" => delta.listen_port = value.parse().ok(),
        "fwmark" => delta.fwmark = value.parse().ok(),
        "replace_peers" => delta.replace_peers = value == "true",
        _ => return None,
    }
    Some(match name {
        "private_key" => delta.private_key.is_some(),
        "listen_port" => delta.listen_port.is_some(),
        "fwmark" => delta.fwmark.is_some(),
        _ => delta.replace_peers,
    })
}

fn set_peer(peer: &mut PeerDelta, name: &str, value: &str) -> Option<bool> {
    let flag = |to: &mut bool| {
        *to = value == "true";
        *to
    };
    Some(match name {
        "remove" => flag(&mut peer.remove),
        "update_only" => flag(&mut peer.update_only),
        "replace_allowed_ips" => flag(&mut peer.replace_allowed_ips),
        "protocol_version" => value == "1",
        "preshared_key" => {
            peer.preshared_key = Secret::from_hex(value).ok();
            peer.preshared_key.is_some()
        }
        "endpoint" => {
            peer.endpoint = value.parse().ok();
            peer.endpoint.is_some()
        }
        "persistent_keepalive_interval" => {
            peer.persistent_keepalive = value.parse().ok();
            peer.persistent_keepalive.is_some()
        }
        "allowed_ip" => {
            let change = match value.strip_prefix('-') {
                Some(net) => parse_net(net).map(Change::Remove),
                None => parse_net(value).map(Change::Add),
            };
            peer.allowed_ips.extend(change);
            change.is_some()
        }
        _ => return None,
    })
}

/// The text of a `set=1` request, with its empty last line.
pub(crate) fn write_set(delta: &Delta) -> Zeroizing<String> {
    let changes: usize = delta.peers.iter().map(|peer| 384 + peer.allowed_ips.len() * 64).sum();
    // Room for all of it from the start: growing would leave copies of the keys behind.
    let mut text = Zeroizing::new(String::with_capacity(256 + changes));
    text.push_str("set=1\n");
    push_secret(&mut text, "private_key", delta.private_key.as_ref());
    push(&mut text, "listen_port", delta.listen_port);
    push(&mut text, "fwmark", delta.fwmark);
    push(&mut text, "replace_peers", delta.replace_peers.then_some(true));
    for peer in &delta.peers {
        push(&mut text, "public_key", Some(peer.public_key.to_hex()));
        push(&mut text, "remove", peer.remove.then_some(true));
        push(&mut text, "update_only", peer.update_only.then_some(true));
        push_secret(&mut text, "preshared_key", peer.preshared_key.as_ref());
        push(&mut text, "endpoint", peer.endpoint);
        push(&mut text, "persistent_keepalive_interval", peer.persistent_keepalive);
        push(&mut text, "replace_allowed_ips", peer.replace_allowed_ips.then_some(true));
        for change in &peer.allowed_ips {
            match change {
                Change::Add(net) => push(&mut text, "allowed_ip", Some(net)),
                Change::Remove(net) => push(&mut text, "allowed_ip=-", Some(net)),
            }
        }
    }
    text.push('\n');
    text
}

/// What an answer to `get=1` is made of; the secrets are only borrowed while it is written.
pub(crate) struct StateSource<'a> {
    pub(crate) private_key: Option<&'a Secret>,
    pub(crate) listen_port: u16,
    pub(crate) fwmark: u32,
}

/// Writes the answer to `get=1`, without `errno` and the empty last line. `peers` calls back with each peer.
pub(crate) fn write_state(
    source: &StateSource<'_>,
    peers: usize,
    mut next: impl FnMut(&mut dyn FnMut(&PeerState, Option<&Secret>)),
) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(256 + peers * 512));
    push_secret(&mut text, "private_key", source.private_key);
    push(&mut text, "listen_port", Some(source.listen_port));
    push(&mut text, "fwmark", (source.fwmark != 0).then_some(source.fwmark));
    next(&mut |peer, preshared| {
        push(&mut text, "public_key", Some(peer.public_key.to_hex()));
        push_secret(&mut text, "preshared_key", preshared);
        push(&mut text, "protocol_version", Some(1));
        push(&mut text, "endpoint", peer.endpoint);
        let since = peer.last_handshake.unwrap_or_default();
        push(&mut text, "last_handshake_time_sec", Some(since.as_secs()));
        push(&mut text, "last_handshake_time_nsec", Some(since.subsec_nanos()));
        push(&mut text, "tx_bytes", Some(peer.tx_bytes));
        push(&mut text, "rx_bytes", Some(peer.rx_bytes));
        push(&mut text, "persistent_keepalive_interval", Some(peer.persistent_keepalive));
        for net in &peer.allowed_ips {
            push(&mut text, "allowed_ip", Some(net));
        }
    });
    text
}

/// Reads an answer to `get=1`: the state, and `errno`.
pub(crate) fn parse_state(text: &str) -> Result<(State, i64), UapiError> {
    let (mut state, mut errno) = (State::default(), 0);
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let bad = UapiError::Value(index + 1);
        let (name, value) = line.split_once('=').ok_or(UapiError::Name(index + 1))?;
        match (name, state.peers.last_mut()) {
            ("errno", _) => errno = value.parse().map_err(|_| bad)?,
            ("public_key", _) => state.peers.push(PeerState::new(Key::from_hex(value).map_err(|_| bad)?)),
            ("private_key", None) => {
                let key = Secret::from_hex(value).map_err(|_| bad)?;
                state.public_key = (!key.is_zero()).then(|| public_key(&key));
            }
            ("listen_port", None) => state.listen_port = value.parse().map_err(|_| bad)?,
            ("fwmark", None) => state.fwmark = value.parse().map_err(|_| bad)?,
            (name, Some(peer)) => read_peer(peer, name, value).ok_or(bad)?,
            // A newer tunnel may say more.
            _ => {}
        }
    }
    for peer in &mut state.peers {
        peer.last_handshake = peer.last_handshake.filter(|since| !since.is_zero());
    }
    Ok((state, errno))
}

fn read_peer(peer: &mut PeerState, name: &str, value: &str) -> Option<()> {
    let since = peer.last_handshake.unwrap_or_default();
    match name {
        "preshared_key" => peer.preshared = !Secret::from_hex(value).ok()?.is_zero(),
        "endpoint" => peer.endpoint = Some(value.parse::<SocketAddr>().ok()?),
        "last_handshake_time_sec" => {
            peer.last_handshake = Some(Duration::new(value.parse().ok()?, since.subsec_nanos()));
        }
        "last_handshake_time_nsec" => {
            let nanos = value.parse().ok().filter(|nanos| *nanos < 1_000_000_000)?;
            peer.last_handshake = Some(Duration::new(since.as_secs(), nanos));
        }
        "tx_bytes" => peer.tx_bytes = value.parse().ok()?,
        "rx_bytes" => peer.rx_bytes = value.parse().ok()?,
        "persistent_keepalive_interval" => peer.persistent_keepalive = value.parse().ok()?,
        "allowed_ip" => peer.allowed_ips.push(parse_net(value)?),
        _ => {}
    }
    Some(())
}

fn push(text: &mut String, name: &str, value: Option<impl std::fmt::Display>) {
    if let Some(value) = value {
        let separator = if name.ends_with('-') { "" } else { "=" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}{separator}{value}");
    }
}

fn push_secret(text: &mut String, name: &str, key: Option<&Secret>) {
    if let Some(key) = key {
        text.push_str(name);
        text.push('=');
        text.push_str(&key.to_hex());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{any_config, any_endpoint, any_net};
    use proptest::prelude::*;

    fn any_peer_delta() -> impl Strategy<Value = PeerDelta> {
        let change = prop_oneof![any_net().prop_map(Change::Add), any_net().prop_map(Change::Remove)];
        (
            any::<[u8; 32]>(),
            any::<[bool; 3]>(),
            any::<Option<[u8; 32]>>(),
            proptest::option::of(any_endpoint()),
            any::<Option<u16>>(),
            proptest::collection::vec(change, 0..5),
        )
            .prop_map(|(key, flags, preshared, endpoint, persistent_keepalive, allowed_ips)| PeerDelta {
                public_key: Key::from_bytes(key),
                remove: flags[0],
                update_only: flags[1],
                preshared_key: preshared.map(Secret::from_bytes),
                endpoint,
                persistent_keepalive,
                replace_allowed_ips: flags[2],
                allowed_ips,
            })
    }

    fn any_peer_state() -> impl Strategy<Value = PeerState> {
        (
            any::<[u8; 32]>(),
            proptest::option::of(any_endpoint()),
            0u64..1 << 40,
            0u32..1_000_000_000,
            any::<[u64; 2]>(),
            any::<u16>(),
            proptest::collection::vec(any_net(), 0..4),
        )
            .prop_map(|(key, endpoint, seconds, nanos, bytes, persistent_keepalive, allowed_ips)| PeerState {
                public_key: Key::from_bytes(key),
                preshared: false,
                endpoint,
                last_handshake: Some(Duration::new(seconds, nanos)).filter(|since| !since.is_zero()),
                rx_bytes: bytes[0],
                tx_bytes: bytes[1],
                persistent_keepalive,
                allowed_ips,
            })
    }

    proptest! {
        #[test]
        fn every_delta_survives_its_text(
            config in any_config(), replace_peers: bool, peers in proptest::collection::vec(any_peer_delta(), 0..5),
        ) {
            let delta = Delta {
                private_key: config.private_key, listen_port: config.listen_port, fwmark: config.fwmark, replace_peers, peers,
            };
            let text = write_set(&delta);
            prop_assert_eq!(parse_request(text.strip_suffix('\n').unwrap()), Ok(Request::Set(delta)));
        }

        #[test]
        fn every_state_survives_its_text(peers in proptest::collection::vec(any_peer_state(), 0..5), private: [u8; 32], listen_port: u16, fwmark: u32) {
            let private = Secret::from_bytes(private);
            let source = StateSource { private_key: Some(&private), listen_port, fwmark };
            let text = write_state(&source, peers.len(), |each| peers.iter().for_each(|peer| each(peer, None)));
            let expected = State { public_key: (!private.is_zero()).then(|| public_key(&private)), listen_port, fwmark, peers };
            prop_assert_eq!(parse_state(&text), Ok((expected, 0)));
        }

        #[test]
        fn no_text_panics(text: String, lines in proptest::collection::vec("(public_key|allowed_ip|endpoint|remove|listen_port|errno|last_handshake_time_nsec)=.{0,70}", 0..10)) {
            let lines = lines.join("\n");
            let _ = (parse_request(&text), parse_request(&format!("set=1\n{text}")), parse_request(&format!("set=1\n{lines}")));
            let _ = (parse_state(&text), parse_state(&lines));
        }
    }

    #[test]
    fn what_wg_sends_is_understood_and_nonsense_is_not() {
        let key = "b".repeat(64);
        let text = format!(
            "set=1\nprivate_key={key}\nlisten_port=51820\nfwmark=0\nreplace_peers=true\npublic_key={key}\npreshared_key={key}\n\
             endpoint=[2001:db8::1]:51820\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n\
             allowed_ip=fd00::/64\nallowed_ip=-192.0.2.0/24"
        );
        let Ok(Request::Set(delta)) = parse_request(&text) else { panic!() };
        assert!(delta.replace_peers && delta.peers[0].replace_allowed_ips);
        assert_eq!(delta.peers[0].allowed_ips.len(), 2);
        for (text, error) in [
            ("", UapiError::Operation),
            ("get=2", UapiError::Operation),
            ("set=1\nlisten_port=65536", UapiError::Value(2)),
            ("set=1\nprivate_key=secret", UapiError::Value(2)),
            ("set=1\nendpoint=192.0.2.1:1", UapiError::Name(2)),
            ("set=1\nreplace_peers=false", UapiError::Value(2)),
            ("set=1\nnonsense", UapiError::Name(2)),
        ] {
            assert_eq!(parse_request(text), Err(error), "{text}");
        }
    }
}
