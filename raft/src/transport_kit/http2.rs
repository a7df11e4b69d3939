//! What the HTTP/2 library of a server refuses by itself: it tells the client, and nobody else. So it is found in what is written.
//!
//! | what is refused | what is written |
//! |---|---|
//! | a header that is too large | `:status 431` and nothing more, which ends its stream; no answer of a service is as short |
//! | one that is much too large, or never ends (a flood of CONTINUATION frames) | the end of the connection, with these words or this code |
//! | one stream more than a connection may have open | a reset with REFUSED_STREAM, which means nothing else (RFC 9113 §8.7) |
//!
//! In a block of header fields (RFC 7541) a status that was written out once is in a table, and is referred to by its position from then on, counted from
//! the newest entry. So from the first 431 of a connection on its place in that table is kept track of.

use std::io::IoSlice;

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2Refusal {
    /// A header that is too large.
    Header,
    /// A stream beyond those that a connection may have open.
    Stream,
}

/// Looks through what a server writes on one HTTP/2 connection.
#[derive(Debug, Default)]
pub struct Http2Refusals {
    /// How much of the frame that is passing is of no interest.
    pass: usize,
    /// The beginning of a frame.
    held: Vec<u8>,
    /// How many entries were put into the table after that of status 431, once there is one.
    age: Option<usize>,
}

/// A frame begins with its length in three bytes, its type, its flags, and its stream in four bytes (RFC 9113 §4.1).
const HEAD_BYTES: usize = 9;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 0x01;
const END_HEADERS: u8 = 0x04;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
/// Codes of errors (§7).
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
/// A status alone, and a change of the table's size, fit into this.
const SHORT: usize = 16;
/// No answer has more fields than fit into this.
const LONG: usize = 16 << 10;
/// What the library says of a header that is much too large.
const MUCH_TOO_LARGE: [&[u8]; 2] = [b"header_list_way_too_large", b"too_many_continuations"];
/// How 431 is written out (RFC 7541 §5.2): as it is, or in Huffman's code.
const TOO_LARGE: [&[u8]; 2] = [b"\x03431", b"\x83\x69\x90\xff"];
/// The names of these entries of the table that all begin with are `:status` (appendix A). What is put into it comes behind the last one.
const STATUS: std::ops::RangeInclusive<usize> = 8..=14;
const LAST_STATIC: usize = 61;

impl Http2Refusals {
    /// Looks at what was written next.
    pub fn written(&mut self, mut bytes: &[u8], mut refused: impl FnMut(Http2Refusal)) {
        while !bytes.is_empty() {
            if self.pass > 0 {
                let now = take(&mut bytes, self.pass);
                self.pass -= now.len();
                continue;
            }
            let wanted = if self.held.len() < HEAD_BYTES { HEAD_BYTES } else { HEAD_BYTES + length(&self.held) };
            let more = take(&mut bytes, wanted - self.held.len());
            self.held.extend_from_slice(more);
            self.release(&mut refused);
        }
    }

