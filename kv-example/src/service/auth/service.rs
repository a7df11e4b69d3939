//! etcd's `Auth` service.

use std::net::IpAddr;

use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::super::kv::unexpected;
use super::super::{Context, Replica};
use super::passwords::{self, Asker, random};
use super::{now_ms, token};
use crate::api::command::auth_change::Change;
use crate::api::command::{
    AuthChange, AuthDisable, AuthEnable, RoleAdd, RoleDelete, RoleGrant, RoleRevoke, UserAdd, UserDelete, UserGrant,
    UserPassword, UserRevoke, command, outcome,
};
use crate::api::etcdserverpb::auth_server::Auth;
use crate::api::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse, AuthRoleAddRequest,
    AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse, AuthRoleGetRequest, AuthRoleGetResponse,
    AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest, AuthStatusResponse,
    AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest, AuthUserChangePasswordResponse,
    AuthUserDeleteRequest, AuthUserDeleteResponse, AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest,
    AuthUserGrantRoleResponse, AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse, ResponseHeader,
};
use crate::store::auth::{MAX_NAME_BYTES, ROOT, SIGNING_KEY_BYTES};
use crate::store::{self, Refusal};

/// How much of a name that anybody may make up goes into the log, in characters.
const SHOWN_NAME: usize = 64;

/// Where a request comes from.
fn from<T>(request: &Request<T>) -> Option<IpAddr> {
    request.remote_addr().map(|from| from.ip())
}

/// The header of an answer.
type Header = Option<ResponseHeader>;

impl<R: Replica> Context<R> {
    /// Has users or roles changed.
    async fn change_auth(&self, metadata: &MetadataMap, change: Change) -> Result<Header, Status> {
        let body = command::Body::Auth(AuthChange { change: Some(change) });
        let from = (metadata, &tonic::Extensions::default());
        let outcome::Body::Auth(_) = self.propose_as(from, body, None).await? else { return Err(unexpected()) };
        Ok(self.header(self.view.revision()))
    }

    /// Looks at the newest users and roles, if this is permitted to whoever asks.
    async fn look<T>(
        &self,
        metadata: &MetadataMap,
        look: impl FnOnce(&store::Auth, Option<&str>) -> Result<T, Refusal>,
    ) -> Result<(T, Header), Status> {
        let auth = self.newest_auth().await?;
        let author = self.author(metadata).await?;
        let rights = auth.rights(author.as_ref())?;
        // Root, and everybody where it is off, may see all.
        let user = author.as_ref().filter(|_| rights.everything().is_err()).map(|author| author.user.as_str());
        Ok((look(&auth, user)?, self.header(self.view.revision())))
    }

