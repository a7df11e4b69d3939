//! `kv-example cluster`: a local cluster of separate processes, with their logs in one terminal.

mod node;
mod terminal;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use clap::{Args, Parser};
use raftkv::transport_kit::Tls;
use raftkv_storage_file::Identity;
use tokio::sync::mpsc;

use crate::cli::certs::Directory;
use crate::cli::{Failure, parse_seconds};
use crate::client::{Client, ClientOptions};
use crate::config::{ServerArgs, ServerConfig};
use crate::server::Patience;
use node::{Child, Event, NodeSpec};
use terminal::{Terminal, leader_line};

const HELP: &str = "\
Each node is a process of its own: `kill -9` one of them and see what happens. The nodes end with this command, however it ends.

Ports: node 1 serves clients on 2379 and members on 2380, node 2 on 22379 and 22380, node 3 on 32379 and 32380, and so \
on up to node 6. With --base-port P, node 1 has P and P+1, node 2 has P+2 and P+3, and so on.

The data stays when the cluster ends, and is used again when it starts. It remembers its members and their ports: to \
start with other ones, use another --data, or delete the directory.";

/// As many as there are names for, n1 to n9.
const MAX_NODES: u16 = 9;
/// How much longer than it gives itself a node may take to shut down before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// What is longer is for ever.
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often the nodes are asked who leads.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// Options of `kv-example cluster`.
#[derive(Args, Clone, Debug)]
#[command(after_help = HELP)]
pub(crate) struct ClusterArgs {
    /// How many nodes
    #[arg(long, value_name = "COUNT", default_value = "3", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_NODES)))]
    nodes: u16,
    /// Where the nodes keep their logs: one directory each, in this one
    #[arg(long, value_name = "DIR", default_value = "./kv-data")]
    data: PathBuf,
    /// Number the ports from here on, instead of the well-known ones
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65_500))]
    base_port: Option<u16>,
    /// Serve metrics (see `server --listen-metrics`): those of node 1 on this port, those of node 2 on the next, and so on
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    metrics_port: Option<u16>,
    /// Protect the cluster with certificates, in the directory `certs` of --data: they are made anew at each start, for a CA that stays
    #[arg(long)]
    tls: bool,
    /// Bring a node that died back
    #[arg(long)]
    restart: bool,
    /// With --restart: how long to leave it dead, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    restart_after: Duration,
    /// More options for every node, such as `-- --election-timeout-ms 1000 --log-level debug`
    #[arg(last = true, value_name = "SERVER OPTIONS")]
    server: Vec<String>,
}

