//! Measures Weft against its peers on this machine: own namespaces, interleaved rounds, medians and ratios.
#![allow(clippy::print_stdout)] // a program for people: its table is its purpose

mod attach;
mod connects;
mod nat64;
mod net;
mod report;
mod tools;
mod wire;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

/// Runs the benchmarks of the given areas, or of all.
#[derive(Parser)]
struct Args {
    /// How many interleaved rounds; the median is quoted.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measured transfer.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// How many workspaces are attached when `attach` measures a crowded node.
    #[arg(long, default_value_t = 200)]
    crowd: usize,
    /// The folder that holds netd and nat64; this program's own by default.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Areas: wire, nat64, attach.
    areas: Vec<String>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// The ends of a measurement, which this program starts in their namespaces.
#[derive(Subcommand)]
enum Role {
    /// Accepts TCP connections and closes them.
    #[command(hide = true)]
    Accept {
        /// Where to listen.
        address: std::net::SocketAddr,
    },
    /// Opens TCP connections one after the other and prints how many a second.
    #[command(hide = true)]
    Connect {
        /// Where to.
        address: std::net::SocketAddr,
        /// For how long.
        seconds: u64,
    },
}

/// What every area needs to know.
pub(crate) struct Bench {
    rounds: usize,
    duration: Duration,
    crowd: usize,
    bin_dir: PathBuf,
}

impl Bench {
    fn binary(&self, name: &str) -> Result<PathBuf> {
        let path = self.bin_dir.join(name);
        if !path.exists() {
            bail!("{} does not exist: build it with `cargo build --release -p {name}`", path.display());
        }
        Ok(path)
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.role {
        Some(Role::Accept { address }) => return connects::accept(address),
        Some(Role::Connect { address, seconds }) => return connects::connect(address, Duration::from_secs(seconds)),
        None => {}
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmarks make network namespaces: run them as root");
    }
    let own = std::env::current_exe()?;
    let bin_dir = args.bin_dir.or_else(|| own.parent().map(Into::into)).unwrap_or_default();
    let bench = Bench {
        rounds: args.rounds.max(1),
        duration: Duration::from_secs(args.seconds.max(1)),
        crowd: args.crowd,
        bin_dir,
    };
    let areas = if args.areas.is_empty() { ["wire", "nat64", "attach"].map(String::from).to_vec() } else { args.areas };
    let mut rows = report::Rows::default();
    for area in &areas {
        match area.as_str() {
            "wire" => wire::run(&bench, &mut rows)?,
            "nat64" => nat64::run(&bench, &mut rows)?,
            "attach" => attach::run(&bench, &mut rows)?,
            other => bail!("no area {other:?}: choose among wire, nat64 and attach"),
        }
    }
    rows.print();
    Ok(())
}
