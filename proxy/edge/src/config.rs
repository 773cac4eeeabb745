//! proxy.toml: where to listen, which certificate to show, where netd is, and the limits. Every error names the field.
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use thiserror::Error;

/// Why the configuration cannot be used.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration {path}: {source}; create it (`weft-proxy --help` shows one) or name another with --config"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not TOML, has unknown fields, or lacks one.
    #[error("the configuration {path} is wrong: {message}; correct it and start again")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, field and reason.
        message: String,
    },
    /// A field's value cannot be used.
    #[error("{field} = {value:?} in {path}: {way_out}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What to write instead.
        way_out: &'static str,
    },
}

/// The file's fields as they are written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Vec<String>,
    #[serde(default)]
    redirect: Vec<String>,
    #[serde(default)]
    metrics: Option<String>,
    certificate: PathBuf,
    key: PathBuf,
    #[serde(default)]
    domain: Option<String>,
    #[serde(default)]
    api: Option<PathBuf>,
    #[serde(default)]
    limits: LimitFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitFields {
    connections: usize,
    header_bytes: usize,
    header_timeout_s: u64,
    handshake_timeout_s: u64,
    idle_timeout_s: u64,
    body_timeout_s: u64,
    stream_idle_timeout_s: u64,
    connect_timeout_s: u64,
    drain_timeout_s: u64,
}

impl Default for LimitFields {
    fn default() -> Self {
        Self {
            connections: 20_000,
            header_bytes: 64 << 10,
            header_timeout_s: 15,
            handshake_timeout_s: 10,
            idle_timeout_s: 75,
            body_timeout_s: 60,
            stream_idle_timeout_s: 3600,
            connect_timeout_s: 5,
            drain_timeout_s: 10,
        }
    }
}

/// Where the metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MetricsAddress {
    /// On a loopback address.
    Tcp(SocketAddr),
    /// On a unix socket.
    Unix(PathBuf),
}

/// What one caller may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at a time, over all listeners.
    pub(crate) connections: usize,
    /// Bytes of one request's header section (HTTP/1), or of its decoded header list (HTTP/2).
    pub(crate) header_bytes: usize,
    /// From a request's first byte to its last header line.
    pub(crate) header_timeout: Duration,
    /// For a TLS handshake.
    pub(crate) handshake_timeout: Duration,
    /// Between requests of a connection.
    pub(crate) idle_timeout: Duration,
    /// Between two pieces of a request's body.
    pub(crate) body_timeout: Duration,
    /// Without a byte in a response, or in either direction of a WebSocket.
    pub(crate) stream_idle_timeout: Duration,
    /// For a connection to a workspace.
    pub(crate) connect_timeout: Duration,
    /// For what is in progress at a shutdown.
    pub(crate) drain_timeout: Duration,
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where TLS is served.
    pub(crate) listen: Vec<SocketAddr>,
    /// Where plain HTTP is answered with a redirect to https.
    pub(crate) redirect: Vec<SocketAddr>,
    /// Where metrics are served, if anywhere.
    pub(crate) metrics: Option<MetricsAddress>,
    /// The certificate chain, in PEM, the server's own first.
    pub(crate) certificate: PathBuf,
    /// Its private key, in PEM.
    pub(crate) key: PathBuf,
    /// Overrides the fabric's domain.
    pub(crate) domain: Option<String>,
    /// netd's socket.
    pub(crate) api: PathBuf,
    /// The limits.
    pub(crate) limits: Limits,
}

impl Config {
    /// Reads and checks the file; `run_dir` gives the default of `api`.
    pub(crate) fn read(path: &Path, run_dir: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(&text, path, run_dir)
    }

