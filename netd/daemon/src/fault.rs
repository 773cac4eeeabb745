//! Points at which tests end this process as `kill -9` would. Compiled in where debug assertions are, and nowhere else.

/// Ends the process at once if `WEFT_FAULT` names this point.
#[inline]
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    if std::env::var_os("WEFT_FAULT").is_some_and(|fault| fault == name) {
        std::process::abort();
    }
    let _ = name;
}
