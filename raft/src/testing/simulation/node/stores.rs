//! What a simulated machine keeps: disks that outlive the node, and what befalls them.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc::UnboundedSender;

use super::record::Record;
use super::seat::Notice;
use crate::error::StorageError;
use crate::testing::{Crash, MemLog, MemSnapshots, Random};
use crate::traits::{LogStore, Snapshot};
use crate::types::{ClusterId, GroupId, NodeId};

/// How a machine goes down without its node being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// The process ends: what it wrote stays in the page cache, synced or not.
    Kill,
    /// Power is lost: of what was not synced, anything may be there, or not, or in pieces.
    PowerLoss,
}

/// What befalls a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// Each write takes about this long from now on.
    Slow(Duration),
    /// Writes that begin from now on do not end.
    Stall,
    /// They do, and those that wait end now.
    Resume,
    /// One of the next operations fails.
    Error,
    /// One of the next syncs fails, and the system takes what it did not write for written.
    SyncError,
    /// There is no room from now on, or soon.
    Full,
    /// There is room again.
    Room,
    /// Power is lost in the middle of one of the next operations. The store tells [`Site::power_fails`] when.
    PowerFailsSoon,
    /// Bits flip in what is durable.
    Rot,
    /// A write went to another place than it was meant for, some time ago.
    Misdirected,
    /// One of both happened to what the state machine keeps, of which the node can make another: asked for where machines are durable by themselves.
    MachineDamaged,
    /// All is well from now on, save what is damaged already.
    Heal,
}

/// What a state machine keeps something on: a type that the stores and the [`Subject`](super::Subject) agree on.
pub type Disk = Arc<dyn Any + Send + Sync>;

/// A node's disks. One value for each node, which outlives all of its restarts.
///
/// A store that opens when the simulation asks for it and does nothing else needs only [`Stores::open`] and
/// [`Stores::outage`].
#[async_trait]
pub trait Stores: Send + 'static {
    /// Opens the node's log and snapshots. What an earlier call returned is not used any more, and has no effect.
    ///
    /// # Errors
    /// As the stores have them. A simulation takes them for right after a fault that explains them.
    async fn open(&mut self, site: &Site) -> Result<(Arc<dyn LogStore>, Arc<dyn Snapshot>), StorageError>;

    /// The machine went down. What was opened has no effect any more, not even when it is dropped.
    fn outage(&mut self, how: Outage, random: &mut Random);

    /// The disk, as it was opened last, for a state machine that keeps something on it; see [`Subject::start_on`](super::Subject::start_on).
    fn disk(&self) -> Option<Disk> {
        None
    }

    /// The node is down, and what its state machine keeps is moved out of its way: it makes another from image and log.
    fn move_away(&mut self) {}

    /// Something befalls the disk. False if this is not simulated here.
    fn fault(&mut self, fault: DiskFault, random: &mut Random) -> bool {
        let _ = (fault, random);
        false
    }
}

/// Where stores are opened, and what they tell the simulation.
#[derive(Clone, Debug)]
pub struct Site {
    /// The cluster.
    pub cluster: ClusterId,
    /// The group.
    pub group: GroupId,
    /// The node.
    pub node: NodeId,
    /// For choices of the stores' own, such as sizes. The same in each run of the node.
    pub seed: u64,
    pub(super) run: u64,
    pub(super) record: Record,
    pub(super) notices: UnboundedSender<Notice>,
}

impl Site {
    /// Power fails at this very moment: the store has kept what is on the disk now for [`Stores::outage`], and must not return
    /// from what it is doing.
    pub fn power_fails(&self) {
        let _ = self.notices.send(Notice::PowerFailed { node: self.node, run: self.run });
    }

    /// Counts a situation of the stores' own in the run's coverage.
    pub fn hit(&self, class: &'static str) {
        self.record.hit(class);
    }

    /// A promise of the stores' or the state machine's own is broken.
    pub fn violated(&self, what: impl Into<String>) {
        self.record.violated(what);
    }

    /// Adds a step of the stores' own to the trace.
    pub fn note(&self, text: impl Into<String>) {
        self.record.node(self.node, text);
    }
}

/// A log and snapshots in memory: slow, stuck or failing at times, and never damaged. A loss of power takes, keeps or tears the write
/// under way.
#[derive(Debug, Default)]
pub struct MemStores {
    log: MemLog,
    snapshots: MemSnapshots,
}

impl MemStores {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Stores for MemStores {
    async fn open(&mut self, _site: &Site) -> Result<(Arc<dyn LogStore>, Arc<dyn Snapshot>), StorageError> {
        Ok((Arc::new(self.log.reopen()), Arc::new(self.snapshots.clone())))
    }

    fn outage(&mut self, how: Outage, random: &mut Random) {
        let torn = Crash::Torn(usize::try_from(random.below(4)).unwrap_or(0));
        let crash = match how {
            Outage::Kill => random.pick(&[Crash::Lost, Crash::Kept]),
            Outage::PowerLoss => random.pick(&[Crash::Lost, Crash::Kept, torn]),
        };
        self.log.crash(crash.unwrap_or(Crash::Lost));
    }

    fn fault(&mut self, fault: DiskFault, random: &mut Random) -> bool {
        match fault {
            DiskFault::Slow(latency) => self.log.set_latency(latency),
            DiskFault::Stall => self.log.hold(),
            DiskFault::Resume => self.log.release(),
            DiskFault::Error => self.log.fail_after(random.below(3)),
            DiskFault::Heal => {
                // What was to fail, and has not yet, does not.
                self.log.fail_after(u64::MAX);
                self.log.set_latency(Duration::ZERO);
                self.log.release();
            }
            DiskFault::SyncError
            | DiskFault::Full
            | DiskFault::Room
            | DiskFault::PowerFailsSoon
            | DiskFault::Rot
            | DiskFault::Misdirected
            | DiskFault::MachineDamaged => return false,
        }
        true
    }
}
