//! Identifiers: a workspace's random id and the DNS labels that people choose. Parsing is the only way in.
use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not an identifier: names the value, and ends with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a DNS label (RFC 1035 2.3.1, as relaxed by RFC 1123 2.1).
    #[error("{0:?} is not a DNS label: use 1 to 63 of a-z, 0-9 and '-', neither first nor last a '-'")]
    Label(String),
    /// Not ten characters of lower-case base32.
    #[error("{0:?} is not a workspace id: an id is 10 characters of a-z and 2-7, as `netctl list` shows it")]
    WorkspaceId(String),
}

const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A workspace's identity: 10 characters of lower-case base32 (50 random bits), never reused; the label of its URLs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkspaceId([u8; 10]);

impl WorkspaceId {
    /// An id from 10 bytes of randomness; the low five bits of each are used.
    #[must_use]
    pub fn from_random(random: [u8; 10]) -> Self {
        Self(random.map(|byte| BASE32[usize::from(byte & 31)]))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("an id holds only base32 characters")
    }

    /// The host's end of the workspace's link: `w` and the id, 11 of the 15 characters that Linux allows.
    #[must_use]
    pub fn ifname(&self) -> String {
        format!("w{self}")
    }

    /// The id whose link has this name, if it is the name of such a link.
    #[must_use]
    pub fn from_ifname(name: &str) -> Option<Self> {
        name.strip_prefix('w')?.parse().ok()
    }
}

impl FromStr for WorkspaceId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bytes: [u8; 10] = text.as_bytes().try_into().map_err(|_| IdError::WorkspaceId(text.into()))?;
        if bytes.iter().all(|byte| BASE32.contains(byte)) {
            Ok(Self(bytes))
        } else {
            Err(IdError::WorkspaceId(text.into()))
        }
    }
}

impl fmt::Display for WorkspaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for WorkspaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A DNS label in lower case: the name of a workspace, a node or a group.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label(String);

/// A node's name: a DNS label, unique in the fabric.
pub type NodeName = Label;

impl Label {
    /// The label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        let ok = (1..=63).contains(&text.len())
            && text.as_bytes().iter().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if ok { Ok(Self(text.into())) } else { Err(IdError::Label(text.into())) }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                out.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(crate) use serde_as_text;
serde_as_text!(WorkspaceId, Label);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_survives_the_way_through_text_and_interface_name(random: [u8; 10]) {
            let id = WorkspaceId::from_random(random);
            prop_assert_eq!(id.to_string().parse::<WorkspaceId>(), Ok(id));
            prop_assert_eq!(WorkspaceId::from_ifname(&id.ifname()), Some(id));
            prop_assert!(id.ifname().len() <= 15);
        }

        #[test]
        fn no_text_makes_an_id_or_a_label_panic(text: String) {
            let _ = text.parse::<WorkspaceId>();
            let _ = text.parse::<Label>();
        }
    }

    #[test]
    fn labels_are_dns_labels_in_lower_case() {
        for good in ["a", "0", "my-box", &"x".repeat(63)] {
            assert!(good.parse::<Label>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ü", &"x".repeat(64)] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }
}