/// Runs the cluster until Ctrl-C or SIGTERM.
pub(crate) fn run(args: &ClusterArgs) -> Result<ExitCode, Failure> {
    let certs = args.tls.then(|| Directory { path: args.data.join("certs") });
    let mut specs = NodeSpec::all(args.nodes, args.base_port, args.metrics_port, &args.data).map_err(Failure::usage)?;
    for spec in &mut specs {
        spec.tls = certs.as_ref().map(|certs| certs.node(spec.id));
    }
    check_ports(&specs)?;
    check_data(args, &specs)?;
    crate::config::prepare_data_dir(&args.data)?;
    if let Some(certs) = &certs {
        certs.for_this_machine(&specs.iter().map(|spec| spec.id).collect::<Vec<_>>())?;
    }
    let exe =
        std::env::current_exe().map_err(|e| Failure::runtime(format!("can't find this program's own file: {e}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (events, inbox) = mpsc::channel(1024);
        // Nodes whose options make no sense end at once.
        let config = specs.first().and_then(|spec| config_of(spec, &specs, &args.server));
        let end_limit = config.map_or(Duration::ZERO, |config| Patience::of(&config).longest()).min(A_YEAR) + GRACE;
        let supervisor = Supervisor {
            args,
            exe,
            certs,
            specs,
            end_limit,
            children: Vec::new(),
            events,
            terminal: Terminal::stdout(),
        };
        supervisor.run(inbox).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn check_ports(specs: &[NodeSpec]) -> Result<(), Failure> {
    let taken: Vec<_> = specs
        .iter()
        .flat_map(|spec| [&spec.client, &spec.peer].into_iter().chain(&spec.metrics))
        .filter_map(|address| TcpListener::bind(address).err().map(|e| format!("{address} ({e})")))
        .collect();
    if taken.is_empty() {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "these addresses are not free: {}; end what uses them (another cluster, or etcd?), or choose others with --base-port and \
         --metrics-port",
        taken.join(", ")
    )))
}

/// Refuses data of other members before anything is made: a node with data would refuse it, and one without would begin a cluster of its own.
fn check_data(args: &ClusterArgs, specs: &[NodeSpec]) -> Result<(), Failure> {
    // Where the nodes' options make no sense, the nodes say so.
    let Some(expected) = specs.first().and_then(|spec| config_of(spec, specs, &args.server)) else { return Ok(()) };
    let expected = expected.cluster_id();
    let found = (1..=MAX_NODES).filter_map(|id| {
        // A directory that can't be read is its node's to complain of.
        let identity = Identity::of(args.data.join(format!("n{id}"))).ok().flatten()?;
        Some((id, identity.cluster))
    });
    let (ours, others): (Vec<_>, Vec<_>) = found.partition(|(_, cluster)| *cluster == expected);
    if others.is_empty() {
        return Ok(());
    }
    let names = |nodes: &[(u16, _)]| nodes.iter().map(|(id, _)| format!("n{id}")).collect::<Vec<_>>().join(", ");
    let also = if ours.is_empty() { String::new() } else { format!(" (and {} of this one)", names(&ours)) };
    Err(Failure::usage(format!(
        "--data {}: there is the data of {} of another cluster{also}, one with other members or ports than --nodes {} makes. Start that one with the \
         --nodes and --base-port that it was made with, name another directory, or delete this one; nothing was changed",
        args.data.display(),
        names(&others),
        args.nodes
    )))
}

/// How a node is configured.
fn config_of(spec: &NodeSpec, specs: &[NodeSpec], more: &[String]) -> Option<ServerConfig> {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        server: ServerArgs,
    }
    let Line { server } = Line::try_parse_from(spec.command_line(specs, more)).ok()?;
    // The nodes don't get this process's settings either.
    ServerConfig::load(&server, &|_| None).ok()
}

struct Supervisor<'a> {
    args: &'a ClusterArgs,
    exe: PathBuf,
    certs: Option<Directory>,
    specs: Vec<NodeSpec>,
    /// How long the nodes may take to shut down before they are killed.
    end_limit: Duration,
    children: Vec<Option<Child>>,
    events: mpsc::Sender<Event>,
    terminal: Terminal,
}

/// Why the cluster ends.
enum End {
    /// The user said so.
    Asked,
    /// A node can't run as it is configured.
    Misconfigured(u64),
    /// A node that died can't be started again.
    NotStarted(Failure),
}

