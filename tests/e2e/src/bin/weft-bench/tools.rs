//! The load generators: iperf3 and ping, and what is read from their output.
use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result};

use crate::net::{self, Ns};

/// What one iperf3 run shows.
pub(crate) enum Load {
    /// TCP with this many streams: Gbit/s received.
    Tcp(u32),
    /// TCP in the other direction.
    TcpDown(u32),
    /// UDP datagrams of 64 bytes, as many as go: thousands delivered a second.
    Udp64,
}

/// Runs iperf3 between two namespaces, to `address`.
pub(crate) fn iperf(client: &Ns, server: &Ns, address: &str, load: &Load, duration: Duration) -> Result<f64> {
    let mut listen = server.command("iperf3");
    listen.args(["-s", "-1"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut daemon = listen.spawn()?;
    net::wait_for("iperf3 to listen", || server.sh("ss -Htln sport = :5201").is_ok_and(|out| !out.is_empty()))?;
    let seconds = duration.as_secs().to_string();
    let mut command = client.command("iperf3");
    command.args(["-J", "-c", address, "-t", &seconds]);
    match load {
        Load::Tcp(streams) => command.args(["-P", &streams.to_string()]),
        Load::TcpDown(streams) => command.args(["-R", "-P", &streams.to_string()]),
        Load::Udp64 => command.args(["-u", "-b", "0", "-l", "64"]),
    };
    let output = net::run(&mut command);
    let _ = daemon.kill();
    let _ = daemon.wait();
    let report: serde_json::Value = serde_json::from_slice(&output?.stdout)?;
    let end = report.get("end").context("iperf3 printed no end")?;
    let number = |path: &str| end.pointer(path).and_then(serde_json::Value::as_f64).context("iperf3 printed no result");
    match load {
        Load::Tcp(_) | Load::TcpDown(_) => Ok(number("/sum_received/bits_per_second")? / 1e9),
        Load::Udp64 => {
            let delivered = number("/sum/packets")? - number("/sum/lost_packets")?;
            Ok(delivered / number("/sum/seconds")? / 1e3)
        }
    }
}

/// Round-trip times in milliseconds of pings in quick succession.
pub(crate) fn pings(client: &Ns, address: &str, count: u32) -> Result<Vec<f64>> {
    let count = count.to_string();
    let output = net::run(client.command("ping").args(["-n", "-c", &count, "-i", "0.02", "-W", "1", address]))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let times = text.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse().ok());
    Ok(times.collect())
}

/// TCP connections a second, opened one after the other.
pub(crate) fn connects(client: &Ns, server: &mut Ns, listen: &str, address: &str, duration: Duration) -> Result<f64> {
    let own = std::env::current_exe()?;
    if server.sh("ss -Htln sport = :5300")?.is_empty() {
        let mut command = server.command(&own);
        command.args(["accept", listen]);
        server.spawn(&mut command)?;
        net::wait_for("the acceptor to listen", || {
            server.sh("ss -Htln sport = :5300").is_ok_and(|out| !out.is_empty())
        })?;
    }
    let seconds = duration.as_secs().to_string();
    let output = net::run(client.command(&own).args(["connect", address, &seconds]))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}
