//! A file that is only read. What is written to it stays in memory: redb can't open a database without writing to it, and whoever only looks at one must
//! leave it as it is.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raftkv_storage_file::VfsFile;
use raftkv_storage_file::parts::read_full;

const PAGE: u64 = 4096;

/// The file, as it would be by now.
#[derive(Debug)]
pub(crate) struct Overlay {
    file: Arc<dyn VfsFile>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The pages that were written to, whole.
    pages: BTreeMap<u64, Vec<u8>>,
    len: u64,
    /// What of the file below is still there: a cut takes the rest away for good.
    below: u64,
}

impl Overlay {
    pub(crate) fn new(file: Arc<dyn VfsFile>) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self { file, state: Mutex::new(State { pages: BTreeMap::new(), len, below: len }) })
    }

    /// Nothing that holds this lock can leave its data half-changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page as it is below, with zeros behind the end.
    fn page_below(&self, page: u64, below: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE as usize];
        let there = below.saturating_sub(page * PAGE).min(PAGE) as usize;
        read_full(&*self.file, &mut bytes[..there], page * PAGE)?;
        Ok(bytes)
    }
}

/// The page of an offset, and where in it that is.
fn place(offset: u64) -> (u64, usize) {
    (offset / PAGE, (offset % PAGE) as usize)
}

impl VfsFile for Overlay {
    /// Up to the end of the page.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.state();
        let (page, at) = place(offset);
        let left = state.len.saturating_sub(offset).min(PAGE - at as u64) as usize;
        let n = buf.len().min(left);
        match state.pages.get(&page) {
            Some(bytes) => buf[..n].copy_from_slice(&bytes[at..at + n]),
            None => buf[..n].copy_from_slice(&self.page_below(page, state.below)?[at..at + n]),
        }
        Ok(n)
    }

    /// The same.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state();
        let (page, at) = place(offset);
        let n = buf.len().min(PAGE as usize - at);
        let mut bytes = match state.pages.remove(&page) {
            Some(bytes) => bytes,
            None => self.page_below(page, state.below)?,
        };
        bytes[at..at + n].copy_from_slice(&buf[..n]);
        state.pages.insert(page, bytes);
        state.len = state.len.max(offset + n as u64);
        Ok(n)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        self.set_len(len).map(|()| true)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        let (page, at) = place(len);
        if len < state.len && at > 0 {
            // What is cut off is zeros when the file grows again.
            let mut bytes = match state.pages.remove(&page) {
                Some(bytes) => bytes,
                None => self.page_below(page, state.below)?,
            };
            bytes[at..].fill(0);
            state.pages.insert(page, bytes);
        }
        state.pages.retain(|page, _| page * PAGE < len);
        (state.len, state.below) = (len, state.below.min(len));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use raftkv_storage_file::parts::write_all;
    use raftkv_storage_file::sim::SimDisk;
    use raftkv_storage_file::{Access, Vfs};

    use super::*;

    /// Beside a file that is changed in the same way.
    #[test]
    fn it_reads_like_a_file_that_was_written_to_and_leaves_the_one_below_alone() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let make = |name: &str| {
            let file = disk.open(&Path::new("/d").join(name), Access::Create).unwrap();
            write_all(&*file, &vec![7; 3 * PAGE as usize + 100], 0).unwrap();
            file
        };
        let (below, like) = (make("below"), make("like"));
        let overlay = Overlay::new(below.clone()).unwrap();
        let contents = |file: &dyn VfsFile| {
            let mut bytes = vec![1; file.len().unwrap() as usize + 10];
            let n = read_full(file, &mut bytes, 0).unwrap();
            bytes.truncate(n);
            bytes
        };
        let before = contents(&*below);
        type Change<'a> = &'a dyn Fn(&dyn VfsFile);
        let changes: [Change<'_>; 7] = [
            &|file| write_all(file, &[1; 10], PAGE - 5).unwrap(),
            &|file| write_all(file, &[2; 5000], 3 * PAGE + 90).unwrap(),
            &|file| file.set_len(2 * PAGE + 10).unwrap(),
            &|file| assert!(file.allocate(4 * PAGE + 1).unwrap()),
            &|file| write_all(file, &[3; 3], 2 * PAGE + 20).unwrap(),
            &|file| file.set_len(PAGE).unwrap(),
            &|file| write_all(file, &[4; 3], 6 * PAGE).unwrap(),
        ];
        for (n, change) in changes.iter().enumerate() {
            change(&overlay);
            change(&*like);
            assert!(contents(&overlay) == contents(&*like), "after change {n}");
        }
        assert!(contents(&*below) == before);
    }
}
