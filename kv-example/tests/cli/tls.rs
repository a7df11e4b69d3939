//! A protected cluster of real processes, as its owner and its clients meet it, and those who are not let in.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::support::{Alone, Running, assert_refused, free_ports, program, run, stderr, stdout, wait_for};
use rustix::process::Signal;

/// Three nodes with certificates, and room for a fourth.
struct Cluster {
    nodes: Vec<Running>,
    dir: tempfile::TempDir,
    base: u16,
    transport: &'static str,
}

impl Cluster {
    fn start(transport: &'static str) -> Self {
        let (dir, base) = (tempfile::tempdir().unwrap(), free_ports(8));
        let mut cluster = Self { nodes: Vec::new(), dir, base, transport };
        cluster.certs(&["--nodes", "1,2,3"]);
        for id in 1..=3 {
            let node = cluster.node(id, &["--id", &id.to_string(), "--peers", &cluster.peers()]);
            cluster.nodes.push(node);
        }
        wait_for("the first write", || cluster.client(&["put", "first", "1"]).status.success().then_some(()));
        cluster
    }

    fn certs(&self, args: &[&str]) -> String {
        let out = self.path("certs").display().to_string();
        let made = run(&[&["certs", "--out", &out], args].concat());
        assert!(made.status.success(), "{}", stderr(&made));
        stdout(&made)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path("certs").join(name).display().to_string()
    }

    fn address(&self, id: u16, members: u16) -> String {
        format!("127.0.0.1:{}", self.base + 2 * (id - 1) + members)
    }

    fn peers(&self) -> String {
        (1..=3).map(|id| format!("{id}={}", self.address(id, 1))).collect::<Vec<_>>().join(",")
    }

    fn endpoints(&self) -> String {
        (1..=3).map(|id| format!("https://{}", self.address(id, 0))).collect::<Vec<_>>().join(",")
    }

    /// Starts a node with its own certificates, in both directions.
    fn node(&self, id: u16, more: &[&str]) -> Running {
        let (cert, key) = (self.file(&format!("node-{id}.crt")), self.file(&format!("node-{id}.key")));
        self.node_with(id, [&cert, &key, &self.file("ca.crt")], more)
    }

    fn node_with(&self, id: u16, [cert, key, ca]: [&str; 3], more: &[&str]) -> Running {
        let data = self.path(&format!("n{id}")).display().to_string();
        let (clients, members) = (self.address(id, 0), self.address(id, 1));
        let mut args = vec!["server", "--data", &data, "--listen-client", &clients, "--listen-peer", &members];
        args.extend(["--transport", self.transport]);
        args.extend(["--peer-cert", cert, "--peer-key", key, "--peer-ca", ca]);
        args.extend(["--client-cert", cert, "--client-key", key, "--client-ca", ca]);
        args.extend(more);
        Running::start(&self.path(&format!("n{id}.log")), &args)
    }

    /// A client with a certificate.
    fn client(&self, args: &[&str]) -> Output {
        self.client_with(&["client.crt", "client.key"], args)
    }

    fn client_with(&self, own: &[&str], args: &[&str]) -> Output {
        self.client_at(&self.endpoints(), own, args)
    }

    /// One that knows of a single node.
    fn client_of(&self, id: u64, args: &[&str]) -> Output {
        let id = u16::try_from(id).unwrap();
        self.client_at(&format!("https://{}", self.address(id, 0)), &["client.crt", "client.key"], args)
    }

    fn client_at(&self, endpoints: &str, own: &[&str], args: &[&str]) -> Output {
        let mut command = program();
        command.args(args).args(["--endpoints", endpoints, "--cacert", &self.file("ca.crt")]);
        if let [cert, key] = own {
            command.args(["--cert", &self.file(cert), "--key", &self.file(key)]);
        }
        command.output().unwrap()
    }

    fn succeed(&self, args: &[&str]) -> String {
        let output = self.client(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn leader(&self) -> u64 {
        wait_for("a leader", || {
            let nodes: serde_json::Value = serde_json::from_str(&self.succeed(&["status", "--json"])).ok()?;
            nodes.as_array()?.iter().find(|node| node["role"] == "leader")?["id"].as_u64()
        })
    }

    fn wait_for_log(&self, id: usize, words: &[&str]) {
        wait_for(&format!("{words:?} in the log of n{id}"), || {
            let log = self.nodes[id - 1].log();
            log.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        });
    }

    fn etcdctl(&self, args: &[&str]) -> Option<String> {
        let mut command = crate::support::deaf(Command::new("etcdctl"));
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoints(), "--command-timeout", "20s"]);
        command.args([
            "--cacert",
            &self.file("ca.crt"),
            "--cert",
            &self.file("client.crt"),
            "--key",
            &self.file("client.key"),
        ]);
        let Ok(output) = command.args(args).output() else {
            println!("SKIPPED: etcdctl over TLS, as there is no etcdctl here");
            return None;
        };
        assert!(output.status.success(), "etcdctl {args:?}: {}{}", stdout(&output), stderr(&output));
        Some(stdout(&output))
    }
}

