//! `member`: who is in the cluster, and changes of that.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Connection, Failure, output};
use crate::api::etcdserverpb::{Member as Entry, MemberListResponse};
use crate::api::node::NodeStatusResponse;
use crate::client::{Client, ClientError, ClientOptions, Credentials};
use crate::config::HostPort;

/// How long a replacement waits: the server's own limit for a new voter to catch up, and some.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(70);

#[derive(Subcommand, Debug)]
pub(super) enum Member {
    /// Show the members: who votes, who leads, who lags
    List(List),
    /// Add a member; it gets the log first, and votes once it has caught up
    Add(Add),
    /// Remove a member; if it leads, it hands over first
    Remove(One),
    /// Let a learner vote
    Promote(One),
    /// Change where the other members reach a member
    Update(Update),
    /// Put a new member in the place of an old one, in one change: for a machine that lost its data
    Replace(Replace),
    /// Hand leadership over, to this member or to the most up-to-date one
    Transfer(Transfer),
}

#[derive(Args, Debug)]
pub(super) struct List {
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Start the new node on an empty directory: kv-example server --join <members' addresses for clients> --listen-peer HOST:PORT … (or start it so at \
once: it has itself added.) Ids are never used twice, not even after a removal.")]
pub(super) struct Add {
    /// Where the other members will reach it, with an id of your choice, or without: then the cluster chooses the next one
    #[arg(value_name = "[ID=]HOST:PORT", value_parser = parse_new)]
    new: New,
    /// It gets the log, and does not vote before `member promote`
    #[arg(long)]
    learner: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct One {
    /// The member's id
    id: u64,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
#[command(after_help = "\
First have the node listen there: restart it with --listen-peer. Until the change it can't be reached; a majority of the others must be.")]
pub(super) struct Update {
    /// The member's id
    id: u64,
    /// Where the others will reach it from now on
    address: HostPort,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Waits up to 60 s for the new node to catch up: start it meanwhile, on an empty directory, with kv-example server --join … --listen-peer HOST:PORT. Its address may be \
the old node's. The old node's data must not be used again.")]
pub(super) struct Replace {
    /// The member that goes
    old: u64,
    /// The one that comes, with an id of your choice, or without: then the cluster chooses the next one
    #[arg(value_name = "[ID=]HOST:PORT", value_parser = parse_new)]
    new: New,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct Transfer {
    /// Who shall lead [default: the most up-to-date voter]
    id: Option<u64>,
    #[command(flatten)]
    connection: Connection,
}

/// A member to be.
#[derive(Clone, Debug)]
struct New {
    /// 0: the cluster chooses.
    id: u64,
    address: HostPort,
}

fn parse_new(text: &str) -> Result<New, String> {
    let (id, address) = match text.split_once('=') {
        Some((id, address)) => {
            let number = id.trim().parse().ok().filter(|id| *id != 0);
            (number.ok_or_else(|| format!("{id:?} is not a node number; ids are whole numbers from 1"))?, address)
        }
        None => (0, text),
    };
    let address: HostPort = address.parse()?;
    if address.is_unspecified() {
        return Err(format!("nobody can go to {address}, which stands for all addresses of a machine"));
    }
    Ok(New { id, address })
}

pub(super) async fn run(member: Member) -> Result<(), Failure> {
    match member {
        Member::List(args) => list(args).await,
        Member::Add(args) => add(args).await,
        Member::Remove(One { id, connection }) => {
            connection.client()?.remove_member(id).await.map_err(|e| advise(e, id))?;
            let text = format!("n{id} is no member any more; stop it if it runs, and delete its data directory");
            said(&connection, json!({ "removed": id }), &text)
        }
        Member::Promote(One { id, connection }) => {
            connection.client()?.promote_member(id).await.map_err(|e| advise(e, id))?;
            said(&connection, json!({ "promoted": id }), &format!("n{id} votes from now on"))
        }
        Member::Update(Update { id, address, connection }) => {
            connection.client()?.move_member(id, &address.to_string()).await.map_err(|e| advise(e, id))?;
            let text = format!("the others reach n{id} at {address} from now on");
            said(&connection, json!({ "updated": id, "address": address.to_string() }), &text)
        }
        Member::Replace(args) => replace(args).await,
        Member::Transfer(Transfer { id, connection }) => {
            let leader = connection.client()?.transfer_leadership(id.unwrap_or(0)).await;
            let leader = leader.map_err(|e| advise(e, id.unwrap_or(0)))?;
            said(&connection, json!({ "leader": leader }), &format!("n{leader} leads"))
        }
    }
}

fn said(connection: &Connection, json: Value, text: &str) -> Result<(), Failure> {
    if connection.json { output::print_json(&json) } else { output::print(text) }
}

async fn add(Add { new, learner, connection }: Add) -> Result<(), Failure> {
    let client = connection.client()?;
    let added = client.add_member(new.id, &new.address.to_string(), learner).await.map_err(|e| advise(e, new.id))?;
    if connection.json {
        let cluster = format!("{:016x}", added.cluster_id);
        return output::print_json(&json!({ "added": added.id, "cluster_id": cluster, "learner": learner }));
    }
    let then = if learner { "it will not vote before `member promote`" } else { "it votes once it has caught up" };
    let join = connection.endpoints.join(",");
    output::print(format!(
        "n{id} is a member: {then}\nstart it, on an empty directory:\n  kv-example server --join {join} --id {id} --data DIR --listen-peer {address} \
         --listen-client HOST:PORT",
        id = added.id,
        address = new.address
    ))
}

async fn replace(Replace { old, new, mut connection }: Replace) -> Result<(), Failure> {
    if connection.timeout == ClientOptions::default().timeout {
        connection.timeout = REPLACE_TIMEOUT;
    }
    if !connection.json {
        let join = connection.endpoints.join(",");
        let address = &new.address;
        eprintln!(
            "waiting for the new node to catch up; start it, if it does not run yet, on an empty directory:\n  kv-example server --join {join} \
             --data DIR --listen-peer {address} --listen-client HOST:PORT"
        );
    }
    let done = connection.client()?.replace_member(old, new.id, &new.address.to_string()).await;
    let done = done.map_err(|error| {
        let failure = advise(error, old);
        if !failure.message().contains("in sync") {
            return failure;
        }
        Failure::runtime(format!(
            "{}; n{old} is still a member, and the new node a learner: start it, and say the same again",
            failure.message()
        ))
    })?;
    let id = done.id;
    let text = format!("n{id} has taken the place of n{old}; the data of n{old} is of no use any more");
    said(&connection, json!({ "replaced": old, "by": id }), &text)
}

/// What to do next, where the server's words don't say.
fn advise(error: ClientError, id: u64) -> Failure {
    let words = error.cause().message.clone();
    let next = [
        ("in sync", "see how far it is with `kv-example member list`".to_owned()),
        ("only promote a learner member", "nothing is left to do".into()),
        ("member not found", "see who is a member with `kv-example member list`".into()),
        ("Peer URLs already exists", "give each member its own address; `kv-example member list` shows them".into()),
        ("member ID already exist", "ids are never used twice; leave the id out, and the cluster chooses one".into()),
        ("not enough started members", format!("n{id} is the last voter: to end the cluster, stop it")),
        ("unhealthy cluster", "start the members that are down, or remove those first".into()),
        ("bad leader transferee", "only a voter can lead; see who is with `kv-example member list`".into()),
    ];
    let next = next.into_iter().find(|(text, _)| words.contains(text)).map(|(_, next)| next);
    match (next, error) {
        (Some(next), error @ (ClientError::Safe(_) | ClientError::Other(_))) => {
            Failure::runtime(format!("{error}; {next}"))
        }
        (_, ClientError::Unknown(cause)) => Failure::unknown_outcome(format!(
            "the outcome is unknown: {cause}; the change may have been made, or may still: look at `kv-example member list`"
        )),
        (None, error) => error.into(),
    }
}

async fn list(List { connection }: List) -> Result<(), Failure> {
    let client = connection.client()?;
    let list = match client.newest_members().await {
        Ok(list) => list,
        // Without a quorum what one node knows is better than nothing.
        Err(error) => {
            let list = client.member_list().await?;
            eprintln!("kv-example: no quorum answers, so this list may be old ({})", error.cause().message);
            list
        }
    };
    let leader = leader_of(&client, &list, connection.who.credentials()?).await;
    if connection.json {
        return output::print_json(&json_of(&list, leader.as_ref()));
    }
    let mut table = output::table(["id", "role", "peer address", "client address", "state", "lag"]);
    for member in &list.members {
        table.add_row(row(member, leader.as_ref()));
    }
    output::align_right(&mut table, 5..6);
    let cluster = list.header.as_ref().map_or(0, |header| header.cluster_id);
    output::print(format!("cluster {cluster:016x}\n{table}"))
}

/// The leader's own view: only it knows how far the others are. It may serve at an address that is not among the endpoints.
async fn leader_of(
    client: &Client,
    list: &MemberListResponse,
    credentials: Option<Credentials>,
) -> Option<NodeStatusResponse> {
    let best = |answers: Vec<(String, Result<NodeStatusResponse, ClientError>)>| {
        let nodes = answers.into_iter().filter_map(|(_, answer)| answer.ok());
        nodes.filter(|node| node.role == "leader").max_by_key(|node| node.term)
    };
    if let Some(leader) = best(client.status().await) {
        return Some(leader);
    }
    let urls: Vec<_> = list.members.iter().flat_map(|member| &member.client_urls).collect();
    let (timeout, tls) = (Duration::from_secs(2), client.tls());
    let options = ClientOptions { timeout, tls, credentials, ..ClientOptions::default() };
    let others = Client::new(&urls, options).ok()?;
    best(others.status().await)
}

fn role(member: &Entry, leader: Option<&NodeStatusResponse>) -> &'static str {
    if leader.is_some_and(|leader| leader.id == member.id) {
        "leader"
    } else if member.is_learner {
        "learner"
    } else {
        "voter"
    }
}

/// What an operator has to know of it: whether it runs, and whether it is heard.
fn state(member: &Entry, leader: Option<&NodeStatusResponse>) -> String {
    /// Longer than the leader waits for a sign of life.
    const SILENT_MS: u64 = 1000;
    if member.name.is_empty() {
        return "not started yet".into();
    }
    let Some(leader) = leader else { return "?".into() };
    if leader.id == member.id {
        return "runs".into();
    }
    let peer = leader.peers.iter().find(|peer| peer.id == member.id);
    match peer.and_then(|peer| peer.last_contact_ms) {
        None => "not heard".into(),
        Some(ms) if ms >= SILENT_MS => format!("silent for {} s", ms / 1000),
        Some(_) if leader.catching_up.contains(&member.id) => "catching up".into(),
        Some(_) => "runs".into(),
    }
}

fn lag(member: &Entry, leader: Option<&NodeStatusResponse>) -> Option<u64> {
    let leader = leader.filter(|leader| leader.id != member.id)?;
    leader.peers.iter().find(|peer| peer.id == member.id).map(|peer| peer.lag)
}

fn row(member: &Entry, leader: Option<&NodeStatusResponse>) -> Vec<String> {
    let bare = |urls: &[String]| {
        urls.iter().map(|url| url.split_once("://").map_or(&**url, |(_, bare)| bare)).collect::<Vec<_>>().join(" ")
    };
    vec![
        format!("n{}", member.id),
        role(member, leader).into(),
        bare(&member.peer_urls),
        bare(&member.client_urls),
        state(member, leader),
        lag(member, leader).map_or_else(String::new, |lag| lag.to_string()),
    ]
}

fn json_of(list: &MemberListResponse, leader: Option<&NodeStatusResponse>) -> Value {
    json!({
        "cluster_id": format!("{:016x}", list.header.as_ref().map_or(0, |header| header.cluster_id)),
        "leader": leader.map(|leader| leader.id),
        "members": list.members.iter().map(|member| json!({
            "id": member.id,
            "role": role(member, leader),
            "peer_urls": member.peer_urls,
            "client_urls": member.client_urls,
            "started": !member.name.is_empty(),
            "state": state(member, leader),
            "lag": lag(member, leader),
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::node::PeerStatus;

    #[test]
    fn a_member_to_be_has_an_address_and_perhaps_an_id() {
        assert_eq!(parse_new("7=a:1").map(|new| (new.id, new.address.to_string())), Ok((7, "a:1".into())));
        assert_eq!(parse_new("[::1]:2").map(|new| (new.id, new.address.to_string())), Ok((0, "[::1]:2".into())));
        for text in ["0=a:1", "x=a:1", "7=a", "0.0.0.0:1", "http://a:1"] {
            assert!(parse_new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_table_tells_who_runs_and_who_lags() {
        let peer = |id, last_contact_ms, lag| PeerStatus { id, last_contact_ms, lag, ..Default::default() };
        let leader = NodeStatusResponse {
            id: 1,
            peers: vec![peer(2, Some(7000), 9), peer(4, Some(3), 0)],
            ..NodeStatusResponse::default()
        };
        let member = |id, is_learner| Entry { id, name: "n".into(), is_learner, ..Entry::default() };
        let row = |member: &Entry| row(member, Some(&leader)).join("|");
        assert_eq!(row(&member(1, false)), "n1|leader|||runs|");
        assert_eq!(row(&member(2, false)), "n2|voter|||silent for 7 s|9");
        assert_eq!(row(&member(4, true)), "n4|learner|||runs|0");
        assert_eq!(row(&Entry { id: 5, is_learner: true, ..Entry::default() }), "n5|learner|||not started yet|");
    }
}
