//! Connections that take what several tasks have to say in one go.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection that lets the tasks which are ready to run have their turn before it writes.
///
/// Where many requests share a connection, as in HTTP/2, what answers them becomes known for a whole batch at once, and each request's task then hands its answer to the
/// task of the connection, which wakes up with the first of them. Written at once, each answer would be a system call, a packet and a wake-up of the client of its own.
/// So a write that follows a flush goes back to the end of the queue of tasks that are ready, once; whoever writes has more to write when its turn comes.
/// Where nothing else is ready, that takes about a microsecond.
#[derive(Debug)]
pub struct Gathering<S> {
    stream: S,
    turn: Turn,
    has_written: bool,
}

#[derive(Debug, PartialEq)]
enum Turn {
    /// Everything is written.
    Idle,
    /// There is something to write, and others go first.
    Asked,
    /// The others had their turn.
    Writing,
}

impl<S> Gathering<S> {
    /// Wraps a connection.
    pub const fn new(stream: S) -> Self {
        Self { stream, turn: Turn::Idle, has_written: false }
    }

    /// The connection.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The connection, for what is neither reading nor writing.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    fn poll_turn(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.turn == Turn::Idle {
            self.turn = Turn::Asked;
            // A task that wakes itself goes to the end of its queue.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.turn = Turn::Writing;
        self.has_written = true;
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(cx));
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(cx));
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    /// Not before the first write: the HTTP/2 library asks once at the beginning, and then writes each piece of 256 bytes or more by itself where the answer is yes, and
    /// of 1024 where it is no. It asks again whenever it writes several pieces.
    fn is_write_vectored(&self) -> bool {
        self.has_written && self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        // A write that waits for its turn has asked for it: whoever flushes in between would send it to the end of the queue for ever.
        if self.turn == Turn::Writing {
            self.turn = Turn::Idle;
        }
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    use super::*;

    /// Notes what each write takes; a shutdown is noted as an empty one, and what comes after it fails.
    #[derive(Clone, Debug, Default)]
    struct Wire(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Wire {
        fn writes(&self) -> Vec<Vec<u8>> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let mut writes = self.0.lock().unwrap();
            if writes.last().is_some_and(Vec::is_empty) {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            writes.push(buf.to_vec());
            Poll::Ready(Ok(buf.len()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.lock().unwrap().push(Vec::new());
            Poll::Ready(Ok(()))
        }
    }

    /// As the task of an HTTP/2 connection does: whatever others have to say is put in one buffer, which is written when it can be. When nobody has anything
    /// to say any more, it is written to the end, and the connection ends.
    async fn carry(mut said: mpsc::UnboundedReceiver<u8>, mut connection: Gathering<Wire>) {
        let mut buffer = Vec::new();
        std::future::poll_fn(|cx| {
            loop {
                let heard = said.poll_recv(cx);
                if let Poll::Ready(Some(byte)) = heard {
                    buffer.push(byte);
                    continue;
                }
                if !buffer.is_empty() {
                    let written = ready!(Pin::new(&mut connection).poll_write(cx, &buffer)).unwrap();
                    buffer.drain(..written);
                }
                ready!(Pin::new(&mut connection).poll_flush(cx)).unwrap();
                ready!(heard);
                return Pin::new(&mut connection).poll_shutdown(cx).map(Result::unwrap);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn what_tasks_say_that_are_ready_together_is_written_together() {
        let wire = Wire::default();
        let (say, said) = mpsc::unbounded_channel();
        let carrier = tokio::spawn(carry(said, Gathering::new(wire.clone())));
        for turn in 0..3 {
            tokio::task::yield_now().await;
            for byte in 0..5 {
                let say = say.clone();
                tokio::spawn(async move { say.send(turn * 10 + byte).unwrap() });
            }
            while wire.0.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            let mut writes = wire.writes();
            writes.iter_mut().for_each(|bytes| bytes.sort_unstable());
            assert_eq!(writes, [(0..5).map(|byte| turn * 10 + byte).collect::<Vec<_>>()]);
        }
        drop(say);
        carrier.await.unwrap();
    }

    #[tokio::test]
    async fn one_who_is_alone_is_written_with_the_next_turn_and_everything_before_the_end() {
        let wire = Wire::default();
        let mut connection = Gathering::new(wire.clone());
        assert!(!connection.is_write_vectored(), "small pieces are to be put together");
        connection.write_all(b"one").await.unwrap();
        assert!(connection.is_write_vectored());
        connection.write_all(b"two").await.unwrap();
        connection.flush().await.unwrap();
        connection.write_all(b"three").await.unwrap();
        connection.shutdown().await.unwrap();
        assert_eq!(wire.writes(), [b"one".to_vec(), b"two".to_vec(), b"three".to_vec(), Vec::new()]);
    }

    /// Polls it once.
    async fn once<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        std::future::poll_fn(|cx| Poll::Ready(poll(cx))).await
    }

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), what).await.expect("it waits for ever")
    }

    /// The last answers become known, and the connection is to end, while the first of them waits for the others.
    #[tokio::test]
    async fn what_waits_for_its_turn_when_the_connection_is_to_end_is_written_before_the_end() {
        let wire = Wire::default();
        let (say, said) = mpsc::unbounded_channel();
        let mut carrier = std::pin::pin!(carry(said, Gathering::new(wire.clone())));
        say.send(1).unwrap();
        assert!(once(|cx| carrier.as_mut().poll(cx)).await.is_pending());
        assert!(wire.writes().is_empty(), "it was written without a turn for others");
        say.send(2).unwrap();
        drop(say);
        soon(carrier).await;
        assert_eq!(wire.writes(), [vec![1, 2], Vec::new()]);
    }

    #[tokio::test]
    async fn a_write_that_waits_when_the_other_side_goes_fails_and_waits_no_longer() {
        for abrupt in [false, true] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let mut server = Gathering::new(listener.accept().await.unwrap().0);
            let waiting = once(|cx| Pin::new(&mut server).poll_write(cx, b"answer")).await;
            assert!(waiting.is_pending());
            if abrupt {
                // What a client has not read when it closes makes its system reset the connection.
                server.get_mut().write_all(b"unread").await.unwrap();
                client.read_exact(&mut [0; 1]).await.unwrap();
            }
            drop(client);
            let end = async {
                while server.write_all(&[7; 1 << 16]).await.is_ok() {
                    server.flush().await.unwrap();
                }
            };
            soon(end).await;
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_dropped_while_a_write_waits_ends_behind_what_was_written_before() {
        let (mut other, stream) = tokio::io::duplex(64);
        let mut connection = Gathering::new(stream);
        connection.write_all(b"before").await.unwrap();
        connection.flush().await.unwrap();
        assert!(once(|cx| Pin::new(&mut connection).poll_write(cx, b"given up")).await.is_pending());
        // The waker that it has asked with wakes a task that knows nothing of it any more.
        drop(connection);
        let mut all = String::new();
        soon(other.read_to_string(&mut all)).await.unwrap();
        assert_eq!(all, "before");
    }

    /// So does a task that both writes and flushes whenever it is woken.
    #[tokio::test]
    async fn a_flush_does_not_send_a_write_that_waits_to_the_end_of_the_queue_again() {
        let wire = Wire::default();
        let mut connection = Gathering::new(wire.clone());
        let mut is_written = Vec::new();
        for _ in 0..2 {
            let outcome = once(|cx| {
                let written = Pin::new(&mut connection).poll_write(cx, b"answer");
                assert!(Pin::new(&mut connection).poll_flush(cx).is_ready());
                written
            });
            is_written.push(outcome.await.is_ready());
            tokio::task::yield_now().await;
        }
        assert_eq!(is_written, [false, true]);
        assert_eq!(wire.writes(), [b"answer"]);
    }
}
