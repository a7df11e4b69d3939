//! State machines that are durable by themselves: what the user's machine has applied outlives its runs, with the framework's records beside it.
//!
//! A commit takes its place in a journal at once, and reaches the disk with every so many-th one: a loss of power takes some of the commits
//! that have not. At the start the journal is played back into the user's machine, of which the framework sees nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::time::sleep;

use super::stores::Outage;
use crate::error::Fatal;
use crate::testing::{Random, lock};
use crate::traits::{Chunks, Record, RecordChange, Recorded, StateMachine};
use crate::types::LogId;

/// How long the name of the entry is that an image begins with, in bytes.
const NAME: usize = 16;

/// What one node's state machine keeps. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) enum Kept {
    /// The user's machine is taken as it is.
    #[default]
    AsItIs,
    /// It is one in memory, among others that are durable: its images tell what they reflect.
    Nothing,
    /// It is durable.
    Everything(Arc<Mutex<Journal>>),
}

#[derive(Debug)]
pub(super) struct Journal {
    /// The run whose commits count.
    run: u64,
    steps: Vec<Step>,
    /// So many of them are on the disk.
    synced: usize,
    /// With every so many-th commit all are.
    every: u64,
    commits: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Restored { image: Bytes, records: Vec<Record>, upto: LogId, last: LogId },
    Applied { commands: Vec<(LogId, Bytes)>, changes: Vec<RecordChange>, upto: LogId },
}

impl Kept {
    /// Of a machine whose commits reach the disk with every so many-th one.
    pub(super) fn durable(every: u64) -> Self {
        let journal = Journal { run: 0, steps: Vec::new(), synced: 0, every: every.max(1), commits: 0 };
        Self::Everything(Arc::new(Mutex::new(journal)))
    }

    /// The machine went down. How many commits are lost.
    pub(super) fn outage(&self, how: Outage, random: &mut Random) -> usize {
        let Self::Everything(journal) = self else { return 0 };
        let mut journal = lock(journal);
        let all = journal.steps.len();
        match how {
            Outage::Kill => {}
            Outage::PowerLoss => {
                let unsynced = (all - journal.synced) as u64;
                let kept = journal.synced + usize::try_from(random.below(unsynced + 1)).unwrap_or(0);
                journal.steps.truncate(kept);
            }
        }
        // What comes up finds it so, and nobody writes it again.
        journal.synced = journal.steps.len();
        all - journal.steps.len()
    }
}

/// A state machine, and what is kept of it.
#[derive(Debug)]
pub(super) struct Keeping<M> {
    machine: M,
    kept: Kept,
    run: u64,
    upto: LogId,
    /// The last command that it has applied: this names its images.
    last: LogId,
    records: BTreeMap<Bytes, Bytes>,
}

impl<M: StateMachine> Keeping<M> {
    /// A machine that goes on where the one of the run before has ended. `machine`: an empty one.
    pub(super) async fn open(machine: M, kept: Kept, run: u64) -> Result<Self, Fatal> {
        let steps = match &kept {
            Kept::AsItIs | Kept::Nothing => Vec::new(),
            Kept::Everything(journal) => {
                let mut journal = lock(journal);
                journal.run = run;
                journal.steps.clone()
            }
        };
        let mut this = Self { machine, kept, run, upto: LogId::ZERO, last: LogId::ZERO, records: BTreeMap::new() };
        for step in steps {
            match step {
                Step::Restored { image, records, upto, last } => {
                    this.machine.restore(Box::new(vec![image].into_iter())).await?;
                    this.records = by_key(records);
                    (this.upto, this.last) = (upto, last);
                }
                Step::Applied { commands, changes, upto } => {
                    if let Some((last, _)) = commands.last() {
                        this.last = *last;
                        this.machine.apply_batch(commands).await?;
                    }
                    this.note(changes);
                    this.upto = upto;
                }
            }
        }
        Ok(this)
    }

    /// Where it stands.
    pub(super) fn upto(&self) -> LogId {
        self.upto
    }

    /// Takes an image's place, up to its last entry if that is told, and else to its last command.
    async fn replace(
        &mut self,
        image: Box<dyn Chunks>,
        records: Vec<Record>,
        upto: Option<LogId>,
    ) -> Result<(), Fatal> {
        let (last, image) = unname(image).await?;
        if last < self.last {
            return Err(Fatal::state_machine(format!("at {}, it is to go back to an image of {last}", self.last)));
        }
        let upto = upto.unwrap_or(last);
        if upto < last {
            return Err(Fatal::state_machine(format!("an image of {last} is said to reflect {upto} alone")));
        }
        self.machine.restore(Box::new(vec![image.clone()].into_iter())).await?;
        (self.upto, self.last) = (upto, last);
        self.records = by_key(records.clone());
        self.commit(Step::Restored { image, records, upto, last });
        Ok(())
    }

