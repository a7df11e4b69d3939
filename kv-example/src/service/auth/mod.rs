//! Who makes a request, and whether that is permitted.
//!
//! | what is asked | who may, where authentication is enabled |
//! |---|---|
//! | `KV.Range`, `Put`, `DeleteRange`, `Txn` | whoever has the permissions for all keys that are named |
//! | `KV.Compact` | root |
//! | `Auth.Authenticate` | everybody: it is how to become somebody |
//! | `Auth.UserGet`, `RoleGet` | root; a user for itself, and for its roles |
//! | the rest of `Auth` | root |
//! | `Cluster.MemberList`, `Maintenance.Alarm` | every user |
//! | the rest of `Cluster` and of `Maintenance`, save `Status` | root |
//! | `Maintenance.Status`, `Node.Status`, health | everybody: whoever looks for a leader, or watches a node, is nobody yet; without addresses |
//! | `Node.OpenSession`, `CloseSession`, writes in a session | every user, in sessions of its own |
//! | the rest of `Node` | root |
//!
//! A test asks for each method of each service without a token (`tests/etcd_auth.rs`): one that is added later and forgotten here fails it.
//!
//! What a node says of a command is not the last word: it is judged again where it is applied (`store/auth/`). A node that refuses may be behind the others,
//! so it catches up first, and looks again. What is for root and no command is permitted by a node that has caught up alone.

mod passwords;
mod service;
pub(crate) mod token;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use raftkv::{Consistency, Once};
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::once::Named;
use super::refused::{self, Intent, to_status};
use super::{Context, Replica};
use crate::api::command::{Author, command};
use crate::store::auth::User;
use crate::store::{Auth, Refusal};

pub(super) use passwords::Passwords;

