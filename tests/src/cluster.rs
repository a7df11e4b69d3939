//! A cluster of server processes on 127.0.0.1.

mod checks;
mod options;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use kv_example::api::node::NodeStatusResponse;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::client::Endpoint;
use crate::load::{Load, LoadOptions};
use crate::network::Network;
use crate::ports::Port;
use crate::process::{Process, notice, tail};

pub use options::{ClusterOptions, stack};

const STATUS_LIMIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);
/// How much of a node's log is shown when a test fails.
const SHOWN_LINES: usize = 150;
/// How long things take that must happen, on a machine with much else to do.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its id.
    pub id: u64,
    /// Its term.
    pub term: u64,
}

/// A running cluster. When it goes away without [`finish`](Self::finish), the test has failed, and the nodes' logs are shown.
#[derive(Debug)]
pub struct Cluster {
    nodes: BTreeMap<u64, Node>,
    network: Option<Network>,
    dir: Option<TempDir>,
    finished: bool,
}

#[derive(Debug)]
struct Node {
    process: Process,
    data: PathBuf,
    endpoint: Endpoint,
    client: Port,
    peer: Port,
    outside: Option<Port>,
}

impl Node {
    fn announced(&self) -> &Port {
        self.outside.as_ref().unwrap_or(&self.peer)
    }
}

impl Cluster {
    /// Starts the nodes, and waits until one leads.
    ///
    /// # Errors
    /// A node can't start, or none leads in time.
    pub async fn start(options: ClusterOptions) -> Result<Self> {
        let mut cluster = Self::prepare(&options)?;
        cluster.launch_all().await?;
        Ok(cluster)
    }

    /// Starts all nodes, and waits until one leads.
    ///
    /// # Errors
    /// A node can't start, or none leads in time.
    pub async fn launch_all(&mut self) -> Result<Leader> {
        for id in self.ids() {
            self.launch(id)?;
        }
        self.leader().await
    }

    /// Makes everything ready, and starts no node.
    ///
    /// # Errors
    /// There are no ports, or no directory.
    pub fn prepare(options: &ClusterOptions) -> Result<Self> {
        let dir = match &options.dir {
            Some(dir) => {
                std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
                TempDir::with_prefix_in("raftkv-test-", dir)?
            }
            None => TempDir::with_prefix("raftkv-test-")?,
        };
        let mut nodes = BTreeMap::new();
        for id in 1..=options.nodes {
            let client = Port::reserve()?;
            let node = Node {
                process: Process::new(
                    &format!("n{id}"),
                    &options.program,
                    Vec::new(),
                    dir.path().join(format!("n{id}.log")),
                ),
                data: options.data.get(&id).cloned().unwrap_or_else(|| dir.path().join(format!("n{id}"))),
                endpoint: Endpoint::new(&client.address())?,
                client,
                peer: Port::reserve()?,
                outside: options.network.then(Port::reserve).transpose()?,
            };
            nodes.insert(id, node);
        }
        let peers: Vec<_> = nodes.iter().map(|(id, node)| format!("{id}={}", node.announced().address())).collect();
        for (id, node) in &mut nodes {
            let mut args: Vec<String> = ["server", "--id", &id.to_string(), "--data", &node.data.display().to_string()]
                .map(str::to_owned)
                .into();
            args.extend(["--peers".into(), peers.join(",")]);
            args.extend(["--listen-client".into(), node.client.address()]);
            args.extend(["--listen-peer".into(), node.peer.address()]);
            args.push("--exit-on-stdin-close".into());
            args.extend_from_slice(&options.args);
            node.process.set_args(args);
        }
        let network = if options.network {
            let ends = nodes.iter().filter_map(|(id, node)| Some((*id, node.outside.as_ref()?, &node.peer)));
            Some(Network::new(ends)?)
        } else {
            None
        };
        Ok(Self { nodes, network, dir: Some(dir), finished: false })
    }

    /// All ids.
    #[must_use]
    pub fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// All ids but one.
    #[must_use]
    pub fn others(&self, id: u64) -> Vec<u64> {
        self.nodes.keys().copied().filter(|other| *other != id).collect()
    }

    /// Where the nodes serve clients.
    #[must_use]
    pub fn servers(&self) -> Vec<String> {
        self.nodes.values().map(|node| node.client.address()).collect()
    }

    /// Where these nodes serve clients.
    #[must_use]
    pub fn servers_of(&self, ids: &[u64]) -> Vec<String> {
        ids.iter().filter_map(|id| self.nodes.get(id)).map(|node| node.client.address()).collect()
    }

