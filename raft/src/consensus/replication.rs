//! How the leader's log reaches the followers (paper §5.3).
//!
//! While it is not known where the logs agree, one append at a time probes; once it is known, appends are sent ahead of
//! their acknowledgements, within a window. What is older than the tail in memory is fetched from the log store first.

use super::Consensus;
use super::io::{Fetch, FetchPurpose, Time};
use super::role::{Follower, Role};
use crate::message::{AppendReply, Body, Message};
use crate::mutant;
use crate::types::{Entry, EntryKind, Index, LogId, Membership, NodeId, Term};

impl Message {
    /// An acknowledgement.
    pub(crate) fn accepted(term: Term, stored: Index) -> Self {
        Self { term, body: Body::AppendReply(AppendReply::Accepted { stored }) }
    }
}

impl Consensus {
    /// Sends each follower what it lacks, as far as its window allows.
    pub(crate) fn replicate(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let (term, last) = (self.hard_state.term, self.log.last().index);
        let base = self.log.base().index;
        let mut lacking = Vec::new();
        for (id, progress) in &mut leader.peers {
            if progress.awaits_image() && progress.matched >= base {
                progress.probe(progress.matched.next());
            }
            // What is being read goes first. The read may have begun in an earlier term.
            if self.fetching.contains(id) {
                continue;
            }
            while progress.may_send(&self.config) && (progress.next <= last || progress.owes_probe()) {
                let Some(prev) = self.log.id_at(progress.next.prev()) else {
                    // Cut off: only an image can help.
                    progress.await_image();
                    lacking.push(*id);
                    break;
                };
                let entries = if progress.next > last {
                    Vec::new()
                } else if let Some(entries) = self.log.slice(progress.next, last, progress.message_bytes(&self.config))
                {
                    entries
                } else {
                    let range = progress.next..self.log.tail_start();
                    let purpose = FetchPurpose::Follower(*id);
                    self.fetching.insert(*id);
                    self.out.fetch.push(Fetch { purpose, range, max_bytes: progress.message_bytes(&self.config) });
                    break;
                };
                let upto = Index(prev.index.0 + entries.len() as u64);
                let body = Body::Append { prev, entries, commit: self.commit };
                let message = Message { term, body };
                progress.sent(upto, message.cost());
                progress.commit_told = progress.commit_told.max(self.commit.min(upto));
                self.out.send.push((*id, message));
            }
        }
        lacking.into_iter().for_each(|id| self.offer(id));
    }

    /// Older entries came back from the log store.
    pub(crate) fn on_fetched(&mut self, now: Time, purpose: FetchPurpose, entries: Vec<Entry>) {
        match purpose {
            FetchPurpose::Follower(id) => self.on_fetched_for_follower(id, entries),
            FetchPurpose::Apply => self.on_fetched_to_apply(now, entries),
        }
    }

    fn on_fetched_for_follower(&mut self, id: NodeId, entries: Vec<Entry>) {
        if !self.fetching.remove(&id) {
            return;
        }
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.peers.get_mut(&id) else { return };
        // Meanwhile the follower may have turned out to need others, and this node may have lost and won leadership.
        let wanted = (progress.next.0..).map(Index).zip(&entries).all(|(n, e)| self.log.id_at(n) == Some(e.id));
        let Some(prev) = self.log.id_at(progress.next.prev()) else { return };
        let wanted = wanted || mutant!("fetched-entries-unchecked");
        if !wanted || entries.is_empty() || !progress.may_send(&self.config) {
            return;
        }
        let upto = Index(prev.index.0 + entries.len() as u64);
        let message = Message { term: self.hard_state.term, body: Body::Append { prev, entries, commit: self.commit } };
        progress.sent(upto, message.cost());
        progress.commit_told = progress.commit_told.max(self.commit.min(upto));
        self.out.send.push((id, message));
    }

