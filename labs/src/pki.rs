//! A certificate authority made for one lab, and the proxy's certificate for every name below the fabric's domain.
use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};

/// Where the lab's certificates are.
#[derive(Debug, Clone)]
pub struct Pki {
    /// The authority's certificate, in PEM: what a visitor trusts.
    pub ca: PathBuf,
    /// The proxy's certificate, in PEM.
    pub chain: PathBuf,
    /// Its key, in PEM, readable by root alone.
    pub key: PathBuf,
}

impl Pki {
    /// Makes an authority and a certificate for `*.<domain>`, in files below `dir`.
    pub fn create(dir: &Path, domain: &str) -> Result<Self> {
        let dir = dir.join("pki");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let pki = Self { ca: dir.join("ca.pem"), chain: dir.join("chain.pem"), key: dir.join("key.pem") };
        let mut authority = CertificateParams::new(Vec::new()).context("cannot describe the authority")?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        authority.distinguished_name.push(DnType::CommonName, "Weft lab authority");
        let authority_key = KeyPair::generate().context("cannot make the authority's key")?;
        let authority_certificate = authority.self_signed(&authority_key).context("cannot sign the authority")?;
        let issuer = Issuer::new(authority, authority_key);
        let names = vec![format!("*.{domain}"), domain.to_owned()];
        let certificate = CertificateParams::new(names).context("the domain is no DNS name")?;
        let key = KeyPair::generate().context("cannot make the proxy's key")?;
        let certificate = certificate.signed_by(&key, &issuer).context("cannot sign the proxy's certificate")?;
        write(&pki.ca, &authority_certificate.pem(), 0o644)?;
        write(&pki.chain, &certificate.pem(), 0o644)?;
        write(&pki.key, &key.serialize_pem(), 0o600)?;
        Ok(pki)
    }

    /// A TLS client that trusts this authority alone.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let certificate = CertificateDer::from_pem_file(&self.ca).context("cannot read the lab's authority")?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate).context("cannot trust the lab's authority")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.context("no TLS version is left")?.with_root_certificates(roots).with_no_client_auth();
        Ok(Arc::new(config))
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let file = fs::File::options().write(true).create(true).truncate(true).mode(mode).open(path);
    let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}
