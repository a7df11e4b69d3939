//! Those who speak HTTP/2 to a node as they like.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, Version};
use prost::Message;
use raftkv::transport_kit::Tls;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tonic::Status;

use super::{Node, announced, connect, framed, within};

/// A connection of which nothing more is read once it is told so.
struct Deaf {
    stream: TcpStream,
    is_deaf: Arc<AtomicBool>,
}

impl AsyncRead for Deaf {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.is_deaf.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Deaf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A bare HTTP/2 client, which does what it likes.
pub(crate) struct Abuser {
    sender: SendRequest<Bytes>,
    address: String,
    running: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Drop for Abuser {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Abuser {
    pub(crate) async fn connect(node: &Node, n: u8) -> Self {
        Self::over(node.link(n).await, &node.clients()).await
    }

    /// With these certificates.
    pub(crate) async fn connect_as(node: &Node, tls: &Tls, n: u8) -> Self {
        Self::over(node.link_as(Some(tls), n).await, &node.clients()).await
    }

    pub(crate) async fn connect_to(address: &str, n: u8) -> Self {
        Self::over(connect(address, n).await, address).await
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, address: &str) -> Self {
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        Self { sender, address: address.to_owned(), running: tokio::spawn(connection) }
    }

    /// An honest question, and how it ends.
    pub(crate) async fn ask(&mut self, path: &str, question: &impl Message) -> Status {
        let mut call = self.call(path).await;
        call.send_all(framed(question));
        call.status().await
    }

    /// One whose windows are as large as there are, and which reads nothing from the moment on that it is told so.
    pub(crate) async fn connect_endless(node: &Node, n: u8) -> (Self, Arc<AtomicBool>) {
        let (address, is_deaf) = (node.clients(), Arc::new(AtomicBool::new(false)));
        let stream = Deaf { stream: connect(&address, n).await, is_deaf: is_deaf.clone() };
        let endless = (1 << 31) - 1;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(endless).initial_connection_window_size(endless).max_frame_size((1 << 24) - 1);
        let (sender, connection) = builder.handshake(stream).await.unwrap();
        let running = tokio::spawn(connection);
        (Self { sender, address, running }, is_deaf)
    }

    pub(crate) async fn call(&mut self, path: &str) -> Call {
        self.try_call(path).await.unwrap()
    }

    /// So many puts of which the rest never comes.
    pub(crate) async fn half_puts(&mut self, count: usize) -> Vec<Call> {
        let mut halves = Vec::new();
        for _ in 0..count {
            let mut call = self.call("/etcdserverpb.KV/Put").await;
            call.send(announced(1000, &[0; 10]));
            halves.push(call);
        }
        halves
    }

    /// Begins a call; nothing of its body is sent.
    pub(crate) async fn try_call(&mut self, path: &str) -> Result<Call, h2::Error> {
        let request = Request::builder().method(Method::POST).version(Version::HTTP_2);
        let request = request.uri(format!("http://{}{path}", self.address)).header("te", "trailers");
        let request = request.header("content-type", "application/grpc").body(()).unwrap();
        self.sender = self.sender.clone().ready().await?;
        let (answer, body) = self.sender.send_request(request, false)?;
        Ok(Call { answer: Some(answer), body, _unread: None })
    }
}

/// A call, for as long as its client likes.
pub(crate) struct Call {
    answer: Option<ResponseFuture>,
    body: SendStream<Bytes>,
    /// Nothing is read of it, so the server can't send more than the window.
    _unread: Option<Response<RecvStream>>,
}

impl Call {
    pub(crate) fn send(&mut self, bytes: Bytes) {
        self.body.send_data(bytes, false).unwrap();
    }

    /// A whole body: the end goes with it, since a server that refuses what it has read waits for no end.
    pub(crate) fn send_all(&mut self, bytes: Bytes) {
        self.body.send_data(bytes, true).unwrap();
    }

    pub(crate) fn reset(&mut self) {
        self.body.send_reset(h2::Reason::CANCEL);
    }

    /// How it ends, if it ends with a refusal; an answer is kept, and not read.
    pub(crate) async fn refusal(&mut self) -> Option<Status> {
        let answer = within("an answer", self.answer.take().unwrap()).await.unwrap();
        let status = Status::from_header_map(answer.headers());
        self._unread = Some(answer);
        status
    }

    /// How it ends: with a refusal, in the headers or behind an empty answer.
    pub(crate) async fn status(&mut self) -> Status {
        if let Some(status) = self.refusal().await {
            return status;
        }
        let mut answer = self._unread.take().unwrap();
        let trailers = within("the end", async {
            while let Some(data) = answer.body_mut().data().await {
                data.unwrap();
            }
            answer.body_mut().trailers().await.unwrap()
        });
        Status::from_header_map(&trailers.await.expect("trailers")).expect("a status")
    }
}

/// A client that speaks HTTP/2 as it is on the wire, and does not care how many requests it may have.
pub(crate) struct Rude(TcpStream);

/// What came in one frame.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// A header of which more comes than anybody may have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flood {
    /// In frames that are empty.
    EmptyFrames,
    /// One field after the other.
    Fields,
    /// A single value that has no end.
    OneValue,
    /// One field, and then its name and value by their number in the table, again and again.
    Numbers,
}

impl Flood {
    pub(crate) const ALL: [Self; 4] = [Self::EmptyFrames, Self::Fields, Self::OneValue, Self::Numbers];
}

/// A field of a header, `x`, with a value of so many bytes, 127 at least; its first byte says whether it is to be put into the table.
fn field(first: u8, bytes: usize) -> Vec<u8> {
    let mut field = vec![first, 1, b'x', 0x7f];
    let mut rest = bytes - 0x7f;
    while rest >= 0x80 {
        field.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    field.push(rest as u8);
    field.resize(field.len() + bytes, b'y');
    field
}

impl Rude {
    pub(crate) async fn connect(node: &Node, n: u8) -> Self {
        Self::connect_to(&node.clients(), n).await
    }

    pub(crate) async fn connect_to(address: &str, n: u8) -> Self {
        let mut stream = connect(address, n).await;
        // The opening, with settings that say nothing.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        Self(stream)
    }

    /// Begins a call on the stream with this number; nothing of its body is sent.
    pub(crate) async fn begin(&mut self, stream: u8, path: &str) {
        self.frame(HEADERS, END_HEADERS, stream, &fields(path)).await;
    }

    /// The same with so many bytes more in its header.
    pub(crate) async fn call_with_header(&mut self, stream: u8, path: &str, bytes: usize) {
        self.frame(HEADERS, END_HEADERS, stream, &[fields(path), field(0x10, bytes)].concat()).await;
    }

    /// Sends a header that is never to end, as far as that is taken.
    pub(crate) async fn flood(&mut self, path: &str, flood: Flood) {
        const FRAMES: usize = 16;
        let frames = match flood {
            Flood::EmptyFrames => vec![Vec::new(); FRAMES],
            Flood::Fields => vec![field(0x10, 8000); FRAMES],
            Flood::OneValue => field(0x10, FRAMES << 14).chunks(1 << 14).map(<[u8]>::to_vec).collect(),
            Flood::Numbers => {
                let block = [fields(path), field(0x40, 4000), vec![0xbe; 10_000]].concat();
                return self.frame(HEADERS, END_HEADERS, 1, &block).await;
            }
        };
        self.frame(HEADERS, 0, 1, &fields(path)).await;
        for payload in frames {
            self.frame(CONTINUATION, 0, 1, &payload).await;
        }
    }

    /// Why the node ends the connection.
    pub(crate) async fn ends(&mut self) -> h2::Reason {
        loop {
            let frame = self.next().await;
            if frame.kind == GOAWAY {
                return u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()).into();
            }
        }
    }

    pub(crate) async fn frame(&mut self, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat();
        // The node may have ended the connection by now.
        let _ = self.0.write_all(&frame).await;
    }

    /// The next frame.
    pub(crate) async fn next(&mut self) -> Frame {
        let number = |bytes: [u8; 4]| u32::from_be_bytes(bytes);
        within("a frame", async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; number([0, head[0], head[1], head[2]]) as usize];
            self.0.read_exact(&mut payload).await.unwrap();
            let stream = number([head[5], head[6], head[7], head[8]]);
            Frame { kind: head[3], flags: head[4], stream, payload }
        })
        .await
    }

