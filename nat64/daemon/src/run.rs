//! The process: waits for its inputs, gives up its privileges, starts a thread a queue, and serves signals and timers.
use std::{
    io::{PipeReader, PipeWriter, Write, pipe},
    os::{fd::AsFd, unix::net::UnixListener},
    path::Path,
    sync::Mutex,
};

use anyhow::Context;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use weft_nat64_core::{Config, Engine};
use weft_tun::{Options, Tun};

use crate::{
    RunArguments, metrics, privileges, read_config,
    worker::{IoCounters, Shared, now, serve},
};

/// How often something that is waited for is looked at, in milliseconds.
const LOOK_AGAIN: u16 = 200;
/// The longest sleep, in milliseconds: timers of new sessions begin while the thread sleeps.
const LONGEST_SLEEP: u64 = 1_000;

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(arguments: &RunArguments) -> anyhow::Result<()> {
    let signals = block_signals()?;
    // Written before the configuration is read: a signal that comes meanwhile is kept, so no change is missed.
    arguments.pid_file.as_deref().map(write_pid).transpose()?;
    let Some(config) = wait_for_config(&arguments.config, &signals)? else { return Ok(()) };
    if arguments.create_tun {
        Tun::create_persistent(&config.tun, Options::default())?;
        weft_tun::set_up(&config.tun, config.mtu4.into())?;
    }
    let Some(queues) = wait_for_tun(&config, &signals)? else { return Ok(()) };
    let listener = arguments.metrics_socket.as_deref().map(metrics::listen).transpose()?;
    let mut seed = [0; 2];
    for half in &mut seed {
        *half = getrandom::u64()
            .map_err(|error| anyhow::anyhow!("the kernel gives no randomness ({error}): restart nat64"))?;
    }
    let engine = Engine::new(config, now(), seed)?;
    privileges::drop_all()?;
    let shared = Shared { engine: Mutex::new(engine), io: IoCounters::default() };
    let (stop, stopper) = pipe().context("cannot open a pipe: raise the limit of open files")?;
    let (ended, ending) = pipe().context("cannot open a pipe: raise the limit of open files")?;
    tracing::info!(
        tun = shared.engine().config().tun,
        queues = queues.len(),
        uso = queues.iter().all(Tun::uso),
        "translating"
    );
    std::thread::scope(|scope| {
        let threads: Vec<_> = queues
            .iter()
            .map(|queue| {
                let (shared, stop, ending) = (&shared, &stop, Ending(&ending));
                scope.spawn(move || {
                    let _ending = ending;
                    serve(shared, queue, stop.as_fd())
                })
            })
            .collect();
        let result = control(arguments, &shared, &signals, listener.as_ref(), &ended);
        // The threads see the end of the pipe.
        drop(stopper);
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a queue's thread panicked: report this as a bug"))??;
        }
        result
    })
}

/// Says that a queue's thread ended, also by a panic: half a translator loses flows, so the process ends with any of them.
struct Ending<'a>(&'a PipeWriter);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let _ = self.0.write(&[0]);
    }
}

/// Writes the process's number, whole or not at all.
fn write_pid(path: &Path) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, std::process::id().to_string())
        .and_then(|()| std::fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}: give a --pid-file in a folder that exists", path.display()))
}

/// Signals come by a descriptor, to the main thread.
fn block_signals() -> anyhow::Result<SignalFd> {
    let set: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    set.thread_block().context("cannot block signals: restart nat64")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot read signals: restart nat64")
}

/// What a signal asks for.
#[derive(PartialEq, Eq)]
enum Asked {
    Nothing,
    Reload,
    Stop,
}

fn asked(signals: &SignalFd) -> anyhow::Result<Asked> {
    let mut asked = Asked::Nothing;
    while let Some(signal) = signals.read_signal().context("cannot read signals: restart nat64")? {
        if signal.ssi_signo == Signal::SIGHUP as u32 {
            asked = Asked::Reload;
        } else {
            return Ok(Asked::Stop);
        }
    }
    Ok(asked)
}

/// Sleeps until it is time to look again; whether to give up.
fn stopped_while_waiting(signals: &SignalFd) -> anyhow::Result<bool> {
    let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(LOOK_AGAIN)) {
        Ok(_) | Err(Errno::EINTR) => Ok(asked(signals)? == Asked::Stop),
        Err(error) => Err(error).context("cannot wait: restart nat64"),
    }
}

/// The configuration, once it is there; `None` if a signal ended the wait.
fn wait_for_config(path: &Path, signals: &SignalFd) -> anyhow::Result<Option<Config>> {
    let mut said = false;
    while !path.exists() {
        if !std::mem::replace(&mut said, true) {
            tracing::info!(path = %path.display(), "waiting for the configuration: netd writes it");
        }
        if stopped_while_waiting(signals)? {
            return Ok(None);
        }
    }
    read_config(path).map(Some)
}

/// The device's queues, once it is there; `None` if a signal ended the wait.
fn wait_for_tun(config: &Config, signals: &SignalFd) -> anyhow::Result<Option<Vec<Tun>>> {
    let mut said = false;
    while weft_tun::link_info(&config.tun)?.is_none() {
        if !std::mem::replace(&mut said, true) {
            tracing::info!(tun = config.tun, "waiting for the TUN device: netd makes it, or --create-tun");
        }
        if stopped_while_waiting(signals)? {
            return Ok(None);
        }
    }
    let queues = (0..config.queues).map(|_| Tun::open(&config.tun, Options::default()));
    Ok(Some(queues.collect::<std::io::Result<_>>()?))
}

/// Serves signals, timers and metrics until it is time to stop.
fn control(
    arguments: &RunArguments,
    shared: &Shared,
    signals: &SignalFd,
    listener: Option<&UnixListener>,
    ended: &PipeReader,
) -> anyhow::Result<()> {
    loop {
        let sleep = {
            let mut engine = shared.engine();
            engine.handle_timeout(now());
            let next = engine.poll_timeout().map_or(LONGEST_SLEEP, |at| at.saturating_sub(now()));
            next.clamp(10, LONGEST_SLEEP) as u16
        };
        let mut fds =
            vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        fds.extend(listener.map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::from(sleep)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait: restart nat64"),
        }
        if fds.get(1).and_then(PollFd::any) == Some(true) {
            return Ok(());
        }
        match asked(signals)? {
            Asked::Nothing => {}
            Asked::Reload => reload(&arguments.config, shared),
            Asked::Stop => {
                tracing::info!(sessions = shared.engine().sessions().count(), "stopping");
                return Ok(());
            }
        }
        if let Some(listener) = listener {
            metrics::answer(listener, shared);
        }
    }
}

/// Takes the file's present content; a wrong one changes nothing.
fn reload(path: &Path, shared: &Shared) {
    let config = match read_config(path) {
        Ok(config) => config,
        Err(error) => return tracing::error!("the configuration stays as it was: {error:#}"),
    };
    let mut engine = shared.engine();
    let old = engine.config();
    if (&old.tun, old.queues) != (&config.tun, config.queues) {
        tracing::warn!("tun and queues change only when nat64 is restarted");
    }
    let before = engine.sessions().count();
    match engine.reconfigure(config) {
        Ok(()) => tracing::info!(sessions = engine.sessions().count(), before, "reloaded"),
        Err(error) => tracing::error!("the configuration stays as it was: {error}"),
    }
}
