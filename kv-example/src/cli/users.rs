//! `auth`, `user`, `role`: who may do what.

use std::io::BufRead;

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::kv::first_key;
use super::text::{put_json, shown};
use super::{Connection, Failure, output, text};
use crate::api::authpb::Permission;
use crate::api::authpb::permission::Type;
use crate::client::{Client, ClientError, Credentials, prefix_end};
use crate::config::Secret;

#[derive(Subcommand, Debug)]
pub(super) enum Auth {
    /// Let only users do anything; there must be a user `root` with the role `root`
    Enable(Bare),
    /// Let everybody do everything; users and roles stay
    Disable(Bare),
    /// Show whether it is enabled
    Status(Bare),
}

#[derive(Subcommand, Debug)]
pub(super) enum User {
    /// Add a user
    Add(NewUser),
    /// Delete a user
    Delete(Named),
    /// Show the users
    List(Bare),
    /// Show the roles of a user
    Get(Named),
    /// Give a user another password; whoever has logged in with the former one must log in again
    Passwd(Passwd),
    /// Give a user a role; the role `root` permits everything
    Grant(OfUser),
    /// Take a role from a user
    Revoke(OfUser),
}

#[derive(Subcommand, Debug)]
pub(super) enum Role {
    /// Add a role, which permits nothing
    Add(Named),
    /// Delete a role, and take it from its users
    Delete(Named),
    /// Show the roles
    List(Bare),
    /// Show what a role permits
    Get(Named),
    /// Let a role read or write keys
    Grant(Grant),
    /// Take the permission for a key, or for this very range, from a role
    Revoke(Revoke),
}

