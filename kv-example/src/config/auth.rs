//! What has to do with users.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, Given, Layers, ServerArgs};
use crate::client::Credentials;
use crate::service::DEFAULT_TOKEN_TTL;

/// An option's value that is not printed: what holds it may be.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

/// From the file: whatever else stands there is refused without being told.
impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "this must be a string \"NAME:PASSWORD\"")]
        enum Text {
            Given(String),
        }
        let Text::Given(text) = Text::deserialize(from)?;
        Ok(Self(text))
    }
}

/// How long a login holds.
pub(super) fn token_ttl(args: &ServerArgs, layers: &Layers<'_>) -> Result<Duration, ConfigError> {
    let default = DEFAULT_TOKEN_TTL.as_secs();
    let ttl = layers.number("auth-token-ttl", args.auth_token_ttl.as_ref(), |f| f.auth_token_ttl, default)?;
    Ok(Duration::from_secs(ttl.value))
}

/// As whom a node asks that joins. A mistake in it is told without the value.
pub(super) fn join_user(args: &ServerArgs, layers: &Layers<'_>) -> Result<Option<Credentials>, ConfigError> {
    let given = args.join_user.as_ref().map(|Secret(user)| user);
    let user = layers.text("join-user", given, |f| f.join_user.clone().map(|Secret(user)| user));
    let parse = |Given { value, origin }: Given<String>| {
        value.parse().map_err(|_| ConfigError(format!("{origin}: this must be NAME:PASSWORD")))
    };
    user.map(parse).transpose()
}
