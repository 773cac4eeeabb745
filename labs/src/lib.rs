//! The lab runner: a topology of network namespaces on this one machine, with servers, nodes and workspaces, as a file.
//!
//! [`Lab::up`] builds the machines, [`fabric::Fabric::start`] brings up Weft on them, [`checks`] shows that it keeps its
//! promises. The demo and the end-to-end tests use the same three.
#![forbid(unsafe_code)]

/// Prints a line. A reader that has gone away (a closed terminal, `| head`) must not keep a lab from being taken down,
/// as the panic of `println!` would.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

pub mod capture;
pub mod checks;
pub mod demo;
pub mod draw;
pub mod fabric;
pub mod frames;
pub mod lab;
pub mod pki;
pub mod plumbing;
pub mod probe;
pub mod serve;
pub mod spawn;
pub mod state;
pub mod topology;

pub use fabric::Fabric;
pub use lab::{Lab, WeakLab};
pub use topology::Topology;
