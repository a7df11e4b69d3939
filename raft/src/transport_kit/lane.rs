//! One way to one peer: a task that keeps a stream open, and the door through which batches come in.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info, warn};

use super::lanes::Sending;
use super::options::Options;
use super::queue::{self, Dropped, Feed, Outgoing, Parcel};
use crate::error::TransportError;
use crate::message::{Envelope, Lane as Kind};
use crate::runtime::{panic_text, random};
use crate::types::Peer;

/// Opens connections to peers: what a transport brings.
pub trait Dial: Send + Sync + 'static {
    /// An open connection.
    type Connection: Connection;

    /// Connects to this peer, says who speaks to whom on which lane, and waits for the welcome; from then on the connection sends what `outgoing` holds, in
    /// order. There are limits on how long each step may take. The wait for the answer of the *process* there, and for those of probes later, must
    /// last `patience` times as long as they say; that for its machine need not.
    fn dial(
        &self,
        peer: &Peer,
        lane: Kind,
        outgoing: Outgoing,
        patience: u32,
    ) -> impl Future<Output = Result<Self::Connection, Failure>> + Send;

    /// A bound on what a message takes on the wire. Cheap: it looks at lengths alone.
    fn max_encoded_len(&self, envelope: &Envelope) -> u64;
}

/// A connection that the peer has welcomed. Dropping it ends all that belongs to it at once, whatever the peer does.
pub trait Connection: Send {
    /// Runs it until it ends, and tells why. May be dropped before it is done, and called again.
    fn lost(&mut self) -> impl Future<Output = Failure> + Send;
}

/// A lane in the transport's table. Dropping it closes the connection.
pub(super) struct Lane {
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    peer: Peer,
    state: Mutex<State>,
    /// Whether anything was sent since the idle timer last looked.
    used: AtomicBool,
}

enum State {
    /// Connected, or in the very first attempt, which messages wait for: a cluster that starts votes at once.
    Open(Feed),
    /// Lost, or not reached: messages are dropped.
    Down(Failure),
    /// Idle for too long; the next message needs a new lane.
    Closed,
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub struct Failure {
    refused: bool,
    /// Whether it is this node that does not want the peer.
    by_us: bool,
    /// Whether the peer said nothing, or may have: one that is slow looks like that as well.
    silent: bool,
    reason: Arc<str>,
}

impl Failure {
    /// The peer can't be reached, or not any more. It is tried again soon.
    pub fn unreachable(reason: impl Into<Arc<str>>) -> Self {
        Self { refused: false, by_us: false, silent: false, reason: reason.into() }
    }

    /// The same, and the reason is that nothing was heard for too long: the next attempt has more patience.
    pub fn silent(reason: impl Into<Arc<str>>) -> Self {
        Self { silent: true, ..Self::unreachable(reason) }
    }

    /// The peer does not want this node, and says why. An operator may have to change something, so it is tried again now and then.
    pub fn refused(reason: impl Into<Arc<str>>) -> Self {
        Self { refused: true, ..Self::unreachable(reason) }
    }

    /// This node does not want the peer, which did not prove who it is. An operator may have to change something, as above.
    pub fn refusing(reason: impl Into<Arc<str>>) -> Self {
        Self { by_us: true, ..Self::refused(reason) }
    }

    /// Why, in words.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    fn error(self, peer: &Peer) -> TransportError {
        let (peer, reason) = (peer.clone(), self.reason.as_ref().to_owned());
        if self.refused {
            TransportError::Refused { peer, reason }
        } else {
            TransportError::Unreachable { peer, reason }
        }
    }
}

/// Why a parcel did not go in.
pub(super) enum Rejected {
    /// The lane has ended; the parcel is handed back for another one.
    Closed(Parcel),
    Failed(TransportError),
}

impl Lane {
    /// Starts a lane; its first attempt begins at once.
    pub(super) fn start<D: Dial>(peer: Peer, kind: Kind, sending: Arc<Sending<D>>) -> Self {
        let options = &sending.options;
        let (feed, outgoing) = queue::queue(options.max_queued_batches, options.max_queued_bytes);
        let state = Mutex::new(State::Open(feed.clone()));
        let shared = Arc::new(Shared { peer, state, used: AtomicBool::new(true) });
        let keeper = Keeper {
            shared: shared.clone(),
            kind,
            backoff: Backoff::new(options),
            patience: Patience::default(),
            reached: sending.reached.of(shared.peer.id),
            idle_at: Instant::now() + options.idle_timeout,
            sending,
            said: None,
        };
        let task = tokio::spawn(keeper.run(feed, outgoing)).abort_handle();
        Self { shared, task }
    }