    /// The same where so many bytes of these pieces were written.
    pub fn written_of(&mut self, pieces: &[IoSlice<'_>], mut count: usize, mut refused: impl FnMut(Http2Refusal)) {
        for piece in pieces {
            let now = count.min(piece.len());
            self.written(&piece[..now], &mut refused);
            count -= now;
        }
    }

    fn release(&mut self, refused: &mut impl FnMut(Http2Refusal)) {
        let Some((head, payload)) = self.held.split_at_checked(HEAD_BYTES) else { return };
        let length = length(head);
        if !self.is_of_interest(head, length) {
            self.pass = length;
            self.held.clear();
        } else if payload.len() == length {
            let held = std::mem::take(&mut self.held);
            if let Some((head, payload)) = held.split_at_checked(HEAD_BYTES)
                && let Some(refusal) = self.refusal(head, payload)
            {
                refused(refusal);
            }
            self.held = held;
            self.held.clear();
        }
    }

    fn is_of_interest(&self, head: &[u8], length: usize) -> bool {
        let ends = head[4] & (END_STREAM | END_HEADERS) == END_STREAM | END_HEADERS;
        match head[3] {
            HEADERS => (ends && length <= SHORT) || (self.age.is_some() && length <= LONG),
            RST_STREAM | GOAWAY => length <= LONG,
            _ => false,
        }
    }

    fn refusal(&mut self, head: &[u8], payload: &[u8]) -> Option<Http2Refusal> {
        let number = |at: usize| payload.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        match head[3] {
            HEADERS => self.is_too_large(head[4], payload).then_some(Http2Refusal::Header),
            RST_STREAM => (number(0) == Some(REFUSED_STREAM)).then_some(Http2Refusal::Stream),
            // The last stream, the code, and words.
            GOAWAY => {
                let of_header = number(4) == Some(COMPRESSION_ERROR)
                    || payload.get(8..).is_some_and(|w| MUCH_TOO_LARGE.contains(&w));
                of_header.then_some(Http2Refusal::Header)
            }
            _ => None,
        }
    }

    /// Whether the block says that a header was too large, and nothing else.
    fn is_too_large(&mut self, flags: u8, block: &[u8]) -> bool {
        let read = if flags & (PADDED | PRIORITY) == 0 && flags & END_HEADERS != 0 {
            Fields { age: self.age, count: 0, too_large: false }.read(block)
        } else {
            // No server that is looked at here writes so.
            None
        };
        self.age = read.as_ref().and_then(|fields| fields.age);
        flags & END_STREAM != 0 && read.is_some_and(|fields| fields.too_large && fields.count == 1)
    }
}

/// What a block of header fields says.
struct Fields {
    age: Option<usize>,
    count: usize,
    too_large: bool,
}

impl Fields {
    fn read(mut self, block: &[u8]) -> Option<Self> {
        let mut at = 0;
        while at < block.len() {
            // RFC 7541 §6: the first bits say what it is; the number after them is a position in the table, or the new size of that.
            let (bits, is_literal) = representation(*block.get(at)?);
            let (name, next) = integer(block, at, bits)?;
            at = next;
            if bits == INDEXED {
                self.count += 1;
                self.too_large |= self.age.is_some_and(|age| name == LAST_STATIC + 1 + age);
            } else if is_literal {
                self.count += 1;
                if name == 0 {
                    at = after_string(block, at)?;
                }
                let end = after_string(block, at)?;
                let is_it =
                    STATUS.contains(&name) && block.get(at..end).is_some_and(|value| TOO_LARGE.contains(&value));
                at = end;
                self.too_large |= is_it;
                if bits == INSERTED {
                    self.age = if is_it { Some(0) } else { self.age.map(|age| age + 1) };
                }
            }
        }
        Some(self)
    }
}

/// The number of bits behind those that say what a field is.
const INDEXED: u32 = 7;
const INSERTED: u32 = 6;

/// How many bits the number has that a field begins with, in blocks of header fields (RFC 7541 §6), and whether a value follows it.
#[must_use]
pub const fn representation(first: u8) -> (u32, bool) {
    match first {
        0x80.. => (INDEXED, false),
        0x40..=0x7f => (INSERTED, true),
        0x20..=0x3f => (5, false),
        ..=0x1f => (4, true),
    }
}

/// A number that begins with the last `bits` of a byte (RFC 7541 §5.1), and what comes after it.
#[must_use]
pub fn integer(block: &[u8], mut at: usize, bits: u32) -> Option<(usize, usize)> {
    let most = (1 << bits) - 1;
    let mut number = usize::from(*block.get(at)?) & most;
    at += 1;
    if number < most {
        return Some((number, at));
    }
    for shift in [0, 7, 14, 21] {
        let byte = *block.get(at)?;
        at += 1;
        number += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((number, at));
        }
    }
    None
}

/// What comes after a string (RFC 7541 §5.2).
#[must_use]
pub fn after_string(block: &[u8], at: usize) -> Option<usize> {
    let (length, from) = integer(block, at, 7)?;
    from.checked_add(length).filter(|end| *end <= block.len())
}

/// Splits off as many bytes as there are of so many.
fn take<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(most.min(bytes.len()));
    *bytes = rest;
    taken
}

