//! A few keys that many clients write, change and read at the same time, and whether all of them saw one store.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use raftkv::testing::linearizability::{self, Budget, CallId, KeyValue, KeyValueOp as Op, KeyValueRet as Ret, Report};

use crate::client::{Endpoint, Failure};

/// What was asked and answered at the hot keys. A value is the number of the call that wrote it.
pub type Calls = linearizability::History<Op<usize, u64>, Ret<u64>>;

/// The history of the hot keys: linearizable or not, and with revisions that rise or not.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// The calls.
    pub calls: Calls,
    /// What contradicts the store's revisions, in words.
    pub faults: Vec<String>,
    /// The highest revision that anybody was told of.
    highest: i64,
    /// The call that got each revision.
    writes: BTreeMap<i64, CallId>,
    /// What was read of each key at each revision of its own.
    read: BTreeMap<(usize, i64), (u64, u64)>,
}

/// A call under way.
#[derive(Debug)]
pub struct Begun {
    id: CallId,
    /// The highest revision that was known when it began.
    floor: i64,
}

/// What a call came to.
#[derive(Clone, Debug)]
pub struct Answer {
    ret: Ret<u64>,
    /// The store's revision.
    revision: i64,
    /// The revision of the key that was read.
    key_revision: Option<i64>,
}

impl Book {
    /// A client is about to ask.
    pub fn begin(&mut self, op: Op<usize, u64>) -> Begun {
        Begun { id: self.calls.invoke(op), floor: self.highest }
    }

    /// It was answered, or not.
    pub fn end(&mut self, begun: &Begun, result: &Result<Answer, Failure>) {
        match result {
            Ok(answer) => {
                self.check_revisions(begun, answer);
                self.calls.returned(begun.id, answer.ret.clone());
            }
            // A read without an answer has no effect and tells nothing.
            Err(failure) if failure.certain || matches!(self.calls.op(begun.id), Some(Op::Get(_))) => {
                self.calls.failed(begun.id);
            }
            Err(_) => {}
        }
    }

    /// Revisions never fall, every write has its own, and what a key had at one revision does not change.
    fn check_revisions(&mut self, begun: &Begun, answer: &Answer) {
        let Begun { id, floor } = *begun;
        let Some(op) = self.calls.op(id).cloned() else { return };
        let revision = answer.revision;
        let wrote = match &answer.ret {
            Ret::Written | Ret::Deleted(true) => true,
            Ret::Found(_) | Ret::Refused | Ret::Deleted(false) => false,
        };
        let told = format!("{op:?} was answered {answer:?}");
        if revision < floor || (wrote && revision == floor) {
            self.faults.push(format!("{told}, when revision {floor} had been told before it was sent"));
        }
        if wrote && let Some(other) = self.writes.insert(revision, id) {
            self.faults.push(format!("{told}, and {:?} has the same revision", self.calls.op(other)));
        }
        if let (Op::Get(key), Ret::Found(Some(found)), Some(at)) = (&op, &answer.ret, answer.key_revision) {
            if at > revision {
                self.faults.push(format!("{told}: the key is newer than the store"));
            }
            if let Some(other) = self.read.insert((*key, at), *found).filter(|other| other != found) {
                self.faults.push(format!("{told}, and {other:?} was read at the same revision of the key"));
            }
        }
        self.highest = self.highest.max(revision);
    }

    /// Whether one store could have answered so.
    ///
    /// # Errors
    /// It could not, or that was not to be found out; in words.
    pub fn check(&self) -> Result<Report> {
        let writes = self.writes.iter().filter_map(|(revision, id)| match self.calls.op(*id)? {
            Op::Put(key, value) | Op::PutIfVersion(key, _, value) => Some(((*key, *revision), *value)),
            Op::Get(_) | Op::Delete(_) => None,
        });
        let mut faults = self.faults.clone();
        for (place, value) in writes {
            if let Some((read, _)) = self.read.get(&place).filter(|(read, _)| *read != value) {
                faults.push(format!("{read} was read where {value} was written: (key, revision) {place:?}"));
            }
        }
        if !faults.is_empty() {
            let few: Vec<_> = faults.iter().take(5).cloned().collect();
            bail!("{} answers contradict the store's revisions: {}", faults.len(), few.join("\n  "));
        }
        linearizability::check(&KeyValue::default(), &self.calls, Budget::default()).map_err(|error| anyhow!("{error}"))
    }
}

/// The name of a hot key.
#[must_use]
pub fn name(prefix: &str, key: usize) -> String {
    format!("hot/{prefix}{key}")
}

/// Asks a server.
///
/// # Errors
/// See [`Failure`].
pub async fn ask(server: &Endpoint, prefix: &str, op: &Op<usize, u64>, limit: Duration) -> Result<Answer, Failure> {
    let (ret, revision) = match op {
        Op::Get(key) => return get(server, prefix, *key, false, limit).await,
        Op::Put(key, value) => (Ret::Written, server.put(&name(prefix, *key), &value.to_string(), limit).await?),
        Op::PutIfVersion(key, version, value) => {
            let version = i64::try_from(*version).unwrap_or(i64::MAX);
            let (done, revision) =
                server.put_if_version(&name(prefix, *key), version, &value.to_string(), limit).await?;
            (if done { Ret::Written } else { Ret::Refused }, revision)
        }
        Op::Delete(key) => {
            let (there, revision) = server.delete(&name(prefix, *key), limit).await?;
            (Ret::Deleted(there), revision)
        }
    };
    Ok(Answer { ret, revision, key_revision: None })
}

