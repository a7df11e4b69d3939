//! Users and roles as a part of an image.

use super::{Auth, MAX_AUTH_BYTES, MAX_NAME_BYTES, MAX_REVISION, ROOT, Role, SIGNING_KEY_BYTES, User, is_range};
use crate::api::authpb::Permission;
use crate::api::authpb::permission::Type;
use crate::api::command::{ImageAuth, ImageRole, ImageUser};

impl Auth {
    pub(crate) fn to_image(&self) -> ImageAuth {
        let user = |(name, user): (&String, &User)| ImageUser {
            name: name.clone(),
            password_hash: user.password_hash.clone(),
            since: user.since,
            roles: user.roles.iter().cloned().collect(),
        };
        let role = |(name, role): (&String, &Role)| ImageRole {
            name: name.clone(),
            permissions: role.permissions().collect(),
        };
        ImageAuth {
            enabled: self.enabled,
            revision: self.revision,
            since: self.since,
            signing_key: self.signing_key.clone(),
            users: self.users.iter().map(user).collect(),
            roles: self.roles.iter().map(role).collect(),
        }
    }

    /// Reads them back. Whatever is in an image must be what a sound store has: they decide who may do what.
    pub(crate) fn from_image(image: ImageAuth) -> Result<Self, &'static str> {
        let ImageAuth { enabled, revision, since, signing_key, users, roles } = image;
        if !(1..MAX_REVISION).contains(&revision) || since > revision {
            return Err("its users and roles have a revision that can't be");
        }
        if !matches!(signing_key.len(), 0 | SIGNING_KEY_BYTES) || (enabled && signing_key.is_empty()) {
            return Err("its key for tokens has another length");
        }
        let mut auth = Self { enabled, revision, since, signing_key, ..Self::default() };
        for ImageRole { name, permissions } in roles {
            let role = role_of(permissions)?;
            if !is_name(&name) || auth.roles.insert(name, role).is_some() {
                return Err("it holds a role that can't be");
            }
        }
        for ImageUser { name, password_hash, since, roles } in users {
            let known = roles.iter().all(|role| role == ROOT || auth.roles.contains_key(role));
            let user = User { password_hash, since, roles: roles.into_iter().collect() };
            if !is_name(&name) || !known || since > revision || auth.users.insert(name, user).is_some() {
                return Err("it holds a user that can't be");
            }
        }
        if enabled && !auth.users.get(ROOT).is_some_and(User::is_root) {
            return Err("authentication is enabled, and there is no root");
        }
        if auth.bytes() > MAX_AUTH_BYTES {
            return Err("it holds more users and roles than there can be");
        }
        Ok(auth)
    }
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
}

fn role_of(permissions: Vec<Permission>) -> Result<Role, &'static str> {
    let mut role = Role::default();
    for Permission { perm_type, key, range_end } in permissions {
        let kind = Type::try_from(perm_type).ok().filter(|_| is_range(&key, &range_end));
        let kind = kind.ok_or("it holds a permission that can't be")?;
        if role.permissions.insert((key, range_end), kind).is_some() {
            return Err("it holds a permission twice");
        }
    }
    role.merge();
    Ok(role)
}