    /// Hashes a password, but for root alone: it is work.
    async fn hashed(
        &self,
        (metadata, from): (&MetadataMap, Option<IpAddr>),
        name: &str,
        password: String,
    ) -> Result<String, Status> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Refusal::TooLarge.into());
        }
        passwords::check(&password)?;
        self.ensure_root(metadata).await?;
        self.passwords.hash(Asker { from, name: ROOT.into() }, password).await
    }

    /// Has the log tell what authentication, now that it is enabled, leaves open or locked. As in etcd it is enabled all the same.
    fn warn_of_gaps(&self) {
        let auth = self.view.auth();
        let (mut names, has_password) =
            (auth.user_names(), |user: &store::auth::User| !user.password_hash().is_empty());
        if !auth.user(ROOT).is_some_and(has_password) {
            let others = names.any(|name| auth.user(name).is_some_and(|user| user.is_root() && has_password(user)));
            tracing::warn!(
                "authentication is enabled, and root has no password, so nobody can log in as root: {}",
                if others {
                    "others who have the role root can give it one (user passwd root)"
                } else {
                    "nor has anybody else who has the role root, so nobody can change users, roles or members any more, nor disable authentication"
                }
            );
        }
        let open: Vec<_> = [("members", self.options.peers_have_tls), ("clients", self.options.clients_tls.is_some())]
            .into_iter()
            .filter_map(|(whose, has_tls)| (!has_tls).then_some(whose))
            .collect();
        if !open.is_empty() {
            tracing::warn!(
                "authentication is enabled, and the connections of {} have no TLS: passwords, what they hash to, and tokens can be read on the way; protect them \
                 with certificates, then have the users take other passwords",
                open.join(" and ")
            );
        }
    }

    async fn token(&self, from: Option<IpAddr>, request: AuthenticateRequest) -> Result<String, Status> {
        let AuthenticateRequest { name, password } = request;
        passwords::check(&password)?;
        if name.len() > MAX_NAME_BYTES {
            // There is no such user.
            return Err(Refusal::AuthFailed.into());
        }
        let auth = self.newest_auth().await?;
        if !auth.is_enabled() {
            return Err(Refusal::AuthNotEnabled.into());
        }
        let user = auth.user(&name);
        let hash = user.map(|user| user.password_hash().to_owned());
        let asker = Asker { from, name: name.clone() };
        if !self.passwords.verify(asker, hash, password).await? {
            let shown: String = name.chars().take(SHOWN_NAME).collect();
            tracing::info!(user = ?shown, "a login was refused: no such user, or another password");
            return Err(Refusal::AuthFailed.into());
        }
        let Some(since) = user.map(store::auth::User::since) else { return Err(Refusal::AuthFailed.into()) };
        let ttl_ms = u64::try_from(self.options.token_ttl.as_millis()).unwrap_or(u64::MAX);
        let expires_ms = now_ms().saturating_add(ttl_ms);
        let claims = token::Claims { user: name, since, revision: auth.revision(), expires_ms, ttl_ms };
        claims.sign(auth.signing_key()).ok_or_else(|| Status::internal("etcdserver: a token can't be signed"))
    }
}