    /// The first stream that is reset, and why.
    pub(crate) async fn refused(&mut self) -> (u32, h2::Reason) {
        loop {
            let frame = self.next().await;
            if frame.kind == RST_STREAM {
                return (frame.stream, u32::from_be_bytes(frame.payload[..4].try_into().unwrap()).into());
            }
        }
    }

    /// By how much the node makes the window of the connection larger.
    pub(crate) async fn window_of_connection(&mut self) -> u32 {
        loop {
            let frame = self.next().await;
            if frame.kind == WINDOW_UPDATE && frame.stream == 0 {
                return u32::from_be_bytes(frame.payload[..4].try_into().unwrap());
            }
        }
    }

    /// What the node's settings say: the number of each, and its value.
    pub(crate) async fn settings(&mut self) -> Vec<(u16, u32)> {
        loop {
            let frame = self.next().await;
            if frame.kind == SETTINGS && frame.flags == 0 {
                let setting = |bytes: &[u8]| {
                    let (number, value) = bytes.split_at(2);
                    (u16::from_be_bytes(number.try_into().unwrap()), u32::from_be_bytes(value.try_into().unwrap()))
                };
                return frame.payload.chunks(6).map(setting).collect();
            }
        }
    }
}

/// The header of a call. POST and http are in HPACK's static table, as the names of the others are: `:path`, `:authority`, `content-type`.
pub(crate) fn fields(path: &str) -> Vec<u8> {
    let mut header = vec![0x83, 0x86];
    let fields: [(&[u8], &str); 3] = [(&[0x04], path), (&[0x01], "n"), (&[0x0f, 0x10], "application/grpc")];
    for (name, value) in fields {
        header.extend_from_slice(name);
        header.push(value.len().try_into().unwrap());
        header.extend_from_slice(value.as_bytes());
    }
    header
}
