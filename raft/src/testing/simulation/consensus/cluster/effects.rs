//! What a core wants done: each effect is begun, and completed at once unless it is held back.

use super::super::{classes, show};
use super::{Cluster, MAX_ROUNDS};
use crate::consensus::{Effects, Fetch, Input, Note, Write};
use crate::message::Message;
use crate::types::{Entry, Index, NodeId};

impl Cluster {
    /// Does what the core wants done, until it wants nothing more.
    pub(crate) fn drain(&mut self, id: NodeId) -> Result<(), String> {
        for _ in 0..MAX_ROUNDS {
            let mut effects = std::mem::take(&mut self.effects);
            let (core, now) = self.node(id)?.core()?;
            let leased = core.leased_reads();
            core.effects(now, &mut effects);
            let leased = core.leased_reads() - leased;
            core.assert_invariants();
            let status = core.status(now);
            let excess = core.beyond_limits(classes::LARGEST_BATCH).filter(|_| self.transcript.is_none());
            if let Some(excess) = excess {
                return Err(format!("bounded queues: {id} has {excess}"));
            }
            self.coverage.add("reads answered by a lease", leased);
            classes::observed(&mut self.coverage, &self.config, &status);
            for note in &effects.notes {
                self.checker.noted(&self.nodes, &mut self.coverage, id, note);
            }
            self.checker.observed(&self.nodes, &status)?;
            self.trace.mix((status.role, status.term, status.last, status.stored, status.commit, status.applied));
            self.stepped = false;
            self.perform(id, &mut effects)?;
            self.effects = effects;
            self.check_held(id, status.transferring_to.is_some())?;
            if !self.stepped {
                return Ok(());
            }
        }
        Err(format!("busy loop: {id} has not come to rest after {MAX_ROUNDS} rounds of effects"))
    }

    fn perform(&mut self, id: NodeId, effects: &mut Effects) -> Result<(), String> {
        for note in effects.notes.drain(..) {
            let text = || show::note(&note);
            if matches!(note, Note::Violation { .. }) && self.transcript.is_none() {
                return Err(format!("a correct peer is accused: {id} {}", text()));
            }
            classes::noted(&mut self.coverage, &note);
            if self.transcript.is_some() || !matches!(note, Note::Ignored { .. }) {
                self.say(id, text);
            }
        }
        for (to, message) in effects.send.drain(..) {
            self.send(id, to, message)?;
        }
        if let Some(write) = effects.write.take() {
            self.begin_write(id, write)?;
        }
        for reply in effects.replies.drain(..) {
            self.reply(id, reply)?;
        }
        if let Some(image) = effects.restore.take() {
            self.begin_restore(id, image)?;
        }
        if !effects.apply.is_empty() {
            self.begin_apply(id, std::mem::take(&mut effects.apply))?;
        }
        if let Some(snapshot) = effects.snapshot.take() {
            self.begin_snapshot(id, snapshot)?;
        }
        for fetch in effects.fetch.drain(..) {
            self.begin_fetch(id, fetch)?;
        }
        self.begin_images(id, std::mem::take(&mut effects.images))
    }

    fn send(&mut self, id: NodeId, to: NodeId, message: Message) -> Result<(), String> {
        self.checker.sent(&self.nodes, id, to, &message)?;
        if id == to || !self.nodes.contains_key(&to) {
            return Err(format!("{id} sends to {to}: {message:?}"));
        }
        classes::sent(&mut self.coverage, &message);
        let own = self.nodes[&id].core.as_ref().and_then(|core| core.membership());
        if own.is_some_and(|own| !own.is_voter(id)) {
            classes::sent_without_a_vote(&mut self.coverage, &message);
        }
        let lost = self.cut.contains(&(id, to));
        self.note_down(|| format!("{id} -> {to} {}{}", show::message(&message), if lost { " ... lost" } else { "" }));
        if lost {
            self.lose(id, to, &message);
        } else if let Some(sent) = &mut self.sent {
            sent.push((id, to, message));
        } else {
            self.links.entry((id, to)).or_default().push_back(message);
        }
        Ok(())
    }

    fn begin_write(&mut self, id: NodeId, write: Write) -> Result<(), String> {
        let held = self.node(id)?.hold.disk;
        self.say(id, || format!("{} {}", if held { "writes" } else { "stores" }, show::write(&write)));
        self.checker.written(&write.write)?;
        let node = self.node(id)?;
        node.writing_since = node.now;
        if let Some(before) = node.writing.replace(write) {
            return Err(format!("{id} writes while write {} is in flight", before.seq));
        }
        if held { Ok(()) } else { self.store(id, false) }
    }

    /// Completes the write that is under way, if there is one.
    pub(crate) fn store(&mut self, id: NodeId, announce: bool) -> Result<(), String> {
        let node = self.node(id)?;
        let Some(write) = node.writing.take() else { return Ok(()) };
        self.reach_disk(id, &write, write.write.entries.len())?;
        if announce {
            self.say(id, || format!("stored {}", show::write(&write)));
        }
        self.stepped = true;
        let (core, now) = self.node(id)?.core()?;
        core.step(now, Input::Stored { seq: write.seq });
        Ok(())
    }