    /// The directory of everything.
    ///
    /// # Errors
    /// Never, before the cluster ends.
    pub fn dir(&self) -> Result<&Path> {
        self.dir.as_ref().map(TempDir::path).context("the cluster has ended")
    }

    /// The network between the nodes.
    ///
    /// # Errors
    /// The cluster was started without one.
    pub fn network(&self) -> Result<&Network> {
        self.network.as_ref().context("the cluster was started without a network")
    }

    /// A client of one node.
    ///
    /// # Errors
    /// There is no such node.
    pub fn client(&self, id: u64) -> Result<&Endpoint> {
        Ok(&self.node(id)?.endpoint)
    }

    /// A node's data directory.
    ///
    /// # Errors
    /// There is no such node.
    pub fn data(&self, id: u64) -> Result<&Path> {
        Ok(&self.node(id)?.data)
    }

    /// A node's process.
    ///
    /// # Errors
    /// There is no such node.
    pub fn process(&self, id: u64) -> Result<&Process> {
        Ok(&self.node(id)?.process)
    }

    /// A node's process, to be ended or changed.
    ///
    /// # Errors
    /// There is no such node.
    pub fn process_mut(&mut self, id: u64) -> Result<&mut Process> {
        Ok(&mut self.nodes.get_mut(&id).ok_or_else(|| anyhow!("there is no node {id}"))?.process)
    }

    fn node(&self, id: u64) -> Result<&Node> {
        self.nodes.get(&id).ok_or_else(|| anyhow!("there is no node {id}"))
    }

    /// Starts a node that does not run.
    ///
    /// # Errors
    /// It runs, or can't be started.
    pub fn launch(&mut self, id: u64) -> Result<()> {
        let process = self.process_mut(id)?;
        process.start()?;
        let pid = process.pid();
        if let (Some(network), Some(pid)) = (&self.network, pid) {
            network.introduce(id, pid);
        }
        Ok(())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self, id: u64) -> Result<()> {
        self.process_mut(id)?.kill()
    }

