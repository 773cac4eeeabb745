//! Pure ingress decisions: which workspace a host name means, where that workspace is, and who may enter. No I/O, no clock.
#![forbid(unsafe_code)]

pub mod decide;
pub mod http1;
pub mod navigation;
pub mod table;

pub use decide::{Credential, Decision, Forward, Refusal, decide};
pub use table::{Applied, Table};
