//! Changes of users and roles.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::keys::KeysMut;
use super::super::{Refusal, Store, Writer};
use super::{Auth, MAX_AUTH_BYTES, MAX_NAME_BYTES, ROOT, Role, SIGNING_KEY_BYTES, User, is_range};
use crate::api::authpb::permission::Type;
use crate::api::command::auth_change::Change;
use crate::api::command::{AuthDone, RoleGrant, RoleRevoke, UserAdd};

/// What a change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// It was so already.
    None,
    /// A new revision.
    Revision,
}

impl<K: KeysMut> Writer<'_, K> {
    /// Changes users or roles. The store's revision stays as it is.
    pub(crate) fn change_auth(&mut self, change: &Change) -> Result<AuthDone, Refusal> {
        self.store.change_auth(change)
    }
}

impl<K> Store<K> {
    fn change_auth(&mut self, change: &Change) -> Result<AuthDone, Refusal> {
        let mut auth = Auth::clone(&self.head.auth);
        let effect = auth.change(change)?;
        if auth.bytes() > MAX_AUTH_BYTES {
            return Err(Refusal::AuthTooLarge);
        }
        match effect {
            Effect::None => return Ok(AuthDone {}),
            Effect::Revision => auth.revision += 1,
        }
        self.head.auth = Arc::new(auth);
        Ok(AuthDone {})
    }
}

fn check_name(name: &str, empty: Refusal) -> Result<(), Refusal> {
    match name.len() {
        0 => Err(empty),
        1..=MAX_NAME_BYTES => Ok(()),
        _ => Err(Refusal::TooLarge),
    }
}

impl Auth {
    fn change(&mut self, change: &Change) -> Result<Effect, Refusal> {
        match change {
            Change::Enable(enable) => self.enable(&enable.signing_key),
            Change::Disable(_) => Ok(self.disable()),
            Change::UserAdd(new) => self.add_user(new),
            Change::UserDelete(user) => self.delete_user(&user.name),
            Change::UserPassword(new) => self.change_password(&new.name, &new.password_hash),
            Change::UserGrant(grant) => self.grant_role(&grant.user, &grant.role),
            Change::UserRevoke(revoke) => self.revoke_role(&revoke.user, &revoke.role),
            Change::RoleAdd(role) => self.add_role(&role.name),
            Change::RoleDelete(role) => self.delete_role(&role.name),
            Change::RoleGrant(grant) => self.grant_permission(grant),
            Change::RoleRevoke(revoke) => self.revoke_permission(revoke),
        }
    }

    fn user_mut(&mut self, name: &str) -> Result<&mut User, Refusal> {
        self.users.get_mut(name).ok_or(Refusal::UserNotFound)
    }

    fn enable(&mut self, signing_key: &bytes::Bytes) -> Result<Effect, Refusal> {
        if self.enabled {
            return Ok(Effect::None);
        }
        let root = self.users.get(ROOT).ok_or(Refusal::RootUserNotExist)?;
        if !root.is_root() {
            return Err(Refusal::RootRoleNotExist);
        }
        if signing_key.len() != SIGNING_KEY_BYTES {
            return Err(Refusal::Malformed);
        }
        self.signing_key = signing_key.clone();
        self.enabled = true;
        // Unlike in etcd: a node that does not know of it yet shall see that a token is newer than what it knows.
        Ok(Effect::Revision)
    }

    /// What was found out until now about who makes a request does not count any more when it is enabled again.
    fn disable(&mut self) -> Effect {
        if !self.enabled {
            return Effect::None;
        }
        self.enabled = false;
        self.since = self.revision + 1;
        Effect::Revision
    }

    fn add_user(&mut self, new: &UserAdd) -> Result<Effect, Refusal> {
        check_name(&new.name, Refusal::UserEmpty)?;
        if self.users.contains_key(&new.name) {
            return Err(Refusal::UserAlreadyExist);
        }
        let (password_hash, since) = (new.password_hash.clone(), self.revision + 1);
        self.users.insert(new.name.clone(), User { password_hash, since, roles: BTreeSet::new() });
        Ok(Effect::Revision)
    }

    fn delete_user(&mut self, name: &str) -> Result<Effect, Refusal> {
        if self.enabled && name == ROOT {
            return Err(Refusal::InvalidAuthMgmt);
        }
        self.users.remove(name).map(|_| Effect::Revision).ok_or(Refusal::UserNotFound)
    }

    fn change_password(&mut self, name: &str, password_hash: &str) -> Result<Effect, Refusal> {
        let since = self.revision + 1;
        let user = self.user_mut(name)?;
        password_hash.clone_into(&mut user.password_hash);
        user.since = since;
        Ok(Effect::Revision)
    }

    fn grant_role(&mut self, user: &str, role: &str) -> Result<Effect, Refusal> {
        let exists = role == ROOT || self.roles.contains_key(role);
        let user = self.user_mut(user)?;
        if !exists {
            return Err(Refusal::RoleNotFound);
        }
        Ok(if user.roles.insert(role.to_owned()) { Effect::Revision } else { Effect::None })
    }

    fn revoke_role(&mut self, user: &str, role: &str) -> Result<Effect, Refusal> {
        if self.enabled && user == ROOT && role == ROOT {
            return Err(Refusal::InvalidAuthMgmt);
        }
        if !self.user_mut(user)?.roles.remove(role) {
            return Err(Refusal::RoleNotGranted);
        }
        Ok(Effect::Revision)
    }

    fn add_role(&mut self, name: &str) -> Result<Effect, Refusal> {
        check_name(name, Refusal::RoleEmpty)?;
        if self.roles.contains_key(name) {
            return Err(Refusal::RoleAlreadyExist);
        }
        self.roles.insert(name.to_owned(), Role::default());
        Ok(Effect::Revision)
    }

    fn delete_role(&mut self, name: &str) -> Result<Effect, Refusal> {
        if self.enabled && name == ROOT {
            return Err(Refusal::InvalidAuthMgmt);
        }
        self.roles.remove(name).ok_or(Refusal::RoleNotFound)?;
        for user in self.users.values_mut() {
            user.roles.remove(name);
        }
        Ok(Effect::Revision)
    }

    fn grant_permission(&mut self, RoleGrant { role, permission }: &RoleGrant) -> Result<Effect, Refusal> {
        let permission = permission.as_ref().ok_or(Refusal::PermissionNotGiven)?;
        let kind = Type::try_from(permission.perm_type).map_err(|_| Refusal::InvalidAuthMgmt)?;
        if !is_range(&permission.key, &permission.range_end) {
            return Err(Refusal::InvalidAuthMgmt);
        }
        let role = self.roles.get_mut(role).ok_or(Refusal::RoleNotFound)?;
        role.permissions.insert((permission.key.clone(), permission.range_end.clone()), kind);
        role.merge();
        Ok(Effect::Revision)
    }

    fn revoke_permission(&mut self, RoleRevoke { role, key, range_end }: &RoleRevoke) -> Result<Effect, Refusal> {
        let role = self.roles.get_mut(role).ok_or(Refusal::RoleNotFound)?;
        role.permissions.remove(&(key.clone(), range_end.clone())).ok_or(Refusal::PermissionNotGranted)?;
        role.merge();
        Ok(Effect::Revision)
    }
}
