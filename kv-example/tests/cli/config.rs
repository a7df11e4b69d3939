//! Every kind of wrong configuration gets one clear error, and exit code 2.

use std::net::TcpListener;
use std::path::Path;

use crate::support::{Alone, Running, assert_refused, program, run, stderr, stdout};

/// The options of the only node of a cluster, at these ports.
fn single<'a>(data: &'a str, peers: &'a str, client: &'a str) -> Vec<&'a str> {
    vec!["server", "--id", "1", "--data", data, "--peers", peers, "--listen-client", client]
}

/// Starts one of files: what is told of damage are names and offsets of segments.
fn start(node: &Alone) -> Running {
    node.start(&["--store", "file"])
}

#[test]
fn what_is_missing_is_named() {
    assert_refused(&run(&["server"]), &["--id is missing", "RAFTKV_ID=1", "`id` in the file"]);
    assert_refused(&run(&["server", "--id", "1"]), &["--peers is missing"]);
}

#[test]
fn an_id_that_is_not_among_the_peers() {
    let args = ["server", "--id", "4", "--data", "x", "--peers", "1=a:1,2=b:1", "--listen-client", "c:2"];
    assert_refused(&run(&args), &["--id: node 4 is not in --peers, which names 1, 2", "add 4=HOST:PORT"]);
}

#[test]
fn ids_and_addresses_that_are_there_twice() {
    assert_refused(&run(&single("x", "1=a:1,1=b:1", "c:2")), &["--peers", "node 1 is named twice"]);
    assert_refused(&run(&single("x", "1=a:1,2=a:1", "c:2")), &["--peers", "nodes 1 and 2 have the same address"]);
}

#[test]
fn an_address_that_is_none() {
    assert_refused(&run(&single("x", "1=a:1", "localhost")), &["--listen-client", "has no port", "127.0.0.1:2379"]);
    assert_refused(&run(&single("x", "1=a:1", "a:99999")), &["--listen-client", "from 1 to 65535"]);
}

#[test]
fn a_mistake_in_the_environment_names_the_variable() {
    let output = program().arg("server").env("RAFTKV_ID", "one").output().unwrap();
    assert_refused(&output, &["environment variable RAFTKV_ID", "\"one\""]);
}

#[test]
fn an_unknown_key_in_the_file_is_shown_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, "id = 1\nlisten-cleint = \"a:1\"\n").unwrap();
    let path = path.display().to_string();
    assert_refused(&run(&["server", "--config", &path]), &[&path, "line 2", "listen-cleint", "listen-client"]);
    assert_refused(&run(&["server", "--config", "/nonexistent.toml"]), &["/nonexistent.toml", "can't read"]);
}

#[test]
fn a_heartbeat_that_is_too_slow() {
    let mut args = single("x", "1=a:1", "c:2");
    args.extend(["--heartbeat-ms", "200"]);
    assert_refused(
        &run(&args),
        &["--heartbeat-ms: 200 ms", "half of the election timeout (300 ms", "a third is good: 100 ms"],
    );
}

#[test]
fn a_thread_that_would_hardly_ever_sleep() {
    for (us, says) in [("10001", "at most 10000"), ("-1", "0 for never"), ("some", "a whole number of microseconds")] {
        let mut args = single("x", "1=a:1", "c:2");
        let given = format!("--busy-poll-us={us}");
        args.push(&given);
        assert_refused(&run(&args), &["--busy-poll-us", says]);
    }
}

#[test]
fn a_data_directory_that_can_not_be_made() {
    let node = Alone::new();
    // Below a file: refused to the superuser as well.
    std::fs::write(node.dir.path().join("file"), "").unwrap();
    let data = node.dir.path().join("file/data").display().to_string();
    assert_refused(&run(&single(&data, &node.peers, &node.client)), &["--data", &data, "can't create"]);
}

/// What is in it are contents, hashes of passwords, and the key that signs logins.
#[test]
fn a_data_directory_that_is_open_to_others_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let node = Alone::new();
    std::fs::create_dir(&node.data).unwrap();
    for (mode, told) in [(0o755, true), (0o710, true), (0o700, false)] {
        std::fs::set_permissions(&node.data, std::fs::Permissions::from_mode(mode)).unwrap();
        let _ = std::fs::remove_file(node.log());
        drop(start(&node));
        let log = std::fs::read_to_string(node.log()).unwrap();
        let line = log.lines().find(|line| line.contains("open to others"));
        assert_eq!(line.is_some(), told, "{mode:o}: {log}");
        if let Some(line) = line {
            assert!(line.contains("WARN") && line.contains(&node.data), "{line}");
            assert!(line.contains(&format!("{mode:04o}")) && line.contains("chmod"), "{line}");
        }
    }
}

