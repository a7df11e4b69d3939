//! Members come and go, while clients write through the retrying client: no write may fail.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kv_example::api::node::NodeStatusResponse;
use kv_example::client::{Client, ClientOptions};
use raftkv_tests::client::Endpoint;
use raftkv_tests::process::{Process, exclusive, run};
use raftkv_tests::{PATIENCE, Port, stack};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::SERVER;
use crate::cut::ensure_calm;

const CLIENTS: usize = 6;
const PAUSE: Duration = Duration::from_millis(5);
const STATUS_LIMIT: Duration = Duration::from_secs(1);
/// What a replacement waits at most.
const LIMIT: Duration = Duration::from_secs(90);

/// Machines, each with a directory and two ports. What runs there, and under which id, changes.
struct Machines {
    all: BTreeMap<u64, Machine>,
    dir: TempDir,
}

struct Machine {
    process: Process,
    data: PathBuf,
    client: Port,
    peer: Port,
}

impl Machines {
    fn new(count: u64) -> Result<Self> {
        let dir = TempDir::with_prefix("raftkv-test-")?;
        let mut all = BTreeMap::new();
        for n in 1..=count {
            let log = dir.path().join(format!("m{n}.log"));
            let machine = Machine {
                process: Process::new(&format!("m{n}"), Path::new(SERVER), Vec::new(), log),
                data: dir.path().join(format!("m{n}")),
                client: Port::reserve()?,
                peer: Port::reserve()?,
            };
            all.insert(n, machine);
        }
        Ok(Self { all, dir })
    }

    fn at(&self, n: u64) -> Result<&Machine> {
        self.all.get(&n).context("no such machine")
    }

    fn clients(&self, of: &[u64]) -> Vec<String> {
        of.iter().filter_map(|n| self.all.get(n)).map(|machine| machine.client.address()).collect()
    }

    fn all_clients(&self) -> Vec<String> {
        self.clients(&self.all.keys().copied().collect::<Vec<_>>())
    }

    fn start(&mut self, n: u64, more: &[&str]) -> Result<()> {
        let machine = self.all.get_mut(&n).context("no such machine")?;
        let mut args: Vec<String> = ["server", "--data", &machine.data.display().to_string()].map(str::to_owned).into();
        args.extend(["--listen-client".into(), machine.client.address()]);
        args.extend(["--listen-peer".into(), machine.peer.address(), "--exit-on-stdin-close".into()]);
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args.extend(stack());
        machine.process.set_args(args);
        machine.process.start()
    }

    /// The list of members that machines 1 to `count` begin with.
    fn peers(&self, count: u64) -> String {
        let peers = self.all.iter().filter(|(n, _)| **n <= count);
        peers.map(|(n, machine)| format!("{n}={}", machine.peer.address())).collect::<Vec<_>>().join(",")
    }

    fn begin(&mut self, n: u64, count: u64) -> Result<()> {
        let peers = self.peers(count);
        self.start(n, &["--id", &n.to_string(), "--peers", &peers])
    }

    fn join(&mut self, n: u64, through: &[u64]) -> Result<()> {
        let endpoints = self.clients(through).join(",");
        self.start(n, &["--join", &endpoints])
    }

    async fn terminate(&mut self, n: u64) -> Result<()> {
        let process = &mut self.all.get_mut(&n).context("no such machine")?.process;
        process.signal(Signal::TERM)?;
        let status = process.wait(PATIENCE).await?;
        ensure!(status.success(), "m{n} ended with {status}");
        Ok(())
    }

    fn kill_and_wipe(&mut self, n: u64) -> Result<()> {
        let machine = self.all.get_mut(&n).context("no such machine")?;
        machine.process.kill()?;
        Ok(std::fs::remove_dir_all(&machine.data)?)
    }

    async fn status(&self, n: u64) -> Result<NodeStatusResponse> {
        Ok(Endpoint::new(&self.at(n)?.client.address())?.status(STATUS_LIMIT).await?)
    }

    /// A command of the program, through these machines.
    async fn command(&self, args: &[&str], through: &[u64]) -> Result<(Option<i32>, String)> {
        let endpoints = self.clients(through).join(",");
        let mut all = args.to_vec();
        all.extend(["--endpoints", &endpoints]);
        self.bare(&all).await
    }

