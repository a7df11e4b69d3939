//! Watches what the state machines are given: the same commands at the same places on every node, each once, in order, with the
//! same answers.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use tokio::time::{Instant, sleep};

use super::record::Record;
use super::vouched::Memory;
use crate::error::Fatal;
use crate::testing::lock;
use crate::traits::{Chunks, Record as Kept, Recorded, StateMachine};
use crate::types::{Index, LogId, NodeId};

/// Names one command of one client, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Tag(pub(super) u64);

impl Tag {
    /// The command as it goes through the log: behind its name, so that it is known again.
    pub(super) fn mark(self, command: &[u8]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(8 + command.len());
        bytes.extend_from_slice(&self.0.to_be_bytes());
        bytes.extend_from_slice(command);
        bytes.freeze()
    }

    fn unmark(mut marked: Bytes) -> Option<(Self, Bytes)> {
        (marked.len() >= 8).then(|| (Self(marked.get_u64()), marked))
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Applied {
    id: LogId,
    tag: Tag,
    command: u64,
    /// Unknown until the first machine has answered.
    answer: Option<u64>,
}

/// Commands, each at its place.
type Commands = Vec<(LogId, Bytes)>;

/// All that was applied anywhere. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    record: Record,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    by_index: BTreeMap<Index, Applied>,
    /// All commands in order, where machines are compared with one that was given them all.
    commands: BTreeMap<LogId, Bytes>,
    by_tag: BTreeMap<Tag, Index>,
    /// What clients were told: the answer to a command.
    answered: Vec<(Vec<(Tag, u64)>, NodeId)>,
    /// What clients were told has happened, without an answer.
    told: BTreeSet<Tag>,
    /// What clients were told never happens.
    refused: BTreeSet<Tag>,
    /// The last command that each node's state machine has applied in its present run; unknown after an image.
    reached: BTreeMap<NodeId, Option<Index>>,
    /// State machines that hang, until then.
    hanging: BTreeMap<NodeId, Instant>,
}

impl Ledger {
    pub(super) fn new(record: Record) -> Self {
        Self { record, state: Arc::default() }
    }

    /// A client was given these answers, to commands that it wrote together.
    pub(super) fn answered(&self, node: NodeId, answers: &[(Tag, Bytes)]) {
        let answers = answers.iter().map(|(tag, answer)| (*tag, hash(answer))).collect();
        lock(&self.state).answered.push((answers, node));
    }

    /// A client was told that the command was not and will not be applied.
    pub(super) fn refused(&self, tag: Tag) {
        lock(&self.state).refused.insert(tag);
    }

    /// A node's state machine hangs from now on, until then; or not any more.
    pub(super) fn hang(&self, node: NodeId, until: Option<Instant>) {
        let mut state = lock(&self.state);
        match until {
            Some(until) => drop(state.hanging.insert(node, until)),
            None => drop(state.hanging.remove(&node)),
        }
    }

