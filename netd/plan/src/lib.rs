//! Pure planning: what a node should look like, what differs from what is seen, and what may pass.
#![forbid(unsafe_code)]

mod desired;
mod diff;
pub mod policy;
pub mod state;
pub mod view;

pub use desired::desired;
pub use diff::{missing, plan};
pub use state::{DataConfig, Desired, Entry, Hook, LinkSpec, LinkState, Observed, Op, Route, Tables, Target, TunState};
pub use view::NodeView;
