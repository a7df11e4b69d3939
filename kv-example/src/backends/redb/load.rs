//! An image, on its way into tables of its own.

use std::sync::Arc;

use raftkv::Fatal;

use super::database::Core;
use super::tables::cost;
use crate::store::key::Key;
use crate::store::keys::{Freed, Pushed, Sink};
use crate::store::version::Version;

/// What is written in one transaction.
const PART: u64 = 4 << 20;
/// Every so many parts one is durable, so that what waits for the disk does not grow with the image.
const DURABLE: u64 = 64;

/// Takes the versions of an image, by key and oldest first, and writes them part by part. It looks nothing up.
#[derive(Debug)]
pub(super) struct Fresh {
    core: Arc<Core>,
    generation: u64,
    /// The newest version so far of the key that the image is at.
    last: Option<(Key, Version)>,
    newest: Vec<(Key, Version)>,
    older: Vec<(Key, Version)>,
    bytes: u64,
    parts: u64,
    /// Why nothing more is written.
    failed: Option<Fatal>,
}

impl Fresh {
    pub(super) fn begin(core: Arc<Core>) -> Result<Self, Fatal> {
        let generation = core.begin_restore()?;
        let (newest, older) = (Vec::new(), Vec::new());
        Ok(Self { core, generation, last: None, newest, older, bytes: 0, parts: 0, failed: None })
    }

    /// Whether everything so far could be written.
    pub(super) fn check(&self) -> Result<(), Fatal> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Writes the rest; the tables are complete.
    pub(super) fn end(&mut self) -> Result<u64, Fatal> {
        self.check()?;
        self.newest.extend(self.last.take());
        self.write()?;
        Ok(self.generation)
    }

    fn write(&mut self) -> Result<(), Fatal> {
        self.parts += 1;
        self.bytes = 0;
        let (newest, older) = (std::mem::take(&mut self.newest), std::mem::take(&mut self.older));
        self.core.load(self.generation, self.parts.is_multiple_of(DURABLE), |tables| {
            for (key, version) in newest {
                tables.newest.insert(key.as_ref(), version.as_bytes())?;
            }
            for (key, version) in older {
                tables.older.insert((key.as_ref(), version.modified()), version.as_bytes())?;
            }
            Ok(())
        })
    }
}

impl Sink for Fresh {
    fn push(&mut self, key: &[u8], version: Version) -> Pushed {
        let added = cost(key, version.as_bytes());
        let was_alive = match self.last.take() {
            Some((last, before)) if last.as_ref() == key => {
                let was_alive = !before.is_tombstone();
                self.older.push((last, before));
                was_alive
            }
            other => {
                self.newest.extend(other);
                false
            }
        };
        self.last = Some((Key::new(key), version));
        self.bytes += added;
        if self.bytes >= PART
            && self.failed.is_none()
            && let Err(fatal) = self.write()
        {
            self.failed = Some(fatal);
        }
        Pushed { added, freed: Freed::default(), was_alive }
    }
}