    /// Waits as long as a node's state machine hangs.
    async fn while_hanging(&self, node: NodeId) {
        let hangs = || lock(&self.state).hanging.get(&node).is_some_and(|until| Instant::now() < *until);
        while hangs() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// A node's state machine has come so far.
    fn reach(&self, node: NodeId, index: Option<Index>) {
        lock(&self.state).reached.insert(node, index);
    }

    /// Whether a node's state machine reflects a command, which is the one with this id.
    pub(super) fn reflects(&self, node: NodeId, id: LogId, tag: Tag) -> bool {
        let state = lock(&self.state);
        let there = state.by_index.get(&id.index).is_some_and(|applied| applied.id == id && applied.tag == tag);
        there && state.reached.get(&node).is_some_and(|reached| reached.is_none_or(|index| index >= id.index))
    }

    /// A client was told that the command was applied.
    pub(super) fn told(&self, tag: Tag) {
        lock(&self.state).told.insert(tag);
    }

    /// How many commands were applied.
    pub(super) fn len(&self) -> usize {
        lock(&self.state).by_index.len()
    }

    /// How many of them at or below an index.
    fn up_to(&self, index: Index) -> usize {
        lock(&self.state).by_index.range(..=index).count()
    }

    /// All commands up to an index, in order; none where they are not kept.
    pub(super) fn commands(&self, upto: Index) -> Commands {
        let state = lock(&self.state);
        let upto = state.commands.iter().take_while(|(id, _)| id.index <= upto);
        upto.map(|(id, command)| (*id, command.clone())).collect()
    }

    /// A node's state machine has answered a command that it was given.
    fn answer(&self, node: NodeId, id: LogId, answer: u64) -> Result<(), String> {
        let mut state = lock(&self.state);
        let Some(applied) = state.by_index.get_mut(&id.index) else { return Ok(()) };
        match *applied.answer.get_or_insert(answer) {
            known if known == answer => Ok(()),
            known => Err(format!(
                "{node} applied the same command, with a different answer at {id}: {known:x} elsewhere, {answer:x} here"
            )),
        }
    }

    /// A node's state machine is given a command.
    fn give(&self, node: NodeId, after: Index, applied: Applied) -> Result<(), String> {
        let mut state = lock(&self.state);
        let Applied { id, tag, .. } = applied;
        if id.index <= after {
            return Err(format!("{node} applied {id} after index {}", after.0));
        }
        if let Some((skipped, _)) = state.by_index.range(after.next()..id.index).next() {
            return Err(format!("{node} applied {id}, but skipped index {}, which another applied", skipped.0));
        }
        if let Some(known) = state.by_index.get(&id.index) {
            if (known.id, known.tag, known.command) == (id, tag, applied.command) {
                return Ok(());
            }
            return Err(format!("{node} applied a different command at {id}: {known:?} elsewhere, {applied:?} here"));
        }
        if let Some((last, _)) = state.by_index.last_key_value()
            && *last > id.index
        {
            return Err(format!(
                "{node} applied a command at {id}, which others passed over on their way to {}",
                last.0
            ));
        }
        if let Some(first) = state.by_tag.insert(tag, id.index) {
            return Err(format!("command {:x} was applied twice, at {} and {}", tag.0, first.0, id.index.0));
        }
        state.by_index.insert(id.index, applied);
        Ok(())
    }

    /// What must be true when all is over: what was acknowledged is there, with the answer that was given, and what was
    /// refused is not.
    pub(super) fn settle(&self) -> Result<(), String> {
        let state = lock(&self.state);
        for tag in &state.refused {
            if let Some(index) = state.by_tag.get(tag) {
                return Err(format!("command {:x} was refused, but applied at {}", tag.0, index.0));
            }
        }
        for tag in &state.told {
            if !state.by_tag.contains_key(tag) {
                return Err(format!("command {:x} is said to be applied, and nobody applied it", tag.0));
            }
        }
        for (answers, node) in &state.answered {
            let mut before: Option<Index> = None;
            for (tag, answer) in answers {
                let Some(index) = state.by_tag.get(tag) else {
                    return Err(format!("{node} acknowledged command {:x}, and nobody applied it", tag.0));
                };
                if state.by_index.get(index).is_none_or(|applied| applied.answer != Some(*answer)) {
                    return Err(format!("{node} gave another answer to command {:x} than the state machines", tag.0));
                }
                if before.is_some_and(|before| before.next() != *index) {
                    return Err(format!(
                        "{node} applied others between commands that were written together, at {}",
                        index.0
                    ));
                }
                before = Some(*index);
            }
        }
        Ok(())
    }
}

/// A user's state machine, watched.
#[derive(Debug)]
pub(super) struct Witness<M> {
    machine: M,
    node: NodeId,
    ledger: Ledger,
    /// The last command applied here.
    last: Index,
    /// How many were applied here; unknown before the first one after an image.
    count: Option<usize>,
    /// Where machines are durable by themselves: notes when something begins to be done to what they keep.
    watch: Option<(Memory, u64)>,
    /// Held as long as the runtime holds the state machine.
    _alive: Arc<()>,
}

impl<M: StateMachine> Witness<M> {
    pub(super) fn new(machine: M, node: NodeId, ledger: Ledger, alive: Arc<()>) -> Self {
        ledger.reach(node, Some(Index::ZERO));
        Self { machine, node, ledger, last: Index::ZERO, count: Some(0), watch: None, _alive: alive }
    }

    /// The machine is durable by itself, and reflects everything up to here.
    pub(super) fn goes_on(self, reflected: Index, memory: Memory, run: u64) -> Self {
        self.ledger.reach(self.node, Some(reflected));
        let count = Some(self.ledger.up_to(reflected));
        Self { last: reflected, count, watch: Some((memory, run)), ..self }
    }

    fn broken(&self, what: String) -> Fatal {
        self.ledger.record.violated(what.clone());
        Fatal::state_machine(what)
    }

