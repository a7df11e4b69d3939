use std::time::Duration;

pub use raftkv::transport_kit::Options;

/// The version of the protocol that this crate speaks; the handshake carries it.
pub const PROTOCOL_VERSION: u32 = 1;

/// Times and limits of the receiving half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// The largest message that is accepted. Senders are told; one with a larger [`Options::max_message_bytes`] gives the lane up when it has to use it.
    pub max_message_bytes: usize,
    /// How long a connection may take until the peer has said who it is.
    pub handshake_timeout: Duration,
    /// How many peers' connections may be open in total; each peer needs one for each lane. As many again may be in their handshakes: of
    /// these the one that has waited longest makes room for the next.
    pub max_connections: usize,
    /// How many connections may come from one address, those in their handshakes included; an address of IPv6 stands for the 64 bits behind it as
    /// well. So nobody keeps the other nodes out by connecting again and again.
    pub max_connections_per_address: usize,
    /// How many bytes of a connection may be under way before they are taken: what a sender can fill the link with, and what it
    /// can make this node hold. Senders are told. A single larger message passes alone.
    pub window_bytes: u32,
    /// How many batches of a connection may be under way before they are taken, and how many requests of other kinds beside them; at least
    /// [`ServerOptions::FEWEST_REQUESTS`]. Senders are told, and keep to half of it; one that doesn't is cut off. Those of builds that did not read it keep to half of 1024: say no less until all
    /// are of this one.
    pub max_requests: u32,
    /// How much later than it said a peer may give a sign of life before its connection is given up.
    pub keep_alive_timeout: Duration,
    /// How long a connection that this node ends stays open for the peer to learn why, and `serve` when it shuts down.
    pub shutdown_grace: Duration,
}

impl ServerOptions {
    /// With fewer requests at a time no peer could deliver, give a sign of life and wait for a farewell: fewer are taken for so many.
    pub const FEWEST_REQUESTS: u32 = 4;
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_message_bytes: 16 << 20,
            handshake_timeout: Duration::from_secs(5),
            max_connections: 1024,
            max_connections_per_address: 512,
            window_bytes: 8 << 20,
            max_requests: 1024,
            keep_alive_timeout: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(1),
        }
    }
}
