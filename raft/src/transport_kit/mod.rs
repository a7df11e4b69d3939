//! For authors of transports: what is the same whatever the wire is (feature `transport-kit`).
//!
//! A [`Transport`](crate::Transport) for real networks keeps a connection to each peer and lane, queues for it within bounds, restores it when it is
//! lost, and tells the log and the node of it. None of that depends on what the bytes look like, so it is here, once, for the gRPC
//! and the tarpc transport and for yours:
//!
//! | you need | it is |
//! |---|---|
//! | the sending half: lanes, queues, backoff, splitting, idle connections, who is told of what | [`Lanes`]; you bring a [`Dial`], which opens one connection and says how it ended |
//! | the handshake's questions | [`greet`] |
//! | which numbers may reach the core | [`numbers`] |
//! | TLS, where it is wanted: certificates from files, and peers that prove who they are (feature `tls`) | [`Gate`] for connections that come, [`connect_link`] for those that are opened; `tls` |
//! | limits on what all who come may have together, and on what one address may | [`Shares`] |
//! | the same for connections, of which those that say nothing make room for others | [`Entrance`] |
//! | connections that end by themselves when nobody says in time what they are for, or takes what is written | [`Guarded`] |
//! | what an HTTP/2 library refuses without telling anybody but its client: to count it, and to tell the log | [`Http2Refusals`](http2::Http2Refusals) |
//! | fewer and larger writes where many tasks share a connection | [`Gathering`] |
//! | an accept loop that survives what single connections do, and ends when the listener is broken | [`listener`] |
//! | what the log and the node learn of the peers that are connected, and of those that are refused | [`Presence`], [`RefusalLog`] |
//!
//! [`Lanes`] is a [`Transport`](crate::Transport) itself. `raftkv-transport-tarpc` shows all of it at work.

mod entrance;
mod gathering;
mod guarded;
mod handshake;
pub mod http2;
mod lane;
mod lanes;
mod link;
pub mod listener;
pub mod numbers;
mod options;
mod queue;
mod receiving;
mod shares;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;
#[cfg(feature = "tls")]
pub mod tls;

pub use entrance::{Entrance, Eviction, Place, Visitor};
pub use gathering::Gathering;
pub use guarded::{Admission, Guarded};
pub use handshake::{MAX_ADDRESS_BYTES, greet};
pub use lane::{Connection, Dial, Failure};
pub use lanes::{Lanes, Local};
pub use link::{Arrival, Gate, Identity, Link, Trouble, connect, connect_link, node_name};
pub use options::Options;
pub use queue::{Outgoing, Parcel};
pub use receiving::{Presence, RefusalLog};
pub use shares::{Exhausted, Share, Shares};
pub use tls::{Denied, Tls};
