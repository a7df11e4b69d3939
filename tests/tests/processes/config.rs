//! Mistakes of whoever runs a server: each is refused before anything is touched, in words that say what to do.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use raftkv_tests::process::run;
use raftkv_tests::{Cluster, ClusterOptions, PATIENCE, Port, stack};
use tempfile::TempDir;

use crate::{SERVER, three};

/// The exit code of a mistake in the configuration.
const MISTAKE: i32 = 2;
/// The exit code of anything else that goes wrong.
const FAILURE: i32 = 1;

/// A place for one server, which is not meant to come up.
struct Place {
    dir: TempDir,
    client: Port,
    peers: Vec<Port>,
}

impl Place {
    fn new() -> Result<Self> {
        let peers = (0..3).map(|_| Port::reserve()).collect::<Result<_>>()?;
        Ok(Self { dir: TempDir::with_prefix("raftkv-test-")?, client: Port::reserve()?, peers })
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn peers(&self) -> String {
        let peers: Vec<_> = self.peers.iter().zip(1..).map(|(port, id)| format!("{id}={}", port.address())).collect();
        peers.join(",")
    }

    async fn start(&self, id: &str, more: &[&str]) -> Result<Output> {
        let (data, peers, client) = (self.data().display().to_string(), self.peers(), self.client.address());
        let mut args = vec!["server", "--id", id, "--data", &data, "--peers", &peers, "--listen-client", &client];
        args.extend_from_slice(more);
        let stack = stack();
        args.extend(stack.iter().map(String::as_str));
        run(Path::new(SERVER), &args, &[], "", PATIENCE).await
    }
}

/// Checks the exit code, and that the last words hold all of these.
fn ensure_refused(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{} instead of exit code {code}:\n{text}", output.status);
    let from = text.rfind("kv-example: ").with_context(|| format!("no last words:\n{text}"))?;
    for word in words {
        ensure!(text[from..].contains(word), "{word:?} is missing in its last words:\n{text}");
    }
    Ok(())
}

#[tokio::test]
async fn an_id_that_is_not_among_the_peers() -> Result<()> {
    let place = Place::new()?;
    let output = place.start("4", &[]).await?;
    ensure_refused(&output, MISTAKE, &["--id", "node 4 is not in --peers", "1, 2, 3", "add 4=HOST:PORT"])?;
    ensure!(!place.data().exists(), "it made a data directory all the same");
    Ok(())
}

#[tokio::test]
async fn a_heartbeat_too_slow_for_the_election_timeout() -> Result<()> {
    let output = Place::new()?.start("1", &["--election-timeout-ms", "300", "--heartbeat-ms", "200"]).await?;
    ensure_refused(
        &output,
        MISTAKE,
        &["--heartbeat-ms", "200 ms", "half of the election timeout", "a third is good: 100 ms"],
    )
}

#[tokio::test]
async fn a_key_that_no_option_has() -> Result<()> {
    let place = Place::new()?;
    let file = place.dir.path().join("server.toml");
    std::fs::write(&file, "id = 1\nelection-timeout = 500\n")?;
    let name = file.display().to_string();
    let output = place.start("1", &["--config", &name]).await?;
    ensure_refused(&output, MISTAKE, &[&name, "line 2", "election-timeout", "unknown field", "election-timeout-ms"])
}

#[tokio::test]
async fn an_option_that_is_missing_and_one_that_is_no_number() -> Result<()> {
    let output = run(Path::new(SERVER), &["server", "--id", "1"], &[], "", PATIENCE).await?;
    ensure_refused(&output, MISTAKE, &["--peers is missing", "RAFTKV_PEERS"])?;
    let output = run(Path::new(SERVER), &["server"], &[("RAFTKV_ID", "one")], "", PATIENCE).await?;
    ensure_refused(&output, MISTAKE, &["environment variable RAFTKV_ID", "\"one\""])
}

#[tokio::test]
async fn a_port_that_is_in_use() -> Result<()> {
    let place = Place::new()?;
    for (option, port) in [("--listen-client", &place.client), ("--listen-peer", &place.peers[0])] {
        let _other = std::net::TcpListener::bind(port.address())?;
        let output = place.start("1", &[]).await?;
        ensure_refused(&output, MISTAKE, &[option, &port.address(), "in use", "choose another port"])?;
    }
    ensure!(!place.data().join("LOCK").exists(), "it opened the log all the same");
    Ok(())
}

#[tokio::test]
async fn a_data_directory_that_is_a_file() -> Result<()> {
    let place = Place::new()?;
    std::fs::write(place.data(), "notes")?;
    let output = place.start("1", &[]).await?;
    ensure_refused(&output, MISTAKE, &["--data", &place.data().display().to_string(), "choose a directory"])?;
    ensure!(std::fs::read(place.data())? == b"notes", "it wrote to the file");
    Ok(())
}

/// A single node that has run, and what was in its directory.
async fn used() -> Result<(Cluster, PathBuf)> {
    let mut cluster = Cluster::start(ClusterOptions { nodes: 1, ..three() }).await?;
    cluster.client(1)?.put("k", "v", PATIENCE).await?;
    cluster.terminate(1).await?;
    let data = cluster.data(1)?.to_owned();
    Ok((cluster, data))
}

/// All files below, with their contents.
fn contents(dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(contents(&path)?);
        } else {
            files.push((path.clone(), std::fs::read(&path)?));
        }
    }
    files.sort();
    Ok(files)
}

