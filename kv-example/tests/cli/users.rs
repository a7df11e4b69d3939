//! `auth`, `user` and `role`, and `--user`, as a person types them, right and wrong.

use std::io::Write;
use std::process::{Output, Stdio};

use crate::support::{Alone, Running, assert_refused, program, run, stderr, stdout, wait_for};

struct Place {
    // Before what it works on.
    node: Running,
    alone: Alone,
}

impl Place {
    fn new() -> Self {
        let alone = Alone::new();
        Self { node: alone.start(&[]), alone }
    }

    /// Runs a command with these words and environment, and this as its standard input.
    fn say(&self, words: &str, env: &[(&str, &str)], input: &str) -> Output {
        let mut command = program();
        command.args(words.split(' ')).args(["--endpoints", &self.alone.client]).envs(env.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that is refused reads nothing.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn ok(&self, words: &str) -> String {
        let output = self.say(words, &[], "");
        assert!(output.status.success(), "{words}: {}", stderr(&output));
        stdout(&output)
    }

    fn fails(&self, words: &str) -> String {
        let output = self.say(words, &[], "");
        assert_eq!(output.status.code(), Some(1), "{words}: {}{}", stdout(&output), stderr(&output));
        stderr(&output)
    }
}

#[test]
fn users_and_roles_from_nothing_to_permission_denied() {
    let place = Place::new();
    assert!(place.fails("auth enable").contains("add it: kv-example user add root"));
    assert!(place.ok("user add root:rootpw").contains("user root is added"));
    assert!(place.fails("auth enable").contains("grant it: kv-example user grant root root"));
    place.ok("user grant root root");
    // The password from stdin.
    assert!(place.say("user add ann", &[], "annpw\n").status.success());
    place.ok("role add r");
    place.ok("role grant r readwrite ann/ --prefix");
    place.ok("role grant r read k");
    assert!(place.fails("user grant ann s").contains("kv-example role list"));
    place.ok("user grant ann r");
    assert_eq!(place.ok("user list"), "ann\nroot\n");
    let role = place.ok("role get r");
    assert!(role.contains("readwrite") && role.contains("ann0") && role.contains("(that key alone)"), "{role}");
    let json: serde_json::Value = serde_json::from_str(&place.ok("role get r --json")).unwrap();
    assert_eq!(json["permissions"][1], serde_json::json!({"may": "read", "key": "k", "range_end": ""}));
    assert!(place.ok("auth enable").contains("RAFTKV_USER"));

    assert!(place.fails("get k").contains("user name is empty"));
    assert!(place.ok("get k --value-only --user ann:annpw").starts_with('v'));
    assert!(place.ok("put ann/1 x --user ann --password annpw").contains("OK"));
    let as_ann = [("RAFTKV_USER", "ann"), ("RAFTKV_PASSWORD", "annpw")];
    assert!(place.say("range --prefix ann/ --count-only", &as_ann, "").status.success());
    let denied = place.say("put k w", &as_ann, "");
    assert!(denied.status.code() == Some(1) && stderr(&denied).contains("permission denied"), "{}", stderr(&denied));
    assert!(place.fails("get k --user ann:wrong").contains("authentication failed"));
    assert!(place.fails("user list --user ann:annpw").contains("permission denied"));
    assert_eq!(place.ok("user get ann --user ann:annpw"), "r\n");
    assert!(place.ok("status --user ann:annpw").contains("leader"));
    assert!(place.ok("member list --user ann:annpw").contains("n1"));
    assert!(place.fails("member list").contains("user name is empty"));
    assert!(place.ok("auth status --user root:rootpw").contains("authentication is enabled"));

    let changed = place.say("user passwd ann --user root:rootpw", &[], "new password\n");
    assert!(changed.status.success(), "{}", stderr(&changed));
    assert!(place.fails("get k --user ann:annpw").contains("authentication failed"));
    place.ok("role revoke r k --user root:rootpw");
    let denied = place.say("get k", &[("RAFTKV_USER", "ann"), ("RAFTKV_PASSWORD", "new password")], "");
    assert!(stderr(&denied).contains("permission denied"), "{}", stderr(&denied));
    assert!(place.fails("user delete root --user root:rootpw").contains("keeps the role root"));
    place.ok("user revoke ann r --user root:rootpw");
    place.ok("role delete r --user root:rootpw");
    place.ok("user delete ann --user root:rootpw");
    assert_eq!(place.ok("role list --user root:rootpw"), "no roles\n");
    place.ok("auth disable --user root:rootpw");
    place.ok("get k");
}

/// As in etcd, it is enabled all the same.
#[test]
fn what_enabling_authentication_locks_or_leaves_open_is_warned_of() {
    let place = Place::new();
    let warned =
        |words: &str| place.node.log().lines().filter(|line| line.contains("WARN") && line.contains(words)).count();
    place.ok("user add root --no-password");
    place.ok("user grant root root");
    place.ok("user add boss:bosspw");
    place.ok("user grant boss root");
    assert_eq!(warned("authentication"), 0);
    place.ok("auth enable");
    wait_for("the warnings", || (warned("the connections of members and clients have no TLS") == 1).then_some(()));
    assert_eq!(warned("root has no password, so nobody can log in as root: others"), 1);
    place.ok("auth disable --user boss:bosspw");

    place.ok("user delete boss");
    place.ok("auth enable");
    wait_for("the warnings", || (warned("have no TLS") == 2).then_some(()));
    assert_eq!(warned("nor has anybody else who has the role root"), 1);
    assert!(place.fails("auth disable --user root:").contains("authentication failed"));
}

#[test]
fn a_root_with_a_password_is_warned_of_clear_connections_alone() {
    let place = Place::new();
    place.ok("user add root:rootpw");
    place.ok("user grant root root");
    place.ok("auth enable");
    wait_for("the warning", || place.node.log().contains("members and clients have no TLS").then_some(()));
    assert!(!place.node.log().contains("root has no password"));
}

#[test]
fn what_is_said_wrongly_is_told_before_anybody_is_asked() {
    let nowhere = ["--endpoints", "127.0.0.1:1"];
    let with = |words: &str| run(&[words.split(' ').collect::<Vec<_>>(), nowhere.to_vec()].concat());
    assert_refused(&with("get k --user ann"), &["--password", "RAFTKV_PASSWORD"]);
    assert_refused(&with("get k --password secret"), &["--user"]);
    assert_refused(&with("user add ann"), &["--new-password", "stdin"]);
    assert_refused(&with("user add ann:a --new-password b"), &["leave one out"]);
    assert_refused(&with("user add ann:a --no-password"), &["leave one out"]);
    assert_refused(&with("role grant r read a b --prefix"), &["--prefix"]);
    assert_refused(&with("role grant r eat a"), &["readwrite"]);
}
