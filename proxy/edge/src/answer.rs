//! What the proxy itself answers: a small page for people, JSON for programs; no third-party request, nothing cached.
use std::fmt::Write;

use pingora::http::ResponseHeader;
use serde::Serialize;
use weft_model::url::UrlError;
use weft_proxy_core::Refusal;

/// An answer, before it is put into words for a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The stable name of what happened: JSON's `error`, and a metric's label.
    pub(crate) kind: &'static str,
    /// A page's heading.
    pub(crate) title: &'static str,
    /// What happened, naming the object.
    pub(crate) message: String,
    /// What to do.
    pub(crate) hint: String,
    /// After how many seconds trying again may help; a page does so by itself.
    pub(crate) retry_after_s: Option<u32>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: &'a str,
    message: &'a str,
    hint: &'a str,
    host: &'a str,
    status: u16,
}

impl Answer {
    fn new(status: u16, kind: &'static str, title: &'static str, message: String, hint: impl Into<String>) -> Self {
        Self { status, kind, title, message, hint: hint.into(), retry_after_s: None }
    }

    /// The answer to a request that the routing table refuses. `host` is as the caller wrote it.
    pub(crate) fn refusal(refusal: &Refusal, host: &str) -> Self {
        let (title, message, hint) = match refusal {
            Refusal::NotReady => (
                "Starting",
                "this proxy does not know any workspace yet: it has not reached netd".into(),
                "try again in a moment; the operator finds the reason in weft-proxy's log".into(),
            ),
            Refusal::UnknownDomain => (
                "Not served here",
                format!("{host:?} is not a host name that this proxy serves"),
                "check the address; ports of workspaces have names of the form <port>-<workspace>.<domain>".into(),
            ),
            Refusal::HostShape(shape) => (
                "No such address",
                format!("{host:?} is no port's host name: {}", shape_in_words(*shape)),
                "write <port>-<workspace>, for example 8080-k3v7qz2mna; `netctl list` shows the addresses".into(),
            ),
            Refusal::UnknownWorkspace(name) => (
                "No such workspace",
                format!("{host:?} names the workspace {name}, which does not exist in this fabric"),
                "check the spelling; `netctl list` shows the workspaces and their addresses".into(),
            ),
            Refusal::AmbiguousName(name) => (
                "Name in dispute",
                format!("more than one workspace claims the name {name} at this moment"),
                "use the workspace's id instead of its name; `netctl list` shows it".into(),
            ),
            Refusal::UndeclaredPort { id, port } => (
                "No such port",
                format!("workspace {id} has no port {port} with an address"),
                format!("declare it with `netctl expose {id} {port}`"),
            ),
            Refusal::Private { id, port } => (
                "Private port",
                format!("port {port} of workspace {id} is private, and this request shows no credential that opens it"),
                format!("its owner can open it to everybody with `netctl expose {id} {port} --public`"),
            ),
            Refusal::Stopped { id, .. } => (
                "Workspace stopped",
                format!("workspace {id} is not running"),
                "start it; its addresses stay the same".into(),
            ),
        };
        let mut answer = Self::new(refusal.status(), refusal.kind(), title, message, hint);
        answer.retry_after_s = refusal.retry_after_s();
        answer
    }

    /// The request was made on a connection for another host.
    pub(crate) fn misdirected(sni: &str, host: &str) -> Self {
        let message = format!("{host:?} was asked for on a TLS connection that was made for {sni:?}");
        Self::new(421, "misdirected", "Wrong connection", message, "open a connection of its own for each host")
    }

    /// The request can be read in more than one way, or not at all.
    pub(crate) fn bad_request(reason: impl std::fmt::Display) -> Self {
        let hint = "correct the program that made the request, or the proxy before it";
        Self::new(400, "bad-request", "Bad request", format!("the request cannot be accepted: {reason}"), hint)
    }

    /// The request's header section passes the limit.
    pub(crate) fn header_too_large(limit: usize) -> Self {
        let message = format!("the request's header fields take more than {limit} bytes");
        Self::new(
            431,
            "header-too-large",
            "Header too large",
            message,
            "delete this host's cookies, or send fewer fields",
        )
    }

    /// The request's body did not come.
    pub(crate) fn request_timeout() -> Self {
        let message = "the rest of the request did not come in time".into();
        Self::new(408, "request-timeout", "Too slow", message, "send the request again")
    }

    /// Nothing listens on the port.
    pub(crate) fn port_silent(port: u16, id: impl std::fmt::Display) -> Self {
        let message = format!("nothing listens on port {port} in this workspace ({id})");
        let hint = format!(
            "start the server; it must listen on [::]:{port} (or on the workspace's IPv6 address), not on localhost alone"
        );
        let mut answer = Self::new(502, "port-silent", "Nothing listens here", message, hint);
        answer.retry_after_s = Some(5);
        answer
    }

    /// The workspace does not answer at all.
    pub(crate) fn unreachable(id: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        let message = format!("workspace {id} cannot be reached from this proxy ({reason})");
        let hint = format!("try again in a moment; `netctl explain workspace {id}` tells what is not ready");
        let mut answer = Self::new(504, "unreachable", "Workspace not reachable", message, hint);
        answer.retry_after_s = Some(5);
        answer
    }

    /// The workspace was moved, stopped or closed to this caller while the request was in progress.
    pub(crate) fn changed(id: impl std::fmt::Display) -> Self {
        let message = format!("workspace {id} was moved, stopped or closed while the request was in progress");
        let mut answer = Self::new(503, "changed", "Workspace changed", message, "send the request again");
        answer.retry_after_s = Some(1);
        answer
    }

