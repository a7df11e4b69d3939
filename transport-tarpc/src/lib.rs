//! A [`raftkv::Transport`] over tarpc, with serde and postcard on the wire. It promises what the gRPC transport does.
//!
//! ```text
//!  node 1                                                                              node 2
//!  TarpcTransport ──> lane 2/control: queue ──> deliver(batch) ── TCP ──> TarpcServer ──> Inbox
//!                 └─> lane 2/bulk:    queue ──> deliver(batch) ── TCP ──>     │
//!                                          <── answers, farewell ──           └ waits while the inbox is full
//! ```
//!
//! * Each peer and lane has a connection of its own, so payloads never delay heartbeats. The peer's messages come on
//!   connections that the peer opens.
//! * A connection begins with a handshake: protocol version, cluster, both nodes, lane. A receiver that is somebody else
//!   refuses with a reason, which both sides log. It also tells its limits.
//! * Batches are requests, and many of them are under way at a time. A request is answered when its batch is in the inbox, and they get there in
//!   order: so a receiver that falls behind holds its senders back. [`Inbox::deliver`](raftkv::Inbox::deliver) waits, answers stay away, the window is used
//!   up, the lane's queue fills, and `send` waits. Every stage is bounded in bytes. What waits in the queue meanwhile goes as one batch.
//! * A lost connection is restored by itself. Meanwhile messages to the peer are dropped, and `send` says why. Probes on
//!   every connection find a peer that vanished without a word.
//! * When a receiver ends a connection, it says why: it answers a request that has waited for that since the beginning.
//! * With TLS ([`TarpcTransport::with_tls`], [`TarpcServer::with_tls`]) both ends prove with certificates which nodes they are, and who does not is refused
//!   ([how](raftkv::transport_kit::Tls)). Without it there is no encryption and no authentication: keep the peers' ports in a network that you trust.
//!
//! tarpc opens spans for each request at level INFO, and has ten more things to say of it to `tracing`. They are dropped; what an operator needs to know is
//! logged by the lanes and the server.
//!
//! # One node's two halves
//!
//! ```
//! use raftkv::{Body, ClusterId, Envelope, GroupId, Inbox, Index, Message, Peer, Term, Transport};
//! use raftkv_transport_tarpc::{Local, Options, ServerOptions, TarpcTransport, serve};
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
//! let transport = TarpcTransport::new(Local { cluster, node: node.clone() }, Options::default());
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

mod answers;
mod codec;
mod connection;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzzing;
mod line;
mod options;
mod probe;
mod server;
mod service;
mod session;
mod transport;
mod wire;

pub use options::{Options, PROTOCOL_VERSION, ServerOptions};
pub use raftkv::transport_kit::Tls;
pub use server::{TarpcServer, serve};
pub use transport::{Local, TarpcTransport};
