//! Users and roles as the model of the store has them: lists, looked through one by one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::auth::{Auth, ROOT, SIGNING_KEY_BYTES};
use super::model::{key, range_end};
use super::{Refusal, Span};
use crate::api::authpb::Permission;
use crate::api::authpb::permission::Type;
use crate::api::command::auth_change::Change;
use crate::api::command::{
    AuthDisable, AuthEnable, Author, RoleAdd, RoleDelete, RoleGrant, RoleRevoke, UserAdd, UserDelete, UserGrant,
    UserPassword, UserRevoke,
};
use crate::api::etcdserverpb::RangeRequest;

/// A user's password, the revision of that, and roles.
type User = (String, u64, BTreeSet<String>);

#[derive(Clone, Debug)]
pub(super) struct Users {
    enabled: bool,
    revision: u64,
    since: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, BTreeMap<(Bytes, Bytes), Type>>,
}

impl Users {
    pub(super) fn new() -> Self {
        Self { enabled: false, revision: 1, since: 0, users: BTreeMap::new(), roles: BTreeMap::new() }
    }

    /// What must be so in the store as well.
    pub(super) fn compare(&self, auth: &Auth) {
        assert_eq!((auth.is_enabled(), auth.revision()), (self.enabled, self.revision));
        assert_eq!(auth.signing_key().is_empty(), self.since == 0 && !self.enabled);
        assert_eq!(auth.user_names().collect::<Vec<_>>(), self.users.keys().collect::<Vec<_>>());
        for (name, (password, since, roles)) in &self.users {
            let user = auth.user(name).expect("it is in the list");
            assert_eq!((user.password_hash(), user.since()), (&password[..], *since));
            assert_eq!(user.roles().collect::<Vec<_>>(), roles.iter().collect::<Vec<_>>());
        }
        assert_eq!(auth.role_names().collect::<Vec<_>>(), self.roles.keys().collect::<Vec<_>>());
        for (name, permissions) in &self.roles {
            let granted = auth.role(name).expect("it is in the list").permissions();
            let granted: Vec<_> = granted.map(|p| ((p.key.clone(), p.range_end.clone()), p.perm_type())).collect();
            assert_eq!(granted, permissions.clone().into_iter().collect::<Vec<_>>());
        }
    }

    fn is_root(&self, name: &str) -> bool {
        self.users.get(name).is_some_and(|(_, _, roles)| roles.contains(ROOT))
    }

    pub(super) fn change(&mut self, change: &Change) -> Result<(), Refusal> {
        let next = self.revision + 1;
        let changed = match change {
            Change::Enable(_) if self.enabled => false,
            Change::Enable(_) if !self.users.contains_key(ROOT) => return Err(Refusal::RootUserNotExist),
            Change::Enable(_) if !self.is_root(ROOT) => return Err(Refusal::RootRoleNotExist),
            Change::Enable(_) => {
                self.enabled = true;
                true
            }
            Change::Disable(_) => {
                let was = std::mem::replace(&mut self.enabled, false);
                self.since = if was { next } else { self.since };
                was
            }
            Change::UserAdd(_)
            | Change::UserDelete(_)
            | Change::UserPassword(_)
            | Change::UserGrant(_)
            | Change::UserRevoke(_) => self.change_user(change)?,
            Change::RoleAdd(_) | Change::RoleDelete(_) | Change::RoleGrant(_) | Change::RoleRevoke(_) => {
                self.change_role(change)?
            }
        };
        self.revision += u64::from(changed);
        Ok(())
    }

