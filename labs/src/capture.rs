//! Sees every frame on a machine's interfaces, and sends packets that no kernel made.
use std::{
    io::{ErrorKind, Read},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::Lab;

/// ETH_P_ALL, in the network's byte order as packet(7) wants it.
const EVERY_PROTOCOL: u16 = 0x0003_u16.to_be();

/// A running capture on every interface of one machine. What the judge makes of the frames is kept in `T`.
pub struct Capture<T> {
    seen: Arc<Mutex<T>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Capture<T> {
    /// Begins at once: the socket sees every frame from the moment that this returns.
    pub fn start(lab: &Lab, machine: &str, seen: T, judge: impl Fn(&mut T, &[u8]) + Send + 'static) -> Result<Self> {
        let open = || Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(EVERY_PROTOCOL))));
        let socket = lab.on(machine, open)?.context("cannot open a packet socket: run this as root")?;
        socket.set_read_timeout(Some(Duration::from_millis(20))).context("cannot set a deadline")?;
        // A burst must not be lost; the kernel doubles and bounds it.
        socket.set_recv_buffer_size(8 << 20).context("cannot enlarge a buffer")?;
        let seen = Arc::new(Mutex::new(seen));
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, stopping) = (seen.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 17];
            // One more look after the stop: what was queued by then still counts.
            loop {
                let last = stopping.load(Ordering::Acquire);
                match (&socket).read(&mut buffer) {
                    Ok(length) => {
                        let frame = buffer.get(..length).unwrap_or_default();
                        judge(&mut theirs.lock().unwrap_or_else(PoisonError::into_inner), frame);
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) && last => break,
                    // An interface that goes down is reported here once; the socket goes on.
                    Err(_) => {}
                }
            }
        });
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// What has been seen so far.
    pub fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the capture, after all that has arrived was judged.
    pub fn stop(mut self) {
        self.end();
    }
}

impl<T> Capture<T> {
    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A judge that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl<T> Drop for Capture<T> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sends an IPv6 packet as it is, header and all, from a machine. Its routes decide where it goes.
pub fn send_raw(lab: &Lab, machine: &str, packet: &[u8], target: Ipv6Addr) -> Result<()> {
    /// IPPROTO_RAW: the packet brings its own IPv6 header (raw(7)).
    const HEADER_INCLUDED: i32 = 255;
    let sent = lab.on(machine, || -> std::io::Result<usize> {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(HEADER_INCLUDED)))?;
        socket.send_to(packet, &SocketAddr::V6(SocketAddrV6::new(target, 0, 0, 0)).into())
    })?;
    sent.map(drop).with_context(|| format!("{machine} cannot send a packet for {target}"))
}
