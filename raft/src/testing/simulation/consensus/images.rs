//! Images of the state machines of a cluster of cores: what each node's disk holds, how one is taken, received and installed.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::cluster::{Cluster, Node};
use super::show;
use crate::consensus::{ImageWork, Input, Receipt};
use crate::traits::{Published, SnapshotId, SnapshotMeta};
use crate::types::{EntryKind, Index, LogId, Membership, NodeId};

/// The images on one disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Images {
    /// The newest whole one.
    pub(crate) latest: Option<(Published, Bytes)>,
    /// Those that were begun to be received, and not finished.
    pub(crate) unfinished: BTreeMap<SnapshotId, (SnapshotMeta, BytesMut)>,
}

impl Images {
    pub(crate) fn published(&self) -> Option<Published> {
        self.latest.as_ref().map(|(published, _)| published.clone())
    }

    /// The last entry that the newest reflects.
    pub(crate) fn last(&self) -> LogId {
        self.latest.as_ref().map_or(LogId::ZERO, |(published, _)| published.meta.last)
    }

    /// A bit of each unfinished image flips on the disk. Whether there was one.
    pub(crate) fn damage_unfinished(&mut self, which: u64) -> bool {
        let unfinished = self.unfinished.values_mut().filter(|(_, bytes)| !bytes.is_empty());
        unfinished.map(|(_, bytes)| *bytes = BytesMut::from(&flip(bytes, which)[..])).count() > 0
    }

    fn publish(&mut self, meta: SnapshotMeta, bytes: Bytes) -> Published {
        let published = Published { meta, len: bytes.len() as u64, checksum: crc32c::crc32c(&bytes) };
        if published.meta.last >= self.last() {
            self.latest = Some((published.clone(), bytes));
        }
        published
    }
}

/// The same bytes but for one bit.
pub(crate) fn flip(bytes: &[u8], which: u64) -> Bytes {
    let mut bytes = bytes.to_vec();
    let place = usize::try_from(which % (bytes.len() as u64).max(1)).unwrap_or_default();
    if let Some(byte) = bytes.get_mut(place) {
        *byte ^= 1;
    }
    bytes.into()
}

/// What an image of the state after this entry holds. The entry says it all: logs that hold it hold the same before it.
pub(crate) fn contents(last: LogId) -> Bytes {
    let text = format!("everything up to {last}.");
    Bytes::from(text.repeat(1 + usize::try_from(last.index.0 % 4).unwrap_or_default()))
}

impl Node {
    /// The configuration in force at an entry that is on this disk, or at the base.
    fn configured_at(&self, index: Index) -> (LogId, Membership) {
        let entries =
            self.disk.entries.iter().filter(|entry| entry.kind == EntryKind::Config && entry.id.index <= index);
        let found = entries.last().and_then(|entry| Some((entry.id, Membership::decode(&entry.data).ok()?)));
        found.or_else(|| self.disk.base_membership.clone()).unwrap_or_default()
    }

    /// Whether an entry that is committed is on this disk, or was before it was cut off, or is reflected in an image.
    pub(crate) fn held(&self, id: LogId) -> bool {
        self.disk.held(id) || id.index <= self.images.last().index
    }

    /// The last index that the log or an image covers.
    pub(crate) fn ends_at(&self) -> Index {
        self.disk.last().index.max(self.images.last().index)
    }

    /// Cuts the log in front of the entry after this one.
    pub(crate) fn compact(&mut self, upto: LogId) {
        let contiguous = self.disk.holds(upto) || upto.index <= self.disk.base.index;
        self.disk.compact(upto);
        if !contiguous && let Some((image, _)) = &self.images.latest {
            self.disk.base_membership = Some((image.meta.membership_at, image.meta.membership.clone()));
        }
    }

    /// Power was lost after an image was received, and before the log was cut for it. Whether that is so.
    pub(super) fn cut_what_an_image_has_overtaken(&mut self) -> Result<bool, String> {
        let last = self.images.last();
        if last.index <= self.disk.base.index || self.disk.holds(last) {
            return Ok(false);
        }
        if self.disk.hard_state.term < last.term {
            let disk = show::disk(&self.disk);
            return Err(format!("images: {} has an image of {last}, and on its disk is {disk}", self.id));
        }
        self.compact(last);
        Ok(true)
    }

