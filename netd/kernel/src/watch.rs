//! Tells that something changed in the kernel, so that the next plan is made at once and not in five seconds.
use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use tokio::sync::watch;

use crate::{Error, Result};

/// RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR and _IPV6_ROUTE.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Counts up for every datagram of events, and when events were lost (ENOBUFS): whoever listens observes anew.
pub(crate) fn watch() -> Result<watch::Receiver<u64>> {
    let open = || -> io::Result<TokioSocket> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
        Ok(socket)
    };
    let socket = open().map_err(Error::netlink("listen to netlink events"))?;
    let (sender, receiver) = watch::channel(0u64);
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = socket.recv_from_full() => event,
                () = sender.closed() => return,
            };
            match event {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    tracing::debug!("netlink events were lost: everything is looked at anew");
                }
                Err(error) => {
                    tracing::warn!(%error, "netlink events ended: changes are found by the periodic look only");
                    return;
                }
            }
            sender.send_modify(|count| *count = count.wrapping_add(1));
        }
    });
    Ok(receiver)
}
