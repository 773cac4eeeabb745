//! Which rules a packet met: noted on request only, for whoever asks why it became what it became.
use serde::Serialize;

/// A rule that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The RFC.
    pub rfc: u16,
    /// Its section.
    pub section: &'static str,
    /// What was found or done.
    pub text: String,
}

/// Steps, if anyone wants them.
#[derive(Debug, Default)]
pub(crate) struct Trace(Option<Vec<Step>>);

impl Trace {
    pub(crate) fn begin(&mut self) {
        self.0 = Some(Vec::new());
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn end(&mut self) -> Vec<Step> {
        self.0.take().unwrap_or_default()
    }

    /// Notes a step; without a trace nothing is formatted.
    pub(crate) fn note(&mut self, rfc: u16, section: &'static str, text: impl FnOnce() -> String) {
        if let Some(steps) = &mut self.0 {
            steps.push(Step { rfc, section, text: text() });
        }
    }
}