/// The length of a frame's payload.
fn length(head: &[u8]) -> usize {
    head.iter().take(3).fold(0, |length, byte| length << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// What is found in this, whatever the pieces are that it is written in.
    fn found(bytes: &[u8]) -> Vec<Http2Refusal> {
        let mut all = Vec::new();
        Http2Refusals::default().written(bytes, |refusal| all.push(refusal));
        for piece in [1, 2, 7, 10, 33] {
            let (mut refusals, mut in_pieces) = (Http2Refusals::default(), Vec::new());
            let pieces: Vec<_> = bytes.chunks(piece).map(IoSlice::new).collect();
            for pieces in pieces.chunks(3) {
                refusals.written_of(pieces, bytes.len(), |refusal| in_pieces.push(refusal));
            }
            assert_eq!(in_pieces, all, "in pieces of {piece}");
        }
        all
    }

    const ENDS: u8 = END_STREAM | END_HEADERS;
    /// `:status 200`, `a: b` to be put into the table; and trailers, of which the table has the only one.
    const ANSWER: &[u8] = b"\x88\x40\x01a\x01b";
    const LITERAL: &[u8] = b"\x48\x83\x69\x90\xff";

    #[test]
    fn a_header_that_is_refused_is_found_however_its_status_is_written() {
        let answers = [frame(4, 0, &[0; 12]), frame(HEADERS, END_HEADERS, ANSWER), frame(0, 0, &[0x48; 300])].concat();
        let trailers = frame(HEADERS, ENDS, b"\xbe");
        let first = frame(HEADERS, ENDS, LITERAL);
        // Its entry is the newest; then another one is, and then it is written out again.
        let later = [frame(HEADERS, ENDS, b"\xbe"), frame(HEADERS, END_HEADERS, ANSWER), frame(HEADERS, ENDS, b"\xbf")];
        let again = [frame(HEADERS, ENDS, LITERAL), frame(HEADERS, ENDS, b"\xbe"), frame(HEADERS, ENDS, b"\xbf")];
        let all = [&answers[..], &trailers, &first, &later.concat(), &again.concat(), &answers].concat();
        assert_eq!(found(&all), [Http2Refusal::Header; 5]);
        // Behind a change of the table's size; not to be put into it; never to be; as it is.
        for status in
            [b"\x3f\xe1\x1f\x48\x83\x69\x90\xff", &b"\x08\x83\x69\x90\xff"[..], b"\x18\x83\x69\x90\xff", b"\x48\x03431"]
        {
            assert_eq!(found(&frame(HEADERS, ENDS, status)), [Http2Refusal::Header]);
        }
    }

    #[test]
    fn what_ends_a_connection_over_a_header_is_found() {
        let end = |code: u32, words: &[u8]| frame(GOAWAY, 0, &[&[0, 0, 0, 1], &code.to_be_bytes(), words].concat());
        for (code, words) in [(11, MUCH_TOO_LARGE[0]), (11, MUCH_TOO_LARGE[1]), (COMPRESSION_ERROR, &b""[..])] {
            assert_eq!(found(&end(code, words)), [Http2Refusal::Header]);
        }
        for (code, words) in [(11, &b"too_many_resets"[..]), (0, b"")] {
            assert_eq!(found(&end(code, words)), []);
        }
    }

    #[test]
    fn streams_that_are_refused_are_found_and_no_other_resets() {
        let resets = [7_u32, 8, 7, 0].map(|code| frame(RST_STREAM, 0, &code.to_be_bytes())).concat();
        assert_eq!(found(&resets), [Http2Refusal::Stream; 2]);
    }

    #[test]
    fn everything_else_is_something_else() {
        // Other statuses and names, more fields, no end of the stream, an answer of a service, cut off, too large a number, padded.
        let others: [(u8, &[u8]); 9] = [
            (ENDS, b"\x88"),
            (ENDS, b"\x48\x82\x10\x03"),
            (ENDS, b"\x49\x03432"),
            (ENDS, b"\x44\x83\x69\x90\xff"),
            (ENDS, b"\x48\x83\x69\x90\xff\x88"),
            (END_HEADERS, LITERAL),
            (ENDS, b"\x48\x83\x69"),
            (ENDS, b"\x48\xff\xff\xff\xff\xff\xff\xff"),
            (ENDS | PADDED, LITERAL),
        ];
        for (flags, block) in others {
            assert_eq!(found(&frame(HEADERS, flags, block)), [], "{block:?}");
        }
        let huge = [&[0xff, 0xff, 0xff, GOAWAY], &[9; 100][..]].concat();
        assert_eq!(found(&huge), [], "too large a frame is not held back");
        assert_eq!(
            found(&[frame(RST_STREAM, 0, b""), frame(GOAWAY, 0, b"\0"), frame(HEADERS, ENDS, b"")].concat()),
            []
        );
    }
}
