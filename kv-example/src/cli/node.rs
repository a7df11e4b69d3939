//! `node`: what is asked of one node.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::certificates::Certificates;
use super::{Failure, Who, output, parse_seconds, status};
use crate::client::{Client, ClientOptions};
use crate::config::HostPort;

#[derive(Subcommand, Debug)]
pub(super) enum Node {
    /// Have a node write an image of its contents now, and cut its log
    Snapshot(Snapshot),
    /// Change how much a node is wanted as the leader, until it is started again
    Prefer(Prefer),
}

/// The node, and how to talk to it.
#[derive(Args, Debug)]
struct One {
    /// Where the node serves clients
    #[arg(value_name = "HOST:PORT")]
    node: HostPort,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    certificates: Certificates,
}

impl One {
    fn client(&self, timeout: Duration) -> Result<Client, Failure> {
        let (tls, credentials) = (self.certificates.tls()?, self.who.credentials()?);
        let options = ClientOptions { timeout, tls, credentials, ..ClientOptions::default() };
        Client::new(&[self.node.to_string()], options).map_err(Failure::usage)
    }
}

#[derive(Args, Debug)]
#[command(after_help = "\
Nodes write images by themselves (--snapshot-entries, --snapshot-bytes of `kv-example server`). This is for before a planned restart, which then has less to \
read, or a copy of the image elsewhere. Reads and writes go on meanwhile.")]
pub(super) struct Snapshot {
    #[command(flatten)]
    one: One,
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = parse_seconds)]
    timeout: Duration,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Of the voters that can, the one with the highest priority leads. A leader that may not lead any more hands over as soon as another voter can take over: before \
maintenance that makes its machine slow, for instance. After its next start a node is what its own --priority and --no-lead say.")]
pub(super) struct Prefer {
    #[command(flatten)]
    one: One,
    /// Its priority from now on
    #[arg(long, value_name = "NUMBER", required_unless_present = "lead")]
    priority: Option<u32>,
    /// Whether it may lead from now on
    #[arg(long, value_name = "true|false")]
    lead: Option<bool>,
    /// How long to try, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    timeout: Duration,
}

pub(super) async fn run(node: Node) -> Result<(), Failure> {
    match node {
        Node::Snapshot(args) => snapshot(args).await,
        Node::Prefer(args) => prefer(args).await,
    }
}

async fn snapshot(Snapshot { one, timeout }: Snapshot) -> Result<(), Failure> {
    let image = one.client(timeout)?.take_snapshot().await?;
    if one.json {
        let image = image.map(|image| json!({ "index": image.index, "term": image.term, "bytes": image.bytes }));
        return output::print_json(&json!({ "image": image }));
    }
    output::print(match image {
        Some(image) => format!(
            "{}: its newest image reflects everything up to entry {} and has {}",
            one.node,
            image.index,
            status::size(image.bytes)
        ),
        None => format!("{}: nothing was applied yet, so there is nothing to write", one.node),
    })
}

async fn prefer(Prefer { one, priority, lead, timeout }: Prefer) -> Result<(), Failure> {
    let now = one.client(timeout)?.prefer(priority, lead).await?;
    if one.json {
        return output::print_json(&json!({ "priority": now.priority, "may_lead": now.may_lead }));
    }
    let leads = if now.may_lead { "may lead" } else { "does not lead" };
    output::print(format!("{}: it {leads}, at priority {}, until it is started again", one.node, now.priority))
}
