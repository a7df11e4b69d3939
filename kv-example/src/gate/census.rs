//! How many parts a request has, counted in its bytes before anything is made of them: two bytes stand for an empty operation of a transaction, which takes
//! more than a hundred as a value.
//!
//! Only lists are counted, for all else takes no more than its bytes. What is not understood here is no message that an encoder made, and goes no further:
//! were it left to the decoder, the two would have to agree on every oddity.

use tonic::Status;

use crate::service::refused;
use crate::store::{MAX_DEPTH, Refusal};

/// The parts of one message, as far as it has come.
#[derive(Debug)]
pub(super) struct Census {
    what: What,
    /// How many more there may be.
    left: usize,
    /// How many bytes have come.
    at: usize,
    /// The message, and those in it that have begun and not ended.
    open: Vec<Level>,
    /// A number that is not whole yet, and how many bits of it are.
    number: (u64, u32),
    step: Step,
    skip: usize,
}

/// What is asked for, by the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A transaction: `compare`, `success` and `failure`, and transactions in these.
    Txn,
    /// Something that has one list, in this field.
    List(u64),
}

/// What the next number is.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A field, and how its value is written.
    Key,
    /// A value that is a number.
    Value,
    /// The length of this field's value.
    Length(u64),
}

#[derive(Debug)]
struct Level {
    kind: Kind,
    /// Where it ends.
    end: usize,
}

#[derive(Debug)]
enum Kind {
    /// With the lengths of its lists.
    Txn([usize; 3]),
    Operation,
    List(u64),
}

impl What {
    /// What is to be counted of a request of this method; there are lists in no other's (`tests/etcd_api.rs`).
    pub(super) fn of(path: &str) -> Option<Self> {
        match path {
            "/etcdserverpb.KV/Txn" => Some(Self::Txn),
            "/etcdserverpb.Cluster/MemberAdd" => Some(Self::List(1)),
            "/etcdserverpb.Cluster/MemberUpdate" => Some(Self::List(2)),
            _ => None,
        }
    }
}

impl Census {
    /// Of a message of so many bytes, which may have so many parts.
    pub(super) fn new(what: What, bytes: usize, most: usize) -> Self {
        let kind = match what {
            What::Txn => Kind::Txn([0; 3]),
            What::List(field) => Kind::List(field),
        };
        let open = vec![Level { kind, end: bytes }];
        Self { what, left: most, at: 0, open, number: (0, 0), step: Step::Key, skip: 0 }
    }

    /// Counts what is in the next bytes.
    ///
    /// # Errors
    /// That is too much, or no message.
    pub(super) fn count(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while let Some((first, rest)) = bytes.split_first() {
            if self.skip > 0 {
                let now = self.skip.min(bytes.len());
                bytes = &bytes[now..];
                (self.skip, self.at) = (self.skip - now, self.at + now);
            } else {
                bytes = rest;
                self.at += 1;
                self.take(*first)?;
            }
            while self.open.len() > 1 && self.skip == 0 && self.begins() && self.end() == self.at {
                self.open.pop();
            }
        }
        Ok(())
    }

    /// Where the innermost message ends.
    fn end(&self) -> usize {
        self.open.last().map_or(0, |level| level.end)
    }

    /// Whether a field may begin here.
    fn begins(&self) -> bool {
        matches!((self.step, self.number), (Step::Key, (0, 0)))
    }

    /// Takes the next byte of a number.
    fn take(&mut self, byte: u8) -> Result<(), Status> {
        let (number, bits) = self.number;
        let more = u64::from(byte & 0x7f);
        if bits > 63 || (bits == 63 && more > 1) || self.at > self.end() {
            return Err(refused::no_message());
        }
        let number = number | more << bits;
        if byte & 0x80 != 0 {
            self.number = (number, bits + 7);
            return Ok(());
        }
        self.number = (0, 0);
        match std::mem::replace(&mut self.step, Step::Key) {
            Step::Key => match (number >> 3, number & 7) {
                (_, 0) => self.step = Step::Value,
                (_, 1) => self.pass(8)?,
                (field, 2) => self.step = Step::Length(field),
                (_, 5) => self.pass(4)?,
                // Groups, which are no more: what they hold would have to be told apart.
                _ => return Err(refused::no_message()),
            },
            Step::Value => {}
            Step::Length(field) => self.enter(field, number)?,
        }
        Ok(())
    }