    fn parse(text: &str, path: &Path, run_dir: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax { path: path.into(), message: error.to_string().trim_end().into() })?;
        let wrong = |field, value: &dyn ToString, way_out| ConfigError::Value {
            path: path.into(),
            field,
            value: value.to_string(),
            way_out,
        };
        if file.listen.is_empty() {
            return Err(wrong("listen", &"", r#"name at least one address, for example ["[::]:443", "0.0.0.0:443"]"#));
        }
        let addresses = |field, texts: &[String]| {
            let parse = |text: &String| {
                text.parse::<SocketAddr>().map_err(|_| {
                    wrong(field, text, "write an address and a port, for example \"[::]:443\" or \"0.0.0.0:443\"")
                })
            };
            texts.iter().map(parse).collect::<Result<Vec<_>, _>>()
        };
        let metrics = match file.metrics {
            None => None,
            Some(text) if text.starts_with('/') => Some(MetricsAddress::Unix(text.into())),
            Some(text) => match text.parse::<SocketAddr>() {
                Ok(address) if address.ip().is_loopback() => Some(MetricsAddress::Tcp(address)),
                _ => {
                    let way_out =
                        "write a loopback address with a port (\"127.0.0.1:9187\") or a socket's absolute path";
                    return Err(wrong("metrics", &text, way_out));
                }
            },
        };
        let domain = match file.domain.map(|domain| domain.trim_matches('.').to_ascii_lowercase()) {
            Some(domain)
                if domain.is_empty() || domain.split('.').any(|label| label.parse::<weft_model::Label>().is_err()) =>
            {
                return Err(wrong(
                    "domain",
                    &domain,
                    "write a DNS name such as \"ws.example.dev\", or leave it out to serve the fabric's",
                ));
            }
            domain => domain,
        };
        let limits = file.limits.check().map_err(|(field, value)| {
            wrong(
                field,
                &value,
                "write a number of at least 1 (header_bytes: 1024 to 1048576), or leave it out for the default",
            )
        })?;
        Ok(Self {
            listen: addresses("listen", &file.listen)?,
            redirect: addresses("redirect", &file.redirect)?,
            metrics,
            certificate: file.certificate,
            key: file.key,
            domain,
            api: file.api.unwrap_or_else(|| run_dir.join("netd.sock")),
            limits,
        })
    }
}

impl LimitFields {
    fn check(self) -> Result<Limits, (&'static str, u64)> {
        let seconds = |field, value: u64| {
            if (1..=30 * 86_400).contains(&value) { Ok(Duration::from_secs(value)) } else { Err((field, value)) }
        };
        if self.connections == 0 || self.connections > tokio::sync::Semaphore::MAX_PERMITS {
            return Err(("limits.connections", self.connections as u64));
        }
        if !(1 << 10..=1 << 20).contains(&self.header_bytes) {
            return Err(("limits.header_bytes", self.header_bytes as u64));
        }
        Ok(Limits {
            connections: self.connections,
            header_bytes: self.header_bytes,
            header_timeout: seconds("limits.header_timeout_s", self.header_timeout_s)?,
            handshake_timeout: seconds("limits.handshake_timeout_s", self.handshake_timeout_s)?,
            idle_timeout: seconds("limits.idle_timeout_s", self.idle_timeout_s)?,
            body_timeout: seconds("limits.body_timeout_s", self.body_timeout_s)?,
            stream_idle_timeout: seconds("limits.stream_idle_timeout_s", self.stream_idle_timeout_s)?,
            connect_timeout: seconds("limits.connect_timeout_s", self.connect_timeout_s)?,
            drain_timeout: seconds("limits.drain_timeout_s", self.drain_timeout_s)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/weft/proxy.toml"), Path::new("/run/weft"))
    }

    const SMALL: &str = "listen = [\"[::]:443\", \"0.0.0.0:443\"]\ncertificate = \"/c.pem\"\nkey = \"/k.pem\"\n";

    #[test]
    fn the_smallest_file_is_enough() {
        let config = parse(SMALL).unwrap();
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.api, Path::new("/run/weft/netd.sock"));
        assert_eq!(config.domain, None);
        assert_eq!(config.limits.header_timeout, Duration::from_secs(15));
    }

    #[test]
    fn the_example_in_the_help_shows_every_field_with_its_default() {
        let example: String = crate::EXAMPLE
            .lines()
            .filter_map(|line| line.strip_prefix("  "))
            .map(|line| format!("{}\n", line.trim_start_matches("# ")))
            .collect();
        let shown = parse(&example).unwrap();
        assert_eq!(shown.domain.as_deref(), Some("ws.example.dev"));
        assert_eq!(format!("{:?}", shown.limits), format!("{:?}", parse(SMALL).unwrap().limits));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value_and_the_way_out() {
        for (text, says) in [
            ("certificate = \"/c\"\nkey = \"/k\"".to_owned(), vec!["missing field `listen`"]),
            (format!("{SMALL}lisen = 1"), vec!["unknown field `lisen`"]),
            (SMALL.replace("[::]:443", ":443"), vec!["listen", "\":443\"", "for example \"[::]:443\""]),
            (SMALL.replace("[\"[::]:443\", \"0.0.0.0:443\"]", "[]"), vec!["listen", "at least one address"]),
            (format!("{SMALL}redirect = [\"80\"]"), vec!["redirect", "\"80\""]),
            (format!("{SMALL}metrics = \"0.0.0.0:9187\""), vec!["metrics", "loopback"]),
            (format!("{SMALL}domain = \"a b\""), vec!["domain", "DNS name"]),
            (format!("{SMALL}[limits]\nconnections = 0"), vec!["limits.connections", "\"0\"", "at least 1"]),
            (format!("{SMALL}[limits]\nheader_bytes = 5"), vec!["limits.header_bytes", "1024"]),
            (format!("{SMALL}[limits]\nidle_timeout_s = -1"), vec!["idle_timeout_s"]),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            for part in says {
                assert!(error.contains(part), "{part:?} in {error:?}");
            }
        }
    }
}
