//! When answers leave.

use std::future::poll_fn;

use futures_util::future::poll_immediate;
use tokio::time::advance;

use super::*;
use crate::service::Refusal;

/// Counts what is flushed.
#[derive(Default)]
struct Flushed {
    written: usize,
    flushed: usize,
}

impl Sink<Response<PeersResponse>> for Flushed {
    type Error = io::Error;

    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn start_send(mut self: Pin<&mut Self>, _: Response<PeersResponse>) -> io::Result<()> {
        self.written += 1;
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushed = self.written;
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

const WINDOW: u32 = 8000;

fn answers(meter: &Arc<Meter>) -> Answers<Flushed> {
    Answers::new(Flushed::default(), meter.clone(), WINDOW)
}

/// Answers like this, and tells how many answers have left.
async fn send(answers: &mut Answers<Flushed>, message: PeersResponse) -> usize {
    Pin::new(&mut *answers).start_send(Response { request_id: 1, message: Ok(message) }).unwrap();
    flush(answers).await
}

async fn flush(answers: &mut Answers<Flushed>) -> usize {
    poll_immediate(poll_fn(|cx| Pin::new(&mut *answers).poll_flush(cx))).await.expect("no waiting").unwrap();
    answers.framed.flushed
}

fn taken() -> PeersResponse {
    PeersResponse::Deliver(Ok(()))
}

#[tokio::test(start_paused = true)]
async fn answers_to_batches_leave_together_and_not_late() {
    let mut answers = answers(&Arc::default());
    for _ in 0..3 {
        assert_eq!(send(&mut answers, taken()).await, 0);
    }
    advance(LATEST + Duration::from_millis(1)).await;
    assert_eq!(flush(&mut answers).await, 3);
    // The next ones have their own time.
    assert_eq!(send(&mut answers, taken()).await, 3);
    for n in 1..MOST {
        let left = send(&mut answers, taken()).await;
        assert_eq!(left, if n + 1 < MOST { 3 } else { 3 + MOST }, "after {n} more");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sender_whose_window_is_used_up_need_not_wait() {
    let meter = Arc::<Meter>::default();
    let mut answers = answers(&meter);
    meter.owe(900);
    assert_eq!(send(&mut answers, taken()).await, 0);
    meter.owe(100);
    assert_eq!(send(&mut answers, taken()).await, 2);
    assert_eq!(send(&mut answers, taken()).await, 2);
}

#[tokio::test(start_paused = true)]
async fn everything_else_leaves_at_once() {
    let mut answers = answers(&Arc::default());
    assert_eq!(send(&mut answers, taken()).await, 0);
    assert_eq!(send(&mut answers, PeersResponse::Probe(())).await, 2);
    assert_eq!(send(&mut answers, PeersResponse::Deliver(Err(Refusal::lasting("no")))).await, 3);
    assert_eq!(send(&mut answers, PeersResponse::Farewell(Refusal::passing("bye"))).await, 4);
}
