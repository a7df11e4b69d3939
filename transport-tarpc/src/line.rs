//! A byte stream that counts what passes, for whoever has to tell a slow peer from a dead one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is known of a connection besides its bytes. Shared by its stream, its codec and its owner, which all run in one task.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    read: AtomicU64,
    encoded: AtomicU64,
    written: AtomicU64,
    /// Requests that wait to be encoded.
    waiting: AtomicUsize,
    /// Bytes of batches that were taken, and whose answers may not have left yet.
    owed: AtomicU64,
    /// Whether the other side has said who it is, and may send frames of full size.
    admitted: AtomicBool,
}

impl Meter {
    /// Bytes that came.
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes that the system has taken.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes that were to be written, those that are among them.
    pub(crate) fn encoded_so_far(&self) -> u64 {
        self.encoded.load(Ordering::Relaxed)
    }

    pub(crate) fn asked(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether requests wait for others to be written.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// One of those that wait is encoded now.
    pub(crate) fn turn_came(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// So many bytes are to be written.
    pub(crate) fn encoded(&self, bytes: usize) {
        self.encoded.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The system has taken so many bytes.
    pub(crate) fn took(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// So many bytes were read.
    pub(crate) fn came(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A batch of so many bytes was taken.
    pub(crate) fn owe(&self, bytes: usize) {
        self.owed.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn owed(&self) -> u64 {
        self.owed.load(Ordering::Relaxed)
    }

    /// All answers have left.
    pub(crate) fn paid(&self) {
        self.owed.store(0, Ordering::Relaxed);
    }

    pub(crate) fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Relaxed)
    }
}

/// Any byte stream: TCP, or what will be wrapped around it.
pub(crate) struct Line<S> {
    stream: S,
    meter: Arc<Meter>,
}

impl<S> Line<S> {
    pub(crate) fn new(stream: S, meter: Arc<Meter>) -> Self {
        Self { stream, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Line<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.meter.came(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.meter.took(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.meter.took(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
