//! `lab`: brings topologies up, shows the demo, and takes everything down again.
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use weft_lab::{Fabric, Lab, Topology, demo, draw, say, serve, spawn, state};

/// Network namespaces on one machine: an internet, nodes, workspaces.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a topology up and keep it until Ctrl-C
    Up {
        /// The topology's file, for example labs/two-nodes/topology.toml
        file: PathBuf,
        /// Only the machines and their servers: no netd, no workspaces
        #[arg(long)]
        bare: bool,
    },
    /// Show a fabric of two nodes keeping its promises
    Demo {
        /// End after the checks, with success only if all promises are kept
        #[arg(long)]
        once: bool,
    },
    /// Take a lab down
    Down {
        /// Its id, as `lab ls` shows it
        id: String,
    },
    /// List the labs on this machine
    Ls,
    /// Draw a topology
    Draw {
        /// The topology's file
        file: PathBuf,
    },
    /// Run a program on a machine or in a workspace of a running lab
    #[command(after_help = "Example: lab exec amber -- curl http://ipv4only.test/")]
    Exec {
        /// Which lab, if there are several
        #[arg(long)]
        lab: Option<String>,
        /// The machine or workspace
        machine: String,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
    /// The server that runs on hosts and in workspaces
    #[command(hide = true)]
    Serve {
        /// What its pages begin with
        #[arg(long)]
        name: String,
        /// Where it serves pages
        #[arg(long)]
        http: Vec<SocketAddr>,
        /// Where it echoes
        #[arg(long)]
        echo: Vec<SocketAddr>,
    },
    /// Becomes a program inside of a namespace
    #[command(hide = true)]
    Enter {
        #[arg(long)]
        netns: PathBuf,
        #[arg(long)]
        resolv_conf: Option<PathBuf>,
        #[arg(long)]
        parent: Option<i32>,
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Enter { netns, resolv_conf, parent, program } => {
            return spawn::enter(&netns, resolv_conf.as_deref(), parent, &program);
        }
        Command::Serve { name, http, echo } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            return runtime.block_on(serve::serve(name, http, echo));
        }
        _ => {}
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).init();
    match command {
        Command::Up { file, bare } => up(&file, bare),
        Command::Demo { once } => show_demo(once),
        Command::Down { id } => state::down(&id),
        Command::Ls => ls(),
        Command::Draw { file } => {
            say!("{}", draw::draw(&Topology::load(&file)?));
            Ok(())
        }
        Command::Exec { lab, machine, program } => exec(lab.as_deref(), &machine, &program),
        Command::Enter { .. } | Command::Serve { .. } => unreachable!("handled above"),
    }
}

/// Keeps a topology up until a signal ends it.
fn up(file: &Path, bare: bool) -> Result<()> {
    let lab = Lab::claim(Topology::load(file)?)?;
    let ended = end_on_signal(&lab)?;
    lab.build()?;
    say!("{}", draw::draw(lab.topology()));
    if !bare && lab.topology().fabric.is_some() {
        Fabric::start(&lab)?;
    }
    say!(
        "\nLab {} is up until Ctrl-C, or `lab down {}`. Its files are in {}.",
        lab.place().id,
        lab.place().id,
        lab.place().dir.display()
    );
    // Nothing is sent: the thread that waits for the signal ends the process.
    let _ = ended.recv();
    Ok(())
}

fn show_demo(once: bool) -> Result<()> {
    let start = Instant::now();
    let lab = Lab::claim(demo::topology()?)?;
    let ended = end_on_signal(&lab)?;
    lab.build()?;
    let (fabric, failed) = demo::show(&lab)?;
    if !once {
        demo::invite(&fabric)?;
        let _ = ended.recv();
    }
    drop(fabric);
    demo::end(&lab)?;
    say!("\nThe demo took {:.1} s.", start.elapsed().as_secs_f32());
    if !failed.is_empty() {
        bail!("these promises were not kept: {}", failed.join(", "));
    }
    Ok(())
}

/// Takes the lab down and ends the process when a signal comes, wherever the first thread is.
fn end_on_signal(lab: &Lab) -> Result<Receiver<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let enter = runtime.enter();
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        signals.push(signal(kind).context("cannot watch for signals")?);
    }
    drop(enter);
    // Weak: if the first thread panics, its lab must be the last one, so that it goes down.
    let lab = lab.downgrade();
    let (hold, ended) = channel();
    thread::spawn(move || {
        // Held until the process ends: who waits for this end waits for good.
        let _hold: Sender<()> = hold;
        runtime.block_on(async {
            let waits = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
            futures_util::future::select_all(waits).await;
        });
        let code = match lab.upgrade().map_or(Ok(()), |lab| demo::end(&lab)) {
            Ok(()) => 130,
            Err(error) => {
                tracing::error!("{error:#}");
                1
            }
        };
        std::process::exit(code);
    });
    Ok(ended)
}

fn ls() -> Result<()> {
    for (place, record) in state::list()? {
        match record {
            Some(record) if record.owner.alive() => {
                say!("{}  {}  {}", place.id, record.title, record.machines.join(" "))
            }
            _ => say!("{}  its runner is gone: `lab down {}` removes the remains", place.id, place.id),
        }
    }
    Ok(())
}

/// Finds the one lab that has such a machine, and becomes the program inside.
fn exec(id: Option<&str>, machine: &str, program: &[String]) -> Result<()> {
    let labs = state::list()?.into_iter().filter(|(place, _)| id.is_none_or(|id| place.id == id));
    let mut found: Vec<_> = labs
        .filter(|(_, record)| record.as_ref().is_some_and(|record| record.machines.iter().any(|name| name == machine)))
        .map(|(place, _)| place)
        .collect();
    let place = found.pop().with_context(|| format!("no running lab has a machine {machine:?}: see `lab ls`"))?;
    if !found.is_empty() {
        bail!("several labs have a machine {machine:?}: choose one with --lab, see `lab ls`");
    }
    let resolv_conf = place.machine(machine).join("resolv.conf");
    let netns = weft_test_support::netns_path(&place.netns(machine));
    spawn::enter(&netns, resolv_conf.exists().then_some(resolv_conf.as_path()), None, program)
}
