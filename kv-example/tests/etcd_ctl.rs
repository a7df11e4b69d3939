//! A session with `etcdctl`, the way a person would use it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what went wrong by panicking")]

mod etcd_support;

use std::io::Write;
use std::process::{Command, Stdio};

use etcd_support::{Ours, installed};

struct Ctl {
    address: String,
}

impl Ctl {
    /// Runs etcdctl, and gives what it printed and whether it succeeded.
    async fn run(&self, args: &[&str], input: &str) -> (bool, String) {
        let (address, input) = (self.address.clone(), input.to_owned());
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        tokio::task::spawn_blocking(move || {
            let mut process = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &address, "--command-timeout", "5s"])
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let output = process.wait_with_output().unwrap();
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&text).into_owned())
        })
        .await
        .unwrap()
    }

    async fn ok(&self, args: &[&str]) -> String {
        let (success, text) = self.run(args, "").await;
        assert!(success, "{args:?}: {text}");
        text
    }

    async fn fails(&self, args: &[&str]) -> String {
        let (success, text) = self.run(args, "").await;
        assert!(!success, "{args:?}: {text}");
        text
    }
}

async fn start() -> Option<(Ours, Ctl)> {
    if !installed("etcdctl") {
        return None;
    }
    let ours = Ours::start().await;
    let ctl = Ctl { address: ours.address.to_string() };
    Some((ours, ctl))
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_written_read_and_deleted() {
    let Some((_ours, ctl)) = start().await else { return };
    assert_eq!(ctl.ok(&["put", "a", "one"]).await, "OK\n");
    assert_eq!(ctl.ok(&["put", "ab", "two"]).await, "OK\n");
    assert_eq!(ctl.ok(&["put", "b", "three"]).await, "OK\n");
    assert_eq!(ctl.ok(&["put", "--prev-kv", "a", "four"]).await, "OK\na\none\n");
    assert_eq!(ctl.ok(&["get", "a"]).await, "a\nfour\n");
    assert_eq!(ctl.ok(&["get", "--prefix", "a"]).await, "a\nfour\nab\ntwo\n");
    assert_eq!(ctl.ok(&["get", "--from-key", "ab", "--print-value-only"]).await, "two\nthree\n");
    assert_eq!(ctl.ok(&["get", "a", "--rev=2"]).await, "a\none\n");
    assert_eq!(ctl.ok(&["get", "", "--prefix", "--keys-only", "--limit=1"]).await, "a\n\n");
    assert_eq!(ctl.ok(&["get", "", "--prefix", "--order=DESCEND", "--sort-by=MODIFY", "--limit=1"]).await, "a\nfour\n");
    assert_eq!(ctl.ok(&["del", "--prefix", "a", "--prev-kv"]).await, "2\na\nfour\nab\ntwo\n");
    assert_eq!(ctl.ok(&["get", "a"]).await, "");
    let json = ctl.ok(&["get", "b", "-w", "json"]).await;
    assert!(
        json.contains(r#""key":"Yg==","create_revision":4,"mod_revision":4,"version":1,"value":"dGhyZWU=""#),
        "{json}"
    );
    assert!(json.contains(r#""header":{"cluster_id":77,"member_id":9,"revision":6,"raft_term":3}"#), "{json}");
    assert!(ctl.fails(&["put", "c", "v", "--lease=12"]).await.contains("leases are not supported yet"));
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_compare_and_choose() {
    let Some((_ours, ctl)) = start().await else { return };
    ctl.ok(&["put", "user1", "bad"]).await;
    let script = "value(\"user1\") = \"bad\"\n\ndel user1\nput user2 new\nget user2\n\nput user1 good\n\n";
    let (success, text) = ctl.run(&["txn", "-i"], script).await;
    assert!(success, "{text}");
    let answer = text.split_once("SUCCESS").expect("it succeeds").1;
    assert_eq!(answer.split_whitespace().collect::<Vec<_>>(), ["1", "OK", "user2", "new"]);
    let (success, text) = ctl.run(&["txn", "-i"], script).await;
    assert!(success && text.contains("FAILURE"), "{text}");
    assert_eq!(ctl.ok(&["get", "user1"]).await, "user1\ngood\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_forgets() {
    let Some((_ours, ctl)) = start().await else { return };
    for value in ["1", "2", "3"] {
        ctl.ok(&["put", "k", value]).await;
    }
    assert_eq!(ctl.ok(&["compaction", "3", "--physical"]).await, "compacted revision 3\n");
    assert_eq!(ctl.ok(&["get", "k", "--rev=3"]).await, "k\n2\n");
    assert!(
        ctl.fails(&["get", "k", "--rev=2"]).await.contains("etcdserver: mvcc: required revision has been compacted")
    );
    assert!(ctl.fails(&["get", "k", "--rev=9"]).await.contains("required revision is a future revision"));
    assert!(ctl.fails(&["compaction", "3"]).await.contains("required revision has been compacted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_status_members_and_health() {
    let Some((ours, ctl)) = start().await else { return };
    ctl.ok(&["put", "k", "v"]).await;
    assert!(ctl.ok(&["endpoint", "health"]).await.contains("is healthy"));
    let status = ctl.ok(&["endpoint", "status", "-w", "json"]).await;
    for part in [r#""member_id":9"#, r#""leader":9"#, r#""raftTerm":3"#, r#""raftIndex":1"#, r#""dbSize":"#] {
        assert!(status.contains(part), "{part} in {status}");
    }
    assert!(ctl.ok(&["endpoint", "status", "-w", "table"]).await.contains("| IS LEADER |"));
    let members = ctl.ok(&["member", "list", "-w", "table"]).await;
    assert!(members.contains(" n9 |") && members.contains(&format!("http://{}", ours.address)), "{members}");
    assert!(ctl.ok(&["endpoint", "hashkv", "-w", "json"]).await.contains(r#""hash":"#));
    assert!(ctl.ok(&["alarm", "list"]).await.is_empty());
    assert!(ctl.fails(&["defrag"]).await.contains("not supported by this server"));
}

/// From no users to some, authentication on and off.
const ON_USERS: &str = "
    auth enable
    user add root:rootpw
    user add ann:annpw
    user add ann:annpw
    user add nopw --no-password
    role add r
    role add r
    role grant-permission r read a c
    role grant-permission r readwrite foo
    role grant-permission r write w/ --prefix
    role grant-permission r read x --from-key
    role grant-permission s read x
    role get r
    role get s
    user grant-role ann r
    user grant-role ann r
    user grant-role ann s
    user grant-role bob r
    user get ann
    user get ann --detail
    user get bob
    user list
    role list
    get a
    auth enable
    get a
    put a 1
    del a
    user list
    --user ann:annpw get a
    --user ann:annpw get a c
    --user ann:annpw get a d
    --user ann:annpw get x --from-key
    --user ann:annpw get w/1
    --user ann:annpw put w/1 v
    --user ann:annpw put w/1 v --prev-kv
    --user ann:annpw put foo v --prev-kv
    --user ann:annpw put a 1
    --user ann:annpw del foo
    --user ann:annpw del a
    --user ann:wrong get a
    --user bob:annpw get a
    --user ann:annpw user list
    --user ann:annpw user get ann
    --user ann:annpw user get root
    --user ann:annpw role get r
    --user ann:annpw role get root
    --user ann:annpw role list
    --user ann:annpw user add bob:b
    --user ann:annpw auth disable
    --user root:rootpw role list
    --user root:rootpw role get root
    --user root:rootpw user delete root
    --user root:rootpw role delete root
    --user root:rootpw user revoke-role root root
    --user root:rootpw role revoke-permission r foo
    --user root:rootpw role revoke-permission r foo
    --user root:rootpw role revoke-permission r a c
    --user ann:annpw get a
    --user root:rootpw user revoke-role ann r
    --user root:rootpw user revoke-role ann r
    --user ann:annpw put w/1 v
    --user root:rootpw put z 1
    --user root:rootpw get z
    --user root:rootpw role delete r
    --user root:rootpw role delete r
    --user root:rootpw user delete ann
    --user root:rootpw user delete ann
    --user ann:annpw get a
    --user root:rootpw auth enable
    auth disable
    --user root:rootpw auth disable
    get z
";

/// Every line is said to a real etcd as well, and what etcdctl prints must be the same. Left out is what this server does not permit and etcd 3.4 does: a
/// compaction and the list of members by anybody, and a permission for a range that ends before it begins; and that etcd tells of a user without a password
/// that there is one.
#[tokio::test(flavor = "multi_thread")]
async fn users_and_roles_look_as_they_do_with_etcd() {
    let Some((_ours, ctl)) = start().await else { return };
    if !installed("etcd") {
        return;
    }
    let etcd = etcd_support::Etcd::start();
    drop(etcd_support::connect(&etcd.address).await);
    let theirs = Ctl { address: etcd.address.clone() };
    for line in ON_USERS.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let args: Vec<_> = line.split(' ').collect();
        let (ours, wanted) = (said(ctl.run(&args, "").await), said(theirs.run(&args, "").await));
        assert_eq!(ours, wanted, "{line}");
    }
}

/// What etcdctl printed, without the lines that tell of attempts, which have the time in them.
fn said((success, text): (bool, String)) -> (bool, String) {
    (success, text.lines().filter(|line| !line.starts_with('{')).map(|line| format!("{line}\n")).collect())
}
