//! Messages with passwords, their hashes, tokens, or the key that signs these. Whoever prints one for a log prints no secret.

use std::fmt;

use super::command::{AuthEnable, ImageAuth, ImageUser, UserAdd, UserPassword};
use super::etcdserverpb::{
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthenticateRequest, AuthenticateResponse,
};

/// What is printed in the place of a secret.
const SECRET: &str = "(not shown)";

impl fmt::Debug for AuthenticateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, password: _ } = self;
        f.debug_struct("AuthenticateRequest").field("name", name).field("password", &SECRET).finish()
    }
}

impl fmt::Debug for AuthenticateResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { header, token: _ } = self;
        f.debug_struct("AuthenticateResponse").field("header", header).field("token", &SECRET).finish()
    }
}

impl fmt::Debug for AuthUserAddRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, password: _, options } = self;
        let mut message = f.debug_struct("AuthUserAddRequest");
        message.field("name", name).field("password", &SECRET).field("options", options).finish()
    }
}

impl fmt::Debug for AuthUserChangePasswordRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, password: _ } = self;
        f.debug_struct("AuthUserChangePasswordRequest").field("name", name).field("password", &SECRET).finish()
    }
}

impl fmt::Debug for AuthEnable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { signing_key: _ } = self;
        f.debug_struct("AuthEnable").field("signing_key", &SECRET).finish()
    }
}

impl fmt::Debug for UserAdd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, password_hash: _ } = self;
        f.debug_struct("UserAdd").field("name", name).field("password_hash", &SECRET).finish()
    }
}

impl fmt::Debug for UserPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, password_hash: _ } = self;
        f.debug_struct("UserPassword").field("name", name).field("password_hash", &SECRET).finish()
    }
}

impl fmt::Debug for ImageUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, password_hash: _, since, roles } = self;
        let mut message = f.debug_struct("ImageUser");
        message.field("name", name).field("password_hash", &SECRET).field("since", since).field("roles", roles).finish()
    }
}

impl fmt::Debug for ImageAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { enabled, revision, since, signing_key: _, users, roles } = self;
        let mut message = f.debug_struct("ImageAuth");
        message.field("enabled", enabled).field("revision", revision).field("since", since);
        message.field("signing_key", &SECRET).field("users", users).field("roles", roles).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::command::{AuthChange, Command, auth_change::Change, command::Body};

    #[test]
    fn what_is_printed_of_a_message_holds_no_secret() {
        let secret = || "hunter2".to_owned();
        let change = |change| Command {
            body: Some(Body::Auth(AuthChange { change: Some(change) })),
            author: None,
            max_answer: None,
        };
        let user = ImageUser { name: "u".into(), password_hash: secret(), ..Default::default() };
        let printed = [
            format!("{:?}", AuthenticateRequest { name: "u".into(), password: secret() }),
            format!("{:?}", AuthenticateResponse { header: None, token: secret() }),
            format!("{:?}", AuthUserAddRequest { name: "u".into(), password: secret(), options: None }),
            format!("{:?}", AuthUserChangePasswordRequest { name: "u".into(), password: secret() }),
            format!("{:?}", change(Change::Enable(AuthEnable { signing_key: secret().into() }))),
            format!("{:?}", change(Change::UserAdd(UserAdd { name: "u".into(), password_hash: secret() }))),
            format!("{:?}", change(Change::UserPassword(UserPassword { name: "u".into(), password_hash: secret() }))),
            format!("{:?}", ImageAuth { signing_key: secret().into(), users: vec![user], ..Default::default() }),
        ];
        for text in printed {
            // Bytes are printed as text as well, and as numbers by some.
            assert!(!text.contains("hunter2") && !text.contains("104, 117") && text.contains(SECRET), "{text}");
        }
    }
}
