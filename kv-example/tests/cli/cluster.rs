//! A local cluster and the client commands, as a user meets them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::{
    Alone, PROGRAM, Running, assert_refused, deaf, free_ports, is_alive, program, run, signal_pid, stack, stderr,
    stdout, wait_for,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A name that a shell reads as two words, unless it is quoted.
const DATA: &str = "the data";

/// A running `kv-example cluster` of three.
struct Cluster {
    running: Running,
    dir: tempfile::TempDir,
    base: u16,
}

impl Cluster {
    fn start(more: &[&str]) -> Self {
        Self::start_program(Path::new(PROGRAM), tempfile::tempdir().expect("a directory"), more)
    }

    /// What comes after a `--` is for the nodes.
    fn start_program(program: &Path, dir: tempfile::TempDir, more: &[&str]) -> Self {
        let base = free_ports(6);
        let (more, servers) = more.split_at(more.iter().position(|word| *word == "--").unwrap_or(more.len()));
        let mut command = deaf(Command::new(program));
        command.args(["cluster", "--base-port", &base.to_string(), "--data"]).arg(dir.path().join(DATA)).args(more);
        command.arg("--").args(stack(servers)).args(servers.iter().skip(1));
        command.stdin(Stdio::null());
        let cluster = Self { running: Running::spawn(&dir.path().join("log"), command), dir, base };
        cluster.wait_ready();
        cluster
    }

    fn wait_ready(&self) {
        wait_for("the first write", || self.client(&["put", "first", "write"]).status.success().then_some(()));
    }

