//! The file below redb, with a checksum for each page that is verified whenever the page is read from it.
//!
//! redb has checksums of its own, and looks at them when it recovers from a crash. Afterwards it believes what it reads: a bit that flips on the disk would
//! become the answer to a read, the state from which the next command is applied, and a part of the next image, with which it goes to other nodes. A
//! checksum with each value would not do: damage in the pages between would hide keys, or show what they were long ago.
//!
//! ```text
//! page 0, 1       two slots for redb's header
//! group 0         two slots for the checksums of the group | 1020 pages of redb's
//! group 1         two slots for the checksums of the group | 1020 pages of redb's
//! ...
//! slot            CRC-32C of its number and all that follows | how many there were before (8 bytes) | 4 unused | 4080 bytes: checksums, or redb's header
//! checksum        4 bytes: CRC-32C of the page's number and its bytes; or 0, and then the page was never written, and is all zeros
//! ```
//!
//! What redb overwrites in place, its header, and what pages of different commits share, their checksums, must not depend on how a loss of power leaves a
//! sector that was just being written: old, new, or not to be read. So there are two slots. Between two syncs one of them is written, as often as need be,
//! and the other stays as it was synced; of those that are whole, the later counts.
//!
//! A slot that the disk damages later is taken for one that was torn: nobody can tell. For checksums that is told as soon as a page does not fit the older list. With
//! the older header the database is as it was one synced commit earlier at most, since no page is written before both slots hold the newest header. What it lacks is in
//! the log, or in an image that is newer than it is then and from which the node restores it. A start warns of it.
//!
//! Checksums wait in memory until the next sync. No harm comes from that: redb overwrites no page that a synced commit refers to, reads no other after a crash,
//! and syncs the pages of a commit before the header that refers to them, as all commits here that are synced are of two phases. What a disk never wrote,
//! although it said so, is not noticed by this.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::StorageBackend;

const PAGE: usize = 4096;
/// A checksum has so many bytes.
const SUM: usize = 4;
/// What comes before the body of a slot: its checksum, its sequence number, and four bytes for later.
const PREFIX: usize = 16;
const BODY: usize = PAGE - PREFIX;
/// Pages that share their slots.
const GROUP: u64 = (BODY / SUM) as u64;
/// A group with its slots.
const STRIDE: u64 = GROUP + 2;
/// Changed checksums of so many groups wait in memory: 4 MiB.
const MOST: usize = 1024;

/// A file of sealed pages. To redb it is one without.
#[derive(Debug)]
pub(super) struct Sealed<B> {
    file: B,
    /// Whoever writes slots or syncs them holds it, so that no slot is written while the other is still being synced. It is taken before `unsynced`.
    slots: Mutex<()>,
    unsynced: RwLock<Unsynced>,
}

/// What a loss of power would take.
#[derive(Debug, Default)]
struct Unsynced {
    /// The checksums of groups in which a page was written.
    changed: BTreeMap<u64, Sealing>,
    /// Slots that were written since the last sync.
    begun: BTreeSet<Slots>,
}

/// A pair of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slots {
    Header,
    /// Those of a group's checksums.
    Sums(u64),
}

/// What a slot holds.
#[derive(Clone, Debug)]
struct Sealing {
    sequence: u64,
    /// In which of the two it is.
    slot: u64,
    body: Vec<u8>,
}

impl Slots {
    /// Where the first of them lies.
    fn place(self) -> u64 {
        match self {
            Self::Header => 0,
            Self::Sums(group) => (2 + group * STRIDE) * PAGE as u64,
        }
    }

    /// The checksum of what a slot holds, which no other pair has.
    fn sum(self, from_sequence: &[u8]) -> [u8; SUM] {
        let number = match self {
            Self::Header => u64::MAX,
            Self::Sums(group) => group,
        };
        sum_of(number, from_sequence).to_le_bytes()
    }

    fn is_whole(self, slot: &[u8]) -> bool {
        let (sum, rest) = slot.split_at(SUM);
        self.sum(rest) == sum
    }