    /// Takes the names off commands that the machine is given, and notes that it is: it may go down before it has answered, and have applied them.
    fn give(&mut self, batch: Commands) -> Result<(Vec<(LogId, Tag)>, Commands), Fatal> {
        let mut plain = Vec::with_capacity(batch.len());
        let mut marks = Vec::with_capacity(batch.len());
        for (id, marked) in batch {
            let Some((tag, command)) = Tag::unmark(marked) else {
                return Err(self.broken(format!("{} was given a command at {id} that nobody wrote", self.node)));
            };
            if self.count.is_none() {
                self.last = id.index.prev();
            }
            let applied = Applied { id, tag, command: hash(&command), answer: None };
            self.ledger.give(self.node, self.last, applied).map_err(|what| self.broken(what))?;
            if self.watch.is_some() {
                lock(&self.ledger.state).commands.entry(id).or_insert_with(|| command.clone());
            }
            self.last = id.index;
            self.count = Some(self.count.map_or_else(|| self.ledger.up_to(id.index), |count| count + 1));
            marks.push((id, tag));
            plain.push((id, command));
        }
        Ok((marks, plain))
    }

    /// The machine has answered.
    fn answered(&self, marks: Vec<(LogId, Tag)>, answers: &[Bytes]) -> Result<(), Fatal> {
        if answers.len() != marks.len() {
            return Ok(());
        }
        for ((id, tag), answer) in marks.into_iter().zip(answers) {
            let answer = hash(answer);
            self.ledger.record.step((self.node, id, answer), || {
                let text = format!("applies {:x} at {id}", tag.0);
                crate::testing::simulation::TraceEvent::Node { node: self.node, text }
            });
            self.ledger.answer(self.node, id, answer).map_err(|what| self.broken(what))?;
        }
        self.ledger.reach(self.node, self.count.map(|_| self.last));
        if self.count.is_some_and(|count| count != self.ledger.up_to(self.last)) {
            let what = format!("other commands: {} did not apply all that others did up to {}", self.node, self.last.0);
            return Err(self.broken(what));
        }
        Ok(())
    }
}

#[async_trait]
impl<M: StateMachine> StateMachine for Witness<M> {
    async fn applied(&self) -> Result<LogId, Fatal> {
        self.machine.applied().await
    }

    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        let mut answers = self.apply_batch(vec![(at, command)]).await?;
        answers.pop().ok_or_else(|| Fatal::state_machine("no answer"))
    }

    async fn apply_batch(&mut self, batch: Vec<(LogId, Bytes)>) -> Result<Vec<Bytes>, Fatal> {
        self.ledger.while_hanging(self.node).await;
        let (marks, plain) = self.give(batch)?;
        let answers = watched(&self.watch, self.machine.apply_batch(plain)).await?;
        self.answered(marks, &answers)?;
        Ok(answers)
    }

    async fn apply_recorded(&mut self, mut batch: Recorded) -> Result<Vec<Bytes>, Fatal> {
        self.ledger.while_hanging(self.node).await;
        let (marks, plain) = self.give(std::mem::take(&mut batch.commands))?;
        batch.commands = plain;
        let answers = watched(&self.watch, self.machine.apply_recorded(batch)).await?;
        self.answered(marks, &answers)?;
        Ok(answers)
    }

    async fn records(&self) -> Result<Option<Vec<Kept>>, Fatal> {
        self.machine.records().await
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        let chunks = self.machine.snapshot().await?;
        Ok(Box::new(WatchedChunks { chunks, watch: self.watch.clone() }))
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        self.count = None;
        self.ledger.reach(self.node, None);
        watched(&self.watch, self.machine.restore(image)).await
    }

    async fn restore_recorded(&mut self, image: Box<dyn Chunks>, records: Vec<Kept>, last: LogId) -> Result<(), Fatal> {
        self.count = None;
        self.ledger.reach(self.node, None);
        watched(&self.watch, self.machine.restore_recorded(image, records, last)).await
    }
}

/// Does something to what a machine keeps.
async fn watched<T>(watch: &Option<(Memory, u64)>, work: impl Future<Output = Result<T, Fatal>>) -> Result<T, Fatal> {
    match watch {
        Some((memory, run)) => memory.watch(*run, work).await,
        None => work.await,
    }
}

/// An image, whose end may have to wait for the disk.
struct WatchedChunks {
    chunks: Box<dyn Chunks>,
    watch: Option<(Memory, u64)>,
}

#[async_trait]
impl Chunks for WatchedChunks {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        watched(&self.watch, self.chunks.next()).await
    }
}