    /// The server in the workspace took too long.
    pub(crate) fn upstream_timeout(port: u16, id: impl std::fmt::Display) -> Self {
        let message = format!("the server on port {port} of workspace {id} did not answer in time");
        Self::new(504, "upstream-timeout", "No answer", message, "look at that server's log")
    }

    /// The server in the workspace broke off, or does not speak HTTP.
    pub(crate) fn bad_upstream(port: u16, id: impl std::fmt::Display) -> Self {
        let message =
            format!("the server on port {port} of workspace {id} closed the connection or did not speak HTTP/1.1");
        Self::new(
            502,
            "bad-upstream",
            "Bad answer",
            message,
            "look at that server's log; it must speak HTTP/1.1 without TLS",
        )
    }

    /// A fault of this proxy or its node.
    pub(crate) fn internal() -> Self {
        let message = "this proxy cannot serve the request at the moment".into();
        Self::new(
            500,
            "internal",
            "Fault of the proxy",
            message,
            "try again; the operator finds the reason in weft-proxy's log",
        )
    }

    /// The answer's header and body, as a page or as JSON. The header says how long the body is.
    pub(crate) fn write(&self, host: &str, as_page: bool) -> pingora::Result<(ResponseHeader, String)> {
        let mut header = ResponseHeader::build(self.status, Some(10))?;
        header.insert_header("Cache-Control", "no-store")?;
        header.insert_header("X-Content-Type-Options", "nosniff")?;
        header.insert_header("Vary", "Accept, Sec-Fetch-Mode")?;
        if let Some(seconds) = self.retry_after_s {
            header.insert_header("Retry-After", seconds.to_string())?;
        }
        if self.status == 401 {
            // RFC 9110 section 11.6.1: a 401 names its scheme. Browsers ask nobody for a bearer token.
            header.insert_header("WWW-Authenticate", "Bearer realm=\"weft\"")?;
        }
        let body = if as_page {
            header.insert_header("Content-Type", "text/html; charset=utf-8")?;
            header.insert_header(
                "Content-Security-Policy",
                "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
            )?;
            self.page()
        } else {
            header.insert_header("Content-Type", "application/json")?;
            let body = Body { error: self.kind, message: &self.message, hint: &self.hint, host, status: self.status };
            serde_json::to_string(&body).expect("strings and numbers are JSON") + "\n"
        };
        header.insert_header("Content-Length", body.len().to_string())?;
        Ok((header, body))
    }

    fn page(&self) -> String {
        let refresh = self
            .retry_after_s
            .map_or(String::new(), |seconds| format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">"));
        let (title, message, hint) = (escape(self.title), escape(&self.message), escape(&self.hint));
        let status = self.status;
        let wait =
            if self.retry_after_s.is_some() { "<p class=\"small\">This page tries again by itself.</p>" } else { "" };
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">{refresh}\
             <style>{STYLE}</style></head><body><main><p class=\"small\">{status}</p><h1>{title}</h1><p>{message}.</p><p>{hint}.</p>{wait}</main></body></html>\n"
        )
    }
}

const STYLE: &str = "body{margin:0;min-height:100vh;display:grid;place-items:center;font:1rem/1.5 system-ui,sans-serif;\
color:#1c1e21;background:#f6f7f8}main{max-width:36rem;padding:2rem;overflow-wrap:anywhere}h1{margin:0 0 1rem;font-size:1.5rem}\
.small{margin:0;font-size:.875rem;color:#5a6068}@media(prefers-color-scheme:dark){body{color:#e6e8ea;background:#16181b}.small{color:#a0a7ae}}";

fn shape_in_words(shape: UrlError) -> String {
    let text = shape.to_string();
    text.strip_prefix("the host's ").map_or(text.clone(), |rest| format!("its {rest}"))
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' | '<' | '>' | '"' | '\'' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "&#{};", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown() -> Answer {
        Answer::refusal(&Refusal::UnknownWorkspace("nobody".parse().unwrap()), "8080-nobody.ws.dev")
    }

    #[test]
    fn a_program_reads_what_happened_and_what_to_do() {
        let (header, body) = unknown().write("8080-nobody.ws.dev", false).unwrap();
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(header.status, 404);
        assert_eq!(body["error"], "unknown-workspace");
        assert_eq!(body["host"], "8080-nobody.ws.dev");
        assert!(body["message"].as_str().unwrap().contains("8080-nobody.ws.dev"));
        assert!(body["hint"].as_str().unwrap().contains("netctl list"));
    }

    #[test]
    fn a_page_loads_nothing_and_runs_nothing_of_the_callers() {
        let hostile = Answer::misdirected("a", "<script src=//evil>");
        let (header, page) = hostile.write("x", true).unwrap();
        assert!(!page.contains("<script"));
        assert!(
            !page.contains("http://") && !page.contains("https://") && !page.contains("src="[..].trim())
                || page.contains("&#60;script")
        );
        assert!(header.headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    }

    #[test]
    fn what_may_pass_soon_says_when_to_try_again() {
        let stopped = Answer::refusal(&Refusal::Stopped { id: "k3v7qz2mna".parse().unwrap(), port: 80 }, "h");
        let (header, page) = stopped.write("h", true).unwrap();
        assert_eq!(header.headers["retry-after"], "5");
        assert!(page.contains("http-equiv=\"refresh\""));
    }
}
