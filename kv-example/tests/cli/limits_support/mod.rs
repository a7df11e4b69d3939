//! A node as a process of its own, and those who come to it.

mod abuser;
pub(crate) mod member;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use bytes::Bytes;
use kv_example::api::etcdserverpb::kv_client::KvClient;
use kv_example::api::etcdserverpb::{PutRequest, RangeRequest, RequestOp, request_op};
use prost::Message;
use raftkv::transport_kit::tls::TlsFiles;
use raftkv::transport_kit::{Link, Tls};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::{Channel, Endpoint};

pub(crate) use abuser::{Abuser, Flood, Rude};

use crate::support::{PATIENCE, Running, free_ports, run, wait_for};

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

pub(crate) const MIB: u64 = 1 << 20;
/// Where puts go.
pub(crate) const PUT: &str = "/etcdserverpb.KV/Put";

/// 127.0.0.N
fn loopback(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, n)
}

/// A cluster of one.
pub(crate) struct Node {
    running: Running,
    base: u16,
    /// How the program's own commands reach it.
    reach: Vec<String>,
    /// With TLS: how clients prove who they are.
    tls: Option<Tls>,
    _dir: tempfile::TempDir,
}

impl Node {
    pub(crate) async fn start(options: &[&str]) -> Self {
        Self::start_with(options, None).await
    }

    /// One whose clients speak TLS, with the certificates that `kv-example certs` has made for node 1 in this directory.
    pub(crate) async fn protected(options: &[&str], certs: &Path) -> Self {
        Self::start_with(options, Some(certs)).await
    }

    async fn start_with(options: &[&str], certs: Option<&Path>) -> Self {
        let (dir, base) = (tempfile::tempdir().unwrap(), free_ports(3));
        let data = dir.path().join("data").display().to_string();
        let address = |n: u16| format!("127.0.0.1:{}", base + n);
        let (clients, peers, metrics) = (address(0), format!("1={}", address(1)), address(2));
        let args = ["server", "--id", "1", "--data", &data, "--peers", &peers, "--listen-client", &clients];
        let file = |name: &str| certs.unwrap_or(dir.path()).join(name).display().to_string();
        let [ca, cert, key] = ["ca.crt", "node-1.crt", "node-1.key"].map(file);
        let [own_cert, own_key] = ["client.crt", "client.key"].map(file);
        let protection = ["--client-ca", &ca, "--client-cert", &cert, "--client-key", &key];
        let own = ["--cacert", &ca, "--cert", &own_cert, "--key", &own_key];
        let with = |scheme, more: &[&str]| {
            let endpoint = format!("{scheme}{clients}");
            [&["--endpoints", &endpoint], more].concat().into_iter().map(str::to_owned).collect()
        };
        let (protection, reach) =
            if certs.is_some() { (&protection[..], with("https://", &own)) } else { (&[][..], with("", &[])) };
        let tls = certs.map(|_| Tls::for_client(TlsFiles::new(&own_cert, &own_key, &ca)).unwrap());
        let args = [&args[..], &["--listen-metrics", &metrics], protection, options].concat();
        let running = Running::start(&dir.path().join("log"), &args);
        let node = Self { running, base, reach, tls, _dir: dir };
        tokio::task::block_in_place(|| {
            wait_for("the first write", || {
                node.run(&["put", "k", "v", "--timeout", "1"]).status.success().then_some(())
            });
            wait_for("the end of that client's requests", || (node.counted("raftkv_kv_held_bytes") == 0).then_some(()));
        });
        node.kv_example(&["del", "k"]);
        node
    }

    /// Runs a command of the program on it.
    pub(crate) fn run(&self, words: &[&str]) -> Output {
        run(&words.iter().copied().chain(self.reach.iter().map(String::as_str)).collect::<Vec<_>>())
    }

    pub(crate) fn log(&self) -> String {
        self.running.log()
    }

    pub(crate) fn clients(&self) -> String {
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

    /// Looks at its memory from now on, while somebody abuses it.
    pub(crate) async fn watched(&self) -> Watched<'_> {
        // What is made once, for whoever comes first, is not the abuser's.
        self.others_go_on().await;
        self.peak_memory();
        Watched { node: self, before: self.memory() }
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
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
    }

    /// Another client writes and reads, without having to wait for long.
    pub(crate) async fn others_go_on(&self) {
        if self.tls.is_some() {
            return self.others_go_on_with_tls().await;
        }
        let mut client = self.client(2).await;
        for n in 0..10 {
            let put = PutRequest { key: "other".into(), value: n.to_string().into(), ..PutRequest::default() };
            let get = RangeRequest { key: "other".into(), ..RangeRequest::default() };
            within("a write", client.put(put)).await.expect("a write");
            let answer = within("a read", client.range(get)).await.expect("a read").into_inner();
            assert_eq!(answer.kvs[0].value, n.to_string());
        }
    }

    async fn others_go_on_with_tls(&self) {
        let mut client = Abuser::connect(self, 2).await;
        for n in 0..10 {
            let put = PutRequest { key: "other".into(), value: n.to_string().into(), ..PutRequest::default() };
            let status = client.ask("/etcdserverpb.KV/Put", &put).await;
            assert_eq!(status.code(), tonic::Code::Ok, "{status:?}");
        }
    }

    /// What clients prove with who they are.
    pub(crate) fn tls(&self) -> &Tls {
        self.tls.as_ref().expect("a node with certificates")
    }

    /// A connection of a client at 127.0.0.N, with TLS where that is asked for.
    pub(crate) async fn link(&self, n: u8) -> Link {
        self.link_as(self.tls.as_ref(), n).await
    }

    /// As whoever has these certificates.
    pub(crate) async fn link_as(&self, tls: Option<&Tls>, n: u8) -> Link {
        let stream = self.connect(n).await;
        match tls {
            None => Link::plain(stream),
            Some(tls) => within("the handshake", tls.connect_to_host(stream, "127.0.0.1", b"h2")).await.unwrap(),
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

    /// Waits until a number that is served is this one. It is never more.
    pub(crate) async fn until_counted(&self, name: &str, count: u64) {
        within(name, async {
            while self.counted(name) < count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert_eq!(self.counted(name), count, "{name}");
    }

    /// A number that is served.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        let answer = self.ask_for_metrics("");
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is not served: {answer}")).parse().unwrap()
    }
}

/// A node that somebody abuses, and the memory that it held before.
pub(crate) struct Watched<'a> {
    node: &'a Node,
    before: u64,
}

impl Watched<'_> {
    /// What was done to it since is borne: another client goes on, and at no moment has the node held more memory than so much more than before.
    pub(crate) async fn bears_it(&self, most: u64) {
        self.node.others_go_on().await;
        self.holds(most);
    }

    /// The same of the memory alone, where there is no room for another client.
    pub(crate) fn holds(&self, most: u64) {
        let (before, peak) = (self.before, self.node.of_memory("VmHWM:"));
        println!("{before} bytes of memory became {peak} at most");
        assert!(peak < before + most, "{before} bytes of memory became {peak}, and were to become {most} more at most");
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
