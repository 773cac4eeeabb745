//! Waiting for a condition with a deadline: what tests use in place of a sleep.
use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long to pause between two looks: short beside every deadline, long beside a look's own cost.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks again and again until `look` gives a value, or fails with `what`, the deadline and the last reason given.
///
/// A look that fails is not the end: its error is the reason shown if the deadline passes.
pub fn wait_for<T, E: Display>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, E>) -> Result<T> {
    let start = Instant::now();
    loop {
        let reason = match look() {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        if start.elapsed() >= deadline {
            bail!("waited {:.1} s for {what}: {reason:#}", deadline.as_secs_f32());
        }
        thread::sleep(PAUSE.min(deadline));
    }
}

/// Looks again and again until `look` is true, or fails with `what` and the deadline.
pub fn wait_until(what: &str, deadline: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, deadline, || if look() { Ok(()) } else { Err("not yet") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_as_soon_as_there_is_one() {
        let mut looks = 0;
        let value = wait_for("three looks", Duration::from_secs(5), || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err("too few looks") }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn a_deadline_that_passes_says_what_was_missing_and_why() {
        let error =
            wait_for::<(), _>("the moon", Duration::from_millis(1), || Err("it is day")).unwrap_err().to_string();
        assert!(error.contains("the moon") && error.contains("it is day"), "{error}");
        assert!(wait_until("nothing", Duration::from_millis(1), || false).is_err());
    }
}
