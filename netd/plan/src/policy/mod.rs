//! The packet decision as a pure function: the same that the programs of the data path make.
mod judge;
mod packet;
mod reason;

pub use reason::{Reason, Zone4, Zone6};
