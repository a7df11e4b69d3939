use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::SnapshotMeta;
use crate::error::StorageError;

/// Who writes which image: the bookkeeping that [`Snapshot::begin`](super::Snapshot::begin) asks of a store. One value for each store.
#[derive(Debug, Default)]
pub struct Drafts(Mutex<Vec<(SnapshotMeta, Weak<()>)>>);

/// The right to write an image. Held by its writer; over when it is dropped, or when another begins the same image.
#[derive(Debug)]
pub struct Turn(Arc<()>);

impl Turn {
    /// Nobody's yet: see [`Drafts::give`].
    pub(super) fn new() -> Self {
        Self(Arc::new(()))
    }
}

impl Drafts {
    fn lock(&self) -> MutexGuard<'_, Vec<(SnapshotMeta, Weak<()>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins this image. `unfinished`: all that the store holds, this one among them or not. Says which of these are to be removed first, as nobody
    /// writes them and they need not be kept.
    #[must_use]
    pub fn begin(&self, meta: &SnapshotMeta, unfinished: Vec<SnapshotMeta>) -> (Turn, Vec<SnapshotMeta>) {
        let turn = Turn::new();
        let left = self.give(&turn, meta, unfinished);
        (turn, left)
    }

    /// [`Drafts::begin`], of whom holds this turn.
    pub(super) fn give(&self, turn: &Turn, meta: &SnapshotMeta, unfinished: Vec<SnapshotMeta>) -> Vec<SnapshotMeta> {
        let mut written = self.lock();
        written.retain(|(other, turn)| turn.strong_count() > 0 && other.id != meta.id);
        let mut left: Vec<_> = unfinished
            .into_iter()
            .filter(|image| image != meta && !written.iter().any(|(other, _)| other == image))
            .collect();
        left.sort_by_key(|image| image.last);
        // The newest stays, if it is newer than this one.
        if left.last().is_some_and(|newest| newest.last > meta.last && newest.id != meta.id) {
            left.pop();
        }
        written.push((meta.clone(), Arc::downgrade(&turn.0)));
        left
    }

    /// Of these images those that nobody writes.
    pub(super) fn left(&self, unfinished: impl Iterator<Item = SnapshotMeta>) -> Vec<SnapshotMeta> {
        let written = self.lock();
        let is_written =
            |image: &SnapshotMeta| written.iter().any(|(other, turn)| other == image && turn.strong_count() > 0);
        unfinished.filter(|image| !is_written(image)).collect()
    }

    /// Whether this is still whose turn it is: to be asked before anything is written.
    ///
    /// # Errors
    /// The image was begun anew meanwhile.
    pub fn check(&self, turn: &Turn) -> Result<(), StorageError> {
        let this = Arc::downgrade(&turn.0);
        if self.lock().iter().any(|(_, turn)| turn.ptr_eq(&this)) {
            return Ok(());
        }
        Err(StorageError::Misuse("the image was begun anew meanwhile".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traits::SnapshotId;
    use crate::types::{LogId, Membership};

    fn meta(id: u64, index: u64) -> SnapshotMeta {
        let membership = Membership::default();
        SnapshotMeta { id: SnapshotId(id), last: LogId::new(1, index), membership, membership_at: LogId::ZERO }
    }

    #[test]
    fn whoever_begins_an_image_has_it() {
        let drafts = Drafts::default();
        let (first, _) = drafts.begin(&meta(1, 1), Vec::new());
        let (other, _) = drafts.begin(&meta(2, 2), Vec::new());
        assert!(drafts.check(&first).is_ok() && drafts.check(&other).is_ok());
        let (second, _) = drafts.begin(&meta(1, 1), Vec::new());
        assert!(matches!(drafts.check(&first), Err(StorageError::Misuse(_))));
        assert!(drafts.check(&second).is_ok() && drafts.check(&other).is_ok());
    }

    #[test]
    fn of_what_nobody_writes_the_newest_stays_while_it_is_newer() {
        let drafts = Drafts::default();
        let all = vec![meta(4, 4), meta(2, 2), meta(3, 3)];
        let (_two, _) = drafts.begin(&meta(2, 2), Vec::new());
        let (_one, gone) = drafts.begin(&meta(1, 1), all.clone());
        assert_eq!(gone, [meta(3, 3)], "somebody writes the second, and the fourth is the newest");
        let (_five, gone) = drafts.begin(&meta(5, 5), all.clone());
        assert_eq!(gone, [meta(3, 3), meta(4, 4)]);
        let (_four, gone) = drafts.begin(&meta(4, 4), all);
        assert_eq!(gone, [meta(3, 3)], "what is begun is gone on with");
        let (_, gone) = drafts.begin(&meta(4, 9), vec![meta(4, 4), meta(4, 10)]);
        assert_eq!(gone, [meta(4, 4), meta(4, 10)], "another image of the same name");
    }
}