    /// The last configuration at or before `applied`, and all that the log holds after it.
    pub(super) fn configurations(&self, applied: Index) -> Vec<(LogId, Membership)> {
        let mut found = self.disk.configurations(applied);
        if let Some((image, _)) = &self.images.latest
            && found.first().is_none_or(|(at, _)| at.index > applied)
        {
            found.insert(0, (image.meta.membership_at, image.meta.membership.clone()));
        }
        found
    }

    /// What the state machine has applied.
    fn reflected(&self) -> LogId {
        self.applied.last_key_value().map(|(_, id)| *id).unwrap_or_default()
    }
}

impl Cluster {
    /// The core wants an image of what was handed out so far.
    pub(super) fn begin_snapshot(&mut self, id: NodeId, snapshot: SnapshotId) -> Result<(), String> {
        let node = self.node(id)?;
        if node.freezing.is_some() || node.frozen.is_some() {
            return Err(format!("{id} takes two images at once"));
        }
        let restored = node.restoring.as_ref().map_or(node.reflected(), |image| image.meta.last);
        let at = node.applying.back().map_or(restored, |entry| entry.id.max(restored));
        node.freezing = Some((snapshot, at.index));
        self.freeze(id)
    }

    /// Freezes the state machine, if it stands where it is to be frozen.
    pub(super) fn freeze(&mut self, id: NodeId) -> Result<(), String> {
        let node = self.node(id)?;
        let last = node.reflected();
        let Some((snapshot, _)) = node.freezing.take_if(|(_, at)| *at == last.index) else { return Ok(()) };
        let (membership_at, membership) = node.configured_at(last.index);
        node.frozen = Some(SnapshotMeta { id: snapshot, last, membership, membership_at });
        if node.hold.snapshot {
            self.say(id, || format!("freezes the state after {last}"));
            return Ok(());
        }
        self.publish(id, true)
    }

    /// Completes the image that is being written, if there is one; or it comes to nothing.
    pub(crate) fn publish(&mut self, id: NodeId, whole: bool) -> Result<(), String> {
        let Some(meta) = self.node(id)?.frozen.take() else { return Ok(()) };
        let (snapshot, last) = (meta.id, meta.last);
        let image = whole.then(|| {
            let bytes = contents(last);
            self.nodes.get_mut(&id).map(|node| node.images.publish(meta, bytes))
        });
        self.coverage.hit("snapshots taken");
        self.say(id, || {
            if whole { format!("publishes an image of {last}") } else { format!("fails to write an image of {last}") }
        });
        self.stepped();
        let (core, now) = self.node(id)?.core()?;
        core.step(now, Input::Snapshotted { id: snapshot, image: image.flatten() });
        Ok(())
    }

    /// Work for the store of images.
    pub(super) fn begin_images(&mut self, id: NodeId, work: Vec<ImageWork>) -> Result<(), String> {
        let node = self.node(id)?;
        node.imaging.extend(work);
        if node.hold.images { Ok(()) } else { self.image(id, usize::MAX) }
    }

    /// Does so much of it.
    pub(crate) fn image(&mut self, id: NodeId, count: usize) -> Result<(), String> {
        for _ in 0..count {
            let Some(work) = self.node(id)?.imaging.pop_front() else { break };
            if let Some(input) = self.image_work(id, work)? {
                self.stepped();
                let (core, now) = self.node(id)?.core()?;
                core.step(now, input);
            }
        }
        Ok(())
    }

