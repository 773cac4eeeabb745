//! Metrics over HTTP/1.0, for a scraper on this machine: every request gets the same page.
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use super::Error;
use crate::engine::Engine;

const TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    let what = format!("cannot serve metrics at {address}");
    TcpListener::bind(address).map_err(|error| Error::io(what, error, "choose another --metrics address"))
}

pub(super) fn run(engine: &Engine, listener: &TcpListener) -> Result<(), Error> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                // A scraper that goes away early is no business of the tunnel's.
                let _ = answer(engine, stream);
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn answer(engine: &Engine, mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // What is asked does not matter, but closing with unread bytes would reset the connection.
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    let body = engine.metrics();
    let length = body.len();
    let head =
        format!("HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}