    pub(super) fn leads_to(&self, peer: &Peer) -> bool {
        let ours = &self.shared.peer.address;
        Arc::ptr_eq(ours, &peer.address) || ours == &peer.address
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(*self.shared.state(), State::Closed)
    }

    /// Queues a parcel, and waits for room if need be: at most until the connection, or the first attempt at it, fails.
    pub(super) async fn send(&self, parcel: Parcel) -> Result<(), Rejected> {
        self.shared.used.store(true, Ordering::Relaxed);
        let feed = match &*self.shared.state() {
            State::Open(feed) => feed.clone(),
            State::Down(failure) => return Err(self.shared.failed(failure.clone())),
            State::Closed => return Err(Rejected::Closed(parcel)),
        };
        feed.push(parcel).await.map_err(|Dropped| self.shared.lost())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
    }

    fn failed(&self, failure: Failure) -> Rejected {
        Rejected::Failed(failure.error(&self.peer))
    }

    /// The connection ended while a batch waited for room.
    fn lost(&self) -> Rejected {
        let failure = match &*self.state() {
            State::Down(failure) => failure.clone(),
            State::Open(_) | State::Closed => Failure::unreachable("the connection was lost"),
        };
        self.failed(failure)
    }
}

/// The task behind a lane.
struct Keeper<D> {
    shared: Arc<Shared>,
    kind: Kind,
    sending: Arc<Sending<D>>,
    backoff: Backoff,
    patience: Patience,
    /// Tells of the other lane's connection, and is told of this one's.
    reached: Arc<Notify>,
    idle_at: Instant,
    said: Option<Said>,
}

/// What the log was told last, so that it is told once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    Connected,
    Unreachable,
    Refused,
}

/// How a connection ended.
enum End {
    Idle,
    Lost(Failure),
}

impl<D: Dial> Keeper<D> {
    async fn run(mut self, feed: Feed, outgoing: Outgoing) {
        let mut attempt = (feed, outgoing);
        loop {
            let (failure, survived) = match self.connect(attempt.1).await {
                Ok(connection) => {
                    self.shared.set(State::Open(attempt.0));
                    self.say_connected();
                    self.reached.notify_waiters();
                    let since = Instant::now();
                    match self.stay(connection).await {
                        End::Idle => break,
                        End::Lost(failure) => {
                            self.patience.lived(since.elapsed());
                            (failure, since.elapsed() >= self.sending.options.max_backoff)
                        }
                    }
                }
                Err(failure) => (failure, false),
            };
            self.patience.failed(&failure);
            self.say_failed(&failure);
            if let Some(inbox) = self.sending.losses.get() {
                inbox.peer_lost(self.shared.peer.id);
            }
            let refused = failure.refused;
            self.shared.set(State::Down(failure));
            if survived && !refused {
                // The peer was well until now: try again at once.
                self.backoff.reset();
            } else {
                self.pause(refused).await;
                if Instant::now() >= self.idle_at && self.is_idle() {
                    break;
                }
            }
            let options = &self.sending.options;
            attempt = queue::queue(options.max_queued_batches, options.max_queued_bytes);
        }
        self.shared.set(State::Closed);
        debug!(peer = %self.shared.peer, lane = %self.kind, "nothing was sent for a while: connection closed");
    }

    /// Waits before the next attempt, unless the peer turns out to be there.
    async fn pause(&mut self, refused: bool) {
        let pause = self.backoff.next(refused);
        if timeout(pause, self.reached.notified()).await.is_ok() {
            self.backoff.reset();
        }
    }

    async fn connect(&self, outgoing: Outgoing) -> Result<D::Connection, Failure> {
        let dialing = self.sending.dialer.dial(&self.shared.peer, self.kind, outgoing, self.patience.0);
        AssertUnwindSafe(dialing).catch_unwind().await.unwrap_or_else(|panic| Err(panicked(&*panic)))
    }

    async fn stay(&mut self, mut connection: D::Connection) -> End {
        loop {
            match timeout_at(self.idle_at, AssertUnwindSafe(connection.lost()).catch_unwind()).await {
                Ok(ended) => return End::Lost(ended.unwrap_or_else(|panic| panicked(&*panic))),
                Err(_) if self.is_idle() => return End::Idle,
                Err(_) => {}
            }
        }
    }

    /// Whether nothing was sent since the timer was last set; sets it anew.
    fn is_idle(&mut self) -> bool {
        self.idle_at = Instant::now() + self.sending.options.idle_timeout;
        !self.shared.used.swap(false, Ordering::Relaxed)
    }

