//! The sessions of a group, as every node's replica of them: which are open, and which of their writes were applied.
//!
//! All of it follows from the log alone, so that all nodes decide alike. Only whether an answer is still kept may differ: that decides
//! nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Once, SessionId, WINDOW};
use crate::mutant;
use crate::types::{Entry, Index, LogId, Term};

/// What an answer that is kept counts, beside its bytes.
pub(super) const OVERHEAD: u64 = Entry::OVERHEAD;

/// All open sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sessions {
    /// The time that leaders have led, all together.
    pub(super) clock: Duration,
    /// The leader's time that was added last, and its term.
    pub(super) led: (Term, Duration),
    /// Shared with views that are frozen.
    pub(super) open: BTreeMap<SessionId, Arc<Open>>,
    /// Where answers are kept, oldest first. Some may be gone by now.
    pub(super) kept: VecDeque<(SessionId, u64)>,
    /// How many of them are not, and what they cost.
    pub(super) answers: usize,
    pub(super) bytes: u64,
    pub(super) max_bytes: u64,
    /// What has changed since it was last asked for; none if nobody asks.
    pub(super) changed: Option<Changed>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) clock: bool,
    pub(super) sessions: BTreeSet<SessionId>,
}

/// An open session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Open {
    /// How long it may be idle.
    pub(super) idle: Duration,
    /// When it was last used, by the clock.
    pub(super) active: Duration,
    /// Its writes below this are answered or given up, and never asked for again.
    pub(super) answered: u64,
    /// Those of the others that were applied.
    pub(super) applied: BTreeMap<u64, Applied>,
}

/// A write that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) at: Index,
    pub(super) answer: Kept,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// The state machine is to give it. It is with the batch that is applied, at this place.
    Awaited(usize),
    Answer(Bytes),
    /// It was too old, or was not known here.
    Forgotten,
}

/// What is to be done about a session's write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is new: the state machine must apply it.
    Apply,
    /// It is a repetition of one that is in this very batch.
    Repeats(usize),
    /// It is a repetition, and this was the answer.
    Answered(Bytes),
    /// It is a repetition, whose answer is not kept.
    Forgotten,
    /// There is no such session, or not any more.
    Expired,
    /// Its answer is no longer wanted, or it is too far ahead.
    OutOfSequence,
}

