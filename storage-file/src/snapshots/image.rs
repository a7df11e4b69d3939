//! The bytes of one image. FORMAT.md draws them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use raftkv::{ClusterId, GroupId, LogId, Membership, SnapshotId, SnapshotMeta, StorageError};

use crate::frame::{Salt, put, round_up, u32_at, u64_at};
use crate::recovery::corrupt;
use crate::vfs::{VfsFile, Window, failed, read_full};

const MAGIC: &[u8; 8] = b"RAFTKVS2";
const HEADER: usize = 80;
const FRAME: usize = 16;
const TRAILER: usize = 24;
const MAX_MEMBERSHIP: u32 = 16 << 20;

/// The most bytes of an image in one frame: what a read verifies at a time.
pub(crate) const MAX_CHUNK: usize = 256 << 10;

const CHUNK: u8 = b'C';
const END: u8 = b'T';

/// Whose image it is.
pub(crate) type Owner = (ClusterId, GroupId);

/// The first bytes of an image.
pub(crate) fn header(meta: &SnapshotMeta, owner: Owner, salt: Salt) -> Vec<u8> {
    let membership = meta.membership.encode();
    let len = round_up((HEADER + membership.len()) as u64, 8);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(HEADER)];
    put(&mut bytes, 0, MAGIC);
    put(&mut bytes, 12, &(len as u32).to_le_bytes());
    let (last, at) = (meta.last, meta.membership_at);
    let numbers =
        [owner.0.0, owner.1.0, meta.id.0, last.term.0, last.index.0, at.term.0, at.index.0, membership.len() as u64];
    for (n, number) in numbers.iter().enumerate() {
        put(&mut bytes, 16 + 8 * n, &number.to_le_bytes());
    }
    put(&mut bytes, HEADER, &membership);
    let sum = salt.sum(0, &bytes[12..]);
    put(&mut bytes, 8, &sum.to_le_bytes());
    bytes
}

/// Reads the first bytes of an image: whose it is, what it holds, and where its frames begin.
fn read_header(window: &mut Window<'_>, salt: Salt) -> io::Result<Result<(Owner, SnapshotMeta, u64), String>> {
    let bytes = window.at(0, HEADER)?;
    let len = u32_at(bytes, 12);
    if bytes.get(..8) != Some(MAGIC) || len < HEADER as u32 || len > MAX_MEMBERSHIP {
        return Ok(Err("it does not begin as an image does".into()));
    }
    let bytes = window.at(0, len as usize)?;
    if bytes.len() != len as usize || u32_at(bytes, 8) != salt.sum(0, &bytes[12..]) {
        return Ok(Err("the checksum of the image's header does not match".into()));
    }
    let number = |n: usize| u64_at(bytes, 16 + 8 * n);
    let membership = bytes.get(HEADER..HEADER.saturating_add(usize::try_from(number(7)).unwrap_or(usize::MAX)));
    let membership = membership.unwrap_or_default();
    let membership = match Membership::decode(membership) {
        // An image of a log without a configuration has none either.
        Err(_) if membership.is_empty() => Membership::default(),
        Err(reason) => return Ok(Err(format!("the image's membership can't be read: {reason}"))),
        Ok(membership) => membership,
    };
    let (last, membership_at) = (LogId::new(number(3), number(4)), LogId::new(number(5), number(6)));
    let meta = SnapshotMeta { id: SnapshotId(number(2)), last, membership, membership_at };
    Ok(Ok(((ClusterId(number(0)), GroupId(number(1))), meta, u64::from(len))))
}

/// Adds a frame of image bytes to `buf`, to be written at `offset`.
pub(crate) fn chunk(buf: &mut Vec<u8>, data: &[u8], salt: Salt, offset: u64) {
    frame(buf, CHUNK, data, salt, offset);
}

/// Adds the frame that ends an image.
pub(crate) fn trailer(buf: &mut Vec<u8>, (bytes, chunks, checksum): (u64, u64, u32), salt: Salt, offset: u64) {
    let mut payload = [0; TRAILER];
    put(&mut payload, 0, &bytes.to_le_bytes());
    put(&mut payload, 8, &chunks.to_le_bytes());
    put(&mut payload, 16, &checksum.to_le_bytes());
    frame(buf, END, &payload, salt, offset);
}