    async fn bare(&self, args: &[&str]) -> Result<(Option<i32>, String)> {
        let output = run(Path::new(SERVER), args, &[], "", LIMIT).await?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.code(), text))
    }

    async fn must(&self, args: &[&str], through: &[u64]) -> Result<String> {
        let (code, text) = self.command(args, through).await?;
        ensure!(code == Some(0), "{args:?} ended with {code:?}: {text}");
        Ok(text)
    }

    /// Waits until exactly these vote, none learns, and one of them leads.
    async fn wait_for_voters(&self, ids: &[u64], through: &[u64]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, text) = self.command(&["member", "list", "--json"], through).await?;
            let list: Value = serde_json::from_str(&text).unwrap_or_default();
            let members = list["members"].as_array().cloned().unwrap_or_default();
            let voters: Vec<_> = members
                .iter()
                .filter(|member| member["role"] == "voter" || member["role"] == "leader")
                .filter_map(|member| member["id"].as_u64())
                .collect();
            if voters == ids && members.len() == ids.len() && list["leader"].is_u64() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the voters are not {ids:?} within {PATIENCE:?}, but: {text}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn finish(self) -> Result<()> {
        for (n, machine) in &self.all {
            ensure!(!machine.process.log().contains("panicked at"), "m{n} panicked");
        }
        drop(self.dir);
        Ok(())
    }
}

/// Clients that write one key after the other through the retrying client. A write that fails ends the test.
struct Writers {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    tasks: JoinSet<Result<BTreeSet<String>>>,
}