fn ensure_untouched(dir: &Path, before: &[(PathBuf, Vec<u8>)]) -> Result<()> {
    // The lock file names the process that tried last.
    let others = |(path, _): &&(PathBuf, Vec<u8>)| !path.ends_with("LOCK");
    let now = contents(dir)?;
    ensure!(
        now.iter().filter(others).eq(before.iter().filter(others)),
        "the directory has changed: {:?}",
        now.iter().map(|(path, bytes)| (path, bytes.len())).collect::<Vec<_>>()
    );
    Ok(())
}

#[tokio::test]
async fn the_data_directory_of_another_node() -> Result<()> {
    let (cluster, data) = used().await?;
    let before = contents(&data)?;
    let place = Place::new()?;
    let (peers, client) = (place.peers(), place.client.address());
    let name = data.display().to_string();
    let args = ["server", "--id", "2", "--data", &name, "--peers", &peers, "--listen-client", &client];
    let output = run(Path::new(SERVER), &args, &[], "", PATIENCE).await?;
    ensure_refused(&output, MISTAKE, &[&name, "log of node 1", "node 2", "check the node's id"])?;
    ensure_untouched(&data, &before)?;
    cluster.finish()
}

#[tokio::test]
async fn the_data_directory_of_another_cluster() -> Result<()> {
    let (mut cluster, data) = used().await?;
    let before = contents(&data)?;
    let good = cluster.process(1)?.args().to_vec();
    let mut args = good.clone();
    args.extend(["--cluster-name".into(), "another".into()]);
    cluster.process_mut(1)?.set_args(args);
    cluster.launch(1)?;
    let status = cluster.process_mut(1)?.wait(PATIENCE).await?;
    let log = cluster.process(1)?.log();
    ensure!(status.code() == Some(MISTAKE), "{status}:\n{log}");
    ensure!(log.contains("this is the log of node 1 of cluster") && log.contains("the cluster's name"), "{log}");
    ensure_untouched(&data, &before)?;
    // Under its own name it is what it was.
    cluster.process_mut(1)?.set_args(good);
    cluster.launch(1)?;
    cluster.leader().await?;
    ensure!(cluster.client(1)?.get("k", false, PATIENCE).await?.kvs.len() == 1);
    cluster.finish()
}

#[tokio::test]
async fn a_data_directory_in_use() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions { nodes: 1, ..three() }).await?;
    let pid = cluster.process(1)?.pid().context("it runs")?;
    // The same node once more, with nothing but other ports to listen on.
    let (client, peer) = (Port::reserve()?, Port::reserve()?);
    let mut args: Vec<&str> = cluster.process(1)?.args().iter().map(String::as_str).collect();
    let (own_client, own_peer) = (client.address(), peer.address());
    for (option, value) in [("--listen-client", &own_client), ("--listen-peer", &own_peer)] {
        let at = args.iter().position(|arg| *arg == option).context("an option is missing")?;
        args[at + 1] = value;
    }
    args.retain(|arg| *arg != "--exit-on-stdin-close");
    let output = run(Path::new(SERVER), &args, &[], "", PATIENCE).await?;
    let data = cluster.data(1)?.display().to_string();
    ensure_refused(&output, MISTAKE, &[&data, &format!("in use by process {pid}"), "stop it first"])?;
    // The first one did not notice.
    cluster.client(1)?.put("k", "v", PATIENCE).await?;
    cluster.finish()
}

