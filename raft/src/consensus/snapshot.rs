//! When an image of the state machine is taken, and what of the log goes for it (paper §7, thesis §5).
//!
//! The core says when; the runtime freezes the state machine behind everything that it was given, and writes the image while it goes on.
//! Once the image is published, the log in front of it goes, save the last [`Config::trailing_entries`](crate::Config::trailing_entries): a
//! follower that is only a little behind never needs an image. The cut reaches the disk through the one writer of the log, before the
//! next write.

use super::Consensus;
use super::image::Receiving;
use super::io::{Note, Reply, Time};
use crate::message::RequestId;
use crate::mutant;
use crate::traits::{Published, SnapshotId};
use crate::types::{Index, LogId};

/// While a peer fetches the newest image, another, which would take its place, is put off until so many times as much was applied.
const PUT_OFF: u64 = 4;

/// What is known of images.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshots {
    /// The newest one on this node's disk.
    pub(super) latest: Option<Published>,
    /// The one that is being taken, and what was applied of `bytes` when it was asked for.
    pub(super) taking: Option<(SnapshotId, u64)>,
    /// What the entries cost that were applied since the newest was asked for.
    pub(super) bytes: u64,
    /// Not before this, after an attempt that came to nothing.
    pub(super) retry_at: Option<Time>,
    /// Requests of the owner, and the index that an image must reflect to answer each.
    pub(super) requested: Vec<(RequestId, Index)>,
    /// When a peer last asked for a part of the newest one.
    pub(super) fetched_at: Option<Time>,
    /// How many parts are being read for peers.
    pub(super) serving: usize,
    /// The one that is being received.
    pub(super) receiving: Option<Receiving>,
    /// Counts the attempts to receive one.
    pub(super) attempts: u64,
    /// One that was received and published, and is to take the place of the state.
    pub(super) installing: Option<Published>,
}

impl Snapshots {
    pub(crate) fn new(latest: Option<Published>) -> Self {
        Self { latest, ..Self::default() }
    }

    /// A received image is in force.
    pub(super) fn installed(&mut self, image: Published) {
        self.latest = Some(image);
        self.bytes = 0;
        if let Some((_, bytes)) = &mut self.taking {
            *bytes = 0;
        }
    }

    /// The last entry that the newest image reflects.
    pub(crate) fn last(&self) -> LogId {
        self.latest.as_ref().map_or(LogId::ZERO, |image| image.meta.last)
    }
}

impl Consensus {
    /// The owner wants an image of what is applied by now.
    pub(crate) fn on_snapshot_asked(&mut self, request: RequestId) {
        self.snapshots.requested.push((request, self.applying.applied()));
        self.answer_snapshots_asked();
    }

    pub(super) fn answer_snapshots_asked(&mut self) {
        let last = self.snapshots.last();
        for (request, _) in self.snapshots.requested.extract_if(.., |(_, wanted)| *wanted <= last.index) {
            self.out.replies.push(Reply::Snapshotted { request, last });
        }
    }

    /// Whether enough was applied for another image, or it was asked for.
    fn snapshot_is_due(&self) -> bool {
        self.snapshot_is_due_by(1)
    }

    /// Whether so many times as much was applied as is enough.
    fn snapshot_is_due_by(&self, times: u64) -> bool {
        let since = self.applying.applied().since(self.snapshots.last().index);
        let enough = since >= self.config.snapshot_entries.saturating_mul(times)
            || self.snapshots.bytes >= self.config.snapshot_bytes.saturating_mul(times);
        since > 0 && self.snapshots.taking.is_none() && (enough || !self.snapshots.requested.is_empty())
    }

    /// When an image that is due is tried again.
    pub(crate) fn snapshot_wake(&self) -> Option<Time> {
        self.snapshots.retry_at.filter(|_| self.snapshot_is_due())
    }

    /// Asks for an image when one is due, one at a time.
    pub(crate) fn take_snapshot(&mut self, now: Time) {
        if !self.snapshot_is_due() || self.snapshots.retry_at.is_some_and(|retry_at| now < retry_at) {
            return;
        }
        let fetched =
            self.snapshots.fetched_at.map(|at| at.plus(self.config.election_timeout)).filter(|until| now < *until);
        if let Some(until) = fetched.filter(|_| !self.snapshot_is_due_by(PUT_OFF)) {
            self.snapshots.retry_at = Some(until);
            return;
        }
        let id = SnapshotId(self.random.any());
        self.snapshots.retry_at = None;
        self.snapshots.taking = Some((id, self.snapshots.bytes));
        self.out.snapshot = Some(id);
    }

    /// An image was taken and published, or the attempt came to nothing: then another follows, after a while.
    pub(crate) fn on_snapshotted(&mut self, now: Time, id: SnapshotId, image: Option<Published>) {
        let Some((taken, bytes)) = self.snapshots.taking.take_if(|(taking, _)| *taking == id) else { return };
        debug_assert_eq!(taken, id);
        let Some(image) = image else {
            if mutant!("failed-snapshot-stalls-compaction") {
                self.snapshots.taking = Some((id, bytes));
            }
            self.snapshots.retry_at = Some(now.plus(self.config.election_timeout));
            return;
        };
        assert!(image.meta.last.index <= self.applying.applied(), "an image reflects what was applied");
        self.snapshots.bytes -= bytes;
        self.out.notes.push(Note::SnapshotTaken { last: image.meta.last, len: image.len });
        // One that was received meanwhile may be newer, and stays. Of two of one entry the store keeps the later one.
        if image.meta.last >= self.snapshots.last() {
            self.snapshots.latest = Some(image);
        }
        self.compact();
        self.answer_snapshots_asked();
    }

    /// Cuts the log in front of the newest image, save the trailing entries.
    pub(crate) fn compact(&mut self) {
        let last = self.snapshots.last().index;
        let upto = if mutant!("compacted-beyond-the-snapshot") {
            self.applying.applied()
        } else {
            Index(last.0.saturating_sub(self.config.trailing_entries))
        };
        let upto = upto.min(self.applying.applied());
        if upto <= self.log.base().index {
            return;
        }
        let Some(upto) = self.log.id_at(upto) else { return };
        self.log.compact(upto);
        self.durability.compact = Some(upto);
    }
}
