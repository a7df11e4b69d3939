use std::time::Duration;

/// Times and limits of the sending half. The defaults suit a cluster in one data centre, and work across continents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The largest message on the wire, and the largest frame of a batch: larger batches are split. A single larger message
    /// gets `TransportError::TooLarge`. Receivers have a limit as well: it should be the same.
    ///
    /// Must exceed both `max_append_bytes` and `max_command_bytes` of the node's `Config`.
    pub max_message_bytes: usize,
    /// How many batches wait in each lane before `send` does.
    pub max_queued_batches: usize,
    /// How many bytes wait in each lane before `send` does. A single larger batch passes alone.
    pub max_queued_bytes: usize,
    /// How long a connection may take to be made, and then the peer's welcome. After a silent attempt the next one waits for the welcome
    /// twice as long, up to four times this: peers that are too busy to answer in time must not be made busier by attempts that are given
    /// up. The limits for probes below grow alike when a connection ends in silence, until one has lasted for half a minute.
    pub connect_timeout: Duration,
    /// The first pause between attempts. It doubles from one to the next, and each is shortened by up to half at random.
    pub min_backoff: Duration,
    /// The longest pause between attempts.
    pub max_backoff: Duration,
    /// The pause after a refusal, which only an operator can change.
    pub refused_backoff: Duration,
    /// How often a connection is probed.
    pub keep_alive_interval: Duration,
    /// How long a probe of the control lane may stay unanswered before the connection is given up.
    pub control_keep_alive_timeout: Duration,
    /// The same for the bulk lane; longer, since a probe queues behind payloads in the kernel's buffers when the link is slow.
    pub bulk_keep_alive_timeout: Duration,
    /// How long nothing may be sent to a peer before its connections are closed.
    pub idle_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_message_bytes: 16 << 20,
            max_queued_batches: 256,
            max_queued_bytes: 8 << 20,
            connect_timeout: Duration::from_secs(2),
            min_backoff: Duration::from_millis(20),
            max_backoff: Duration::from_secs(1),
            refused_backoff: Duration::from_secs(2),
            keep_alive_interval: Duration::from_secs(1),
            control_keep_alive_timeout: Duration::from_secs(2),
            bulk_keep_alive_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(300),
        }
    }
}
