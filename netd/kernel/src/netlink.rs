//! rtnetlink by one blocking socket: requests in one datagram, answered one by one, and dumps.
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::{Error, Result};

/// Make it, and fail if it is there.
pub(crate) const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Make it, or write over what has this handle.
pub(crate) const ATTACH: u16 = NLM_F_CREATE;
/// Make it, or put it in the place of what is there.
pub(crate) const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// One request.
pub(crate) struct Request {
    /// What it does, for the error.
    pub(crate) what: String,
    /// The message.
    pub(crate) message: RouteNetlinkMessage,
    /// Flags besides request and acknowledgement.
    pub(crate) flags: u16,
    /// Error numbers that mean: it is so already.
    pub(crate) fine: &'static [i32],
}

impl Request {
    /// A request that must succeed.
    pub(crate) fn new(what: impl Into<String>, message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { what: what.into(), message, flags, fine: &[] }
    }

    /// The same, content with these errors.
    pub(crate) fn or(mut self, fine: &'static [i32]) -> Self {
        self.fine = fine;
        self
    }
}

/// A socket in the netns of the thread that opened it.
pub(crate) struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Opens one in the calling thread's netns.
    pub(crate) fn open() -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.set_cap_ack(true)?;
            socket.set_netlink_get_strict_chk(true)?;
            Ok(socket)
        };
        open().map(|socket| Self { socket }).map_err(Error::netlink("open a netlink socket"))
    }

    /// Sends all requests at once. The kernel handles each of them, in order, whatever becomes of the others; the first
    /// error is returned.
    pub(crate) fn batch(&self, requests: Vec<Request>) -> Result<()> {
        let mut buffer = Vec::new();
        let mut about = Vec::new();
        for (number, request) in requests.into_iter().enumerate() {
            let mut message = NetlinkMessage::from(request.message);
            message.header.flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
            message.header.sequence_number = u32::try_from(number).unwrap_or(u32::MAX);
            message.finalize();
            let at = buffer.len();
            buffer.resize(at + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(buffer.get_mut(at..).unwrap_or_default());
            about.push((request.what, request.fine));
        }
        let mut failed = None;
        let failure = Error::netlink("take netlink requests");
        if let Err(error) = self.exchange(&buffer, &about, &mut failed) {
            return Err(failure(error));
        }
        failed.map_or(Ok(()), |(what, error)| Err(Error::netlink(what)(error)))
    }

    fn exchange(
        &self,
        buffer: &[u8],
        about: &[(String, &'static [i32])],
        failed: &mut Option<(String, io::Error)>,
    ) -> io::Result<()> {
        self.socket.send_to(buffer, &SocketAddr::new(0, 0), 0)?;
        let mut left = about.len();
        while left > 0 {
            for message in self.receive()? {
                let NetlinkPayload::Error(answer) = &message.payload else { continue };
                left -= 1;
                let Some(code) = answer.code else { continue };
                let Some((what, fine)) = about.get(message.header.sequence_number as usize) else { continue };
                if failed.is_none() && !fine.contains(&code.get().abs()) {
                    *failed = Some((what.clone(), io::Error::from_raw_os_error(code.get().abs())));
                }
            }
        }
        Ok(())
    }

    /// The messages of one datagram.
    fn receive(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let (data, _) = self.socket.recv_from_full()?;
        let mut messages = Vec::new();
        let mut rest = data.as_slice();
        while rest.len() >= 16 {
            let (length, message) = parse(rest)?;
            messages.extend(message);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }

    /// Everything that a dump request gives; asks again if it changed meanwhile.
    pub(crate) fn dump(&self, what: &str, request: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>> {
        let mut last = Ok(None);
        for _ in 0..5 {
            last = self.dump_once(request);
            if let Ok(Some(list)) = last {
                return Ok(list);
            }
        }
        let error = last.err().unwrap_or_else(|| io::Error::other("it changes faster than it can be read"));
        Err(Error::netlink(what)(error))
    }

    fn dump_once(&self, request: &RouteNetlinkMessage) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let mut message = NetlinkMessage::from(request.clone());
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.socket.send_to(&buffer, &SocketAddr::new(0, 0), 0)?;
        let (mut list, mut interrupted) = (Vec::new(), false);
        loop {
            for message in self.receive()? {
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => list.push(inner),
                    NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(list)),
                    NetlinkPayload::Error(answer) => {
                        let code = answer.code.map_or(0, |code| code.get().abs());
                        return Err(io::Error::from_raw_os_error(code));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// One message and its length; a payload of a kind or with an attribute that the parser does not know is skipped.
fn parse(bytes: &[u8]) -> io::Result<(usize, Option<NetlinkMessage<RouteNetlinkMessage>>)> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message is shorter than it says");
    let length = bytes.first_chunk::<4>().map(|chunk| u32::from_ne_bytes(*chunk) as usize).ok_or_else(short)?;
    let whole = bytes.get(..length).filter(|_| length >= 16).ok_or_else(short)?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(whole) {
        Ok(message) => Ok((length, Some(message))),
        Err(error) => {
            tracing::debug!(%error, "skipped a netlink message that could not be parsed");
            Ok((length, None))
        }
    }
}
