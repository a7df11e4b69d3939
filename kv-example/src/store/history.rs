//! All versions of one key.

use std::sync::Arc;

use super::keys::Freed;
use super::version::Version;

/// How many versions one link of the chain holds at most: what a write copies when a frozen view shares the link.
const LINK: usize = 64;

/// The versions of a key, newest apart: reads of the newest, and keys that were written once, need nothing else.
#[derive(Clone, Debug)]
pub(crate) struct History {
    newest: Version,
    older: Option<Arc<Link>>,
}

/// A run of superseded versions, oldest first; never empty.
#[derive(Clone, Debug)]
struct Link {
    versions: Vec<Version>,
    older: Option<Arc<Link>>,
}

impl Freed {
    fn add(&mut self, version: &Version) {
        self.versions += 1;
        self.bytes += cost(version);
    }
}

/// What a superseded or newest version takes, estimated: itself and its place in the list.
pub(crate) fn cost(version: &Version) -> u64 {
    version.heap_size() + 16
}

impl History {
    pub(crate) fn new(newest: Version) -> Self {
        Self { newest, older: None }
    }

    pub(crate) fn newest(&self) -> &Version {
        &self.newest
    }

    /// Adds a version. One of the same revision is replaced: what a transaction wrote first is never seen outside.
    pub(crate) fn push(&mut self, version: Version) -> Freed {
        let mut freed = Freed::default();
        let superseded = std::mem::replace(&mut self.newest, version);
        if superseded.modified() == self.newest.modified() {
            freed.add(&superseded);
            return freed;
        }
        match &mut self.older {
            Some(link) if link.versions.len() < LINK => {
                let versions = &mut Arc::make_mut(link).versions;
                if versions.len() == versions.capacity() {
                    versions.reserve_exact(versions.len());
                }
                versions.push(superseded);
            }
            older => *older = Some(Arc::new(Link { versions: vec![superseded], older: older.take() })),
        }
        freed
    }

    /// The version in force at `revision`; a tombstone counts as one.
    pub(crate) fn at(&self, revision: i64) -> Option<&Version> {
        if self.newest.modified() <= revision {
            return Some(&self.newest);
        }
        let mut next = self.older.as_deref();
        while let Some(link) = next {
            let upto = link.versions.partition_point(|version| version.modified() <= revision);
            if upto > 0 {
                return link.versions.get(upto - 1);
            }
            next = link.older.as_deref();
        }
        None
    }

    /// Whether a compaction at `revision` leaves something to forget here.
    pub(crate) fn has_garbage(&self, revision: i64) -> bool {
        if self.newest.modified() <= revision {
            return self.older.is_some() || self.newest.is_tombstone();
        }
        let mut next = self.older.as_deref();
        while let Some(link) = next {
            let upto = link.versions.partition_point(|version| version.modified() <= revision);
            if upto > 0 {
                return upto > 1 || link.older.is_some() || link.versions[upto - 1].is_tombstone();
            }
            next = link.older.as_deref();
        }
        false
    }

    /// Forgets what a compaction at `revision` makes unreachable.
    pub(crate) fn compact(&mut self, revision: i64) -> (Freed, Keep) {
        let mut freed = Freed::default();
        if self.newest.modified() <= revision {
            free_chain(self.older.take(), &mut freed);
            if self.newest.is_tombstone() {
                freed.add(&self.newest);
                return (freed, Keep::Nothing);
            }
            return (freed, Keep::Some);
        }
        let mut place = &mut self.older;
        while place.as_ref().is_some_and(|link| link.versions.first().is_some_and(|v| v.modified() > revision)) {
            let Some(link) = place else { break };
            place = &mut Arc::make_mut(link).older;
        }
        let emptied = match place {
            None => false,
            Some(link) => {
                let link = Arc::make_mut(link);
                let upto = link.versions.partition_point(|version| version.modified() <= revision);
                let keeps_last = upto > 0 && !link.versions[upto - 1].is_tombstone();
                for version in link.versions.drain(..if keeps_last { upto - 1 } else { upto }) {
                    freed.add(&version);
                }
                link.versions.shrink_to_fit();
                free_chain(link.older.take(), &mut freed);
                link.versions.is_empty()
            }
        };
        if emptied {
            *place = None;
        }
        (freed, Keep::Some)
    }

