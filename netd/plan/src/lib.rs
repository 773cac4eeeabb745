//! Pure planning: what a node should look like, what differs from what is seen, and what may pass.
#![forbid(unsafe_code)]

pub mod view;

pub use view::NodeView;
