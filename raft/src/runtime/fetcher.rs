//! Reads of older entries from the log, beside everything else. The core has at most one under way for each purpose.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::consensus::{Fetch, FetchPurpose};
use crate::error::StorageError;
use crate::traits::LogStore;
use crate::types::Entry;

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

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").field("reads", &self.reads.len()).finish_non_exhaustive()
    }
}
