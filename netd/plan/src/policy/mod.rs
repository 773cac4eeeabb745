//! The packet decision as a pure function: the same that the programs of the data path make.
mod judge;
mod packet;
mod reason;

pub use judge::{
    Context, FlowKey, Ingress, Judgement, Link, Verdict, Via, clat_destination, first_fragment, from_tunnel,
    from_uplink, from_workspace, to_workspace,
};

pub use reason::{Reason, Zone4, Zone6};
