//! Places and lengths, damage, and losses of power that tear what was being written.

use redb::backends::InMemoryBackend;

use super::*;

fn page(seed: u64) -> Vec<u8> {
    (0..PAGE as u64).map(|n| ((n ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
}

fn sealed() -> Sealed<InMemoryBackend> {
    Sealed::new(InMemoryBackend::new()).expect("memory")
}

#[test]
fn lengths_and_places_fit_each_other() {
    for pages in [0, 1, 2, GROUP, GROUP + 1, GROUP + 2, 2 * GROUP + 1, 5 * GROUP + 7] {
        assert_eq!(pages_in(sealed_len(pages)), pages);
        if pages > 1 {
            assert!(place(pages - 1) + PAGE as u64 == sealed_len(pages), "{pages} pages end elsewhere");
        }
    }
    assert_eq!((place(1), Slots::Sums(0).place()), (4 * 4096, 2 * 4096));
    assert_eq!((place(GROUP + 1), Slots::Sums(1).place()), ((GROUP + 6) * 4096, (GROUP + 4) * 4096));
}

#[test]
fn what_is_written_is_read_within_a_group_and_across_its_end() {
    let file = sealed();
    file.set_len((GROUP + 10) * PAGE as u64).expect("room");
    file.write(0, &[9; 320]).expect("a header");
    let written: Vec<u8> = (0..4).flat_map(page).collect();
    let across = (GROUP - 1) * PAGE as u64;
    for at in [PAGE as u64, across] {
        file.write(at, &written).expect("a write");
    }
    for synced in [false, true] {
        for at in [PAGE as u64, across] {
            let mut got = vec![0; written.len()];
            file.read(at, &mut got).expect("a read");
            assert!(got == written, "synced: {synced}");
        }
        file.sync_data().expect("a sync");
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
    for synced in [false, true] {
        let file = sealed();
        let (few, many) = (3 * PAGE as u64, (GROUP + 8) * PAGE as u64);
        let cut = [6 * PAGE as u64, (GROUP + 6) * PAGE as u64];
        file.set_len(many).expect("room");
        for at in cut {
            file.write(at, &page(1)).expect("a write");
        }
        if synced {
            file.sync_data().expect("a sync");
        }
        file.set_len(few).expect("a cut");
        file.set_len(many).expect("room");
        for at in cut {
            let mut got = vec![1; PAGE];
            file.read(at, &mut got).expect("a read");
            assert!(got.iter().all(|byte| *byte == 0));
        }
    }
}

/// The length is the file system's, and may be on the disk though nothing was synced since.
#[test]
fn pages_that_a_loss_of_power_has_left_cut_off_are_blank_when_they_come_again() {
    let (few, many) = (3 * PAGE as u64, (GROUP + 8) * PAGE as u64);
    for (before, after) in [(many, 7 * PAGE as u64), (10 * PAGE as u64, many)] {
        let file = sealed();
        file.set_len(before).expect("room");
        let pages = [2, 5, 6].map(|at| at * PAGE as u64);
        pages.iter().for_each(|at| file.write(*at, &page(1)).expect("a write"));
        file.sync_data().expect("a sync");
        file.set_len(few).expect("a cut");
        let file = Sealed::new(file.file).expect("what is left");
        assert_eq!(file.len().expect("a length"), few);
        file.set_len(after).expect("room");
        for synced in [false, true] {
            for at in pages {
                let mut got = vec![1; PAGE];
                file.read(at, &mut got).expect("a read");
                let wanted = if at < few { page(1) } else { vec![0; PAGE] };
                assert!(got == wanted, "synced: {synced}");
            }
            file.sync_data().expect("a sync");
        }
    }
}

#[test]
fn what_is_left_of_a_database_is_no_empty_file() {
    let file = sealed();
    assert_eq!(file.len().expect("a length"), 0);
    file.file.set_len(5000).expect("room");
    assert_eq!(file.len().expect_err("it is cut off").kind(), ErrorKind::InvalidData);
}

/// Also a page that belongs elsewhere, which is whole in itself.
#[test]
fn a_flipped_bit_in_any_byte_and_a_page_in_the_wrong_place_are_noticed() {
    let file = sealed();
    file.set_len(4 * PAGE as u64).expect("room");
    (1..4).for_each(|n| file.write(n * PAGE as u64, &page(n)).expect("a write"));
    file.write(0, &[7; 320]).expect("a header");
    file.sync_data().expect("a sync");
    let whole = || {
        let mut header = [0; 320];
        let mut pages = vec![0; 3 * PAGE];
        file.read(0, &mut header).and_then(|()| file.read(PAGE as u64, &mut pages))
    };
    whole().expect("good pages");
    // The only slots that were written, and the pages.
    let checked = [(0, PAGE), (Slots::Sums(0).place(), PAGE), (place(1), 3 * PAGE)];
    for (from, len) in checked {
        for at in from..from + len as u64 {
            let mut byte = [0];
            file.file.read(at, &mut byte).expect("a byte");
            file.file.write(at, &[byte[0] ^ 1 << (at % 8)]).expect("damage");
            let error = whole().expect_err("damage passed");
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            file.file.write(at, &byte).expect("its repair");
        }
    }
    whole().expect("good pages");
    file.file.write(place(1), &[page(2), page(1)].concat()).expect("damage");
    assert!(whole().is_err(), "two pages changed places");
}

/// Otherwise a start would go back to a commit whose pages have been overwritten since, if the newest header is ever hurt.
#[test]
fn no_page_is_written_while_a_slot_still_has_an_older_header() {
    let file = sealed();
    file.set_len(9 * PAGE as u64).expect("room");
    for commit in 1..=2 {
        file.write(0, &[commit; 320]).expect("a header");
        file.sync_data().expect("a sync");
    }
    file.write(PAGE as u64, &page(1)).expect("a write");
    for hurt in [0, PAGE as u64] {
        let mut slot = vec![0; PAGE];
        file.file.read(hurt, &mut slot).expect("a slot");
        file.file.write(hurt, &page(0)).expect("damage");
        let mut header = [0; 320];
        file.read(0, &mut header).expect("the other slot");
        assert_eq!(header, [2; 320]);
        file.file.write(hurt, &slot).expect("its repair");
    }
}

/// What lies on the disk is what was synced, and of what was written since, each sector is old, new, or garbage.
#[derive(Debug, Default)]
struct Torn {
    now: InMemoryBackend,
    synced: Mutex<Vec<u8>>,
}

impl Torn {
    fn bytes(&self) -> Vec<u8> {
        let mut all = vec![0; self.now.len().expect("a length") as usize];
        self.now.read(0, &mut all).expect("all of it");
        all
    }

    /// The file after a loss of power.
    fn after(&self, random: &mut fastrand::Rng, sector: usize) -> InMemoryBackend {
        let synced = self.synced.lock().expect("the lock");
        let mut now = self.bytes();
        for (at, bytes) in now.chunks_mut(sector).enumerate() {
            let from = at * sector;
            let blank = vec![0; bytes.len()];
            let old = synced.get(from..from + bytes.len()).unwrap_or(&blank);
            if bytes != old {
                match random.u8(..3) {
                    0 => bytes.copy_from_slice(old),
                    1 => random.fill(bytes),
                    _ => {}
                }
            }
        }
        let file = InMemoryBackend::new();
        file.set_len(now.len() as u64).expect("room");
        file.write(0, &now).expect("a write");
        file
    }
}

impl StorageBackend for Torn {
    fn len(&self) -> io::Result<u64> {
        self.now.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.now.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.now.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        *self.synced.lock().expect("the lock") = self.bytes();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.now.write(offset, data)
    }
}

/// A sector that was being written when the power went took the header along, or the checksums of pages that had been synced long before.
#[test]
fn what_was_synced_survives_a_torn_header_and_torn_checksums() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let file = Sealed::new(Torn::default()).expect("memory");
        let pages = GROUP + 20;
        file.set_len(pages * PAGE as u64).expect("room");
        file.write(0, &[0; 320]).expect("a header");
        file.sync_data().expect("a sync");
        // Like redb's: a page that was synced is not written again before a sync that does without it.
        let (mut synced, mut written) = (BTreeMap::new(), BTreeMap::new());
        let mut headers = vec![0];
        for commit in 1..random.u8(2..8) {
            for _ in 0..random.u8(..6) {
                let at = [1, GROUP - 8][random.usize(..2)] + random.u64(..16);
                if synced.contains_key(&at) {
                    continue;
                }
                file.write(at * PAGE as u64, &page(seed ^ at)).expect("a write");
                written.insert(at, page(seed ^ at));
            }
            if random.bool() {
                file.write(0, &[commit; 320]).expect("a header");
                headers.push(commit);
            }
            if random.bool() {
                file.sync_data().expect("a sync");
                synced.append(&mut written);
                headers.drain(..headers.len() - 1);
            }
            let sector = [512, PAGE][random.usize(..2)];
            let mut after = Sealed::new(file.file.after(&mut random, sector)).expect("memory");
            for again in [false, true] {
                let mut header = [0; 320];
                after.read(0, &mut header).expect("the header");
                assert!(headers.contains(&header[0]), "seed {seed}: {} is none of {headers:?}", header[0]);
                for (at, bytes) in &synced {
                    let mut got = vec![0; PAGE];
                    after.read(at * PAGE as u64, &mut got).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                    assert!(got == *bytes, "seed {seed}: page {at}");
                }
                if !again {
                    // What was torn is written over, and torn again.
                    let torn = Torn { now: after.file, synced: Mutex::default() };
                    let next = Sealed::new(torn).expect("memory");
                    for at in [18, GROUP + 15] {
                        next.write(at * PAGE as u64, &page(7)).expect("a write");
                    }
                    next.write_sums(&mut next.writing()).expect("a write");
                    after = Sealed::new(next.file.after(&mut random, 512)).expect("memory");
                }
            }
        }
    }
}