/// Damage in the middle of what was acknowledged. A node that went on without it would break its word, so it does not start, whether it was killed before or
/// ended in good order.
#[tokio::test]
async fn a_log_with_a_flipped_bit() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { nodes: 1, ..three() }).await?;
    let mut damaged = 0;
    for n in 0..50 {
        cluster.client(1)?.put(&format!("key-{n}"), &format!("value-{n}-in-the-log"), PATIENCE).await?;
        if n == 25 {
            damaged = cluster.status(1).await?.applied;
        }
    }
    cluster.kill(1)?;
    damage_is_told(&mut cluster, damaged, false).await?;
    cluster.terminate(1).await?;
    damage_is_told(&mut cluster, damaged, true).await?;
    cluster.finish()
}

/// Damages this entry of a node that does not run, and starts it: it refuses, in words that say what is damaged. With the entry as it was, it has everything,
/// and runs.
async fn damage_is_told(cluster: &mut Cluster, entry: u64, closed: bool) -> Result<()> {
    let data = cluster.data(1)?.to_owned();
    let (file, offsets) = find_in_log(&data, b"value-25-in-the-log")?;
    flip(&file, &offsets)?;
    let before = contents(&data)?;
    let told = cluster.process(1)?.log().len();
    cluster.launch(1)?;
    let status = cluster.process_mut(1)?.wait(PATIENCE).await?;
    let log = cluster.process(1)?.log()[told..].to_owned();
    ensure!(status.code() == Some(FAILURE), "{status}:\n{log}");
    let words = log.lines().rfind(|line| line.starts_with("kv-example: ")).context("no last words")?;
    ensure!(words.contains(&format!("{}: corrupt", file.display())), "it does not name the file: {words}");
    ensure!(words.contains("replace this node"), "{words}");
    if three().is_over_redb() {
        // Where in its file something is only redb knows, which does not tell. After an orderly end its pages can be read all the same; after any other it
        // repairs first, and gives that up over a page that is damaged.
        let told = words.contains(&format!(": corrupt at entry {entry}: the checksum of the entry does not match"));
        ensure!(told || !closed, "it is entry {entry}: {words}");
    } else {
        // The record that holds the byte begins shortly before it.
        let named = number_after(words, ": corrupt at offset ").context("no offset")?;
        let [offset] = offsets[..] else { anyhow::bail!("the value is at {offsets:?}") };
        ensure!(named <= offset && offset - named < 4096, "it names offset {named}, and the damage is at {offset}");
    }
    ensure_untouched(&data, &before)?;

    flip(&file, &offsets)?;
    cluster.launch(1)?;
    cluster.leader().await?;
    let found = cluster.client(1)?.list("key-", false, PATIENCE).await?;
    ensure!(found.kvs.len() == 50, "only {} of 50 keys", found.kvs.len());
    Ok(())
}

fn number_after(text: &str, words: &str) -> Option<usize> {
    let (_, rest) = text.split_once(words)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The file of the log that holds these bytes, and where: a database has copies as well, in pages that are free again.
fn find_in_log(dir: &Path, bytes: &[u8]) -> Result<(PathBuf, Vec<usize>)> {
    let is_log = |path: &Path| path.extension().is_some_and(|found| found == "wal") || path.ends_with("log.redb");
    for (path, content) in contents(dir)?.into_iter().filter(|(path, _)| is_log(path)) {
        let places = content.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes);
        let places: Vec<_> = places.map(|(at, _)| at).collect();
        if !places.is_empty() {
            return Ok((path, places));
        }
    }
    anyhow::bail!("no file of the log in {} holds the value", dir.display())
}

/// Flips a bit in each of these bytes.
fn flip(file: &Path, offsets: &[usize]) -> Result<()> {
    let mut content = std::fs::read(file)?;
    for offset in offsets {
        content[*offset] ^= 1;
    }
    Ok(std::fs::write(file, content)?)
}

/// A server that waits for the others is no mistake: it neither ends nor pretends.
#[tokio::test]
async fn a_node_alone_of_three_waits_and_says_so() -> Result<()> {
    let mut cluster = Cluster::prepare(&three())?;
    cluster.launch(1)?;
    cluster.process(1)?.wait_for_log("serving clients on", PATIENCE).await?;
    let put = cluster.client(1)?.put("k", "v", Duration::from_secs(8)).await;
    ensure!(put.as_ref().is_err_and(|failure| failure.certain), "{put:?}");
    ensure!(cluster.status(1).await?.role != "leader");
    cluster.launch(2)?;
    cluster.launch(3)?;
    cluster.leader().await?;
    cluster.client(1)?.put("k", "v", PATIENCE).await?;
    cluster.finish()
}
