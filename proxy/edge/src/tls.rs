//! TLS of the listeners: the certificate from files, re-read when they change, and what is offered to callers.
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use thiserror::Error;

/// Why the certificate cannot be shown.
#[derive(Debug, Error)]
pub(crate) enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {field} = {path}: {source}; put the file there, readable for this user, or correct the path")]
    Read {
        /// The configuration's field.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file holds no PEM of the right kind.
    #[error("{field} = {path} holds no {what} in PEM ({reason}): it must have a line \"-----BEGIN {begin}-----\"")]
    Pem {
        /// The configuration's field.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// How that begins.
        begin: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// They do not fit together.
    #[error(
        "the key {key} and the certificate {certificate} do not work together: {reason}; name the files of one pair"
    )]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        reason: rustls::Error,
    },
}

/// What tells one state of a file from another without reading it.
type Stamp = Option<(SystemTime, u64)>;

/// The certificate that every caller is shown, replaced when its files change.
pub(crate) struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    shown: ArcSwap<CertifiedKey>,
    seen: Mutex<(Stamp, Stamp)>,
}

impl Certificate {
    /// Reads the files.
    pub(crate) fn read(certificate: &Path, key: &Path) -> Result<Self, CertificateError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let seen = (stamp(certificate), stamp(key));
        let shown = ArcSwap::from_pointee(load(certificate, key, &provider)?);
        Ok(Self { certificate: certificate.into(), key: key.into(), provider, shown, seen: Mutex::new(seen) })
    }

    /// Re-reads the files if they have changed; what was shown before stays if they cannot be used.
    /// Returns whether a new certificate is shown.
    pub(crate) fn refresh(&self) -> Result<bool, CertificateError> {
        let now = (stamp(&self.certificate), stamp(&self.key));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now {
            return Ok(false);
        }
        // Remembered even if loading fails: one complaint a change, not one a look.
        *seen = now;
        let fresh = load(&self.certificate, &self.key, &self.provider)?;
        let changed = fresh.cert != self.shown.load().cert;
        self.shown.store(Arc::new(fresh));
        Ok(changed)
    }

    /// The listeners' TLS: 1.2 and 1.3, HTTP/2 preferred, tickets for resumption.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = rustls::crypto::ring::Ticketer::new()?;
        Ok(config)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.certificate.display())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.load_full())
    }
}

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn load(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, CertificateError> {
    let read = |field, path: &Path| {
        std::fs::read(path).map_err(|source| CertificateError::Read { field, path: path.into(), source })
    };
    let no_certificate = |reason: String| CertificateError::Pem {
        field: "certificate",
        path: certificate.into(),
        what: "certificate",
        begin: "CERTIFICATE",
        reason,
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read("certificate", certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|error| no_certificate(error.to_string()))?;
    if chain.is_empty() {
        return Err(no_certificate("nothing found".into()));
    }
    let private = PrivateKeyDer::from_pem_slice(&read("key", key)?).map_err(|error| CertificateError::Pem {
        field: "key",
        path: key.into(),
        what: "private key",
        begin: "PRIVATE KEY",
        reason: error.to_string(),
    })?;
    CertifiedKey::from_der(chain, private, provider).map_err(|reason| CertificateError::Pair {
        certificate: certificate.into(),
        key: key.into(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(folder: &Path) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec!["*.ws.dev".into()]).unwrap();
        let (certificate, key) = (folder.join("c.pem"), folder.join("k.pem"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (certificate, key)
    }

    #[test]
    fn a_changed_pair_is_shown_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = pair(folder.path());
        let shown = Certificate::read(&certificate, &key).unwrap();
        assert!(!shown.refresh().unwrap());
        let before = shown.shown.load().cert.clone();
        std::fs::write(&certificate, "half a file").unwrap();
        assert!(matches!(shown.refresh(), Err(CertificateError::Pem { field: "certificate", .. })));
        assert!(!shown.refresh().unwrap(), "said once");
        assert_eq!(shown.shown.load().cert, before);
        pair(folder.path());
        assert!(shown.refresh().unwrap());
        assert_ne!(shown.shown.load().cert, before);
    }

    #[test]
    fn a_missing_file_a_wrong_file_and_a_foreign_key_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = pair(folder.path());
        let error = |certificate: &Path, key: &Path| Certificate::read(certificate, key).unwrap_err().to_string();
        let missing = folder.path().join("nowhere.pem");
        assert!(error(&missing, &key).contains("certificate = "), "{}", error(&missing, &key));
        assert!(error(&certificate, &missing).contains("put the file there"));
        assert!(error(&key, &key).contains("BEGIN CERTIFICATE"));
        assert!(error(&certificate, &certificate).contains("PRIVATE KEY"));
        let other = folder.path().join("other");
        std::fs::create_dir(&other).unwrap();
        assert!(error(&certificate, &pair(&other).1).contains("one pair"));
    }
}