    fn change_user(&mut self, change: &Change) -> Result<bool, Refusal> {
        let next = self.revision + 1;
        let protected = |user: &str, role: &str| self.enabled && user == ROOT && role == ROOT;
        Ok(match change {
            Change::UserAdd(new) if self.users.contains_key(&new.name) => return Err(Refusal::UserAlreadyExist),
            Change::UserAdd(UserAdd { name, password_hash }) => {
                self.users.insert(name.clone(), (password_hash.clone(), next, BTreeSet::new())).is_none()
            }
            Change::UserDelete(UserDelete { name }) if protected(name, ROOT) => return Err(Refusal::InvalidAuthMgmt),
            Change::UserDelete(UserDelete { name }) => {
                self.users.remove(name).map(|_| true).ok_or(Refusal::UserNotFound)?
            }
            Change::UserPassword(UserPassword { name, password_hash }) => {
                let (password, since, _) = self.users.get_mut(name).ok_or(Refusal::UserNotFound)?;
                (*password, *since) = (password_hash.clone(), next);
                true
            }
            Change::UserGrant(UserGrant { user, role }) => {
                let known = role == ROOT || self.roles.contains_key(role);
                let (_, _, roles) = self.users.get_mut(user).ok_or(Refusal::UserNotFound)?;
                if !known {
                    return Err(Refusal::RoleNotFound);
                }
                roles.insert(role.clone())
            }
            Change::UserRevoke(UserRevoke { user, role }) if protected(user, role) => {
                return Err(Refusal::InvalidAuthMgmt);
            }
            Change::UserRevoke(UserRevoke { user, role }) => {
                let (_, _, roles) = self.users.get_mut(user).ok_or(Refusal::UserNotFound)?;
                if !roles.remove(role) {
                    return Err(Refusal::RoleNotGranted);
                }
                true
            }
            Change::Enable(_)
            | Change::Disable(_)
            | Change::RoleAdd(_)
            | Change::RoleDelete(_)
            | Change::RoleGrant(_)
            | Change::RoleRevoke(_) => panic!("{change:?}"),
        })
    }

    fn change_role(&mut self, change: &Change) -> Result<bool, Refusal> {
        Ok(match change {
            Change::RoleAdd(RoleAdd { name }) if self.roles.contains_key(name) => {
                return Err(Refusal::RoleAlreadyExist);
            }
            Change::RoleAdd(RoleAdd { name }) => self.roles.insert(name.clone(), BTreeMap::new()).is_none(),
            Change::RoleDelete(RoleDelete { name }) if self.enabled && name == ROOT => {
                return Err(Refusal::InvalidAuthMgmt);
            }
            Change::RoleDelete(RoleDelete { name }) => {
                self.roles.remove(name).ok_or(Refusal::RoleNotFound)?;
                self.users.values_mut().for_each(|(_, _, roles)| _ = roles.remove(name));
                true
            }
            Change::RoleGrant(RoleGrant { role, permission }) => {
                let permission = permission.clone().expect("the steps have one");
                let (key, end) = (permission.key.clone(), permission.range_end.clone());
                if !end.is_empty() && end[..] != [0] && end <= key {
                    return Err(Refusal::InvalidAuthMgmt);
                }
                let role = self.roles.get_mut(role).ok_or(Refusal::RoleNotFound)?;
                role.insert((key, end), permission.perm_type());
                true
            }
            Change::RoleRevoke(RoleRevoke { role, key, range_end }) => {
                let role = self.roles.get_mut(role).ok_or(Refusal::RoleNotFound)?;
                role.remove(&(key.clone(), range_end.clone())).ok_or(Refusal::PermissionNotGranted)?;
                true
            }
            Change::Enable(_)
            | Change::Disable(_)
            | Change::UserAdd(_)
            | Change::UserDelete(_)
            | Change::UserPassword(_)
            | Change::UserGrant(_)
            | Change::UserRevoke(_) => panic!("{change:?}"),
        })
    }

    /// A name and how many revisions ago its token was looked at.
    pub(super) fn author(&self, (name, back): &(String, u64)) -> Option<Author> {
        let revision = self.revision.saturating_sub(*back);
        (!name.is_empty()).then(|| Author { user: name.clone(), revision })
    }

