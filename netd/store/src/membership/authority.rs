//! The fabric's certificate authority: signs one certificate a node, on seeds only.
use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use weft_model::{ApiError, ErrorCode, NodeName, object::Role};
use zeroize::Zeroize;

use super::{
    MembershipError, SEED_NAME, files,
    tls::{self, node_dns_name, sha256, unusable},
};

const DAY: Duration = Duration::from_secs(86_400);
/// A CA's validity. Replacing a CA means joining again.
const CA_DAYS: u32 = 20 * 365;
/// A node certificate's validity. It ends earlier when the node is removed: the seed asks the store on every request.
const NODE_DAYS: u32 = 10 * 365;
/// Largest signing request.
const CSR_LIMIT: usize = 8 << 10;

/// The fabric's CA: its certificate and private key.
pub struct Authority {
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

/// `ca.json`.
#[derive(Serialize, Deserialize)]
struct CaFile {
    certificate_pem: String,
    private_key_pem: String,
}

impl Drop for CaFile {
    fn drop(&mut self) {
        self.private_key_pem.zeroize();
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", hex::encode(self.pin()))
    }
}

impl Authority {
    /// A new CA, valid for 20 years from the day before `now_ms`.
    pub fn generate(now_ms: u64) -> Result<Self, MembershipError> {
        let failed = |error: rcgen::Error| unusable("a new CA", &error);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = validity(now_ms, CA_DAYS);
        params.distinguished_name = common_name("Weft fabric CA");
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // A CA that leaks must not be able to speak for names outside of fabrics.
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("weft.internal".into())],
            excluded_subtrees: Vec::new(),
        });
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self { certificate_pem: certificate.pem(), certificate: certificate.der().clone(), key })
    }

    fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("ca.json")
    }

    /// Reads `<state>/ca.json`; `None` if there is none.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, MembershipError> {
        let Some(file) = files::read::<CaFile>(&Self::path(state_dir))? else { return Ok(None) };
        let what = "the CA in ca.json";
        let key = KeyPair::from_pem(&file.private_key_pem).map_err(|error| unusable(what, &error))?;
        let certificate = tls::certificate(&file.certificate_pem, what)?;
        Ok(Some(Self { certificate_pem: file.certificate_pem.clone(), certificate, key }))
    }

    /// Writes `<state>/ca.json` (0600), whole.
    pub fn save(&self, state_dir: &Path) -> Result<(), MembershipError> {
        let private_key_pem = self.key.serialize_pem();
        files::write(&Self::path(state_dir), &CaFile { certificate_pem: self.certificate_pem.clone(), private_key_pem })
    }

    /// The CA's certificate, in PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the CA's certificate in DER: what a token pins.
    #[must_use]
    pub fn pin(&self) -> [u8; 32] {
        sha256(&self.certificate)
    }

    /// A certificate (PEM) with the node's name for the key that signed the request. Nothing else of the request is
    /// taken over. A node with the role `seed` may also speak as one.
    pub fn issue(
        &self,
        csr: &SigningRequest,
        node: &NodeName,
        roles: &[Role],
        now_ms: u64,
    ) -> Result<String, MembershipError> {
        let failed = |error: rcgen::Error| unusable("a node's certificate", &error);
        let mut names = vec![node_dns_name(node)];
        if roles.contains(&Role::Seed) {
            names.push(SEED_NAME.into());
        }
        let mut params = validity(now_ms, NODE_DAYS);
        params.subject_alt_names = CertificateParams::new(names).map_err(failed)?.subject_alt_names;
        params.distinguished_name = common_name(node.as_str());
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key).map_err(failed)?;
        Ok(params.signed_by(&csr.public_key, &issuer).map_err(failed)?.pem())
    }
}

/// A certificate signing request whose signature proves that the sender has the key.
pub struct SigningRequest {
    public_key: rcgen::PublicKey,
    /// SHA-256 of the public key (SubjectPublicKeyInfo), hex.
    pub tls_key_sha256: String,
}

impl SigningRequest {
    /// Reads a request in PEM and verifies its signature. Only ECDSA P-256 keys are taken.
    pub fn parse(pem: &str) -> Result<Self, MembershipError> {
        let refuse = |reason: &str| {
            let hint = "upgrade the joining node, or try again there";
            MembershipError::Refused(
                ApiError::new(ErrorCode::Invalid, format!("the certificate signing request {reason}"), hint)
                    .blame("csr_pem", format!("{} bytes", pem.len())),
            )
        };
        if pem.len() > CSR_LIMIT {
            return Err(refuse("is too long"));
        }
        let request = CertificateSigningRequestParams::from_pem(pem).map_err(|error| match error {
            rcgen::Error::InvalidCertificationRequestSignature => refuse("does not prove that its sender has the key"),
            _ => refuse("cannot be read"),
        })?;
        let public_key = request.public_key;
        if *public_key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(refuse("is not of an ECDSA P-256 key"));
        }
        let tls_key_sha256 = hex::encode(sha256(&public_key.subject_public_key_info()));
        Ok(Self { public_key, tls_key_sha256 })
    }
}

fn validity(now_ms: u64, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    // A day back: the clocks of nodes differ.
    params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_millis(now_ms).saturating_sub(DAY);
    params.not_after = params.not_before + DAY * (days + 1);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// 127 random bits, positive (RFC 5280 4.1.2.2).
fn serial() -> Result<SerialNumber, MembershipError> {
    let mut bytes = super::random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
