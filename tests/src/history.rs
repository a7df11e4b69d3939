//! What was written, what came of it, and whether the store tells the same story.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use kv_example::api::mvccpb::KeyValue;

/// One write of one writer. Every write has a key and a value of its own.
#[derive(Clone, Debug)]
pub struct Write {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Who wrote.
    pub writer: usize,
    /// The writer's count. A writer's next write begins after the answer to this one.
    pub sequence: u64,
    /// The highest revision that anybody had been told of when this write was first sent. Its own must be higher.
    pub floor: i64,
    /// What came of it.
    pub outcome: Outcome,
}

/// What the writer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect.
    Acknowledged {
        /// The revision that it got.
        revision: i64,
        /// When the attempt that was answered began.
        sent: Instant,
        /// When the answer came.
        at: Instant,
    },
    /// It took no effect, and never will: the server said so, or was not there to hear it.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// How many writes ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Acknowledged.
    pub acknowledged: usize,
    /// Refused.
    pub refused: usize,
    /// Unknown.
    pub unknown: usize,
    /// Unknown, and there in the end.
    pub unknown_but_there: usize,
    /// Calls at the hot keys that were answered; [`check`] knows nothing of them.
    pub hot: usize,
    /// Calls at the hot keys of which nobody knows whether they took effect.
    pub hot_unknown: usize,
}

/// Compares what was written with what is there: all keys that the writers may have made.
///
/// # Errors
/// Every contradiction, in words.
pub fn check(writes: &[Write], found: &[KeyValue]) -> Result<Summary, Vec<String>> {
    let mut faults = Vec::new();
    let mut there: HashMap<&[u8], &KeyValue> = found.iter().map(|kv| (&kv.key[..], kv)).collect();
    let mut summary = Summary::default();
    for write in writes {
        let kv = there.remove(write.key.as_bytes());
        match (write.outcome, kv) {
            (Outcome::Acknowledged { .. }, None) => faults.push(format!("LOST: {write:?} was acknowledged")),
            (Outcome::Acknowledged { revision, .. }, Some(kv)) => {
                summary.acknowledged += 1;
                if kv.mod_revision != revision {
                    faults.push(format!("{write:?} was told another revision than the store's {}", kv.mod_revision));
                }
            }
            (Outcome::Refused, None) => summary.refused += 1,
            (Outcome::Refused, Some(kv)) => {
                faults.push(format!("{write:?} was refused, but is there at {}", kv.mod_revision));
            }
            (Outcome::Unknown, None) => summary.unknown += 1,
            (Outcome::Unknown, Some(_)) => {
                summary.unknown += 1;
                summary.unknown_but_there += 1;
            }
        }
        if let Some(kv) = kv {
            check_pair(write, kv, &mut faults);
        }
    }
    faults.extend(there.into_keys().map(|key| format!("nobody wrote {:?}", String::from_utf8_lossy(key))));
    check_order(writes, &mut faults);
    check_revisions(found, &mut faults);
    if faults.is_empty() { Ok(summary) } else { Err(faults) }
}

fn check_pair(write: &Write, kv: &KeyValue, faults: &mut Vec<String>) {
    if kv.value != write.value {
        faults.push(format!("{write:?} has the value {:?}", String::from_utf8_lossy(&kv.value)));
    }
    if kv.version != 1 || kv.create_revision != kv.mod_revision {
        faults.push(format!("{write:?} was applied {} times", kv.version));
    }
    if kv.mod_revision <= write.floor {
        faults.push(format!("{write:?} came before a write that was acknowledged before it was sent: {kv:?}"));
    }
}

/// A writer sends the next write when it has the answer to the last one, so its acknowledged writes have rising revisions.
fn check_order(writes: &[Write], faults: &mut Vec<String>) {
    let mut by_writer: BTreeMap<usize, Vec<(u64, i64)>> = BTreeMap::new();
    for write in writes {
        if let Outcome::Acknowledged { revision, .. } = write.outcome {
            by_writer.entry(write.writer).or_default().push((write.sequence, revision));
        }
    }
    for (writer, mut acknowledged) in by_writer {
        acknowledged.sort_unstable();
        for pair in acknowledged.windows(2).filter(|pair| pair[1].1 <= pair[0].1) {
            faults.push(format!("writer {writer}: out of order: (sequence, revision) {pair:?}"));
        }
    }
}