    /// A leader's entries. Only a proven conflict removes anything: a repeated or late append must not (paper, figure 2).
    pub(crate) fn on_append(&mut self, now: Time, from: NodeId, prev: LogId, entries: Vec<Entry>, commit: Index) {
        if let Err(why) = self.validate_append(prev, &entries) {
            return self.violation(from, "Append", why);
        }
        if !self.hear_leader(now, from, "Append") {
            return;
        }
        // What lies below the base is committed, so it is the leader's as well.
        let compacted = self.log.base().index.since(prev.index);
        if compacted == 0 && !self.log.holds(prev) {
            let hint = self.log.last_at_most(prev);
            return self.send(from, Body::AppendReply(AppendReply::Rejected { prev, hint }));
        }
        let Role::Follower(Follower { matching, .. }) = self.role else { return };
        if mutant!("append-removes-all-after-prev") && prev.index < self.log.last().index {
            self.truncate(prev.index.next());
        }
        let upto = Index(prev.index.0 + entries.len() as u64);
        let known = |entry: &Entry| entry.id.index < self.log.base().index || self.log.holds(entry.id);
        let skip = entries.iter().take_while(|entry| known(entry)).count();
        if let Some(first) = entries.get(skip) {
            if first.id.index <= matching {
                let why = format!("{} conflicts with what matched this leader's log (up to {matching})", first.id);
                return self.violation(from, "Append", why);
            }
            if first.id.index <= self.log.last().index {
                self.truncate(first.id.index);
            }
        }
        for entry in entries.into_iter().skip(skip) {
            self.append_received(entry);
        }
        if let Role::Follower(follower) = &mut self.role {
            follower.matching = follower.matching.max(upto);
            follower.ack_due = true;
        }
        self.follow_commit(commit);
    }

    /// Whether a correct leader of this term could have sent these entries.
    fn validate_append(&self, prev: LogId, entries: &[Entry]) -> Result<(), String> {
        let mut before = prev;
        if prev.term > self.hard_state.term
            || prev.index > super::MAX_INDEX
            || (prev.index == Index::ZERO) != (prev == LogId::ZERO)
        {
            return Err(format!("its prev {prev} can't be"));
        }
        for entry in entries {
            let id = entry.id;
            if id.index != before.index.next() || id.term < before.term || id.term > self.hard_state.term {
                return Err(format!("{id} can't follow {before} in {}", self.hard_state.term));
            }
            if entry.kind == EntryKind::Config {
                let membership = Membership::decode(&entry.data)
                    .map_err(|why| format!("{id} holds a configuration that can't be: {why}"))?;
                // Two clusters that were started with different members can agree on the first entry's id.
                if self.configurations.at(id.index).is_some_and(|ours| self.log.holds(id) && *ours != membership) {
                    return Err(format!("{id} is another configuration here: these are two clusters"));
                }
            }
            before = id;
        }
        Ok(())
    }

    fn append_received(&mut self, entry: Entry) {
        if entry.kind == EntryKind::Config {
            self.adopt_configuration(entry.id, &entry.data);
        }
        self.log.append(entry);
    }

    /// Removes what conflicts with the leader's log.
    fn truncate(&mut self, from: Index) {
        let upto = self.log.last().index;
        self.log.truncate(from);
        self.durability.truncated(from);
        self.out.notes.push(super::Note::Truncated { from, upto });
        self.take_back_configurations(from);
    }

    pub(crate) fn on_append_reply(&mut self, now: Time, from: NodeId, reply: AppendReply) {
        let last = self.log.last().index;
        let Role::Leader(leader) = &mut self.role else {
            return self.ignored(from, "AppendReply", "this node does not lead");
        };
        let Some(progress) = leader.peers.get_mut(&from) else {
            return self.ignored(from, "AppendReply", "it is not from a member");
        };
        progress.heard = Some(now);
        match reply {
            AppendReply::Accepted { stored } if stored > last => {
                let why = format!("it acknowledges {stored}, and the log ends at {last}");
                self.violation(from, "AppendReply", why);
            }
            AppendReply::Accepted { stored } => self.commit_due |= progress.note_stored(stored),
            AppendReply::Rejected { prev, hint } => {
                if !progress.expects_rejection(prev.index) {
                    return self.ignored(
                        from,
                        "AppendReply",
                        "it contradicts what was acknowledged, or answers an append that was overtaken",
                    );
                }
                // Both sides skip the terms that the other can't have: one round trip for each term in which they differ.
                let limit = LogId { term: hint.term, index: hint.index.min(prev.index.prev()) };
                let agree = self.log.last_at_most(limit);
                // Where the logs could agree is cut off otherwise: then `next` is where only an image can help.
                let next = if agree.index <= limit.index { agree.index.next() } else { limit.index.next() };
                progress.probe(next);
            }
        }
    }
}
