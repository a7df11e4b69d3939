//! A node as a process of its own, and those who come to it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, Version};
use kv_example::api::etcdserverpb::kv_client::KvClient;
use kv_example::api::etcdserverpb::{PutRequest, RangeRequest, RequestOp, request_op};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::cli_support::{PATIENCE, Running, free_ports, run, wait_for};

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// 127.0.0.N
fn loopback(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, n)
}

/// A cluster of one.
pub(crate) struct Node {
    running: Running,
    base: u16,
    _dir: tempfile::TempDir,
}

impl Node {
    pub(crate) async fn start(options: &[&str]) -> Self {
        let (dir, base) = (tempfile::tempdir().unwrap(), free_ports(3));
        let data = dir.path().join("data").display().to_string();
        let address = |n: u16| format!("127.0.0.1:{}", base + n);
        let (clients, peers, metrics) = (address(0), format!("1={}", address(1)), address(2));
        let args = ["server", "--id", "1", "--data", &data, "--peers", &peers, "--listen-client", &clients];
        let args = [&args[..], &["--listen-metrics", &metrics], options].concat();
        let node = Self { running: Running::start(&dir.path().join("log"), &args), base, _dir: dir };
        tokio::task::block_in_place(|| {
            wait_for("the first write", || {
                run(&["put", "k", "v", "--endpoints", &clients, "--timeout", "1"]).status.success().then_some(())
            });
            wait_for("the end of that client's requests", || (node.counted("raftkv_kv_held_bytes") == 0).then_some(()));
        });
        let deleted = run(&["del", "k", "--endpoints", &clients]);
        assert!(deleted.status.success());
        node
    }

    pub(crate) fn log(&self) -> String {
        self.running.log()
    }

    fn clients(&self) -> String {
        format!("127.0.0.1:{}", self.base)
    }

    pub(crate) fn members(&self) -> String {
        format!("127.0.0.1:{}", self.base + 1)
    }

    pub(crate) fn metrics(&self) -> String {
        format!("127.0.0.1:{}", self.base + 2)
    }

    /// What it holds of the memory, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.of_memory("VmRSS:")
    }

    fn of_memory(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.running.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// The most that it has held of the memory since the last call, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let (id, peak) = (self.running.child.id(), self.of_memory("VmHWM:"));
        // Resets it (proc(5)).
        std::fs::write(format!("/proc/{id}/clear_refs"), "5").unwrap();
        peak
    }

    /// A connection from 127.0.0.N.
    pub(crate) async fn connect(&self, n: u8) -> TcpStream {
        self.connect_to(&self.clients(), n).await
    }

    pub(crate) async fn connect_to(&self, address: &str, n: u8) -> TcpStream {
        connect(address, n).await
    }

    /// An honest client at 127.0.0.N, which takes answers of any size.
    pub(crate) async fn client(&self, n: u8) -> KvClient<Channel> {
        KvClient::new(self.channel(n)).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX)
    }

    /// A connection of an honest client at 127.0.0.N.
    pub(crate) fn channel(&self, n: u8) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.clients())).unwrap();
        endpoint.local_address(Some(loopback(n).into())).connect_lazy()
    }

    /// Has a command done, as a person types it.
    pub(crate) fn kv_example(&self, words: &[&str]) {
        let output = run(&[words, &["--endpoints", &self.clients()]].concat());
        assert!(output.status.success(), "{words:?}: {output:?}");
    }

    /// Another client writes and reads, without having to wait for long.
    pub(crate) async fn others_go_on(&self) {
        let mut client = self.client(2).await;
        for n in 0..10 {
            let put = PutRequest { key: "other".into(), value: n.to_string().into(), ..PutRequest::default() };
            let get = RangeRequest { key: "other".into(), ..RangeRequest::default() };
            within("a write", client.put(put)).await.expect("a write");
            let answer = within("a read", client.range(get)).await.expect("a read").into_inner();
            assert_eq!(answer.kvs[0].value, n.to_string());
        }
    }

    /// Writes so many MiB, in values of 64 KiB: `key-000` and so on.
    pub(crate) async fn fill(&self, mib: usize) {
        let mut client = self.client(2).await;
        for n in 0..mib * 16 {
            let (key, value) = (format!("key-{n:03}").into(), vec![7; 64 << 10].into());
            client.put(PutRequest { key, value, ..PutRequest::default() }).await.unwrap();
        }
    }

    /// Asks from 127.0.0.9, with these lines in the header as well.
    pub(crate) fn ask_for_metrics(&self, lines: &str) -> String {
        let mut stream = connect_blocking(&self.metrics(), 9);
        stream.write_all(format!("GET /metrics HTTP/1.1\r\nHost: n\r\n{lines}\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        // The rest of a question that is too long makes the server reset the connection.
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    /// Waits until so many requests are in progress.
    pub(crate) async fn until_in_progress(&self, requests: u64) {
        within("requests in progress", async {
            while self.counted("raftkv_kv_requests_in_progress") != requests {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// A number that is served.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        let answer = self.ask_for_metrics("");
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is not served: {answer}")).parse().unwrap()
    }
}

async fn connect(address: &str, n: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((loopback(n), 0))).unwrap();
    socket.connect(address.parse().unwrap()).await.unwrap()
}

pub(crate) fn connect_blocking(address: &str, n: u8) -> std::net::TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((loopback(n), 0))).unwrap();
    connect(&socket, &address.parse::<SocketAddr>().unwrap()).unwrap();
    let stream = std::net::TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Waits until the other end has closed it. What comes before that does not matter.
pub(crate) async fn closed(stream: &mut TcpStream) {
    within("the hang-up", async {
        // A reset is an end as well.
        while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {}
    })
    .await;
}

/// All keys.
pub(crate) fn everything() -> RangeRequest {
    RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..RangeRequest::default() }
}

pub(crate) fn range_op(range: &RangeRequest) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestRange(range.clone())) }
}

