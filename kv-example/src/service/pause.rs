//! Pauses between two looks at the node: short ones while something goes on, long ones that end when something happens.
//!
//! A look costs a node that is idle about as much as a heartbeat.

use std::time::Duration;

use raftkv::{Event, Events};
use tokio::time::{Instant, timeout_at};

use super::Replica;

/// How long a pause is while nothing goes on and nothing happens. What there are no events of waits for so long at most.
const LONG: Duration = Duration::from_secs(2);
/// After an event, for so many looks something may go on that there is no event of.
const ALERT: u32 = 8;

/// One who looks.
pub(super) struct Pauses {
    short: Duration,
    events: Option<Events>,
    /// How many looks have found nothing to do since something happened.
    quiet: u32,
}

impl Pauses {
    /// `short` is how long a pause is while something goes on, or nobody tells what happens.
    pub(super) fn new(replica: &impl Replica, short: Duration) -> Self {
        Self { short, events: replica.events(), quiet: 0 }
    }

    /// Waits until it is time to look again. `quiet` tells whether the last look has found nothing to do.
    pub(super) async fn pause(&mut self, quiet: bool) {
        self.quiet = if quiet { self.quiet.saturating_add(1) } else { 0 };
        let long = self.quiet >= ALERT && self.events.is_some();
        let end = Instant::now() + if long { LONG } else { self.short };
        while let Ok(happened) = timeout_at(end, self.happens()).await {
            if happened {
                self.quiet = 0;
                if long {
                    return;
                }
            }
        }
    }

    /// Whether the next event is worth a look.
    async fn happens(&mut self) -> bool {
        let Some(events) = &mut self.events else { return std::future::pending().await };
        match events.next().await {
            Some(event) => !matches!(event, Event::SnapshotTaken { .. }),
            // The next look learns that the node has stopped.
            None => {
                self.events = None;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use raftkv::testing::{MemLog, MemNetwork, MemSnapshots};
    use raftkv::{ClusterId, Membership, Peer, Raft};

    use super::*;
    use crate::machine::KvMachine;

    const SHORT: Duration = Duration::from_millis(10);

    async fn node() -> Raft {
        let peer = Peer::new(1, "node-1");
        let network = MemNetwork::new(0);
        let node = Raft::builder(peer.id, ClusterId(1)).transport(network.transport(peer.clone())).log(MemLog::new());
        let node = node.snapshots(MemSnapshots::new()).state_machine(KvMachine::new());
        let raft = node.start().await.unwrap();
        raft.initialize(Membership::new([peer])).await.unwrap();
        raft.read(raftkv::Consistency::Linearizable).await.unwrap();
        raft
    }

    async fn time(pauses: &mut Pauses, quiet: bool) -> Duration {
        let begun = Instant::now();
        pauses.pause(quiet).await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_are_long_while_nothing_happens_and_end_when_something_does() {
        let raft = node().await;
        let mut pauses = Pauses::new(&raft, SHORT);
        for _ in 1..ALERT {
            assert!(time(&mut pauses, true).await < LONG / 2);
        }
        assert!(time(&mut pauses, true).await >= LONG);
        let happens = async {
            tokio::time::sleep(LONG / 4).await;
            raft.shutdown().await;
        };
        let (took, ()) = tokio::join!(time(&mut pauses, true), happens);
        assert!(took >= LONG / 4 && took < LONG, "{took:?}");
        // Then they are short again for a while.
        assert!(time(&mut pauses, true).await < LONG / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_are_short_while_something_goes_on() {
        let raft = node().await;
        let mut pauses = Pauses::new(&raft, SHORT);
        for _ in 0..3 * ALERT {
            assert!(time(&mut pauses, false).await < LONG / 2);
        }
        raft.shutdown().await;
    }
}
