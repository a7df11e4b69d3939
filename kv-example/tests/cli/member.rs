//! `member`, `recover` and `server --join`, as a person types them, right and wrong.

use std::process::Output;

use crate::support::{Running, assert_refused, free_ports, run, stderr, stdout, wait_for};

struct Cluster {
    dir: tempfile::TempDir,
    base: u16,
}

impl Cluster {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), base: free_ports(8) }
    }

    fn address(&self, offset: u16) -> String {
        format!("127.0.0.1:{}", self.base + offset)
    }

    fn data(&self, id: u64) -> String {
        self.dir.path().join(format!("n{id}")).display().to_string()
    }

    /// The only member, at the first two ports.
    fn first(&self) -> Running {
        let (data, peers) = (self.data(1), format!("1={}", self.address(1)));
        let args = ["server", "--id", "1", "--data", &data, "--peers", &peers, "--listen-client", &self.address(0)];
        let node = Running::start(&self.dir.path().join("n1.log"), &args);
        wait_for("a write", || {
            run(&["put", "k", "v", "--endpoints", &self.address(0), "--timeout", "1"]).status.success().then_some(())
        });
        node
    }

    /// A node that joins, at the ports from `offset` on.
    fn joining(&self, n: u64, offset: u16, more: &[&str]) -> Running {
        let (data, join) = (self.data(n), self.address(0));
        let (client, peer) = (self.address(offset), self.address(offset + 1));
        let mut args = vec!["server", "--join", &join, "--data", &data];
        args.extend(["--listen-client", &client, "--listen-peer", &peer]);
        args.extend(more);
        Running::start(&self.dir.path().join(format!("n{n}.log")), &args)
    }

    fn member(&self, args: &[&str]) -> Output {
        let endpoint = self.address(0);
        let mut all = vec!["member"];
        all.extend(args);
        all.extend(["--endpoints", &endpoint]);
        run(&all)
    }

    fn wait_for_line(&self, parts: &[&str]) {
        wait_for(&format!("a member with {parts:?}"), || {
            let list = stdout(&self.member(&["list"]));
            list.lines().any(|line| parts.iter().all(|part| line.contains(part))).then_some(())
        });
    }
}

/// Exit code 1, and a message with all these parts.
fn assert_failed(output: &Output, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[test]
fn each_mistake_names_what_to_do_next() {
    let cluster = Cluster::new();
    let _first = cluster.first();
    let second = cluster.address(3);
    let added = cluster.member(&["add", &second, "--learner"]);
    assert!(stdout(&added).contains("n2 is a member") && stdout(&added).contains("server --join"), "{added:?}");
    cluster.wait_for_line(&["n2", "learner", "not started yet"]);
    assert_failed(&cluster.member(&["add", &second]), &["already exists", "member 2 is at", "its own address"]);
    assert_failed(&cluster.member(&["add", "1=127.0.0.1:1"]), &["member ID already exist", "leave the id out"]);
    assert_failed(&cluster.member(&["promote", "2"]), &["in sync with leader", "was not heard yet; start it"]);
    assert_failed(&cluster.member(&["promote", "9"]), &["member not found", "member list"]);
    assert_failed(&cluster.member(&["promote", "1"]), &["votes already"]);
    assert_failed(&cluster.member(&["update", "2", &cluster.address(1)]), &["already exists"]);
    assert_failed(&cluster.member(&["remove", "1"]), &["last voter"]);
    assert_failed(&cluster.member(&["transfer", "2"]), &["does not vote", "only a voter can lead"]);
    assert_failed(&cluster.member(&["transfer", "9"]), &["no member n9"]);
    for args in [&["add", "nowhere"][..], &["add", "0=a:1"], &["add", "0.0.0.0:1"], &["remove", "x"], &["update", "2"]]
    {
        assert_refused(&cluster.member(args), &["error:"]);
    }
    let updated = cluster.member(&["update", "2", &cluster.address(5), "--json"]);
    assert!(stdout(&updated).contains("\"updated\": 2"), "{updated:?}");
    let removed = cluster.member(&["remove", "2"]);
    assert!(stdout(&removed).contains("n2 is no member any more"), "{removed:?}");
    assert_failed(&cluster.member(&["remove", "2"]), &["member not found"]);
}

#[test]
fn a_node_joins_by_itself_and_is_told_when_it_can_not() {
    let cluster = Cluster::new();
    // Nobody answers yet: it waits.
    let mut second = cluster.joining(2, 2, &[]);
    wait_for("a warning", || second.log().contains("can't join yet").then_some(()));
    let _first = cluster.first();
    cluster.wait_for_line(&["n2", "voter", "runs"]);
    let get = run(&["get", "k", "--value-only", "--endpoints", &cluster.address(2)]);
    assert_eq!(stdout(&get), "v\n", "{}", stderr(&get));

    // Without its data it is another node.
    second.signal(rustix::process::Signal::TERM);
    assert_eq!(second.code(), Some(0));
    std::fs::rename(cluster.data(2), cluster.data(9)).unwrap();
    let mut wiped = cluster.joining(2, 2, &[]);
    assert_eq!(wiped.code(), Some(2));
    assert!(wiped.log().contains("member 2 has run before") && wiped.log().contains("member replace 2"));
    // Its id is known from its directory.
    std::fs::rename(cluster.data(9), cluster.data(2)).unwrap();
    let mut other = cluster.joining(2, 2, &["--id", "7"]);
    assert_eq!(other.code(), Some(2));
    assert!(other.log().contains("is the directory of node 2"), "{}", other.log());
    let _second = cluster.joining(2, 2, &["--id", "2"]);
    // It may lead now.
    cluster.wait_for_line(&["n2", "runs"]);
    cluster.wait_for_line(&["n1", "runs"]);
    // One that was added with another address.
    let added = cluster.member(&["add", "8=127.0.0.1:1", "--learner"]);
    assert!(added.status.success(), "{}", stderr(&added));
    let mut elsewhere = cluster.joining(8, 4, &["--id", "8"]);
    assert_eq!(elsewhere.code(), Some(2));
    let log = elsewhere.log();
    assert!(
        log.contains("member 8 was added with the address 127.0.0.1:1,") && log.contains("member update 8"),
        "{log}"
    );
}

#[test]
fn recover_refuses_what_it_can_not_mend() {
    let cluster = Cluster::new();
    let empty = cluster.dir.path().display().to_string();
    assert_refused(&run(&["recover", "--data-dir", &empty]), &["there is no log in it"]);
    let mut first = cluster.first();
    assert_refused(&run(&["recover", "--data-dir", &cluster.data(1), "--yes"]), &["in use by process"]);
    first.signal(rustix::process::Signal::TERM);
    assert_eq!(first.code(), Some(0));
    assert_refused(&run(&["recover", "--data-dir", &cluster.data(1), "--yes"]), &["only member already: start it"]);
}
