//! A [`raftkv::Transport`] over long-lived gRPC streams.

mod codec;
mod connection;
mod lane;
mod options;
mod queue;
mod server;
mod transport;
mod wire;

pub use options::{Options, PROTOCOL_VERSION, ServerOptions};
pub use server::{GrpcServer, PeerService, serve};
pub use transport::{GrpcTransport, Local};