impl Writers {
    fn start(servers: &[String]) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for n in 0..CLIENTS {
            let mut servers = servers.to_vec();
            let first = n % servers.len();
            servers.rotate_left(first);
            let (stop, count) = (stop.clone(), count.clone());
            tasks.spawn(async move {
                let client = Client::new(&servers, ClientOptions::default()).map_err(anyhow::Error::msg)?;
                let mut written = BTreeSet::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("members/{n}/{:06}", written.len());
                    client.put(key.clone(), "v").await.with_context(|| format!("writing {key}"))?;
                    written.insert(key);
                    count.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(written)
            });
        }
        Self { stop, count, tasks }
    }

    async fn more(&mut self, more: u64) -> Result<()> {
        let goal = self.count.load(Ordering::Relaxed) + more;
        let deadline = Instant::now() + PATIENCE;
        while self.count.load(Ordering::Relaxed) < goal {
            if let Some(ended) = self.tasks.try_join_next() {
                ended??;
                bail!("a client has ended by itself");
            }
            ensure!(Instant::now() < deadline, "{more} writes were not acknowledged within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Ends them, and checks that all that they wrote is there.
    async fn check(mut self, server: &str) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = BTreeSet::new();
        while let Some(ended) = self.tasks.join_next().await {
            written.append(&mut ended??);
        }
        let found = Endpoint::new(server)?.list("members/", false, PATIENCE).await?;
        let found: BTreeSet<_> = found.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
        let missing: Vec<_> = written.difference(&found).take(5).collect();
        ensure!(missing.is_empty(), "acknowledged writes are missing, such as {missing:?}");
        Ok(written.len())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_from_one_to_five_and_shrinks_back_under_load() -> Result<()> {
    let _alone = exclusive().await?;
    let mut machines = Machines::new(5)?;
    machines.begin(1, 1)?;
    machines.wait_for_voters(&[1], &[1]).await?;
    let mut writers = Writers::start(&machines.all_clients());
    writers.more(100).await?;
    for n in 2..=5 {
        machines.join(n, &[1])?;
        let ids: Vec<_> = (1..=n).collect();
        machines.wait_for_voters(&ids, &[1]).await?;
        writers.more(100).await?;
    }
    // A leader is among those who go.
    machines.must(&["member", "transfer", "5"], &[2]).await?;
    for n in (2..=5).rev() {
        machines.must(&["member", "remove", &n.to_string()], &[1]).await?;
        let ids: Vec<_> = (1..n).collect();
        machines.wait_for_voters(&ids, &[1]).await?;
        writers.more(100).await?;
        machines.at(n)?.process.wait_for_log("this node was removed from the cluster", PATIENCE).await?;
        machines.terminate(n).await?;
    }
    let count = writers.check(&machines.at(1)?.client.address()).await?;
    println!("{count} writes, and none failed");
    machines.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_is_replaced_under_load() -> Result<()> {
    let _alone = exclusive().await?;
    let mut machines = Machines::new(3)?;
    for n in 1..=3 {
        machines.begin(n, 3)?;
    }
    machines.wait_for_voters(&[1, 2, 3], &[1, 2, 3]).await?;
    // All have told each other that they run.
    machines.must(&["put", "k", "v"], &[3]).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    machines.must(&["member", "transfer", "1"], &[1, 2, 3]).await?;
    // A write that a node has passed on may be left unknown when that node is killed: clients are at the others.
    let mut writers = Writers::start(&machines.clients(&[1, 2]));
    writers.more(200).await?;
    machines.kill_and_wipe(3)?;
    writers.more(100).await?;
    // It may not come back as who it was.
    machines.join(3, &[1, 2])?;
    let process = &mut machines.all.get_mut(&3).context("no machine 3")?.process;
    let code = process.wait(PATIENCE).await?.code();
    let address = machines.at(3)?.peer.address();
    let log = machines.at(3)?.process.log();
    ensure!(code == Some(2) && log.contains(&format!("kv-example member replace 3 {address}")), "{code:?}: {log}");
    let mut replace = Process::new("replace", Path::new(SERVER), Vec::new(), machines.dir.path().join("replace.log"));
    let endpoints = machines.clients(&[1, 2]).join(",");
    replace.set_args(["member", "replace", "3", &address, "--endpoints", &endpoints].map(str::to_owned).into());
    replace.start()?;
    wait_for_member(&machines, 4).await?;
    machines.join(3, &[1, 2])?;
    let code = replace.wait(LIMIT).await?.code();
    ensure!(code == Some(0) && replace.log().contains("n4 has taken the place of n3"), "{code:?}: {}", replace.log());
    machines.wait_for_voters(&[1, 2, 4], &[1, 2]).await?;
    writers.more(100).await?;
    // It counts: one of the others may go.
    machines.terminate(2).await?;
    machines.must(&["put", "k", "w", "--timeout", "20"], &[3]).await?;
    machines.begin(2, 3)?;
    machines.wait_for_voters(&[1, 2, 4], &[1, 2, 3]).await?;
    writers.check(&machines.at(3)?.client.address()).await?;
    machines.finish()
}

async fn wait_for_member(machines: &Machines, id: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, text) = machines.command(&["member", "list"], &[1, 2]).await?;
        if text.contains(&format!("n{id} ")) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no n{id} within {PATIENCE:?}: {text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_goes_on_alone_when_the_others_are_lost_for_good() -> Result<()> {
    let _alone = exclusive().await?;
    let mut machines = Machines::new(3)?;
    for n in 1..=3 {
        machines.begin(n, 3)?;
    }
    machines.wait_for_voters(&[1, 2, 3], &[1]).await?;
    for n in 0..20 {
        machines.must(&["put", &format!("k{n}"), "v"], &[1]).await?;
    }
    machines.kill_and_wipe(2)?;
    machines.kill_and_wipe(3)?;
    let data = machines.at(1)?.data.display().to_string();
    let (code, text) = machines.bare(&["recover", "--data-dir", &data, "--yes"]).await?;
    ensure!(code == Some(2) && text.contains("in use by process"), "{code:?}: {text}");
    machines.terminate(1).await?;
    let (code, text) = machines.bare(&["recover", "--data-dir", &data]).await?;
    ensure!(code == Some(2) && text.contains("LOST") && text.contains("--yes"), "{code:?}: {text}");
    let (code, text) = machines.bare(&["recover", "--data-dir", &data, "--yes"]).await?;
    ensure!(code == Some(0) && text.contains("node 1 is the only voter"), "{code:?}: {text}");
    let (code, text) = machines.bare(&["recover", "--data-dir", &data, "--yes"]).await?;
    ensure!(code == Some(2) && text.contains("only member already"), "{code:?}: {text}");
    machines.begin(1, 3)?;
    machines.wait_for_voters(&[1], &[1]).await?;
    for n in 0..20 {
        let text = machines.must(&["get", &format!("k{n}"), "--value-only"], &[1]).await?;
        ensure!(text == "v\n", "k{n}: {text}");
    }
    machines.join(2, &[1])?;
    machines.join(3, &[1])?;
    let deadline = Instant::now() + PATIENCE;
    // Which of the two gets which id is open.
    while let Err(error) = machines.wait_for_voters(&[1, 4, 5], &[1]).await {
        ensure!(Instant::now() < deadline, "the others did not come back: {error}");
    }
    machines.terminate(1).await?;
    machines.must(&["put", "k", "v", "--timeout", "20"], &[2, 3]).await?;
    machines.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_says_so_and_disturbs_nobody() -> Result<()> {
    let _alone = exclusive().await?;
    let mut machines = Machines::new(3)?;
    for n in 1..=3 {
        machines.begin(n, 3)?;
    }
    machines.wait_for_voters(&[1, 2, 3], &[1]).await?;
    machines.must(&["member", "transfer", "1"], &[1, 2, 3]).await?;
    machines.must(&["put", "k", "v"], &[3]).await?;
    machines.must(&["member", "remove", "3"], &[2]).await?;
    machines.at(3)?.process.wait_for_log("this node was removed from the cluster", PATIENCE).await?;
    for again in [false, true] {
        if again {
            // As it began; and it says so again.
            machines.terminate(3).await?;
            machines.begin(3, 3)?;
        }
        let deadline = Instant::now() + PATIENCE;
        while !machines.status(3).await.is_ok_and(|status| status.removed) {
            ensure!(Instant::now() < deadline, "n3 does not say that it is removed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let asked = Instant::now();
        // Somebody else might still answer, so the client asks on for as long as it may.
        let (code, text) = machines.command(&["put", "k", "v", "--timeout", "2"], &[3]).await?;
        ensure!(code == Some(1) && text.contains("permanently removed"), "{code:?}: {text}");
        ensure!(asked.elapsed() < Duration::from_secs(30), "it took {:?}", asked.elapsed());
        let term = machines.status(1).await?.term;
        tokio::time::sleep(Duration::from_secs(4)).await;
        // One that may disturb them does so with each of its election timeouts, which are a third of a second.
        ensure_calm(term, machines.status(1).await?.term)?;
    }
    let (_, text) = machines.command(&["status"], &[1, 2, 3]).await?;
    ensure!(text.contains("removed"), "{text}");
    // Its place can be taken under a new id, by the same machine.
    machines.terminate(3).await?;
    std::fs::remove_dir_all(&machines.at(3)?.data)?;
    machines.join(3, &[1, 2])?;
    machines.wait_for_voters(&[1, 2, 4], &[1, 2]).await?;
    machines.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_state_just_starts_whatever_became_of_the_members() -> Result<()> {
    let _alone = exclusive().await?;
    let mut machines = Machines::new(3)?;
    machines.begin(1, 1)?;
    machines.wait_for_voters(&[1], &[1]).await?;
    machines.join(2, &[1])?;
    machines.wait_for_voters(&[1, 2], &[1]).await?;
    // One that joined needs nobody to start again; one that began says what it said in the beginning.
    machines.terminate(1).await?;
    machines.terminate(2).await?;
    machines.join(2, &[3])?;
    machines.begin(1, 1)?;
    machines.wait_for_voters(&[1, 2], &[1, 2]).await?;
    // Another list of members would be another cluster.
    machines.terminate(1).await?;
    machines.begin(1, 2)?;
    let process = &mut machines.all.get_mut(&1).context("no machine 1")?.process;
    ensure!(process.wait(PATIENCE).await?.code() == Some(2), "it should not start");
    let log = machines.at(1)?.process.log();
    ensure!(log.contains("--peers names those whom the cluster began with"), "{log}");
    machines.join(1, &[2])?;
    machines.wait_for_voters(&[1, 2], &[1, 2]).await?;
    // A learner stays one until it is promoted.
    let endpoints = machines.clients(&[1, 2]).join(",");
    machines.start(3, &["--join", &endpoints, "--learner", "--id", "7"])?;
    wait_for_member(&machines, 7).await?;
    machines.at(3)?.process.wait_for_log("member n7", PATIENCE).await?;
    machines.must(&["put", "k", "v", "--timeout", "20"], &[3]).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let list = machines.must(&["member", "list"], &[2]).await?;
    ensure!(list.contains("learner"), "{list}");
    machines.must(&["member", "promote", "7"], &[2]).await?;
    machines.wait_for_voters(&[1, 2, 7], &[1]).await?;
    machines.finish()
}
