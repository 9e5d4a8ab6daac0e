//! The client of the control API: HTTP/1.1 over a Unix socket, one connection a request.

use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, StatusCode,
    body::{Bytes, Frame, Incoming},
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{ApiError, types::Change};

type RequestBody = UnsyncBoxBody<Bytes, Infallible>;
type Connection = http1::Connection<TokioIo<UnixStream>, RequestBody>;

/// Speaks to one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon answered that it will not or cannot.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// Nobody accepts connections on the socket.
    #[error("cannot connect to gatewayd: {0}")]
    Unreachable(#[source] io::Error),
    /// The caller may not connect to the socket.
    #[error("permission denied")]
    Denied,
    /// No answer in time.
    #[error("gatewayd did not answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The daemon has gone in the middle of an answer that goes on.
    #[error("gatewayd has gone")]
    Gone,
    /// The connection broke, or what came back is not an answer of this API.
    #[error("{0}")]
    Protocol(String),
}

impl Client {
    /// A client of the daemon on `socket` that waits `timeout` for the whole of each answer.
    pub fn new(socket: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self { socket: socket.into(), timeout }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Reads `path`, with `query` behind the question mark.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::GET, &with_query(path, query)?, whole(Bytes::new())).await
    }

    /// Deletes `path`, with `query` behind the question mark.
    pub async fn delete(&self, path: &str, query: &impl Serialize) -> Result<Change, ClientError> {
        self.call(Method::DELETE, &with_query(path, query)?, whole(Bytes::new())).await
    }

    /// Sends `body` to `path` with `POST`, `PUT` or `PATCH`.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Change, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Protocol(error.to_string()))?;
        self.call(method, path, whole(body.into())).await
    }

    /// Posts `text` to `path`, with `query` behind the question mark. `progress` is told how many bytes are sent.
    pub async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
        text: Bytes,
        progress: impl FnMut(usize) + Send + 'static,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, &with_query(path, query)?, in_pieces(text, progress)).await
    }

    /// Reads `path`, with `query` behind the question mark, for as long as the daemon has something to tell. It is waited
    /// for the beginning of the answer only.
    pub async fn open(&self, path: &str, query: &impl Serialize) -> Result<Stream, ClientError> {
        let uri = with_query(path, query)?;
        let opened = tokio::time::timeout(self.timeout, self.begin(&uri)).await;
        let body = opened.map_err(|_| ClientError::Timeout(self.timeout))??;
        Ok(Stream { body })
    }

    async fn begin(&self, uri: &str) -> Result<Incoming, ClientError> {
        let (mut sender, connection) = self.connect().await?;
        // It ends when the answer does, or is dropped.
        tokio::spawn(connection);
        let response =
            sender.send_request(request(Method::GET, uri, whole(Bytes::new()))?).await.map_err(broken)?;
        let (status, body) = (response.status(), response.into_body());
        if status.is_success() {
            return Ok(body);
        }
        let answer = body.collect().await.map_err(broken)?.to_bytes();
        Err(refused(status, uri, &answer))
    }

    /// The same client with at least this patience.
    #[must_use]
    pub fn patient(&self, least: Duration) -> Self {
        Self { socket: self.socket.clone(), timeout: self.timeout.max(least) }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        body: RequestBody,
    ) -> Result<T, ClientError> {
        let (status, answer) = tokio::time::timeout(self.timeout, self.exchange(method, uri, body))
            .await
            .map_err(|_| ClientError::Timeout(self.timeout))??;
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(|error| {
                ClientError::Protocol(format!("gatewayd's answer makes no sense: {error}"))
            });
        }
        Err(refused(status, uri, &answer))
    }

    async fn exchange(
        &self,
        method: Method,
        uri: &str,
        body: RequestBody,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let (mut sender, connection) = self.connect().await?;
        let request = request(method, uri, body)?;
        let answer = async move {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
            Ok((status, body))
        };
        // The connection makes progress only while it is polled; its own errors reach the request as well.
        let (answer, _) = tokio::join!(answer, connection);
        answer
    }

    async fn connect(&self) -> Result<(SendRequest<RequestBody>, Connection), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            if denied { ClientError::Denied } else { ClientError::Unreachable(error) }
        })?;
        http1::handshake(TokioIo::new(stream)).await.map_err(broken)
    }
}

/// An answer that goes on.
pub struct Stream {
    body: Incoming,
}

impl Stream {
    /// What comes next; `None`: the daemon has ended it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    // Trailers say nothing.
                    if let Ok(piece) = frame.map_err(|_| ClientError::Gone)?.into_data() {
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` calls takes the error")]
fn broken(error: hyper::Error) -> ClientError {
    ClientError::Protocol(format!("connection to gatewayd: {error}"))
}

fn request(method: Method, uri: &str, body: RequestBody) -> Result<Request<RequestBody>, ClientError> {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header(HOST, "gw")
        .header(CONTENT_TYPE, "application/json")
        .body(body);
    request.map_err(|error| ClientError::Protocol(error.to_string()))
}

/// What an answer that is no success says.
fn refused(status: StatusCode, uri: &str, answer: &[u8]) -> ClientError {
    match serde_json::from_slice(answer) {
        Ok(error) => ClientError::Refused(error),
        Err(_) => ClientError::Protocol(format!("gatewayd answered `{status}` to {uri}")),
    }
}

fn whole(body: Bytes) -> RequestBody {
    Full::new(body).boxed_unsync()
}

/// A body that says how much of it is under way.
fn in_pieces(text: Bytes, mut progress: impl FnMut(usize) + Send + 'static) -> RequestBody {
    const PIECE: usize = 64 << 10;
    let mut sent = 0;
    let pieces = futures::stream::iter(std::iter::from_fn(move || {
        let piece = text.slice(sent..text.len().min(sent + PIECE));
        sent += piece.len();
        progress(sent);
        (!piece.is_empty()).then(|| Ok(Frame::data(piece)))
    }));
    StreamBody::new(pieces).boxed_unsync()
}

fn with_query(path: &str, query: &impl Serialize) -> Result<String, ClientError> {
    let query =
        serde_urlencoded::to_string(query).map_err(|error| ClientError::Protocol(error.to_string()))?;
    Ok(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") })
}
