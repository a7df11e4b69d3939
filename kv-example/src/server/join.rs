//! How a new node becomes a member of a cluster that there is: it asks the members for their cluster and for itself, and where they don't
//! know it, it has itself added. On a directory that has a log already nobody is asked.

use std::time::Duration;

use raftkv::{ClusterId, NodeId};
use raftkv_storage_file::Identity;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Listeners, from_storage, protection};
use crate::api::etcdserverpb::Member;
use crate::cli::Failure;
use crate::client::{Client, ClientError, ClientOptions};
use crate::config::{Join, ServerConfig};

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the log is told that it does not work yet.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Completes the configuration of a node that joins: its id and its cluster. Waits until a member answers.
pub(super) async fn settle(mut config: ServerConfig) -> Result<ServerConfig, Failure> {
    let Some(join) = config.join.clone() else { return Ok(config) };
    let found = Identity::of(&config.data).map_err(|error| from_storage(&error))?;
    let (cluster, id) = match found {
        Some(identity) if config.id != NodeId(0) && config.id != identity.node => {
            return Err(Failure::usage(format!(
                "--id {}: {} is the directory of node {}; leave --id out, or name this node's own directory with --data",
                config.id.0,
                config.data.display(),
                identity.node.0
            )));
        }
        Some(identity) => (identity.cluster, identity.node),
        None => {
            // Nobody is to be added whose ports are taken. They are let go again: a client must not wait here before there is an answer.
            drop(Listeners::bind(&config).await?);
            if let (NodeId(0), Some(files)) = (config.id, &config.tls.peers) {
                config.id = protection::node_of(files)?;
            }
            become_member(&config, &join).await?
        }
    };
    config.client_addresses.entry(id).or_insert_with(|| config.client_address.clone());
    (config.cluster, config.id) = (Some(cluster), id);
    Ok(config)
}

/// Why it does not work.
enum Obstacle {
    /// It may in a moment.
    Passing(String),
    /// Somebody has to change something.
    Lasting(Failure),
}

impl From<ClientError> for Obstacle {
    fn from(error: ClientError) -> Self {
        match error {
            // To be added twice is as good as once.
            ClientError::Safe(cause) | ClientError::Unknown(cause) => Self::Passing(cause.to_string()),
            ClientError::Other(cause) if cause.message.contains("user name is empty") => {
                Self::Lasting(Failure::usage(format!(
                    "can't join the cluster: {cause}: authentication is enabled there; say with --join-user, or RAFTKV_JOIN_USER, as whom to ask"
                )))
            }
            ClientError::Other(cause) => Self::Lasting(Failure::usage(format!("can't join the cluster: {cause}"))),
        }
    }
}

async fn become_member(config: &ServerConfig, join: &Join) -> Result<(ClusterId, NodeId), Failure> {
    let (tls, credentials) = (protection::clients(config)?, join.user.clone());
    let client = Client::new(&join.endpoints, ClientOptions { tls, credentials, ..ClientOptions::default() });
    let client = client.map_err(|reason| Failure::usage(format!("--join: {reason}")))?;
    info!("joining the cluster of {}; this node will be at {}", join.endpoints.join(","), join.address);
    let mut warned: Option<Instant> = None;
    loop {
        match try_once(config, join, &client).await {
            Ok(place) => return Ok(place),
            Err(Obstacle::Lasting(failure)) => return Err(failure),
            Err(Obstacle::Passing(reason)) => {
                if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                    warn!("can't join yet, and tries again: {reason}");
                    warned = Some(Instant::now());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn try_once(config: &ServerConfig, join: &Join, client: &Client) -> Result<(ClusterId, NodeId), Obstacle> {
    let own = join.address.to_string();
    let list = match client.newest_members().await {
        Ok(list) => list,
        Err(error) => {
            // The cluster may lack this very node. Whoever has run once has, however old the list.
            let old = client.member_list().await.ok();
            if let Some(member) = old.as_ref().and_then(|list| own_entry(&list.members, config.id, &own))
                && !member.name.is_empty()
            {
                check(config, member, &own)?;
            }
            return Err(error.into());
        }
    };
    let cluster = ClusterId(list.header.as_ref().map_or(0, |header| header.cluster_id));
    if let Some(member) = own_entry(&list.members, config.id, &own) {
        check(config, member, &own)?;
        info!("member n{} of cluster {cluster}, as it was added", member.id);
        return Ok((cluster, NodeId(member.id)));
    }
    let added = client.add_member(config.id.0, &join.address.to_string(), join.learner).await?;
    let then = if join.learner { "gets the log, and does not vote" } else { "votes as soon as it has caught up" };
    info!("added to cluster {cluster} as member n{}, which {then}", added.id);
    Ok((cluster, NodeId(added.id)))
}

/// The member with this id; else the one at this address that never ran, or any that is there.
fn own_entry<'a>(members: &'a [Member], id: NodeId, own: &str) -> Option<&'a Member> {
    if id != NodeId(0) {
        return members.iter().find(|member| member.id == id.0);
    }
    let there = || members.iter().filter(|member| member.peer_urls.iter().any(|url| bare(url) == own));
    there().find(|member| member.name.is_empty()).or_else(|| there().next())
}

/// An address without the scheme that etcd's API has in front of it.
fn bare(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, bare)| bare)
}

fn check(config: &ServerConfig, member: &Member, own: &str) -> Result<(), Obstacle> {
    let id = member.id;
    if !member.name.is_empty() {
        return Err(Obstacle::Lasting(Failure::usage(format!(
            "member {id} has run before, but {} holds none of its data. A member that lost its data would break promises that it made, and \
             must not come back under its id: have it replaced with `kv-example member replace {id} {own}`, and start this node meanwhile \
             without --id (when no majority is left, `kv-example recover` comes first). If the data is elsewhere, name its directory with --data",
            config.data.display()
        ))));
    }
    if !member.peer_urls.iter().any(|url| bare(url) == own) {
        let listed = member.peer_urls.iter().map(|url| bare(url)).collect::<Vec<_>>().join(", ");
        return Err(Obstacle::Lasting(Failure::usage(format!(
            "member {id} was added with the address {listed}, but this node will be at {own}: say --advertise-peer with the former, or run \
             `kv-example member update {id} {own}`"
        ))));
    }
    Ok(())
}

/// A directory of this very node in another cluster is most often one whose list of peers was changed.
pub(super) fn explain(config: &ServerConfig, failure: Failure) -> Failure {
    match Identity::of(&config.data) {
        Ok(Some(found)) if found.node == config.id && found.cluster != config.cluster_id() && config.join.is_none() => {
            Failure::usage(format!(
                "{}. --peers names those whom the cluster began with: when members have changed since, leave it as it was, or say --join instead",
                failure.message()
            ))
        }
        Ok(_) | Err(_) => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str, url: &str) -> Member {
        Member { id, name: name.into(), peer_urls: vec![url.into()], ..Member::default() }
    }

    #[test]
    fn a_new_node_finds_itself_by_its_id_or_by_its_address() {
        let members = [member(1, "n1", "http://a:1"), member(3, "n3", "https://c:1"), member(4, "", "http://c:1")];
        let found = |id, own: &str| own_entry(&members, NodeId(id), own).map(|member| member.id);
        assert_eq!(found(3, "x:1"), Some(3));
        assert_eq!(found(0, "c:1"), Some(4), "the one that comes in place of the other");
        assert_eq!(found(0, "a:1"), Some(1));
        assert_eq!((found(7, "a:1"), found(0, "x:1")), (None, None));
    }
}
