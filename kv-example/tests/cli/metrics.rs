//! `--listen-metrics`: what is served, to whom, and what the README says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, Running, assert_refused, free_ports, run, wait_for};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");

/// A cluster of one node that serves metrics, and has certificates for everything else.
struct Node {
    _running: Running,
    dir: tempfile::TempDir,
    base: u16,
}

impl Node {
    fn start() -> Self {
        let (dir, base) = (tempfile::tempdir().unwrap(), free_ports(3));
        let data = dir.path().join("data").display().to_string();
        let address = |n: u16| format!("127.0.0.1:{}", base + n);
        let (client, peers, metrics) = (address(0), format!("1={}", address(1)), address(2));
        let args = ["server", "--id", "1", "--data", &data, "--peers", &peers, "--listen-client", &client];
        let certs = dir.path().join("certs").display().to_string();
        assert!(run(&["certs", "--out", &certs, "--nodes", "1"]).status.success());
        let [cert, key, ca] = ["node-1.crt", "node-1.key", "ca.crt"].map(|name| format!("{certs}/{name}"));
        let more = ["--listen-metrics", &metrics, "--peer-cert", &cert, "--peer-key", &key, "--peer-ca", &ca];
        let tls = ["--client-cert", &cert, "--client-key", &key, "--client-ca", &ca];
        let running = Running::start(&dir.path().join("log"), &[&args[..], &more, &tls].concat());
        let node = Self { _running: running, dir, base };
        wait_for("the first write", || node.client(&["put", "first", "1"]).then_some(()));
        node
    }

    fn client(&self, args: &[&str]) -> bool {
        let endpoint = format!("127.0.0.1:{}", self.base);
        let certs = self.dir.path().join("certs").display().to_string();
        let [ca, cert, key] = ["ca.crt", "client.crt", "client.key"].map(|name| format!("{certs}/{name}"));
        let tls = ["--cacert", &ca, "--cert", &cert, "--key", &key];
        run(&[args, &["--endpoints", &endpoint, "--timeout", "1"], &tls].concat()).status.success()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.base + 2)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn ask(&self, question: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(question.as_bytes()).unwrap();
        let mut answer = String::new();
        // The rest of a question that is too long makes the server reset the connection.
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    fn numbers(&self) -> Numbers {
        Numbers::parse(&self.ask("GET /metrics HTTP/1.1\r\nHost: n\r\n\r\n"))
    }
}

/// What was served.
struct Numbers {
    /// The kind of each family, and its labels.
    families: BTreeMap<String, (String, BTreeSet<String>)>,
    samples: BTreeMap<String, f64>,
}

impl Numbers {
    fn parse(answer: &str) -> Self {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("version=0.0.4"), "{head}");
        let mut numbers = Self { families: BTreeMap::new(), samples: BTreeMap::new() };
        let mut family = String::new();
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                let new = numbers.families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new())).is_none();
                assert!(new, "{name} is there twice");
                family = name.to_owned();
            } else if !line.starts_with("# HELP ") {
                let (name, value) = line.rsplit_once(' ').unwrap();
                let bare = name.split('{').next().unwrap();
                let suffixes = ["", "_bucket", "_sum", "_count"];
                assert!(suffixes.iter().any(|suffix| bare == format!("{family}{suffix}")), "{line} is in {family}");
                let labels = name.split_once('{').map_or("", |(_, rest)| rest.trim_end_matches('}'));
                let labels = labels.split(',').filter_map(|label| label.split_once('=')).map(|(label, _)| label);
                let labels = labels.filter(|label| *label != "le").map(str::to_owned);
                numbers.families.get_mut(&family).unwrap().1.extend(labels);
                numbers.samples.insert(name.to_owned(), value.parse().unwrap());
            }
        }
        numbers
    }

    fn get(&self, name: &str) -> f64 {
        *self.samples.get(name).unwrap_or_else(|| panic!("{name} is not served"))
    }
}

/// The table in the README: name, kind, labels.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let readme = std::fs::read_to_string(README).unwrap();
    let rows = readme.lines().filter(|line| line.starts_with("| `raftkv_"));
    let code = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let name = code(cells[1]).remove(0);
        (name, (cells[2].to_owned(), code(cells[3]).into_iter().collect()))
    };
    rows.map(row).collect()
}

