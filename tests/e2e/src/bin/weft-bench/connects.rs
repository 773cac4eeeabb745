//! The two ends of the connection-rate measurement.
use std::{
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Accepts and closes, for ever.
pub(crate) fn accept(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    loop {
        drop(listener.accept());
    }
}

/// Opens connections one after the other and prints how many a second.
pub(crate) fn connect(address: SocketAddr, duration: Duration) -> Result<()> {
    let start = Instant::now();
    let mut done = 0u32;
    while start.elapsed() < duration {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        // The other end closes once it has accepted. Without waiting for that its backlog overflows, and the figure would
        // be that of the SYN's second attempt.
        let _ = stream.read(&mut [0])?;
        // Reset instead of TIME_WAIT, so that the client's ports do not run out before the measurement ends.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        done += 1;
    }
    if done == 0 {
        bail!("no connection to {address} was opened");
    }
    println!("{}", f64::from(done) / start.elapsed().as_secs_f64());
    Ok(())
}