impl Sessions {
    /// None yet; keeps answers up to so many bytes.
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self {
            clock: Duration::ZERO,
            led: (Term(0), Duration::ZERO),
            open: BTreeMap::new(),
            kept: VecDeque::new(),
            answers: 0,
            bytes: 0,
            max_bytes,
            changed: None,
        }
    }

    /// From now on what changes is noted; all there is counts as changed.
    pub(crate) fn note_changes(&mut self) {
        self.changed = Some(Changed { clock: true, sessions: self.open.keys().copied().collect() });
    }

    fn note(&mut self, id: SessionId) {
        if let Some(changed) = &mut self.changed {
            changed.sessions.insert(id);
        }
    }

    /// The leader of this term has led for so long. Sessions that are idle for too long by now expire.
    pub(crate) fn advance(&mut self, term: Term, led: Duration) {
        let (before, counted) = self.led;
        let more = if term == before { led.saturating_sub(counted) } else { led };
        self.led = (term, led);
        self.clock = self.clock.saturating_add(more);
        if let Some(changed) = &mut self.changed {
            changed.clock = true;
        }
        let expired = self.open.iter().filter(|(_, open)| self.clock.saturating_sub(open.active) > open.idle);
        let expired: Vec<SessionId> = expired.map(|(id, _)| *id).collect();
        for id in expired {
            self.close(id);
        }
    }

    /// Opens a session; one that is open already stays as it is. Where there are too many, the one that was not used for the longest time
    /// goes.
    pub(crate) fn open(&mut self, id: SessionId, idle: Duration, most: u64) {
        if self.open.contains_key(&id) {
            return;
        }
        while self.open.len() as u64 >= most.max(1)
            && let Some(oldest) = self.open.iter().min_by_key(|(id, open)| (open.active, **id)).map(|(id, _)| *id)
        {
            self.close(oldest);
        }
        let open = Open { idle, active: self.clock, answered: 0, applied: BTreeMap::new() };
        self.open.insert(id, Arc::new(open));
        self.note(id);
    }

    /// Forgets a session, if it is open.
    pub(crate) fn close(&mut self, id: SessionId) {
        if let Some(open) = self.open.remove(&id) {
            self.note(id);
            open.applied.values().for_each(|applied| self.gone(&applied.answer));
        }
    }

    /// Decides about a write, and remembers it if it is to be applied: then at this place of the batch.
    pub(crate) fn decide(&mut self, at: Index, once: Once, place: usize) -> Verdict {
        let Once { session, sequence, answered } = once;
        if answered > sequence {
            return Verdict::OutOfSequence;
        }
        let Some(open) = self.open.get_mut(&session) else { return Verdict::Expired };
        if let Some(changed) = &mut self.changed {
            changed.sessions.insert(session);
        }
        let open = Arc::make_mut(open);
        open.active = self.clock;
        if answered > open.answered {
            open.answered = answered;
            let wanted = open.applied.split_off(&answered);
            for old in std::mem::replace(&mut open.applied, wanted).into_values() {
                Self::discount(&mut self.answers, &mut self.bytes, &old.answer);
            }
        }
        let late = sequence < open.answered && !mutant!("session-late-write-applied");
        if late || sequence.saturating_sub(open.answered) >= WINDOW {
            return Verdict::OutOfSequence;
        }
        if let Some(applied) = open.applied.get(&sequence)
            && !mutant!("session-repeat-applied")
        {
            return match &applied.answer {
                Kept::Awaited(place) => Verdict::Repeats(*place),
                Kept::Answer(answer) => Verdict::Answered(answer.clone()),
                Kept::Forgotten => Verdict::Forgotten,
            };
        }
        open.applied.insert(sequence, Applied { at, answer: Kept::Awaited(place) });
        Verdict::Apply
    }

    /// The state machine has given the answer to a write that was to be applied; none if it is not known here.
    pub(crate) fn record(&mut self, session: SessionId, sequence: u64, answer: Option<&Bytes>) {
        // It may be closed by now, or have said that it wants no answer.
        let Some(open) = self.open.get_mut(&session) else { return };
        let Some(applied) = Arc::make_mut(open).applied.get_mut(&sequence) else { return };
        let Some(answer) = answer else {
            applied.answer = Kept::Forgotten;
            return;
        };
        // Not a part of something larger that would be kept alive with it.
        applied.answer = Kept::Answer(Bytes::copy_from_slice(answer));
        self.kept.push_back((session, sequence));
        self.answers += 1;
        self.bytes += OVERHEAD + answer.len() as u64;
        self.forget_oldest();
    }

    /// Keeps within the limit.
    pub(super) fn forget_oldest(&mut self) {
        while self.bytes > self.max_bytes
            && let Some((session, sequence)) = self.kept.pop_front()
        {
            let Some(open) = self.open.get_mut(&session) else { continue };
            if let Some(applied) = Arc::make_mut(open).applied.get_mut(&sequence) {
                let old = std::mem::replace(&mut applied.answer, Kept::Forgotten);
                Self::discount(&mut self.answers, &mut self.bytes, &old);
            }
        }
        if self.kept.len() > 2 * self.answers + 64 {
            let open = &self.open;
            self.kept.retain(|(session, sequence)| {
                let applied = open.get(session).and_then(|open| open.applied.get(sequence));
                applied.is_some_and(|applied| matches!(applied.answer, Kept::Answer(_)))
            });
        }
    }

    fn gone(&mut self, answer: &Kept) {
        Self::discount(&mut self.answers, &mut self.bytes, answer);
    }

    fn discount(answers: &mut usize, bytes: &mut u64, answer: &Kept) {
        match answer {
            Kept::Answer(answer) => {
                *answers -= 1;
                *bytes -= OVERHEAD + answer.len() as u64;
            }
            Kept::Awaited(_) | Kept::Forgotten => {}
        }
    }

    /// How many are open, and what the answers that are kept for them cost.
    pub(crate) fn tally(&self) -> (u64, u64) {
        (self.open.len() as u64, self.bytes)
    }
}

impl Sessions {
    /// An entry of kind `Clock` comes.
    pub(crate) fn on_clock(&mut self, id: LogId, data: &[u8]) {
        if let Some(led) = data.first_chunk() {
            self.advance(id.term, Duration::from_millis(u64::from_le_bytes(*led)));
        }
    }
}

#[cfg(test)]
mod tests;