#[test]
fn a_port_in_use() {
    let node = Alone::new();
    let _client = TcpListener::bind(&node.client).unwrap();
    assert_refused(&run(&node.args(&[])), &["--listen-client", &node.client, "in use", "another port"]);
    assert_eq!(std::fs::read_dir(&node.data).map_or(0, Iterator::count), 0, "the data is left alone");
}

#[test]
fn a_peer_port_in_use() {
    let node = Alone::new();
    let _peer = TcpListener::bind(node.peer()).unwrap();
    assert_refused(&run(&node.args(&[])), &["--listen-peer", "in use"]);
}

#[test]
fn a_directory_in_use_by_another_process() {
    let node = Alone::new();
    let _running = start(&node);
    let other = Alone::new();
    // The same cluster and node, but its listeners elsewhere.
    let mut args = single(&node.data, &node.peers, &other.client);
    args.extend(["--listen-peer", other.peer()]);
    let output = run(&args);
    assert_refused(&output, &[&node.data]);
    let text = stderr(&output);
    assert!(text.contains("in use") || text.contains("another process"), "{text}");
}

#[test]
fn the_directory_of_another_node_or_cluster() {
    let node = Alone::new();
    let mut running = start(&node);
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.code(), Some(0), "{}", running.log());

    let Alone { data, client, .. } = &node;
    let peers = format!("{},2=127.0.0.1:1", node.peers);
    let output = run(&single(data, &peers, client));
    assert_refused(&output, &[data, "cluster", "check"]);

    let args = node.args(&["--cluster-name", "other"]);
    assert_refused(&run(&args), &[data, "cluster", "check"]);

    let mut args = vec!["server", "--id", "2", "--data", data, "--listen-client", client];
    let peers = format!("2={}", node.peer());
    args.extend(["--peers", &peers]);
    assert_refused(&run(&args), &[data, "node 1", "node 2"]);
}

#[test]
fn a_dump_of_a_directory_without_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    assert_refused(&run(&["log", "dump", &path]), &[&path, "no log here"]);
    // The directory of a local cluster, with those of its nodes.
    let node = dir.path().join("n1");
    std::fs::create_dir(&node).unwrap();
    std::fs::write(node.join("IDENTITY"), "").unwrap();
    assert_refused(&run(&["log", "dump", &path]), &["no log here", &format!("logs in {}", node.display())]);
}

#[test]
fn a_corrupt_log_is_a_failure_of_the_node_not_of_its_configuration() {
    let node = Alone::new();
    let mut running = start(&node);
    for n in 0..20 {
        assert!(run(&["put", &format!("k{n}"), "v", "--endpoints", &node.client]).status.success());
    }
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.code(), Some(0), "{}", running.log());
    let sound = run(&["log", "dump", &node.data]);
    assert!(sound.status.success() && stdout(&sound).contains("seg"), "{}{}", stdout(&sound), stderr(&sound));

    let damaged = damage_a_segment(Path::new(&node.data));
    let dump = run(&["log", "dump", &node.data]);
    assert_eq!(dump.status.code(), Some(1), "{}", stdout(&dump));
    assert!(stderr(&dump).contains("is damaged") && stdout(&dump).contains(&damaged), "{}", stdout(&dump));
    let output = run(&node.args(&[]));
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("corrupt at offset") && text.contains(&damaged), "{text}");
}

/// Flips a byte within the data of the largest file; gives its name.
fn damage_a_segment(dir: &Path) -> String {
    let largest = std::fs::read_dir(dir)
        .unwrap()
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_file())
        .max_by_key(|entry| entry.metadata().map_or(0, |meta| meta.len()))
        .expect("a segment");
    let mut bytes = std::fs::read(largest.path()).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("data");
    bytes[used / 2] ^= 0x10;
    // The flipped byte must not be in padding.
    let at = bytes[..used / 2].iter().rposition(|byte| *byte != 0).expect("data");
    bytes[used / 2] ^= 0x10;
    bytes[at] ^= 0x10;
    std::fs::write(largest.path(), bytes).unwrap();
    largest.file_name().to_string_lossy().into_owned()
}
