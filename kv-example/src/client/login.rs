//! Who a client is: its name and password, and the token that it gets for them and shows with each request.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::endpoint::Endpoint;
use super::{Client, ClientError, Kind};
use crate::api::etcdserverpb::AuthenticateRequest;
use crate::api::etcdserverpb::auth_client::AuthClient;

/// A connection whose requests carry the client's token.
pub(super) type Line = InterceptedService<Channel, Bearer>;

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub name: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

impl FromStr for Credentials {
    type Err = String;

    /// Reads `NAME:PASSWORD`. A password may have colons, and a name can't here.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((name, password)) if !name.is_empty() => Ok(Self { name: name.into(), password: password.into() }),
            Some(_) | None => Err("is not NAME:PASSWORD".into()),
        }
    }
}

/// What a client has got for its password.
#[derive(Clone, Debug, Default)]
enum Token {
    /// It has not asked yet.
    #[default]
    None,
    /// Marked as sensitive: it is not printed.
    Some(MetadataValue<Ascii>),
    /// The servers want none.
    NotNeeded,
}

/// Puts the token into requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Bearer(Arc<Mutex<Token>>);

impl Bearer {
    fn lock(&self) -> MutexGuard<'_, Token> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Token::Some(token) = &*self.lock() {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

/// What a client needs to log in.
#[derive(Debug)]
pub(super) struct Login {
    credentials: Option<Credentials>,
    bearer: Bearer,
    /// One logs in for all.
    turn: tokio::sync::Mutex<()>,
    /// Counts the tokens, so that nobody throws away a newer one than was refused.
    count: Mutex<u64>,
}

impl Login {
    pub(super) fn new(credentials: Option<Credentials>, bearer: Bearer) -> Self {
        Self { credentials, bearer, turn: tokio::sync::Mutex::default(), count: Mutex::new(0) }
    }

    fn count(&self) -> u64 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token that requests carry was refused: the next request gets another.
    fn refused(&self, count: u64) {
        let now = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        if *now == count {
            *self.bearer.lock() = Token::None;
        }
    }

    fn got(&self, token: Token) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        *self.bearer.lock() = token;
    }

    /// Sees to it that requests carry a token, if the client has a name and the servers want to know it.
    async fn ensure(&self, endpoint: &Endpoint, limit: Duration) -> Result<(), ClientError> {
        let Some(Credentials { name, password }) = &self.credentials else { return Ok(()) };
        if !matches!(*self.bearer.lock(), Token::None) {
            return Ok(());
        }
        let _one = self.turn.lock().await;
        if !matches!(*self.bearer.lock(), Token::None) {
            return Ok(());
        }
        let request = AuthenticateRequest { name: name.clone(), password: password.clone() };
        let call = async { AuthClient::new(endpoint.channel()).authenticate(request).await };
        match endpoint.attempt(Kind::Read, limit, call).await {
            Ok(answer) => match MetadataValue::try_from(answer.token) {
                Ok(mut token) => {
                    token.set_sensitive(true);
                    self.got(Token::Some(token));
                    Ok(())
                }
                Err(_) => Err(ClientError::other(endpoint.address(), "the token that came is no text")),
            },
            Err(ClientError::Other(cause)) if is_not_needed(cause.code, &cause.message) => {
                self.got(Token::NotNeeded);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether the servers want nobody to log in: as etcd says it, or as one says that knows of no users.
fn is_not_needed(code: Code, message: &str) -> bool {
    code == Code::Unimplemented || message.contains("authentication is not enabled")
}

/// Whether a refusal is mended by logging in again.
fn is_stale(error: &ClientError) -> bool {
    let ClientError::Other(cause) = error else { return false };
    // What was decided in a session's turn stays so.
    !cause.decided
        && (cause.code == Code::Unauthenticated
            || cause.message.contains("user name is empty")
            || cause.message.contains("revision of auth store is old"))
}

impl Client {
    /// Logs in, and gives the token for those who speak with the servers in another way; none where nobody needs to log in.
    pub(crate) async fn log_in(&self) -> Result<Option<String>, ClientError> {
        let (login, mut failure) = (&self.inner.login, None);
        for endpoint in &self.inner.endpoints {
            match login.ensure(endpoint, self.inner.options.timeout).await {
                Ok(()) => {
                    let Token::Some(token) = &*login.bearer.lock() else { return Ok(None) };
                    return Ok(token.to_str().ok().map(str::to_owned));
                }
                Err(error @ ClientError::Safe(_)) => failure = Some(error),
                Err(error @ (ClientError::Unknown(_) | ClientError::Other(_))) => return Err(error),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Asks an endpoint as whoever the client is: logs in first, if it must, and once again if the token is refused.
    pub(super) async fn attempt_as<R, F, W>(
        &self,
        endpoint: &Endpoint,
        kind: Kind,
        limit: Duration,
        work: &F,
    ) -> Result<R, ClientError>
    where
        F: Fn(Line) -> W,
        W: Future<Output = Result<Response<R>, Status>>,
    {
        let (login, deadline) = (&self.inner.login, Instant::now() + limit);
        let left = || deadline.saturating_duration_since(Instant::now());
        login.ensure(endpoint, left()).await?;
        let count = login.count();
        let outcome = endpoint.attempt(kind, left(), work(endpoint.channel())).await;
        match outcome {
            Err(error) if login.credentials.is_some() && is_stale(&error) => {
                login.refused(count);
                login.ensure(endpoint, left()).await?;
                let outcome = endpoint.attempt(kind, left(), work(endpoint.channel())).await;
                match outcome {
                    // It was good a moment ago: it has expired on its way, or this node's clock differs from the other's.
                    Err(ClientError::Other(cause)) if cause.code == Code::Unauthenticated => {
                        Err(ClientError::Safe(cause))
                    }
                    outcome => outcome,
                }
            }
            outcome => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_a_name_and_a_password_that_is_not_printed() {
        let credentials: Credentials = "ann:a:b".parse().unwrap();
        assert_eq!((&credentials.name[..], &credentials.password[..]), ("ann", "a:b"));
        assert_eq!(format!("{credentials:?}"), "Credentials { name: \"ann\", .. }");
        for wrong in ["", "ann", ":secret"] {
            assert!(wrong.parse::<Credentials>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_newer_token_is_not_thrown_away_with_an_older_one() {
        let login = Login::new(None, Bearer::default());
        login.got(Token::Some(MetadataValue::from_static("first")));
        let count = login.count();
        login.got(Token::Some(MetadataValue::from_static("second")));
        login.refused(count);
        assert!(matches!(&*login.bearer.lock(), Token::Some(token) if token == "second"));
        login.refused(login.count());
        assert!(matches!(*login.bearer.lock(), Token::None));
    }
}
