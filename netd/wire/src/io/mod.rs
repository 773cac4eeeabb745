//! The process: waits for its inputs, gives up its privileges, and runs one thread a direction, one for timers and one for
//! the control socket. The only unsafe code of the crate is in `udp`.

mod batch;
mod control;
mod inbound;
mod metrics;
mod outbound;
mod udp;

use std::{
    fs,
    io::{self, Read},
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use nix::sys::prctl;
use weft_tun::{Options, Tun};
use zeroize::Zeroizing;

use crate::{
    config::{Config, DEFAULT_PORT, MAX_CONFIG_LEN},
    engine::{Engine, TimerHeap},
    uapi::Delta,
};
use udp::SharedSocket;

/// How often an input that is not there yet is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What `netd wire` is told on its command line.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The persistent TUN that leads into the tunnel; netd makes it
    #[arg(long, default_value = "weft0")]
    pub tun: String,
    /// Keys and peers, in the format of `wg setconf`, mode 0600; netd writes it
    #[arg(long, default_value = "/var/lib/weft/wire.conf")]
    pub config: PathBuf,
    /// The control socket, as `wg` and netd speak to it
    #[arg(long, default_value = "/run/weft/weft0.sock")]
    pub uapi: PathBuf,
    /// Serve metrics over HTTP at this address, for example 127.0.0.1:9587
    #[arg(long)]
    pub metrics: Option<SocketAddr>,
    /// Handshake messages a second that are taken without proof of the sender's address
    #[arg(long, default_value_t = 1000)]
    pub handshake_limit: u64,
}

/// Why the tunnel cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be read.
    #[error("cannot read {path}: {error}; netd writes this file, check its directory and rights")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The configuration file is open to others.
    #[error(
        "{path} has mode {mode:04o}, so others may have read its private key: draw a new key, and make the file 0600"
    )]
    Mode {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The configuration file does not say what it should.
    #[error("{path}: {what}")]
    Config {
        /// Which.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// Something that the process stands on is gone or refused.
    #[error("{what}: {error}; {way_out}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        error: io::Error,
        /// What to do.
        way_out: &'static str,
    },
    /// A thread ended.
    #[error("the {0} thread panicked: this is a bug; start again, TCP connections survive that")]
    Panic(&'static str),
}

impl Error {
    fn io(what: impl Into<String>, error: io::Error, way_out: &'static str) -> Self {
        Self::Io { what: what.into(), error, way_out }
    }
}

/// Runs the tunnel. Returns only with an error; the TUN stays, and with it everything that is routed into it.
pub fn run(args: Args) -> Result<(), Error> {
    let config = wait_for_config(&args.config)?;
    let (tun, mtu) = wait_for_tun(&args.tun)?;
    let engine = Arc::new(Engine::new(args.handshake_limit));
    let socket = SharedSocket::bind(config.listen_port.unwrap_or(DEFAULT_PORT), config.fwmark.unwrap_or(0)).map_err(
        |error| Error::io("cannot open the UDP socket", error, "stop whatever holds the port, or change ListenPort"),
    )?;
    let listener = control::listen(&args.uapi)?;
    let metrics = args.metrics.map(metrics::listen).transpose()?;
    let too_many =
        |error: crate::table::TooManyPeers| Error::Config { path: args.config.clone(), what: error.to_string() };
    engine.apply(&Delta { listen_port: None, fwmark: None, ..Delta::of(&config) }).map_err(too_many)?;
    tracing::info!(tun = args.tun, mtu, port = socket.port(), peers = config.peers.len(), "the tunnel is up");
    drop(config);
    give_up_privileges()?;
    start_threads(engine, Arc::new(tun), mtu as usize, Arc::new(socket), listener, metrics)
}

/// Starts all threads and waits for the first to end: without any of them the tunnel is none.
fn start_threads(
    engine: Arc<Engine>,
    tun: Arc<Tun>,
    mtu: usize,
    socket: Arc<SharedSocket>,
    listener: std::os::unix::net::UnixListener,
    metrics: Option<std::net::TcpListener>,
) -> Result<(), Error> {
    let (ended, first) = mpsc::channel::<Result<(), Error>>();
    let spawn = |name: &'static str, work: Box<dyn FnOnce() -> Result<(), Error> + Send>| {
        let ended = ended.clone();
        let body = move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // The receiver lives as long as the process.
            let _ = ended.send(result.unwrap_or(Err(Error::Panic(name))));
        };
        thread::Builder::new()
            .name(name.into())
            .spawn(body)
            .map(drop)
            .map_err(|error| Error::io("cannot start a thread", error, "raise the limit of tasks"))
    };
    {
        let (engine, tun, socket) = (Arc::clone(&engine), Arc::clone(&tun), Arc::clone(&socket));
        spawn("outbound", Box::new(move || outbound::run(&engine, &tun, mtu, &socket)))?;
    }
    {
        let (engine, socket) = (Arc::clone(&engine), Arc::clone(&socket));
        spawn("inbound", Box::new(move || inbound::run(&engine, &tun, &socket)))?;
    }
    {
        let (engine, socket) = (Arc::clone(&engine), Arc::clone(&socket));
        spawn("timers", Box::new(move || run_timers(&engine, &socket)))?;
    }
    if let Some(listener) = metrics {
        let engine = Arc::clone(&engine);
        spawn("metrics", Box::new(move || metrics::run(&engine, &listener)))?;
    }
    spawn("control", Box::new(move || control::run(&engine, &socket, &listener)))?;
    first.recv().unwrap_or(Ok(()))
}