    /// Does one thing with images; what the core hears of it.
    fn image_work(&mut self, id: NodeId, work: ImageWork) -> Result<Option<Input>, String> {
        let node = self.node(id)?;
        Ok(match work {
            ImageWork::Read { to, image, offset, max } => {
                let latest = node.images.latest.as_ref().filter(|(latest, _)| latest.meta.id == image);
                let data = latest.map(|(_, bytes)| {
                    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                    let upto = usize::try_from(offset.saturating_add(max)).unwrap_or(usize::MAX).min(bytes.len());
                    bytes.slice(from..upto)
                });
                Some(Input::ImageRead { to, image, offset, data })
            }
            ImageWork::Begin { attempt, meta } => {
                let latest = node.images.last();
                node.images.unfinished.retain(|_, (meta, _)| meta.last > latest);
                let fresh = || (meta.clone(), BytesMut::new());
                let (_, bytes) = node.images.unfinished.entry(meta.id).or_insert_with(fresh);
                let (upto, checksum) = (bytes.len() as u64, crc32c::crc32c(bytes));
                node.receiving = Some((attempt, meta.clone()));
                self.coverage.add("receipts of an image resumed", u64::from(upto > 0));
                self.say(id, || format!("begins to receive {} of {} at {upto}", show::short(meta.id), meta.last));
                Some(Input::Receipt { attempt, receipt: Receipt::Stored { upto, checksum } })
            }
            ImageWork::Append { attempt, data } => {
                let Some(meta) = node.receives(attempt) else { return Ok(None) };
                let fresh = || (meta.clone(), BytesMut::new());
                let (_, bytes) = node.images.unfinished.entry(meta.id).or_insert_with(fresh);
                let right = contents(meta.last).get(bytes.len()..).is_some_and(|rest| rest.starts_with(&data));
                if !right {
                    return Err(format!("images: {id} stores a damaged part of the image of {}: {data:?}", meta.last));
                }
                bytes.extend_from_slice(&data);
                let (upto, checksum) = (bytes.len() as u64, crc32c::crc32c(bytes));
                Some(Input::Receipt { attempt, receipt: Receipt::Stored { upto, checksum } })
            }
            ImageWork::Publish { attempt } => {
                let Some(meta) = node.receives(attempt) else { return Ok(None) };
                let bytes =
                    node.images.unfinished.remove(&meta.id).map(|(_, bytes)| bytes.freeze()).unwrap_or_default();
                if bytes != contents(meta.last) {
                    return Err(format!("images: {id} publishes a damaged image of {}: {bytes:?}", meta.last));
                }
                let last = meta.last;
                if node.disk.hard_state.term < last.term {
                    return Err(format!("images: {id} publishes an image of {last} before the term is on its disk"));
                }
                node.images.publish(meta, bytes);
                self.say(id, || format!("publishes the image of {last} that it received"));
                Some(Input::Receipt { attempt, receipt: Receipt::Published })
            }
            ImageWork::Discard { attempt } => {
                if let Some(meta) = node.receives(attempt) {
                    node.images.unfinished.remove(&meta.id);
                }
                None
            }
        })
    }

    /// The state is to be replaced by an image.
    pub(super) fn begin_restore(&mut self, id: NodeId, image: Published) -> Result<(), String> {
        self.checker.restores(&self.nodes[&id], &image)?;
        let node = self.node(id)?;
        let held = node.hold.apply;
        let last = image.meta.last;
        if node.applying.is_empty() {
            node.got_on = node.now;
        }
        if let Some(before) = node.restoring.replace(image) {
            return Err(format!("images: {id} is to restore {last} and still reads the image of {}", before.meta.last));
        }
        if held {
            self.say(id, || format!("is to restore the image of {last}"));
            return Ok(());
        }
        self.apply(id, last.index)
    }

    /// Replaces the state by an image, if it is time.
    pub(super) fn restore(&mut self, id: NodeId, upto: Index) -> Result<(), String> {
        let node = self.node(id)?;
        // A view of what was applied before is frozen first.
        let frozen_at = node.freezing.as_ref().map_or(Index(u64::MAX), |(_, at)| *at);
        let due = |image: &mut Published| image.meta.last.index <= upto.min(frozen_at);
        let Some(image) = node.restoring.take_if(due) else { return Ok(()) };
        let last = image.meta.last;
        if node.reflected().index >= last.index {
            return Err(format!("going forward: {id} restores {last} over {}", node.reflected()));
        }
        node.applied.insert(last.index, last);
        node.covered = last;
        node.remembered = node.remembered.max(last);
        self.say(id, || format!("restores the image of {last}"));
        self.forget_covered(id)?;
        self.serve_upto(id, last.index)?;
        self.stepped();
        let node = self.node(id)?;
        node.got_on = node.now;
        let (core, now) = node.core()?;
        core.step(now, Input::Restored { last });
        self.freeze(id)?;
        self.apply(id, upto)
    }
}

impl Node {
    fn receives(&self, attempt: u64) -> Option<SnapshotMeta> {
        self.receiving.as_ref().filter(|(present, _)| *present == attempt).map(|(_, meta)| meta.clone())
    }
}