/// How long a change of members waits for the newest users and roles.
const NEWEST_LIMIT: Duration = Duration::from_secs(1);

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl<R: Replica> Context<R> {
    /// The user of a token, if it is good by these users and at this moment.
    fn user_of<'a>(&self, token: &token::Token, auth: &'a Auth, now_ms: u64) -> Option<&'a User> {
        let good = token.is_good(auth.signing_key(), now_ms);
        auth.user(&token.claims.user).filter(|user| good && user.since() == token.claims.since)
    }

    /// Waits until this node knows of all users and roles that were changed before.
    pub(super) async fn newest_auth(&self) -> Result<Arc<Auth>, Status> {
        self.ensure_member().await?;
        let fresh = self.replica.read(Consistency::Linearizable).await;
        fresh.map_err(|error| to_status(&error, Intent::Read))?;
        self.ready.store(true, Ordering::Relaxed);
        Ok(self.view.auth())
    }

    /// The same, within a moment. Whoever can't be told who is permitted something is not permitted it.
    async fn newest_auth_soon(&self) -> Result<(), Status> {
        let newest = tokio::time::timeout(NEWEST_LIMIT, self.newest_auth()).await;
        newest.map_err(|_| refused::not_ready())?.map(drop)
    }

    /// Whom a request is of. Nobody where authentication is off, or where no token came: whether that will do is to be asked.
    pub(super) async fn author(&self, metadata: &MetadataMap) -> Result<Option<Author>, Status> {
        self.author_at(metadata, now_ms()).await
    }

    /// The same for a request that came at this moment: a token that expires while the request waits here was good.
    async fn author_at(&self, metadata: &MetadataMap, came_ms: u64) -> Result<Option<Author>, Status> {
        let Some(text) = token::of(metadata) else { return Ok(None) };
        let mut auth = self.view.auth();
        let token = token::Token::read(text);
        // Made where more is known: this node is behind.
        if token.as_ref().is_some_and(|token| token.claims.revision > auth.revision()) {
            auth = self.newest_auth().await?;
        }
        if !auth.is_enabled() {
            return Ok(None);
        }
        let token =
            token.filter(|token| self.user_of(token, &auth, came_ms).is_some()).ok_or(Refusal::InvalidAuthToken)?;
        Ok(Some(Author { user: token.claims.user, revision: auth.revision() }))
    }

    /// Whom a command is of, if it may be proposed.
    pub(super) async fn author_of(
        &self,
        metadata: &MetadataMap,
        body: &command::Body,
    ) -> Result<Option<Author>, Status> {
        self.permitted(metadata, |auth, author| auth.check(author, body)).await
    }

    /// Whom a request is of, if it is permitted. What this node refuses it looks at again when it knows all that the others know.
    async fn permitted(
        &self,
        metadata: &MetadataMap,
        check: impl Fn(&Auth, Option<&Author>) -> Result<(), Refusal>,
    ) -> Result<Option<Author>, Status> {
        let came_ms = now_ms();
        let author = self.author_at(metadata, came_ms).await?;
        if check(&self.view.auth(), author.as_ref()).is_ok() {
            return Ok(author);
        }
        let auth = self.newest_auth().await?;
        let author = self.author_at(metadata, came_ms).await?;
        check(&auth, author.as_ref())?;
        Ok(author)
    }

    /// Refuses everybody but root, by the newest users and roles, since what is asked for is not judged again where it is applied.
    pub(super) async fn ensure_root(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.newest_auth_soon().await?;
        self.is_root(metadata).await
    }

    /// The same for what concerns this node alone, or is to bring a leader back.
    pub(super) async fn ensure_root_here(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.newest_auth_as_far_as_it_goes().await?;
        self.is_root(metadata).await
    }

    /// Where nobody can tell the newest users and roles, those count that this node knows. One that has not caught up since its start may not have heard
    /// yet that there are any.
    async fn newest_auth_as_far_as_it_goes(&self) -> Result<(), Status> {
        match self.newest_auth_soon().await {
            Err(unknown) if !self.ready.load(Ordering::Relaxed) => Err(unknown),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn is_root(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.permitted(metadata, |auth, author| auth.rights(author)?.everything()).await.map(drop)
    }

    /// Refuses nobody in particular. Where this node knows of no users, there may be some by now.
    pub(super) async fn ensure_user(&self, metadata: &MetadataMap) -> Result<Option<Author>, Status> {
        if !self.view.auth().is_enabled() {
            self.newest_auth_as_far_as_it_goes().await?;
        }
        self.permitted(metadata, |auth, author| auth.rights(author).map(drop)).await
    }

    /// Whether a request may see where members are, without asking anybody: what it may not see is left out. A node that has not caught up since its start
    /// may not have heard yet that there are users.
    pub(super) fn is_known(&self, metadata: &MetadataMap) -> bool {
        let auth = self.view.auth();
        let token = token::of(metadata).and_then(token::Token::read);
        let needs_none = !auth.is_enabled() && self.ready.load(Ordering::Relaxed);
        needs_none || token.is_some_and(|token| self.user_of(&token, &auth, now_ms()).is_some())
    }

    /// The name of a session's write, if the session is the author's.
    pub(super) fn own_once(&self, author: Option<&Author>, named: Option<Named>) -> Result<Option<Once>, Status> {
        let Some(named) = named else { return Ok(None) };
        self.ensure_own_session(author, named.once.session.0, named.proof.as_deref().unwrap_or(""))?;
        Ok(Some(named.once))
    }

    /// Refuses a session that was not opened by this author. Before there were users sessions were nobody's, and are no more good then.
    pub(super) fn ensure_own_session(&self, author: Option<&Author>, id: u64, proof: &str) -> Result<(), Status> {
        let Some(author) = author else { return Ok(()) };
        let auth = self.view.auth();
        if token::is_proof(proof, auth.signing_key(), id, &author.user) {
            Ok(())
        } else {
            Err(refused::foreign_session())
        }
    }

    /// What shows later that the author has opened this session; empty where there are no users.
    pub(super) fn proof(&self, author: Option<&Author>, session: u64) -> String {
        let auth = self.view.auth();
        author.and_then(|author| token::proof(auth.signing_key(), session, &author.user)).unwrap_or_default()
    }
}
