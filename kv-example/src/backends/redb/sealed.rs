//! The file below redb, with a checksum for each page that is verified whenever the page is read from it.
//!
//! redb has checksums of its own, and looks at them when it recovers from a crash. Afterwards it believes what it reads: a bit that flips on the disk would
//! become the answer to a read, the state from which the next command is applied, and a part of the next image, with which it goes to other nodes. A
//! checksum with each value would not do: damage in the pages between would hide keys, or show what they were long ago.
//!
//! ```text
//! group 0    a page of checksums | 1024 pages of redb's
//! group 1    a page of checksums | 1024 pages of redb's
//! ...
//! checksum   four bytes: CRC-32C of the page's number and its bytes; or 0, and then the page was never written, and is all zeros
//! page 0     redb's header, up to 508 bytes, and the CRC-32C of these: in one sector, since redb overwrites it in place
//! ```
//!
//! A page and its checksum are written one after the other, and not at once. No harm comes from that: redb overwrites no page that a synced commit refers to,
//! reads no other after a crash, and syncs the pages of a commit before the header that refers to them, as all commits here that are synced are of two phases.
//! What a disk never wrote, although it said so, is not noticed by this.

use std::io::{self, ErrorKind};
use std::ops::{Bound, Range};

use redb::{BackendError, StorageBackend};

const PAGE: usize = 4096;
/// A checksum has so many bytes.
const SUM: usize = 4;
/// Pages that share a page of checksums.
const GROUP: u64 = (PAGE / SUM) as u64;
const SECTOR: usize = 512;
/// What a header may have.
const HEADER: usize = SECTOR - SUM;

/// A file of sealed pages. To redb it is one without.
#[derive(Debug)]
pub(super) struct Sealed<B>(B);

/// Where a page lies.
fn place(page: u64) -> u64 {
    (page + page / GROUP + 1) * PAGE as u64
}

/// Where its checksum lies.
fn place_of_sum(page: u64) -> u64 {
    page / GROUP * (GROUP + 1) * PAGE as u64 + page % GROUP * SUM as u64
}

/// How long a file is in which redb sees so many pages.
fn sealed_len(pages: u64) -> u64 {
    (pages + pages.div_ceil(GROUP)) * PAGE as u64
}

/// How many pages redb sees in a file of this length.
fn pages_in(len: u64) -> u64 {
    let pages = len / PAGE as u64;
    pages / (GROUP + 1) * GROUP + (pages % (GROUP + 1)).saturating_sub(1)
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
        let room = (GROUP - page % GROUP) as usize * PAGE;
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
    pub(super) fn new(file: B) -> Self {
        Self(file)
    }

    fn read_header(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        let mut sector = [0; SECTOR];
        read(&self.0, place(0), &mut sector)?;
        let (header, sum) = sector.split_at(HEADER);
        if sum_of(0, header).to_le_bytes() != sum {
            return Err(damage("the header of the database"));
        }
        let part = header.get(offset..offset.saturating_add(out.len()));
        let part = part.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "a read beyond redb's header"))?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn write_header(&self, bytes: &[u8]) -> io::Result<()> {
        let mut sector = [0; SECTOR];
        let header = sector.get_mut(..bytes.len()).filter(|_| bytes.len() <= HEADER);
        let header = header.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "redb's header has grown"))?;
        header.copy_from_slice(bytes);
        let sum = sum_of(0, &sector[..HEADER]);
        sector[HEADER..].copy_from_slice(&sum.to_le_bytes());
        self.0.write(place(0), &sector)
    }
}

