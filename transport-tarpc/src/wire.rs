//! From messages to bytes and back, with serde and postcard.
//!
//! Encoding is total. Decoding trusts nothing: whatever a peer sends becomes a message or a reason, never a panic. Payloads are copied once, into
//! the buffer that is written; what is received are slices of the buffer that was read.

mod body;
mod change;
pub(crate) mod v1;

use bytes::{BufMut, Bytes, BytesMut};
use postcard::ser_flavors::Flavor;
use raftkv::transport_kit::numbers::{log_id, term};
use raftkv::{ClusterId, Envelope, GroupId, Lane, LogId, Message, NodeId};
use serde::Serialize;

/// What an envelope takes at most beyond its message's cost: the numbers and tags of the largest fixed part.
const ENVELOPE_OVERHEAD: u64 = 64;

/// What an envelope takes at least.
const MIN_ENVELOPE: usize = 3;

/// A bound on the encoded size of an envelope. Cheap: it looks at lengths alone.
pub(crate) fn max_encoded_len(envelope: &Envelope) -> u64 {
    envelope.message.cost() + ENVELOPE_OVERHEAD
}

/// Who speaks to whom on a connection, which its envelopes therefore need not say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) cluster: ClusterId,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
}

/// A lane's number in the handshake.
pub(crate) fn lane_number(lane: Lane) -> u8 {
    match lane {
        Lane::Control => 1,
        Lane::Bulk => 2,
    }
}

/// The lane of a number.
pub(crate) fn lane(number: u8) -> Result<Lane, String> {
    let known = Lane::ALL.into_iter().find(|lane| lane_number(*lane) == number);
    known.ok_or_else(|| format!("the hello names no lane, but {number}"))
}

/// A buffer that postcard writes to, payloads in one piece each.
struct Buffer<'a>(&'a mut BytesMut);

impl Flavor for Buffer<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.put_slice(data);
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.put_u8(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Appends a value's encoding.
pub(crate) fn put(value: &impl Serialize, to: &mut BytesMut) -> postcard::Result<()> {
    postcard::serialize_with_flavor(value, Buffer(to))
}

/// Appends a batch: how many envelopes there are, and each of them.
pub(crate) fn encode(batch: &[Envelope], to: &mut BytesMut) -> postcard::Result<()> {
    put(&(batch.len() as u64), to)?;
    batch.iter().try_for_each(|envelope| encode_envelope(envelope, to))
}

fn encode_envelope(envelope: &Envelope, to: &mut BytesMut) -> postcard::Result<()> {
    let Envelope { cluster: _, group, from: _, to: _, message } = envelope;
    put(&v1::Envelope { group: group.0, term: message.term.0, body: body::encode(&message.body) }, to)
}

/// The batch that these bytes are, or why they can't be one.
pub(crate) fn decode(way: Way, bytes: &Bytes) -> Result<Vec<Envelope>, String> {
    let whole = "a batch that is damaged, or ends early";
    let (count, mut rest) = postcard::take_from_bytes::<u64>(bytes).map_err(|_| whole)?;
    // More can't be there, whatever was said.
    let most = rest.len() / MIN_ENVELOPE;
    let count = usize::try_from(count).ok().filter(|count| *count <= most).ok_or(whole)?;
    // An envelope in memory is many times what the shortest takes here: room comes with what is there.
    let mut batch = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        let (envelope, behind) = postcard::take_from_bytes::<v1::Envelope<'_>>(rest)
            .map_err(|_| "a message that is damaged, or of a kind that this version does not know")?;
        batch.push(decode_envelope(way, envelope, bytes)?);
        rest = behind;
    }
    if rest.is_empty() { Ok(batch) } else { Err(format!("{} bytes behind the last message of a batch", rest.len())) }
}

fn decode_envelope(way: Way, envelope: v1::Envelope<'_>, bytes: &Bytes) -> Result<Envelope, String> {
    let Way { cluster, from, to } = way;
    let message = Message { term: term(envelope.term)?, body: body::decode(envelope.body, bytes)? };
    Ok(Envelope { cluster, group: GroupId(envelope.group), from, to, message })
}

/// A payload, as a part of the buffer that it came in.
fn slice(part: &[u8], of: &Bytes) -> Bytes {
    if part.is_empty() { Bytes::new() } else { of.slice_ref(part) }
}

fn put_id(id: LogId) -> v1::Id {
    v1::Id(id.term.0, id.index.0)
}

fn id(v1::Id(of_term, of_index): v1::Id) -> Result<LogId, String> {
    log_id(of_term, of_index)
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
