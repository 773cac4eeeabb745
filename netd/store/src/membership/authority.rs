//! The fabric's certificate authority: signs one certificate a node, on seeds only.
use std::path::Path;

use weft_model::{NodeName, object::Role};

use super::MembershipError;

/// The fabric's CA: its certificate and private key.
pub struct Authority {}

impl Authority {
    /// A new CA, valid for 20 years from `now_ms`.
    pub fn generate(now_ms: u64) -> Result<Self, MembershipError> {
        todo!("{now_ms}")
    }
    /// Reads `<state>/ca.json`; `None` if there is none.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, MembershipError> {
        todo!("{state_dir:?}")
    }
    /// Writes `<state>/ca.json` (0600), whole.
    pub fn save(&self, state_dir: &Path) -> Result<(), MembershipError> {
        todo!("{state_dir:?}")
    }
    /// The CA's certificate, in PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        todo!()
    }
    /// SHA-256 of the CA's certificate in DER: what a token pins.
    #[must_use]
    pub fn pin(&self) -> [u8; 32] {
        todo!()
    }
    /// A certificate (PEM) for the key that signed the request.
    pub fn issue(
        &self,
        csr_pem: &str,
        node: &NodeName,
        roles: &[Role],
        now_ms: u64,
    ) -> Result<String, MembershipError> {
        todo!("{csr_pem} {node} {roles:?} {now_ms}")
    }
}
