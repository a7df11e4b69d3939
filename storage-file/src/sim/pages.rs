//! The bytes of a file, in pieces that copies share until one of them changes: a recording keeps an image of the disk before each operation,
//! and a database has a megabyte from its first hour.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// Some sectors.
const PIECE: usize = 4096;

static ZEROS: LazyLock<Arc<[u8; PIECE]>> = LazyLock::new(|| Arc::new([0; PIECE]));

/// Bytes. What lies beyond the length is zero.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    pieces: Vec<Arc<[u8; PIECE]>>,
    len: usize,
}

impl Pages {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Cuts the bytes, or adds zeros.
    pub(super) fn resize(&mut self, len: usize) {
        let within = len % PIECE;
        self.pieces.resize_with(len.div_ceil(PIECE), || Arc::clone(&ZEROS));
        if len < self.len
            && within > 0
            && let Some(last) = self.pieces.last_mut()
        {
            Arc::make_mut(last)[within..].fill(0);
        }
        self.len = len;
    }

    /// Fills `buf` from `at` on, as far as there is something, and tells how far.
    pub(super) fn read(&self, at: usize, buf: &mut [u8]) -> usize {
        let n = buf.len().min(self.len.saturating_sub(at));
        let mut done = 0;
        while done < n {
            let (piece, within) = ((at + done) / PIECE, (at + done) % PIECE);
            let take = (PIECE - within).min(n - done);
            buf[done..done + take].copy_from_slice(&self.pieces[piece][within..within + take]);
            done += take;
        }
        n
    }

    /// The bytes of a range, as far as there are some.
    pub(super) fn get(&self, range: Range<usize>) -> Vec<u8> {
        let mut buf = vec![0; range.end.min(self.len).saturating_sub(range.start)];
        self.read(range.start, &mut buf);
        buf
    }

    /// Puts bytes at `at`, as far as the length reaches.
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        let n = bytes.len().min(self.len.saturating_sub(at));
        let mut done = 0;
        while done < n {
            let (piece, within) = ((at + done) / PIECE, (at + done) % PIECE);
            let take = (PIECE - within).min(n - done);
            Arc::make_mut(&mut self.pieces[piece])[within..within + take].copy_from_slice(&bytes[done..done + take]);
            done += take;
        }
    }

    /// Flips bits of a byte, if there is one.
    pub(super) fn flip(&mut self, at: usize, bits: u8) {
        let mut byte = [0];
        if self.read(at, &mut byte) == 1 {
            self.write(at, &[byte[0] ^ bits]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_bytes() {
        let (mut pages, mut bytes) = (Pages::default(), Vec::new());
        let mut copies = Vec::new();
        for step in 0..400_usize {
            let at = step * 7919 % 20_000;
            let data: Vec<u8> = (0..step * 31 % 9000).map(|n| (n + step).to_le_bytes()[0]).collect();
            if step % 5 == 0 {
                pages.resize(at);
                bytes.resize(at, 0);
            }
            if step % 50 == 0 {
                copies.push((pages.clone(), bytes.clone()));
            }
            pages.write(at / 2, &data);
            let from = (at / 2).min(bytes.len());
            let to = (from + data.len()).min(bytes.len());
            bytes[from..to].copy_from_slice(&data[..to - from]);
            pages.flip(at, 3);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 3;
            }
            assert_eq!(pages.get(0..usize::MAX), bytes, "step {step}");
            assert_eq!(pages.get(at / 3..at), bytes[(at / 3).min(bytes.len())..at.min(bytes.len())]);
        }
        for (pages, bytes) in copies {
            assert_eq!(pages.get(0..usize::MAX), bytes, "a copy changed with its original");
        }
    }
}
