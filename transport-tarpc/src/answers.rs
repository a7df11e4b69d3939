//! The receiver's answers, several of them in one packet.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Sink, Stream};
use tarpc::Response;
use tokio::time::{Instant, Sleep, sleep};

use crate::line::Meter;
use crate::service::PeersResponse;

/// How long an answer to a batch may wait for others at most. Nobody waits for it, as long as the window is wide.
const LATEST: Duration = Duration::from_millis(5);
/// How many of them wait at most.
const MOST: usize = 32;

/// Passes answers on, and flushes those to batches a little later than it is told. One packet an answer would cost a system call
/// and a wake-up at both ends for every message that is sent alone.
pub(crate) struct Answers<F> {
    framed: F,
    meter: Arc<Meter>,
    /// A part of the sender's window.
    most_bytes: u64,
    waiting: usize,
    urgent: bool,
    latest: Pin<Box<Sleep>>,
}

impl<F> Answers<F> {
    pub(crate) fn new(framed: F, meter: Arc<Meter>, window: u32) -> Self {
        let most_bytes = u64::from(window / 8);
        Self { framed, meter, most_bytes, waiting: 0, urgent: false, latest: Box::pin(sleep(LATEST)) }
    }

    /// Whether what is written has to be on its way now.
    fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        let enough = self.waiting >= MOST || self.meter.owed() >= self.most_bytes;
        // The timer wakes whoever runs the connection, which flushes again.
        self.urgent || (self.waiting > 0 && (enough || self.latest.as_mut().poll(cx).is_ready()))
    }
}

impl<F: Stream + Unpin> Stream for Answers<F> {
    type Item = F::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<F::Item>> {
        Pin::new(&mut self.framed).poll_next(cx)
    }
}

impl<F> Sink<Response<PeersResponse>> for Answers<F>
where
    F: Sink<Response<PeersResponse>, Error = io::Error> + Unpin,
{
    type Error = io::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = Pin::new(&mut self.framed).poll_ready(cx);
        // Whoever waits for room flushes until there is some.
        self.urgent |= ready.is_pending();
        ready
    }

    fn start_send(mut self: Pin<&mut Self>, response: Response<PeersResponse>) -> io::Result<()> {
        if matches!(response.message, Ok(PeersResponse::Deliver(Ok(())))) {
            if self.waiting == 0 {
                self.latest.as_mut().reset(Instant::now() + LATEST);
            }
            self.waiting += 1;
        } else {
            self.urgent = true;
        }
        Pin::new(&mut self.framed).start_send(response)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_due(cx) {
            return Poll::Ready(Ok(()));
        }
        // Until it is done, it stays due.
        let flushed = Pin::new(&mut self.framed).poll_flush(cx);
        if flushed.is_ready() {
            (self.waiting, self.urgent) = (0, false);
            self.meter.paid();
        } else {
            self.urgent = true;
        }
        flushed
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.framed).poll_close(cx)
    }
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
