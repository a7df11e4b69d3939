//! The command line: what can be said, and who does it.

pub(crate) mod certificates;
pub(crate) mod certs;
mod failure;
mod kv;
mod log;
mod member;
mod node;
pub(crate) mod output;
mod recover;
mod status;
mod text;
mod txn;
mod txn_syntax;
mod users;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use raftkv_storage_file::{OsVfs, Vfs};

use crate::client::{Client, ClientError, ClientOptions, Credentials};
use crate::config::{Secret, ServerArgs, ServerConfig};

use certificates::Certificates;
pub(crate) use failure::Failure;

const AFTER_HELP: &str = "\
Try it:
  kv-example cluster                      three nodes on this machine; Ctrl-C ends them
  kv-example put greeting hello           and in another terminal, talk to them
  kv-example get greeting
  kv-example status
  etcdctl --endpoints 127.0.0.1:2379 get greeting     (any etcd v3 client works)

Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 a write whose outcome is unknown.";

/// A replicated key-value store that speaks the etcd v3 API: server, local cluster, client, load generator.
#[derive(Parser, Debug)]
#[command(name = "kv-example", version, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run one node of a cluster
    Server(Box<ServerArgs>),
    /// Run a local cluster as separate processes on 127.0.0.1, until Ctrl-C
    Cluster(crate::cluster::ClusterArgs),
    /// Write a key
    Put(kv::Put),
    /// Read a key
    Get(kv::Get),
    /// Delete a key, or all keys of a prefix or a range
    Del(kv::Del),
    /// List keys, all of them or those of a prefix or a range
    Range(kv::Range),
    /// Compare and then write or read, in one atomic step
    Txn(txn::Txn),
    /// Forget revisions older than this one
    Compact(kv::Compact),
    /// Show every node: role, leader, term, log, and how far its peers are
    Status(status::Status),
    /// Show the members of the cluster, or change them
    #[command(subcommand)]
    Member(member::Member),
    /// Ask something of one node: an image, or to lead or not
    #[command(subcommand)]
    Node(node::Node),
    /// Let only users do anything, or everybody everything
    #[command(subcommand)]
    Auth(users::Auth),
    /// Show users, or change them
    #[command(subcommand)]
    User(users::User),
    /// Show roles and what they permit, or change them
    #[command(subcommand)]
    Role(users::Role),
    /// Show the members of the cluster, as etcd's clients see them
    MemberList(status::MemberList),
    /// Make a survivor the only member when a majority is lost for good; offline
    Recover(recover::Recover),
    /// Measure throughput and latency, of this or of any other etcd v3 server
    Bench(crate::bench::BenchArgs),
    /// Make a CA and certificates, for development and small clusters
    Certs(certs::Certs),
    /// Look at a node's files
    #[command(subcommand)]
    Log(log::Log),
}

/// Where the cluster is, and how to talk to it: options that all client commands share.
#[derive(Args, Clone, Debug)]
pub(crate) struct Connection {
    /// Nodes to talk to, in this order; the next is tried when one can't answer
    #[arg(
        long,
        value_name = "HOST:PORT,…",
        env = "RAFTKV_ENDPOINTS",
        hide_env_values = true,
        value_delimiter = ',',
        default_value = DEFAULT_ENDPOINTS
    )]
    pub(crate) endpoints: Vec<String>,

    /// How long to try, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    pub(crate) timeout: Duration,

    /// Print JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) who: Who,

    #[command(flatten)]
    pub(crate) certificates: Certificates,
}

/// Who runs a command, where authentication is enabled.
#[derive(Args, Clone, Debug)]
pub(crate) struct Who {
    /// Who you are, where authentication is enabled; with a password after a colon, which can be seen in the list of processes: better set
    /// the environment variables RAFTKV_USER and RAFTKV_PASSWORD
    #[arg(id = "as_user", long = "user", value_name = "NAME[:PASSWORD]", env = "RAFTKV_USER", hide_env = true)]
    user: Option<Secret>,

    /// Your password; then --user is the name alone
    #[arg(id = "as_password", long = "password", value_name = "PASSWORD", env = "RAFTKV_PASSWORD", hide_env = true)]
    password: Option<Secret>,
}

