//! Join tokens: a text that carries the right to join, the CA's pin and where to ask. The store keeps only a hash.
use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use weft_model::{
    api::{TokenReply, TokenRequest},
    object::{Author, Role},
};

use super::MembershipError;
use crate::Store;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Its public id.
    pub id: String,
    /// Its secret.
    pub secret: [u8; 32],
    /// SHA-256 of the CA's certificate.
    pub ca: [u8; 32],
    /// Where the seeds answer.
    pub seeds: Vec<SocketAddr>,
}

/// What the store keeps of a token. Object: `token <id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSpec {
    /// SHA-256 of the secret, hex.
    pub secret_sha256: String,
    /// How many nodes may still join with it.
    pub uses_left: u32,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: u64,
    /// The roles that a node gets which joins with it.
    #[serde(default)]
    pub roles: Vec<Role>,
}

impl FromStr for Token {
    type Err = MembershipError;
    fn from_str(_text: &str) -> Result<Self, MembershipError> {
        todo!()
    }
}

/// The text form, secret included: shown once to who asked for the token.
impl fmt::Display for Token {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).field("seeds", &self.seeds).finish_non_exhaustive()
    }
}

/// Makes a token: the text goes to the caller, the hash to the store.
pub async fn create_token(
    _store: &dyn Store,
    _pin: [u8; 32],
    _seeds: &[SocketAddr],
    _request: &TokenRequest,
    _author: Author,
    _now_ms: u64,
) -> Result<TokenReply, MembershipError> {
    todo!()
}
