//! One node of the local cluster: where it is, and its process.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use raftkv::transport_kit::tls::TlsFiles;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{ChildStdin, Command};
use tokio::sync::mpsc;

/// What happens in the cluster.
#[derive(Debug)]
pub(super) enum Event {
    /// A node logged a line.
    Line { node: u64, text: String },
    /// A node's process ended.
    Exited { node: u64, status: ExitStatus },
    /// It is time to start a node again.
    Restart { node: u64 },
    /// Another node leads, or the same one in another term.
    Leader { node: u64, term: u64 },
    /// Nobody has led for a while.
    NoLeader,
}

/// Where a node is.
#[derive(Clone, Debug)]
pub(super) struct NodeSpec {
    pub(super) id: u64,
    pub(super) client: String,
    pub(super) peer: String,
    /// Where it serves metrics, if it does.
    pub(super) metrics: Option<String>,
    /// Its certificates, if it has any.
    pub(super) tls: Option<TlsFiles>,
    data: PathBuf,
}

impl NodeSpec {
    /// All nodes of a cluster, on well-known ports or on consecutive ones.
    pub(super) fn all(
        nodes: u16,
        base_port: Option<u16>,
        metrics_port: Option<u16>,
        data: &Path,
    ) -> Result<Vec<Self>, String> {
        (1..=nodes)
            .map(|id| {
                let metrics = metrics_port.map(|port| port.checked_add(id - 1).ok_or(port)).transpose();
                let metrics = metrics.map_err(|port| {
                    format!("--metrics-port {port}: there is no port for node {id}; choose a lower one")
                })?;
                let port = match base_port {
                    Some(base) => base.checked_add(2 * (id - 1)),
                    // 2379, 22379, 32379, …
                    None if id == 1 => Some(2379),
                    None => id.checked_mul(10_000).and_then(|n| n.checked_add(2379)),
                };
                let Some(port) = port.filter(|port| *port < u16::MAX) else {
                    return Err(format!(
                        "--nodes {nodes}: there is no well-known port for node {id}; choose ports with --base-port"
                    ));
                };
                Ok(Self {
                    id: id.into(),
                    client: format!("127.0.0.1:{port}"),
                    peer: format!("127.0.0.1:{}", port + 1),
                    metrics: metrics.map(|port| format!("127.0.0.1:{port}")),
                    tls: None,
                    data: data.join(format!("n{id}")),
                })
            })
            .collect()
    }

    /// The arguments that start this node.
    pub(super) fn command_line(&self, all: &[Self], more: &[String]) -> Vec<String> {
        let list = |address: fn(&Self) -> &String| {
            all.iter().map(|spec| format!("{}={}", spec.id, address(spec))).collect::<Vec<_>>().join(",")
        };
        let mut line: Vec<String> = [
            "server",
            "--id",
            &self.id.to_string(),
            "--data",
            &self.data.display().to_string(),
            "--peers",
            &list(|spec| &spec.peer),
            "--listen-client",
            &self.client,
            "--advertise-clients",
            &list(|spec| &spec.client),
        ]
        .map(str::to_owned)
        .into();
        line.extend(self.metrics.iter().flat_map(|address| ["--listen-metrics".to_owned(), address.clone()]));
        if let Some(TlsFiles { own: Some(own), ca }) = &self.tls {
            for whose in ["peer", "client"] {
                let files = [("cert", &own.cert), ("key", &own.key), ("ca", ca)];
                line.extend(
                    files.iter().flat_map(|(what, path)| [format!("--{whose}-{what}"), path.display().to_string()]),
                );
            }
        }
        line.extend_from_slice(more);
        line
    }
}

/// A running node.
#[derive(Debug)]
pub(super) struct Child {
    pid: u32,
    /// The node shuts down when this end of its stdin closes: also when this process is killed.
    _watchdog: Option<ChildStdin>,
}

impl Child {
    pub(super) fn start(
        exe: &Path,
        spec: &NodeSpec,
        all: &[NodeSpec],
        more: &[String],
        events: mpsc::Sender<Event>,
    ) -> std::io::Result<Self> {
        let mut command = Command::new(exe);
        command.args(spec.command_line(all, more)).arg("--exit-on-stdin-close");
        // What is meant for a single server must not reach all of them.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RAFTKV_")) {
            command.env_remove(name);
        }
        // A group of its own, so that Ctrl-C reaches the cluster command alone, which then ends the nodes in order.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut process = command.spawn()?;
        let pid = process.id().ok_or_else(|| std::io::Error::other("it ended at once"))?;
        let watchdog = process.stdin.take();
        let lines = [
            process.stdout.take().map(|out| tokio::spawn(forward(out, spec.id, events.clone()))),
            process.stderr.take().map(|err| tokio::spawn(forward(err, spec.id, events.clone()))),
        ];
        let node = spec.id;
        tokio::spawn(async move {
            let status = process.wait().await;
            // Its last words come before the news of its death.
            for task in lines.into_iter().flatten() {
                let _ = task.await;
            }
            if let Ok(status) = status {
                let _ = events.send(Event::Exited { node, status }).await;
            }
        });
        Ok(Self { pid, _watchdog: watchdog })
    }

    pub(super) fn pid(&self) -> Option<u32> {
        Some(self.pid)
    }

    /// Asks it to shut down.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
        // A stopped process does not notice before it goes on.
        self.signal(Signal::CONT);
    }

    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // It may be gone already.
            let _ = kill_process(pid, signal);
        }
    }
}

async fn forward(output: impl AsyncRead + Unpin, node: u64, events: mpsc::Sender<Event>) {
    let mut lines = BufReader::new(output).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let text = String::from_utf8_lossy(&line).into_owned();
        if events.send(Event::Line { node, text }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_well_known_ports() {
        let specs = NodeSpec::all(3, None, None, Path::new("d")).unwrap();
        let clients: Vec<_> = specs.iter().map(|spec| &*spec.client).collect();
        assert_eq!(clients.join(","), crate::cli::DEFAULT_ENDPOINTS);
        assert!(
            specs[0].command_line(&specs, &[]).contains(&"1=127.0.0.1:2380,2=127.0.0.1:22380,3=127.0.0.1:32380".into())
        );
        assert!(NodeSpec::all(6, None, None, Path::new("d")).is_ok());
        assert!(NodeSpec::all(7, None, None, Path::new("d")).unwrap_err().contains("--base-port"));
    }

    #[test]
    fn consecutive_ports() {
        let specs = NodeSpec::all(9, Some(9000), None, Path::new("d")).unwrap();
        assert_eq!((&*specs[8].client, &*specs[8].peer), ("127.0.0.1:9016", "127.0.0.1:9017"));
        assert!(NodeSpec::all(9, Some(65_530), None, Path::new("d")).is_err());
        assert!(NodeSpec::all(9, Some(9000), Some(65_530), Path::new("d")).unwrap_err().contains("--metrics-port"));
    }

    #[test]
    fn a_command_line_names_everything() {
        let specs = NodeSpec::all(1, Some(9000), Some(9100), Path::new("d")).unwrap();
        let line = specs[0].command_line(&specs, &["--log-level".into(), "debug".into()]);
        assert_eq!(
            line.join(" "),
            "server --id 1 --data d/n1 --peers 1=127.0.0.1:9001 --listen-client 127.0.0.1:9000 \
             --advertise-clients 1=127.0.0.1:9000 --listen-metrics 127.0.0.1:9100 --log-level debug"
        );
    }
}
