//! Runs many checks on one fabric: bringing one up takes seconds, and most checks do not disturb each other.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use weft_lab::{Fabric, Lab, Topology, checks::Check, demo};

/// Brings a topology up, runs the checks whose name contains the first argument (all without one), takes it down and
/// looks whether anything is left over. Prints the last of the nodes' logs if a check failed.
pub fn run(topology: Topology, checks: &[Check]) -> Result<()> {
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    let chosen: Vec<_> = checks.iter().filter(|check| check.name.contains(&filter)).copied().collect();
    if chosen.is_empty() {
        return Ok(());
    }
    let lab = Lab::up(topology)?;
    let fabric = Fabric::start(&lab)?;
    let mut failed: Vec<_> = demo::table(&fabric, &chosen).into_iter().map(str::to_owned).collect();
    failed.extend(lab.ended());
    if !failed.is_empty() {
        for node in &lab.topology().nodes {
            eprintln!("{}", lab.logs(&node.name, 30));
        }
    }
    demo::end(&lab)?;
    anyhow::ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// The exit code of a test program.
#[must_use]
pub fn exit(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
