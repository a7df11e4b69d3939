//! What a client calls this server is of no use here, and some of etcd's clients call it what HTTP/2 does not allow.
//!
//! etcd's client 3.4 asks single endpoints with the `:authority` `http://HOST:PORT` (`etcdctl endpoint status --cluster`), and 3.5.0 all of them with
//! `#initially=[…]`. etcd does not mind. Here the HTTP/2 library would reset the request with PROTOCOL_ERROR before anybody could, so a valid
//! value takes its place on the way in.
//!
//! In a block of header fields (RFC 7541) a value is written out once; it then is in a table, whose entries are referred to by their position,
//! counted from the newest. The table drops its oldest entries when it is full. The new value is never longer than the one it
//! replaces, so whatever is in the client's table is in the server's as well, at the same position.

use std::ops::Range;

use bytes::BytesMut;
use raftkv::transport_kit::http2::{after_string, integer, representation};

/// With this every connection begins (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;
/// A frame begins with its length in three bytes, its type, its flags, and its stream in four bytes (§4.1).
const HEAD_BYTES: usize = 9;
/// The largest frame that this server accepts: the protocol's default.
const MAX_FRAME_BYTES: usize = 16_384;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x04;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
/// The length of the new value, and the value.
const VALUE: &[u8] = b"\x01-";
/// `:authority` in the table of names that need not be written out (RFC 7541, appendix A).
const AUTHORITY: usize = 1;

/// Looks through what a client sends on one connection.
#[derive(Debug)]
pub(crate) struct Authorities {
    /// How much is to be passed on before the next frame begins.
    pass: usize,
    /// The beginning of a frame that must be whole before it is passed on.
    held: BytesMut,
    /// Whether the first frame has begun: settings, if the client speaks HTTP/2.
    greeted: bool,
    /// Whether what is passed on ends the headers of a request.
    ends_fields: bool,
    /// Whether somebody has asked for something: all headers of a request have come.
    asked: bool,
}

impl Default for Authorities {
    fn default() -> Self {
        Self { pass: PREFACE_BYTES, held: BytesMut::new(), greeted: false, ends_fields: false, asked: false }
    }
}

impl Authorities {
    /// How many of the next bytes can be passed on as they are, all of them most often. The others are for [`Authorities::push`], at once.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while self.held.is_empty() && at < bytes.len() {
            if self.pass == 0 {
                let Some((head, rest)) = bytes[at..].split_first_chunk() else { break };
                let payload = rest.get(..length(head));
                if has_fields(head) && payload.is_none_or(|payload| value_in_frame(head[4], payload).is_some()) {
                    break;
                }
                self.begin(*head);
                at += HEAD_BYTES;
            }
            let now = self.pass.min(bytes.len() - at);
            self.passed(now);
            at += now;
        }
        at
    }

    /// Takes the next bytes, and passes on what can be, with other authorities. At most one frame of headers is held back.
    pub(crate) fn push(&mut self, mut bytes: &[u8], out: &mut BytesMut) {
        while !bytes.is_empty() {
            if self.pass > 0 {
                let now = take(&mut bytes, self.pass);
                self.passed(now.len());
                out.extend_from_slice(now);
                continue;
            }
            let wanted = self.held.get(..HEAD_BYTES).map_or(HEAD_BYTES, |head| HEAD_BYTES + length(head));
            let more = take(&mut bytes, wanted - self.held.len());
            self.held.extend_from_slice(more);
            self.release(out);
        }
    }

    /// All that a connection does with what it has read.
    #[cfg(any(test, feature = "testing"))]
    fn feed(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let (as_it_is, rest) = bytes.split_at(self.pass(bytes));
        out.extend_from_slice(as_it_is);
        self.push(rest, out);
    }

    /// Whether what every connection begins with has come. From then on HTTP/2 has its own means against those who are silent.
    pub(crate) fn has_begun(&self) -> bool {
        self.greeted && self.pass == 0
    }

    /// Whether something has been asked for. Whoever only says that it speaks HTTP/2, or begins a request and leaves it at that, does not need its place yet.
    pub(crate) fn has_asked(&self) -> bool {
        self.asked
    }

    /// Passes on what is held back, as soon as it is known what it is.
    fn release(&mut self, out: &mut BytesMut) {
        let Some((&head, payload)) = self.held.split_first_chunk() else { return };
        let (length, has_fields) = (length(&head), has_fields(&head));
        self.greeted = true;
        if has_fields && payload.len() < length {
            return;
        }
        if let Some(value) = has_fields.then(|| value_in_frame(head[4], payload)).flatten() {
            let shorter = length - value.len() + VALUE.len();
            out.extend_from_slice(&(shorter as u32).to_be_bytes()[1..]);
            out.extend_from_slice(&head[3..]);
            out.extend_from_slice(&payload[..value.start]);
            out.extend_from_slice(VALUE);
            out.extend_from_slice(&payload[value.end..]);
        } else {
            out.extend_from_slice(&self.held);
        }
        self.held.clear();
        self.begin(head);
        if has_fields {
            self.passed(length);
        }
    }

    /// A frame begins, and its payload is next.
    fn begin(&mut self, head: [u8; HEAD_BYTES]) {
        self.greeted = true;
        self.pass = length(&head);
        // More headers than fit into one frame go on in others.
        self.ends_fields = (has_fields(&head) || head[3] == CONTINUATION) && head[4] & END_HEADERS != 0;
        self.passed(0);
    }

    /// So much more of a frame is passed on.
    fn passed(&mut self, bytes: usize) {
        self.pass -= bytes;
        self.asked |= self.ends_fields && self.pass == 0;
    }
}

