//! Three servers of etcd on 127.0.0.1, to measure beside ours.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kv_example::api::etcdserverpb::StatusResponse;
use tempfile::TempDir;

use crate::client::Endpoint;
use crate::load::{Load, LoadOptions};
use crate::process::Process;
use crate::{PATIENCE, Port};

const STATUS_LIMIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);
const NODES: u64 = 3;

/// A running cluster of etcd, with its default settings; it ends, and its data goes, with this value.
#[derive(Debug)]
pub struct Etcd {
    nodes: Vec<Node>,
    _dir: TempDir,
}

#[derive(Debug)]
struct Node {
    process: Process,
    endpoint: Endpoint,
    client: Port,
    _peer: Port,
}

impl Etcd {
    /// Starts the servers, each of them this program, and waits until one leads.
    ///
    /// # Errors
    /// They can't be started, or none leads in time.
    pub async fn start(program: &Path) -> Result<Self> {
        let dir = TempDir::with_prefix("raftkv-etcd-")?;
        let ports = (0..NODES).map(|_| Ok((Port::reserve()?, Port::reserve()?))).collect::<Result<Vec<_>>>()?;
        let members: Vec<_> =
            ports.iter().enumerate().map(|(n, (_, peer))| format!("e{n}=http://{}", peer.address())).collect();
        let mut nodes = Vec::new();
        for (n, (client, peer)) in ports.into_iter().enumerate() {
            let name = format!("e{n}");
            let (clients, peers) = (format!("http://{}", client.address()), format!("http://{}", peer.address()));
            let data = dir.path().join(&name).display().to_string();
            let args = [
                ("--name", name.clone()),
                ("--data-dir", data),
                ("--listen-client-urls", clients.clone()),
                ("--advertise-client-urls", clients),
                ("--listen-peer-urls", peers.clone()),
                ("--initial-advertise-peer-urls", peers),
                ("--initial-cluster", members.join(",")),
                ("--initial-cluster-state", "new".into()),
            ];
            let args = args.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect();
            let log = dir.path().join(format!("{name}.log"));
            let mut process = Process::new(&name, program, args, log);
            process.start()?;
            nodes.push(Node { process, endpoint: Endpoint::new(&client.address())?, client, _peer: peer });
        }
        let cluster = Self { nodes, _dir: dir };
        cluster.leader().await?;
        Ok(cluster)
    }

    /// Who leads, by its place.
    ///
    /// # Errors
    /// Nobody does, in time.
    pub async fn leader(&self) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (n, node) in self.nodes.iter().enumerate() {
                let status = node.endpoint.etcd_status(STATUS_LIMIT).await;
                if status.is_ok_and(|status| member(&status) == Some(status.leader)) {
                    return Ok(n);
                }
            }
            if Instant::now() > deadline {
                let log = self.nodes.first().map(|node| node.process.log()).unwrap_or_default();
                bail!("none of etcd's servers leads within {PATIENCE:?}; the first one says:\n{log}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Puts load on all servers.
    ///
    /// # Errors
    /// See [`Load::start`].
    pub fn load(&self, options: LoadOptions) -> Result<Load> {
        Load::start(&self.nodes.iter().map(|node| node.client.address()).collect::<Vec<_>>(), options)
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// There is no such server, or it does not run.
    pub fn kill(&mut self, n: usize) -> Result<()> {
        self.node(n)?.process.kill()
    }

    /// Starts a server again, and waits until it has applied what the others had.
    ///
    /// # Errors
    /// It runs, or it does not catch up in time.
    pub async fn bring_back(&mut self, n: usize) -> Result<()> {
        let mut goal = 0;
        for (other, node) in self.nodes.iter().enumerate().filter(|(other, _)| *other != n) {
            let status = node.endpoint.etcd_status(STATUS_LIMIT).await;
            goal = goal.max(status.with_context(|| format!("e{other} does not tell its status"))?.raft_applied_index);
        }
        let node = self.node(n)?;
        node.process.start()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = node.endpoint.etcd_status(STATUS_LIMIT).await;
            if status.as_ref().is_ok_and(|status| status.raft_applied_index >= goal) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("e{n} has not caught up to {goal} within {PATIENCE:?}: {status:?}\n{}", node.process.log());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn node(&mut self, n: usize) -> Result<&mut Node> {
        self.nodes.get_mut(n).with_context(|| format!("there is no server {n} of etcd"))
    }
}

/// Whose status it is.
fn member(status: &StatusResponse) -> Option<u64> {
    status.header.as_ref().map(|header| header.member_id)
}