    fn say_connected(&mut self) {
        if self.said.replace(Said::Connected) != Some(Said::Connected) {
            info!(peer = %self.shared.peer, lane = %self.kind, "connected");
        }
    }

    fn say_failed(&mut self, failure: &Failure) {
        let (peer, lane, reason) = (&self.shared.peer, self.kind, &failure.reason);
        let now = if failure.refused { Said::Refused } else { Said::Unreachable };
        let before = self.said.replace(now);
        if before == Some(now) {
            debug!(%peer, %lane, %reason, "still no connection");
        } else if failure.by_us {
            warn!(%peer, %lane, %reason, "refused the peer; trying again now and then");
        } else if failure.refused {
            warn!(%peer, %lane, %reason, "refused by the peer; trying again now and then");
        } else if before == Some(Said::Connected) {
            warn!(%peer, %lane, %reason, "connection lost; trying to restore it");
        } else {
            warn!(%peer, %lane, %reason, "unreachable; trying until it is");
        }
    }
}

/// The code of the connection failed. A peer is not given up for that: the next attempt has a new one.
fn panicked(panic: &(dyn Any + Send)) -> Failure {
    Failure::unreachable(format!("the connection's task panicked: {}", panic_text(panic)))
}

/// How many times longer than the options say a silent peer is waited for.
///
/// On machines that are too busy, an answer may take longer than that, from a peer that is alive. To give up then, and begin anew, loses
/// what was done so far, and is more to do for both: the connections of a whole cluster were seen to be made and given up without end, at
/// a load under which a single attempt would have been done after some seconds.
struct Patience(u32);

/// The most. It bounds how late a way that carries nothing any more is given up.
const MOST_PATIENCE: u32 = 4;
/// A connection that lasted this long was not broken by too little patience.
const LONG_LIFE: Duration = Duration::from_secs(30);

impl Default for Patience {
    fn default() -> Self {
        Self(1)
    }
}

impl Patience {
    fn lived(&mut self, time: Duration) {
        if time >= LONG_LIFE {
            *self = Self::default();
        }
    }

    fn failed(&mut self, failure: &Failure) {
        if failure.silent {
            self.0 = (self.0 * 2).min(MOST_PATIENCE);
        }
    }
}

/// The pauses between attempts: exponential, with jitter.
struct Backoff {
    min: Duration,
    max: Duration,
    refused: Duration,
    current: Duration,
    seed: u64,
    drawn: u64,
}

impl Backoff {
    fn new(options: &Options) -> Self {
        let (min, max) = (options.min_backoff, options.max_backoff.max(options.min_backoff));
        Self { min, max, refused: options.refused_backoff, current: min, seed: random::seed(), drawn: 0 }
    }

    fn reset(&mut self) {
        self.current = self.min;
    }

    fn next(&mut self, refused: bool) -> Duration {
        let full = if refused { self.refused } else { self.current };
        self.current = (self.current * 2).min(self.max);
        full.mul_f64(self.draw().mul_add(-0.5, 1.0))
    }

    /// A number in 0..1.
    fn draw(&mut self) -> f64 {
        self.drawn += 1;
        let drawn = random::mix(self.seed.wrapping_add(self.drawn));
        f64::from((drawn >> 32) as u32) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_doubles_with_silence_and_lasts_until_all_is_well() {
        let mut patience = Patience::default();
        patience.failed(&Failure::unreachable("connection refused"));
        assert_eq!(patience.0, 1, "that was an answer");
        let grown: Vec<_> = std::iter::repeat_with(|| {
            patience.failed(&Failure::silent("no answer"));
            patience.0
        })
        .take(3)
        .collect();
        assert_eq!(grown, [2, 4, 4]);
        patience.lived(LONG_LIFE / 2);
        assert_eq!(patience.0, 4);
        patience.lived(LONG_LIFE);
        assert_eq!(patience.0, 1);
    }

    #[test]
    fn pauses_double_up_to_the_limit_and_never_fall_below_half_of_it() {
        let options = Options::default();
        let mut backoff = Backoff::new(&options);
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.next(false)).collect();
        assert!(pauses[0] > options.min_backoff / 2 - Duration::from_nanos(1) && pauses[0] <= options.min_backoff);
        assert!(pauses[11] >= options.max_backoff / 2 && pauses[11] <= options.max_backoff);
        backoff.reset();
        assert!(backoff.next(false) <= options.min_backoff);
    }

    #[test]
    fn pauses_differ_from_lane_to_lane() {
        let options = Options::default();
        let draws: std::collections::BTreeSet<Duration> = (0..16).map(|_| Backoff::new(&options).next(true)).collect();
        assert!(draws.len() > 8, "{draws:?}");
    }
}