    fn unreadable(self) -> io::Error {
        match self {
            Self::Header => damage("the header of the database"),
            Self::Sums(group) => {
                let first = group * GROUP + 1;
                damage(&format!("the list of checksums of pages {first} to {} of the database", first + GROUP - 1))
            }
        }
    }

    /// Reads what counts: the later slot of those that are whole.
    fn read(self, file: &impl StorageBackend) -> io::Result<Sealing> {
        let mut both = vec![0; 2 * PAGE];
        read(file, self.place(), &mut both)?;
        let whole = (0..).zip(both.chunks(PAGE)).filter_map(|(slot, bytes)| {
            let sequence = u64::from_le_bytes(bytes[SUM..].first_chunk().copied()?);
            self.is_whole(bytes).then(|| Sealing { sequence, slot, body: bytes[PREFIX..].to_vec() })
        });
        if let Some(newest) = whole.max_by_key(|sealing| sealing.sequence) {
            return Ok(newest);
        }
        // The first write of a pair may have been cut off: what it was for is not referred to then.
        let never_written = both.chunks(PAGE).any(|slot| slot.iter().all(|byte| *byte == 0));
        if never_written && self != Self::Header {
            return Ok(Sealing { sequence: 0, slot: 1, body: vec![0; BODY] });
        }
        Err(self.unreadable())
    }
}

impl Sealing {
    /// The sums of these pages of the group.
    fn sums(&self, first: u64, pages: usize) -> &[u8] {
        // Below GROUP.
        let from = (index(first) as usize) * SUM;
        &self.body[from..from + pages * SUM]
    }

    fn set_sums(&mut self, first: u64, sums: impl Iterator<Item = [u8; SUM]>) {
        let from = index(first) as usize * SUM;
        for (place, sum) in self.body[from..].chunks_exact_mut(SUM).zip(sums) {
            place.copy_from_slice(&sum);
        }
    }
}

/// The group of a page, which is not the header.
fn group(page: u64) -> u64 {
    (page - 1) / GROUP
}

/// Which page of its group it is.
fn index(page: u64) -> u64 {
    (page - 1) % GROUP
}

/// Where a page lies, which is not the header.
fn place(page: u64) -> u64 {
    (2 + group(page) * STRIDE + 2 + index(page)) * PAGE as u64
}

/// How long a file is in which redb sees so many pages, its header among them.
fn sealed_len(pages: u64) -> u64 {
    let others = pages.saturating_sub(1);
    (pages.min(1) * 2 + others + others.div_ceil(GROUP) * 2) * PAGE as u64
}

/// How many pages redb sees in a file of this length.
fn pages_in(len: u64) -> u64 {
    let Some(others) = (len / PAGE as u64).checked_sub(2) else { return 0 };
    1 + others / STRIDE * GROUP + (others % STRIDE).saturating_sub(2)
}

fn sum_of(page: u64, bytes: &[u8]) -> u32 {
    // Never that of a page that was never written.
    crc32c::crc32c_append(crc32c::crc32c(&page.to_le_bytes()), bytes).max(1)
}

/// A stretch of whole pages in parts that each lie in one group: the first page, and which bytes of the stretch.
fn parts(offset: u64, len: usize) -> io::Result<impl Iterator<Item = (u64, Range<usize>)>> {
    if !offset.is_multiple_of(PAGE as u64) || !len.is_multiple_of(PAGE) {
        return Err(io::Error::new(ErrorKind::InvalidInput, "this release of redb reads or writes parts of pages"));
    }
    let mut at = 0;
    Ok(std::iter::from_fn(move || {
        let page = (offset + at as u64) / PAGE as u64;
        // At most GROUP.
        let room = (GROUP - index(page)) as usize * PAGE;
        let part = at..len.min(at + room);
        at = part.end;
        (!part.is_empty()).then_some((page, part))
    }))
}

/// What was read is not what was written.
fn damage(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("{what} is not as it was written: its checksum does not match"))
}

