//! The sessions at rest: in images, and in the records that a durable state machine keeps of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use super::SessionId;
use super::table::{Applied, Kept, OVERHEAD, Open, Sessions};
use crate::mutant;
use crate::traits::{Record, RecordChange};
use crate::types::{Index, Term};

/// The messages. Field numbers are for ever.
pub(crate) mod wire {
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

impl Open {
    /// `answers` are those of the batch that is applied, if one is.
    fn to_wire(&self, id: SessionId, answers: &[Bytes]) -> wire::Open {
        let applied = self.applied.iter().map(|(sequence, applied)| {
            let answer = match &applied.answer {
                Kept::Answer(answer) => Some(answer.clone()),
                Kept::Awaited(place) => answers.get(*place).cloned(),
                Kept::Forgotten => None,
            };
            wire::Applied { sequence: *sequence, at: applied.at.0, answer }
        });
        wire::Open {
            id: id.0,
            idle_ms: millis(self.idle),
            active_ms: millis(self.active),
            answered: self.answered,
            applied: applied.collect(),
        }
    }
}

impl Sessions {
    fn clock_to_wire(&self) -> wire::Sessions {
        let (term, led) = self.led;
        wire::Sessions { clock_ms: millis(self.clock), led_term: term.0, led_ms: millis(led), open: Vec::new() }
    }

    /// For an image. No batch is being applied.
    pub(crate) fn to_image(&self) -> wire::Sessions {
        let open = self.open.iter().map(|(id, open)| open.to_wire(*id, &[]));
        wire::Sessions { open: open.collect(), ..self.clock_to_wire() }
    }

    /// From an image.
    pub(crate) fn from_image(image: wire::Sessions, max_bytes: u64) -> Self {
        let mut sessions = Self::new(max_bytes);
        if !mutant!("session-ages-begin-anew") {
            sessions.clock = Duration::from_millis(image.clock_ms);
        }
        sessions.led = (Term(image.led_term), Duration::from_millis(image.led_ms));
        let mut kept = Vec::new();
        for wire::Open { id, idle_ms, active_ms, answered, applied } in image.open {
            let id = SessionId(id);
            let mut open = Open {
                idle: Duration::from_millis(idle_ms),
                active: Duration::from_millis(active_ms),
                answered,
                applied: BTreeMap::new(),
            };
            for wire::Applied { sequence, at, answer } in applied {
                if let Some(answer) = &answer {
                    kept.push((at, id, sequence));
                    sessions.answers += 1;
                    sessions.bytes += OVERHEAD + answer.len() as u64;
                }
                // Not a part of the image that would be kept alive with it.
                let answer = answer.map_or(Kept::Forgotten, |answer| Kept::Answer(Bytes::copy_from_slice(&answer)));
                open.applied.insert(sequence, Applied { at: Index(at), answer });
            }
            sessions.open.insert(id, Arc::new(open));
        }
        kept.sort_unstable();
        sessions.kept = kept.into_iter().map(|(_, id, sequence)| (id, sequence)).collect();
        sessions.forget_oldest();
        sessions
    }
}

/// What entries have changed of the sessions, for a durable state machine. Answers may still be missing.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionChanges {
    clock: Option<wire::Sessions>,
    /// Those that are closed have nothing.
    sessions: Vec<(SessionId, Option<Arc<Open>>)>,
}

/// The record with the clock; all others are sessions.
const CLOCK: &[u8] = b"clock";

fn key(id: SessionId) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u8(b's');
    key.put_u64(id.0);
    key.freeze()
}

impl SessionChanges {
    pub(crate) fn is_empty(&self) -> bool {
        self.clock.is_none() && self.sessions.is_empty()
    }

    pub(crate) fn to_records(&self, answers: &[Bytes]) -> Vec<RecordChange> {
        let clock = self.clock.iter().map(|clock| RecordChange::Put(clock_record(clock)));
        let sessions = self.sessions.iter().map(|(id, open)| match open {
            Some(open) => RecordChange::Put(session_record(*id, &open.to_wire(*id, answers))),
            None => RecordChange::Delete(key(*id)),
        });
        clock.chain(sessions).collect()
    }
}

fn clock_record(clock: &wire::Sessions) -> Record {
    Record { key: Bytes::from_static(CLOCK), value: clock.encode_to_vec().into() }
}

fn session_record(id: SessionId, open: &wire::Open) -> Record {
    Record { key: key(id), value: open.encode_to_vec().into() }
}

impl Sessions {
    /// What has changed since this was asked last, if changes are noted.
    pub(crate) fn take_changes(&mut self) -> SessionChanges {
        let Some(changed) = &mut self.changed else { return SessionChanges::default() };
        let changed = std::mem::take(changed);
        SessionChanges {
            clock: changed.clock.then(|| self.clock_to_wire()),
            sessions: changed.sessions.into_iter().map(|id| (id, self.open.get(&id).cloned())).collect(),
        }
    }

    /// All of it.
    pub(crate) fn to_records(&self) -> Vec<Record> {
        let sessions = self.open.iter().map(|(id, open)| session_record(*id, &open.to_wire(*id, &[])));
        std::iter::once(clock_record(&self.clock_to_wire())).chain(sessions).collect()
    }

    /// From all records that a state machine kept; none if it has kept none so far, for the clock comes before the first session.
    ///
    /// # Errors
    /// The reason, for a person: they can't be read.
    pub(crate) fn from_records(records: Vec<Record>, max_bytes: u64) -> Result<Option<Self>, String> {
        let (mut image, mut complete) = (wire::Sessions::default(), false);
        for Record { key, value } in records {
            if key == CLOCK {
                let clock = wire::Sessions::decode(value).map_err(|error| format!("the clock: {error}"))?;
                image = wire::Sessions { open: image.open, ..clock };
                complete = true;
            } else {
                image.open.push(wire::Open::decode(value).map_err(|error| format!("a session: {error}"))?);
            }
        }
        Ok(complete.then(|| Self::from_image(image, max_bytes)))
    }
}
