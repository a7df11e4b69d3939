//! Why the store does not do what it is asked, in the codes and words that etcd's clients know.

use tonic::{Code, Status};

use crate::api::command;

/// A request that the store refuses. It changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A request names no key.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// `ignore_value` or `ignore_lease` of a key that does not exist, or an empty operation in a transaction.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// `ignore_value` together with a value.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// A transaction beyond the limit of operations, or nested too deeply.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// A transaction that would change one key twice.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// The revision is gone.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// The revision has not come yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// An order or a property to sort by that does not exist.
    #[error("etcdserver: invalid sort option")]
    InvalidSort,
    /// A request beyond the limit of bytes.
    #[error("etcdserver: request is too large")]
    TooLarge,
    /// A put with a lease.
    #[error("etcdserver: leases are not supported yet: put the key without a lease")]
    LeasesUnsupported,
    /// An id that a member has, or had: it may run somewhere yet.
    #[error("etcdserver: member ID already exist")]
    MemberIdUsed,
    /// No address, or one that can't be.
    #[error("etcdserver: given member URLs are invalid")]
    MemberAddress,
    /// More members than a cluster may have.
    #[error("etcdserver: too many members in cluster")]
    TooManyMembers,
    /// A log entry that can't be read. No version of this server writes such an entry.
    #[error("etcdserver: the log holds a command that can't be decoded")]
    Malformed,
}

impl Refusal {
    /// The gRPC code that goes with it.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TooManyOps
            | Self::DuplicateKey
            | Self::InvalidSort
            | Self::TooLarge
            | Self::MemberAddress => Code::InvalidArgument,
            Self::MemberIdUsed | Self::TooManyMembers => Code::FailedPrecondition,
            Self::Compacted | Self::FutureRevision => Code::OutOfRange,
            Self::LeasesUnsupported => Code::Unimplemented,
            Self::Malformed => Code::Internal,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}

impl From<Refusal> for command::Refusal {
    fn from(refusal: Refusal) -> Self {
        Self { code: refusal.code() as u32, message: refusal.to_string() }
    }
}

impl From<command::Refusal> for Status {
    fn from(refusal: command::Refusal) -> Self {
        // A code that is out of range becomes `Unknown`, as tonic does it.
        Self::new(Code::from_i32(i32::try_from(refusal.code).unwrap_or(i32::MAX)), refusal.message)
    }
}
