//! What entries of kind [`Session`](crate::EntryKind::Session) hold.
//!
//! | first byte | then, little-endian |
//! |---|---|
//! | 1: open | session (u64), how long it may be idle, in milliseconds (u64); how many sessions there may be (u64) |
//! | 2: write | session (u64), sequence (u64), answered (u64), the command |
//! | 3: close | session (u64) |
//!
//! Numbers are for ever, and these are all: what a later version adds must be an entry of another kind, for a node that passes over what it does
//! not know would differ from the others.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Once, SessionId};

const OPEN: u8 = 1;
const WRITE: u8 = 2;
const CLOSE: u8 = 3;

/// What comes in front of a command.
const WRITE_HEADER: u64 = 25;

/// Something that a session asks for. The limits travel with it, so that all nodes come to the same decision whatever their own are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Under a name that was drawn by chance. Its answer is empty.
    Open { session: SessionId, idle: Duration, most: u64 },
    /// Its answer is the state machine's.
    Write { once: Once, command: Bytes },
    /// Its answer is empty.
    Close { session: SessionId },
}

impl Op {
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        match self {
            Self::Open { session, idle, most } => {
                bytes.put_u8(OPEN);
                bytes.put_u64_le(session.0);
                bytes.put_u64_le(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
                bytes.put_u64_le(*most);
            }
            Self::Write { once: Once { session, sequence, answered }, command } => {
                bytes.reserve(WRITE_HEADER as usize + command.len());
                bytes.put_u8(WRITE);
                bytes.put_u64_le(session.0);
                bytes.put_u64_le(*sequence);
                bytes.put_u64_le(*answered);
                bytes.put_slice(command);
            }
            Self::Close { session } => {
                bytes.put_u8(CLOSE);
                bytes.put_u64_le(session.0);
            }
        }
        bytes.freeze()
    }

    /// None for bytes that make no sense. Whoever passes a command on may send anything.
    pub(crate) fn decode(mut bytes: Bytes) -> Option<Self> {
        let op = match bytes.try_get_u8().ok()? {
            OPEN => {
                let session = SessionId(bytes.try_get_u64_le().ok()?);
                let (idle, most) = (bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
                Self::Open { session, idle: Duration::from_millis(idle), most }
            }
            WRITE => {
                let session = SessionId(bytes.try_get_u64_le().ok()?);
                let (sequence, answered) = (bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
                let command = std::mem::take(&mut bytes);
                Self::Write { once: Once { session, sequence, answered }, command }
            }
            CLOSE => Self::Close { session: SessionId(bytes.try_get_u64_le().ok()?) },
            _ => return None,
        };
        bytes.is_empty().then_some(op)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_op_survives_its_encoding(a: u64, b: u64, c: u64, command: Vec<u8>) {
            let once = Once { session: SessionId(a), sequence: b, answered: c };
            for op in [
                Op::Open { session: SessionId(c), idle: Duration::from_millis(a), most: b },
                Op::Write { once, command: command.clone().into() },
                Op::Close { session: SessionId(c) },
            ] {
                prop_assert_eq!(Op::decode(op.encode()), Some(op));
            }
        }

        #[test]
        fn what_is_taken_is_what_would_be_written(bytes: Vec<u8>) {
            if let Some(op) = Op::decode(bytes.clone().into()) {
                prop_assert_eq!(op.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_write_costs_no_more_than_its_header() {
        let once = Once { session: SessionId(1), sequence: 2, answered: 3 };
        assert_eq!(Op::Write { once, command: Bytes::new() }.encode().len() as u64, WRITE_HEADER);
    }
}