    fn endpoint(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.base + 2 * (node - 1))
    }

    fn endpoints(&self) -> String {
        (1..=3).map(|n| self.endpoint(n)).collect::<Vec<_>>().join(",")
    }

    fn client(&self, args: &[&str]) -> Output {
        program().args(args).env("RAFTKV_ENDPOINTS", self.endpoints()).output().expect("the program starts")
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.client(args);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", stdout(&output), stderr(&output)))
    }

    /// The leader's id, once there is one.
    fn leader(&self) -> u64 {
        wait_for("a leader", || {
            let nodes = self.json(&["status", "--json"]);
            let leads = nodes.as_array()?.iter().find(|node| node["role"] == "leader")?;
            leads["id"].as_u64()
        })
    }

    /// The node's process, by the directory that it was started with.
    fn pid(&self, node: u64) -> Option<u32> {
        let wanted = self.dir.path().join(DATA).join(format!("n{node}")).display().to_string();
        std::fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            (is_alive(pid) && line.split('\0').any(|arg| arg == wanted)).then_some(pid)
        })
    }

    fn pids(&self) -> Vec<u32> {
        (1..=3).filter_map(|node| self.pid(node)).collect()
    }

    fn log(&self) -> String {
        self.running.log()
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join(DATA)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A failed test must not leave nodes behind: they end with the cluster command, which gets time for that.
        self.running.signal(Signal::TERM);
        let deadline = std::time::Instant::now() + Duration::from_secs(15);
        while self.running.child.try_wait().is_ok_and(|status| status.is_none()) && std::time::Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_session_with_the_client_commands() {
    let cluster = Cluster::start(&[]);
    let put = cluster.json(&["put", "a", "1", "--json"]);
    assert!(put["revision"].as_i64().unwrap() >= 2, "{put}");
    assert_eq!(put["prev"], Value::Null);
    let get = cluster.json(&["get", "a", "--json"]);
    assert_eq!(
        (get["count"].as_i64(), &get["kvs"][0]["key"], &get["kvs"][0]["value"]),
        (Some(1), &json!("a"), &json!("1"))
    );
    assert_eq!(stdout(&cluster.client(&["get", "a", "--value-only"])), "1\n");
    assert!(stdout(&cluster.client(&["get", "a"])).contains("modified at"));

    let missing = cluster.client(&["get", "nothing"]);
    assert!(missing.status.success() && stdout(&missing).contains("no such key: nothing"));
    assert_eq!(cluster.client(&["get", "nothing", "--value-only"]).status.code(), Some(1));

    assert!(cluster.client(&["put", "--hex", "ff00", "00ff"]).status.success());
    let binary = cluster.json(&["get", "--hex", "ff00", "--json"]);
    assert_eq!((&binary["kvs"][0]["key_hex"], &binary["kvs"][0]["value_hex"]), (&json!("ff00"), &json!("00ff")));

    cluster.client(&["put", "b", "2"]);
    let range = cluster.json(&["range", "a", "c", "--keys-only", "--descending", "--json"]);
    let keys: Vec<_> = range["kvs"].as_array().unwrap().iter().map(|kv| kv["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["b", "a"]);
    assert!(stdout(&cluster.client(&["range", "--count-only"])).starts_with("4 keys"));

    let txn = cluster.json(&["txn", "--if", "value(a) = 1", "--then", "put a 2", "--else", "get a", "--json"]);
    assert_eq!((&txn["succeeded"], &txn["responses"][0]["op"]), (&json!(true), &json!("put")));
    let txn = cluster.json(&["txn", "--if", "value(a) = 1", "--then", "put a 3", "--else", "get a", "--json"]);
    assert_eq!((&txn["succeeded"], &txn["responses"][0]["kvs"][0]["value"]), (&json!(false), &json!("2")));

    let old = txn["revision"].as_i64().unwrap().to_string();
    let gone = cluster.json(&["del", "a", "--prev", "--json"]);
    assert_eq!((&gone["deleted"], &gone["prev"][0]["value"]), (&json!(1), &json!("2")));
    assert_eq!(stdout(&cluster.client(&["get", "a", "--revision", &old, "--value-only"])), "2\n");
    let now = gone["revision"].as_i64().unwrap().to_string();
    assert!(cluster.client(&["compact", &now]).status.success());
    let compacted = cluster.client(&["get", "a", "--revision", &old]);
    assert_eq!(compacted.status.code(), Some(1));
    assert!(stderr(&compacted).contains("compacted"), "{}", stderr(&compacted));

    let members = cluster.json(&["member-list", "--json"]);
    assert_eq!(members["members"].as_array().map(Vec::len), Some(3), "{members}");
    assert_eq!(members["members"][0]["client_urls"][0], format!("http://{}", cluster.endpoint(1)));
}

#[test]
fn status_shows_every_node_and_those_that_do_not_answer() {
    let cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let nodes = cluster.json(&["status", "--json"]);
    let nodes = nodes.as_array().unwrap();
    assert_eq!(nodes.iter().map(|node| node["id"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    for node in nodes {
        let role = if node["id"] == leader { "leader" } else { "follower" };
        assert_eq!(node["role"], role, "{node}");
        assert_eq!(node["leader"], leader, "{node}");
        for field in ["term", "log_first", "log_last", "stored", "commit", "applied", "lag", "revision", "db_size"] {
            assert!(node[field].is_number(), "{field}: {node}");
        }
        assert_eq!(node["peers"].as_array().map(Vec::len), Some(2), "{node}");
    }

    let victim = (1..=3).find(|id| *id != leader).unwrap();
    signal_pid(cluster.pid(victim).expect("a process"), Signal::KILL);
    let nodes = wait_for("the death to show", || {
        let nodes = cluster.json(&["status", "--json"]);
        nodes[usize::try_from(victim).unwrap() - 1]["error"].is_string().then_some(nodes)
    });
    assert_eq!(nodes.as_array().unwrap().iter().filter(|node| node["role"].is_string()).count(), 2, "{nodes}");
    let text = cluster.client(&["status"]);
    assert!(text.status.success(), "some answered");
    assert!(stdout(&text).contains("unreachable") && stdout(&text).contains("connection refused"), "{}", stdout(&text));

    let nobody = run(&["status", "--endpoints", "127.0.0.1:1", "--json"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(serde_json::from_slice::<Value>(&nobody.stdout).unwrap()[0]["error"].is_string());
}

/// What can be asked of one node: an image, and to lead or not.
#[test]
fn a_node_is_asked_for_an_image_and_not_to_lead() {
    let cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let at = |id: u64| cluster.endpoint(u16::try_from(id).unwrap());
    let status = |id: u64| cluster.json(&["status", "--json"])[usize::try_from(id).unwrap() - 1].clone();
    assert_eq!((&status(leader)["image"], &status(leader)["receiving"]), (&Value::Null, &Value::Null));
    let taken = cluster.client(&["node", "snapshot", &at(leader)]);
    assert!(stdout(&taken).contains("its newest image reflects everything up to entry"), "{taken:?}");
    let image = status(leader)["image"].clone();
    assert!(image["index"].as_u64() > Some(0) && image["bytes"].as_u64() > Some(0), "{image}");
    let again = cluster.json(&["node", "snapshot", &at(leader), "--json"]);
    assert!(again["image"]["index"].as_u64() >= image["index"].as_u64(), "{again}");

    let told = cluster.json(&["node", "prefer", &at(leader), "--priority", "7", "--json"]);
    assert_eq!(told, json!({ "priority": 7, "may_lead": true }));
    let kept = cluster.client(&["node", "prefer", &at(leader), "--lead", "false"]);
    assert!(stdout(&kept).contains("it does not lead, at priority 7"), "{kept:?}");
    wait_for("another leader", || (cluster.leader() != leader).then_some(()));
    assert_eq!((&status(leader)["priority"], &status(leader)["may_lead"]), (&json!(7), &json!(false)));
    let refused = cluster.client(&["node", "prefer", &at(leader)]);
    assert!(refused.status.code() == Some(2) && stderr(&refused).contains("--priority"), "{refused:?}");
}

#[test]
fn the_leader_dies_and_writing_goes_on() {
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    wait_for("the leader's line", || cluster.log().contains(&format!("n{leader} leads term")).then_some(()));
    signal_pid(cluster.pid(leader).expect("a process"), Signal::KILL);
    let mut unknown = 0;
    wait_for("a write after the death", || {
        let output = cluster.client(&["put", "after", "death"]);
        // A write that was under way to the dead leader may not claim to know.
        match output.status.code() {
            Some(0) => Some(()),
            Some(3) => {
                assert!(stderr(&output).contains("outcome is unknown"), "{}", stderr(&output));
                unknown += 1;
                None
            }
            code => panic!("exit code {code:?}: {}", stderr(&output)),
        }
    });
    assert_eq!(stdout(&cluster.client(&["get", "first", "--value-only"])), "write\n", "what was acknowledged is there");
    let log = wait_for("the news", || Some(cluster.log()).filter(|log| log.contains(&format!("n{leader} died"))));
    assert!(log.contains("killed (signal 9, SIGKILL)"), "{log}");
    let hint = wait_for("the way back", || {
        cluster.log().lines().find(|line| line.contains("to bring it back")).map(str::to_owned)
    });

    // The way back that is printed is one that works, as it is, in a shell.
    let (_, line) = hint.split_once("another terminal: ").expect("a command");
    let mut shell = deaf(Command::new("sh"));
    shell.args(["-c", &format!("exec {line}")]).stdin(Stdio::null());
    let back = Running::spawn(&cluster.dir.path().join("back"), shell);
    wait_for("its return", || {
        let nodes = cluster.json(&["status", "--json"]);
        let node = nodes.as_array()?.iter().find(|node| node["id"] == leader)?;
        (node["role"] == "follower" && node["lag"] == 0 && node["applied"].as_u64()? > 1).then_some(())
    });
    drop(back);
    cluster.running.signal(Signal::TERM);
    assert_eq!(cluster.running.code(), Some(0), "{}", cluster.log());
}

#[test]
fn ctrl_c_ends_every_node_in_good_order() {
    let mut cluster = Cluster::start(&[]);
    let pids = cluster.pids();
    assert_eq!(pids.len(), 3);
    // One that is told during its start has nothing to shut down.
    wait_for("all to serve", || (cluster.log().matches("serving clients on").count() == 3).then_some(()));
    cluster.running.signal(Signal::INT);
    assert_eq!(cluster.running.code(), Some(0), "{}", cluster.log());
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "no orphans");
    let log = cluster.log();
    assert_eq!(log.matches("shut down in good order").count(), 3, "{log}");
    assert!(log.contains("n1 | ") && log.contains("n3 | "), "each line says whose it is: {log}");
}

/// It was swallowed, while a node waited for as long as it was told to.
#[test]
fn a_second_ctrl_c_has_the_nodes_not_wait_for_requests_in_progress() {
    let patient = ["--", "--request-timeout-ms", "600000", "--shutdown-timeout-ms", "600000"];
    let mut cluster = Cluster::start(&patient);
    for node in [1, 2] {
        signal_pid(cluster.pid(node).expect("a process"), Signal::KILL);
    }
    let endpoint = cluster.endpoint(3);
    let put = std::thread::spawn(move || {
        program()
            .args(["put", "k", "v", "--timeout", "8", "--endpoints", &endpoint])
            .output()
            .expect("the program starts")
    });
    // On a machine where it takes longer to arrive there is nothing to wait for, and nothing to be seen.
    std::thread::sleep(Duration::from_secs(1));
    cluster.running.signal(Signal::INT);
    wait_for("its shutdown", || cluster.log().contains("requests in progress have").then_some(()));
    std::thread::sleep(Duration::from_millis(300));
    cluster.running.signal(Signal::INT);
    assert_eq!(cluster.running.code(), Some(0), "{}", cluster.log());
    assert!(!put.join().expect("no panic").status.success(), "there was no majority");
}

#[test]
fn nodes_do_not_outlive_a_cluster_command_that_is_killed() {
    let mut cluster = Cluster::start(&[]);
    let pids = cluster.pids();
    assert_eq!(pids.len(), 3);
    cluster.running.signal(Signal::KILL);
    let _ = cluster.running.code();
    wait_for("the end of the nodes", || pids.iter().all(|pid| !is_alive(*pid)).then_some(()));
}

#[test]
fn a_dead_node_comes_back_when_that_is_wished() {
    let cluster = Cluster::start(&["--restart", "--restart-after", "0.2"]);
    let before = cluster.pid(2).expect("a process");
    signal_pid(before, Signal::KILL);
    wait_for("another process", || cluster.pid(2).filter(|pid| *pid != before));
    wait_for("the news", || cluster.log().contains("starting n2 again").then_some(()));
    wait_for("its return", || (cluster.json(&["status", "--json"])[1]["applied"].as_u64()? > 1).then_some(()));
}

/// The program's file is gone when a node is to be started again: the others get a shutdown in good order, and not a kill.
#[test]
fn a_restart_that_fails_ends_the_others_in_good_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("kv-example");
    if std::fs::hard_link(PROGRAM, &program).is_err() {
        std::fs::copy(PROGRAM, &program).expect("a copy of the program");
    }
    let mut cluster = Cluster::start_program(&program, dir, &["--restart", "--restart-after", "0.2"]);
    std::fs::remove_file(&program).expect("it is there");
    signal_pid(cluster.pid(2).expect("a process"), Signal::KILL);
    assert_eq!(cluster.running.code(), Some(1), "{}", cluster.log());
    let log = cluster.log();
    assert_eq!(log.matches("shut down in good order").count(), 2, "{log}");
    assert!(log.contains("can't start n2") && log.contains("the cluster has ended"), "{log}");
    let words = log.lines().rfind(|line| line.starts_with("kv-example: ")).expect("last words");
    assert!(words.contains("can't start n2"), "{words}");
    assert!(cluster.pids().is_empty(), "no orphans");
}

#[test]
fn the_data_outlives_the_cluster_and_remembers_its_members() {
    let mut cluster = Cluster::start(&[]);
    assert!(cluster.client(&["put", "lasting", "value"]).status.success());
    cluster.running.signal(Signal::TERM);
    assert_eq!(cluster.running.code(), Some(0));

    let (port, data) = (cluster.base.to_string(), cluster.data().display().to_string());
    let args = ["cluster", "--base-port", &port, "--data", &data];
    let another_port = (cluster.base + 1).to_string();
    let others: [&[&str]; 4] =
        [&["--nodes", "1"], &["--nodes", "5"], &["--base-port", &another_port], &["--", "--cluster-name", "another"]];
    for other in others {
        let mut args = vec!["cluster", "--data", &data];
        if !other.contains(&"--base-port") {
            args.extend(["--base-port", &port]);
        }
        args.extend(other);
        let refused = run(&args);
        assert_refused(&refused, &[&data, "n1, n2, n3 of another cluster", "nothing was changed"]);
        assert_eq!(stdout(&refused), "", "nothing was started");
    }
    assert_eq!(std::fs::read_dir(cluster.data()).unwrap().count(), 3, "nothing was made");

    cluster.running = Running::start(&cluster.dir.path().join("log2"), &args);
    cluster.wait_ready();
    assert_eq!(stdout(&cluster.client(&["get", "lasting", "--value-only"])), "value\n");
}

#[test]
fn ports_in_use_are_named() {
    let base = free_ports(6);
    let _taken = std::net::TcpListener::bind(("127.0.0.1", base + 3)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let output = run(&["cluster", "--base-port", &base.to_string(), "--data", &data]);
    assert_refused(&output, &[&format!("127.0.0.1:{}", base + 3), "--base-port"]);
    assert!(!stderr(&output).contains(&format!(":{base} ")), "only those that are taken: {}", stderr(&output));
}

#[test]
fn a_server_ends_in_good_order_and_with_its_watchdog() {
    let alone = Alone::new();
    let args = alone.args(&["--exit-on-stdin-close"]);
    let mut node = Running::start_with_stdin(&alone.log(), &args, Stdio::piped());
    alone.put("k", "v");
    let log = node.log();
    for part in ["node n1 of cluster \"raftkv\"", &alone.data, &alone.client, &alone.peers] {
        assert!(log.contains(part), "{part} in {log}");
    }
    drop(node.child.stdin.take());
    assert_eq!(node.code(), Some(0), "{}", node.log());
    assert!(node.log().contains("stdin closed: shutting down"), "{}", node.log());
}

#[test]
fn a_write_to_nobody_is_safe_and_says_so() {
    let port = free_ports(1);
    let endpoint = format!("127.0.0.1:{port}");
    let output = run(&["put", "k", "v", "--endpoints", &endpoint, "--timeout", "0.3"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("safe to try again") && text.contains(&endpoint) && text.contains("refused"), "{text}");
}

/// A host that does not answer at all, such as one behind a firewall: the time is over before there is a connection, and what was never
/// sent took no effect.
#[test]
fn a_write_without_a_connection_is_safe_whenever_its_time_is_over() {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
    let deaf = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&deaf, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listen(&deaf, 0).unwrap();
    let address: std::net::SocketAddr = getsockname(&deaf).unwrap().try_into().unwrap();
    // Nobody accepts these, and there is no room for more.
    let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300));
    let waiting: Vec<_> = std::iter::from_fn(|| connect().ok()).take(16).collect();
    assert!(waiting.len() < 16, "this system takes connections without end");
    let endpoint = address.to_string();
    for timeout in ["0.3", "1.4"] {
        let output = run(&["put", "k", "v", "--endpoints", &endpoint, "--timeout", timeout]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("safe to try again"), "{}", stderr(&output));
        assert!(stderr(&output).contains("no connection within"), "{}", stderr(&output));
    }
}

#[test]
fn a_write_into_silence_has_an_unknown_outcome_and_its_own_exit_code() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    let output = run(&["member", "remove", "2", "--endpoints", &endpoint, "--timeout", "0.5"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("outcome is unknown"), "{}", stderr(&output));
    // A key's write would have been sent in a session, which was not opened.
    let output = run(&["put", "k", "v", "--endpoints", &endpoint, "--timeout", "0.5"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("safe to try again"), "{}", stderr(&output));
}

#[test]
fn the_load_generator_measures_and_counts() {
    let cluster = Cluster::start(&[]);
    let bench = |args: &[&str]| {
        let common = ["--warmup", "0.2", "--keys", "100", "--json"];
        cluster.json(&[&["bench"], args, &common].concat())
    };
    // On a machine that leaves processes without their turn for an election timeout, a second may pass with an election and no put.
    let mut seconds = (1..=5).map(|_| bench(&["put", "--clients", "8", "--duration", "1"]));
    let put = seconds.find(|put| put["operations"].as_u64().unwrap() > 0).expect("a put within five seconds");
    assert_eq!(put["latency_ms"]["reads"]["count"], 0, "{put}");
    for field in ["mean", "p50", "p90", "p99", "p999", "max"] {
        assert!(put["latency_ms"]["writes"][field].as_f64().unwrap() > 0.0, "{field}: {put}");
    }
    let get = bench(&[
        "get",
        "--clients",
        "8",
        "--connections",
        "6",
        "--threads",
        "2",
        "--target",
        "leader",
        "--duration",
        "1",
    ]);
    assert_eq!((&get["errors"], get["endpoints"].as_array().map(Vec::len)), (&json!({}), Some(1)), "{get}");
    let mixed =
        bench(&["mixed", "--clients", "8", "--rate", "50", "--read-ratio", "0.5", "--no-fill", "--duration", "1"]);
    let count = |kind: &str| mixed["latency_ms"][kind]["count"].as_u64().unwrap();
    assert_eq!(count("all") + mixed["errors"].as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>(), 50);
    assert!(count("reads") > 0 && count("writes") > 0, "{mixed}");

    let nobody = run(&["bench", "put", "--endpoints", "127.0.0.1:1", "--duration", "0.2", "--warmup", "0"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(stdout(&nobody).contains("errors: no connection"), "{}", stdout(&nobody));
}
