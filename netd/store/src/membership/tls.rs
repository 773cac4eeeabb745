//! TLS of the fabric: TLS 1.3 between nodes that trust exactly one CA, and how names stand in certificates.
use std::sync::Arc;

use ring::digest;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring::default_provider, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use weft_model::NodeName;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::MembershipError;

/// The name in every seed's certificate, and in no other node's: clients of the store insist on it.
pub const SEED_NAME: &str = "seed.weft.internal";
/// What follows a node's name in its certificate.
const NODE_SUFFIX: &str = ".node.weft.internal";
/// Certificates that a server may send besides its own.
const CHAIN: usize = 4;

/// A node's name as it stands in its certificate: `<node>.node.weft.internal`.
#[must_use]
pub fn node_dns_name(node: &NodeName) -> String {
    format!("{node}{NODE_SUFFIX}")
}

pub(crate) fn seed_server_name() -> ServerName<'static> {
    ServerName::try_from(SEED_NAME).expect("the seeds' name is a DNS name")
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Who a verified certificate stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The node.
    pub(crate) node: NodeName,
    /// SHA-256 of its public key (SubjectPublicKeyInfo), hex.
    pub(crate) tls_key_sha256: String,
}

impl Peer {
    /// Reads a certificate that has been verified already; `None` if it names no node, or several.
    pub(crate) fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let mut nodes = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => name.strip_suffix(NODE_SUFFIX),
            _ => None,
        });
        let node = nodes.next()?.parse().ok()?;
        if nodes.next().is_some() {
            return None;
        }
        Some(Self { node, tls_key_sha256: hex::encode(sha256(certificate.public_key().raw)) })
    }
}

/// The one certificate of a PEM text.
pub(crate) fn certificate(pem: &str, what: &'static str) -> Result<CertificateDer<'static>, MembershipError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unusable(what, &error))
}

pub(crate) fn unusable(what: &'static str, reason: &dyn std::fmt::Display) -> MembershipError {
    MembershipError::Crypto { what, reason: reason.to_string(), hint: "restore it from a copy, or join again" }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

fn roots(ca: CertificateDer<'_>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    Ok(Arc::new(roots))
}

/// What a TLS end of this node needs.
pub(super) struct Credentials<'a> {
    pub(super) certificate_pem: &'a str,
    pub(super) key_pem: &'a str,
    pub(super) ca_pem: &'a str,
}

impl Credentials<'_> {
    fn load(
        &self,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>, CertificateDer<'static>), MembershipError> {
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes());
        Ok((
            certificate(self.certificate_pem, "this node's certificate")?,
            key.map_err(|error| unusable("this node's TLS key", &error))?,
            certificate(self.ca_pem, "the fabric's CA")?,
        ))
    }

    pub(super) fn server(&self) -> Result<Arc<ServerConfig>, MembershipError> {
        let (own, key, ca) = self.load()?;
        let build = || -> Result<ServerConfig, Box<dyn std::error::Error>> {
            let clients = WebPkiClientVerifier::builder_with_provider(roots(ca.clone())?, provider());
            // Optional, because a node that joins has none yet; the API asks for one on every other path.
            let clients = clients.allow_unauthenticated().build()?;
            let config = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])?
                .with_client_cert_verifier(clients)
                // The CA goes with it: a node that joins knows only the CA's hash.
                .with_single_cert(vec![own, ca.clone()], key)?;
            Ok(config)
        };
        build().map(Arc::new).map_err(|error| unusable("this node's TLS identity", &error))
    }

    pub(super) fn client(&self) -> Result<Arc<ClientConfig>, MembershipError> {
        let (own, key, ca) = self.load()?;
        let build = || -> Result<ClientConfig, Error> {
            ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])?
                .with_root_certificates(roots(ca)?)
                .with_client_auth_cert(vec![own], key)
        };
        build().map(Arc::new).map_err(|error| unusable("this node's TLS identity", &error))
    }
}

/// A client that has no certificate yet and knows the CA only by its hash.
pub(super) fn joining_client(pin: [u8; 32]) -> Result<Arc<ClientConfig>, MembershipError> {
    let provider = provider();
    let config = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13]);
    let config = config.map_err(|error| unusable("TLS", &error))?;
    let verifier = Arc::new(PinnedCa { pin, provider });
    Ok(Arc::new(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

/// Verifies that a certificate is signed by the CA, and gives who it stands for.
pub(super) fn verify_node(certificate_pem: &str, ca_pem: &str, now_ms: u64) -> Result<Peer, MembershipError> {
    let what = "the certificate that the seed issued";
    let leaf = certificate(certificate_pem, what)?;
    let verify = || -> Result<(), Box<dyn std::error::Error>> {
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider()).build()?;
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(now_ms));
        verifier.verify_client_cert(&leaf, &[], now)?;
        Ok(())
    };
    verify().map_err(|error| unusable(what, &error))?;
    Peer::read(&leaf).ok_or_else(|| unusable(what, &"it names no node"))
}

/// Trusts the one CA whose certificate has the pinned hash, and what that CA signed as a seed.
#[derive(Debug)]
struct PinnedCa {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().take(CHAIN).find(|certificate| sha256(certificate) == self.pin);
        let ca = pinned.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let roots = roots(CertificateDer::from(ca.as_ref()))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone());
        let verifier = verifier.build().map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
