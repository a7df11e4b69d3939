use std::time::Duration;

pub use raftkv::transport_kit::Options;

/// The version of the protocol that this crate speaks; the handshake carries it.
pub const PROTOCOL_VERSION: u32 = 1;

/// Times and limits of the receiving half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// The largest frame that is accepted; senders with a larger [`Options::max_message_bytes`] are cut off when they use it.
    pub max_message_bytes: usize,
    /// How long a peer may take from opening a stream to saying who it is. Under [`serve`](crate::serve) a connection on
    /// which nobody did so within twice this time is hung up on.
    pub handshake_timeout: Duration,
    /// How many connections may be open in total, peers' or not; each peer needs one for each lane. More are closed unheard. Half of them may be
    /// such on which nobody has said who it is: of these the one that has waited longest makes room for the next.
    pub max_connections: usize,
    /// How many of them may come from one address; one of IPv6 stands for the 64 bits behind it as well. So nobody keeps the other nodes out by
    /// connecting again and again. As many streams of an address may wait for a peer to say who it is.
    pub max_connections_per_address: usize,
    /// How many streams may be open in total on which a peer has said who it is; each needs one for each lane.
    pub max_streams: usize,
    /// How many streams a connection may have open; a peer needs one. HTTP/2 refuses more.
    pub max_streams_per_connection: u32,
    /// The largest header of a request, as HTTP/2 counts it: with 32 bytes for each field. HTTP/2 answers larger ones with status 431.
    pub max_header_bytes: u32,
    /// How many bytes of a stream may be under way before they are taken: what a sender can fill the link with, and what it
    /// can make this node hold. At most 2³¹ − 1.
    pub window_bytes: u32,
    /// How often a connection is probed.
    pub keep_alive_interval: Duration,
    /// How long a probe may stay unanswered before the connection is given up. After both times together it is given up as well if the peer took
    /// nothing of what is written to it.
    pub keep_alive_timeout: Duration,
    /// How long `serve` waits for connections to end in good order when it shuts down.
    pub shutdown_grace: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_message_bytes: 16 << 20,
            handshake_timeout: Duration::from_secs(5),
            max_connections: 1024,
            max_connections_per_address: 512,
            max_streams: 1024,
            max_streams_per_connection: 8,
            max_header_bytes: 16 << 10,
            window_bytes: 8 << 20,
            keep_alive_interval: Duration::from_secs(1),
            keep_alive_timeout: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(1),
        }
    }
}