/// What a cluster does that has certificates, from its clients' side.
fn serves_its_clients(cluster: &Cluster) {
    cluster.succeed(&["put", "greeting", "hello"]);
    assert_eq!(cluster.succeed(&["get", "greeting", "--value-only"]).trim(), "hello");
    let list = cluster.succeed(&["member", "list", "--json"]);
    assert!(list.contains(&format!("https://{}", cluster.address(2, 1))), "{list}");
    let bench = ["bench", "put", "--clients", "4", "--duration", "0.2", "--warmup", "0", "--target", "leader"];
    assert!(cluster.succeed(&bench).contains("put"), "a load generator");
    let Some(got) = cluster.etcdctl(&["get", "greeting", "--print-value-only"]) else { return };
    assert_eq!(got, "hello\n");
    // These connect to the addresses in the list of members.
    let status = cluster.etcdctl(&["endpoint", "status", "--cluster"]).unwrap();
    assert_eq!(status.lines().count(), 3, "{status}");
    // These go through the leader, whichever node is asked.
    let successor = cluster.leader() % 3 + 1;
    cluster.succeed(&["member", "transfer", &successor.to_string()]);
    assert_eq!(cluster.leader(), successor);
}

/// Clients without certificates, or with those of somebody else.
fn refuses_strangers(cluster: &Cluster) {
    let nobody = cluster.client_with(&[], &["get", "greeting", "--timeout", "1"]);
    assert_eq!(nobody.status.code(), Some(1), "{}", stderr(&nobody));
    assert!(
        stderr(&nobody).contains("does not accept this side's certificate: none was presented"),
        "{}",
        stderr(&nobody)
    );
    cluster.wait_for_log(1, &["WARN", "refused a client", "it presented no certificate", "127.0.0.1"]);

    let other = cluster.path("other").display().to_string();
    assert!(run(&["certs", "--out", &other, "--nodes", "1"]).status.success());
    let [theirs_cert, theirs_key] = ["client.crt", "client.key"].map(|name| format!("{other}/{name}"));
    let one = format!("https://{}", cluster.address(1, 0));
    let endpoints = ["--endpoints", &one, "--timeout", "1"];
    let ca = cluster.file("ca.crt");
    let stranger =
        [&["get", "x", "--cacert", &ca, "--cert", &theirs_cert, "--key", &theirs_key][..], &endpoints].concat();
    let output = run(&stranger);
    assert!(stderr(&output).contains("it is not signed by a CA that is known there"), "{}", stderr(&output));
    cluster.wait_for_log(1, &["refused a client", "it is not signed by a CA in", "ca.crt"]);
    let [cert, key] = ["client.crt", "client.key"].map(|name| cluster.file(name));
    let deceived =
        run(&[&["get", "x", "--cacert", &format!("{other}/ca.crt"), "--cert", &cert, "--key", &key], &endpoints[..]]
            .concat());
    assert!(stderr(&deceived).contains("its certificate is not accepted"), "{}", stderr(&deceived));

    let plain = run(&["get", "x", "--timeout", "1", "--endpoints", &cluster.address(1, 0)]);
    assert!(stderr(&plain).contains("the other side speaks TLS, and this one does not"), "{}", stderr(&plain));
    cluster.wait_for_log(1, &["refused a client", "it does not speak TLS, and this side does"]);
    assert_refused(&run(&["get", "x", "--endpoints", &one]), &["--endpoints", "say --cacert FILE"]);
}

