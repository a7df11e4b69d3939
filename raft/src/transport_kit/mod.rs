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
//! | an accept loop that survives what single connections do, and ends when the listener is broken | [`listener`] |
//! | what the log and the node learn of the peers that are connected, and of those that are refused | [`Presence`], [`RefusalLog`] |
//!
//! [`Lanes`] is a [`Transport`](crate::Transport) itself. `raftkv-transport-tarpc` shows all of it at work.

mod handshake;
mod lane;
mod lanes;
pub mod listener;
pub mod numbers;
mod options;
mod queue;
mod receiving;

pub use handshake::{MAX_ADDRESS_BYTES, greet};
pub use lane::{Connection, Dial, Failure};
pub use lanes::{Lanes, Local};
pub use options::Options;
pub use queue::{Outgoing, Parcel};
pub use receiving::{Presence, RefusalLog};