    /// Whatever is in the next bytes, it is not counted.
    fn pass(&mut self, bytes: u64) -> Result<(), Status> {
        self.skip = self.until(bytes)? - self.at;
        Ok(())
    }

    /// Where so many bytes end, if they are in the message that they are in.
    fn until(&self, bytes: u64) -> Result<usize, Status> {
        let end = usize::try_from(bytes).ok().and_then(|bytes| self.at.checked_add(bytes));
        end.filter(|end| *end <= self.end()).ok_or_else(refused::no_message)
    }

    /// A value begins that has a length.
    fn enter(&mut self, field: u64, bytes: u64) -> Result<(), Status> {
        let end = self.until(bytes)?;
        let within = match self.open.last_mut().map(|level| &mut level.kind) {
            Some(Kind::Txn(lists)) if (1..=3).contains(&field) => {
                let list = field as usize - 1;
                lists[list] += 1;
                // As transactions are judged: each of its lists may be as long as the longest.
                let is_longest = (0..3).all(|other| other == list || lists[other] < lists[list]);
                if is_longest {
                    self.one_more()?;
                }
                (field != 1).then_some(Kind::Operation)
            }
            Some(Kind::Operation) if field == 4 => Some(Kind::Txn([0; 3])),
            Some(Kind::List(list)) if *list == field => {
                self.one_more()?;
                None
            }
            Some(Kind::Txn(_) | Kind::Operation | Kind::List(_)) | None => None,
        };
        let Some(kind) = within else { return self.pass(bytes) };
        // A transaction takes two levels.
        if self.open.len() >= 2 * MAX_DEPTH {
            return Err(Refusal::TooManyOps.into());
        }
        self.open.push(Level { kind, end });
        Ok(())
    }

