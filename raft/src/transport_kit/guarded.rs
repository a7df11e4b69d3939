//! A connection that must be of use: somebody says in time what it is for, and takes what is written to it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::entrance::Eviction;

/// A byte stream that fails once the other side takes longer than it may: until it is admitted, and whenever it takes nothing of what is written.
///
/// What waits to be written is memory of this process, and a protocol's own probes find nobody out who answers none of them because
/// it reads nothing: the word that ends the connection could not be written either.
pub struct Guarded<S> {
    stream: S,
    waiting: Option<Waiting>,
    eviction: Option<Eviction>,
    admitted: Admission,
    max_stall: Duration,
    /// Runs while nothing of what is to be written can be.
    stalled: Option<Pin<Box<Sleep>>>,
    _share: Box<dyn Send + Sync>,
}

/// A connection on which nobody has said yet what it is for.
struct Waiting {
    deadline: Pin<Box<Sleep>>,
    late: Box<dyn FnOnce() + Send>,
}

/// Lets a [`Guarded`] connection stay. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Admission(Arc<AtomicBool>);

impl Admission {
    /// Whoever connected has said what it is for, and may take its time from now on.
    pub fn grant(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<S> Guarded<S> {
    /// A connection that has until `entry` to be admitted, and `max_stall` each time that it takes nothing of what is written; it keeps its
    /// share of the connections that there may be, a [`Share`](super::Share) or a [`Place`](super::Place). When it was not admitted in time, `late` is called.
    pub fn new(
        stream: S,
        share: impl Send + Sync + 'static,
        entry: Duration,
        max_stall: Duration,
        late: impl FnOnce() + Send + 'static,
    ) -> Self {
        let waiting = Some(Waiting { deadline: Box::pin(sleep(entry)), late: Box::new(late) });
        let (admitted, share) = (Admission::default(), Box::new(share));
        Self { stream, waiting, eviction: None, admitted, max_stall, stalled: None, _share: share }
    }

    /// One that fails as well once it must go for others.
    #[must_use]
    pub fn until(mut self, eviction: Eviction) -> Self {
        self.eviction = Some(eviction);
        self
    }

    /// Lets it stay.
    pub fn admit(&mut self) {
        self.waiting = None;
    }

    /// What lets it stay, for others.
    #[must_use]
    pub fn admission(&self) -> Admission {
        self.admitted.clone()
    }

    /// The stream itself.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Costs a look at the clock's task only until the deadline has passed or the other side was admitted.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.eviction.as_mut().is_some_and(|eviction| Pin::new(eviction).poll(cx).is_ready()) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "it had not begun, and another one needed the room",
            ));
        }
        let Some(waiting) = &mut self.waiting else { return Ok(()) };
        if self.admitted.0.load(Ordering::Relaxed) {
            self.waiting = None;
        } else if waiting.deadline.as_mut().poll(cx).is_ready() {
            if let Some(Waiting { late, .. }) = self.waiting.take() {
                late();
            }
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody said in time what the connection is for"));
        }
        Ok(())
    }

    /// What came of writing, unless that takes too long by now.
    fn written<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let max_stall = self.max_stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(max_stall)));
        if stalled.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        // Whoever asks again is told at once.
        stalled.as_mut().reset(Instant::now());
        let words = format!("the other side took nothing of what was written to it for {max_stall:?}");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, words)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS has a last word to write.
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.written(cx, outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::transport_kit::{Entrance, Shares};

    const ENTRY: Duration = Duration::from_secs(5);
    const STALL: Duration = Duration::from_secs(20);

    /// The other side, this one, and how often it was late.
    fn connected() -> (DuplexStream, Guarded<DuplexStream>, Arc<AtomicUsize>) {
        let (other, stream) = tokio::io::duplex(1 << 10);
        let late = Arc::new(AtomicUsize::new(0));
        let count = late.clone();
        let share = Shares::new(1, 1).take(None, 1).unwrap();
        let guarded = Guarded::new(stream, share, ENTRY, STALL, move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        (other, guarded, late)
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_not_admitted_in_time_is_late_once() {
        let (mut other, mut guarded, late) = connected();
        other.write_all(b"PRI * HT").await.unwrap();
        let begun = Instant::now();
        let error = guarded.read_exact(&mut [0; 9]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, ENTRY.as_secs()));
        assert!(guarded.write_all(&[0; 1 << 20]).await.is_err());
        assert_eq!(late.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_must_go_for_others_fails_wherever_it_is() {
        let (_other, guarded, late) = connected();
        let entrance = Entrance::new(1, 1, 1);
        let (visitor, _) = entrance.enter(None).unwrap();
        let mut guarded = guarded.until(visitor.eviction);
        let reading = tokio::spawn(async move { (guarded.read_u8().await, guarded.write_u8(7).await) });
        tokio::task::yield_now().await;
        let (next, _) = entrance.enter(None).unwrap();
        let (read, written) = reading.await.unwrap();
        let aborted = io::ErrorKind::ConnectionAborted;
        assert_eq!((read.unwrap_err().kind(), written.unwrap_err().kind()), (aborted, aborted));
        assert_eq!(late.load(Ordering::Relaxed), 0);
        // One that has begun stays.
        let (mut other, guarded, _) = connected();
        let mut guarded = guarded.until(next.eviction);
        assert!(next.place.begin() && entrance.enter(None).is_err());
        other.write_u8(7).await.unwrap();
        assert_eq!(guarded.read_u8().await.unwrap(), 7);
    }

    /// It need not read, so it is looked after when it is written to as well.
    #[tokio::test(start_paused = true)]
    async fn whoever_is_not_admitted_and_takes_nothing_is_late_as_well() {
        let (_other, mut guarded, late) = connected();
        let begun = Instant::now();
        assert!(guarded.write_all(&[0; 1 << 20]).await.is_err());
        assert_eq!(begun.elapsed().as_secs(), ENTRY.as_secs());
        assert!(guarded.write_all(&[0; 1]).await.is_err());
        assert_eq!(late.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_admitted_may_be_silent_for_ever() {
        let (mut other, mut guarded, late) = connected();
        guarded.admission().grant();
        let mut buffer = [0; 1];
        let reading = guarded.read_exact(&mut buffer);
        let writing = async {
            sleep(Duration::from_secs(3600)).await;
            other.write_all(b"x").await
        };
        let (read, written) = futures_util::future::join(reading, writing).await;
        assert_eq!((read.unwrap(), written.is_ok(), late.load(Ordering::Relaxed)), (1, true, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_nothing_for_too_long_is_left_and_whoever_is_slow_is_not() {
        let (mut other, mut guarded, _) = connected();
        guarded.admission().grant();
        let slow = tokio::spawn(async move {
            for _ in 0..10 {
                sleep(STALL / 2).await;
                other.read_exact(&mut [0; 1 << 10]).await.unwrap();
            }
            other
        });
        guarded.write_all(&[7; 10 << 10]).await.unwrap();
        let _other = slow.await.unwrap();
        let begun = Instant::now();
        let error = guarded.write_all(&[7; 10 << 10]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, STALL.as_secs()));
        assert!(error.to_string().contains("took nothing of what was written to it for 20s"), "{error}");
    }

    /// As TLS is that can't write its last word.
    struct NeverShutDown;

    impl AsyncWrite for NeverShutDown {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    /// It reads nothing, and answers the probes of TCP: its place would never be free again.
    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_take_the_last_word_is_left_as_well() {
        let shares = Shares::new(1, 1);
        let mut guarded = Guarded::new(NeverShutDown, shares.take(None, 1).unwrap(), ENTRY, STALL, || {});
        guarded.admission().grant();
        let begun = Instant::now();
        let ending = tokio::time::timeout(STALL * 10, guarded.shutdown()).await;
        let error = ending.expect("an end").unwrap_err();
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (io::ErrorKind::TimedOut, STALL.as_secs()));
        drop(guarded);
        assert_eq!(shares.taken(), 0);
    }
}
