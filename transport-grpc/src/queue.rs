//! The queue of one connection, bounded in batches and in bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use raftkv::Envelope;
use tokio::sync::{Semaphore, mpsc};

use crate::wire::{self, pb};

/// A batch within the wire's limit, and a bound on its bytes.
pub(crate) struct Parcel {
    pub(crate) batch: Vec<Envelope>,
    pub(crate) bytes: usize,
}

/// The sending end. When the other end is gone, everything fails at once.
#[derive(Clone)]
pub(crate) struct Feed {
    parcels: mpsc::Sender<(Vec<Envelope>, u32)>,
    room: Arc<Semaphore>,
    max_bytes: u32,
}

/// The receiving end: what a connection sends, hello first.
pub(crate) struct Outgoing {
    hello: Option<pb::Hello>,
    parcels: mpsc::Receiver<(Vec<Envelope>, u32)>,
    room: Arc<Semaphore>,
}

/// The connection is gone, and the parcel with it.
pub(crate) struct Dropped;

pub(crate) fn queue(max_batches: usize, max_bytes: usize, hello: pb::Hello) -> (Feed, Outgoing) {
    let max_bytes = u32::try_from(max_bytes).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 3);
    let (sender, receiver) = mpsc::channel(max_batches.max(1));
    let room = Arc::new(Semaphore::new(max_bytes as usize));
    let feed = Feed { parcels: sender, room: room.clone(), max_bytes };
    (feed, Outgoing { hello: Some(hello), parcels: receiver, room })
}

impl Feed {
    /// Queues a parcel when there is room for it.
    pub(crate) async fn push(&self, parcel: Parcel) -> Result<(), Dropped> {
        let bytes = self.charge(&parcel);
        let slot = self.parcels.reserve().await.map_err(|_| Dropped)?;
        self.room.acquire_many(bytes).await.map_err(|_| Dropped)?.forget();
        slot.send((parcel.batch, bytes));
        Ok(())
    }

    /// An oversize parcel waits until it is alone, rather than for ever.
    fn charge(&self, parcel: &Parcel) -> u32 {
        u32::try_from(parcel.bytes).unwrap_or(u32::MAX).min(self.max_bytes)
    }
}

impl Stream for Outgoing {
    type Item = pb::Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<pb::Frame>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(pb::Frame { hello: Some(hello), envelopes: Vec::new() }));
        }
        let Some((batch, bytes)) = ready!(self.parcels.poll_recv(cx)) else { return Poll::Ready(None) };
        self.room.add_permits(bytes as usize);
        Poll::Ready(Some(wire::encode(batch)))
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.room.close();
    }
}
