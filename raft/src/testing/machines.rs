//! Small state machines.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use super::lock;
use crate::error::Fatal;
use crate::traits::{Chunks, Record, RecordChange, Recorded, StateMachine};
use crate::types::LogId;

/// Collects an image.
async fn collect(mut image: Box<dyn Chunks>) -> Result<Bytes, Fatal> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = image.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

fn image(bytes: impl Into<Bytes>) -> Box<dyn Chunks> {
    Box::new(vec![bytes.into()].into_iter())
}

/// Keeps nothing, and answers every command with itself: what remains is the framework alone.
#[derive(Clone, Debug, Default)]
pub struct Echo;

#[async_trait]
impl StateMachine for Echo {
    async fn apply(&mut self, _at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        Ok(command)
    }

    async fn apply_batch(&mut self, batch: Vec<(LogId, Bytes)>) -> Result<Vec<Bytes>, Fatal> {
        Ok(batch.into_iter().map(|(_, command)| command).collect())
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        Ok(image(Bytes::new()))
    }

    async fn restore(&mut self, _image: Box<dyn Chunks>) -> Result<(), Fatal> {
        Ok(())
    }
}

/// A sum. A command is a number in decimal digits; the answer is the new sum in decimal digits. Clones share the sum: keep one to
/// read it.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// The sum of what was applied here.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn parse(text: &[u8]) -> Option<u64> {
        std::str::from_utf8(text).ok()?.parse().ok()
    }
}

#[async_trait]
impl StateMachine for Counter {
    async fn apply(&mut self, _at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        let Some(number) = Self::parse(&command) else { return Ok(Bytes::from_static(b"not a number")) };
        let sum = self.value().wrapping_add(number);
        self.0.store(sum, Ordering::Release);
        Ok(sum.to_string().into())
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        Ok(image(self.value().to_string()))
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        let bytes = collect(image).await?;
        let sum = Self::parse(&bytes).ok_or_else(|| Fatal::state_machine("the image holds no number"))?;
        self.0.store(sum, Ordering::Release);
        Ok(())
    }
}

/// Remembers every command with its id, and answers with the command. Clones share the memory: keep one to look at it.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Vec<(LogId, Bytes)>>>);

impl Recorder {
    /// What was applied here, in order.
    #[must_use]
    pub fn commands(&self) -> Vec<(LogId, Bytes)> {
        lock(&self.0).clone()
    }
}

#[async_trait]
impl StateMachine for Recorder {
    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        lock(&self.0).push((at, command.clone()));
        Ok(command)
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        let mut bytes = BytesMut::new();
        for (id, command) in lock(&self.0).iter() {
            for number in [id.term.0, id.index.0, command.len() as u64] {
                bytes.extend_from_slice(&number.to_be_bytes());
            }
            bytes.extend_from_slice(command);
        }
        Ok(image(bytes))
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        let mut bytes = collect(image).await?;
        let mut commands = Vec::new();
        let short = || Fatal::state_machine("the image of a recorder is cut short");
        while !bytes.is_empty() {
            let mut number = || {
                let eight = bytes.split_to_checked(8).and_then(|eight| eight[..].try_into().ok());
                eight.map(u64::from_be_bytes).ok_or_else(short)
            };
            let (term, index, len) = (number()?, number()?, number()?);
            let len = usize::try_from(len).map_err(|_| short())?;
            commands.push((LogId::new(term, index), bytes.split_to_checked(len).ok_or_else(short)?));
        }
        *lock(&self.0) = commands;
        Ok(())
    }
}

trait Split {
    fn split_to_checked(&mut self, at: usize) -> Option<Bytes>;
}

impl Split for Bytes {
    fn split_to_checked(&mut self, at: usize) -> Option<Bytes> {
        (at <= self.len()).then(|| self.split_to(at))
    }
}

/// A [`Recorder`] that is durable by itself: each clone has the same state, so a node that is started with a clone goes on where the one before has
/// ended. It keeps the framework's records of sessions with its state ([`StateMachine::apply_recorded`]).
#[derive(Clone, Debug, Default)]
pub struct Durable {
    commands: Recorder,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    upto: LogId,
    records: BTreeMap<Bytes, Bytes>,
}

impl Durable {
    /// What was applied, in order.
    #[must_use]
    pub fn commands(&self) -> Vec<(LogId, Bytes)> {
        self.commands.commands()
    }

    async fn replace(
        &mut self,
        image: Box<dyn Chunks>,
        records: Vec<Record>,
        last: Option<LogId>,
    ) -> Result<(), Fatal> {
        self.commands.restore(image).await?;
        let upto = last.unwrap_or_else(|| self.commands().last().map_or(LogId::ZERO, |(at, _)| *at));
        let records = records.into_iter().map(|Record { key, value }| (key, value)).collect();
        *lock(&self.kept) = Kept { upto, records };
        Ok(())
    }
}

#[async_trait]
impl StateMachine for Durable {
    async fn applied(&self) -> Result<LogId, Fatal> {
        Ok(lock(&self.kept).upto)
    }

    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        lock(&self.kept).upto = at;
        self.commands.apply(at, command).await
    }

    async fn apply_recorded(&mut self, batch: Recorded) -> Result<Vec<Bytes>, Fatal> {
        let answers = self.apply_batch(batch.commands.clone()).await?;
        let mut kept = lock(&self.kept);
        kept.upto = batch.upto;
        for change in batch.changes(&answers) {
            match change {
                RecordChange::Put(Record { key, value }) => kept.records.insert(key, value),
                RecordChange::Delete(key) => kept.records.remove(&key),
            };
        }
        Ok(answers)
    }

    async fn records(&self) -> Result<Option<Vec<Record>>, Fatal> {
        let records = lock(&self.kept).records.clone();
        Ok(Some(records.into_iter().map(|(key, value)| Record { key, value }).collect()))
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        self.commands.snapshot().await
    }

    async fn restore(&mut self, image: Box<dyn Chunks>) -> Result<(), Fatal> {
        self.replace(image, Vec::new(), None).await
    }

    async fn restore_recorded(
        &mut self,
        image: Box<dyn Chunks>,
        records: Vec<Record>,
        last: LogId,
    ) -> Result<(), Fatal> {
        self.replace(image, records, Some(last)).await
    }
}