impl<B: StorageBackend> StorageBackend for Sealed<B> {
    fn len(&self) -> io::Result<u64> {
        match self.0.len()? {
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
            read(&self.0, place(first), pages)?;
            let mut sums = vec![0; pages.len() / PAGE * SUM];
            read(&self.0, place_of_sum(first), &mut sums)?;
            for ((page, bytes), sum) in (first..).zip(pages.chunks(PAGE)).zip(sums.chunks(SUM)) {
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
        let before = pages_in(self.0.len()?);
        self.0.set_len(sealed_len(pages))?;
        // Of the pages that are gone, some checksums may be left: should they come again, they were never written.
        let end = before.min(pages.next_multiple_of(GROUP));
        match end.checked_sub(pages) {
            None | Some(0) => Ok(()),
            // At most GROUP.
            Some(gone) => self.0.write(place_of_sum(pages), &vec![0; gone as usize * SUM]),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset < PAGE as u64 {
            return self.write_header(data);
        }
        for (first, part) in parts(offset, data.len())? {
            let pages = &data[part];
            let sums = (first..).zip(pages.chunks(PAGE)).flat_map(|(page, bytes)| sum_of(page, bytes).to_le_bytes());
            let sums: Vec<u8> = sums.collect();
            self.0.write(place(first), pages)?;
            self.0.write(place_of_sum(first), &sums)?;
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;

    fn page(seed: u64) -> Vec<u8> {
        (0..PAGE as u64).map(|n| ((n ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
    }

    #[test]
    fn lengths_and_places_fit_each_other() {
        for pages in [0, 1, 2, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP, 5 * GROUP + 7] {
            assert_eq!(pages_in(sealed_len(pages)), pages);
            if pages > 0 {
                assert!(place(pages - 1) + PAGE as u64 == sealed_len(pages), "{pages} pages end elsewhere");
            }
        }
        assert_eq!((place(0), place_of_sum(0)), (4096, 0));
        assert_eq!((place(GROUP), place_of_sum(GROUP)), ((GROUP + 2) * 4096, (GROUP + 1) * 4096));
    }

    #[test]
    fn what_is_written_is_read_within_a_group_and_across_its_end() {
        let file = Sealed::new(InMemoryBackend::new());
        file.set_len((GROUP + 10) * PAGE as u64).expect("room");
        file.write(0, &[9; 320]).expect("a header");
        let written: Vec<u8> = (0..4).flat_map(page).collect();
        let across = (GROUP - 2) * PAGE as u64;
        for at in [PAGE as u64, across] {
            file.write(at, &written).expect("a write");
            let mut got = vec![0; written.len()];
            file.read(at, &mut got).expect("a read");
            assert!(got == written);
        }
        let mut header = [0; 9];
        file.read(0, &mut header).expect("a read");
        assert_eq!(header, [9; 9]);
        let mut never = vec![1; 2 * PAGE];
        file.read(8 * PAGE as u64, &mut never).expect("a read of what was never written");
        assert!(never.iter().all(|byte| *byte == 0));
        assert_eq!(file.len().expect("a length"), (GROUP + 10) * PAGE as u64);
    }

    #[test]
    fn pages_that_were_cut_off_and_come_again_are_blank() {
        let file = Sealed::new(InMemoryBackend::new());
        file.set_len(8 * PAGE as u64).expect("room");
        file.write(6 * PAGE as u64, &page(1)).expect("a write");
        file.set_len(3 * PAGE as u64).expect("a cut");
        file.set_len(8 * PAGE as u64).expect("room");
        let mut got = vec![1; PAGE];
        file.read(6 * PAGE as u64, &mut got).expect("a read");
        assert!(got.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_left_of_a_database_is_no_empty_file() {
        let file = Sealed::new(InMemoryBackend::new());
        assert_eq!(file.len().expect("a length"), 0);
        file.0.set_len(5000).expect("room");
        assert_eq!(file.len().expect_err("it is cut off").kind(), ErrorKind::InvalidData);
    }

    /// Also a page that belongs elsewhere, which is whole in itself.
    #[test]
    fn a_flipped_bit_in_any_byte_and_a_page_in_the_wrong_place_are_noticed() {
        let file = Sealed::new(InMemoryBackend::new());
        file.set_len(4 * PAGE as u64).expect("room");
        file.write(0, &[7; 320]).expect("a header");
        (1..4).for_each(|n| file.write(n * PAGE as u64, &page(n)).expect("a write"));
        let whole = || {
            let mut header = [0; 320];
            let mut pages = vec![0; 3 * PAGE];
            file.read(0, &mut header).and_then(|()| file.read(PAGE as u64, &mut pages))
        };
        whole().expect("good pages");
        let checked = [(SUM as u64, 3 * SUM), (place(0), SECTOR), (place(1), 3 * PAGE)];
        for (from, len) in checked {
            for at in from..from + len as u64 {
                let mut byte = [0];
                file.0.read(at, &mut byte).expect("a byte");
                file.0.write(at, &[byte[0] ^ 1 << (at % 8)]).expect("damage");
                let error = whole().expect_err("damage passed");
                assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
                file.0.write(at, &byte).expect("its repair");
            }
        }
        whole().expect("good pages");
        let mut sums = [0; 2 * SUM];
        file.0.read(place_of_sum(1), &mut sums).expect("checksums");
        sums.rotate_left(SUM);
        file.0.write(place_of_sum(1), &sums).expect("damage");
        file.0.write(place(1), &[page(2), page(1)].concat()).expect("damage");
        assert!(whole().is_err(), "two pages changed places");
    }
}