impl Who {
    /// The name and the password, if there are any.
    pub(crate) fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        match (&self.user, &self.password) {
            (None, None) => Ok(None),
            (Some(Secret(name)), Some(Secret(password))) if !name.is_empty() => {
                Ok(Some(Credentials { name: name.clone(), password: password.clone() }))
            }
            (Some(Secret(both)), None) => both.parse().map(Some).map_err(|_| {
                Failure::usage(
                    "--user: there is no password: say --user NAME:PASSWORD, or --password, or set RAFTKV_PASSWORD",
                )
            }),
            (Some(_) | None, Some(_)) => Err(Failure::usage("--password: whose? Say --user NAME, or set RAFTKV_USER")),
        }
    }
}

/// Those of `kv-example cluster`.
pub(crate) const DEFAULT_ENDPOINTS: &str = "127.0.0.1:2379,127.0.0.1:22379,127.0.0.1:32379";

impl Connection {
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let (tls, credentials) = (self.certificates.tls()?, self.who.credentials()?);
        let options = ClientOptions { timeout: self.timeout, tls, credentials, ..ClientOptions::default() };
        Client::new(&self.endpoints, options).map_err(|e| Failure::usage(format!("--endpoints: {e}")))
    }
}

impl Connection {
    /// Makes one write, in a session that ends with it.
    pub(crate) async fn write<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> Result<T, ClientError>,
    ) -> Result<T, Failure> {
        let client = self.client()?;
        let outcome = work(&client).await;
        client.close().await;
        Ok(outcome?)
    }
}

/// Reads a positive number of seconds, fractions allowed.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<f64>().ok().and_then(|n| Duration::try_from_secs_f64(n).ok()) {
        Some(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be a positive number of seconds, such as 5 or 0.5".into()),
    }
}

/// Runs the command line of this process, to its exit code.
#[must_use]
pub fn main() -> ExitCode {
    main_on(Arc::new(OsVfs))
}

/// The same, with a server whose log and images are on these files: for tests, whose disks fail.
#[must_use]
pub fn main_on(files: Arc<dyn Vfs>) -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command, files) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command, files: Arc<dyn Vfs>) -> Result<ExitCode, Failure> {
    match command {
        Command::Server(args) => serve(&args, files),
        Command::Cluster(args) => crate::cluster::run(&args),
        Command::Put(args) => block_on(kv::put(args)),
        Command::Get(args) => block_on(kv::get(args)),
        Command::Del(args) => block_on(kv::del(args)),
        Command::Range(args) => block_on(kv::range(args)),
        Command::Txn(args) => block_on(txn::run(args)),
        Command::Compact(args) => block_on(kv::compact(args)),
        Command::Status(args) => block_on(status::status(args)),
        Command::Member(args) => block_on(member::run(args)),
        Command::Node(args) => block_on(node::run(args)),
        Command::Auth(args) => block_on(users::auth(args)),
        Command::User(args) => block_on(users::user(args)),
        Command::Role(args) => block_on(users::role(args)),
        Command::Recover(args) => block_on(recover::run(args)),
        Command::MemberList(args) => block_on(status::member_list(args)),
        Command::Bench(args) => crate::bench::run(&args),
        Command::Certs(args) => certs::run(&args),
        Command::Log(args) => log::run(args),
    }
}

fn serve(args: &ServerArgs, files: Arc<dyn Vfs>) -> Result<ExitCode, Failure> {
    let config = ServerConfig::load(args, &|name| std::env::var(name).ok())?;
    crate::telemetry::start(config.log_level.as_deref()).map_err(Failure::usage)?;
    crate::server::run(config, files)
}

fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a text in each of the ways in which `txn` reads one, for fuzzing.
#[cfg(feature = "testing")]
pub(crate) fn parse_txn(text: &str) {
    let _ = (txn_syntax::script(text), txn_syntax::comparison(text), txn_syntax::operation(text));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn no_two_options_of_a_command_are_in_each_others_way() {
        super::Cli::command().debug_assert();
    }
}
