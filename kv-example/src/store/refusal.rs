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
    /// An answer beyond the limit of bytes.
    #[error("raftkv: the answer would be too large")]
    AnswerTooLarge,
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
    /// A request without a user, where authentication is enabled; or a user without a name.
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    /// Authentication is to be enabled, and there is no root.
    #[error("etcdserver: root user does not exist")]
    RootUserNotExist,
    /// Authentication is to be enabled, and root may not do everything.
    #[error("etcdserver: root user does not have root role")]
    RootRoleNotExist,
    /// A user that there is already.
    #[error("etcdserver: user name already exists")]
    UserAlreadyExist,
    /// A user that there is not.
    #[error("etcdserver: user name not found")]
    UserNotFound,
    /// A role that there is already.
    #[error("etcdserver: role name already exists")]
    RoleAlreadyExist,
    /// A role that there is not.
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    /// A role without a name.
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    /// A role that the user does not have.
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    /// A grant of nothing.
    #[error("etcdserver: permission not given")]
    PermissionNotGiven,
    /// A permission that the role does not have.
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    /// The user may not do that.
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    /// Not this user, or not this password.
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    /// A token is to be had only where authentication is enabled.
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    /// A token that is none of this cluster's, has expired, or whose user is gone or has another password.
    #[error("etcdserver: invalid auth token")]
    InvalidAuthToken,
    /// A change that would leave nobody who may do everything, or a permission that can't be.
    #[error("etcdserver: invalid auth management")]
    InvalidAuthMgmt,
    /// The author of the request was known by users that are not these any more.
    #[error("etcdserver: revision of auth store is old")]
    AuthOldRevision,
    /// More users, roles and permissions than there may be.
    #[error("etcdserver: users, roles and permissions take too much room: delete some first")]
    AuthTooLarge,
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
            | Self::UserEmpty
            | Self::RoleEmpty
            | Self::PermissionNotGiven
            | Self::AuthFailed
            | Self::InvalidAuthMgmt
            | Self::AuthOldRevision
            | Self::MemberAddress => Code::InvalidArgument,
            Self::MemberIdUsed
            | Self::TooManyMembers
            | Self::RootUserNotExist
            | Self::RootRoleNotExist
            | Self::UserAlreadyExist
            | Self::UserNotFound
            | Self::RoleAlreadyExist
            | Self::RoleNotFound
            | Self::RoleNotGranted
            | Self::PermissionNotGranted
            | Self::AuthNotEnabled => Code::FailedPrecondition,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::InvalidAuthToken => Code::Unauthenticated,
            Self::AuthTooLarge => Code::ResourceExhausted,
            Self::Compacted | Self::FutureRevision => Code::OutOfRange,
            Self::LeasesUnsupported => Code::Unimplemented,
            Self::AnswerTooLarge => Code::ResourceExhausted,
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
