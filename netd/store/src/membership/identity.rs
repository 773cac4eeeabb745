//! What makes a node this node: its name, keys, certificate and prefix, in `<state>/identity.json`.
use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde::{Deserialize, Serialize};
use weft_model::{NodeName, NodePrefix};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

use super::{
    MembershipError, files,
    tls::{Credentials, node_dns_name, unusable},
};

/// A member's identity.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The node's name.
    pub node: NodeName,
    /// Its prefix.
    pub prefix: NodePrefix,
    /// Whether it holds the store (`store.db`, `ca.json`); else it asks the seeds.
    pub seed: bool,
    /// Where the seeds answer.
    pub seeds: Vec<SocketAddr>,
    /// Its keys.
    pub keys: NodeKeys,
    /// Its certificate, in PEM.
    pub certificate_pem: String,
    /// The fabric's CA, in PEM.
    pub ca_pem: String,
}

/// A node's private keys, made before it is a member so that a join can be retried.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeKeys {
    /// Curve25519, base64, as `wg genkey` prints it.
    pub wireguard_private_key: String,
    /// ECDSA P-256, PKCS #8, in PEM.
    pub tls_private_key_pem: String,
}

impl Drop for NodeKeys {
    fn drop(&mut self) {
        self.wireguard_private_key.zeroize();
        self.tls_private_key_pem.zeroize();
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("node", &self.node).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKeys(redacted)")
    }
}

impl NodeKeys {
    /// New keys.
    pub fn generate() -> Result<Self, MembershipError> {
        let secret = StaticSecret::from(super::random()?);
        let tls = KeyPair::generate().map_err(|error| unusable("a new TLS key", &error))?;
        Ok(Self {
            wireguard_private_key: STANDARD.encode(Zeroizing::new(secret.to_bytes())),
            tls_private_key_pem: tls.serialize_pem(),
        })
    }

    fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("keys.json")
    }

    /// The keys of `<state>/keys.json`, made and written (0600) if there are none: a join that is tried again uses the
    /// same. The file goes when the identity is written.
    pub fn load_or_generate(state_dir: &Path) -> Result<Self, MembershipError> {
        let path = Self::path(state_dir);
        if let Some(keys) = files::read(&path)? {
            return Ok(keys);
        }
        let keys = Self::generate()?;
        files::write(&path, &keys)?;
        Ok(keys)
    }

    /// The WireGuard public key, base64.
    pub fn wireguard_public_key(&self) -> Result<String, MembershipError> {
        let what = "the WireGuard private key";
        let bytes = STANDARD.decode(&self.wireguard_private_key).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| unusable(what, &"it is not base64"))?;
        let secret: [u8; 32] = bytes.as_slice().try_into().map_err(|_| unusable(what, &"it is not 32 bytes long"))?;
        Ok(STANDARD.encode(PublicKey::from(&StaticSecret::from(secret))))
    }

    /// A certificate signing request with the node's name, in PEM.
    pub(super) fn signing_request(&self, node: &NodeName) -> Result<String, MembershipError> {
        let failed = |error: rcgen::Error| unusable("this node's TLS key", &error);
        let key = KeyPair::from_pem(&self.tls_private_key_pem).map_err(failed)?;
        let mut params = CertificateParams::new([node_dns_name(node)]).map_err(failed)?;
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)
    }
}

impl Identity {
    fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("identity.json")
    }

    /// Reads `<state>/identity.json`; `None` if this node is no member yet.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, MembershipError> {
        files::read(&Self::path(state_dir))
    }

    /// Writes `<state>/identity.json` (0600), whole; then the keys of an unfinished join go.
    pub fn save(&self, state_dir: &Path) -> Result<(), MembershipError> {
        files::write(&Self::path(state_dir), self)?;
        files::remove(&NodeKeys::path(state_dir))
    }

    fn credentials(&self) -> Credentials<'_> {
        Credentials {
            certificate_pem: &self.certificate_pem,
            key_pem: &self.keys.tls_private_key_pem,
            ca_pem: &self.ca_pem,
        }
    }

    /// TLS 1.3 as a server that trusts exactly the fabric's CA; a client's certificate is verified if it shows one.
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, MembershipError> {
        self.credentials().server()
    }

    /// TLS 1.3 as a client that trusts exactly the fabric's CA and shows this node's certificate.
    pub fn client_config(&self) -> Result<Arc<rustls::ClientConfig>, MembershipError> {
        self.credentials().client()
    }
}
