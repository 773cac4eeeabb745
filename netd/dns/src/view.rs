//! The view that netd writes: read when it changes, and checked before it replaces the one that is served.
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use weft_model::{address::NAT64_LEN, dns::DnsView};

use crate::{names::Names, synthesis::Translation};

/// Why a view is not taken: names the field and ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The file cannot be read.
    #[error("cannot read it: {0}; make it readable for this process")]
    Read(#[from] io::Error),
    /// Not the file that is expected.
    #[error("it is not a DNS view: {0}; let netd write it anew (restart netd)")]
    Syntax(#[from] serde_json::Error),
    /// Written by a netd of another version.
    #[error("schema: {found} is not the schema {known} that this `netd dns` reads; run netd and `netd dns` of the same version", known = DnsView::SCHEMA)]
    Schema {
        /// The schema of the file.
        found: u32,
    },
    /// The domain is no domain name.
    #[error("domain: {0}; give the fabric a domain such as ws.example.dev")]
    Domain(String),
    /// A NAT64 prefix that is none.
    #[error(
        "{field}: {value} is not the address of a /96 prefix (RFC 6052 2.2); clear its bits 64 to 71 and its last 32 bits"
    )]
    Prefix {
        /// The field.
        field: &'static str,
        /// Its value.
        value: std::net::Ipv6Addr,
    },
}

/// A view that has been checked, with what is derived from it.
#[derive(Debug)]
pub struct View {
    /// As netd wrote it.
    pub raw: DnsView,
    /// Its names.
    pub names: Names,
    /// Its translation.
    pub translation: Translation,
}

impl View {
    /// Reads and checks the bytes of a view; `serial` is for the SOA.
    pub fn parse(bytes: &[u8], serial: u32) -> Result<Self, ViewError> {
        #[derive(Deserialize)]
        struct Versioned {
            schema: u32,
        }
        // The version first: a newer file may differ in everything else.
        let Versioned { schema } = serde_json::from_slice(bytes)?;
        if schema != DnsView::SCHEMA {
            return Err(ViewError::Schema { found: schema });
        }
        let mut raw: DnsView = serde_json::from_slice(bytes)?;
        for (field, value) in [("nat64_global", raw.nat64_global), ("nat64_private", raw.nat64_private)] {
            let host_bits = value.to_bits() & ((1 << (128 - u32::from(NAT64_LEN))) - 1) != 0;
            if host_bits || value.octets()[8] != 0 {
                return Err(ViewError::Prefix { field, value });
            }
        }
        let own = |upstream: &std::net::SocketAddr| raw.listen.iter().any(|listen| upstream.ip() == *listen);
        if raw.upstreams.iter().any(own) {
            tracing::warn!("an upstream is this resolver itself: it is left out");
            let listen = raw.listen.clone();
            raw.upstreams.retain(|upstream| !listen.iter().any(|listen| upstream.ip() == *listen));
        }
        let names = Names::new(&raw, serial).map_err(ViewError::Domain)?;
        let translation = Translation::new(raw.nat64_global, raw.nat64_private, raw.private.clone(), raw.native_aaaa);
        Ok(Self { raw, names, translation })
    }
}

/// The file of the view, and which of its versions has been seen.
#[derive(Debug)]
pub(crate) struct ViewFile {
    path: PathBuf,
    seen: Option<Stamp>,
}

/// What tells one version of a file from another: files are replaced by rename, so the inode changes too.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64, u64);

impl ViewFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file's view if it is another than the one seen last; each version is returned once, good or bad.
    /// `None` also while there is no file: the names outlive whoever writes it.
    pub(crate) fn changed(&mut self) -> Option<Result<View, ViewError>> {
        let metadata = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                let first = self.seen != Some(Stamp(0, 0, 0, 0, 0));
                self.seen = Some(Stamp(0, 0, 0, 0, 0));
                return first.then(|| Err(error.into()));
            }
        };
        let stamp = Stamp(metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len());
        if self.seen.as_ref() == Some(&stamp) {
            return None;
        }
        let serial = u32::try_from(metadata.mtime()).unwrap_or(1);
        self.seen = Some(stamp);
        Some(fs::read(&self.path).map_err(ViewError::from).and_then(|bytes| View::parse(&bytes, serial)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_model::address::{NAT64_GLOBAL, NAT64_PRIVATE};

    fn view() -> DnsView {
        DnsView {
            schema: DnsView::SCHEMA,
            listen: vec!["fd00::53".parse().unwrap()],
            askers: vec!["fd00:0:0:1::/64".parse().unwrap()],
            upstreams: vec!["192.0.2.1:53".parse().unwrap()],
            domain: "ws.test".into(),
            names: vec![],
            nat64_global: NAT64_GLOBAL,
            nat64_private: NAT64_PRIVATE,
            private: vec![],
            native_aaaa: true,
        }
    }

    fn refused(change: impl FnOnce(&mut DnsView)) -> String {
        let mut view = view();
        change(&mut view);
        View::parse(&serde_json::to_vec(&view).unwrap(), 1).unwrap_err().to_string()
    }

    #[test]
    fn a_bad_view_is_refused_with_its_field_and_a_way_out() {
        assert!(refused(|view| view.schema = 99).contains("schema: 99"));
        assert!(refused(|view| view.domain = ".".into()).contains("domain"));
        assert!(refused(|view| view.nat64_global = "64:ff9b::1".parse().unwrap()).contains("nat64_global: 64:ff9b::1"));
        assert!(refused(|view| view.nat64_private = "64:ff9b:1:0:ff00::".parse().unwrap()).contains("nat64_private"));
        assert!(View::parse(b"{\"schema\": 99, \"else\": []}", 1).unwrap_err().to_string().contains("schema: 99"));
        assert!(View::parse(b"half a fi", 1).unwrap_err().to_string().contains("restart netd"));
    }

    #[test]
    fn this_resolver_is_never_its_own_upstream() {
        let mut raw = view();
        raw.upstreams.push("[fd00::53]:53".parse().unwrap());
        let view = View::parse(&serde_json::to_vec(&raw).unwrap(), 1).unwrap();
        assert_eq!(view.raw.upstreams, ["192.0.2.1:53".parse().unwrap()]);
    }

    #[test]
    fn each_version_of_the_file_is_seen_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dns.json");
        let mut file = ViewFile::new(path.clone());
        assert!(file.changed().is_none(), "there is no file");
        fs::write(&path, serde_json::to_vec(&view()).unwrap()).unwrap();
        assert!(file.changed().unwrap().is_ok());
        assert!(file.changed().is_none());
        let next = directory.path().join("next");
        fs::write(&next, b"bad").unwrap();
        fs::rename(&next, &path).unwrap();
        assert!(file.changed().unwrap().is_err());
        assert!(file.changed().is_none(), "a bad file is said once");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = View::parse(&bytes, 1);
        }
    }
}
