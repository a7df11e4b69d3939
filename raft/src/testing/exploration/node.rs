//! One node with its disk, as a value: what one action makes of it is a function of the two, and is computed once.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;

use super::bounds::Bounds;
use super::marks::{Mark, Marks};
use crate::config::Config;
use crate::consensus::{Boot, Consensus, Effects, Input, LONG_AGO, Note, RefusedReason, Reply, RoleKind, Time, Write};
use crate::message::{AppendReply, Body, Message, RequestId};
use crate::traits::{HardState, LogState, LogWrite, TermRun};
use crate::types::{Entry, EntryKind, Index, LogId, Membership, NodeId, Peer, Term};

/// A step that causes more rounds of effects than this goes in circles.
const MAX_ROUNDS: usize = 100;

/// What is on a node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Disk {
    pub(super) hard_state: HardState,
    /// From index 1.
    pub(super) entries: Vec<Entry>,
}

/// A node that is running. A crash is a step to the next run: while a node is down, nothing is delivered, which needs no state.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) core: Consensus,
    pub(super) now: Time,
    pub(super) disk: Disk,
    pub(super) writing: Option<Write>,
    pub(super) applied: LogId,
}

/// What may be done to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A message comes.
    Deliver {
        from: NodeId,
        message: Message,
    },
    /// No timeout is left that is not over, and the node is woken: it campaigns.
    Timeout,
    /// The heartbeat interval is over, and nothing else.
    Heartbeat,
    /// All timeouts are over, but the node is not woken yet.
    Lapse,
    /// The write under way is done.
    Stored,
    /// Power is lost and comes back. Of the write under way this much was done.
    Restart(Kept),
    Propose {
        number: u32,
    },
    Read {
        number: u32,
    },
    /// The next change of the configuration.
    Change {
        number: u32,
    },
}

/// What a crash leaves of a write that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Nothing,
    /// The hard state, and so many of the entries.
    Entries(usize),
}

/// What clients were told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Readable {
        number: u32,
        index: Index,
    },
    /// A read was refused.
    Unreadable {
        number: u32,
    },
    /// A command was refused: it never was and never will be in a log.
    Refused {
        number: u32,
    },
}

/// What came of an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) sent: Vec<(NodeId, Message)>,
    pub(super) told: Vec<Told>,
    pub(super) marks: Marks,
    /// What is wrong with it.
    pub(super) violation: Option<String>,
}

/// Reads, writes and changes share the core's names for requests.
const FIRST_READ: u64 = 1000;
const FIRST_CHANGE: u64 = 2000;

pub(super) fn command(number: u32) -> Bytes {
    Bytes::from(format!("c{number}"))
}

fn membership(ids: &[u64]) -> Membership {
    Membership::new(ids.iter().map(|id| Peer::new(*id, format!("h{id}"))))
}

impl Disk {
    fn first(bounds: &Bounds, node: usize) -> Self {
        let members = membership(&bounds.first_voters());
        let config = Entry { id: LogId::new(0, 1), kind: EntryKind::Config, data: members.encode() };
        let terms = bounds.logs.get(node).cloned().unwrap_or_default();
        // As leaders would have opened their terms.
        let mut before = 0;
        let entries = (2..).zip(&terms).map(|(index, term)| {
            let kind = if before == *term { EntryKind::Command } else { EntryKind::Noop };
            before = *term;
            let data = if kind == EntryKind::Noop { Bytes::new() } else { Bytes::from(format!("e{index}-{term}")) };
            Entry { id: LogId::new(*term, index), kind, data }
        });
        let entries: Vec<_> = std::iter::once(config).chain(entries).collect();
        let term = Term(bounds.logs.iter().flatten().copied().max().unwrap_or(0));
        Self { hard_state: HardState { term, voted_for: None }, entries }
    }

    fn state(&self) -> LogState {
        let mut runs: Vec<TermRun> = Vec::new();
        for entry in &self.entries {
            if runs.last().is_none_or(|run| run.term != entry.id.term) {
                runs.push(TermRun { term: entry.id.term, first: entry.id.index });
            }
        }
        LogState { hard_state: self.hard_state, base: LogId::ZERO, last: self.last(), runs }
    }

    pub(super) fn last(&self) -> LogId {
        self.entries.last().map_or(LogId::ZERO, |entry| entry.id)
    }

    fn get(&self, index: Index) -> Option<&Entry> {
        self.entries.get(usize::try_from(index.0.checked_sub(1)?).ok()?)
    }