    /// Stops a node's process in its tracks.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self, id: u64) -> Result<()> {
        self.process(id)?.signal(Signal::STOP)
    }

    /// Lets a paused process go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self, id: u64) -> Result<()> {
        self.process(id)?.signal(Signal::CONT)
    }

    /// Asks a node to shut down, and checks that it ends with exit code 0.
    ///
    /// # Errors
    /// It does not end in time, or not well.
    pub async fn terminate(&mut self, id: u64) -> Result<()> {
        let process = self.process_mut(id)?;
        process.signal(Signal::TERM)?;
        let status = process.wait(PATIENCE).await?;
        if !status.success() {
            bail!("n{id} ended with {status} after SIGTERM");
        }
        Ok(())
    }

    /// What a node says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn status(&self, id: u64) -> Result<NodeStatusResponse> {
        let status = self.client(id)?.status(STATUS_LIMIT).await;
        status.with_context(|| format!("n{id} does not tell its status"))
    }

    /// Waits until a majority of all nodes agrees on who leads, and the leader itself does.
    ///
    /// # Errors
    /// It does not, in time.
    pub async fn leader(&self) -> Result<Leader> {
        self.leader_among(&self.ids()).await
    }

    /// Like [`leader`](Self::leader), asking these nodes alone.
    ///
    /// # Errors
    /// They don't agree, in time.
    pub async fn leader_among(&self, ids: &[u64]) -> Result<Leader> {
        let majority = self.nodes.len() / 2 + 1;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let views = self.views(ids).await;
            let leads = |view: &&NodeStatusResponse| view.role == "leader";
            if let Some(leader) = views.iter().filter(leads).max_by_key(|view| view.term) {
                let agree = views.iter().filter(|view| view.leader == leader.id && view.term == leader.term).count();
                if agree >= majority {
                    return Ok(Leader { id: leader.id, term: leader.term });
                }
            }
            if Instant::now() > deadline {
                let views: Vec<_> = views.iter().map(brief).collect();
                bail!("no leader that a majority knows within {PATIENCE:?}; seen last: {}", views.join("; "));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Who says that it leads, in the latest term, if anybody does.
    pub async fn leader_now(&self) -> Option<u64> {
        let views = self.views(&self.ids()).await;
        views.iter().filter(|view| view.role == "leader").max_by_key(|view| view.term).map(|view| view.id)
    }

    async fn views(&self, ids: &[u64]) -> Vec<NodeStatusResponse> {
        let mut asked = tokio::task::JoinSet::new();
        for node in ids.iter().filter_map(|id| self.nodes.get(id)) {
            let endpoint = node.endpoint.clone();
            asked.spawn(async move { endpoint.status(STATUS_LIMIT).await });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }

    /// Waits until a node has applied as much as any other had applied when this was called.
    ///
    /// # Errors
    /// It has not, in time.
    pub async fn caught_up(&self, id: u64) -> Result<()> {
        let goal = self.views(&self.others(id)).await.iter().map(|view| view.applied).max().unwrap_or(0);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(id).await;
            if status.as_ref().is_ok_and(|status| status.applied >= goal) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("n{id} has not caught up to {goal} within {PATIENCE:?}: {:?}", status.as_ref().map(brief));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until all nodes follow one leader, and have applied the whole of its log. Nobody may write meanwhile.
    ///
    /// # Errors
    /// They have not, in time.
    pub async fn converged(&self) -> Result<Leader> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let views = self.views(&self.ids()).await;
            if let Some(leader) = views.iter().find(|view| view.role == "leader") {
                let same = |view: &&NodeStatusResponse| {
                    view.term == leader.term && view.leader == leader.id && view.applied == leader.log_last
                };
                if views.iter().filter(same).count() == self.nodes.len() {
                    return Ok(Leader { id: leader.id, term: leader.term });
                }
            }
            if Instant::now() > deadline {
                let views: Vec<_> = views.iter().map(brief).collect();
                bail!("the nodes did not converge within {PATIENCE:?}; seen last: {}", views.join("; "));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Starts clients at all nodes.
    ///
    /// # Errors
    /// Never, as the addresses are valid.
    pub fn load(&self, options: LoadOptions) -> Result<Load> {
        Load::start(&self.servers(), options)
    }

    /// The nodes whose processes have ended by themselves since they were started, and how.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn ended(&mut self) -> Result<Vec<(u64, std::process::ExitStatus)>> {
        let mut ended = Vec::new();
        for (id, node) in &mut self.nodes {
            ended.extend(node.process.ended()?.map(|status| (*id, status)));
        }
        Ok(ended)
    }

    /// Ends a test that failed: kills all nodes, keeps the data and the logs, copies of data elsewhere included, and says where.
    ///
    /// # Errors
    /// Something can't be copied.
    pub fn keep(mut self) -> Result<PathBuf> {
        self.finished = true;
        let dir = self.dir.take().context("the cluster has ended")?.keep();
        for (id, node) in &mut self.nodes {
            if node.process.is_started() {
                // It may have ended by itself at this very moment.
                let _ = node.process.kill();
            }
            if !node.data.starts_with(&dir) && node.data.exists() {
                copy_all(&node.data, &dir.join(format!("n{id}")))
                    .with_context(|| format!("can't copy {}", node.data.display()))?;
            }
        }
        Ok(dir)
    }

    /// Ends a test that went well: no node may have panicked. All that still run are ended.
    ///
    /// # Errors
    /// A node panicked.
    pub fn finish(mut self) -> Result<()> {
        self.ensure_no_panic()?;
        self.finished = true;
        Ok(())
    }

    /// Fails if a node has panicked in any of its runs.
    ///
    /// # Errors
    /// It has.
    pub fn ensure_no_panic(&self) -> Result<()> {
        for (id, node) in &self.nodes {
            if node.process.log().contains("panicked at") {
                bail!("n{id} panicked");
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut report = String::from("\n=== the test did not finish; what the nodes printed:\n");
        for (id, node) in &self.nodes {
            report.push_str(&format!("=== n{id}\n{}", tail(&node.process.log(), SHOWN_LINES)));
        }
        if let Some(dir) = self.dir.take_if(|_| std::env::var_os("RAFTKV_TEST_KEEP").is_some()) {
            report.push_str(&format!("=== kept: {}\n", dir.keep().display()));
        }
        notice(&report);
    }
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

fn brief(view: &NodeStatusResponse) -> String {
    format!(
        "n{} {} leader={} term={} log={}..{} stored={} commit={} applied={}",
        view.id,
        view.role,
        view.leader,
        view.term,
        view.log_first,
        view.log_last,
        view.stored,
        view.commit,
        view.applied
    )
}

fn first_few(faults: &[String]) -> String {
    faults.iter().take(5).cloned().collect::<Vec<_>>().join("\n  ")
}
