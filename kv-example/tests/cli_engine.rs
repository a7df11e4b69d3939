//! A node that is started with another engine goes on with what it had, and is told where that is damaged.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod cli_support;

use cli_support::{Running, assert_refused, free_ports, run, stderr, stdout, wait_for};
use rustix::process::Signal;

struct Node {
    dir: tempfile::TempDir,
    client: String,
    peers: String,
}

impl Node {
    fn new() -> Self {
        let base = free_ports(2);
        Self {
            dir: tempfile::tempdir().unwrap(),
            client: format!("127.0.0.1:{base}"),
            peers: format!("1=127.0.0.1:{}", base + 1),
        }
    }

    fn args<'a>(&'a self, data: &'a str, engine: &'a str) -> Vec<&'a str> {
        let all = ["server", "--id", "1", "--data", data, "--peers", &self.peers, "--listen-client", &self.client];
        let more = ["--engine", engine, "--snapshot-entries", "20", "--trailing-entries", "1"];
        all.into_iter().chain(more).collect()
    }

    fn data(&self) -> String {
        self.dir.path().join("data").display().to_string()
    }

    fn start(&self, engine: &str) -> Running {
        Running::start(&self.dir.path().join("log"), &self.args(&self.data(), engine))
    }

    fn put(&self, key: &str, value: &str) {
        wait_for("a write", || {
            run(&["put", key, value, "--endpoints", &self.client, "--timeout", "2"]).status.success().then_some(())
        });
    }

    fn get(&self, key: &str) -> String {
        stdout(&run(&["get", key, "--value-only", "--endpoints", &self.client]))
    }
}

#[test]
fn from_one_engine_to_the_other_and_back_nothing_is_lost() {
    let node = Node::new();
    let mut written = 0;
    for engine in ["memory", "redb", "memory", "redb", "redb"] {
        let mut running = node.start(engine);
        for _ in 0..15 {
            node.put(&format!("key-{written}"), &format!("value-{written}"));
            written += 1;
        }
        for n in 0..written {
            assert_eq!(node.get(&format!("key-{n}")).trim(), format!("value-{n}"), "with {engine}");
        }
        running.signal(Signal::TERM);
        assert_eq!(running.code(), Some(0));
    }
    // The file may be deleted: image and log have everything.
    let file = node.dir.path().join("data/kv.redb");
    assert!(file.is_file());
    std::fs::remove_file(&file).unwrap();
    let mut running = node.start("redb");
    node.put("after", "all");
    assert_eq!(node.get("key-3").trim(), "value-3");
    running.signal(Signal::TERM);
    assert_eq!(running.code(), Some(0));

    std::fs::write(&file, vec![3; 10_000]).unwrap();
    let output = run(&node.args(&node.data(), "redb"));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let text = stderr(&output);
    assert!(text.contains("kv.redb is damaged") && text.contains("move the file away"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
}

/// What was acknowledged is in the log, or in an image.
#[test]
fn a_database_whose_newest_header_is_damaged_costs_nothing_and_is_told() {
    let node = Node::new();
    let file = node.dir.path().join("data/kv.redb");
    let mut written = 0;
    for round in 0..3 {
        let mut running = node.start("redb");
        for _ in 0..25 {
            node.put(&format!("key-{written}"), &format!("value-{written}"));
            written += 1;
        }
        for n in 0..written {
            assert_eq!(node.get(&format!("key-{n}")).trim(), format!("value-{n}"), "in round {round}");
        }
        let told = running.log().matches("of the two headers of the database").count();
        assert_eq!(told, round, "{}", running.log());
        running.signal(Signal::KILL);
        running.code();
        let mut bytes = std::fs::read(&file).unwrap();
        let number = |page: usize| u64::from_le_bytes(bytes[page * 4096 + 4..][..8].try_into().unwrap());
        let newest = usize::from(number(1) > number(0));
        bytes[newest * 4096 + 100] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
}

#[test]
fn an_engine_that_does_not_exist() {
    let node = Node::new();
    let refused = run(&node.args(&node.data(), "rocks"));
    assert_refused(&refused, &["--engine: \"rocks\" is not an engine; there are memory, redb"]);
}