    /// Makes the hard state of a step durable, and its first `keep` entries.
    fn write(&mut self, write: &LogWrite, keep: usize) -> Result<(), String> {
        if let Some(next) = write.hard_state {
            let was = self.hard_state;
            let kept = next.term > was.term || was.voted_for.is_none() || was.voted_for == next.voted_for;
            if next.term < was.term || !kept {
                return Err(format!("votes are stable: the disk holds {was:?}, and is to hold {next:?}"));
            }
            self.hard_state = next;
        }
        let Some(first) = write.entries.first().filter(|_| keep > 0) else { return Ok(()) };
        if first.id.index == Index::ZERO || first.id.index > self.last().index.next() {
            return Err(format!("a write begins at {}, and the disk ends at {}", first.id, self.last()));
        }
        self.entries.truncate(usize::try_from(first.id.index.prev().0).unwrap_or(usize::MAX));
        for entry in write.entries.iter().take(keep) {
            if entry.id.index != self.last().index.next() || entry.id.term < self.last().term {
                return Err(format!("{} follows {} on the disk", entry.id, self.last()));
            }
            self.entries.push(entry.clone());
        }
        Ok(())
    }
}

impl Node {
    /// A node of a cluster that has begun, before its first election or with a given log.
    pub(super) fn first(bounds: &Bounds, node: usize) -> Self {
        let disk = Disk::first(bounds, node);
        Self::boot(NodeId(node as u64 + 1), &bounds.config(), Time::default(), disk, LogId::ZERO)
    }

    fn boot(id: NodeId, config: &Config, now: Time, disk: Disk, applied: LogId) -> Self {
        let configs = disk.entries.iter().filter(|entry| entry.kind == EntryKind::Config);
        let decoded = configs.filter_map(|entry| Some((entry.id, Membership::decode(&entry.data).ok()?)));
        let mut configurations: Vec<_> = decoded.collect();
        let settled = configurations.iter().take_while(|(at, _)| at.index <= applied.index).count();
        configurations.drain(..settled.saturating_sub(1));
        let boot = Boot { id, log: disk.state(), configurations, snapshot: None, applied, seed: id.0 };
        Self { id, core: Consensus::new(now, config, boot), now, disk, writing: None, applied }
    }

    /// Where it stands among the nodes, from 0.
    fn place(&self) -> usize {
        usize::try_from(self.id.0 - 1).unwrap_or_default()
    }

    /// Equal for nodes that go on in the same way.
    pub(super) fn fingerprint(&self) -> u64 {
        // What is applied is the core's to know as well.
        let Self { id, core, now, disk, writing, applied: _ } = self;
        let mut hasher = DefaultHasher::new();
        core.fingerprint(*now, &mut hasher);
        (id, disk).hash(&mut hasher);
        // Its number is the core's, which counts from the start of the run.
        writing.as_ref().map(|writing| &writing.write).hash(&mut hasher);
        hasher.finish()
    }

