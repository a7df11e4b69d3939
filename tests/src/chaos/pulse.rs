//! Whether writes are served, moment by moment.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::task::{JoinHandle, JoinSet};

use crate::client::Endpoint;

/// How often a write is sent.
const PERIOD: Duration = Duration::from_millis(20);
/// How long one may take; so many more are under way at most.
const LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(2);

/// Sends a small write every few milliseconds, to one node after the other, and never waits for an answer before the next: clients
/// that do are all stuck at times, at nodes that can't answer, while others could.
#[derive(Debug)]
pub(super) struct Pulse {
    shared: Arc<Shared>,
    sender: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: Mutex<Vec<Beat>>,
}

#[derive(Clone, Copy, Debug)]
struct Beat {
    sent: Instant,
    at: Instant,
}

impl Shared {
    fn acknowledged(&self) -> MutexGuard<'_, Vec<Beat>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    pub(super) fn start(servers: &[String]) -> Result<Self> {
        let endpoints = servers.iter().map(|address| Endpoint::new(address)).collect::<Result<Vec<_>>>()?;
        let shared = Arc::new(Shared::default());
        let sender = tokio::spawn(beat(Arc::clone(&shared), endpoints));
        Ok(Self { shared, sender })
    }

    /// Waits for the first acknowledged write that was sent after a moment, and returns when its answer came.
    pub(super) async fn first_after(&self, moment: Instant, limit: Duration) -> Result<Instant> {
        loop {
            // In the order of the answers, so what follows the moment is at the end.
            let first = {
                let beats = self.shared.acknowledged();
                let late = beats.iter().rev().take_while(|beat| beat.at > moment);
                late.filter(|beat| beat.sent > moment).map(|beat| beat.at).min()
            };
            if let Some(first) = first {
                return Ok(first);
            }
            if moment.elapsed() > limit {
                bail!("no write was acknowledged within {limit:?}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for the last answers, and returns when each came.
    pub(super) async fn stop(mut self) -> Result<Vec<Instant>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        (&mut self.sender).await?;
        Ok(self.shared.acknowledged().iter().map(|beat| beat.at).collect())
    }
}

impl Drop for Pulse {
    /// An act that has failed does not wait.
    fn drop(&mut self) {
        self.sender.abort();
    }
}

async fn beat(shared: Arc<Shared>, endpoints: Vec<Endpoint>) {
    let mut under_way = JoinSet::new();
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for endpoint in endpoints.iter().cycle() {
        ticks.tick().await;
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        while under_way.try_join_next().is_some() {}
        let (shared, endpoint) = (Arc::clone(&shared), endpoint.clone());
        under_way.spawn(async move {
            let sent = Instant::now();
            if endpoint.put("pulse", "", LIMIT).await.is_ok() {
                shared.acknowledged().push(Beat { sent, at: Instant::now() });
            }
        });
    }
    while under_way.join_next().await.is_some() {}
}