/// A member's process with certificates of another cluster, and one with those of another node.
fn refuses_impostors(cluster: &mut Cluster) {
    cluster.nodes[2].signal(Signal::TERM);
    assert_eq!(cluster.nodes[2].code(), Some(0));
    let id = ["--id", "3", "--peers", &cluster.peers()].map(str::to_owned);
    let id: Vec<_> = id.iter().map(String::as_str).collect();
    let twos = [cluster.file("node-2.crt"), cluster.file("node-2.key"), cluster.file("ca.crt")];
    let mut mistaken = cluster.node_with(3, [&twos[0], &twos[1], &twos[2]], &id);
    assert_eq!(mistaken.code(), Some(2));
    let log = mistaken.log();
    assert!(log.contains("node-2.crt: the certificate is for n2, and is to be for node n3"), "{log}");

    let other = cluster.path("strangers").display().to_string();
    assert!(run(&["certs", "--out", &other, "--nodes", "3"]).status.success());
    let [cert, key, ca] = ["node-3.crt", "node-3.key", "ca.crt"].map(|name| format!("{other}/{name}"));
    let impostor = cluster.node_with(3, [&cert, &key, &ca], &id);
    cluster.wait_for_log(1, &["WARN", "3=127.0.0.1", "its certificate is not accepted: it is not signed by a CA in"]);
    cluster.wait_for_log(2, &["WARN", "3=127.0.0.1", "its certificate is not accepted: it is not signed by a CA in"]);
    wait_for("the other side of it", || {
        impostor.log().contains("it does not accept this side's certificate").then_some(())
    });
    drop(impostor);
    let node = cluster.node(3, &id);
    cluster.nodes[2] = node;
    wait_for("n3 again", || {
        let list = cluster.succeed(&["member", "list"]);
        (list.lines().filter(|line| line.contains("runs")).count() == 3).then_some(())
    });
}

/// New certificates for all nodes, while all of them run: they are used from the next connection on.
fn takes_up_new_certificates(cluster: &mut Cluster) {
    let before = fs::read(cluster.file("node-1.crt")).unwrap();
    cluster.certs(&["--nodes", "1,2,3", "--renew"]);
    assert_ne!(before, fs::read(cluster.file("node-1.crt")).unwrap());
    for id in 1..=3 {
        cluster.wait_for_log(
            id,
            &["INFO", "certificates have changed; new connections use the new ones", &format!("node-{id}.crt")],
        );
    }
    cluster.succeed(&["put", "renewed", "yes"]);
    // Broken ones are not used, and the log says why.
    let good = fs::read(cluster.file("node-1.crt")).unwrap();
    fs::write(cluster.file("node-1.crt"), "nothing").unwrap();
    cluster.wait_for_log(
        1,
        &["ERROR", "certificates have changed, but can't be used", "node-1.crt: there is no certificate"],
    );
    cluster.succeed(&["put", "broken", "no"]);
    fs::write(cluster.file("node-1.crt"), good).unwrap();

    // A member that comes back meets those that went on.
    cluster.nodes[1].signal(Signal::KILL);
    let _ = cluster.nodes[1].code();
    cluster.succeed(&["put", "without", "n2"]);
    let node = cluster.node(2, &["--id", "2", "--peers", &cluster.peers()]);
    cluster.nodes[1] = node;
    let two = format!("https://{}", cluster.address(2, 0));
    let [ca, cert, key] = ["ca.crt", "client.crt", "client.key"].map(|name| cluster.file(name));
    wait_for("n2 to have what it missed", || {
        let got = run(&[
            "get",
            "without",
            "--value-only",
            "--endpoints",
            &two,
            "--cacert",
            &ca,
            "--cert",
            &cert,
            "--key",
            &key,
        ]);
        (stdout(&got).trim() == "n2").then_some(())
    });
}

/// A new node gets its id from its certificate.
fn lets_a_node_join(cluster: &mut Cluster) {
    cluster.certs(&["--nodes", "4"]);
    let node = cluster.node(4, &["--join", &cluster.endpoints()]);
    cluster.nodes.push(node);
    wait_for("n4 to vote", || {
        let list = cluster.succeed(&["member", "list"]);
        list.lines().any(|line| line.contains("n4") && line.contains("voter") && line.contains("runs")).then_some(())
    });
}

/// There is nothing to warn of where all connections are protected, and root has a password.
fn enables_authentication(cluster: &Cluster) {
    cluster.succeed(&["user", "add", "root:rootpw"]);
    cluster.succeed(&["user", "grant", "root", "root"]);
    cluster.succeed(&["auth", "enable"]);
    let log = wait_for("the news of it", || {
        cluster.nodes.iter().map(Running::log).find(|log| log.contains("authentication is enabled: requests must"))
    });
    cluster.succeed(&["auth", "disable", "--user", "root:rootpw"]);
    assert!(!log.lines().any(|line| line.contains("WARN") && line.contains("authentication is enabled")), "{log}");
}