    /// What becomes of this node.
    pub(super) fn after(&self, bounds: &Bounds, event: &Event) -> (Self, Outcome) {
        let (mut node, mut outcome) = (self.clone(), Outcome::default());
        // What the core asserts of itself is a property like any other.
        let run = std::panic::AssertUnwindSafe(|| node.run(bounds, event, &mut outcome));
        let done = std::panic::catch_unwind(run).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(format!("the core's own assertion fails: {}", text.unwrap_or_default()))
        });
        outcome.violation = done.and_then(|()| node.compare(self, event, &mut outcome)).err();
        (node, outcome)
    }

    fn run(&mut self, bounds: &Bounds, event: &Event, outcome: &mut Outcome) -> Result<(), String> {
        let input = match event {
            Event::Deliver { from, message } => Input::Receive { from: *from, message: message.clone() },
            Event::Timeout => {
                self.now = self.now.plus(LONG_AGO);
                Input::Tick
            }
            Event::Heartbeat => {
                self.now = self.now.plus(Duration::from_nanos(1));
                Input::Tick
            }
            Event::Lapse => {
                self.now = self.now.plus(LONG_AGO);
                return Ok(());
            }
            Event::Stored => return self.store().and_then(|()| self.drain(bounds, outcome)),
            Event::Restart(kept) => {
                self.crash(bounds, *kept, outcome)?;
                return self.drain(bounds, outcome);
            }
            Event::Propose { number } => {
                let (request, kind) = (RequestId(u64::from(*number)), EntryKind::Command);
                Input::Propose { request, kind, commands: vec![command(*number)] }
            }
            Event::Read { number } => Input::Read { request: RequestId(FIRST_READ + u64::from(*number)), lease: false },
            Event::Change { number } => {
                let ids = bounds.changes.get(*number as usize).map(Vec::as_slice).unwrap_or_default();
                let request = RequestId(FIRST_CHANGE + u64::from(*number));
                Input::Change { request, change: crate::change::Change::to(membership(ids)) }
            }
        };
        self.core.step(self.now, input);
        self.drain(bounds, outcome)
    }

    fn crash(&mut self, bounds: &Bounds, kept: Kept, outcome: &mut Outcome) -> Result<(), String> {
        if let (Some(torn), Kept::Entries(keep)) = (self.writing.take(), kept) {
            if keep < torn.write.entries.len() {
                outcome.marks.set(Mark::TornWrite);
            }
            self.disk.write(&torn.write, keep)?;
        }
        outcome.marks.set(Mark::Crashed);
        if bounds.forgetful_disks {
            self.disk = Disk::first(bounds, self.place());
        }
        let applied = if bounds.durable_machines { self.applied } else { LogId::ZERO };
        *self = Self::boot(self.id, &bounds.config(), self.now, std::mem::take(&mut self.disk), applied);
        Ok(())
    }

    fn store(&mut self) -> Result<(), String> {
        let Some(Write { seq, compact: _, write }) = self.writing.take() else { return Ok(()) };
        self.disk.write(&write, write.entries.len())?;
        self.core.step(self.now, Input::Stored { seq });
        Ok(())
    }

    /// Does what the core wants done, until it wants nothing more.
    fn drain(&mut self, bounds: &Bounds, outcome: &mut Outcome) -> Result<(), String> {
        let slow = bounds.slow_disk(self.place());
        for _ in 0..MAX_ROUNDS {
            let mut effects = Effects::default();
            self.core.effects(self.now, &mut effects);
            self.core.assert_invariants();
            if effects.is_empty() {
                return Ok(());
            }
            // No search applies as much as an image is taken for, so none is received either.
            let Effects { send, write, apply, fetch, snapshot: _, images: _, restore: _, replies, notes } = effects;
            for (to, message) in send {
                self.promise(to, &message, outcome)?;
                outcome.sent.push((to, message));
            }
            for note in &notes {
                Self::note(note, outcome)?;
            }
            for reply in &replies {
                self.reply(reply, outcome)?;
            }
            if let Some(write) = write
                && self.writing.replace(write).is_some()
            {
                return Err("a write begins while another is under way".into());
            }
            if !slow {
                self.store()?;
            }
            self.apply(apply)?;
            for fetch in fetch {
                let from = usize::try_from(fetch.range.start.0.saturating_sub(1)).unwrap_or(usize::MAX);
                let entries: Vec<_> =
                    self.disk.entries.iter().skip(from).take_while(|e| e.id.index < fetch.range.end).cloned().collect();
                if entries.is_empty() {
                    return Err(format!("{:?} is fetched, which is not on the disk", fetch.range));
                }
                outcome.marks.set(Mark::Fetched);
                self.core.step(self.now, Input::Fetched { purpose: fetch.purpose, entries });
            }
        }
        Err(format!("a step causes more than {MAX_ROUNDS} rounds of effects"))
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), String> {
        for entry in entries {
            if entry.id.index != self.applied.index.next() || self.disk.get(entry.id.index) != Some(&entry) {
                return Err(format!("{} is applied after {}, or is not on the disk", entry.id, self.applied));
            }
            self.applied = entry.id;
            self.core.step(self.now, Input::Applied { index: entry.id.index });
        }
        Ok(())
    }

    /// What a node says must already be true of its disk.
    fn promise(&self, to: NodeId, message: &Message, outcome: &mut Outcome) -> Result<(), String> {
        let (hard, last) = (self.disk.hard_state, self.disk.last());
        let votes = |id: NodeId| hard.term == message.term && hard.voted_for == Some(id);
        let kept = match &message.body {
            Body::Vote { last: told, .. } => votes(self.id) && *told == last,
            Body::VoteReply { granted: true } => votes(to),
            Body::AppendReply(AppendReply::Accepted { stored }) => hard.term == message.term && last.index >= *stored,
            Body::HeartbeatReply { stored, matching, .. } => {
                // An acknowledgement, if it acknowledges anything.
                let in_term = *stored == Index::ZERO || hard.term == message.term;
                in_term && last.index >= *stored && matching >= stored
            }
            Body::AppendReply(AppendReply::Rejected { .. }) => {
                outcome.marks.set(Mark::AppendRejected);
                true
            }
            Body::VoteReply { granted: false } => {
                outcome.marks.set(Mark::VoteRefused);
                true
            }
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::Append { .. }
            | Body::Heartbeat { .. }
            | Body::Commit { .. }
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::Forward { .. }
            | Body::ForwardReply { .. }
            | Body::TimeoutNow
            | Body::Change { .. }
            | Body::ChangeReply { .. }
            | Body::Offer { .. }
            | Body::Fetch { .. }
            | Body::Chunk { .. } => true,
        };
        let what = || {
            format!(
                "what is promised is durable: {} says {:?} to {to}, and its disk holds {hard:?} and ends at {last}",
                self.id, message
            )
        };
        if kept { Ok(()) } else { Err(what()) }
    }

    fn note(note: &Note, outcome: &mut Outcome) -> Result<(), String> {
        match note {
            Note::Violation { from, message, why } => {
                return Err(format!("no correct node is accused: {from} of its {message}: {why}"));
            }
            Note::Truncated { .. } => outcome.marks.set(Mark::Truncated),
            Note::Membership { membership, .. } if membership.is_joint() => outcome.marks.set(Mark::Joint),
            Note::Removed { .. } => outcome.marks.set(Mark::Removed),
            Note::Role { .. }
            | Note::Leader { .. }
            | Note::Membership { .. }
            | Note::Suspect { .. }
            | Note::Transfer { .. }
            | Note::Yield { .. }
            | Note::SnapshotTaken { .. }
            | Note::ReceivingSnapshot { .. }
            | Note::SnapshotInstalled { .. }
            | Note::SnapshotDamaged { .. }
            | Note::Ignored { .. } => {}
        }
        Ok(())
    }

    fn reply(&self, reply: &Reply, outcome: &mut Outcome) -> Result<(), String> {
        let number = |request: &RequestId| u32::try_from(request.0 % FIRST_READ).unwrap_or_default();
        match reply {
            Reply::Appended { request, first } => {
                // A follower need not have the entry yet, and may never get it.
                let there = self.core.log_entries().into_iter().find(|(id, _)| id == first).and_then(|(_, data)| data);
                if there.is_some_and(|data| data != command(number(request))) {
                    return Err(format!("a client is told that its command is at {first}, where another is"));
                }
            }
            Reply::Changed { outcome: made, .. } => {
                outcome.marks.set(if made.is_ok() { Mark::Changed } else { Mark::ChangeRefused });
            }
            // Whoever asked for a change asks no more.
            Reply::Refused { request, reason: _ } if request.0 >= FIRST_CHANGE => {}
            Reply::Readable { request, index } => {
                outcome.told.push(Told::Readable { number: number(request), index: *index });
            }
            Reply::Refused {
                request,
                reason: RefusedReason::NotLeader { .. } | RefusedReason::Overloaded | RefusedReason::Moved,
            }
            | Reply::Returned { request, commands: _ } => {
                let number = number(request);
                let read = request.0 >= FIRST_READ;
                outcome.told.push(if read { Told::Unreadable { number } } else { Told::Refused { number } });
            }
            Reply::Unknown { .. }
            | Reply::Initialized { .. }
            | Reply::Transferred { .. }
            | Reply::Snapshotted { .. } => {}
        }
        Ok(())
    }

    /// Compares a node with what it was: nothing goes back within a run.
    fn compare(&self, before: &Self, event: &Event, outcome: &mut Outcome) -> Result<(), String> {
        let ((was_term, was), (term, role)) = (before.core.standing(), self.core.standing());
        if was == RoleKind::Leader && role != RoleKind::Leader {
            outcome.marks.set(Mark::SteppedDown);
        }
        let at = |node: &Self| node.core.status(node.now).configuration.map(|found| found.id);
        if at(self) < at(before) && !matches!(event, Event::Restart(_)) {
            outcome.marks.set(Mark::ChangeTakenBack);
        }
        let (commit, now) = (before.core.committed(), self.core.committed());
        let went_back = term < was_term || now < commit || self.applied < before.applied;
        if went_back && !matches!(event, Event::Restart(_)) {
            return Err(format!(
                "nothing goes back: the term from {was_term} to {term}, the commit index from {commit} to {now}, \
                 the applied one from {} to {}",
                before.applied, self.applied
            ));
        }
        Ok(())
    }

    /// The log in memory, with payloads: those it does not hold are on the disk.
    pub(super) fn log(&self) -> Vec<(LogId, Bytes)> {
        let on_disk =
            |id: LogId| self.disk.get(id.index).filter(|entry| entry.id == id).map(|entry| entry.data.clone());
        let entries = self.core.log_entries().into_iter();
        entries.map(|(id, data)| (id, data.or_else(|| on_disk(id)).unwrap_or_default())).collect()
    }
}
