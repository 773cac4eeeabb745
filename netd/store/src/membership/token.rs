//! Join tokens: a text that carries the right to join, the CA's pin and where to ask. The store keeps only a hash.
use std::{fmt, mem::take, net::SocketAddr, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use weft_model::{
    ApiError, ErrorCode,
    api::{TokenReply, TokenRequest},
    object::{Author, Kind, Role},
};
use zeroize::{Zeroize, Zeroizing};

use super::{MembershipError, tls::sha256};
use crate::{Store, Txn};

/// What a token's text begins with: the format's version.
const MARK: &str = "weft1.";
/// Longest text: room for dozens of endpoints.
const LIMIT: usize = 4096;
/// Longest life: a year.
const LONGEST_S: u64 = 366 * 86_400;
/// Most nodes that one token admits.
const MOST_USES: u32 = 10_000;

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

/// The JSON inside the text.
#[derive(Serialize, Deserialize)]
struct Content {
    id: String,
    secret: String,
    ca: String,
    seeds: Vec<SocketAddr>,
}

impl Drop for Content {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl FromStr for Token {
    type Err = MembershipError;
    fn from_str(text: &str) -> Result<Self, MembershipError> {
        let bad = |reason: &str| MembershipError::Token { reason: reason.into() };
        let text = text.trim();
        if text.len() > LIMIT {
            return Err(bad("it is too long"));
        }
        let encoded = text.strip_prefix(MARK).ok_or_else(|| match text.split_once('.') {
            Some((mark, _)) if mark.starts_with("weft") => bad("its format is of another version of Weft"),
            _ => bad("it does not begin with weft1."),
        })?;
        let json = URL_SAFE_NO_PAD.decode(encoded).map(Zeroizing::new);
        let json = json.map_err(|_| bad("part of it is missing or altered (not base64url)"))?;
        // The parser's own message could show the secret.
        let mut content: Content = serde_json::from_slice(&json)
            .map_err(|_| bad("part of it is missing or altered (its fields cannot be read)"))?;
        let secret = URL_SAFE_NO_PAD.decode(content.secret.as_bytes()).map(Zeroizing::new);
        let secret = secret.ok().and_then(|secret| <[u8; 32]>::try_from(secret.as_slice()).ok());
        let mut ca = [0; 32];
        hex::decode_to_slice(&content.ca, &mut ca).map_err(|_| bad("its CA pin is not a SHA-256"))?;
        if content.id.is_empty()
            || content.id.len() > 32
            || !content.id.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(bad("its id is not one"));
        }
        if content.seeds.is_empty() {
            return Err(bad("it names no seed"));
        }
        let secret = secret.ok_or_else(|| bad("its secret is not 32 bytes long"))?;
        Ok(Self { id: take(&mut content.id), secret, ca, seeds: take(&mut content.seeds) })
    }
}

/// The text form, secret included: shown once to who asked for the token.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = Content {
            id: self.id.clone(),
            secret: self.secret_text(),
            ca: hex::encode(self.ca),
            seeds: self.seeds.clone(),
        };
        let json = serde_json::to_vec(&content).map(Zeroizing::new).map_err(|_| fmt::Error)?;
        write!(f, "{MARK}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).field("seeds", &self.seeds).finish_non_exhaustive()
    }
}

impl Token {
    /// The secret as it travels in a request.
    pub(super) fn secret_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.secret)
    }
}

/// The hash of a secret as it came in a request; of nothing if it is malformed, which no token's hash is.
pub(super) fn hash_of(secret_text: &str) -> [u8; 32] {
    let secret = URL_SAFE_NO_PAD.decode(secret_text).map(Zeroizing::new).unwrap_or_default();
    sha256(&secret)
}

/// Makes a token: the text goes to the caller, the hash to the store.
pub async fn create_token(
    store: &dyn Store,
    pin: [u8; 32],
    seeds: &[SocketAddr],
    request: &TokenRequest,
    author: Author,
    now_ms: u64,
) -> Result<TokenReply, MembershipError> {
    check_request(request)?;
    if seeds.is_empty() {
        let hint = "wait until the node has an uplink, or set its addresses in netd.toml";
        return Err(ApiError::new(
            ErrorCode::NotReady,
            "no address is known at which other nodes reach this seed",
            hint,
        )
        .into());
    }
    let token =
        Token { id: hex::encode(super::random::<6>()?), secret: super::random()?, ca: pin, seeds: seeds.to_vec() };
    let spec = TokenSpec {
        secret_sha256: hex::encode(sha256(&token.secret)),
        uses_left: request.uses,
        expires_ms: now_ms.saturating_add(request.ttl_s * 1000),
        roles: request.roles.clone(),
    };
    let txn = Txn::new(author, now_ms).expect_absent(Kind::Token, &token.id).put_spec(Kind::Token, &token.id, &spec);
    store.commit(txn).await?;
    Ok(TokenReply { token: token.to_string(), id: token.id.clone(), expires_ms: spec.expires_ms })
}

