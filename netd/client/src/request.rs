//! Requests and their answers: deadlines, bounds, decoding, and the stream of events.
use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, client::conn::http1::SendRequest};
use rustls_pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use weft_model::ApiError;

use crate::{ClientError, SseEvent, SseParser, connect::Target};

/// Largest request body.
const REQUEST_LIMIT: usize = 4 << 20;
/// Largest answer: a list of a hundred thousand objects fits.
const REPLY_LIMIT: usize = 256 << 20;
/// Largest error body.
const ERROR_LIMIT: usize = 64 << 10;
/// Largest event.
const EVENT_LIMIT: usize = 64 << 20;
/// Connections that are kept open between calls.
const IDLE: usize = 4;

/// Events as they come; after an error the stream ends.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<SseEvent, ClientError>> + Send>>;

/// A client of one netd. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    target: Arc<Target>,
    idle: Arc<Mutex<Vec<SendRequest<Full<Bytes>>>>>,
    deadline: Duration,
    silence: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.target.name())
    }
}

impl Client {
    /// A client of the netd on this machine, by its socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::of(Target::Unix(path.into()))
    }

    /// A client of a node's API: the endpoints are tried in turn, each must prove that it is `server_name`.
    #[must_use]
    pub fn tls(
        endpoints: Vec<SocketAddr>,
        config: Arc<rustls::ClientConfig>,
        server_name: ServerName<'static>,
    ) -> Self {
        Self::of(Target::tls(endpoints, config, server_name))
    }

    fn of(target: Target) -> Self {
        Self {
            target: Arc::new(target),
            idle: Arc::default(),
            deadline: Duration::from_secs(10),
            silence: Duration::from_secs(45),
        }
    }

    /// Sets how long a call may take as a whole; 10 s by default.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets how long a stream of events may be silent (comments count as signs of life) until it counts as broken; 45 s by default.
    #[must_use]
    pub fn with_silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// `GET path`.
    pub async fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R, ClientError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// `POST path` with a JSON body.
    pub async fn post<T: Serialize + ?Sized, R: DeserializeOwned>(
        &self,
        path: &str,
        body: &T,
    ) -> Result<R, ClientError> {
        self.call(Method::POST, path, json(path, body)?).await
    }

    /// `PUT path` with a JSON body.
    pub async fn put<T: Serialize + ?Sized, R: DeserializeOwned>(
        &self,
        path: &str,
        body: &T,
    ) -> Result<R, ClientError> {
        self.call(Method::PUT, path, json(path, body)?).await
    }

    /// `DELETE path`.
    pub async fn delete<R: DeserializeOwned>(&self, path: &str) -> Result<R, ClientError> {
        self.call(Method::DELETE, path, Bytes::new()).await
    }

    /// `GET path` as server-sent events. The deadline bounds only the time until the stream begins.
    pub async fn events(&self, path: &str) -> Result<EventStream, ClientError> {
        let request = self.request(Method::GET, path, Bytes::new(), "text/event-stream")?;
        let open = async {
            let mut sender = self.target.connect().await?;
            let response = sender.send_request(request).await.map_err(|error| self.broken(&error))?;
            if response.status() != StatusCode::OK {
                return Err(self.refusal(path, response).await);
            }
            // The sender stays alive with the stream: dropping it would end the connection.
            Ok((sender, response.into_body()))
        };
        let (sender, body) = self.within(open).await?;
        let state = Events { client: self.clone(), _sender: sender, body, parser: SseParser::new(EVENT_LIMIT) };
        Ok(Box::pin(stream::unfold(Some(state), Events::next)))
    }

    async fn call<R: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<R, ClientError> {
        let bytes = self.within(self.exchange(method, path, body)).await?;
        // An empty answer stands for `null`, so that `()` can be asked for.
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).map_err(|error| self.foreign(path, StatusCode::OK, &error.to_string()))
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        // Made before anything is opened: a request that cannot be made must not look like a netd that is away.
        let request = self.request(method, path, body, "application/json")?;
        let (mut sender, reused) = match self.take_idle() {
            Some(sender) => (sender, true),
            None => (self.target.connect().await?, false),
        };
        let mut outcome = sender.try_send_request(request).await;
        let unsent = outcome.as_mut().err().filter(|_| reused).and_then(|error| error.take_message());
        if let Some(request) = unsent {
            // A kept connection had been closed by the other end before the request left: it is safe to send it again.
            sender = self.target.connect().await?;
            outcome = sender.try_send_request(request).await;
        }
        let response = outcome.map_err(|error| self.broken(error.error()))?;
        if !response.status().is_success() {
            return Err(self.refusal(path, response).await);
        }
        let bytes = self.read(response, REPLY_LIMIT).await?;
        self.keep(sender);
        Ok(bytes)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        accept: &str,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request =
            Request::builder().method(method).uri(path).header(header::HOST, "netd").header(header::ACCEPT, accept);
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::new(body))
            .map_err(|error| ClientError::Request { path: path.into(), reason: error.to_string() })
    }

    async fn read(&self, response: Response<Incoming>, limit: usize) -> Result<Bytes, ClientError> {
        match Limited::new(response.into_body(), limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(ClientError::TooLarge { what: "the answer", limit }),
            Err(error) => Err(ClientError::Broken { target: self.target.name(), reason: error.to_string() }),
        }
    }

    /// The error that an answer other than success stands for.
    async fn refusal(&self, path: &str, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        match self.read(response, ERROR_LIMIT).await {
            Ok(body) => match serde_json::from_slice::<ApiError>(&body) {
                Ok(error) => ClientError::Api(error),
                Err(_) => {
                    self.foreign(path, status, &String::from_utf8_lossy(&body).chars().take(200).collect::<String>())
                }
            },
            Err(error) => error,
        }
    }

    fn foreign(&self, path: &str, status: StatusCode, reason: &str) -> ClientError {
        ClientError::Foreign {
            target: self.target.name(),
            path: path.into(),
            status: status.as_u16(),
            reason: reason.into(),
        }
    }

    fn broken(&self, error: &hyper::Error) -> ClientError {
        // With TLS 1.3 the server judges the client's certificate after the handshake: the refusal arrives here.
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
                return ClientError::Tls {
                    endpoint: self.target.name(),
                    reason: tls.to_string(),
                    hint: "the other side refuses this node's certificate: has the node been removed from the fabric, or is a clock wrong?",
                };
            }
            source = match inner.downcast_ref::<std::io::Error>() {
                Some(io) => io.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static)),
                None => inner.source(),
            };
        }
        let reason =
            std::error::Error::source(error).map_or_else(|| error.to_string(), |inner| format!("{error}: {inner}"));
        ClientError::Broken { target: self.target.name(), reason }
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        let late = |_| ClientError::Timeout { target: self.target.name(), after: self.deadline };
        timeout(self.deadline, work).await.map_err(late)?
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE && !sender.is_closed() {
            idle.push(sender);
        }
    }
}