/// Whether a frame is one of headers that is looked into.
fn has_fields(head: &[u8; HEAD_BYTES]) -> bool {
    head[3] == HEADERS && length(head) <= MAX_FRAME_BYTES
}

fn take<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(most.min(bytes.len()));
    *bytes = rest;
    taken
}

/// The length of a frame's payload.
fn length(head: &[u8]) -> usize {
    head[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
}

/// Where the value of `:authority` is in the payload of a frame of headers, its length included.
fn value_in_frame(flags: u8, payload: &[u8]) -> Option<Range<usize>> {
    let (mut from, mut to) = (0, payload.len());
    if flags & PADDED != 0 {
        from += 1;
        to = to.checked_sub(usize::from(*payload.first()?))?;
    }
    if flags & PRIORITY != 0 {
        from += 5;
    }
    let value = value_in_block(payload.get(from..to)?)?;
    Some(from + value.start..from + value.end)
}

/// Where the value of `:authority` is in a block of header fields, if it is written out there. None as well where this is no such block: whoever
/// reads it next says so.
fn value_in_block(block: &[u8]) -> Option<Range<usize>> {
    let mut at = 0;
    loop {
        let (bits, is_literal) = representation(*block.get(at)?);
        let (name, mut next) = integer(block, at, bits)?;
        if is_literal {
            if name == 0 {
                next = after_string(block, next)?;
            }
            let value = next..after_string(block, next)?;
            if name == AUTHORITY {
                // An empty one is as short as it can be.
                return Some(value).filter(|value| value.len() >= VALUE.len());
            }
            next = value.end;
        }
        at = next;
    }
}

/// For tests and fuzzing: what a connection passes on, when it gets these bytes in pieces.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn passed_on(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> BytesMut {
    let (mut authorities, mut out) = (Authorities::default(), BytesMut::new());
    pieces.into_iter().for_each(|piece| authorities.feed(piece.as_ref(), &mut out));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8; PREFACE_BYTES] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// `:method POST`, `:scheme http`, `:path /p`, then this, then `te: trailers`.
    fn block(authority: &[u8]) -> Vec<u8> {
        [b"\x83\x86\x44\x02/p", authority, b"\x40\x02te\x08trailers"].concat()
    }

    /// The same whether what can pass as it is takes the short way or not.
    fn passed_on(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut authorities, mut out) = (Authorities::default(), BytesMut::new());
        bytes.chunks(piece).for_each(|piece| authorities.push(piece, &mut out));
        let shortly = super::passed_on(bytes.chunks(piece));
        assert_eq!(shortly, out, "in pieces of {piece}");
        out.to_vec()
    }

    #[test]
    fn an_authority_that_is_written_out_is_replaced() {
        let written = b"\x41\x15http://127.0.0.1:2379";
        // In Huffman's code (RFC 7541, appendix C.4.1); not to be put into the table; never to be put into one.
        let coded = b"\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        let others: [&[u8]; 4] = [written, coded, b"\x01\x03a:1", b"\x11\x03a:1"];
        for authority in others {
            let new = block(&[&authority[..1], VALUE].concat());
            let settings = frame(4, 0, &[0; 12]);
            let data = frame(0, 1, b"\x41\x05hello");
            let mut sent = [&PREFACE[..], &settings].concat();
            let mut wanted = sent.clone();
            for (flags, before, after) in
                [(4, &b""[..], &b""[..]), (4 | PADDED, b"\x02", b"\0\0"), (4 | PRIORITY, b"12345", b"")]
            {
                sent.extend(frame(HEADERS, flags, &[before, &block(authority), after].concat()));
                wanted.extend(frame(HEADERS, flags, &[before, &new, after].concat()));
                sent.extend(&data);
                wanted.extend(&data);
            }
            for piece in [1, 2, 7, 10, 33, sent.len()] {
                assert_eq!(passed_on(&sent, piece), wanted, "in pieces of {piece}");
            }
        }
    }

    /// After how many bytes somebody has asked for something.
    fn asks_after(bytes: &[u8], piece: usize) -> Option<usize> {
        let (mut authorities, mut out) = (Authorities::default(), BytesMut::new());
        let mut pushed = 0;
        bytes.chunks(piece).find_map(|piece| {
            authorities.feed(piece, &mut out);
            pushed += piece.len();
            authorities.has_asked().then_some(pushed)
        })
    }

    /// What is written anew is all that is copied.
    #[test]
    fn what_stays_as_it_is_takes_the_short_way() {
        let data = frame(0, 1, &[7; 5000]);
        let known = frame(HEADERS, END_HEADERS, &block(b"\x81"));
        let sent = [&PREFACE[..], &frame(4, 0, &[0; 12]), &known, &data, &known, &data].concat();
        let mut authorities = Authorities::default();
        assert_eq!(authorities.pass(&sent), sent.len());
        assert_eq!(authorities.pass(&data[..3000]), 3000);
        assert_eq!(authorities.pass(&data[3000..]), data.len() - 3000);
        let odd = frame(HEADERS, END_HEADERS, &block(b"\x01\x03a:1"));
        assert_eq!(authorities.pass(&[&data[..], &odd, &data].concat()), data.len());
        assert_eq!(authorities.pass(&[&data[..], &known[..20]].concat()), data.len());
    }

    #[test]
    fn a_request_is_one_when_all_of_its_headers_have_come() {
        let opening = [&PREFACE[..], &frame(4, 0, &[0; 12]), &frame(6, END_HEADERS, &[1; 8])].concat();
        assert_eq!(asks_after(&opening, 1), None);
        let whole = frame(HEADERS, END_HEADERS, &block(b"\x01\x03a:1"));
        let first = frame(HEADERS, 0, &block(b"\x01\x03a:1"));
        let [more, last] = [0, END_HEADERS].map(|flags| frame(CONTINUATION, flags, b"\x40\x01a\x01b"));
        let empty = frame(CONTINUATION, END_HEADERS, b"");
        for headers in [vec![whole], vec![first.clone(), more.clone(), last], vec![first.clone(), empty]] {
            let sent = [&opening[..], &headers.concat()].concat();
            let behind = [&sent[..], &frame(0, 0, b"data")].concat();
            for (sent, piece, wanted) in [(&behind, 1, sent.len()), (&behind, behind.len(), behind.len())] {
                assert_eq!(asks_after(sent, piece), Some(wanted), "{headers:?}");
            }
        }
        let endless = [&opening[..], &first, &more, &more].concat();
        assert_eq!(asks_after(&endless, 1), None);
    }

    #[test]
    fn everything_else_is_left_alone() {
        // From the table; empty; cut off in the middle; too large a number.
        let others: [&[u8]; 6] =
            [b"\x81", b"\xbf", b"\x41\x00", b"\x41\x7f\x7f", b"\x41\x7fabc", b"\xff\xff\xff\xff\xff\xff\xff"];
        for authority in others {
            let sent = [&PREFACE[..], &frame(HEADERS, 4, &block(authority)), &frame(6, 0, &[1; 8])].concat();
            assert_eq!(passed_on(&sent, 3), sent);
        }
        let huge = [&PREFACE[..], &[0xff, 0xff, 0xff, HEADERS], &[0; 100]].concat();
        assert_eq!(passed_on(&huge, 5), huge, "too large a frame is not held back");
        let padded = [&PREFACE[..], &frame(HEADERS, PADDED, b"\x7f\x41\x01a")].concat();
        assert_eq!(passed_on(&padded, 5), padded);
    }
}
