//! What has to do with users.

use std::time::Duration;

use super::{ConfigError, Given, Layers, ServerArgs};
use crate::client::Credentials;
use crate::service::DEFAULT_TOKEN_TTL;

/// How long a login holds.
pub(super) fn token_ttl(args: &ServerArgs, layers: &Layers<'_>) -> Result<Duration, ConfigError> {
    let default = DEFAULT_TOKEN_TTL.as_secs();
    let ttl = layers.number("auth-token-ttl", args.auth_token_ttl.as_ref(), |f| f.auth_token_ttl, default)?;
    Ok(Duration::from_secs(ttl.value))
}

/// As whom a node asks that joins. A mistake in it is told without the value.
pub(super) fn join_user(args: &ServerArgs, layers: &Layers<'_>) -> Result<Option<Credentials>, ConfigError> {
    let user = layers.text("join-user", args.join_user.as_ref(), |f| f.join_user.clone());
    let parse = |Given { value, origin }: Given<String>| {
        value.parse().map_err(|_| ConfigError(format!("{origin}: this must be NAME:PASSWORD")))
    };
    user.map(parse).transpose()
}
