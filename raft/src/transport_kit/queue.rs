//! The queue of one connection, bounded in batches and in bytes.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{Semaphore, mpsc};

use crate::message::Envelope;

/// A batch within the wire's limit.
#[derive(Debug)]
pub struct Parcel {
    /// The messages: one at least.
    pub batch: Vec<Envelope>,
    /// A bound on their bytes on the wire.
    pub bytes: usize,
}

/// The sending end. When the other end is gone, everything fails at once.
#[derive(Clone)]
pub(super) struct Feed {
    parcels: mpsc::Sender<(Parcel, u32)>,
    room: Arc<Semaphore>,
    max_bytes: u32,
}

/// What a connection is to send, in order. Dropping it fails the senders that wait.
#[derive(Debug)]
pub struct Outgoing {
    parcels: mpsc::Receiver<(Parcel, u32)>,
    room: Arc<Semaphore>,
}

/// The connection is gone, and the parcel with it.
pub(super) struct Dropped;

pub(super) fn queue(max_batches: usize, max_bytes: usize) -> (Feed, Outgoing) {
    let max_bytes = u32::try_from(max_bytes).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 3);
    let (sender, receiver) = mpsc::channel(max_batches.max(1));
    let room = Arc::new(Semaphore::new(max_bytes as usize));
    let feed = Feed { parcels: sender, room: room.clone(), max_bytes };
    (feed, Outgoing { parcels: receiver, room })
}

impl Feed {
    /// Queues a parcel when there is room for it.
    pub(super) async fn push(&self, parcel: Parcel) -> Result<(), Dropped> {
        // An oversize parcel waits until it is alone, rather than for ever.
        let bytes = u32::try_from(parcel.bytes).unwrap_or(u32::MAX).min(self.max_bytes);
        let slot = self.parcels.reserve().await.map_err(|_| Dropped)?;
        self.room.acquire_many(bytes).await.map_err(|_| Dropped)?.forget();
        slot.send((parcel, bytes));
        Ok(())
    }
}

impl Outgoing {
    /// What a lane with these parcels hands out, and nothing after them: for tests of connections.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn holding(waiting: Vec<Parcel>) -> Self {
        let (sender, parcels) = mpsc::channel(waiting.len().max(1));
        for parcel in waiting {
            // There is room for all of them.
            let _ = sender.try_send((parcel, 0));
        }
        Self { parcels, room: Arc::new(Semaphore::new(0)) }
    }

    /// The next parcel; none when the lane has ended. It makes room for another one. May be dropped before it is done.
    pub async fn next(&mut self) -> Option<Parcel> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The same for those who poll.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Parcel>> {
        let next = ready!(self.parcels.poll_recv(cx));
        Poll::Ready(next.map(|(parcel, bytes)| self.taken(parcel, bytes)))
    }

    /// The next parcel if there is one already.
    pub fn take(&mut self) -> Option<Parcel> {
        let (parcel, bytes) = self.parcels.try_recv().ok()?;
        Some(self.taken(parcel, bytes))
    }

    fn taken(&self, parcel: Parcel, bytes: u32) -> Parcel {
        self.room.add_permits(bytes as usize);
        parcel
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.room.close();
    }
}
