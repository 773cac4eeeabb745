//! The lab runner: a topology of network namespaces on this one machine, with servers, nodes and workspaces, as a file.
//!
//! [`Lab::up`] builds the machines, [`fabric::Fabric::start`] brings up Weft on them, [`checks`] shows that it keeps its
//! promises. The demo and the end-to-end tests use the same three.
#![forbid(unsafe_code)]

pub mod draw;
pub mod lab;
pub mod plumbing;
pub mod serve;
pub mod spawn;
pub mod state;
pub mod topology;

pub use lab::Lab;
pub use topology::Topology;
