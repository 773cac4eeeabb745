//! What makes a node this node: its name, keys, certificate and prefix, in `<state>/identity.json`.
use std::{fmt, net::SocketAddr, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use weft_model::{NodeName, NodePrefix};

use super::MembershipError;

/// A member's identity.
#[derive(Clone, Serialize, Deserialize)]
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
        todo!()
    }
    /// The keys of `<state>/keys.json`, made and written (0600) if there are none: a join that is tried again uses the same.
    pub fn load_or_generate(state_dir: &Path) -> Result<Self, MembershipError> {
        todo!("{state_dir:?}")
    }
    /// The WireGuard public key, base64.
    pub fn wireguard_public_key(&self) -> Result<String, MembershipError> {
        todo!()
    }
}

impl Identity {
    /// Reads `<state>/identity.json`; `None` if this node is no member yet.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, MembershipError> {
        todo!("{state_dir:?}")
    }
    /// Writes `<state>/identity.json` (0600), whole.
    pub fn save(&self, state_dir: &Path) -> Result<(), MembershipError> {
        todo!("{state_dir:?}")
    }
    /// TLS 1.3 as a server that trusts exactly the fabric's CA; a client's certificate is verified if it shows one.
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, MembershipError> {
        todo!()
    }
    /// TLS 1.3 as a client that trusts exactly the fabric's CA and shows this node's certificate.
    pub fn client_config(&self) -> Result<Arc<rustls::ClientConfig>, MembershipError> {
        todo!()
    }
}
