//! Header fields on their way through: who asked is overwritten, never passed on; hop-by-hop fields stay on their hop.
use std::net::{IpAddr, SocketAddr};

use http::{HeaderName, header};
use pingora::http::{RequestHeader, ResponseHeader};

/// Fields by which a caller could pretend to be another, or to have come another way.
const CLAIMS: [&str; 9] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-forwarded-prefix",
    "x-real-ip",
    "x-client-ip",
];

/// Tells the workspace who asked and how (RFC 7239, and the X-Forwarded fields that programs read), in place of what the
/// caller claims, and joins the cookies that HTTP/2 may split (RFC 9113 section 8.2.3).
pub(crate) fn to_workspace(request: &mut RequestHeader, remote: SocketAddr, host: &str) -> pingora::Result<()> {
    for claim in CLAIMS {
        request.remove_header(claim);
    }
    let caller = remote.ip().to_canonical();
    let node = match caller {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    request.insert_header("X-Forwarded-For", caller.to_string())?;
    request.insert_header("X-Forwarded-Proto", "https")?;
    request.insert_header("X-Forwarded-Host", host)?;
    request.insert_header("Forwarded", format!("for={node};host=\"{host}\";proto=https"))?;
    let cookies: Vec<_> =
        request.headers.get_all(header::COOKIE).iter().map(|cookie| cookie.as_bytes().to_vec()).collect();
    if cookies.len() > 1 {
        request.insert_header(header::COOKIE, cookies.join(&b"; "[..]))?;
    }
    Ok(())
}

/// Removes the fields of a workspace's answer that belong to its own hop (RFC 9110 section 7.6.1). A 101 keeps them:
/// there they are the answer. Connection and Transfer-Encoding are the engine's own business.
pub(crate) fn to_caller(response: &mut ResponseHeader) {
    if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    let named: Vec<HeaderName> = response
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| ![header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION].contains(name))
        .collect();
    for name in named {
        response.remove_header(&name);
    }
    for name in ["keep-alive", "proxy-connection", "upgrade"] {
        response.remove_header(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_claims_is_overwritten() {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for claim in CLAIMS {
            request.insert_header(claim, "10.0.0.1").unwrap();
        }
        to_workspace(&mut request, "[2001:db8::7]:4711".parse().unwrap(), "8080-box.ws.dev").unwrap();
        let field = |name: &str| request.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(field("x-forwarded-for").unwrap(), "2001:db8::7");
        assert_eq!(field("x-forwarded-proto").unwrap(), "https");
        assert_eq!(field("x-forwarded-host").unwrap(), "8080-box.ws.dev");
        assert_eq!(field("forwarded").unwrap(), "for=\"[2001:db8::7]\";host=\"8080-box.ws.dev\";proto=https");
        assert_eq!(field("x-real-ip"), None);
        assert_eq!(field("x-forwarded-port"), None);
    }

    #[test]
    fn split_cookies_are_joined() {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.append_header("cookie", "a=1").unwrap();
        request.append_header("cookie", "b=2").unwrap();
        to_workspace(&mut request, "192.0.2.1:1".parse().unwrap(), "h").unwrap();
        assert_eq!(request.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn hop_by_hop_fields_of_an_answer_end_here() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in
            [("Connection", "keep-alive, X-Hop"), ("X-Hop", "1"), ("Keep-Alive", "timeout=5"), ("X-End", "1")]
        {
            response.insert_header(name, value).unwrap();
        }
        to_caller(&mut response);
        assert!(!response.headers.contains_key("x-hop"));
        assert!(!response.headers.contains_key("keep-alive"));
        assert!(response.headers.contains_key("x-end"));
    }
}
