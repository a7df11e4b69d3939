use std::sync::Arc;

use async_trait::async_trait;

use crate::error::TransportError;
use crate::message::Envelope;
use crate::types::Peer;

/// Carries envelopes to peers.
///
/// The receiving half is yours as well: take batches off the wire and pass them to [`Inbox::deliver`](crate::Inbox::deliver).
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Hands a batch to the way to `to`. Best effort: it may lose, delay, duplicate or reorder messages.
    ///
    /// Returns when the next batch may come, which is how a slow link pushes back; it never waits for the peer's answer.
    /// All envelopes of a batch are of one [`Lane`](crate::Lane). Each peer and lane has one caller at a time; calls for
    /// other peers and for the other lane run at the same time and must not wait for this one. The future may be dropped before
    /// it is done when the node stops or the peer moves; what it was sending may be lost.
    ///
    /// # Errors
    /// The batch, or part of it, was dropped. The caller logs and counts it, and goes on with the next.
    async fn send(&self, to: &Peer, batch: Vec<Envelope>) -> Result<(), TransportError>;
}

#[async_trait]
impl<T: Transport + ?Sized> Transport for Arc<T> {
    async fn send(&self, to: &Peer, batch: Vec<Envelope>) -> Result<(), TransportError> {
        (**self).send(to, batch).await
    }
}
