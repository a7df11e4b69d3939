//! Users, roles and permissions.

use super::{Client, ClientError, Kind, Line};
use crate::api::authpb::{Permission, UserAddOptions};
use crate::api::etcdserverpb::auth_client::AuthClient;
use crate::api::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest,
    AuthRoleGrantPermissionRequest, AuthRoleListRequest, AuthRoleRevokePermissionRequest, AuthStatusRequest,
    AuthStatusResponse, AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
    AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest,
};

/// A change, of which the answer says nothing.
macro_rules! changes {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) = $method:ident($request:expr);)*) => {
        impl Client {
            $($(#[$doc])*
            ///
            /// # Errors
            /// See [`ClientError`].
            pub async fn $name(&self, $($argument: $type),*) -> Result<(), ClientError> {
                let request = $request;
                let change = |line: Line| {
                    let request = request.clone();
                    async move { AuthClient::new(line).$method(request).await }
                };
                self.call(Kind::Write, change).await.map(drop)
            })*
        }
    };
}

changes! {
    /// From now on requests must come from users. There must be a user `root` with the role `root`.
    auth_enable() = auth_enable(AuthEnableRequest {});
    /// From now on everybody may do everything.
    auth_disable() = auth_disable(AuthDisableRequest {});
    /// Adds a user; without a password nobody can log in as this one.
    user_add(name: &str, password: Option<&str>) = user_add(AuthUserAddRequest {
        name: name.into(),
        password: password.unwrap_or("").into(),
        options: Some(UserAddOptions { no_password: password.is_none() }),
    });
    /// Deletes a user.
    user_delete(name: &str) = user_delete(AuthUserDeleteRequest { name: name.into() });
    /// Gives a user another password. Whoever has logged in with the former one must log in again.
    user_password(name: &str, password: &str) =
        user_change_password(AuthUserChangePasswordRequest { name: name.into(), password: password.into() });
    /// Gives a user a role.
    user_grant(user: &str, role: &str) = user_grant_role(AuthUserGrantRoleRequest { user: user.into(), role: role.into() });
    /// Takes a role from a user.
    user_revoke(user: &str, role: &str) = user_revoke_role(AuthUserRevokeRoleRequest { name: user.into(), role: role.into() });
    /// Adds a role.
    role_add(name: &str) = role_add(AuthRoleAddRequest { name: name.into() });
    /// Deletes a role.
    role_delete(name: &str) = role_delete(AuthRoleDeleteRequest { role: name.into() });
    /// Gives a role a permission.
    role_grant(role: &str, permission: Permission) =
        role_grant_permission(AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(permission.clone()) });
    /// Takes the permission for this very range from a role.
    role_revoke(role: &str, key: bytes::Bytes, range_end: bytes::Bytes) = role_revoke_permission(
        AuthRoleRevokePermissionRequest { role: role.into(), key: key.clone(), range_end: range_end.clone() });
}

impl Client {
    /// Whether authentication is enabled, and the revision of the users and roles.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn auth_status(&self) -> Result<AuthStatusResponse, ClientError> {
        self.call(Kind::Read, |line| async move { AuthClient::new(line).auth_status(AuthStatusRequest {}).await }).await
    }

    /// The names of the users.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn users(&self) -> Result<Vec<String>, ClientError> {
        let list = |line| async move { AuthClient::new(line).user_list(AuthUserListRequest {}).await };
        Ok(self.call(Kind::Read, list).await?.users)
    }

    /// The roles of a user.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn user_roles(&self, name: &str) -> Result<Vec<String>, ClientError> {
        let get = |line: Line| {
            let request = AuthUserGetRequest { name: name.into() };
            async move { AuthClient::new(line).user_get(request).await }
        };
        Ok(self.call(Kind::Read, get).await?.roles)
    }

    /// The names of the roles.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn roles(&self) -> Result<Vec<String>, ClientError> {
        let list = |line| async move { AuthClient::new(line).role_list(AuthRoleListRequest {}).await };
        Ok(self.call(Kind::Read, list).await?.roles)
    }

    /// What a role permits.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn role_permissions(&self, role: &str) -> Result<Vec<Permission>, ClientError> {
        let get = |line: Line| {
            let request = AuthRoleGetRequest { role: role.into() };
            async move { AuthClient::new(line).role_get(request).await }
        };
        Ok(self.call(Kind::Read, get).await?.perm)
    }
}
