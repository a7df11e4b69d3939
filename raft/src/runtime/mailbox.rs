//! A queue with many senders and one reader, which takes all that is there at once.
//!
//! One lock per push and one per batch taken; the reader is woken only when it sleeps. Who pushes bounds what is
//! pushed: each use names its limit.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    queue: Vec<T>,
    /// The reader, while it sleeps.
    reader: Option<Waker>,
    closed: bool,
}

/// The reader is gone; the item comes back.
#[derive(Debug)]
pub(crate) struct Closed<T>(pub(crate) T);

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State { queue: Vec::new(), reader: None, closed: false }) }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item, and wakes the reader if it sleeps.
    pub(crate) fn push(&self, item: T) -> Result<(), Closed<T>> {
        let mut state = self.lock();
        if state.closed {
            return Err(Closed(item));
        }
        state.queue.push(item);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }

    /// Moves all items to the end of `into`; waits while there are none. False once the mailbox is closed and empty.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>, into: &mut Vec<T>) -> Poll<bool> {
        let mut state = self.lock();
        if !state.queue.is_empty() {
            if into.is_empty() {
                std::mem::swap(&mut state.queue, into);
            } else {
                into.append(&mut state.queue);
            }
            return Poll::Ready(true);
        }
        if state.closed {
            return Poll::Ready(false);
        }
        if !state.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
            state.reader = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// As [`Mailbox::poll_take`], as a future.
    pub(crate) async fn take(&self, into: &mut Vec<T>) -> bool {
        std::future::poll_fn(|cx| self.poll_take(cx, into)).await
    }

    /// No more items; what is there can still be taken.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// No more items; gives back those that nobody will read.
    pub(crate) fn close_and_drain(&self) -> Vec<T> {
        self.close();
        std::mem::take(&mut self.lock().queue)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn the_reader_gets_all_that_is_there_in_order() {
        let mailbox = Arc::new(Mailbox::new());
        let reader = tokio::spawn({
            let mailbox = mailbox.clone();
            async move {
                let mut items = Vec::new();
                let mut batches = 0;
                while items.len() < 3 {
                    assert!(mailbox.take(&mut items).await);
                    batches += 1;
                }
                (items, batches)
            }
        });
        tokio::task::yield_now().await;
        for n in 1..=3 {
            mailbox.push(n).unwrap();
        }
        assert_eq!(reader.await.unwrap(), (vec![1, 2, 3], 1));
    }

    #[tokio::test]
    async fn a_closed_mailbox_is_emptied_first_and_takes_nothing_more() {
        let mailbox = Mailbox::new();
        mailbox.push(1).unwrap();
        mailbox.close();
        assert_eq!(mailbox.push(2).unwrap_err().0, 2);
        let mut items = Vec::new();
        assert!(mailbox.take(&mut items).await);
        assert!(!mailbox.take(&mut Vec::new()).await);
        assert_eq!(items, [1]);
    }
}