fn check_request(request: &TokenRequest) -> Result<(), ApiError> {
    if !(1..=MOST_USES).contains(&request.uses) {
        let hint = format!("give a number from 1 to {MOST_USES}");
        return Err(
            ApiError::new(ErrorCode::Invalid, "a token cannot have this many uses", hint).blame("uses", request.uses)
        );
    }
    if !(1..=LONGEST_S).contains(&request.ttl_s) {
        let hint = format!("give 1 to {LONGEST_S} seconds");
        return Err(
            ApiError::new(ErrorCode::Invalid, "a token cannot live this long", hint).blame("ttl_s", request.ttl_s)
        );
    }
    if request.roles.contains(&Role::Seed) {
        let message = "a node cannot join as a seed: the embedded store has one";
        return Err(ApiError::new(ErrorCode::Invalid, message, "leave the role out").blame("roles", "seed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        Token { id: "0a1b2c".into(), secret: [7; 32], ca: [9; 32], seeds: vec!["[2001:db8::1]:7443".parse().unwrap()] }
    }

    #[test]
    fn a_token_survives_its_text_and_hides_its_secret() {
        let text = token().to_string();
        assert!(text.starts_with("weft1.") && !text.contains('='));
        assert_eq!(format!(" {text}\n").parse::<Token>().unwrap(), token());
        assert_eq!(format!("{:?}", token()), "Token { id: \"0a1b2c\", seeds: [[2001:db8::1]:7443], .. }");
    }

    #[test]
    fn what_is_no_token_says_what_is_wrong_and_never_shows_it() {
        let text = token().to_string();
        let json = |json: &str| format!("weft1.{}", URL_SAFE_NO_PAD.encode(json));
        let pin = "09".repeat(32);
        for (bad, says) in [
            (String::new(), "does not begin with weft1."),
            ("hunter2".into(), "does not begin with weft1."),
            (text.replace("weft1", "weft2"), "another version"),
            (text[..text.len() - 7].into(), "missing or altered"),
            (format!("{text}!"), "missing or altered"),
            ("weft1.".into(), "missing or altered"),
            (format!("weft1.{}", "A".repeat(5000)), "too long"),
            (json(r#"{"id":"a","secret":["hunter2"],"ca":"","seeds":[]}"#), "fields cannot be read"),
            (json(&format!(r#"{{"id":"a","secret":"AAAA","ca":"{pin}","seeds":["192.0.2.1:7443"]}}"#)), "32 bytes"),
            (json(r#"{"id":"a","secret":"AAAA","ca":"09","seeds":["192.0.2.1:7443"]}"#), "SHA-256"),
            (json(&format!(r#"{{"id":"a","secret":"AAAA","ca":"{pin}","seeds":[]}}"#)), "no seed"),
            (json(&format!(r#"{{"id":"../x","secret":"AAAA","ca":"{pin}","seeds":["192.0.2.1:7443"]}}"#)), "its id"),
        ] {
            let error = bad.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("copy it whole"), "{bad}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String, json: String, bytes: Vec<u8>) {
            let _ = text.parse::<Token>();
            let _ = format!("weft1.{text}").parse::<Token>();
            let _ = format!("weft1.{}", URL_SAFE_NO_PAD.encode(json)).parse::<Token>();
            let _ = format!("weft1.{}", URL_SAFE_NO_PAD.encode(bytes)).parse::<Token>();
        }

        #[test]
        fn an_altered_character_never_gives_the_same_token(position in 6usize..150, letter in "[A-Za-z0-9_-]") {
            let text = token().to_string();
            let mut altered = text.clone();
            altered.replace_range(position..=position, &letter);
            if altered != text {
                prop_assert_ne!(altered.parse::<Token>().ok(), Some(token()));
            }
        }
    }
}