/// Reads a key: linearizably, or whatever this server has.
///
/// # Errors
/// See [`Failure`].
pub async fn get(
    server: &Endpoint,
    prefix: &str,
    key: usize,
    serializable: bool,
    limit: Duration,
) -> Result<Answer, Failure> {
    let found = server.get(&name(prefix, key), serializable, limit).await?;
    let kv = found.kvs.first();
    let there = kv.map(|kv| {
        let value = std::str::from_utf8(&kv.value).ok().and_then(|text| text.parse().ok());
        // Something else stands for a value that nobody wrote.
        (value.unwrap_or(u64::MAX), u64::try_from(kv.version).unwrap_or(u64::MAX))
    });
    let key_revision = kv.map(|kv| kv.mod_revision);
    Ok(Answer { ret: Ret::Found(there), revision: found.revision, key_revision })
}

/// What a client asks next, given the versions that it knows.
#[derive(Debug, Default)]
pub struct Asker {
    versions: BTreeMap<usize, u64>,
}

impl Asker {
    /// The next request, at one of these keys; `value` must be one that was not written yet.
    pub fn next(&self, keys: Range<usize>, value: u64) -> Op<usize, u64> {
        let key = fastrand::usize(keys);
        let version = self.versions.get(&key).copied().unwrap_or(0);
        match fastrand::u32(0..20) {
            0..9 => Op::Get(key),
            9..13 => Op::Put(key, value),
            13..18 => Op::PutIfVersion(key, version, value),
            _ => Op::Delete(key),
        }
    }

    /// What came of it.
    pub fn learn(&mut self, op: &Op<usize, u64>, answer: &Answer) {
        let (key, version) = match (op, &answer.ret) {
            (Op::Get(key), Ret::Found(found)) => (*key, found.map_or(0, |(_, version)| version)),
            (Op::PutIfVersion(key, version, _), Ret::Written) => (*key, version + 1),
            (Op::Delete(key), _) => (*key, 0),
            (Op::Get(_) | Op::Put(..) | Op::PutIfVersion(..), _) => return,
        };
        self.versions.insert(key, version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(ret: Ret<u64>, revision: i64) -> Result<Answer, Failure> {
        Ok(Answer { ret, revision, key_revision: None })
    }

    fn read(value: u64, version: u64, revision: i64, key_revision: i64) -> Result<Answer, Failure> {
        Ok(Answer { ret: Ret::Found(Some((value, version))), revision, key_revision: Some(key_revision) })
    }

    fn failed(certain: bool) -> Result<Answer, Failure> {
        Err(Failure { certain, code: tonic::Code::Unavailable, message: String::new() })
    }

    /// One call after the other.
    fn book(calls: impl IntoIterator<Item = (Op<usize, u64>, Result<Answer, Failure>)>) -> Book {
        let mut book = Book::default();
        for (op, result) in calls {
            let begun = book.begin(op);
            book.end(&begun, &result);
        }
        book
    }

    fn fault(book: &Book) -> String {
        book.check().unwrap_err().to_string()
    }

    #[test]
    fn a_true_story_passes() {
        let book = book([
            (Op::Put(0, 1), answered(Ret::Written, 2)),
            (Op::PutIfVersion(0, 1, 2), answered(Ret::Written, 3)),
            (Op::PutIfVersion(0, 1, 3), answered(Ret::Refused, 3)),
            (Op::Get(0), read(2, 2, 3, 3)),
            (Op::Put(0, 4), failed(false)),
            (Op::Get(0), read(2, 2, 3, 3)),
            (Op::Put(0, 5), failed(true)),
            (Op::Get(0), failed(false)),
            (Op::Get(0), read(4, 3, 4, 4)),
            (Op::Delete(0), answered(Ret::Deleted(true), 5)),
            (Op::Get(0), answered(Ret::Found(None), 5)),
        ]);
        let report = book.check().unwrap();
        assert_eq!((report.answered, report.open, report.failed), (8, 1, 2));
    }

    #[test]
    fn a_stale_read_is_found() {
        let calls = [
            (Op::Put(0, 1), answered(Ret::Written, 2)),
            (Op::Put(0, 2), answered(Ret::Written, 3)),
            (Op::Get(0), read(1, 1, 3, 2)),
        ];
        assert!(fault(&book(calls)).contains("not linearizable"));
    }

    #[test]
    fn a_write_that_was_applied_twice_is_found() {
        let calls = [(Op::Put(0, 1), answered(Ret::Written, 2)), (Op::Get(0), read(1, 2, 3, 3))];
        assert!(fault(&book(calls)).contains("not linearizable"));
    }

    #[test]
    fn revisions_that_fall_or_are_given_twice_are_found() {
        let put = |key, revision| (Op::Put(key, revision as u64), answered(Ret::Written, revision));
        assert!(fault(&book([put(0, 3), put(1, 2)])).contains("had been told before"));
        let mut same = Book::default();
        let (one, other) = (same.begin(Op::Put(0, 1)), same.begin(Op::Put(1, 2)));
        same.end(&one, &answered(Ret::Written, 2));
        same.end(&other, &answered(Ret::Written, 2));
        assert!(fault(&same).contains("same revision"));
        let stale = (Op::Get(1), answered(Ret::Found(None), 2));
        assert!(fault(&book([put(0, 3), stale])).contains("had been told before"));
    }

    #[test]
    fn another_value_at_a_revision_is_found() {
        let calls = [(Op::Put(0, 1), answered(Ret::Written, 2)), (Op::Get(0), read(7, 1, 2, 2))];
        assert!(fault(&book(calls)).contains("was read where"));
        let calls = [(Op::Put(0, 7), failed(false)), (Op::Get(0), read(7, 1, 2, 2)), (Op::Get(0), read(8, 1, 2, 2))];
        assert!(fault(&book(calls)).contains("same revision of the key"));
    }
}
