//! Server-sent events (WHATWG HTML, 9.2.6): bytes in, events out, with bounds. Pure: it never waits.
use std::{collections::VecDeque, mem};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// The last id that the server gave, with this event or before; where to resume.
    pub id: Option<String>,
    /// The event's name; `message` if the server gave none.
    pub event: String,
    /// Its data; the lines of a long one are joined by line feeds.
    pub data: String,
}

/// Why a stream cannot be read further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A line, or an event's data, passes the bound.
    #[error("an event is longer than {0} bytes")]
    TooLong(usize),
    /// The stream must be UTF-8.
    #[error("a line is not UTF-8")]
    Utf8,
}

/// Cuts a stream of bytes into events.
#[derive(Debug)]
pub struct SseParser {
    limit: usize,
    line: Vec<u8>,
    after_cr: bool,
    first_line: bool,
    id: Option<String>,
    event: String,
    data: String,
    has_data: bool,
    ready: VecDeque<SseEvent>,
}

impl SseParser {
    /// A parser that refuses lines, and events, of more than `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            after_cr: false,
            first_line: true,
            id: None,
            event: String::new(),
            data: String::new(),
            has_data: false,
            ready: VecDeque::new(),
        }
    }

    /// Takes bytes as they come; after an error the stream is lost.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        for &byte in bytes {
            // A line ends with CR, LF, or CR LF: the LF after a CR is no second end.
            let ends = byte == b'\r' || (byte == b'\n' && !self.after_cr);
            let skipped = byte == b'\n' && self.after_cr;
            self.after_cr = byte == b'\r';
            if ends {
                let line = mem::take(&mut self.line);
                self.end_of_line(&line)?;
            } else if !skipped {
                if self.line.len() >= self.limit {
                    return Err(SseError::TooLong(self.limit));
                }
                self.line.push(byte);
            }
        }
        Ok(())
    }

    /// The next whole event, in the stream's order.
    pub fn next_event(&mut self) -> Option<SseEvent> {
        self.ready.pop_front()
    }

    fn end_of_line(&mut self, line: &[u8]) -> Result<(), SseError> {
        let line = std::str::from_utf8(line).map_err(|_| SseError::Utf8)?;
        let first = mem::take(&mut self.first_line);
        let line = if first { line.strip_prefix('\u{feff}').unwrap_or(line) } else { line };
        if line.is_empty() {
            self.dispatch();
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event = value.into(),
            "id" if !value.contains('\0') => self.id = Some(value.into()),
            "data" => {
                if self.data.len() + value.len() >= self.limit {
                    return Err(SseError::TooLong(self.limit));
                }
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            // Comments (an empty field) keep the connection alive; unknown fields are for later versions.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) {
        let event = mem::take(&mut self.event);
        let data = mem::take(&mut self.data);
        if mem::take(&mut self.has_data) {
            let event = if event.is_empty() { "message".into() } else { event };
            self.ready.push_back(SseEvent { id: self.id.clone(), event, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(bytes: &[u8]) -> Vec<SseEvent> {
        let mut parser = SseParser::new(1024);
        parser.feed(bytes).unwrap();
        std::iter::from_fn(|| parser.next_event()).collect()
    }

    fn event(id: Option<&str>, event: &str, data: &str) -> SseEvent {
        SseEvent { id: id.map(Into::into), event: event.into(), data: data.into() }
    }

    #[test]
    fn fields_comments_and_line_ends_follow_the_standard() {
        assert_eq!(events(b"\xef\xbb\xbfdata: a\n\n"), [event(None, "message", "a")]);
        assert_eq!(
            events(b": alive\n\nid: 7\r\nevent: put\r\ndata:x\r\ndata: y\r\n\r\n"),
            [event(Some("7"), "put", "x\ny")]
        );
        assert_eq!(
            events(b"data: a\r\rdata\n\nid: 3\n\ndata: b\n\n"),
            [event(None, "message", "a"), event(None, "message", ""), event(Some("3"), "message", "b")]
        );
        assert_eq!(events(b"event: lost\n\ndata: unfinished\n"), []);
    }

    #[test]
    fn a_line_or_an_event_without_end_is_refused() {
        assert_eq!(SseParser::new(16).feed(&[b'x'; 17]), Err(SseError::TooLong(16)));
        assert_eq!(SseParser::new(16).feed(&b"data: 12345678\n".repeat(3)), Err(SseError::TooLong(16)));
        assert_eq!(SseParser::new(16).feed(b"data: \xff\n"), Err(SseError::Utf8));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_cuts_do_not_matter(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b':'), any::<u8>()], 0..300), cut in 0usize..300) {
            let mut whole = SseParser::new(64);
            let a = whole.feed(&bytes);
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            let mut cut = SseParser::new(64);
            let b = cut.feed(head).and_then(|()| cut.feed(tail));
            prop_assert_eq!(a, b);
            prop_assert_eq!(whole.ready, cut.ready);
        }

        #[test]
        fn what_is_written_is_read(id in "[0-9]{1,9}", name in "[a-z]{1,9}", lines in proptest::collection::vec("[^\r\n\u{feff}]{0,20}", 1..5)) {
            let data: String = lines.iter().map(|line| format!("data: {line}\n")).collect();
            let text = format!("id: {id}\nevent: {name}\n{data}\n");
            prop_assert_eq!(events(text.as_bytes()), [event(Some(&id), &name, &lines.join("\n"))]);
        }
    }
}
