//! The seam that conformance suites ask of a store's backend, for every store that lies on a [`Vfs`](crate::Vfs).

use std::io::ErrorKind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use raftkv::testing::Random;
use raftkv::testing::conformance::Fault as Told;

use super::{Fate, Fault, SimDisk};

/// A disk that has suffered what was armed when it is opened again: what `open` and `arm` of a backend in
/// [`raftkv::testing::conformance`] take.
///
/// ```
/// use std::sync::Arc;
///
/// use raftkv::testing::conformance::{Fault, log_store};
/// use raftkv::{ClusterId, GroupId, NodeId};
/// use raftkv_storage_file::sim::Restarts;
/// use raftkv_storage_file::{FileLog, Identity, Options};
///
/// struct Simulated(Restarts);
///
/// impl log_store::Backend for Simulated {
///     type Store = FileLog;
///
///     async fn open(&self) -> FileLog {
///         let identity = Identity { cluster: ClusterId(1), node: NodeId(1), group: GroupId(0) };
///         let options = Options { background: false, ..Options::default() };
///         FileLog::open_on(Arc::new(self.0.restarted()), "/log", identity, options).expect("a log")
///     }
///
///     fn arm(&self, fault: Fault, after: u64) -> bool {
///         self.0.arm(fault, after)
///     }
/// }
///
/// raftkv::log_store_conformance!(Simulated(Restarts::new(1)));
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct Restarts(Mutex<State>);

#[derive(Debug)]
struct State {
    disk: SimDisk,
    armed: Option<Told>,
    /// The same for the next process, from its first operation on.
    next: Option<(Told, u64)>,
    random: Random,
}

impl Restarts {
    /// With an empty disk. The seed decides what a loss of power takes, and how an operation fails.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(State { disk: SimDisk::new(), armed: None, next: None, random: Random::new(seed) }))
    }

    // A test that panicked elsewhere fails anyway.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk as it is.
    #[must_use]
    pub fn disk(&self) -> SimDisk {
        self.state().disk.clone()
    }

    /// The disk for the next process.
    #[must_use]
    pub fn restarted(&self) -> SimDisk {
        let mut state = self.state();
        let State { disk, armed, next, random } = &mut *state;
        let moment = disk.now();
        *disk = match armed.take() {
            None => disk.clone(),
            Some(Told::Error | Told::Kill) => moment.kill(),
            Some(Told::PowerLoss) => {
                // Sometimes all is lost or kept, and sometimes all but one: chance alone would hardly ever come to that.
                let of_two = [Fate::Lost, Fate::Kept];
                let (all, other) = (random.pick(&of_two), random.pick(&of_two));
                let told = random.percent(60).then(|| all.zip(other)).flatten();
                let fates = [Fate::Lost, Fate::Kept, Fate::Early, Fate::Garbage];
                let mut left = random.below(moment.pending().len().max(1) as u64);
                moment.lose_power(|_| {
                    let is_one = left == 0;
                    left = left.wrapping_sub(1);
                    match told {
                        Some((_, other)) if is_one => other,
                        Some((all, _)) => all,
                        None => random.pick(&fates).unwrap_or(Fate::Lost),
                    }
                })
            }
        };
        if let Some((fault, after)) = next.take() {
            state.arm(fault, after);
        }
        state.disk.clone()
    }

    /// Lets so many operations on the disk pass, and then this happen. Always true: the seam is there.
    pub fn arm(&self, fault: Told, after: u64) -> bool {
        self.state().arm(fault, after);
        true
    }

    /// The same on the disk of the next process, which is counted from its first operation on.
    pub fn arm_opening(&self, fault: Told, after: u64) -> bool {
        self.state().next = Some((fault, after));
        true
    }
}

impl State {
    fn arm(&mut self, fault: Told, after: u64) {
        let Self { disk, armed, random, .. } = self;
        *armed = Some(fault);
        let operation = disk.operations() + after;
        match fault {
            Told::Error => {
                let kinds = [ErrorKind::StorageFull, ErrorKind::Other].map(Fault::Refuse);
                disk.fail_at(operation, random.pick(&[kinds[0], kinds[1], Fault::Forget]).unwrap_or(kinds[1]));
            }
            Told::Kill | Told::PowerLoss => disk.die_at(operation),
        }
    }
}