fn cut_off() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "the file is cut off")
}

/// That the file ends too early is damage as well.
fn read(file: &impl StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
    file.read(offset, out).map_err(|error| if error.kind() == ErrorKind::UnexpectedEof { cut_off() } else { error })
}

impl<B: StorageBackend> Sealed<B> {
    /// Over a file that was written through this, or an empty one.
    pub(super) fn new(file: B) -> io::Result<Self> {
        if file.len()? > 0 {
            // A process that was killed may have left slots that no sync has reached; were the others written now, both could be lost.
            file.sync_data()?;
        }
        Ok(Self { file, slots: Mutex::default(), unsynced: RwLock::default() })
    }

    /// Whether one of the headers is not as it was written: a loss of power came while it was, or the disk has damaged it.
    pub(super) fn has_hurt_header(&self) -> io::Result<bool> {
        if self.file.len()? == 0 {
            return Ok(false);
        }
        let mut both = vec![0; 2 * PAGE];
        read(&self.file, Slots::Header.place(), &mut both)?;
        Ok(both.chunks(PAGE).any(|slot| !Slots::Header.is_whole(slot) && slot.iter().any(|byte| *byte != 0)))
    }

    // Who panicked with a lock in hand has left a page whose checksum tells that it is not to be trusted, or nothing.
    fn slots(&self) -> MutexGuard<'_, ()> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reading(&self) -> RwLockReadGuard<'_, Unsynced> {
        self.unsynced.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> RwLockWriteGuard<'_, Unsynced> {
        self.unsynced.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_header(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        let header = Slots::Header.read(&self.file)?.body;
        let part = header.get(offset..offset.saturating_add(out.len()));
        let part = part.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "a read beyond redb's header"))?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn write_header(&self, bytes: &[u8]) -> io::Result<()> {
        let mut body = vec![0; BODY];
        let header = body.get_mut(..bytes.len());
        let header = header.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "redb's header has grown"))?;
        header.copy_from_slice(bytes);
        let _alone = self.slots();
        let mut unsynced = self.writing();
        let (sequence, slot) = match Slots::Header.read(&self.file) {
            Ok(Sealing { sequence, slot, .. }) => (sequence, slot),
            // A new file has none yet.
            Err(error) if error.kind() == ErrorKind::InvalidData => (0, 1),
            Err(error) => return Err(error),
        };
        self.write_slot(&mut unsynced, Slots::Header, &Sealing { sequence, slot, body })
    }

    /// Sees to it that both slots hold the newest header before a page is written. The other refers to a commit before the last, whose pages may be
    /// overwritten from now on: should the newest be hurt one day, that must not be what a start goes back to.
    fn repeat_header(&self) -> io::Result<()> {
        if self.reading().begun.contains(&Slots::Header) {
            return Ok(());
        }
        let _alone = self.slots();
        let mut unsynced = self.writing();
        match Slots::Header.read(&self.file) {
            Ok(header) => self.write_slot(&mut unsynced, Slots::Header, &header),
            // A new file has none yet.
            Err(error) if error.kind() == ErrorKind::InvalidData => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes what succeeds the present contents of a pair of slots.
    fn write_slot(&self, unsynced: &mut Unsynced, slots: Slots, sealing: &Sealing) -> io::Result<()> {
        // The one that was written last is the one that may be lost; the other is as it was synced.
        let slot = if unsynced.begun.contains(&slots) { sealing.slot } else { 1 - sealing.slot };
        let mut bytes = vec![0; PAGE];
        bytes[SUM..SUM + 8].copy_from_slice(&(sealing.sequence + 1).to_le_bytes());
        bytes[PREFIX..].copy_from_slice(&sealing.body);
        let sum = slots.sum(&bytes[SUM..]);
        bytes[..SUM].copy_from_slice(&sum);
        self.file.write(slots.place() + slot * PAGE as u64, &bytes)?;
        // After an error the same one is to be written again.
        unsynced.begun.insert(slots);
        Ok(())
    }

    fn write_sums(&self, unsynced: &mut Unsynced) -> io::Result<()> {
        while let Some((group, sealing)) = unsynced.changed.pop_first() {
            if let Err(error) = self.write_slot(unsynced, Slots::Sums(group), &sealing) {
                // redb tries some writes again.
                unsynced.changed.insert(group, sealing);
                return Err(error);
            }
        }
        Ok(())
    }

    /// The checksums of a group, to be changed.
    fn changing<'a>(&self, unsynced: &'a mut Unsynced, group: u64) -> io::Result<&'a mut Sealing> {
        use std::collections::btree_map::Entry::{Occupied, Vacant};
        match unsynced.changed.entry(group) {
            Occupied(known) => Ok(known.into_mut()),
            Vacant(new) => Ok(new.insert(Slots::Sums(group).read(&self.file)?)),
        }
    }
}

