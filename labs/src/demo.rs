//! The demo: brings the fabric up, shows each promise being kept as a table, and then leaves it to its visitor.
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{
    checks::{self, Check, Outcome},
    draw::draw,
    fabric::Fabric,
    lab::Lab,
    spawn::bin_dir,
    topology::Topology,
};

/// Runs checks in turn and prints a line for each; gives the names of those that failed.
pub fn table(fabric: &Fabric, checks: &[Check]) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for check in checks {
        let start = Instant::now();
        let result = (check.run)(fabric);
        let took = start.elapsed().as_secs_f32();
        let promise = check.promise;
        match result {
            Ok(Outcome { detail, exhibit }) => {
                say!("  \u{2713} {promise:<57} {took:4.1} s  {detail}");
                for line in exhibit.iter().flat_map(|text| text.lines()) {
                    say!("        {line}");
                }
            }
            Err(error) => {
                say!("  \u{2717} {promise:<57} {took:4.1} s  {error:#}");
                failed.push(check.name);
            }
        }
    }
    failed
}

/// Shows the demo on an empty lab of the two-node topology. Gives back the fabric for the visitor to try.
pub fn show(lab: &Lab) -> Result<(Fabric, Vec<&'static str>)> {
    let start = Instant::now();
    say!("{}", draw(lab.topology()));
    let fabric = Fabric::start(lab)?;
    say!("The fabric is up after {:.1} s: lab {}.\n", start.elapsed().as_secs_f32(), lab.place().id);
    let failed = table(&fabric, checks::TWO_NODES);
    Ok((fabric, failed))
}

/// Takes the lab down and looks whether anything is left over.
pub fn end(lab: &Lab) -> Result<()> {
    let place = lab.place().clone();
    let start = Instant::now();
    lab.down()?;
    let remains = place.remains()?;
    let promise = "nothing is left over: no process, namespace, pin or file";
    if remains.is_empty() {
        say!("  \u{2713} {promise:<57} {:4.1} s", start.elapsed().as_secs_f32());
        return Ok(());
    }
    say!("  \u{2717} {promise:<57} {}", remains.join(", "));
    bail!("lab {} left something over: `lab down {}` removes it", place.id, place.id)
}

/// Prints what a visitor may type, while the fabric runs.
pub fn invite(fabric: &Fabric) -> Result<()> {
    let dir = bin_dir()?;
    let dir =
        std::env::current_dir().ok().and_then(|here| dir.strip_prefix(here).ok().map(ToOwned::to_owned)).unwrap_or(dir);
    let dir = dir.display();
    let lab = fabric.lab();
    let id = &lab.place().id;
    let host = checks::host(fabric, "amber")?;
    say!("\nThe fabric runs until Ctrl-C. Try, in another terminal, as root:\n");
    say!("  export WEFT_SOCKET={}", fabric.socket("a").display());
    say!("  {dir}/netctl list");
    say!("  {dir}/netctl explain workspace amber");
    say!("  {dir}/netctl status");
    say!("  {dir}/lab exec --lab {id} amber -- curl http://ipv4only.test/");
    say!("  {dir}/lab exec --lab {id} amber -- ping -c3 {}", fabric.address("birch")?);
    say!("  {dir}/lab exec --lab {id} visitor -- curl --cacert {} https://{host}/", fabric.pki().ca.display());
    say!("  {dir}/lab exec --lab {id} isp -- tcpdump -ni underlay");
    say!("  {dir}/lab exec --lab {id} stranger -- bash        # be the stranger: root, with every tool");
    say!("\nLogs, keys and generated files are in {}.", lab.place().dir.display());
    Ok(())
}

/// The demo's topology, which is part of the program.
pub fn topology() -> Result<Topology> {
    Topology::parse(include_str!("../two-nodes/topology.toml")).context("the demo's topology is unsound")
}