    fn is_durable(&self) -> bool {
        matches!(self.kept, Kept::Everything(_))
    }

    fn note(&mut self, changes: Vec<RecordChange>) {
        for change in changes {
            match change {
                RecordChange::Put(Record { key, value }) => self.records.insert(key, value),
                RecordChange::Delete(key) => self.records.remove(&key),
            };
        }
    }

    /// One atomic step. A machine that was switched off meanwhile takes none.
    fn commit(&self, step: Step) {
        let Kept::Everything(journal) = &self.kept else { return };
        let mut journal = lock(journal);
        if journal.run != self.run {
            return;
        }
        let restored = matches!(step, Step::Restored { .. });
        if restored {
            journal.steps.clear();
        }
        journal.steps.push(step);
        journal.commits += 1;
        if restored || journal.commits.is_multiple_of(journal.every) {
            journal.synced = journal.steps.len();
        }
    }
}

fn by_key(records: Vec<Record>) -> BTreeMap<Bytes, Bytes> {
    records.into_iter().map(|Record { key, value }| (key, value)).collect()
}

/// An image behind the name of the last entry that it reflects.
struct Named {
    name: Option<Bytes>,
    image: Box<dyn Chunks>,
}

#[async_trait]
impl Chunks for Named {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        match self.name.take() {
            Some(name) => Ok(Some(name)),
            None => self.image.next().await,
        }
    }
}

fn name(LogId { term, index }: LogId) -> Bytes {
    let mut name = BytesMut::with_capacity(NAME);
    name.put_u64(term.0);
    name.put_u64(index.0);
    name.freeze()
}

/// The whole of an image, and its name.
async fn unname(mut image: Box<dyn Chunks>) -> Result<(LogId, Bytes), Fatal> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = image.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    if bytes.len() < NAME {
        return Err(Fatal::state_machine("the image has no name"));
    }
    let upto = LogId::new(bytes.get_u64(), bytes.get_u64());
    Ok((upto, bytes.freeze()))
}

#[async_trait]
impl<M: StateMachine> StateMachine for Keeping<M> {
    async fn applied(&self) -> Result<LogId, Fatal> {
        if self.is_durable() { Ok(self.upto) } else { self.machine.applied().await }
    }

    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        self.last = at;
        self.machine.apply(at, command).await
    }

    async fn apply_batch(&mut self, batch: Vec<(LogId, Bytes)>) -> Result<Vec<Bytes>, Fatal> {
        self.last = batch.last().map_or(self.last, |(at, _)| *at);
        self.machine.apply_batch(batch).await
    }

    async fn apply_recorded(&mut self, batch: Recorded) -> Result<Vec<Bytes>, Fatal> {
        self.last = batch.commands.last().map_or(self.last, |(at, _)| *at);
        if !self.is_durable() {
            return self.machine.apply_recorded(batch).await;
        }
        let answers = match batch.commands.is_empty() {
            true => Vec::new(),
            false => self.machine.apply_batch(batch.commands.clone()).await?,
        };
        let changes = batch.changes(&answers);
        self.upto = batch.upto;
        self.note(changes.clone());
        self.commit(Step::Applied { commands: batch.commands, changes, upto: batch.upto });
        // The node may end between the commit and the answer.
        if batch.upto.index.0.is_multiple_of(5) {
            sleep(Duration::from_millis(1)).await;
        }
        Ok(answers)
    }

    async fn records(&self) -> Result<Option<Vec<Record>>, Fatal> {
        if !self.is_durable() {
            return self.machine.records().await;
        }
        let record = |(key, value): (&Bytes, &Bytes)| Record { key: key.clone(), value: value.clone() };
        Ok(Some(self.records.iter().map(record).collect()))
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        let image = self.machine.snapshot().await?;
        Ok(match self.kept {
            Kept::AsItIs => image,
            Kept::Nothing | Kept::Everything(_) => Box::new(Named { name: Some(name(self.last)), image }),
        })
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        if matches!(self.kept, Kept::AsItIs) {
            return self.machine.restore(image).await;
        }
        self.replace(image, Vec::new(), None).await
    }

    async fn restore_recorded(
        &mut self,
        image: Box<dyn Chunks>,
        records: Vec<Record>,
        upto: LogId,
    ) -> Result<(), Fatal> {
        if matches!(self.kept, Kept::AsItIs) {
            return self.machine.restore_recorded(image, records, upto).await;
        }
        self.replace(image, records, Some(upto)).await
    }
}
