//! A [`raftkv::Transport`] over long-lived gRPC streams.
//!
//! ```text
//!  node 1                                                                          node 2
//!  GrpcTransport ──> lane 2/control: queue ──> stream ── HTTP/2, TCP ──> GrpcServer ──> Inbox
//!                └─> lane 2/bulk:    queue ──> stream ── HTTP/2, TCP ──>     │
//!                                                                            └ waits while the inbox is full
//! ```
//!
//! * Each peer and lane has a connection and a stream of its own, so payloads never delay heartbeats. The peer's answers come on
//!   streams that the peer opens.
//! * A stream begins with a handshake: protocol version, cluster, both nodes, lane. A receiver that is somebody else
//!   refuses with a reason, which both sides log.
//! * A receiver that falls behind holds its senders back: [`Inbox::deliver`](raftkv::Inbox::deliver) waits, HTTP/2's flow
//!   control stops the stream, the lane's queue fills, and `send` waits. Every stage is bounded in bytes.
//! * A lost connection is restored by itself. Meanwhile messages to the peer are dropped, and `send` says why. Probes on
//!   every connection find a peer that vanished without a word.
//! * With TLS ([`GrpcTransport::with_tls`], [`GrpcServer::with_tls`]) both ends prove with certificates which nodes they are, and who does not is refused
//!   ([how](raftkv::transport_kit::Tls)). Without it there is no encryption and no authentication: keep the peers' ports in a network that you trust.
//!
//! # One node's two halves
//!
//! ```
//! use raftkv::{Body, ClusterId, Envelope, GroupId, Inbox, Index, Message, Peer, Term, Transport};
//! use raftkv_transport_grpc::{GrpcTransport, Local, Options, ServerOptions, serve};
//! use tokio::net::TcpListener;
//! use tokio::sync::oneshot;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = ClusterId(42);
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let node = Peer::new(1, listener.local_addr()?.to_string());
//!
//! // The receiving half runs until it is told to stop. The runtime empties the inbox; here we do.
//! let (inbox, mut arrivals) = Inbox::channel(cluster, GroupId(0), node.id);
//! let (stop, stopped) = oneshot::channel::<()>();
//! let server = tokio::spawn(serve(listener, inbox, ServerOptions::default(), async {
//!     let _ = stopped.await;
//! }));
//!
//! // The sending half. It connects with the first message; this node speaks to itself to keep the example short.
//! let transport = GrpcTransport::new(Local { cluster, node: node.clone() }, Options::default());
//! let message = Message { term: Term(1), body: Body::Commit { index: Index(7) } };
//! let envelope = Envelope { cluster, group: GroupId(0), from: node.id, to: node.id, message };
//! transport.send(&node, vec![envelope.clone()]).await?;
//!
//! let (sender, batch) = arrivals.next().await.expect("the inbox is open");
//! assert_eq!((sender, batch), (node, vec![envelope]));
//!
//! let _ = stop.send(());
//! server.await??;
//! # Ok(())
//! # }
//! ```

mod accept;
mod codec;
mod connection;
mod explain;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzzing;
mod opening;
mod options;
mod server;
mod transport;
mod wire;

pub use raftkv::transport_kit::{Tls, listener};

pub use opening::PeerService;
pub use options::{Options, PROTOCOL_VERSION, ServerOptions};
pub use server::{GrpcServer, serve};
pub use transport::{GrpcTransport, Local};
