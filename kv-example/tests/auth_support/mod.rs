//! Users, roles and permissions among the commands that a test makes up.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use bytes::Bytes;
use kv_example::api::authpb::Permission;
use kv_example::api::command::auth_change::Change;
use kv_example::api::command::{
    AuthChange, AuthDisable, AuthEnable, Author, Command, Outcome, RoleAdd, RoleDelete, RoleGrant, RoleRevoke, UserAdd,
    UserDelete, UserGrant, UserPassword, UserRevoke, command, outcome,
};
use kv_example::machine::encode_command_of;
use prost::Message;
use raftkv::testing::Random;

const ROOT: &str = "root";

/// A user who is known at any revision: whoever logs in again does.
fn author(user: &str) -> Author {
    Author { user: user.into(), revision: u64::MAX }
}

/// A command of root more often than not, who may do everything where users are asked for; or of somebody who may do little, or of nobody.
pub fn of_somebody(random: &mut Random, body: command::Body) -> Bytes {
    let author = match random.below(10) {
        0..7 => Some(author(ROOT)),
        7 | 8 => Some(author("ann")),
        _ => None,
    };
    encode_command_of(author, body)
}

fn role(random: &mut Random) -> String {
    random.pick(&["reader", "writer", ROOT]).unwrap_or_default().into()
}

fn permission(random: &mut Random) -> Permission {
    let keys = ["", "a", "key-1", "key-2", "key-3", "z"];
    let mut key = || Bytes::from(random.pick(&keys).unwrap_or_default());
    let (key, range_end) = (key(), key());
    Permission { perm_type: i32::from(random.below(3).to_le_bytes()[0]), key, range_end }
}

/// Some change of users and roles. Those that it takes until users are asked for are frequent.
pub fn some_change(random: &mut Random) -> command::Body {
    let name = if random.percent(60) { ROOT } else { "ann" }.to_owned();
    let password_hash = format!("hash-{}", random.below(100));
    let change = match random.weighted(&[6, 6, 5, 1, 2, 3, 1, 1, 1, 1, 1]) {
        0 => Change::UserAdd(UserAdd { name, password_hash }),
        1 => {
            let role = if name == ROOT { ROOT.to_owned() } else { role(random) };
            Change::UserGrant(UserGrant { user: name, role })
        }
        2 => Change::Enable(AuthEnable { signing_key: vec![random.below(9).to_le_bytes()[0]; 32].into() }),
        3 => Change::Disable(AuthDisable {}),
        4 => Change::RoleAdd(RoleAdd { name: role(random) }),
        5 => Change::RoleGrant(RoleGrant { role: role(random), permission: Some(permission(random)) }),
        6 => Change::UserPassword(UserPassword { name, password_hash }),
        7 => Change::UserDelete(UserDelete { name }),
        8 => Change::UserRevoke(UserRevoke { user: name, role: role(random) }),
        9 => Change::RoleDelete(RoleDelete { name: role(random) }),
        _ => {
            let Permission { key, range_end, .. } = permission(random);
            Change::RoleRevoke(RoleRevoke { role: role(random), key, range_end })
        }
    };
    command::Body::Auth(AuthChange { change: Some(change) })
}

/// What it takes until users are asked for, by somebody who may do that either way.
pub fn enabling() -> Vec<Bytes> {
    let changes = [
        Change::UserAdd(UserAdd { name: ROOT.into(), password_hash: "hash".into() }),
        Change::UserGrant(UserGrant { user: ROOT.into(), role: ROOT.into() }),
        Change::Enable(AuthEnable { signing_key: vec![7; 32].into() }),
    ];
    let change = |change| command::Body::Auth(AuthChange { change: Some(change) });
    changes.into_iter().map(|one| encode_command_of(Some(author(ROOT)), change(one))).collect()
}

/// Has nobody asked for users any more, if they were.
pub fn disable() -> Bytes {
    let change = Some(Change::Disable(AuthDisable {}));
    encode_command_of(Some(author(ROOT)), command::Body::Auth(AuthChange { change }))
}

/// How often these answers say that users are asked for from then on.
pub fn times_enabled<'a>(answered: impl Iterator<Item = (&'a Bytes, &'a Bytes)>) -> usize {
    let enables = |command: &Bytes| {
        let command = Command::decode(command.clone()).ok()?;
        let Some(command::Body::Auth(AuthChange { change: Some(Change::Enable(_)) })) = command.body else {
            return None;
        };
        Some(())
    };
    let is_done = |answer: &Bytes| {
        Outcome::decode(answer.clone()).is_ok_and(|outcome| matches!(outcome.body, Some(outcome::Body::Auth(_))))
    };
    answered.filter(|(command, answer)| enables(command).is_some() && is_done(answer)).count()
}
