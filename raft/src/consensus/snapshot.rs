//! When an image of the state machine is taken, and what of the log goes for it (paper §7, thesis §5).
//!
//! The core says when; the runtime freezes the state machine behind everything that it was given, and writes the image while it goes on.
//! Once the image is published, the log in front of it goes, save the last [`Config::trailing_entries`](crate::Config::trailing_entries): a
//! follower that is only a little behind never needs an image. The cut reaches the disk through the one writer of the log, before the
//! next write.

use std::collections::BTreeMap;

use super::Consensus;
use super::image::Receiving;
use super::io::{Note, Reply, Time};
use crate::message::RequestId;
use crate::mutant;
use crate::traits::{Published, SnapshotId};
use crate::types::{Index, LogId, NodeId};

/// While a peer fetches the newest image, another, which would take its place, is put off until so many times as much was applied, and no less
/// than the image is long. Entries that come faster than the image goes can't be caught up with anyway. One that is being taken without haste is hurried
/// when as many times its length was applied meanwhile, which is in the log until it is taken.
const PUT_OFF: u64 = 4;
/// How long an image is taken for at least, for that: the next may be much longer than the newest, and of the first nobody knows.
const SHORT_LOG: u64 = 256 << 20;
/// A peer that has not come further with it for so many election timeouts fetches it no more. What was lost it asks for again after one, and of
/// another holder after two.
const WANTED: u32 = 3;

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
    /// A peer needs an image, and there is none: it was lost, or the store has given it up.
    pub(super) missed: bool,
    /// The one that is being taken is taken for such a peer.
    pub(super) taking_missed: bool,
    /// Requests of the owner, and the index that an image must reflect to answer each.
    pub(super) requested: Vec<(RequestId, Index)>,
    /// When a peer last asked for a further part of the newest one than before.
    pub(super) fetched_at: Option<Time>,
    /// How far each peer has asked for it.
    fetched: BTreeMap<NodeId, (SnapshotId, u64)>,
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

    /// A peer asks for a part of the newest one. Whoever asks for the same parts again and again has none of it, and holds up nothing.
    pub(super) fn note_fetched(&mut self, now: Time, from: NodeId, image: SnapshotId, offset: u64) {
        self.fetched.retain(|_, (of, _)| *of == image);
        let (_, upto) = self.fetched.entry(from).or_insert((image, 0));
        if offset >= *upto {
            *upto = offset + 1;
            self.fetched_at = Some(now);
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
        let wanted = self.snapshots.missed || since > 0 && (enough || !self.snapshots.requested.is_empty());
        wanted && self.snapshots.taking.is_none()
    }

    /// Whether one that is due may wait until the newest was fetched.
    fn snapshot_can_wait(&self) -> bool {
        let len = self.snapshots.latest.as_ref().map_or(0, |image| image.len);
        let much = self.snapshot_is_due_by(PUT_OFF) && self.snapshots.bytes >= len;
        !much && !self.snapshots.missed
    }

    /// When an image that is due is tried again.
    pub(crate) fn snapshot_wake(&self) -> Option<Time> {
        self.snapshots.retry_at.filter(|_| self.snapshot_is_due())
    }

    /// Whether the image that is being taken is waited for: by its owner, by a peer that can't go on without, or by a log that has grown meanwhile to
    /// several times the length of an image.
    pub(crate) fn snapshot_is_awaited(&self) -> bool {
        let Snapshots { latest, taking, bytes, taking_missed, missed, requested, .. } = &self.snapshots;
        let Some((_, bytes_before)) = taking else { return false };
        let len = latest.as_ref().map_or(0, |image| image.len).max(self.config.snapshot_bytes.min(SHORT_LOG));
        let long_log = bytes.saturating_sub(*bytes_before) >= len.saturating_mul(PUT_OFF);
        *taking_missed || *missed || !requested.is_empty() || long_log
    }

    /// Asks for an image when one is due, one at a time.
    pub(crate) fn take_snapshot(&mut self, now: Time) {
        if !self.snapshot_is_due() || self.snapshots.retry_at.is_some_and(|retry_at| now < retry_at) {
            return;
        }
        let wanted = self.snapshots.fetched_at.map(|at| at.plus(self.config.election_timeout * WANTED));
        if let Some(until) = wanted.filter(|until| now < *until && self.snapshot_can_wait()) {
            self.snapshots.retry_at = Some(until);
            return;
        }
        let id = SnapshotId(self.random.any());
        self.snapshots.retry_at = None;
        self.snapshots.taking_missed = std::mem::take(&mut self.snapshots.missed);
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
            // Whoever asked meanwhile gets this one.
            self.snapshots.missed = false;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Boot, Effects, Input};
    use super::*;
    use crate::Config;
    use crate::message::{Body, Message};
    use crate::traits::{HardState, LogState, SnapshotMeta, TermRun};
    use crate::types::{Membership, Peer, Term};

    const IMAGE: SnapshotId = SnapshotId(7);

    /// A follower that starts with an image of 10@1, so many bytes long, and has applied so much more, where another is due after four entries.
    fn node(len: u64, applied: u64) -> Consensus {
        let (base, last) = (LogId::new(1, 10), LogId::new(1, 10 + applied));
        let membership = Membership::new([1, 2, 3].map(|id| Peer::new(id, "h")));
        let meta = SnapshotMeta { id: IMAGE, last: base, membership: membership.clone(), membership_at: LogId::ZERO };
        let runs = if applied > 0 { vec![TermRun { term: Term(1), first: Index(11) }] } else { Vec::new() };
        let log = LogState { hard_state: HardState { term: Term(1), voted_for: None }, base, last, runs };
        let snapshot = Some(Published { meta, len, checksum: 0 });
        let configurations = vec![(LogId::ZERO, membership)];
        let boot = Boot { id: NodeId(1), log, configurations, snapshot, applied: last, seed: 1 };
        let config = Config { snapshot_entries: 4, trailing_entries: 0, ..Config::default() };
        Consensus::new(Time::default(), &config, boot)
    }

    fn asks(core: &mut Consensus, now: Time) -> Option<SnapshotId> {
        let mut effects = Effects::default();
        core.effects(now, &mut effects);
        effects.snapshot
    }

    fn fetch(core: &mut Consensus, now: Time, offset: u64) {
        let body = Body::Fetch { image: IMAGE, offset, max: 1 };
        core.step(now, Input::Receive { from: NodeId(2), message: Message { term: Term(1), body } });
    }

    /// A large image takes long to be sent, and entries come meanwhile: one that takes its place on the sender's disk ends the transfer, and the next one
    /// is no shorter. But what comes faster than the image goes could not be caught up with in any case.
    #[test]
    fn while_a_large_image_is_fetched_the_log_may_grow_as_long() {
        for (bytes, expected) in [(0, false), (999, false), (1000, true)] {
            let mut core = node(1000, 400);
            core.snapshots.bytes = bytes;
            let now = Time(Duration::from_millis(1));
            fetch(&mut core, now, 0);
            assert_eq!(asks(&mut core, now).is_some(), expected, "after {bytes} bytes of entries");
            // Nobody fetches it any more.
            assert!(expected || asks(&mut core, now.plus(Duration::from_secs(1))).is_some());
        }
    }

    /// A receiver that gets nothing asks for the same parts once in an election timeout. For its sake the log must not grow.
    #[test]
    fn whoever_asks_for_the_same_part_again_and_again_holds_up_no_image() {
        for (further, expected) in [(0, true), (1, false)] {
            let mut core = node(1000, 4);
            let mut now = Time(Duration::from_millis(1));
            for round in 0..5 {
                fetch(&mut core, now, further * round);
                let taken = asks(&mut core, now).is_some();
                assert!(!taken || (expected && round > 2), "in round {round}");
                if taken {
                    break;
                }
                assert!(round < 4 || !expected, "it was never taken");
                now = now.plus(Duration::from_millis(310));
            }
        }
    }

    /// The store may have given up what the core takes for the newest image, when two of one entry were published at once. It would be offered for
    /// ever, to no avail.
    #[test]
    fn an_image_that_is_not_in_the_store_is_followed_by_another() {
        let mut core = node(1000, 0);
        let now = Time(Duration::from_millis(1));
        assert_eq!(asks(&mut core, now), None);
        fetch(&mut core, now, 0);
        let lost = || Input::ImageRead { to: NodeId(2), image: IMAGE, offset: 0, data: None };
        core.step(now, lost());
        let id = asks(&mut core, now).expect("another image");
        assert!(core.snapshot_is_awaited());
        // It is asked for while that is taken, and one is enough.
        fetch(&mut core, now, 0);
        core.step(now, lost());
        let image = core.snapshots.latest.clone().expect("the image that was lost");
        let again = Published { meta: SnapshotMeta { id, ..image.meta }, ..image };
        core.step(now, Input::Snapshotted { id, image: Some(again.clone()) });
        assert_eq!((asks(&mut core, now), core.snapshot_is_awaited()), (None, false));
        assert_eq!(core.snapshots.latest, Some(again));
    }

    /// One that nobody waits for is written without haste; meanwhile entries may come as fast as they like, and the log is on the same disk.
    #[test]
    fn an_image_is_hurried_when_the_log_has_grown_to_four_times_its_length() {
        // The length of the newest, when another is due, and the entries that hurry it. Of the first nobody knows how long it will be.
        for (len, due, much) in [
            (Some(1000), 10, 4000),
            (Some(1000), u64::MAX, SHORT_LOG * 4),
            (Some(0), 10, 40),
            (None, 10, 40),
            (None, u64::MAX, SHORT_LOG * 4),
            (Some(SHORT_LOG + 1), u64::MAX, SHORT_LOG * 4 + 4),
        ] {
            let mut core = node(len.unwrap_or(0), 4);
            core.config.snapshot_bytes = due;
            core.snapshots.bytes = 600;
            asks(&mut core, Time(Duration::from_millis(1))).expect("an image");
            if len.is_none() {
                core.snapshots.latest = None;
            }
            core.snapshots.bytes += much - 1;
            assert!(!core.snapshot_is_awaited(), "after {much} bytes but one, with an image of {len:?}");
            core.snapshots.bytes += 1;
            assert!(core.snapshot_is_awaited(), "after {much} bytes, with an image of {len:?}");
        }
    }

    /// One that is taken because the log is long enough has time, until somebody waits for it.
    #[test]
    fn an_image_is_awaited_by_its_owner_and_by_peers_that_there_is_none_for() {
        let now = Time(Duration::from_millis(1));
        for asked in [true, false] {
            let mut core = node(1000, 4);
            assert!(!core.snapshot_is_awaited());
            let id = asks(&mut core, now).expect("an image");
            assert!(!core.snapshot_is_awaited());
            if asked {
                core.step(now, Input::Snapshot { request: RequestId(1) });
            } else {
                fetch(&mut core, now, 0);
                core.step(now, Input::ImageRead { to: NodeId(2), image: IMAGE, offset: 0, data: None });
            }
            assert!(core.snapshot_is_awaited());
            core.step(now, Input::Snapshotted { id, image: None });
            assert!(!core.snapshot_is_awaited(), "there is none to be hurried");
        }
    }
}