fn check_revisions(found: &[KeyValue], faults: &mut Vec<String>) {
    let mut revisions: Vec<_> = found.iter().map(|kv| kv.mod_revision).collect();
    revisions.sort_unstable();
    for pair in revisions.windows(2).filter(|pair| pair[0] == pair[1]) {
        faults.push(format!("two writes share the revision {}", pair[0]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(writer: usize, sequence: u64, floor: i64, outcome: Outcome) -> Write {
        let (key, value) = (format!("{writer}/{sequence}"), format!("v{sequence}"));
        Write { key, value, writer, sequence, floor, outcome }
    }

    fn acknowledged(writer: usize, sequence: u64, floor: i64, revision: i64) -> Write {
        let now = Instant::now();
        write(writer, sequence, floor, Outcome::Acknowledged { revision, sent: now, at: now })
    }

    fn kv(write: &Write, revision: i64) -> KeyValue {
        KeyValue {
            key: write.key.clone().into(),
            value: write.value.clone().into(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        }
    }

    fn fault(writes: &[Write], found: &[KeyValue]) -> String {
        check(writes, found).unwrap_err().join("; ")
    }

    #[test]
    fn a_true_story_passes() {
        let writes = [
            acknowledged(1, 1, 0, 2),
            acknowledged(1, 2, 2, 3),
            write(2, 1, 0, Outcome::Refused),
            write(2, 2, 0, Outcome::Unknown),
            write(2, 3, 0, Outcome::Unknown),
        ];
        let found = [kv(&writes[0], 2), kv(&writes[1], 3), kv(&writes[4], 4)];
        let expected = Summary { acknowledged: 2, refused: 1, unknown: 2, unknown_but_there: 1, ..Summary::default() };
        assert_eq!(check(&writes, &found), Ok(expected));
    }

    #[test]
    fn a_lost_write_is_found() {
        assert!(fault(&[acknowledged(1, 1, 0, 2)], &[]).contains("LOST"));
    }

    #[test]
    fn a_refused_write_that_took_effect_is_found() {
        let writes = [write(1, 1, 0, Outcome::Refused)];
        assert!(fault(&writes, &[kv(&writes[0], 2)]).contains("was refused"));
    }

    #[test]
    fn a_write_that_nobody_wrote_is_found() {
        assert!(fault(&[], &[kv(&acknowledged(9, 9, 0, 1), 2)]).contains("nobody wrote"));
    }

    #[test]
    fn a_write_applied_twice_is_found() {
        let writes = [acknowledged(1, 1, 0, 3)];
        let twice = KeyValue { version: 2, create_revision: 2, ..kv(&writes[0], 3) };
        assert!(fault(&writes, &[twice]).contains("2 times"));
    }

    #[test]
    fn another_value_or_revision_is_found() {
        let writes = [acknowledged(1, 1, 0, 3)];
        assert!(fault(&writes, &[KeyValue { value: "other".into(), ..kv(&writes[0], 3) }]).contains("has the value"));
        assert!(fault(&writes, &[kv(&writes[0], 4)]).contains("another revision"));
    }

    #[test]
    fn a_later_write_with_an_earlier_revision_is_found() {
        let writes = [acknowledged(1, 1, 0, 3), acknowledged(1, 2, 0, 2)];
        assert!(fault(&writes, &[kv(&writes[0], 3), kv(&writes[1], 2)]).contains("out of order"));
        let writes = [acknowledged(1, 1, 0, 3), acknowledged(2, 1, 3, 2)];
        assert!(fault(&writes, &[kv(&writes[0], 3), kv(&writes[1], 2)]).contains("came before"));
    }

    #[test]
    fn a_revision_given_twice_is_found() {
        let writes = [acknowledged(1, 1, 0, 3), acknowledged(2, 1, 0, 3)];
        assert!(fault(&writes, &[kv(&writes[0], 3), kv(&writes[1], 3)]).contains("share"));
    }
}