    fn one_more(&mut self) -> Result<(), Status> {
        let left = self.left.checked_sub(1);
        self.left = left.ok_or_else(|| match self.what {
            What::Txn => Refusal::TooManyOps.into(),
            What::List(_) => refused::several_addresses(),
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use tonic::Code;

    use super::*;
    use crate::api::etcdserverpb::request_op::Request;
    use crate::api::etcdserverpb::{
        Compare, DeleteRangeRequest, MemberAddRequest, MemberUpdateRequest, PutRequest, RangeRequest, RequestOp,
        TxnRequest,
    };
    use crate::store::{Limits, check_txn};

    const MOST: usize = 40;

    fn counted(what: What, bytes: &[u8], piece: usize) -> Result<(), Status> {
        let mut census = Census::new(what, bytes.len(), MOST);
        bytes.chunks(piece).try_for_each(|piece| census.count(piece))
    }

    fn txn() -> impl Strategy<Value = TxnRequest> {
        let key = || prop::collection::vec(any::<u8>(), 1..4);
        let leaf = prop_oneof![
            key().prop_map(|key| Request::RequestRange(RangeRequest {
                key: key.into(),
                limit: -1,
                ..Default::default()
            })),
            key().prop_map(|key| Request::RequestPut(PutRequest {
                key: key.into(),
                prev_kv: true,
                ..Default::default()
            })),
            key().prop_map(|key| Request::RequestDeleteRange(DeleteRangeRequest {
                key: key.into(),
                ..Default::default()
            })),
        ];
        let compare = move || {
            let one = key().prop_map(|key| Compare { key: key.into(), ..Default::default() });
            prop::collection::vec(one, 0..12)
        };
        let txn_of = move |op: BoxedStrategy<RequestOp>, most: usize| {
            let ops = || prop::collection::vec(op.clone(), 0..most);
            (compare(), ops(), ops()).prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure })
        };
        let leaf = leaf.prop_map(|request| RequestOp { request: Some(request) }).boxed();
        let op = leaf.prop_recursive(4, 60, 4, move |op| {
            txn_of(op.boxed(), 4).prop_map(|txn| RequestOp { request: Some(Request::RequestTxn(txn)) })
        });
        txn_of(op.boxed(), 20)
    }

    /// By the words of the store, whose check comes later.
    fn is_too_many(outcome: Result<(), impl ToString>) -> bool {
        outcome.is_err_and(|why| why.to_string().contains(&Refusal::TooManyOps.to_string()))
    }

    proptest! {
        /// However it is cut.
        #[test]
        fn a_transaction_counts_as_the_store_counts_it(txn in txn(), piece in 1_usize..100) {
            let stores = is_too_many(check_txn(&txn, Limits { txn_ops: MOST, ..Limits::default() }));
            let own = counted(What::Txn, &txn.encode_to_vec(), piece);
            prop_assert_eq!(own.is_ok(), !stores, "{:?}", own);
            prop_assert_eq!(is_too_many(own), stores);
        }

        /// Whatever else comes: what is decoded has no more parts than it may.
        #[test]
        fn nothing_that_is_decoded_was_not_counted(
            pieces in prop::collection::vec(
                prop_oneof![
                    Just(vec![0x12, 0]), Just(vec![0x0a, 0]), Just(vec![0x1a, 4, 0x22, 2, 0x12, 0]), Just(vec![0x23, 0x24]),
                    Just(vec![0x92, 0x80, 0, 0x80, 0]), Just(vec![0x20, 0xff, 1]), Just(vec![0x25, 1, 2, 3, 4]),
                    prop::collection::vec(any::<u8>(), 1..5),
                ],
                0..300,
            ),
        ) {
            let bytes = pieces.concat();
            if counted(What::Txn, &bytes, 7).is_ok() && let Ok(txn) = TxnRequest::decode(&*bytes) {
                prop_assert!(txn.compare.len().max(txn.success.len()).max(txn.failure.len()) <= MOST);
            }
        }
    }

    #[test]
    fn what_amplifies_is_refused_and_what_is_none_as_well() {
        let nested = |depth| {
            let txn = |within| TxnRequest { success: vec![within], ..Default::default() };
            let op = |within| RequestOp { request: Some(Request::RequestTxn(txn(within))) };
            txn((1..depth).fold(RequestOp::default(), |within, _| op(within))).encode_to_vec()
        };
        counted(What::Txn, &nested(MAX_DEPTH), 10).unwrap();
        assert!(is_too_many(counted(What::Txn, &nested(MAX_DEPTH + 1), 10)));
        assert!(is_too_many(counted(What::Txn, &[0x12, 0].repeat(MOST + 1), 1000)));
        counted(What::Txn, &[0x12, 0].repeat(MOST), 1).unwrap();
        let peer_urls = vec![String::new(); MOST];
        let add = MemberAddRequest { peer_urls: peer_urls.clone(), is_learner: true };
        counted(What::List(1), &add.encode_to_vec(), 3).unwrap();
        let update = MemberUpdateRequest { id: 7, peer_urls: [peer_urls, vec!["x".into()]].concat() };
        let status = counted(What::List(2), &update.encode_to_vec(), 3).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        // A group; lengths beyond the end, of the whole and of a part; a number that no number can hold.
        for bytes in [&[0x23, 0x24][..], &[0x12, 1], &[0x12, 2, 0x0a, 1, 0], &[0xff; 11], &[0x12, 1, 0x80, 0]] {
            let status = counted(What::Txn, bytes, 1).unwrap_err();
            assert!(status.message().contains("no message"), "{bytes:?}: {status}");
        }
    }
}