impl Supervisor<'_> {
    async fn run(mut self, mut inbox: mpsc::Receiver<Event>) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        self.introduce();
        for n in 0..self.specs.len() {
            let started = self.start(n);
            self.children.push(None);
            match started {
                Ok(child) => self.children[n] = Some(child),
                Err(failure) => {
                    self.stop(&mut signals, &mut inbox).await;
                    return Err(failure);
                }
            }
        }
        let tls = self.certs.as_ref().map(|certs| Tls::for_client(certs.client())).transpose();
        let tls = tls.map_err(|error| Failure::runtime(error.to_string()))?;
        let watch = tokio::spawn(watch_leader(self.endpoints(), tls, self.events.clone()));
        let end = loop {
            tokio::select! {
                biased;
                () = signals.next() => break End::Asked,
                event = inbox.recv() => match event {
                    Some(event) => if let Some(end) = self.handle(event) { break end },
                    None => break End::Asked,
                },
            }
        };
        watch.abort();
        self.stop(&mut signals, &mut inbox).await;
        match end {
            End::Asked => Ok(()),
            End::Misconfigured(id) => Err(Failure::usage(format!("n{id} can't run; its last lines above say why"))),
            End::NotStarted(failure) => Err(failure),
        }
    }

    fn endpoints(&self) -> Vec<String> {
        self.specs.iter().map(|spec| spec.client.clone()).collect()
    }

    fn introduce(&mut self) {
        let count = self.specs.len();
        let nodes = if count == 1 { "1 node".into() } else { format!("{count} nodes") };
        self.terminal.say(&format!("A cluster of {nodes}; data in {}, kept when it ends.", self.args.data.display()));
        for spec in &self.specs {
            let metrics = spec.metrics.as_ref().map(|address| format!("   metrics http://{address}/metrics"));
            let metrics = metrics.unwrap_or_default();
            self.terminal.say(&format!("  n{}  clients {}   members {}{metrics}", spec.id, spec.client, spec.peer));
        }
        let program = terminal::shell_line([shown_program(&self.exe)]);
        let endpoints = self.endpoints().join(",");
        // The default endpoints of the client commands are those of a cluster of three on the well-known ports.
        let option = if endpoints == crate::cli::DEFAULT_ENDPOINTS {
            String::new()
        } else {
            format!(" --endpoints {endpoints}")
        };
        self.terminal.say("Try, in another terminal:");
        let endpoints = match &self.certs {
            Some(certs) => {
                for (name, file) in [("CACERT", "ca.crt"), ("CERT", "client.crt"), ("KEY", "client.key")] {
                    let path = certs.path.join(file);
                    let path = std::path::absolute(&path).unwrap_or(path);
                    let path = terminal::shell_line([path.display().to_string()]);
                    self.terminal.say(&format!("  export RAFTKV_{name}={path} ETCDCTL_{name}={path}"));
                }
                self.endpoints().iter().map(|address| format!("https://{address}")).collect::<Vec<_>>().join(",")
            }
            None => endpoints,
        };
        self.terminal.say(&format!("  {program} put greeting hello{option}"));
        self.terminal.say(&format!("  {program} status{option}"));
        self.terminal.say(&format!("  etcdctl --endpoints {endpoints} get greeting"));
        self.terminal.say("Ctrl-C ends the cluster.");
    }

    fn start(&self, n: usize) -> Result<Child, Failure> {
        let spec = &self.specs[n];
        Child::start(&self.exe, spec, &self.specs, &self.args.server, self.events.clone())
            .map_err(|e| Failure::runtime(format!("can't start n{}: {e}", spec.id)))
    }

    fn handle(&mut self, event: Event) -> Option<End> {
        match event {
            Event::Line { node, text } => self.terminal.line(node, &text),
            Event::Leader { node, term } => {
                let pid = self.position(node).and_then(|n| self.children[n].as_ref()).and_then(Child::pid);
                self.terminal.say(&leader_line(node, term, pid));
            }
            Event::NoLeader => self.terminal.say("no node leads"),
            Event::Exited { node, status } => return self.exited(node, status),
            Event::Restart { node } => {
                if let Some(n) = self.position(node).filter(|n| self.children[*n].is_none()) {
                    self.terminal.say(&format!("starting n{node} again"));
                    match self.start(n) {
                        Ok(child) => self.children[n] = Some(child),
                        Err(failure) => {
                            self.terminal.say(&format!("{}; the other nodes end too", failure.message()));
                            return Some(End::NotStarted(failure));
                        }
                    }
                }
            }
        }
        None
    }

    fn position(&self, node: u64) -> Option<usize> {
        self.specs.iter().position(|spec| spec.id == node)
    }

    fn exited(&mut self, node: u64, status: ExitStatus) -> Option<End> {
        let n = self.position(node)?;
        self.children[n] = None;
        self.terminal.say(&format!("n{node} died: {}", described(status)));
        if status.code() == Some(2) {
            return Some(End::Misconfigured(node));
        }
        if self.args.restart {
            let (events, pause) = (self.events.clone(), self.args.restart_after);
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                // The receiver is gone when the cluster ends.
                let _ = events.send(Event::Restart { node }).await;
            });
        } else {
            let line = self.specs[n].command_line(&self.specs, &self.args.server);
            let line = terminal::shell_line(std::iter::once(shown_program(&self.exe)).chain(line));
            self.terminal.say(&format!("to bring it back, in another terminal: {line}"));
        }
        None
    }

    /// Ends all nodes: politely, then not. A second signal has them not wait for requests in progress, as it has a node by itself.
    async fn stop(&mut self, signals: &mut Signals, inbox: &mut mpsc::Receiver<Event>) {
        for child in self.children.iter().flatten() {
            child.terminate();
        }
        let deadline = tokio::time::Instant::now() + self.end_limit;
        while self.children.iter().any(Option::is_some) {
            let event = tokio::select! {
                biased;
                () = signals.next() => {
                    self.children.iter().flatten().for_each(Child::terminate);
                    continue;
                }
                event = tokio::time::timeout_at(deadline, inbox.recv()) => event,
            };
            match event {
                Ok(Some(Event::Line { node, text })) => self.terminal.line(node, &text),
                Ok(Some(Event::Exited { node, status })) => {
                    if let Some(n) = self.position(node) {
                        self.children[n] = None;
                    }
                    if !status.success() {
                        self.terminal.say(&format!("n{node} ended: {}", described(status)));
                    }
                }
                Ok(Some(Event::Leader { .. } | Event::NoLeader | Event::Restart { .. })) => {}
                Ok(None) | Err(_) => {
                    for (spec, child) in self.specs.iter().zip(&self.children) {
                        if let Some(child) = child {
                            self.terminal.say(&format!("n{} did not end in time and is killed", spec.id));
                            child.kill();
                        }
                    }
                    break;
                }
            }
        }
        self.terminal.say("the cluster has ended");
    }
}

struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Tells of every change of leader, as long as somebody listens.
async fn watch_leader(endpoints: Vec<String>, tls: Option<Tls>, events: mpsc::Sender<Event>) {
    let timeout = Duration::from_secs(1);
    let options = ClientOptions { timeout, connect_timeout: timeout, tls, ..ClientOptions::default() };
    let Ok(client) = Client::new(&endpoints, options) else { return };
    let mut known: Option<(u64, u64)> = None;
    let mut rounds_without = 0;
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        let answers = client.status().await;
        let nodes = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
        let leader = nodes.filter(|node| node.role == "leader").map(|node| (node.term, node.id)).max();
        rounds_without = if leader.is_some() { 0 } else { rounds_without + 1 };
        let event = match leader {
            Some((term, node)) if known.is_none_or(|(latest, _)| (term, node) > (latest, 0)) && known != leader => {
                known = leader;
                Event::Leader { node, term }
            }
            // An election is short; only what lasts is worth a line.
            None if rounds_without == 10 && known.is_some() => {
                known = None;
                Event::NoLeader
            }
            Some(_) | None => continue,
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

fn described(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => "it was asked to shut down".into(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) => "killed (signal 9, SIGKILL)".into(),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The program as the user can type it here.
fn shown_program(exe: &Path) -> String {
    let here = std::env::current_dir().ok();
    match here.as_deref().and_then(|here| exe.strip_prefix(here).ok()) {
        // A bare name would be looked for in PATH.
        Some(name) if name.components().count() == 1 => format!("./{}", name.display()),
        Some(relative) => relative.display().to_string(),
        None => exe.display().to_string(),
    }
}