#[test]
fn what_is_served_is_what_is_documented() {
    let node = Node::start();
    assert!(node.client(&["put", "second", "2"]) && node.client(&["get", "second"]) && node.client(&["del", "first"]));
    // What files take is not known at once where the disk is slow.
    let known = |numbers: &Numbers| numbers.samples.contains_key("raftkv_disk_bytes{of=\"log\"}");
    let before = wait_for("a look at the disk", || Some(node.numbers()).filter(known));
    assert_eq!(before.families, documented());
    assert!(before.get("raftkv_disk_bytes{of=\"log\"}") > 0.0);
    assert!(before.get("raftkv_kv_requests_total{method=\"KV.Put\",code=\"OK\"}") >= 2.0);
    assert!(before.get("raftkv_kv_request_seconds_count{method=\"KV.Range\"}") >= 1.0);
    assert_eq!((before.get("raftkv_kv_keys"), before.get("raftkv_kv_revision")), (1.0, 4.0));
    assert_eq!((before.get("raftkv_role{role=\"leader\"}"), before.get("raftkv_role{role=\"follower\"}")), (1.0, 0.0));
    assert_eq!((before.get("raftkv_leader_id"), before.get("raftkv_elections_won_total")), (1.0, 1.0));
    assert_eq!(before.get("raftkv_members{kind=\"voter\"}"), 1.0);
    assert!(node.client(&["put", "third", "3"]));
    let after = node.numbers();
    for grown in [
        "raftkv_log_written_entries_total",
        "raftkv_log_write_seconds_count",
        "raftkv_log_write_seconds_sum",
        "raftkv_log_write_seconds_bucket{le=\"+Inf\"}",
        "raftkv_applied_entries_total",
        "raftkv_apply_seconds_count",
        "raftkv_log_index{position=\"applied\"}",
        "raftkv_requests_total{kind=\"write\"}",
    ] {
        assert!(after.get(grown) > before.get(grown), "{grown} did not grow");
    }
}

#[test]
fn only_metrics_are_there_and_only_to_be_read() {
    let node = Node::start();
    let ask = |question: &str| node.ask(&format!("{question} HTTP/1.1\r\nHost: n\r\n\r\n"));
    let answer = ask("GET /");
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("/metrics"), "{answer}");
    let answer = ask("POST /metrics");
    assert!(answer.starts_with("HTTP/1.1 405") && answer.to_lowercase().contains("allow: get, head"), "{answer}");
    let answer = ask("HEAD /metrics");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(node.ask("gibberish\r\n\r\n").starts_with("HTTP/1.1 400"));
}

#[test]
fn whoever_connects_is_bounded_in_number_in_time_and_in_words() {
    let node = Node::start();
    let many: String = (0..100).map(|n| format!("X-{n}: y\r\n")).collect();
    let long = "y".repeat(64 << 10);
    for headers in [many, format!("X: {long}\r\n")] {
        let answer = node.ask(&format!("GET /metrics HTTP/1.1\r\nHost: n\r\n{headers}\r\n"));
        assert!(!answer.contains("raftkv_"), "it was answered");
    }
    let began = Instant::now();
    let mut silent: Vec<_> = (0..16).map(|_| node.connect()).collect();
    wait_for("a connection too many to be closed", || {
        let mut one = node.connect();
        one.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        // A reset is an end as well.
        let closed = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
        match one.read(&mut [0; 1]) {
            Ok(0) => Some(()),
            Err(error) if closed(&error) => Some(()),
            Ok(_) | Err(_) => None,
        }
    });
    let mut answer = String::new();
    let _ = silent[0].read_to_string(&mut answer);
    let took = began.elapsed();
    assert!(!answer.contains("raftkv_") && took > Duration::from_secs(3), "closed after {took:?}: {answer}");
    wait_for("room again", || {
        node.ask("GET /metrics HTTP/1.1\r\nHost: n\r\n\r\n").contains("raftkv_term").then_some(())
    });
}

#[test]
fn an_address_that_can_not_be_used_is_named() {
    let (dir, base) = (tempfile::tempdir().unwrap(), free_ports(3));
    let data = dir.path().join("data").display().to_string();
    let (client, peers) = (format!("127.0.0.1:{base}"), format!("1=127.0.0.1:{}", base + 1));
    let with = |metrics: &str| {
        let args = ["server", "--id", "1", "--data", &data, "--peers", &peers, "--listen-client", &client];
        run(&[&args[..], &["--listen-metrics", metrics]].concat())
    };
    assert_refused(&with("9401"), &["--listen-metrics", "has no port"]);
    assert_refused(&with(&client), &["--listen-metrics and --listen-client", "a port of their own"]);
    let taken = TcpListener::bind(("127.0.0.1", base + 2)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert_refused(&with(&address), &["--listen-metrics", &address, "in use", "another port"]);
    assert_refused(&with("192.0.2.1:9401"), &["--listen-metrics", "no such address"]);
}

#[test]
fn each_node_of_a_local_cluster_has_a_port_of_its_own() {
    let (dir, base) = (tempfile::tempdir().unwrap(), free_ports(9));
    let data = dir.path().join("data").display().to_string();
    let (ports, metrics) = (base.to_string(), (base + 6).to_string());
    let args = ["cluster", "--data", &data, "--base-port", &ports, "--metrics-port", &metrics];
    let cluster = Running::start(&dir.path().join("log"), &args);
    for node in 0..3 {
        let node = Asked(base + 6 + node);
        wait_for("a node that follows a leader", || node.leader().filter(|leader| *leader > 0.0));
    }
    let last = format!("metrics http://127.0.0.1:{}/metrics", base + 8);
    assert!(cluster.log().contains(&last), "{}", cluster.log());
}

/// A node somewhere.
struct Asked(u16);

impl Asked {
    fn leader(&self) -> Option<f64> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.0)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: n\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then(|| Numbers::parse(&answer).get("raftkv_leader_id"))
    }
}
