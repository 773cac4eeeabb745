//! netd: the control process of a Weft node. It observes, plans, applies and verifies; it answers the API; and what it has
//! set up in the kernel works on without it.
//!
//! Layers, outermost first: [`service`] starts the parts; [`api`] answers; [`attach`], [`reconcile`] and [`sync`] act on
//! [`node::Node`]; [`state`], [`fabric`], [`view`] and [`targets`] are values and pure functions; [`journal`] and
//! [`datapath`] are the disk and the kernel.

pub mod api;
pub mod attach;
pub mod clock;
pub mod config;
pub mod datapath;
pub mod fabric;
pub mod fault;
pub mod files;
pub mod icmp;
pub mod journal;
pub mod metrics;
pub mod node;
pub mod reconcile;
pub mod service;
pub mod state;
pub mod sync;
pub mod targets;
pub mod view;
pub mod wire;