/// The beginning of a message that claims to have so many bytes.
pub(crate) fn announced(bytes: u32, beginning: &[u8]) -> Bytes {
    [&[0], &bytes.to_be_bytes()[..], beginning].concat().into()
}

/// A message as gRPC frames it.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let bytes = message.encode_to_vec();
    announced(bytes.len().try_into().unwrap(), &bytes)
}

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
        Self::connect_to(&node.clients(), n).await
    }

    pub(crate) async fn connect_to(address: &str, n: u8) -> Self {
        let stream = connect(address, n).await;
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        Self { sender, address: address.to_owned(), running: tokio::spawn(connection) }
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

impl Rude {
    pub(crate) async fn connect(node: &Node, n: u8) -> Self {
        let mut stream = node.connect(n).await;
        // The opening, with settings that say nothing.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        Self(stream)
    }

    /// Begins a put on the stream with this number; nothing of its body is sent.
    pub(crate) async fn begin(&mut self, stream: u8) {
        // POST and http are in HPACK's static table, as the names of the others are: `:path`, `:authority`, `content-type`.
        let mut header = vec![0x83, 0x86];
        let fields: [(&[u8], &str); 3] =
            [(&[0x04], "/etcdserverpb.KV/Put"), (&[0x01], "n"), (&[0x0f, 0x10], "application/grpc")];
        for (name, value) in fields {
            header.extend_from_slice(name);
            header.push(value.len().try_into().unwrap());
            header.extend_from_slice(value.as_bytes());
        }
        // A frame of headers that ends them, and not the stream.
        let frame = [&[0, 0, header.len().try_into().unwrap(), 1, 4, 0, 0, 0, stream], &header[..]].concat();
        self.0.write_all(&frame).await.unwrap();
    }

    /// The first stream that is reset, and why.
    pub(crate) async fn refused(&mut self) -> (u32, h2::Reason) {
        within("a reset", async {
            loop {
                let mut head = [0; 9];
                self.0.read_exact(&mut head).await.unwrap();
                let number = |bytes: [u8; 4]| u32::from_be_bytes(bytes);
                let mut payload = vec![0; number([0, head[0], head[1], head[2]]) as usize];
                self.0.read_exact(&mut payload).await.unwrap();
                if head[3] == 3 {
                    let reason = number(payload[..4].try_into().unwrap());
                    return (number([head[5], head[6], head[7], head[8]]), reason.into());
                }
            }
        })
        .await
    }
}
