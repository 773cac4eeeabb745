//! Who reads the answer: a person in a browser gets a page, a program gets JSON.

/// What tells a browser's navigation from a program's request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reader<'a> {
    /// The Accept field (RFC 9110 section 12.5.1).
    pub accept: Option<&'a str>,
    /// The Sec-Fetch-Mode field (Fetch Metadata section 2.2): `navigate` when a browser opens a page.
    pub fetch_mode: Option<&'a str>,
}

impl Reader<'_> {
    /// Whether to answer with a page. A script's fetch() never gets one, whatever it accepts.
    #[must_use]
    pub fn wants_page(&self) -> bool {
        let accepts = self.accept.is_some_and(|accept| accept.to_ascii_lowercase().contains("text/html"));
        accepts && self.fetch_mode.is_none_or(|mode| mode.eq_ignore_ascii_case("navigate"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_navigation_gets_a_page() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for (accept, fetch_mode, page) in [
            (Some(browser), Some("navigate"), true),
            (Some(browser), None, true),
            (Some(browser), Some("cors"), false),
            (Some("*/*"), Some("navigate"), false),
            (Some("*/*"), None, false),
            (Some("application/json"), None, false),
            (None, None, false),
        ] {
            assert_eq!(Reader { accept, fetch_mode }.wants_page(), page, "{accept:?} {fetch_mode:?}");
        }
    }
}
