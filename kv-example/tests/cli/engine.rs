//! A node that is started with another engine goes on with what it had, and is told where that is damaged.

use crate::support::{Alone, Running, assert_refused, run, stderr, stdout, wait_for};
use rustix::process::Signal;

struct Node(Alone);

impl Node {
    fn new() -> Self {
        Self(Alone::new())
    }

    fn args<'a>(&'a self, engine: &'a str) -> Vec<&'a str> {
        self.0.args(&["--engine", engine, "--snapshot-entries", "20", "--trailing-entries", "1"])
    }

    fn start(&self, engine: &str) -> Running {
        Running::start(&self.0.log(), &self.args(engine))
    }

    /// The newest revision.
    fn revision(&self) -> String {
        let status = run(&["status", "--json", "--endpoints", &self.0.client]);
        let nodes: serde_json::Value = serde_json::from_str(&stdout(&status)).unwrap();
        nodes[0]["revision"].to_string()
    }

    fn get(&self, key: &str) -> String {
        stdout(&run(&["get", key, "--value-only", "--endpoints", &self.0.client]))
    }
}

#[test]
fn from_one_engine_to_the_other_and_back_nothing_is_lost() {
    let node = Node::new();
    let mut written = 0;
    for engine in ["memory", "redb", "memory", "redb", "redb"] {
        let mut running = node.start(engine);
        for _ in 0..15 {
            node.0.put(&format!("key-{written}"), &format!("value-{written}"));
            written += 1;
        }
        for n in 0..written {
            assert_eq!(node.get(&format!("key-{n}")).trim(), format!("value-{n}"), "with {engine}");
        }
        running.signal(Signal::TERM);
        assert_eq!(running.code(), Some(0));
    }
    // The file may be deleted: image and log have everything.
    let file = node.0.dir.path().join("data/kv.redb");
    assert!(file.is_file());
    std::fs::remove_file(&file).unwrap();
    let mut running = node.start("redb");
    node.0.put("after", "all");
    assert_eq!(node.get("key-3").trim(), "value-3");
    running.signal(Signal::TERM);
    assert_eq!(running.code(), Some(0));

    std::fs::write(&file, vec![3; 10_000]).unwrap();
    let output = run(&node.args("redb"));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let text = stderr(&output);
    assert!(text.contains("kv.redb is damaged") && text.contains("move the file away"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
}

/// What was acknowledged is in the log, or in an image.
#[test]
fn a_database_whose_newest_header_is_damaged_costs_nothing_and_is_told() {
    let node = Node::new();
    let file = node.0.dir.path().join("data/kv.redb");
    let mut written = 0;
    for round in 0..3 {
        let mut running = node.start("redb");
        for _ in 0..25 {
            node.0.put(&format!("key-{written}"), &format!("value-{written}"));
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

/// What `status` tells of a node's disk: log, what entries take of that, images, contents; in bytes.
fn on_disk(node: &Node) -> Option<[u64; 4]> {
    let output = run(&["status", "--json", "--endpoints", &node.0.client]);
    let nodes: serde_json::Value = serde_json::from_str(&stdout(&output)).ok()?;
    let disk = &nodes[0]["disk"];
    let numbers = ["log", "log_entries", "images", "contents"].map(|name| disk[name].as_u64());
    numbers.into_iter().collect::<Option<Vec<_>>>()?.try_into().ok()
}

/// The same keys are written again and again, old revisions compacted, and an image is taken after each 50 entries.
#[test]
fn files_are_told_and_do_not_grow_with_what_was_overwritten() {
    const KEYS: u64 = 100;
    const VALUE: u64 = 1000;
    const ROUNDS: usize = 10;
    /// What may be doubled by chance, as rounds are not alike on a machine that has much else to do.
    const SMALL: u64 = 4 << 20;
    let node = Node::new();
    let stack = ["--engine", "redb", "--store", "redb"];
    let images = ["--snapshot-entries", "50", "--trailing-entries", "10"];
    let mut running = node.0.start(&[stack, images].concat());
    let (mut seen, mut written) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        let (keys, value) = (KEYS.to_string(), VALUE.to_string());
        let bench = ["bench", "put", "--keys", &keys, "--value-size", &value, "--clients", "8", "--json"];
        let more = ["--warmup", "0", "--rate", "400", "--duration", "0.5", "--endpoints", &node.0.client];
        let output = run(&[&bench[..], &more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        written += report["operations"].as_u64().unwrap();
        let compacted = run(&["compact", &node.revision(), "--endpoints", &node.0.client]);
        assert!(compacted.status.success(), "{}", stderr(&compacted));
        // What is told is a second old at most.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let has_an_image = |disk: &[u64; 4]| disk[2] > KEYS * VALUE;
        seen.push(wait_for("an image, and a look at the disk", || on_disk(&node).filter(has_an_image)));
    }
    println!("{written} values of {VALUE} bytes written; log, entries, images, contents: {seen:?}");
    for [log, entries, _, contents] in &seen {
        assert!(*entries > 0 && entries < log && *contents > KEYS * VALUE, "{seen:?}");
    }
    // By then they have become as large as they will ever be. Each put writes some ten pages: were these not used again, that would be three times as much in the end.
    let (early, late) = seen.split_at(3);
    for (n, what) in ["log", "entries", "images", "contents"].into_iter().enumerate() {
        let most = |seen: &[[u64; 4]]| seen.iter().map(|disk| disk[n]).max().unwrap();
        assert!(most(late) <= 2 * most(early).max(SMALL), "{what} grows: {seen:?}");
    }
    let text = stdout(&run(&["status", "--endpoints", &node.0.client]));
    assert!(text.lines().any(|line| line.contains("disk")) && text.contains("MiB"), "{text}");
    running.signal(Signal::TERM);
    assert_eq!(running.code(), Some(0));
}

#[test]
fn an_engine_that_does_not_exist() {
    let node = Node::new();
    let refused = run(&node.args("rocks"));
    assert_refused(&refused, &["--engine: \"rocks\" is not an engine; there are memory, redb"]);
}