fn run_timers(engine: &Engine, socket: &SharedSocket) -> Result<(), Error> {
    let mut heap = TimerHeap::default();
    let mut send = |message: &[u8], to| socket.send_one(&engine.counters, message, to);
    loop {
        engine.run_timers(&mut heap, &mut send);
    }
}

/// Looks until `look` gives something, and says once what is missing.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>, Error>) -> Result<T, Error> {
    let mut said = false;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if !said {
            tracing::info!("waiting for {what}");
            said = true;
        }
        thread::sleep(LOOK_AGAIN);
    }
}

fn wait_for_config(path: &Path) -> Result<Config, Error> {
    let text = wait_for(&format!("the configuration file {}", path.display()), || match read_private(path) {
        Ok(text) => Ok(Some(text)),
        Err(Error::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    })?;
    let config = Config::parse(&text).map_err(|error| Error::Config { path: path.into(), what: error.to_string() })?;
    if config.private_key.is_none() {
        let what = "[Interface] has no PrivateKey: add the one that netd drew".into();
        return Err(Error::Config { path: path.into(), what });
    }
    Ok(config)
}

fn read_private(path: &Path) -> Result<Zeroizing<String>, Error> {
    let failed = |error| Error::Read { path: path.into(), error };
    let file = fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::Mode { path: path.into(), mode });
    }
    // One byte more than is allowed, so that a longer file is refused and not cut.
    let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len().min(MAX_CONFIG_LEN as u64) as usize + 1));
    file.take(MAX_CONFIG_LEN as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let text =
        std::str::from_utf8(&bytes).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn wait_for_tun(name: &str) -> Result<(Tun, u32), Error> {
    let refused = |error| Error::io(format!("cannot attach to TUN {name}"), error, "netd makes this device");
    wait_for(&format!("the TUN {name}"), || match Tun::open(name, Options::default()) {
        Ok(tun) => {
            let info = weft_tun::link_info(name).map_err(refused)?;
            Ok(info.map(|info| (tun, info.mtu)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refused(error)),
    })
}

/// From here on the process needs nothing but what it holds. Threads inherit this.
fn give_up_privileges() -> Result<(), Error> {
    let failed =
        |error: io::Error| Error::io("cannot give up privileges", error, "report this with the kernel's version");
    let errno = |error: nix::Error| failed(error.into());
    prctl::set_no_new_privs().map_err(errno)?;
    // Neither core dumps nor debuggers get at the keys.
    prctl::set_dumpable(false).map_err(errno)?;
    for set in [caps::CapSet::Ambient, caps::CapSet::Effective, caps::CapSet::Permitted, caps::CapSet::Inheritable] {
        match caps::clear(None, set) {
            Ok(()) => {}
            Err(error) => return Err(failed(io::Error::other(error.to_string()))),
        }
    }
    Ok(())
}