    /// All versions that a compaction at `compacted` leaves, oldest first.
    pub(crate) fn reachable(&self, compacted: i64) -> Vec<&Version> {
        let mut newest_first = vec![&self.newest];
        let mut next = self.older.as_deref();
        while let Some(link) = next {
            newest_first.extend(link.versions.iter().rev());
            next = link.older.as_deref();
        }
        if let Some(in_force) = newest_first.iter().position(|version| version.modified() <= compacted) {
            let keeps = usize::from(!newest_first[in_force].is_tombstone());
            newest_first.truncate(in_force + keeps);
        }
        newest_first.reverse();
        newest_first
    }
}

/// What a compaction left of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// At least one version.
    Some,
    /// Nothing: the key was deleted.
    Nothing,
}

fn free_chain(chain: Option<Arc<Link>>, freed: &mut Freed) {
    let mut next = chain.as_deref();
    while let Some(link) = next {
        link.versions.iter().for_each(|version| freed.add(version));
        next = link.older.as_deref();
    }
}

/// Link by link: the derived drop would recurse, and overflow the stack on a key with a long past.
impl Drop for Link {
    fn drop(&mut self) {
        let mut next = self.older.take();
        while let Some(mut link) = next.and_then(Arc::into_inner) {
            next = link.older.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::version::Meta;
    use super::*;

    /// A key written at each of these revisions; a negative one deletes it.
    fn history(revisions: &[i64]) -> History {
        let mut all = revisions.iter().map(|&revision| {
            if revision < 0 {
                Version::tombstone(-revision)
            } else {
                Version::new(Meta { modified: revision, created: revision, version: 1 }, b"v")
            }
        });
        let mut history = History::new(all.next().expect("at least one revision"));
        all.for_each(|version| _ = history.push(version));
        history
    }

    fn revisions(history: &History) -> Vec<i64> {
        history.reachable(-1).iter().map(|v| if v.is_tombstone() { -v.modified() } else { v.modified() }).collect()
    }

    #[test]
    fn a_read_finds_the_version_in_force() {
        let all: Vec<i64> = (1..=300).map(|n| n * 10).collect();
        let history = history(&all);
        assert!(history.at(9).is_none());
        for revision in 10..3020 {
            let wanted = (revision / 10 * 10).min(3000);
            assert_eq!(history.at(revision).map(Version::modified), Some(wanted), "at {revision}");
        }
    }

    #[test]
    fn compaction_keeps_what_a_read_at_its_revision_or_later_needs() {
        let all: Vec<i64> = (1..=200).map(|n| if n % 7 == 0 { -n } else { n }).collect();
        for upto in 0..=201 {
            let mut compacted = history(&all);
            let garbage = compacted.has_garbage(upto);
            let wanted: Vec<i64> = compacted
                .reachable(upto)
                .iter()
                .map(|v| if v.is_tombstone() { -v.modified() } else { v.modified() })
                .collect();
            let (freed, keep) = compacted.compact(upto);
            assert_eq!(keep, Keep::Some);
            assert_eq!(revisions(&compacted), wanted, "compacted at {upto}");
            assert_eq!(freed.versions as usize, all.len() - wanted.len());
            assert_eq!(garbage, freed.versions > 0, "compacted at {upto}");
            assert!(!compacted.has_garbage(upto));
            for revision in upto.max(1)..=200 {
                let alive = history(&all).at(revision).filter(|v| !v.is_tombstone()).map(Version::modified);
                let now = compacted.at(revision).filter(|v| !v.is_tombstone()).map(Version::modified);
                assert_eq!(now, alive, "compacted at {upto}, read at {revision}");
            }
        }
    }

    #[test]
    fn nothing_is_left_of_a_deleted_key() {
        assert_eq!(history(&[1, 2, -3]).compact(3).1, Keep::Nothing);
        assert_eq!(history(&[1, 2, -3]).compact(2).1, Keep::Some);
    }

    #[test]
    fn a_frozen_copy_is_not_touched_by_writes_or_compaction() {
        let frozen = history(&(1..=150).collect::<Vec<_>>());
        let mut live = frozen.clone();
        live.push(Version::tombstone(151));
        live.compact(149);
        assert_eq!(revisions(&live), [149, 150, -151]);
        assert_eq!(revisions(&frozen), (1..=150).collect::<Vec<_>>());
    }

    #[test]
    fn a_second_write_of_one_revision_replaces_the_first() {
        let mut history = history(&[1, 5]);
        assert_eq!(history.push(Version::tombstone(5)).versions, 1);
        assert_eq!(revisions(&history), [1, -5]);
    }

    #[test]
    fn a_key_with_a_long_past_is_dropped_without_overflowing_the_stack() {
        let mut history = History::new(Version::tombstone(1));
        for revision in 2..1_000_000 {
            history.push(Version::tombstone(revision));
        }
        drop(history);
    }
}
