//! The bytes of an image: a section of the framework's own, then what the state machine gave.
//!
//! ```text
//!   0         8        12              12 + length
//!   ┌─────────┬────────┬───────────────┬──────────────────────────────┐
//!   │RAFTKVI1 │ length │ section       │ the machine's image          │
//!   └─────────┴────────┴───────────────┴──────────────────────────────┘
//! ```
//!
//! The length is little-endian. The section is a protobuf message, so that later versions can add to it. Checksums are the store's.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::error::Fatal;
use crate::session::{self, Sessions};
use crate::traits::{Chunks, Snapshot, SnapshotId};

const MAGIC: &[u8; 8] = b"RAFTKVI1";
const HEADER: usize = 12;

/// What the framework keeps in an image beside the state machine's own bytes.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Section {
    #[prost(message, optional, tag = "1")]
    pub(crate) sessions: Option<session::wire::Sessions>,
}

/// How much of an image is read at a time.
const PIECE: usize = 4 << 20;

/// An image at rest.
struct Stored {
    store: Arc<dyn Snapshot>,
    id: SnapshotId,
    offset: u64,
}

#[async_trait]
impl Chunks for Stored {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        let chunk = self.store.read(&self.id, self.offset, PIECE).await?;
        self.offset += chunk.len() as u64;
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
    }
}

/// Opens an image that is published: the framework's section, and what the state machine gave.
pub(crate) async fn open(store: &Arc<dyn Snapshot>, id: SnapshotId) -> Result<(Section, Box<dyn Chunks>), Fatal> {
    unwrap(Box::new(Stored { store: store.clone(), id, offset: 0 })).await
}

/// Some bytes, and then an image.
struct Joined {
    head: Bytes,
    rest: Box<dyn Chunks>,
}

#[async_trait]
impl Chunks for Joined {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        if self.head.is_empty() { self.rest.next().await } else { Ok(Some(std::mem::take(&mut self.head))) }
    }
}

/// What comes in front of the machine's bytes.
pub(crate) fn head(section: &Section) -> Bytes {
    let mut head = BytesMut::with_capacity(HEADER + section.encoded_len());
    head.put_slice(MAGIC);
    // `Config::validate` sees to it that it is shorter.
    head.put_u32_le(u32::try_from(section.encoded_len()).unwrap_or(u32::MAX));
    head.put_slice(&section.encode_to_vec());
    head.freeze()
}

/// Sessions, and then the state machine's image.
struct Wrapped {
    sessions: Option<Sessions>,
    machine: Box<dyn Chunks>,
}

#[async_trait]
impl Chunks for Wrapped {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        match self.sessions.take() {
            Some(sessions) => Ok(Some(head(&Section { sessions: Some(sessions.to_image()) }))),
            None => self.machine.next().await,
        }
    }
}

/// An image with the framework's section in front. It is encoded when it is read, not while the state is frozen.
pub(crate) fn wrap(sessions: Sessions, machine: Box<dyn Chunks>) -> Box<dyn Chunks> {
    Box::new(Wrapped { sessions: Some(sessions), machine })
}

/// Reads the framework's section off an image; what is left is the state machine's.
async fn unwrap(mut image: Box<dyn Chunks>) -> Result<(Section, Box<dyn Chunks>), Fatal> {
    let mut read = BytesMut::new();
    fill(&mut image, &mut read, HEADER).await?;
    let mut header = read.split_to(HEADER);
    if !header.starts_with(MAGIC) {
        return Err(damaged("it does not begin as an image does; another version may have written it"));
    }
    let header = header.split_off(MAGIC.len());
    let length = header.first_chunk().map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes));
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    fill(&mut image, &mut read, length).await?;
    let section = read.split_to(length).freeze();
    let section = Section::decode(section).map_err(|error| damaged(&format!("its first section: {error}")))?;
    Ok((section, Box::new(Joined { head: read.freeze(), rest: image })))
}

/// Reads until there are at least so many bytes.
async fn fill(image: &mut Box<dyn Chunks>, into: &mut BytesMut, len: usize) -> Result<(), Fatal> {
    while into.len() < len {
        let Some(chunk) = image.next().await? else { return Err(damaged("it ends in its first section")) };
        into.extend_from_slice(&chunk);
    }
    Ok(())
}

fn damaged(reason: &str) -> Fatal {
    Fatal::state_machine(format!("the snapshot can't be restored: {reason}"))
}

/// What a decoder of images must bear, for fuzzing.
#[cfg(feature = "testing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    use futures_util::FutureExt;
    let image = |bytes: &[u8]| -> Box<dyn Chunks> {
        let chunks: Vec<_> = bytes.chunks(7).map(Bytes::copy_from_slice).collect();
        Box::new(chunks.into_iter())
    };
    let Some(Ok((section, mut rest))) = unwrap(image(bytes)).now_or_never() else { return };
    let mut machine = Vec::new();
    while let Some(Ok(Some(chunk))) = rest.next().now_or_never() {
        assert!(!chunk.is_empty(), "a chunk is never empty");
        machine.extend_from_slice(&chunk);
    }
    assert!(bytes.ends_with(&machine), "the machine's part changes");
    let sessions = section.clone().sessions(1 << 20);
    assert_eq!(Sessions::from_image(sessions.to_image(), 1 << 20).tally().0, sessions.tally().0, "sessions are lost");
    let again: Box<dyn Chunks> = Box::new(Joined { head: head(&section), rest: image(&machine) });
    let again = unwrap(again).now_or_never();
    assert!(matches!(again, Some(Ok((again, _))) if again == section), "the section changes when it is encoded");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::session::SessionId;

    fn chunks(chunks: &[&'static [u8]]) -> Box<dyn Chunks> {
        Box::new(chunks.iter().map(|chunk| Bytes::from_static(chunk)).collect::<Vec<_>>().into_iter())
    }

    async fn all(mut image: Box<dyn Chunks>) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(chunk) = image.next().await.unwrap() {
            assert!(!chunk.is_empty());
            all.extend_from_slice(&chunk);
        }
        all
    }

    #[tokio::test]
    async fn the_machine_gets_back_what_it_gave() {
        let mut sessions = Sessions::new(1000);
        sessions.open(SessionId(7), Duration::from_secs(1), 3);
        let parts: [&[&'static [u8]]; 3] = [&[], &[b"one"], &[b"one", b"two"]];
        for machine in parts {
            let whole = all(wrap(sessions.clone(), chunks(machine))).await;
            for size in [1, 5, 12, 1000] {
                let pieces: Vec<_> = whole.chunks(size).map(Bytes::copy_from_slice).collect();
                let (section, rest) = unwrap(Box::new(pieces.into_iter())).await.unwrap();
                assert_eq!(section.sessions(1000), sessions);
                assert_eq!(all(rest).await, machine.concat());
            }
        }
    }

    #[tokio::test]
    async fn nonsense_is_refused_with_a_reason() {
        for (bytes, says) in [
            (&b""[..], "ends in its first section"),
            (b"RAFTKVI1\x04\0\0\0abc", "ends in its first section"),
            (b"1234567890ab", "another version"),
            (b"RAFTKVI1\xff\xff\xff\xff", "ends in its first section"),
            (b"RAFTKVI1\x01\0\0\0\xff", "its first section:"),
        ] {
            let Err(fatal) = unwrap(chunks(&[bytes])).await else { panic!("{bytes:?} was taken") };
            assert!(fatal.to_string().contains(says), "{fatal}");
        }
    }
}