/// A stream of events in progress.
struct Events {
    client: Client,
    _sender: SendRequest<Full<Bytes>>,
    body: Incoming,
    parser: SseParser,
}

impl Events {
    /// The next event and the state after it; an error, or the end, is the last.
    async fn next(state: Option<Self>) -> Option<(Result<SseEvent, ClientError>, Option<Self>)> {
        let mut state = state?;
        loop {
            if let Some(event) = state.parser.next_event() {
                return Some((Ok(event), Some(state)));
            }
            match state.more().await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some((Err(error), None)),
            }
        }
    }

    /// Reads on; `false` when the server has ended the stream.
    async fn more(&mut self) -> Result<bool, ClientError> {
        let target = || self.client.target.name();
        let late = |_| ClientError::Timeout { target: target(), after: self.client.silence };
        let Some(frame) = timeout(self.client.silence, self.body.frame()).await.map_err(late)? else {
            return Ok(false);
        };
        let frame = frame.map_err(|error| self.client.broken(&error))?;
        if let Some(bytes) = frame.data_ref() {
            self.parser.feed(bytes).map_err(|source| ClientError::Events { target: target(), source })?;
        }
        Ok(true)
    }
}

fn json<T: Serialize + ?Sized>(path: &str, body: &T) -> Result<Bytes, ClientError> {
    let bytes = serde_json::to_vec(body)
        .map_err(|error| ClientError::Request { path: path.into(), reason: error.to_string() })?;
    if bytes.len() > REQUEST_LIMIT {
        return Err(ClientError::TooLarge { what: "the request", limit: REQUEST_LIMIT });
    }
    Ok(bytes.into())
}

/// Percent-encodes a value for a path's segment or a query (RFC 3986 2.1): all but the unreserved characters.
#[must_use]
pub fn encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
