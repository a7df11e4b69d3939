//! gRPC's unary call on a bare HTTP/2 connection: what the load generator needs of it, and no more.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use raftkv::transport_kit::Tls;

use crate::client::connector;
use crate::config::HostPort;
use crate::service::{CONSISTENCY, Freshness};

/// What a call needs beside its frame: made once, cloned for each.
#[derive(Clone, Debug)]
pub(super) struct Route {
    uri: Uri,
    headers: HeaderMap,
}

impl Route {
    pub(super) fn new(address: &HostPort, with_tls: bool, path: &str) -> Result<Self, String> {
        let scheme = if with_tls { "https" } else { "http" };
        let uri = format!("{scheme}://{address}{path}").parse().map_err(|e| format!("{address}: {e}"))?;
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        Ok(Self { uri, headers })
    }

    /// The same for reads that must be so fresh.
    pub(super) fn fresh(mut self, freshness: Option<Freshness>) -> Self {
        if let Some(header) = freshness.and_then(Freshness::header) {
            self.headers.insert(CONSISTENCY, HeaderValue::from_static(header));
        }
        self
    }

    /// The same with a token.
    pub(super) fn signed(mut self, token: Option<&HeaderValue>) -> Self {
        if let Some(token) = token {
            self.headers.insert("token", token.clone());
        }
        self
    }

    fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// There is no connection.
    Connect(String),
    /// The connection was lost while the call was under way.
    Lost(String),
    /// No answer in time.
    Timeout,
    /// The server said no.
    Status(i32, String),
    /// The server's answer makes no sense.
    Answer(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(reason) => write!(f, "no connection: {reason}"),
            Self::Lost(reason) => write!(f, "connection lost: {reason}"),
            Self::Timeout => write!(f, "timeout"),
            Self::Status(code, message) => write!(f, "{:?}: {message}", tonic::Code::from_i32(*code)),
            Self::Answer(reason) => write!(f, "wrong answer: {reason}"),
        }
    }
}

/// A TCP connection that many clients of one thread share, and that any of them opens again when it was lost.
#[derive(Debug)]
pub(super) struct Connection {
    address: HostPort,
    tls: Option<Tls>,
    current: RefCell<(u64, Option<SendRequest<Bytes>>)>,
    opening: tokio::sync::Mutex<()>,
}

impl Connection {
    pub(super) fn new(address: HostPort, tls: Option<Tls>) -> Rc<Self> {
        Rc::new(Self { address, tls, current: RefCell::new((0, None)), opening: tokio::sync::Mutex::new(()) })
    }

    pub(super) fn address(&self) -> &HostPort {
        &self.address
    }

    /// The sender to use, with its generation; opens a connection when there is none, or only the `lost` generation.
    pub(super) async fn sender(&self, lost: Option<u64>) -> Result<(u64, SendRequest<Bytes>), CallError> {
        if let Some(sender) = self.ready(lost) {
            return Ok(sender);
        }
        let _opening = self.opening.lock().await;
        if let Some(sender) = self.ready(lost) {
            return Ok(sender);
        }
        let sender = open(&self.address, self.tls.as_ref()).await?;
        let mut current = self.current.borrow_mut();
        *current = (current.0 + 1, Some(sender.clone()));
        Ok((current.0, sender))
    }

    fn ready(&self, lost: Option<u64>) -> Option<(u64, SendRequest<Bytes>)> {
        let current = self.current.borrow();
        let sender = current.1.as_ref()?;
        (lost != Some(current.0)).then(|| (current.0, sender.clone()))
    }
}

async fn open(address: &HostPort, tls: Option<&Tls>) -> Result<SendRequest<Bytes>, CallError> {
    let refused = |e: &dyn fmt::Display| CallError::Connect(e.to_string());
    let stream = match tokio::time::timeout(Duration::from_secs(2), connector::open(address, tls)).await {
        Ok(connected) => connected.map_err(|e| if tls.is_some() { refused(&e) } else { refused(&e.kind()) })?,
        Err(_) => return Err(refused(&"no answer within 2 s")),
    };
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .initial_max_send_streams(100_000)
        .enable_push(false)
        .handshake(stream)
        .await
        .map_err(|e| refused(&e))?;
    // Ends with the connection; the calls under way learn of it themselves.
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// Sends a frame and reads the answer; gives its length, and its bytes when they are asked for.
pub(super) async fn call(
    sender: &mut SendRequest<Bytes>,
    route: &Route,
    frame: Bytes,
    mut bytes: Option<&mut Vec<u8>>,
) -> Result<usize, CallError> {
    let lost = |e: h2::Error| CallError::Lost(e.to_string());
    std::future::poll_fn(|cx| sender.poll_ready(cx)).await.map_err(lost)?;
    let (response, mut body) = sender.send_request(route.request(), false).map_err(lost)?;
    body.send_data(frame, true).map_err(lost)?;
    let (head, mut body) = response.await.map_err(lost)?.into_parts();
    if head.headers.contains_key("grpc-status") {
        check(&head.headers)?;
    } else if head.status != http::StatusCode::OK {
        return Err(CallError::Answer(format!("HTTP status {}", head.status)));
    }
    let mut length = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(lost)?;
        body.flow_control().release_capacity(chunk.len()).map_err(lost)?;
        length += chunk.len();
        if let Some(bytes) = bytes.as_deref_mut() {
            bytes.extend_from_slice(&chunk);
        }
    }
    if let Some(trailers) = body.trailers().await.map_err(lost)? {
        check(&trailers)?;
    }
    Ok(length)
}

fn check(headers: &HeaderMap) -> Result<(), CallError> {
    let Some(status) = headers.get("grpc-status") else {
        return Err(CallError::Answer("no grpc-status".into()));
    };
    if status == "0" {
        return Ok(());
    }
    let code = status.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let message = headers.get("grpc-message").map_or_else(String::new, |m| unescaped(m.as_bytes()));
    Err(CallError::Status(code, message))
}

/// Undoes gRPC's percent-encoding of messages.
fn unescaped(text: &[u8]) -> String {
    let hex = |digits: &[u8]| std::str::from_utf8(digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        match (first, tail.get(..2).and_then(hex)) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_headers() {
        let mut headers = HeaderMap::new();
        assert!(matches!(check(&headers), Err(CallError::Answer(_))));
        headers.insert("grpc-status", HeaderValue::from_static("0"));
        assert_eq!(check(&headers), Ok(()));
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        headers.insert("grpc-message", HeaderValue::from_static("a%20b%zz"));
        assert_eq!(check(&headers), Err(CallError::Status(14, "a b%zz".into())));
        assert_eq!(check(&headers).unwrap_err().to_string(), "Unavailable: a b%zz");
    }
}