    /// Whether somebody may read: asks for each key on which the answer could turn.
    pub(super) fn may_read(&self, author: Option<&Author>, request: &RangeRequest) -> Result<(), Refusal> {
        if !self.enabled {
            return Ok(());
        }
        let Some(author) = author else { return Err(Refusal::UserEmpty) };
        let Some((_, since, roles)) = self.users.get(&author.user) else { return Err(Refusal::PermissionDenied) };
        if author.revision < *since || author.revision < self.since {
            return Err(Refusal::AuthOldRevision);
        }
        if roles.contains(ROOT) {
            return Ok(());
        }
        let permissions: Vec<_> = roles.iter().filter_map(|role| self.roles.get(role)).flatten().collect();
        let readable = |key: &[u8]| {
            let readable = permissions.iter().filter(|(_, kind)| **kind != Type::Write);
            readable.map(|((key, end), _)| Span::new(key, end)).any(|span| span.contains(key))
        };
        let asked = Span::new(&request.key, &request.range_end);
        let bounds = permissions.iter().flat_map(|((key, end), _)| [key, end]).chain([&request.key]);
        let mut probes = bounds.flat_map(|key| [key.to_vec(), [key, &[0][..]].concat()]).filter(|key| !key.is_empty());
        let empty = matches!(asked, Span::Between(first, end) if end <= first);
        let permitted = match empty {
            true => readable(&request.key),
            false => probes.all(|key| !asked.contains(&key) || readable(&key)),
        };
        if permitted { Ok(()) } else { Err(Refusal::PermissionDenied) }
    }
}

fn user() -> impl Strategy<Value = String> {
    prop_oneof![2 => Just(ROOT.to_owned()), 4 => Just("ann".to_owned()), 1 => Just("bob".to_owned())]
}

fn role() -> impl Strategy<Value = String> {
    prop_oneof![2 => Just(ROOT.to_owned()), 4 => Just("r".to_owned()), 2 => Just("s".to_owned())]
}

/// Who asks, and how many revisions ago that was found out; nobody now and then.
pub(super) fn author() -> impl Strategy<Value = (String, u64)> {
    (prop_oneof![6 => user(), 1 => Just(String::new())], prop_oneof![5 => Just(0u64), 1 => 0u64..6])
}

pub(super) fn a_change() -> impl Strategy<Value = Change> {
    let permission =
        (0i32..3, key(), range_end()).prop_map(|(perm_type, key, range_end)| Permission { perm_type, key, range_end });
    prop_oneof![
        4 => Just(Change::Enable(AuthEnable { signing_key: vec![7; SIGNING_KEY_BYTES].into() })),
        1 => Just(Change::Disable(AuthDisable {})),
        6 => (user(), "[pq]{1,3}").prop_map(|(name, password_hash)| Change::UserAdd(UserAdd { name, password_hash })),
        1 => user().prop_map(|name| Change::UserDelete(UserDelete { name })),
        2 => (user(), "[pq]{0,3}")
            .prop_map(|(name, password_hash)| Change::UserPassword(UserPassword { name, password_hash })),
        8 => (user(), role()).prop_map(|(user, role)| Change::UserGrant(UserGrant { user, role })),
        2 => (user(), role()).prop_map(|(user, role)| Change::UserRevoke(UserRevoke { user, role })),
        4 => role().prop_map(|name| Change::RoleAdd(RoleAdd { name })),
        1 => role().prop_map(|name| Change::RoleDelete(RoleDelete { name })),
        9 => (role(), permission)
            .prop_map(|(role, permission)| Change::RoleGrant(RoleGrant { role, permission: Some(permission) })),
        2 => (role(), key(), range_end())
            .prop_map(|(role, key, range_end)| Change::RoleRevoke(RoleRevoke { role, key, range_end })),
    ]
}

/// What makes root root, and lets ann read something: without it few runs would get that far.
pub(super) fn beginning() -> impl Strategy<Value = Vec<Change>> {
    let grant = |user: &str, role: &str| Change::UserGrant(UserGrant { user: user.into(), role: role.into() });
    let add = |name: &str| Change::UserAdd(UserAdd { name: name.into(), password_hash: "p".into() });
    let all = vec![
        add(ROOT),
        grant(ROOT, ROOT),
        add("ann"),
        Change::RoleAdd(RoleAdd { name: "r".into() }),
        grant("ann", "r"),
        Change::Enable(AuthEnable { signing_key: vec![7; SIGNING_KEY_BYTES].into() }),
    ];
    prop_oneof![Just(Vec::new()), Just(all)]
}
