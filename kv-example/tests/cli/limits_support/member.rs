//! Those who come to the members' port and know the id of the cluster: over gRPC, and over tarpc as it is on the wire.

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Node, framed, within};

/// Where a member opens its stream.
pub(crate) const OPEN_LANE: &str = "/raftkv.v1.Peers/OpenLane";

/// The id of the node's cluster: it tells it to anybody who may read its log.
fn cluster(node: &Node) -> u64 {
    let log = node.log();
    let id = log.split_once(" of cluster ").and_then(|(_, rest)| rest.split_once('(')?.1.split_once(')'));
    u64::from_str_radix(id.expect("a line about the cluster").0, 16).expect("an id")
}

#[derive(Message)]
struct Hello {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(fixed64, tag = "2")]
    cluster: u64,
    #[prost(uint64, tag = "3")]
    from: u64,
    #[prost(string, tag = "4")]
    from_address: String,
    #[prost(uint64, tag = "5")]
    to: u64,
    #[prost(int32, tag = "6")]
    lane: i32,
}

#[derive(Message)]
struct Frame {
    #[prost(message, tag = "1")]
    hello: Option<Hello>,
}

/// With this a member of the node's cluster begins a stream of gRPC.
pub(crate) fn hello(node: &Node) -> Bytes {
    let (cluster, from_address) = (cluster(node), "127.0.0.1:9".to_owned());
    framed(&Frame { hello: Some(Hello { version: 1, cluster, from: 9, from_address, to: 1, lane: 1 }) })
}

const MAGIC: &[u8] = b"raftkv-t";

/// What it asks for over tarpc.
#[derive(Clone, Copy)]
pub(crate) enum Ask {
    Deliver,
    Farewell = 2,
}

/// A connection of tarpc's transport.
pub(crate) struct Member {
    stream: TcpStream,
    heard: Vec<u8>,
}

/// What the node tells a member over tarpc: how many bytes may be under way, how many a message may have, and how many requests there may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) window: u64,
    pub(crate) message: u64,
    pub(crate) requests: u64,
}

impl Member {
    /// One that was welcomed.
    pub(crate) async fn welcomed(node: &Node, n: u8) -> (Self, Told) {
        let mut member = Self { stream: node.connect_to(&node.members(), n).await, heard: Vec::new() };
        let address = b"127.0.0.1:9";
        let mut body = [MAGIC, &[1]].concat();
        put(&mut body, cluster(node));
        put(&mut body, 9);
        put(&mut body, address.len() as u64);
        body.extend_from_slice(address);
        // To node 1, on the control lane; it will probe once a minute.
        body.extend_from_slice(&[1, 1]);
        put(&mut body, 60_000);
        member.say(&frame(&body)).await;
        within("the welcome", async {
            while member.heard.len() < 4 || member.heard.len() < 4 + length(&member.heard) {
                member.read().await;
            }
        })
        .await;
        let welcome = member.heard[4..].strip_prefix(MAGIC).expect("a node");
        // Its version, the number of the hello, and that it is welcome.
        let mut rest = welcome.strip_prefix(&[1, 0, 0]).expect("a welcome");
        let [window, message, requests] = [(); 3].map(|()| take(&mut rest));
        (member, Told { window, message, requests })
    }

    /// Says something, unless the node does not listen any more.
    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    async fn read(&mut self) {
        let read = self.stream.read_buf(&mut self.heard).await.expect("an open connection");
        assert!(read > 0, "hung up after {:?}", String::from_utf8_lossy(&self.heard));
    }

    /// Waits until it is told this.
    pub(crate) async fn is_told(&mut self, words: &str) {
        within(words, async {
            while !String::from_utf8_lossy(&self.heard).contains(words) {
                self.read().await;
            }
        })
        .await;
    }
}

/// A request with this number, and what follows it.
pub(crate) fn ask(id: u64, what: Ask, rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    put(&mut body, id);
    // For so many milliseconds its answer is waited for.
    put(&mut body, 100_000);
    body.push(what as u8);
    body.extend_from_slice(rest);
    frame(&body)
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

fn length(heard: &[u8]) -> usize {
    u32::from_be_bytes(heard[..4].try_into().unwrap()) as usize
}

/// A number, in groups of seven bits, the lowest first.
fn put(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn take(from: &mut &[u8]) -> u64 {
    let end = from.iter().position(|byte| byte & 0x80 == 0).expect("a number");
    let (number, rest) = from.split_at(end + 1);
    *from = rest;
    number.iter().rev().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f))
}