fn frame(buf: &mut Vec<u8>, kind: u8, payload: &[u8], salt: Salt, offset: u64) {
    let mut header = [0; FRAME];
    put(&mut header, 4, &salt.sum(offset, payload).to_le_bytes());
    put(&mut header, 8, &(payload.len() as u32).to_le_bytes());
    header[12] = kind;
    let sum = salt.sum(offset, &header[4..]);
    put(&mut header, 0, &sum.to_le_bytes());
    buf.extend_from_slice(&header);
    buf.extend_from_slice(payload);
}

/// Computes the checksums of an image anew, for fuzzing.
#[cfg(feature = "testing")]
pub(crate) fn seal(bytes: &mut [u8], salt: Salt) {
    let start = usize::try_from(u32_at(bytes, 12)).unwrap_or(usize::MAX);
    if let Some(header) = bytes.get_mut(..start).filter(|header| header.len() >= HEADER) {
        let sum = salt.sum(0, &header[12..]);
        put(header, 8, &sum.to_le_bytes());
    }
    let mut at = start;
    while let Some(header) = bytes.get(at..at.saturating_add(FRAME)) {
        let end = at + FRAME + usize::try_from(u32_at(header, 8)).unwrap_or(0);
        if let Some(payload) = bytes.get(at + FRAME..end) {
            let sum = salt.sum(at as u64, payload);
            put(bytes, at + 4, &sum.to_le_bytes());
        }
        let sum = salt.sum(at as u64, &bytes[at + 4..at + FRAME]);
        put(bytes, at, &sum.to_le_bytes());
        at = end;
    }
}

#[derive(Clone, Copy, Debug)]
struct FrameHeader {
    kind: u8,
    length: u32,
    payload_sum: u32,
}

fn frame_header(bytes: &[u8], salt: Salt, offset: u64) -> Option<FrameHeader> {
    let whole = bytes.len() == FRAME && u32_at(bytes, 0) == salt.sum(offset, &bytes[4..]);
    let header = FrameHeader { kind: *bytes.get(12)?, length: u32_at(bytes, 8), payload_sum: u32_at(bytes, 4) };
    (whole && header.length as usize <= MAX_CHUNK).then_some(header)
}

/// Where a piece of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its first byte's position in the image.
    pub(crate) at: u64,
    /// Its frame's position in the file.
    pub(crate) offset: u64,
}

/// How far an unfinished image reads well.
#[derive(Debug)]
pub(crate) struct Unfinished {
    pub(crate) meta: SnapshotMeta,
    pub(crate) owner: Owner,
    /// Each with the checksum of the bytes before it.
    pub(crate) pieces: Vec<(Piece, u32)>,
    /// Of all bytes up to the last good frame's end.
    pub(crate) checksum: u32,
    /// Where the last good frame ends: in the image, and in the file.
    pub(crate) bytes: u64,
    pub(crate) end: u64,
}

/// What an image holds, finished or not. None when it has no whole header.
pub(crate) fn meta_of(file: &dyn VfsFile, salt: Salt) -> io::Result<Option<SnapshotMeta>> {
    let header = read_header(&mut Window::new(file, HEADER), salt)?;
    Ok(header.ok().map(|(_, meta, _)| meta))
}

/// Goes through an unfinished image and verifies it, up to the first frame that is not whole. None when it has no whole header.
pub(crate) fn scan(file: &dyn VfsFile, salt: Salt) -> io::Result<Option<Unfinished>> {
    let mut window = Window::new(file, MAX_CHUNK + FRAME);
    let Ok((owner, meta, start)) = read_header(&mut window, salt)? else { return Ok(None) };
    let mut found = Unfinished { meta, owner, pieces: Vec::new(), checksum: 0, bytes: 0, end: start };
    while let Some(header) = frame_header(window.at(found.end, FRAME)?, salt, found.end) {
        let (size, length) = (FRAME + header.length as usize, u64::from(header.length));
        let bytes = window.at(found.end, size)?;
        let whole = bytes.len() == size && header.payload_sum == salt.sum(found.end, &bytes[FRAME..]);
        if !whole || header.kind != CHUNK {
            break;
        }
        found.pieces.push((Piece { at: found.bytes, offset: found.end }, found.checksum));
        found.checksum = crc32c::crc32c_append(found.checksum, &bytes[FRAME..]);
        found.bytes += length;
        found.end += size as u64;
    }
    Ok(Some(found))
}