#[derive(Args, Debug)]
pub(super) struct Bare {
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct Named {
    /// The name
    name: String,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct NewUser {
    /// The name; a password after a colon can be seen in the list of processes
    #[arg(value_name = "NAME[:PASSWORD]")]
    name: Secret,
    /// The password [default: the first line of stdin]
    #[arg(long, value_name = "PASSWORD", conflicts_with = "no_password")]
    new_password: Option<Secret>,
    /// Nobody can log in as this user
    #[arg(long)]
    no_password: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct Passwd {
    /// The user
    name: String,
    /// The password [default: the first line of stdin]
    #[arg(long, value_name = "PASSWORD")]
    new_password: Option<Secret>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct OfUser {
    /// The user
    user: String,
    /// The role
    role: String,
    #[command(flatten)]
    connection: Connection,
}

/// Keys of a permission.
#[derive(Args, Debug)]
struct Keys {
    /// The key; with --prefix, the beginning of all keys that are meant
    key: String,
    /// Up to this key, which is not included
    #[arg(conflicts_with_all = ["prefix", "from_key"])]
    end: Option<String>,
    /// All keys that begin with KEY
    #[arg(long, conflicts_with = "from_key")]
    prefix: bool,
    /// All keys from KEY on
    #[arg(long)]
    from_key: bool,
    /// Read keys as hexadecimal digits
    #[arg(long)]
    hex: bool,
}

impl Keys {
    fn range(&self) -> Result<(Bytes, Bytes), Failure> {
        let key = text::argument(&self.key, self.hex)?;
        let end = match &self.end {
            Some(end) => text::argument(end, self.hex)?,
            None if self.prefix => prefix_end(&key),
            None if self.from_key => Bytes::from_static(&[0]),
            None => Bytes::new(),
        };
        let key = if self.prefix || self.from_key { first_key(key) } else { key };
        Ok((key, end))
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Read,
    Write,
    Readwrite,
}

#[derive(Args, Debug)]
pub(super) struct Grant {
    /// The role
    role: String,
    /// What it may do
    #[arg(value_enum)]
    kind: Kind,
    #[command(flatten)]
    keys: Keys,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct Revoke {
    /// The role
    role: String,
    #[command(flatten)]
    keys: Keys,
    #[command(flatten)]
    connection: Connection,
}

/// The password for a new user, or a new one: not from the terminal's echo, nor asked for.
fn new_password(given: Option<Secret>) -> Result<String, Failure> {
    if let Some(Secret(password)) = given {
        return Ok(password);
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|e| Failure::runtime(format!("stdin: {e}")))?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(Failure::usage(
            "there is no password: say --new-password, or write it to stdin (with --no-password nobody can log in)",
        ));
    }
    Ok(password.to_owned())
}

async fn change(
    connection: &Connection,
    said: Value,
    text: &str,
    work: impl AsyncFnOnce(&Client) -> Result<(), ClientError>,
) -> Result<(), Failure> {
    work(&connection.client()?).await.map_err(advise)?;
    if connection.json { output::print_json(&said) } else { output::print(text) }
}

/// What to do next, where the server's words don't say.
fn advise(error: ClientError) -> Failure {
    let words = error.cause().message.clone();
    let next = [
        ("root user does not exist", "add it: kv-example user add root"),
        ("root user does not have root role", "grant it: kv-example user grant root root"),
        ("role name not found", "see which there are with `kv-example role list`, or add it: kv-example role add NAME"),
        ("user name not found", "see which there are with `kv-example user list`"),
        (
            "invalid auth management",
            "the user root keeps the role root while authentication is enabled; and a range ends behind its beginning",
        ),
    ];
    match (next.into_iter().find(|(text, _)| words.contains(text)), error) {
        (Some((_, next)), error @ ClientError::Other(_)) => Failure::runtime(format!("{error}; {next}")),
        (_, error) => error.into(),
    }
}

pub(super) async fn auth(auth: Auth) -> Result<(), Failure> {
    match auth {
        Auth::Enable(Bare { connection }) => {
            let text =
                "authentication is enabled: only users may do anything; say --user, or RAFTKV_USER and RAFTKV_PASSWORD";
            change(&connection, json!({ "enabled": true }), text, async |client| client.auth_enable().await).await
        }
        Auth::Disable(Bare { connection }) => {
            let text = "authentication is disabled: everybody may do everything";
            change(&connection, json!({ "enabled": false }), text, async |client| client.auth_disable().await).await
        }
        Auth::Status(Bare { connection }) => {
            let status = connection.client()?.auth_status().await?;
            if connection.json {
                return output::print_json(&json!({ "enabled": status.enabled, "revision": status.auth_revision }));
            }
            let is = if status.enabled { "enabled" } else { "disabled" };
            output::print(format!("authentication is {is} (revision {} of the users and roles)", status.auth_revision))
        }
    }
}

pub(super) async fn user(user: User) -> Result<(), Failure> {
    match user {
        User::Add(NewUser { name: Secret(name), new_password: given, no_password, connection }) => {
            let (name, password) = match name.parse::<Credentials>() {
                Ok(_) if no_password || given.is_some() => {
                    return Err(Failure::usage("a password after the name, and another option for it: leave one out"));
                }
                Ok(new) => (new.name, Some(new.password)),
                Err(_) if no_password => (name, None),
                Err(_) => (name, Some(new_password(given)?)),
            };
            let text = format!("user {name} is added; a role lets it do something: kv-example user grant {name} ROLE");
            let add = async |client: &Client| client.user_add(&name, password.as_deref()).await;
            change(&connection, json!({ "added": name }), &text, add).await
        }
        User::Delete(Named { name, connection }) => {
            let delete = async |client: &Client| client.user_delete(&name).await;
            change(&connection, json!({ "deleted": name }), &format!("user {name} is deleted"), delete).await
        }
        User::List(Bare { connection }) => names(&connection, "users", connection.client()?.users().await?),
        User::Get(Named { name, connection }) => {
            names(&connection, "roles", connection.client()?.user_roles(&name).await.map_err(advise)?)
        }
        User::Passwd(Passwd { name, new_password: given, connection }) => {
            let password = new_password(given)?;
            let text = format!(
                "user {name} has another password; whoever has logged in with the former one must log in again"
            );
            let change_it = async |client: &Client| client.user_password(&name, &password).await;
            change(&connection, json!({ "changed": name }), &text, change_it).await
        }
        User::Grant(OfUser { user, role, connection }) => {
            let grant = async |client: &Client| client.user_grant(&user, &role).await;
            change(
                &connection,
                json!({ "user": user, "granted": role }),
                &format!("user {user} has role {role}"),
                grant,
            )
            .await
        }
        User::Revoke(OfUser { user, role, connection }) => {
            let revoke = async |client: &Client| client.user_revoke(&user, &role).await;
            let text = format!("user {user} does not have role {role} any more");
            change(&connection, json!({ "user": user, "revoked": role }), &text, revoke).await
        }
    }
}

pub(super) async fn role(role: Role) -> Result<(), Failure> {
    match role {
        Role::Add(Named { name, connection }) => {
            let text = format!(
                "role {name} is added; let it do something: kv-example role grant {name} read|write|readwrite KEY"
            );
            change(&connection, json!({ "added": name }), &text, async |client| client.role_add(&name).await).await
        }
        Role::Delete(Named { name, connection }) => {
            let delete = async |client: &Client| client.role_delete(&name).await;
            change(&connection, json!({ "deleted": name }), &format!("role {name} is deleted"), delete).await
        }
        Role::List(Bare { connection }) => names(&connection, "roles", connection.client()?.roles().await?),
        Role::Get(Named { name, connection }) => {
            let permissions = connection.client()?.role_permissions(&name).await.map_err(advise)?;
            if connection.json {
                let permissions: Vec<_> = permissions.iter().map(permission_json).collect();
                return output::print_json(&json!({ "role": name, "permissions": permissions }));
            }
            let mut table = output::table(["may", "from key", "up to"]);
            for permission in &permissions {
                table.add_row(row(permission));
            }
            if permissions.is_empty() {
                output::print(format!("role {name} permits nothing by itself"))
            } else {
                output::print(table)
            }
        }
        Role::Grant(Grant { role, kind, keys, connection }) => {
            let (key, range_end) = keys.range()?;
            let kind = match kind {
                Kind::Read => Type::Read,
                Kind::Write => Type::Write,
                Kind::Readwrite => Type::Readwrite,
            };
            let permission = Permission { perm_type: kind.into(), key, range_end };
            let said = json!({ "role": role, "granted": permission_json(&permission) });
            let grant = async |client: &Client| client.role_grant(&role, permission).await;
            change(&connection, said, &format!("role {role} has the permission"), grant).await
        }
        Role::Revoke(Revoke { role, keys, connection }) => {
            let (key, range_end) = keys.range()?;
            let revoke = async |client: &Client| client.role_revoke(&role, key, range_end).await;
            let text = format!("role {role} does not have the permission any more");
            change(&connection, json!({ "role": role, "revoked": true }), &text, revoke).await
        }
    }
}

fn names(connection: &Connection, what: &str, names: Vec<String>) -> Result<(), Failure> {
    if connection.json {
        return output::print_json(&json!({ what: names }));
    }
    output::print(if names.is_empty() { format!("no {what}") } else { names.join("\n") })
}

fn kind_of(permission: &Permission) -> &'static str {
    match permission.perm_type() {
        Type::Read => "read",
        Type::Write => "write",
        Type::Readwrite => "readwrite",
    }
}

fn permission_json(permission: &Permission) -> Value {
    let mut object = serde_json::Map::new();
    object.insert("may".into(), json!(kind_of(permission)));
    put_json(&mut object, "key", &permission.key);
    put_json(&mut object, "range_end", &permission.range_end);
    Value::Object(object)
}

fn row(permission: &Permission) -> Vec<String> {
    let upto = match &permission.range_end[..] {
        [] => "(that key alone)".into(),
        [0] => "(to the last of all)".into(),
        end => shown(end),
    };
    vec![kind_of(permission).into(), shown(&permission.key), upto]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_permission_are_as_in_etcd() {
        let keys = |key: &str, end: Option<&str>, prefix, from_key| {
            let keys = Keys { key: key.into(), end: end.map(str::to_owned), prefix, from_key, hex: false };
            let (key, end) = keys.range().unwrap();
            (key.to_vec(), end.to_vec())
        };
        assert_eq!(keys("a", None, false, false), (b"a".to_vec(), vec![]));
        assert_eq!(keys("a", Some("c"), false, false), (b"a".to_vec(), b"c".to_vec()));
        assert_eq!(keys("a/", None, true, false), (b"a/".to_vec(), b"a0".to_vec()));
        assert_eq!(keys("", None, true, false), (vec![0], vec![0]));
        assert_eq!(keys("b", None, false, true), (b"b".to_vec(), vec![0]));
    }

    #[test]
    fn a_permission_is_shown_in_words() {
        let permission = |perm_type: Type, end: &[u8]| Permission {
            perm_type: perm_type.into(),
            key: "k".into(),
            range_end: end.to_vec().into(),
        };
        assert_eq!(row(&permission(Type::Read, b"")).join("|"), "read|k|(that key alone)");
        assert_eq!(row(&permission(Type::Readwrite, b"\0")).join("|"), "readwrite|k|(to the last of all)");
        assert_eq!(row(&permission(Type::Write, b"m")).join("|"), "write|k|m");
    }
}
