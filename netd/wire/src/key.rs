//! Keys of WireGuard: public ones print as base64, secret ones never print and are wiped from memory.
use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use boringtun::x25519::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Length of every key, in bytes.
pub const KEY_LEN: usize = 32;

/// Why a text is no key. It never repeats the text: that may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key of 32 bytes: give 44 characters of base64, as `wg genkey` and `wg pubkey` print them")]
pub struct KeyError;

/// A node's public key: how WireGuard names a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; KEY_LEN]);

impl Key {
    /// From its bytes; every 32 bytes are a public key.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Lower-case hexadecimal, as the UAPI socket writes it.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Reads hexadecimal.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        bytes_from_hex(text).map(|bytes| Self(*bytes))
    }

    pub(crate) fn dalek(&self) -> PublicKey {
        PublicKey::from(self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        bytes_from_base64(text).map(|bytes| Self(*bytes))
    }
}

/// A private or preshared key: wiped when dropped, redacted in `Debug`, and without `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<[u8; KEY_LEN]>);

impl Secret {
    /// From its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes. The caller keeps them out of logs.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Base64, for a file of mode 0600.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(*self.0))
    }

    /// Hexadecimal, for the UAPI socket.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(*self.0))
    }

    /// Reads hexadecimal.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        bytes_from_hex(text).map(Self)
    }

    /// Whether all bytes are zero: the UAPI's way to say "none".
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    pub(crate) fn dalek(&self) -> StaticSecret {
        StaticSecret::from(*self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl FromStr for Secret {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        bytes_from_base64(text).map(Self)
    }
}

/// Draws a private key from the system's random numbers, clamped as X25519 wants it (RFC 7748 5), and its public key.
pub fn keypair() -> Result<(Secret, Key), getrandom::Error> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    getrandom::fill(&mut *bytes)?;
    let [first, .., last] = &mut *bytes;
    *first &= 248;
    *last = (*last & 127) | 64;
    let secret = Secret(bytes);
    let public = public_key(&secret);
    Ok((secret, public))
}

/// The public key of a private one.
#[must_use]
pub fn public_key(private: &Secret) -> Key {
    Key(PublicKey::from(&private.dalek()).to_bytes())
}

fn bytes_from_base64(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let mut bytes = Zeroizing::new([0; KEY_LEN + 1]);
    // One byte of room too many, so that a longer text is an error of ours and not a cut.
    let len = BASE64.decode_slice(text.trim(), &mut *bytes).map_err(|_| KeyError)?;
    let (key, rest) = bytes.split_at(KEY_LEN);
    if len != KEY_LEN || rest.len() != 1 {
        return Err(KeyError);
    }
    key.try_into().map(Zeroizing::new).map_err(|_| KeyError)
}

fn bytes_from_hex(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    hex::decode_to_slice(text, &mut *bytes).map_err(|_| KeyError)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pair_belongs_together_and_secrets_do_not_print() {
        let (secret, public) = keypair().unwrap();
        assert_eq!(public_key(&secret), public);
        assert_ne!(keypair().unwrap().1, public);
        assert_eq!(format!("{secret:?}"), "<secret>");
        assert_eq!(secret.to_base64().parse::<Secret>().unwrap(), secret);
        assert_eq!(Secret::from_hex(&secret.to_hex()).unwrap(), secret);
    }

    #[test]
    fn the_public_key_is_the_one_that_wg_pubkey_prints() {
        let private: Secret = "SD2aNsdJyOUYG5VpXQI0rGtsCXT+9+4IILWQAeD1e2w=".parse().unwrap();
        assert_eq!(public_key(&private).to_string(), "SczF1oYgizjB8MSUaeHRHx7NrY3NDgWxrnWda0PL0jQ=");
    }

    proptest! {
        #[test]
        fn every_public_key_survives_both_spellings(bytes: [u8; 32]) {
            let key = Key::from_bytes(bytes);
            prop_assert_eq!(key.to_string().parse::<Key>(), Ok(key));
            prop_assert_eq!(Key::from_hex(&key.to_hex()), Ok(key));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = (text.parse::<Key>(), text.parse::<Secret>(), Key::from_hex(&text), Secret::from_hex(&text));
        }
    }
}