/// A published image.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) meta: SnapshotMeta,
    pub(crate) path: PathBuf,
    file: Arc<dyn VfsFile>,
    salt: Salt,
    pieces: Vec<Piece>,
    pub(crate) bytes: u64,
    /// Of all its bytes, as computed while they were written.
    pub(crate) checksum: u32,
}

impl Image {
    /// Opens a published image: checks its header, the headers of its frames, and that it is complete. What the frames hold is
    /// verified when it is read.
    pub(crate) fn open(file: Arc<dyn VfsFile>, path: PathBuf, owner: Owner, salt: Salt) -> Result<Self, StorageError> {
        let io = || failed("read", &path);
        let damaged = |offset, reason: &str| corrupt(&path, offset, None, reason);
        let mut window = Window::new(&*file, FRAME);
        let (whose, meta, start) =
            read_header(&mut window, salt).map_err(io())?.map_err(|reason| damaged(0, &reason))?;
        if whose != owner {
            return Err(damaged(0, "the image belongs to another cluster or group"));
        }
        let (mut pieces, mut bytes, mut offset) = (Vec::new(), 0, start);
        loop {
            let header = frame_header(window.at(offset, FRAME).map_err(io())?, salt, offset);
            let header = header.ok_or_else(|| damaged(offset, "a piece of the image has no valid header"))?;
            if header.kind == END {
                let payload = window.at(offset + FRAME as u64, TRAILER).map_err(io())?;
                let told = (u64_at(payload, 0), u64_at(payload, 8));
                let whole = header.payload_sum == salt.sum(offset, payload) && told == (bytes, pieces.len() as u64);
                if !whole {
                    return Err(damaged(offset, "the end of the image does not match what is before it"));
                }
                let checksum = u32_at(payload, 16);
                drop(window);
                return Ok(Self { meta, path, file, salt, pieces, bytes, checksum });
            }
            pieces.push(Piece { at: bytes, offset });
            bytes += u64::from(header.length);
            offset += (FRAME as u64) + u64::from(header.length);
        }
    }

    /// Up to `max` bytes from a position on; empty at the end.
    pub(crate) fn read(&self, at: u64, max: usize) -> Result<Bytes, StorageError> {
        if at >= self.bytes || max == 0 {
            return Ok(Bytes::new());
        }
        let n = self.pieces.partition_point(|piece| piece.at <= at);
        let Some(piece) = n.checked_sub(1).and_then(|n| self.pieces.get(n)) else { return Ok(Bytes::new()) };
        let end = self.pieces.get(n).map_or(self.bytes, |next| next.at);
        let length = usize::try_from(end - piece.at).unwrap_or(MAX_CHUNK);
        let mut bytes = vec![0; FRAME + length];
        let got = read_full(&*self.file, &mut bytes, piece.offset).map_err(failed("read", &self.path))?;
        let header = frame_header(&bytes[..FRAME], self.salt, piece.offset);
        let whole = got == bytes.len()
            && header.is_some_and(|header| {
                header.length as usize == length && header.payload_sum == self.salt.sum(piece.offset, &bytes[FRAME..])
            });
        if !whole {
            let reason = format!("the checksum of the image's bytes {} to {end} does not match", piece.at);
            return Err(corrupt(&self.path, piece.offset, None, reason));
        }
        let from = FRAME + usize::try_from(at - piece.at).unwrap_or(length);
        let to = from.saturating_add(max).min(bytes.len());
        Ok(Bytes::from(bytes).slice(from..to))
    }
}
