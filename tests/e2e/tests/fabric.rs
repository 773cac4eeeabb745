//! The fabric's promises on real traffic: what the demo shows, and the same on one node.
use std::{path::Path, process::ExitCode};

use anyhow::Result;
use weft_lab::{Topology, checks, demo};

fn main() -> ExitCode {
    weft_e2e::exit(run())
}

fn run() -> Result<()> {
    let one_node = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../labs/one-node/topology.toml");
    weft_e2e::run(Topology::load(&one_node)?, checks::ONE_NODE)?;
    weft_e2e::run(demo::topology()?, checks::TWO_NODES)
}
