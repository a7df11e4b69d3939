//! Reads of older entries from the log, beside everything else. The core has at most one under way for each purpose.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::consensus::{Fetch, FetchPurpose};
use crate::error::StorageError;
use crate::traits::LogStore;
use crate::types::{Entry, NodeId, Term};

pub(crate) struct Fetcher {
    log: Arc<dyn LogStore>,
    reads: FuturesUnordered<BoxFuture<'static, Fetched>>,
}

pub(crate) type Fetched = (FetchPurpose, Result<Vec<Entry>, StorageError>);

impl Fetcher {
    pub(crate) fn new(log: Arc<dyn LogStore>) -> Self {
        Self { log, reads: FuturesUnordered::new() }
    }

    pub(crate) fn start(&mut self, Fetch { purpose, range, max_bytes }: Fetch) {
        let log = self.log.clone();
        self.reads.push(Box::pin(async move { (purpose, log.read(range, max_bytes).await) }));
    }

    /// The next read that is done; waits while there is none.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Fetched> {
        if self.reads.is_empty() {
            return Poll::Pending;
        }
        match self.reads.poll_next_unpin(cx) {
            Poll::Ready(Some(fetched)) => Poll::Ready(fetched),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Waits for the reads under way.
    pub(crate) async fn finish(mut self) {
        while self.reads.next().await.is_some() {}
    }
}

/// So many reads one after the other for one follower may ask for entries that the log store does not have any more. What it has lost is not asked for for ever.
const MOST_IN_VAIN: u32 = 1000;

/// For how many reads one after the other the log store did not have the entries, for each follower.
#[derive(Debug, Default)]
pub(crate) struct InVain {
    term: Term,
    reads: BTreeMap<NodeId, u32>,
}

impl InVain {
    /// Counts another one in this term. Whether those are too many: the store has lost what it acknowledged.
    pub(crate) fn another(&mut self, term: Term, follower: NodeId) -> bool {
        // Between two terms in which this node led others may have replaced what it read for.
        if self.term != term {
            *self = Self { term, reads: BTreeMap::new() };
        }
        let reads = self.reads.entry(follower).or_default();
        *reads += 1;
        *reads > MOST_IN_VAIN
    }

    /// One was not in vain.
    pub(crate) fn over(&mut self, follower: NodeId) {
        self.reads.remove(&follower);
    }
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").field("reads", &self.reads.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_in_vain_are_counted_one_after_the_other_for_each_follower_and_term() {
        let mut in_vain = InVain::default();
        let many = |in_vain: &mut InVain, term: u64, id: u64| {
            (0..MOST_IN_VAIN).any(|_| in_vain.another(Term(term), NodeId(id)))
        };
        assert!(!many(&mut in_vain, 1, 2) && !many(&mut in_vain, 1, 3));
        // Of another term.
        assert!(!many(&mut in_vain, 2, 2));
        // One that succeeds ends them, for its follower alone.
        assert!(!many(&mut in_vain, 2, 3));
        in_vain.over(NodeId(3));
        assert!(!many(&mut in_vain, 2, 3));
        assert!(in_vain.another(Term(2), NodeId(3)) && in_vain.another(Term(2), NodeId(2)));
    }
}