/// What only the leader does is passed on to it by whichever node is asked: over TLS, and as the user that asked.
fn passes_on_what_its_users_ask(cluster: &Cluster) {
    let leader = cluster.leader();
    cluster.succeed(&["auth", "enable"]);
    let [asked, successor] = [1, 2].map(|further| (leader + further - 1) % 3 + 1);
    let transfer = ["member", "transfer", &successor.to_string()];
    let nobody = cluster.client_of(asked, &transfer);
    assert!(nobody.status.code() == Some(1) && stderr(&nobody).contains("user name is empty"), "{}", stderr(&nobody));
    let as_root = |args: &[&str]| {
        let output = cluster.client_of(asked, &[args, &["--user", "root:rootpw", "--timeout", "60"]].concat());
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        stdout(&output)
    };
    // Where the machine is busy, somebody else may be elected in between.
    wait_for("the successor to lead", || {
        as_root(&transfer);
        (cluster.leader() == successor).then_some(())
    });
    // How far the others are only the leader knows, of whose address only the list tells; and it has to hear from them first.
    wait_for("a list of all four", || {
        let list = as_root(&["member", "list"]);
        let leads = list.lines().any(|line| line.contains(&format!("n{successor}")) && line.contains("leader"));
        (leads && list.lines().filter(|line| line.contains("runs")).count() == 4).then_some(())
    });
    // A leader that is to go is asked itself.
    as_root(&["member", "remove", &successor.to_string()]);
    let list = as_root(&["member", "list"]);
    assert!(!list.contains(&format!("n{successor} ")), "{list}");
}

fn a_protected_cluster(transport: &'static str) {
    let mut cluster = Cluster::start(transport);
    serves_its_clients(&cluster);
    refuses_strangers(&cluster);
    refuses_impostors(&mut cluster);
    takes_up_new_certificates(&mut cluster);
    lets_a_node_join(&mut cluster);
    enables_authentication(&cluster);
    passes_on_what_its_users_ask(&cluster);
}

#[test]
fn a_cluster_over_grpc_is_protected() {
    a_protected_cluster("grpc");
}

#[test]
fn a_cluster_over_tarpc_is_protected() {
    a_protected_cluster("tarpc");
}

#[test]
fn a_protected_local_cluster_in_one_command() {
    let (dir, base) = (tempfile::tempdir().unwrap(), free_ports(6));
    let data = dir.path().join("the data").display().to_string();
    let log = dir.path().join("log");
    let args = ["cluster", "--tls", "--base-port", &base.to_string(), "--data", &data];
    for round in 0..2 {
        let mut running = Running::start(&log, &args);
        let file = |name: &str| format!("{data}/certs/{name}");
        let with_certificates = |args: &[&str]| {
            let endpoints = (0..3).map(|n| format!("https://127.0.0.1:{}", base + 2 * n)).collect::<Vec<_>>().join(",");
            let mut command = program();
            command.args(args).env("RAFTKV_ENDPOINTS", endpoints).env("RAFTKV_CACERT", file("ca.crt"));
            command.env("RAFTKV_CERT", file("client.crt")).env("RAFTKV_KEY", file("client.key")).output().unwrap()
        };
        let value = round.to_string();
        wait_for("a write", || with_certificates(&["put", "round", &value]).status.success().then_some(()));
        assert_eq!(stdout(&with_certificates(&["get", "round", "--value-only"])).trim(), value);
        let lines = running.log();
        assert!(lines.contains(&format!("export RAFTKV_CACERT='{}'", file("ca.crt"))), "{lines}");
        assert!(lines.contains(&format!("https://127.0.0.1:{base}")), "{lines}");
        wait_for("the news of the leader", || running.log().contains("leads term").then_some(()));
        running.signal(Signal::TERM);
        assert_eq!(running.code(), Some(0));
    }
}

#[test]
fn a_server_that_can_not_use_its_certificates_says_so_and_does_not_start() {
    let node = Alone::new();
    let out = node.dir.path().join("certs").display().to_string();
    assert!(run(&["certs", "--out", &out, "--nodes", "1"]).status.success());
    let [cert, key, ca] = ["node-1.crt", "node-1.key", "ca.crt"].map(|name| format!("{out}/{name}"));
    let with = |tls: &[&str]| run(&node.args(tls));
    assert_refused(&with(&["--peer-cert", &cert]), &["--peer-cert is given without --peer-key and --peer-ca"]);
    assert_refused(
        &with(&["--peer-cert", &cert, "--peer-key", &ca, "--peer-ca", &ca]),
        &["--peer-cert, --peer-key, --peer-ca", "ca.crt: there is no private key in the file"],
    );
    assert_refused(
        &with(&["--client-cert", &format!("{out}/client.crt"), "--client-key", &key, "--client-ca", &ca]),
        &["--client-cert, --client-key, --client-ca", "node-1.key: this is not the key of the certificate in"],
    );
    assert!(!std::path::Path::new(&node.data).exists(), "nothing was begun");
    // The environment and a file say the same.
    let mut by_environment = program();
    by_environment
        .args(node.args(&[]))
        .env("RAFTKV_PEER_CERT", &cert)
        .env("RAFTKV_PEER_KEY", &key)
        .env("RAFTKV_PEER_CA", &cert);
    assert_refused(&by_environment.output().unwrap(), &["node-1.crt: it is not signed by a CA in"]);
}
