//! Who may do what: users, roles, and what roles permit.
//!
//! This is a part of the replicated state, so a command is judged when it is applied, by the users and roles as they are then: on every node
//! alike, whatever the node knew that took the request. What that node found out is in the command: the user, and the revision of users and roles at which
//! the user's token was good. If the user got another password since, or was deleted and added again, or authentication was off meanwhile, that
//! counts no more.
//!
//! The rules and the words are etcd's. Where its versions have let through what they should not have, these don't: transactions within
//! transactions, previous values in transactions, ranges that begin at the one key that is permitted.

mod change;
mod check;
mod image;
mod ranges;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;

use super::Span;
use crate::api::authpb::Permission;
use crate::api::authpb::permission::Type;
use crate::api::command::Author;

use ranges::Ranges;

/// The user and the role that may do everything.
pub(crate) const ROOT: &str = "root";
/// The length of the key that signs tokens, in bytes.
pub(crate) const SIGNING_KEY_BYTES: usize = 32;
/// The longest name of a user or a role, in bytes: it has to fit into a token, and that into a header.
pub(crate) const MAX_NAME_BYTES: usize = 1024;
/// What users, roles and permissions may take together, in bytes, estimated: they are in every image as one record.
const MAX_AUTH_BYTES: usize = 4 << 20;
/// No user or permission takes less.
const OVERHEAD: usize = 64;
/// No store counts this far.
const MAX_REVISION: u64 = 1 << 62;

/// The users and roles. A value: what is frozen shares it.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    enabled: bool,
    /// Each change makes a new one; as in etcd the first is 1.
    revision: u64,
    /// The revision at which it was last turned off.
    since: u64,
    /// With which nodes sign tokens; empty before it was first enabled.
    signing_key: Bytes,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Role>,
}

/// A user.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// What the password hashes to, in PHC's string format; empty: no password opens.
    password_hash: String,
    /// The revision at which the user got this password.
    since: u64,
    roles: BTreeSet<String>,
}

/// A role: permissions by their range, as they were granted, and merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    permissions: BTreeMap<(Bytes, Bytes), Type>,
    readable: Ranges,
    writable: Ranges,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            enabled: false,
            revision: 1,
            since: 0,
            signing_key: Bytes::new(),
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }
}

// Neither keys nor hashes are printed.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { enabled, revision, since, signing_key: _, users, roles } = self;
        let mut auth = f.debug_struct("Auth");
        auth.field("enabled", enabled).field("revision", revision).field("since", since);
        auth.field("users", users).field("roles", roles).finish_non_exhaustive()
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { password_hash: _, since, roles } = self;
        f.debug_struct("User").field("since", since).field("roles", roles).finish_non_exhaustive()
    }
}

impl Auth {
    /// Whether requests must come from users.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The revision of users and roles.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// With which nodes sign tokens; empty before it was first enabled.
    #[must_use]
    pub fn signing_key(&self) -> &[u8] {
        &self.signing_key
    }

    /// A user.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// A role.
    #[must_use]
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name)
    }

    /// The names of the users, in order.
    pub fn user_names(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// The names of the roles, in order.
    pub fn role_names(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// What the users and roles take, estimated.
    fn bytes(&self) -> usize {
        let users = self.users.iter().map(|(name, user)| {
            OVERHEAD
                + name.len()
                + user.password_hash.len()
                + user.roles.iter().map(|role| OVERHEAD + role.len()).sum::<usize>()
        });
        let roles = self.roles.iter().map(|(name, role)| {
            let permissions = role.permissions.keys().map(|(key, end)| OVERHEAD + key.len() + end.len());
            OVERHEAD + name.len() + permissions.sum::<usize>()
        });
        users.chain(roles).sum()
    }
}

impl User {
    /// What the password hashes to, in PHC's string format; empty: no password opens.
    #[must_use]
    pub fn password_hash(&self) -> &str {
        &self.password_hash
    }

    /// The revision at which the user got this password. Tokens from before are void.
    #[must_use]
    pub fn since(&self) -> u64 {
        self.since
    }

    /// The user's roles, in order.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.iter().map(String::as_str)
    }

    /// Whether the user may do everything.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.roles.contains(ROOT)
    }
}

impl Role {
    /// The permissions as they were granted, in the order of their keys.
    pub fn permissions(&self) -> impl Iterator<Item = Permission> {
        self.permissions.iter().map(|((key, range_end), kind)| Permission {
            perm_type: (*kind).into(),
            key: key.clone(),
            range_end: range_end.clone(),
        })
    }

    /// Merges the permissions anew, after they have changed.
    fn merge(&mut self) {
        let (mut readable, mut writable) = (Ranges::default(), Ranges::default());
        for ((key, range_end), kind) in &self.permissions {
            let span = Span::new(key, range_end);
            if matches!(kind, Type::Read | Type::Readwrite) {
                readable.insert(span);
            }
            if matches!(kind, Type::Write | Type::Readwrite) {
                writable.insert(span);
            }
        }
        (self.readable, self.writable) = (readable, writable);
    }
}

/// Whether there can be a permission for this range. As in etcd.
fn is_range(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (matches!(range_end, [] | [0]) || key < range_end)
}
