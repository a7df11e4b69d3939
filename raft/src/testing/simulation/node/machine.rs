//! The machine a node runs on: its clock has a rate of its own and jumps; it stands still for a while, or is switched off.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::runtime::Host;
use crate::testing::lock;

const MILLION: u128 = 1_000_000;

/// One run of a machine, from its start until it goes down.
#[derive(Debug)]
pub(super) struct Machine {
    began: Instant,
    /// How far its clock goes while tokio's goes a second, in microseconds.
    rate: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    on: bool,
    /// Since when it stands still.
    paused: Option<Instant>,
    /// How long it stood still before that.
    stood: Duration,
    /// The sum of all jumps of its clock.
    ahead: Duration,
    tasks: BTreeMap<u64, Waker>,
    next: u64,
}

impl Machine {
    pub(super) fn new(rate: u32) -> Self {
        let state = State {
            on: true,
            paused: None,
            stood: Duration::ZERO,
            ahead: Duration::ZERO,
            tasks: BTreeMap::new(),
            next: 0,
        };
        Self { began: Instant::now(), rate, state: Mutex::new(state) }
    }

    /// Switches it off: its tasks are gone without another step.
    pub(super) fn switch_off(&self) {
        lock(&self.state).on = false;
        self.wake();
    }

    /// From now on nothing on it makes a step, while its clock and the world go on.
    pub(super) fn pause(&self) {
        lock(&self.state).paused.get_or_insert(Instant::now());
    }

    /// It goes on.
    pub(super) fn resume(&self) {
        let mut state = lock(&self.state);
        let Some(since) = state.paused.take() else { return };
        state.stood += since.elapsed();
        drop(state);
        self.wake();
    }

    pub(super) fn is_paused(&self) -> bool {
        lock(&self.state).paused.is_some()
    }

    /// How long it has stood still in all.
    pub(super) fn stood(&self) -> Duration {
        let state = lock(&self.state);
        state.stood + state.paused.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Its clock jumps ahead.
    pub(super) fn jump(&self, by: Duration) {
        lock(&self.state).ahead += by;
        self.wake();
    }

    fn wake(&self) {
        let tasks: Vec<Waker> = lock(&self.state).tasks.values().cloned().collect();
        tasks.into_iter().for_each(Waker::wake);
    }
}

/// `time * by / of`, in whole nanoseconds.
fn scale(time: Duration, by: u128, of: u128, round_up: bool) -> Duration {
    let product = time.as_nanos() * by;
    let nanos = if round_up { product.div_ceil(of) } else { product / of };
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Host for Machine {
    fn now(&self) -> Duration {
        scale(self.began.elapsed(), u128::from(self.rate), MILLION, false) + lock(&self.state).ahead
    }

    fn instant(&self, time: Duration) -> Instant {
        let time = time.saturating_sub(lock(&self.state).ahead);
        self.began + scale(time, MILLION, u128::from(self.rate), true)
    }

    fn poll_running(&self, task: &mut Option<u64>, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = lock(&self.state);
        let number = match *task {
            Some(number) => number,
            None => {
                state.next += 1;
                *task.insert(state.next)
            }
        };
        match state.tasks.get_mut(&number) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                state.tasks.insert(number, cx.waker().clone());
            }
        }
        match (state.on, state.paused) {
            (false, _) => Poll::Ready(false),
            (true, Some(_)) => Poll::Pending,
            (true, None) => Poll::Ready(true),
        }
    }

    fn ended(&self, task: u64) {
        lock(&self.state).tasks.remove(&task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_fast_clock_that_jumps_shows_a_time_when_it_is_said_to() {
        let machine = Machine::new(1_100_003);
        machine.jump(Duration::from_millis(7));
        for millis in [100, 333, 1001] {
            let time = Duration::from_millis(millis);
            tokio::time::sleep_until(machine.instant(time)).await;
            // Tokio's timers count milliseconds.
            let shown = machine.now();
            assert!(shown >= time && shown < time + Duration::from_millis(3), "{shown:?} for {time:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_stands_still_counts_for_how_long() {
        let machine = Machine::new(1_000_000);
        machine.pause();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(machine.is_paused());
        machine.resume();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(machine.stood(), Duration::from_millis(50));
    }
}