#[tonic::async_trait]
impl<R: Replica> Auth for Context<R> {
    async fn auth_enable(&self, request: Request<AuthEnableRequest>) -> Result<Response<AuthEnableResponse>, Status> {
        let signing_key = random::<SIGNING_KEY_BYTES>()?.to_vec().into();
        let header = self.change_auth(request.metadata(), Change::Enable(AuthEnable { signing_key })).await?;
        tracing::info!("authentication is enabled: requests must come from users");
        self.warn_of_gaps();
        Ok(Response::new(AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        let header = self.change_auth(request.metadata(), Change::Disable(AuthDisable {})).await?;
        tracing::info!("authentication is disabled: everybody may do everything");
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn auth_status(&self, request: Request<AuthStatusRequest>) -> Result<Response<AuthStatusResponse>, Status> {
        let status = |auth: &store::Auth, user: Option<&str>| match user {
            None => Ok((auth.is_enabled(), auth.revision())),
            Some(_) => Err(Refusal::PermissionDenied),
        };
        let ((enabled, auth_revision), header) = self.look(request.metadata(), status).await?;
        Ok(Response::new(AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let from = from(&request);
        let token = self.token(from, request.into_inner()).await?;
        Ok(Response::new(AuthenticateResponse { header: self.header(self.view.revision()), token }))
    }

    async fn user_add(&self, request: Request<AuthUserAddRequest>) -> Result<Response<AuthUserAddResponse>, Status> {
        let from = from(&request);
        let (metadata, _, AuthUserAddRequest { name, password, options }) = request.into_parts();
        let password_hash = match options {
            Some(options) if options.no_password => String::new(),
            Some(_) | None => self.hashed((&metadata, from), &name, password).await?,
        };
        let header = self.change_auth(&metadata, Change::UserAdd(UserAdd { name, password_hash })).await?;
        Ok(Response::new(AuthUserAddResponse { header }))
    }

    async fn user_get(&self, request: Request<AuthUserGetRequest>) -> Result<Response<AuthUserGetResponse>, Status> {
        let (metadata, _, AuthUserGetRequest { name }) = request.into_parts();
        let get = |auth: &store::Auth, user: Option<&str>| {
            if user.is_some_and(|user| user != name) {
                return Err(Refusal::PermissionDenied);
            }
            let found = auth.user(&name).ok_or(Refusal::UserNotFound)?;
            Ok(found.roles().map(str::to_owned).collect())
        };
        let (roles, header) = self.look(&metadata, get).await?;
        Ok(Response::new(AuthUserGetResponse { header, roles }))
    }

    async fn user_list(&self, request: Request<AuthUserListRequest>) -> Result<Response<AuthUserListResponse>, Status> {
        let list = |auth: &store::Auth, user: Option<&str>| match user {
            None => Ok(auth.user_names().map(str::to_owned).collect()),
            Some(_) => Err(Refusal::PermissionDenied),
        };
        let (users, header) = self.look(request.metadata(), list).await?;
        Ok(Response::new(AuthUserListResponse { header, users }))
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        let (metadata, _, AuthUserDeleteRequest { name }) = request.into_parts();
        let header = self.change_auth(&metadata, Change::UserDelete(UserDelete { name })).await?;
        Ok(Response::new(AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        let from = from(&request);
        let (metadata, _, AuthUserChangePasswordRequest { name, password }) = request.into_parts();
        let password_hash = self.hashed((&metadata, from), &name, password).await?;
        let header = self.change_auth(&metadata, Change::UserPassword(UserPassword { name, password_hash })).await?;
        Ok(Response::new(AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        let (metadata, _, AuthUserGrantRoleRequest { user, role }) = request.into_parts();
        let header = self.change_auth(&metadata, Change::UserGrant(UserGrant { user, role })).await?;
        Ok(Response::new(AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        let (metadata, _, AuthUserRevokeRoleRequest { name, role }) = request.into_parts();
        let header = self.change_auth(&metadata, Change::UserRevoke(UserRevoke { user: name, role })).await?;
        Ok(Response::new(AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(&self, request: Request<AuthRoleAddRequest>) -> Result<Response<AuthRoleAddResponse>, Status> {
        let (metadata, _, AuthRoleAddRequest { name }) = request.into_parts();
        let header = self.change_auth(&metadata, Change::RoleAdd(RoleAdd { name })).await?;
        Ok(Response::new(AuthRoleAddResponse { header }))
    }

    async fn role_get(&self, request: Request<AuthRoleGetRequest>) -> Result<Response<AuthRoleGetResponse>, Status> {
        let (metadata, _, AuthRoleGetRequest { role }) = request.into_parts();
        let get = |auth: &store::Auth, user: Option<&str>| {
            let has = |user: &str| auth.user(user).is_some_and(|user| user.roles().any(|other| other == role));
            if !user.is_none_or(has) {
                return Err(Refusal::PermissionDenied);
            }
            match auth.role(&role) {
                Some(found) => Ok(found.permissions().collect()),
                // It need not be added to be had.
                None if role == ROOT && user.is_some() => Ok(Vec::new()),
                None => Err(Refusal::RoleNotFound),
            }
        };
        let (perm, header) = self.look(&metadata, get).await?;
        Ok(Response::new(AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(&self, request: Request<AuthRoleListRequest>) -> Result<Response<AuthRoleListResponse>, Status> {
        let list = |auth: &store::Auth, user: Option<&str>| match user {
            None => Ok(auth.role_names().map(str::to_owned).collect()),
            Some(_) => Err(Refusal::PermissionDenied),
        };
        let (roles, header) = self.look(request.metadata(), list).await?;
        Ok(Response::new(AuthRoleListResponse { header, roles }))
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        let (metadata, _, AuthRoleDeleteRequest { role }) = request.into_parts();
        let header = self.change_auth(&metadata, Change::RoleDelete(RoleDelete { name: role })).await?;
        Ok(Response::new(AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        let (metadata, _, AuthRoleGrantPermissionRequest { name, perm }) = request.into_parts();
        let grant = Change::RoleGrant(RoleGrant { role: name, permission: perm });
        let header = self.change_auth(&metadata, grant).await?;
        Ok(Response::new(AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        let (metadata, _, AuthRoleRevokePermissionRequest { role, key, range_end }) = request.into_parts();
        let header = self.change_auth(&metadata, Change::RoleRevoke(RoleRevoke { role, key, range_end })).await?;
        Ok(Response::new(AuthRoleRevokePermissionResponse { header }))
    }
}
