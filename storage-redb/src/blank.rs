//! Room that a file has, and that nothing was ever written to.
//!
//! Room that was only reserved is known to the file system as such, and with the first write to any of it, it has to note that this is no longer so:
//! more to write for the next sync, and to wait for. A log that grows would pay for that with nearly every commit. So zeros are written over a stretch
//! of such room when the first page of it is used, and one commit pays for the many that use the rest.

use std::collections::BTreeMap;
use std::ops::Range;

/// How much is filled at once: next to nothing beside what a disk writes in the time of a sync, and enough for the pages of some dozen commits.
const PIECE: u64 = 256 << 10;
/// The same without threads, where tests and simulators go through all that can become of each sector between two syncs.
const PIECE_INLINE: u64 = 8 << 10;

/// The blank room of a file.
#[derive(Debug)]
pub(crate) struct Blank {
    /// Where stretches of it begin, and where they end. They neither overlap nor touch.
    stretches: BTreeMap<u64, u64>,
    /// It is used in pieces of this many bytes, which begin at multiples of it.
    piece: u64,
}

impl Blank {
    /// For a file of a store that has a thread of its own, or none.
    pub(crate) fn new(background: bool) -> Self {
        Self { stretches: BTreeMap::new(), piece: if background { PIECE } else { PIECE_INLINE } }
    }

    /// Nothing was written to these bytes, which come after all that were told of before.
    pub(crate) fn add(&mut self, room: Range<u64>) {
        if room.is_empty() {
            return;
        }
        match self.stretches.last_entry() {
            Some(mut last) if *last.get() == room.start => *last.get_mut() = room.end,
            Some(_) | None => drop(self.stretches.insert(room.start, room.end)),
        }
    }

    /// The file is cut to this length.
    pub(crate) fn cut(&mut self, len: u64) {
        self.stretches.split_off(&len);
        if let Some(mut last) = self.stretches.last_entry() {
            *last.get_mut() = len.min(*last.get());
        }
    }

    /// These bytes are about to be written to: what has to be filled with zeros before, which is blank no more.
    pub(crate) fn take(&mut self, bytes: Range<u64>) -> Vec<Range<u64>> {
        let (first, last) = (self.start_of_piece(bytes.start), self.end_of_piece(bytes.end));
        let mut taken = Vec::new();
        // From the end, as long as a stretch reaches into it.
        while let Some((&start, &end)) = self.stretches.range(..last).next_back().filter(|(_, end)| **end > first) {
            self.stretches.remove(&start);
            if start < first {
                self.stretches.insert(start, first);
            }
            if end > last {
                self.stretches.insert(last, end);
            }
            taken.push(start.max(first)..end.min(last));
        }
        taken
    }

    fn start_of_piece(&self, at: u64) -> u64 {
        at - at % self.piece
    }

    fn end_of_piece(&self, at: u64) -> u64 {
        at.checked_next_multiple_of(self.piece).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use raftkv::testing::Random;

    use super::*;

    /// Beside one that knows of each byte whether it is blank.
    #[test]
    fn what_is_taken_is_blank_and_covers_the_piece_of_what_is_written() {
        const PIECE: usize = PIECE_INLINE as usize;
        let mut random = Random::new(1);
        let mut below = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
        let (mut blank, mut is_blank) = (Blank::new(false), Vec::new());
        let (mut filled, mut cuts) = (0, 0);
        for _ in 0..2000 {
            match below(10) {
                0 if is_blank.len() < 40 * PIECE => {
                    let before = is_blank.len();
                    is_blank.resize(before + below(5 * PIECE), true);
                    blank.add(before as u64..is_blank.len() as u64);
                }
                1 => {
                    let len = is_blank.len() - below(1 + is_blank.len() / 8);
                    is_blank.truncate(len);
                    blank.cut(len as u64);
                    cuts += 1;
                }
                _ if is_blank.is_empty() => {}
                _ => {
                    let start = below(is_blank.len());
                    let end = start + 1 + below((is_blank.len() - start).min(3 * PIECE));
                    for taken in blank.take(start as u64..end as u64) {
                        let taken = usize::try_from(taken.start).unwrap()..usize::try_from(taken.end).unwrap();
                        let bytes = &mut is_blank[taken.clone()];
                        assert!(bytes.iter().all(|blank| *blank), "{taken:?} is not all blank");
                        bytes.fill(false);
                        filled += taken.len();
                    }
                    let piece = start / PIECE * PIECE..end.next_multiple_of(PIECE).min(is_blank.len());
                    assert!(
                        is_blank[piece].iter().all(|blank| !*blank),
                        "{start} to {end} is still blank, or next to it"
                    );
                }
            }
            let blank_bytes: u64 = blank.stretches.iter().map(|(start, end)| end - start).sum();
            assert_eq!(blank_bytes, is_blank.iter().filter(|blank| **blank).count() as u64);
        }
        assert!(filled > 40 * PIECE && cuts > 50, "{filled} bytes filled, {cuts} cuts");
    }
}
