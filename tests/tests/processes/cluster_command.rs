//! `kv-example cluster`: what a stranger runs first.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use raftkv_tests::client::Endpoint;
use raftkv_tests::process::{Process, exclusive, notice, tail};
use raftkv_tests::{PATIENCE, Port, stack};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use crate::SERVER;

/// Ports in a row, as `--base-port` wants them.
fn row(count: u16) -> Result<u16> {
    for _ in 0..100 {
        let first = Port::reserve()?.number();
        // Nothing holds them from here on, so this is only almost certain; the command says if one is taken.
        if (first..first + count).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return Ok(first);
        }
    }
    anyhow::bail!("no {count} free ports in a row")
}

/// The number after these words, in the last line that has them.
fn number_after(text: &str, words: &str) -> Option<u32> {
    let (_, rest) = text.rsplit_once(words)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn pid(number: u32) -> Result<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw).context("no process id")
}

/// The processes that a process has started, where the system tells.
fn children(parent: u32) -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        // `pid (name) state parent …`, and the name may hold anything.
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let parent_of = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parent_of == Some(parent)
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_cluster_survives_its_leader_and_leaves_no_orphans() -> Result<()> {
    let _alone = exclusive().await?;
    let dir = TempDir::with_prefix("raftkv-test-")?;
    let base = row(6)?;
    let data = dir.path().join("data").display().to_string();
    let args = ["cluster", "--data", &data, "--base-port", &base.to_string(), "--"].map(str::to_owned);
    let args = args.into_iter().chain(stack()).collect();
    let mut command = Process::new("cluster", Path::new(SERVER), args, dir.path().join("log"));
    command.start()?;
    let outcome = live(&mut command, base).await;
    if outcome.is_err() {
        notice(&tail(&command.log(), 100));
    }
    outcome
}

async fn live(command: &mut Process, base: u16) -> Result<()> {
    let endpoints: Vec<_> = (0..3).map(|n| format!("127.0.0.1:{}", base + 2 * n)).collect();
    for words in ["etcdctl --endpoints", "put greeting hello", "Ctrl-C ends the cluster", "leads term"] {
        command.wait_for_log(words, PATIENCE).await?;
    }
    let nodes = children(command.pid().context("it runs")?);
    let supported = Path::new("/proc/self/stat").exists();
    ensure!(nodes.len() == 3 || !supported, "3 nodes are processes of their own: {nodes:?}");

    put_somewhere(&endpoints, "before").await?;
    let leader = number_after(&command.log(), "kill -9 ").context("it does not tell the leader's process")?;
    ensure!(nodes.contains(&leader) || !supported, "{leader} is none of {nodes:?}");
    kill_process(pid(leader)?, Signal::KILL)?;
    let killed = Instant::now();
    put_somewhere(&endpoints, "after").await?;
    notice(&format!("cluster: {:.0?} from kill -9 of the leader to the next acknowledged write", killed.elapsed()));
    for words in ["died: killed (signal 9, SIGKILL)", "to bring it back"] {
        command.wait_for_log(words, PATIENCE).await?;
    }

    command.signal(Signal::INT)?;
    let status = command.wait(PATIENCE).await?;
    ensure!(status.success(), "it ended with {status}");
    ensure!(command.log().contains("the cluster has ended"), "it does not say that it has ended");
    for node in nodes {
        ensure!(test_kill_process(pid(node)?).is_err(), "process {node} is left behind");
    }
    Ok(())
}

/// Writes at whichever endpoint takes it.
async fn put_somewhere(endpoints: &[String], value: &str) -> Result<()> {
    let clients = endpoints.iter().map(|address| Endpoint::new(address)).collect::<Result<Vec<_>>>()?;
    let deadline = Instant::now() + PATIENCE;
    for client in clients.iter().cycle() {
        match client.put("greeting", value, Duration::from_secs(2)).await {
            Ok(_) => return Ok(()),
            Err(failure) => ensure!(Instant::now() < deadline, "no node took the write; the last one: {failure}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