    /// A write reaches the disk, or its first `keep` entries do.
    pub(super) fn reach_disk(
        &mut self,
        id: NodeId,
        Write { compact, write, .. }: &Write,
        keep: usize,
    ) -> Result<(), String> {
        if let Some(upto) = compact {
            self.node(id)?.compact(*upto);
            self.coverage.hit("logs compacted");
        }
        let kept = write.entries.get(..keep).unwrap_or_default();
        let node = self.node(id)?;
        let first = kept.first().map(|entry| entry.id.index.prev());
        let prev = first.map(|index| node.disk.get(index).map_or(node.disk.base, |entry| entry.id));
        self.checker.replaces(&self.nodes, id, kept)?;
        let node = self.node(id)?;
        node.disk.tear(write, keep).map_err(|reason| format!("{id}: {reason}"))?;
        // The core notes what is stored when it is told so; the cluster knows it first.
        self.checker.entries(&self.nodes, prev.unwrap_or_default(), kept)?;
        self.checker.stored(&self.nodes[&id])
    }

    fn begin_apply(&mut self, id: NodeId, entries: Vec<Entry>) -> Result<(), String> {
        let held = self.node(id)?.hold.apply;
        self.say(id, || format!("{} {}", if held { "is to apply" } else { "applies" }, show::entries(&entries)));
        self.checker.handed_out(&self.nodes, id, &entries)?;
        let waiting = self.node(id)?.applying.iter().chain(&entries).map(Entry::cost).sum::<u64>();
        let limit = self.config.max_applying_bytes.saturating_add(classes::LARGEST_BATCH);
        if waiting > limit && self.transcript.is_none() {
            return Err(format!(
                "bounded queues: {id} has given its state machine {waiting} bytes, and the limit is {limit}"
            ));
        }
        let upto = entries.last().map(|entry| entry.id.index);
        let node = self.node(id)?;
        if node.applying.is_empty() && node.restoring.is_none() {
            node.got_on = node.now;
        }
        node.applying.extend(entries);
        match upto {
            Some(upto) if !held => self.apply(id, upto),
            Some(_) | None => Ok(()),
        }
    }

    /// Lets the state machine apply what waits for it, up to an index.
    pub(crate) fn apply(&mut self, id: NodeId, upto: Index) -> Result<(), String> {
        let mut last = None;
        let node = self.node(id)?;
        let frozen_at = node.freezing.as_ref().map_or(Index(u64::MAX), |(_, at)| *at);
        let restored_at = node.restoring.as_ref().map_or(Index(u64::MAX), |image| image.meta.last.index);
        let (upto, whole) = (upto.min(frozen_at).min(restored_at), upto);
        while self.node(id)?.applying.front().is_some_and(|entry| entry.id.index <= upto) {
            let node = self.node(id)?;
            let Some(entry) = node.applying.pop_front() else { break };
            let before = node.applied.last_key_value().map(|(_, id)| *id).unwrap_or_default();
            if entry.id.index != before.index.next() {
                return Err(format!("{id} applies {} after {before}", entry.id));
            }
            node.applied.insert(entry.id.index, entry.id);
            node.remembered = node.remembered.max(entry.id);
            self.checker.applied(&self.nodes, id, &entry)?;
            self.settle(id, &entry)?;
            last = Some(entry.id.index);
        }
        let Some(index) = last else { return self.restore(id, whole) };
        let held = self.node(id)?.hold.apply;
        if held {
            self.say(id, || format!("applied {}", index.0));
        }
        self.serve_upto(id, index)?;
        self.stepped = true;
        let node = self.node(id)?;
        node.got_on = node.now;
        let (core, now) = node.core()?;
        core.step(now, Input::Applied { index });
        if index == frozen_at {
            self.freeze(id)?;
            return self.apply(id, whole);
        }
        self.restore(id, whole)
    }

    fn begin_fetch(&mut self, id: NodeId, fetch: Fetch) -> Result<(), String> {
        let held = self.node(id)?.hold.fetch;
        self.coverage.hit(classes::fetch(fetch.purpose));
        self.say(id, || format!("fetches {}..{} for {:?}", fetch.range.start.0, fetch.range.end.0, fetch.purpose));
        let node = self.node(id)?;
        if node.fetching.iter().any(|other| other.purpose == fetch.purpose) {
            return Err(format!("{id} fetches twice for {:?}", fetch.purpose));
        }
        node.fetching.push_back(fetch);
        if held { Ok(()) } else { self.fetch(id) }
    }

    /// Answers the oldest fetch from the disk, if there is one.
    pub(crate) fn fetch(&mut self, id: NodeId) -> Result<(), String> {
        let node = self.node(id)?;
        let Some(Fetch { purpose, range, max_bytes }) = node.fetching.pop_front() else { return Ok(()) };
        // What is read while the log is cut may be gone; the core knows.
        if node.disk.get(range.start).is_none() && !node.hold.fetch && range.start > node.disk.base.index {
            return Err(format!(
                "{id} fetches from {}, which is not on its disk: {}",
                range.start,
                show::disk(&node.disk)
            ));
        }
        let entries = node.disk.read(range, max_bytes);
        self.stepped = true;
        let (core, now) = self.node(id)?.core()?;
        core.step(now, Input::Fetched { purpose, entries });
        Ok(())
    }
}