impl<B: StorageBackend> StorageBackend for Sealed<B> {
    fn len(&self) -> io::Result<u64> {
        match self.file.len()? {
            0 => Ok(0),
            // An empty file becomes a new database; what is left of another must not.
            len if pages_in(len) == 0 => Err(cut_off()),
            len => Ok(pages_in(len) * PAGE as u64),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset < PAGE as u64 {
            // Below 4096.
            return self.read_header(offset as usize, out);
        }
        for (first, part) in parts(offset, out.len())? {
            let pages = &mut out[part];
            read(&self.file, place(first), pages)?;
            // Held while slots are read: nobody writes one meanwhile.
            let unsynced = self.reading();
            let on_disk;
            let sealing = match unsynced.changed.get(&group(first)) {
                Some(changed) => changed,
                None => {
                    on_disk = Slots::Sums(group(first)).read(&self.file)?;
                    &on_disk
                }
            };
            let sums = sealing.sums(first, pages.len() / PAGE).chunks(SUM);
            for ((page, bytes), sum) in (first..).zip(pages.chunks(PAGE)).zip(sums) {
                let never_written = || sum == [0; SUM] && bytes.iter().all(|byte| *byte == 0);
                if sum_of(page, bytes).to_le_bytes() != sum && !never_written() {
                    return Err(damage(&format!("page {page} of the database")));
                }
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let pages = len.div_ceil(PAGE as u64);
        let _alone = self.slots();
        let mut unsynced = self.writing();
        let before = pages_in(self.file.len()?);
        self.file.set_len(sealed_len(pages))?;
        let groups = pages.saturating_sub(1).div_ceil(GROUP);
        _ = unsynced.changed.split_off(&groups);
        // What comes back after a cut is blank, and has not been synced.
        _ = unsynced.begun.split_off(&Slots::Sums(groups));
        // Of the pages that are gone, the last group has checksums left: should they come again, they were never written. They come now where a loss of
        // power has left a file that was cut, and not what is said of its checksums here.
        let gone = pages.min(before).max(1);
        if index(gone) > 0 {
            // At most GROUP.
            let rest = (GROUP - index(gone)) as usize;
            let blank = std::iter::repeat_n([0; SUM], rest);
            self.changing(&mut unsynced, group(gone))?.set_sums(gone, blank);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let _alone = self.slots();
        self.write_sums(&mut self.writing())?;
        // Reads go on meanwhile.
        self.file.sync_data()?;
        self.writing().begun.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset < PAGE as u64 {
            return self.write_header(data);
        }
        self.repeat_header()?;
        for (first, part) in parts(offset, data.len())? {
            let pages = &data[part];
            self.file.write(place(first), pages)?;
            let sums = (first..).zip(pages.chunks(PAGE)).map(|(page, bytes)| sum_of(page, bytes).to_le_bytes());
            self.changing(&mut self.writing(), group(first))?.set_sums(first, sums);
        }
        if self.reading().changed.len() > MOST {
            let _alone = self.slots();
            self.write_sums(&mut self.writing())?;
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    locks_of_the_file!();
}
