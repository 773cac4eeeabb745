//! What an HTTP/1 request's header section must not contain: everything that another parser could read differently.
use thiserror::Error;

/// Why a header section is ambiguous, so that the request is refused and its connection closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Ambiguous {
    /// A line ends in LF without CR, or a CR stands alone (RFC 9112 section 2.2).
    #[error("a header line ends without CR LF")]
    LineEnding,
    /// A NUL or another control character (RFC 9110 section 5.5).
    #[error("a control character stands in the header")]
    Control,
    /// A line begins with white space: an obsolete fold (RFC 9112 section 5.2), or white space before the first field.
    #[error("a header line begins with white space")]
    Fold,
    /// White space before the colon, or no field name (RFC 9112 section 5.1).
    #[error("a header field's name is empty, ends in white space or has no colon")]
    FieldName,
    /// No Host field (RFC 9112 section 3.2).
    #[error("the Host field is missing")]
    NoHost,
    /// More than one Host field (RFC 9112 section 3.2).
    #[error("there is more than one Host field")]
    TwoHosts,
    /// Content-Length and Transfer-Encoding together: the usual vehicle of request smuggling (RFC 9112 section 6.1).
    #[error("Content-Length and Transfer-Encoding are both present")]
    LengthAndEncoding,
    /// More than one Content-Length, or one that is not digits alone (RFC 9110 section 8.6).
    #[error("Content-Length is not one number")]
    Length,
    /// A Transfer-Encoding that is not exactly `chunked` (RFC 9112 section 6.1).
    #[error("Transfer-Encoding is not exactly \"chunked\"")]
    Encoding,
}

/// Checks a request's header section, from the request line to the empty line, as it came from the network.
///
/// The parser behind this one has read it already; this refuses what it lets pass and others may read differently.
pub fn check(section: &[u8]) -> Result<(), Ambiguous> {
    let mut hosts = 0;
    let mut lengths = 0;
    let mut encodings = 0;
    let mut in_fields = false;
    for line in lines(section)? {
        let line = line?;
        // The empty line ends the section; one before the request line is a client's leftover (RFC 9112 section 2.2).
        if line.is_empty() || !std::mem::replace(&mut in_fields, true) {
            in_fields &= !line.is_empty();
            continue;
        }
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err(Ambiguous::Fold);
        }
        let colon = line.iter().position(|&byte| byte == b':').ok_or(Ambiguous::FieldName)?;
        let (name, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            return Err(Ambiguous::FieldName);
        }
        if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            lengths += 1;
            if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return Err(Ambiguous::Length);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            encodings += 1;
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Ambiguous::Encoding);
            }
        }
    }
    match (hosts, lengths, encodings) {
        (0, ..) => Err(Ambiguous::NoHost),
        (2.., ..) => Err(Ambiguous::TwoHosts),
        (_, 1.., 1..) => Err(Ambiguous::LengthAndEncoding),
        (_, 2.., _) => Err(Ambiguous::Length),
        (.., 2..) => Err(Ambiguous::Encoding),
        _ => Ok(()),
    }
}

/// The section's lines without their CR LF. Fails if the section does not end with one.
fn lines(section: &[u8]) -> Result<impl Iterator<Item = Result<&[u8], Ambiguous>>, Ambiguous> {
    let section = section.strip_suffix(b"\n").ok_or(Ambiguous::LineEnding)?;
    Ok(section.split(|&byte| byte == b'\n').map(|line| {
        let line = line.strip_suffix(b"\r").ok_or(Ambiguous::LineEnding)?;
        match line.iter().find(|&&byte| byte.is_ascii_control() && byte != b'\t') {
            Some(b'\r') => Err(Ambiguous::LineEnding),
            Some(_) => Err(Ambiguous::Control),
            None => Ok(line),
        }
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_browsers_and_programs_send_passes() {
        for section in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nhost:a\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nX: \tb\tc \r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nEmpty:\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(check(section.as_bytes()), Ok(()), "{section:?}");
        }
    }

    #[test]
    fn what_two_parsers_may_read_differently_does_not() {
        for (section, why) in [
            ("GET / HTTP/1.1\r\n\r\n", Ambiguous::NoHost),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Ambiguous::TwoHosts),
            ("GET / HTTP/1.1\nHost: a\n\n", Ambiguous::LineEnding),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Ambiguous::LineEnding),
            ("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", Ambiguous::LineEnding),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", Ambiguous::Control),
            ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", Ambiguous::Fold),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Ambiguous::FieldName),
            ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", Ambiguous::FieldName),
            ("GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n", Ambiguous::FieldName),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                Ambiguous::LengthAndEncoding,
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", Ambiguous::Length),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n", Ambiguous::Length),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n", Ambiguous::Length),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", Ambiguous::Encoding),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Ambiguous::Encoding),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                Ambiguous::Encoding,
            ),
        ] {
            assert_eq!(check(section.as_bytes()), Err(why), "{section:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(section: Vec<u8>, fields in "(Host|Content-Length|X)?[: \r\n\ta]{0,20}") {
            let _ = check(&section);
            let _ = check(format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes());
        }
    }
}
