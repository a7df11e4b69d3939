//! One direction of one connection.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Weather;

const CHUNK: usize = 64 << 10;
/// Chunks on their way; beyond them the sender's own socket fills up, as it would with a real network.
const WINDOW: usize = 64;

/// Moves bytes from one socket to another, as the weather on the link allows.
pub(super) struct Pump {
    /// The link that the bytes travel.
    there: watch::Receiver<Weather>,
    /// The link that travels the other way, on which the sender learns that the receiver is gone.
    back: watch::Receiver<Weather>,
}

/// Why a direction ended.
enum End {
    /// The sender closed, or is gone.
    Sender,
    /// The receiver is gone.
    Receiver,
    /// The network closed the connection.
    Reset,
}

impl Pump {
    pub(super) fn new(there: watch::Receiver<Weather>, back: watch::Receiver<Weather>) -> Self {
        Self { there, back }
    }

    /// Runs until the end of this direction has become known to the side that must learn of it.
    pub(super) async fn run(mut self, from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let (sender, receiver) = mpsc::channel(WINDOW);
        let closed = closed_by_network(self.there.clone());
        let end = tokio::select! {
            biased;
            () = closed => End::Reset,
            ((), end) = async { tokio::join!(read(from, sender), self.deliver(receiver, &mut to)) } => end,
        };
        // Only now may `to` be dropped, which closes it.
        match end {
            End::Sender => wait_until_open(&mut self.there).await,
            End::Receiver => wait_until_open(&mut self.back).await,
            End::Reset => {}
        }
    }

    async fn deliver(&mut self, mut chunks: mpsc::Receiver<(Instant, Bytes)>, to: &mut OwnedWriteHalf) -> End {
        while let Some((arrived, chunk)) = chunks.recv().await {
            hold(&mut self.there, arrived).await;
            squeeze(&mut self.there, chunk.len()).await;
            if to.write_all(&chunk).await.is_err() {
                return End::Receiver;
            }
        }
        End::Sender
    }
}

/// Reads until the sender closes, or nobody takes the bytes any more.
async fn read(mut from: OwnedReadHalf, chunks: mpsc::Sender<(Instant, Bytes)>) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        tokio::select! {
            biased;
            () = chunks.closed() => return,
            count = from.read_buf(&mut buffer) => match count {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if chunks.send((Instant::now(), buffer.split().freeze())).await.is_err() {
                        return;
                    }
                }
            },
        }
    }
}

/// Waits as long as the link holds what arrived then.
async fn hold(weather: &mut watch::Receiver<Weather>, arrived: Instant) {
    loop {
        wait_until_open(weather).await;
        let delay = weather.borrow().delay;
        if delay == Duration::ZERO {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep_until(arrived + delay) => return,
            _ = weather.changed() => {}
        }
    }
}

/// Waits as long as so many bytes take on the link.
async fn squeeze(weather: &mut watch::Receiver<Weather>, bytes: usize) {
    let begun = Instant::now();
    loop {
        let Some(rate) = weather.borrow_and_update().bytes_per_second else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / f64::from(rate));
        tokio::select! {
            () = tokio::time::sleep_until(begun + takes) => return,
            changed = weather.changed() => if changed.is_err() { return },
        }
    }
}

/// Waits until the link is not cut, or the network has ended.
pub(super) async fn wait_until_open(weather: &mut watch::Receiver<Weather>) {
    let _ = weather.wait_for(|weather| !weather.cut).await;
}

/// Waits until the network closes the connections of now.
async fn closed_by_network(mut weather: watch::Receiver<Weather>) {
    let epoch = weather.borrow().epoch;
    let _ = weather.wait_for(|weather| weather.epoch != epoch).await;
}
