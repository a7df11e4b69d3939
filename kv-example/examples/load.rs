//! Puts in a closed loop over a plain tonic client, at servers of this program or at those of openraft's gRPC example (`raft-kv-memstore-grpc`): a load generator
//! that favours neither. The measure of `benches/versus-openraft.sh`.
//!
//! * `load init ENDPOINT...` makes openraft's servers, numbered from 1, a cluster.
//! * `load put ENDPOINT CLIENTS CONNECTIONS SECONDS BYTES` puts values of so many bytes at a server of this program,
//!   and `load set` does at the one that leads openraft's cluster. After half a second of warming up it counts, and prints: puts a second, and the median and
//!   the 99th percentile of their latencies in milliseconds.

use std::error::Error;
use std::future::Future;
use std::time::{Duration, Instant};

use kv_example::api::etcdserverpb::{PutRequest, PutResponse};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

type Failed = Box<dyn Error>;

const WARM_UP: Duration = Duration::from_millis(500);
/// An answer that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(10);
const KEYS: u64 = 10_000;

/// The messages of openraft's example, as far as they are needed here.
mod openraft {
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub(super) struct SetRequest {
        #[prost(string, tag = "1")]
        pub(super) key: String,
        #[prost(string, tag = "2")]
        pub(super) value: String,
    }

    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub(super) struct Response {
        #[prost(string, optional, tag = "1")]
        pub(super) value: Option<String>,
    }

    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub(super) struct Node {
        #[prost(uint64, tag = "1")]
        pub(super) node_id: u64,
        #[prost(string, tag = "2")]
        pub(super) rpc_addr: String,
    }

    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub(super) struct InitRequest {
        #[prost(message, repeated, tag = "1")]
        pub(super) nodes: Vec<Node>,
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failed> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["init", ref servers @ ..] if !servers.is_empty() => init(servers).await,
        [what @ ("put" | "set"), server, clients, connections, seconds, bytes] => {
            let time = Duration::from_secs_f64(seconds.parse()?);
            let (connections, value) = (connect(server, connections.parse()?).await?, "v".repeat(bytes.parse()?));
            if what == "put" {
                run(connections, clients.parse()?, time, |c, key| put(c, key, value.clone())).await
            } else {
                run(connections, clients.parse()?, time, |c, key| set(c, key, value.clone())).await
            }
        }
        _ => Err("say: load init ENDPOINT..., or load put|set ENDPOINT CLIENTS CONNECTIONS SECONDS BYTES".into()),
    }
}

async fn init(servers: &[&str]) -> Result<(), Failed> {
    let nodes = (1..).zip(servers).map(|(node_id, address)| openraft::Node { node_id, rpc_addr: (*address).into() });
    let request = openraft::InitRequest { nodes: nodes.collect() };
    let first = connect(servers[0], 1).await?.remove(0);
    let () = call(first, "/openraftpb.AppService/Init", request).await?;
    Ok(())
}

async fn connect(server: &str, connections: usize) -> Result<Vec<Channel>, Failed> {
    let endpoint = Endpoint::from_shared(format!("http://{server}"))?.tcp_nodelay(true).timeout(PATIENCE);
    let mut channels = Vec::new();
    for _ in 0..connections.max(1) {
        channels.push(endpoint.connect().await?);
    }
    Ok(channels)
}

async fn put(server: Channel, key: String, value: String) -> Result<(), Status> {
    let request = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
    let _: PutResponse = call(server, "/etcdserverpb.KV/Put", request).await?;
    Ok(())
}

async fn set(server: Channel, key: String, value: String) -> Result<(), Status> {
    let _: openraft::Response = call(server, "/openraftpb.AppService/Set", openraft::SetRequest { key, value }).await?;
    Ok(())
}

async fn call<Q, R>(server: Channel, path: &'static str, request: Q) -> Result<R, Status>
where
    Q: prost::Message + 'static,
    R: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(server);
    grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let done = grpc.unary(Request::new(request), PathAndQuery::from_static(path), ProstCodec::default()).await?;
    Ok(done.into_inner())
}

/// Each client puts one value after the other, until the time is up.
async fn run<F>(
    connections: Vec<Channel>,
    clients: usize,
    time: Duration,
    put: impl Fn(Channel, String) -> F,
) -> Result<(), Failed>
where
    F: Future<Output = Result<(), Status>>,
{
    let begun = Instant::now() + WARM_UP;
    let (put, channels) = (&put, connections.iter().cycle());
    let loops = (0..clients).zip(channels).map(async |(client, channel)| {
        let mut took = Vec::new();
        for n in 0.. {
            let key = (n * clients as u64 + client as u64) % KEYS;
            let sent = Instant::now();
            if sent >= begun + time {
                break;
            }
            put(channel.clone(), format!("key-{key:08}")).await?;
            if sent >= begun {
                took.push(sent.elapsed());
            }
        }
        Ok::<_, Status>(took)
    });
    let mut took = futures_util::future::try_join_all(loops).await?.concat();
    if took.is_empty() {
        return Err("nothing was put within the time".into());
    }
    took.sort_unstable();
    let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)].as_secs_f64() * 1e3;
    println!("{:.0} {:.3} {:.3}", took.len() as f64 / time.as_secs_f64(), at(50), at(99));
    Ok(())
}
