//! The sessions of a group, as every node's replica of them: which are open, and which of their writes were applied.
//!
//! All of it follows from the log alone, so that all nodes decide alike. Only whether an answer is still kept may differ: that decides
//! nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Once, SessionId, WINDOW};
use crate::mutant;
use crate::types::{Entry, Index, LogId, Term};

/// What an answer that is kept counts, beside its bytes.
const OVERHEAD: u64 = Entry::OVERHEAD;

/// All open sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sessions {
    /// The time that leaders have led, all together.
    clock: Duration,
    /// The leader's time that was added last, and its term.
    led: (Term, Duration),
    /// Shared with views that are frozen.
    open: BTreeMap<SessionId, Arc<Open>>,
    /// Where answers are kept, oldest first. Some may be gone by now.
    kept: VecDeque<(SessionId, u64)>,
    /// How many of them are not, and what they cost.
    answers: usize,
    bytes: u64,
    max_bytes: u64,
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
        }
    }

    /// The leader of this term has led for so long. Sessions that are idle for too long by now expire.
    pub(crate) fn advance(&mut self, term: Term, led: Duration) {
        let (before, counted) = self.led;
        let more = if term == before { led.saturating_sub(counted) } else { led };
        self.led = (term, led);
        self.clock = self.clock.saturating_add(more);
        let expired = self.open.iter().filter(|(_, open)| self.clock.saturating_sub(open.active) > open.idle);
        let expired: Vec<SessionId> = expired.map(|(id, _)| *id).collect();
        for id in expired {
            self.close(id);
        }
    }

    /// Opens a session, named after its entry. Where there are too many, the one that was not used for the longest time goes.
    pub(crate) fn open(&mut self, at: Index, idle: Duration, most: u64) -> SessionId {
        while self.open.len() as u64 >= most.max(1)
            && let Some(oldest) = self.open.iter().min_by_key(|(id, open)| (open.active, **id)).map(|(id, _)| *id)
        {
            self.close(oldest);
        }
        let id = SessionId(at.0);
        let open = Open { idle, active: self.clock, answered: 0, applied: BTreeMap::new() };
        self.open.insert(id, Arc::new(open));
        id
    }

    /// Forgets a session, if it is open.
    pub(crate) fn close(&mut self, id: SessionId) {
        if let Some(open) = self.open.remove(&id) {
            open.applied.values().for_each(|applied| self.gone(&applied.answer));
        }
    }

    /// Decides about a write, and remembers it if it is to be applied: then at this place of the batch.
    pub(crate) fn decide(&mut self, at: Index, once: Once, place: usize) -> Verdict {
        let Once { session, sequence, answered } = once;
        let Some(open) = self.open.get_mut(&session) else { return Verdict::Expired };
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
    fn forget_oldest(&mut self) {
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

/// What an image holds of the sessions. Field numbers are for ever.
pub(crate) mod image {
    use bytes::Bytes;
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Sessions {
        #[prost(uint64, tag = "1")]
        pub(crate) clock_ms: u64,
        #[prost(uint64, tag = "2")]
        pub(crate) led_term: u64,
        #[prost(uint64, tag = "3")]
        pub(crate) led_ms: u64,
        #[prost(message, repeated, tag = "4")]
        pub(crate) open: Vec<Open>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Open {
        #[prost(uint64, tag = "1")]
        pub(crate) id: u64,
        #[prost(uint64, tag = "2")]
        pub(crate) idle_ms: u64,
        #[prost(uint64, tag = "3")]
        pub(crate) active_ms: u64,
        #[prost(uint64, tag = "4")]
        pub(crate) answered: u64,
        #[prost(message, repeated, tag = "5")]
        pub(crate) applied: Vec<Applied>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Applied {
        #[prost(uint64, tag = "1")]
        pub(crate) sequence: u64,
        #[prost(uint64, tag = "2")]
        pub(crate) at: u64,
        #[prost(bytes = "bytes", optional, tag = "3")]
        pub(crate) answer: Option<Bytes>,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Sessions {
    /// For an image. No batch is being applied.
    pub(crate) fn to_image(&self) -> image::Sessions {
        let applied = |(sequence, applied): (&u64, &Applied)| {
            let answer = match &applied.answer {
                Kept::Answer(answer) => Some(answer.clone()),
                Kept::Awaited(_) | Kept::Forgotten => None,
            };
            image::Applied { sequence: *sequence, at: applied.at.0, answer }
        };
        let open = |(id, open): (&SessionId, &Arc<Open>)| image::Open {
            id: id.0,
            idle_ms: millis(open.idle),
            active_ms: millis(open.active),
            answered: open.answered,
            applied: open.applied.iter().map(applied).collect(),
        };
        image::Sessions {
            clock_ms: millis(self.clock),
            led_term: self.led.0.0,
            led_ms: millis(self.led.1),
            open: self.open.iter().map(open).collect(),
        }
    }

    /// From an image.
    pub(crate) fn from_image(image: image::Sessions, max_bytes: u64) -> Self {
        let mut sessions = Self::new(max_bytes);
        if !mutant!("session-ages-begin-anew") {
            sessions.clock = Duration::from_millis(image.clock_ms);
        }
        sessions.led = (Term(image.led_term), Duration::from_millis(image.led_ms));
        let mut kept = Vec::new();
        for image::Open { id, idle_ms, active_ms, answered, applied } in image.open {
            let id = SessionId(id);
            let mut open = Open {
                idle: Duration::from_millis(idle_ms),
                active: Duration::from_millis(active_ms),
                answered,
                applied: BTreeMap::new(),
            };
            for image::Applied { sequence, at, answer } in applied {
                if let Some(answer) = &answer {
                    kept.push((at, id, sequence));
                    sessions.answers += 1;
                    sessions.bytes += OVERHEAD + answer.len() as u64;
                }
                let answer = answer.map_or(Kept::Forgotten, Kept::Answer);
                open.applied.insert(sequence, Applied { at: Index(at), answer });
            }
            sessions.open.insert(id, Arc::new(open));
        }
        kept.sort_unstable();
        sessions.kept = kept.into_iter().map(|(_, id, sequence)| (id, sequence)).collect();
        sessions.forget_oldest();
        sessions
    }

    /// An entry of kind `Clock` comes.
    pub(crate) fn on_clock(&mut self, id: LogId, data: &[u8]) {
        if let Some(led) = data.first_chunk() {
            self.advance(id.term, Duration::from_millis(u64::from_le_bytes(*led)));
        }
    }
}

#[cfg(test)]
mod tests;
