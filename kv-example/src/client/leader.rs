//! Which endpoint comes next, and which is the leader's.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::Kind;
use super::endpoint::Endpoint;
use super::error::Cause;
use crate::api::node::NodeStatusRequest;
use crate::api::node::node_client::NodeClient;

/// How long the endpoints may take to say who they are, before the call goes on without knowing. Who does not say so is not
/// asked again for a while.
const SEARCH_LIMIT: Duration = Duration::from_millis(500);

/// The order in which a call tries the endpoints: in rounds, each endpoint once in a round. So two nodes that take each other for
/// the leader can't send a call to and fro without a pause.
#[derive(Debug)]
pub(super) struct Turns {
    count: usize,
    first: usize,
    left: VecDeque<usize>,
}

impl Turns {
    pub(super) fn new(count: usize, first: usize) -> Self {
        Self { count, first, left: VecDeque::new() }
    }

    /// Every endpoint once more, beginning with the one that is hoped for most; those where nobody seems to be come last.
    pub(super) fn start_round(&mut self, is_silent: impl Fn(usize) -> bool) {
        self.left = (0..self.count).map(|turn| (self.first + turn) % self.count).collect();
        self.left.make_contiguous().sort_by_key(|n| is_silent(*n));
    }

    pub(super) fn next(&mut self) -> Option<usize> {
        self.left.pop_front()
    }

    /// This one comes next; if it had its turn in this round, then first in the next one.
    pub(super) fn prefer(&mut self, n: usize) {
        self.first = n;
        if let Some(at) = self.left.iter().position(|other| *other == n) {
            self.left.remove(at);
            self.left.push_front(n);
        }
    }
}

/// What one call has done to find the leader's endpoint.
#[derive(Debug, Default)]
pub(super) struct LeaderSearch {
    /// The leader that was looked for last, so that it is not looked for again and again.
    sought: Option<u64>,
}

impl LeaderSearch {
    /// The endpoint of the leader that a refusal names, if it is among those of this client. Endpoints that are not known yet
    /// are asked who they are. `refuser` is the endpoint that refused.
    pub(super) async fn endpoint_of_leader(
        &mut self,
        endpoints: &[Endpoint],
        refuser: usize,
        cause: &Cause,
        limit: Duration,
    ) -> Option<usize> {
        let leader = cause.leader?;
        if endpoints[refuser].node() == Some(leader) {
            // It says that somebody else leads, so another node serves there by now.
            endpoints[refuser].set_node(None);
        }
        let known = |endpoint: &Endpoint| endpoint.node() == Some(leader);
        let at = endpoints.iter().position(known);
        if at.is_some() || self.sought == Some(leader) {
            return at;
        }
        self.sought = Some(leader);
        // Whoever did not answer is tried in turn, as without a hint.
        learn(endpoints, refuser, leader, limit.min(SEARCH_LIMIT)).await;
        endpoints.iter().position(known)
    }
}

/// Asks the endpoints that are not known, all at once, until the leader is found.
async fn learn(endpoints: &[Endpoint], refuser: usize, leader: u64, limit: Duration) {
    let worth_asking = |endpoint: &Endpoint| endpoint.node().is_none() && !endpoint.is_silent();
    let unknown = endpoints.iter().enumerate().filter(|(n, endpoint)| *n != refuser && worth_asking(endpoint));
    let mut answers: FuturesUnordered<_> = unknown
        .map(|(_, endpoint)| async move {
            let call = async { NodeClient::new(endpoint.channel()).status(NodeStatusRequest {}).await };
            let id = endpoint.attempt(Kind::Read, limit, call).await.ok().map(|status| status.id);
            endpoint.set_node(id);
            // A call that is out of time has not given it any.
            if id.is_none() && limit == SEARCH_LIMIT {
                endpoint.set_silent(true);
            }
            id
        })
        .collect();
    while let Some(id) = answers.next().await {
        if id == Some(leader) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(turns: &mut Turns) -> Vec<usize> {
        std::iter::from_fn(|| turns.next()).collect()
    }

    fn everybody_speaks(_: usize) -> bool {
        false
    }

    #[test]
    fn in_turn_without_a_hint() {
        let mut turns = Turns::new(3, 1);
        for _ in 0..2 {
            turns.start_round(everybody_speaks);
            assert_eq!(round(&mut turns), [1, 2, 0]);
        }
    }

    #[test]
    fn silent_ones_come_last() {
        let mut turns = Turns::new(5, 3);
        turns.start_round(|n| n == 3 || n == 0);
        assert_eq!(round(&mut turns), [4, 1, 2, 3, 0]);
        turns.start_round(everybody_speaks);
        assert_eq!(round(&mut turns), [3, 4, 0, 1, 2]);
    }

    #[test]
    fn a_hint_comes_next_and_every_endpoint_once_in_a_round() {
        let mut turns = Turns::new(4, 0);
        turns.start_round(everybody_speaks);
        assert_eq!(turns.next(), Some(0));
        turns.prefer(3);
        assert_eq!(turns.next(), Some(3));
        // It had its turn: no going to and fro.
        turns.prefer(0);
        assert_eq!(round(&mut turns), [1, 2]);
        turns.start_round(everybody_speaks);
        assert_eq!(round(&mut turns), [0, 1, 2, 3]);
    }
}
