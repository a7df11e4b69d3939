//! `status` and `member-list`.

use clap::Args;
use serde_json::{Value, json};

use super::{Connection, Failure, output};
use crate::api::node::{Disk, Image, NodeStatusResponse, PeerStatus, Receiving};
use crate::client::ClientError;

#[derive(Args, Debug)]
#[command(after_help = "\
JSON: an array with one object a node: \"endpoint\", and either \"error\", or \"id\", \"cluster_id\", \"role\" (leader, \
follower, candidate, pre-candidate or stopped), \"learner\", \"removed\", \"leader\" (0: none known), \"term\", \"log_first\", \"log_last\", \
\"stored\", \"commit\", \"applied\", \"lag\", \"revision\", \"compact_revision\", \"keys\", \"db_size\", \"version\", \"priority\", \"may_lead\", \
\"image\": the newest one on its disk, null or \"index\", \"term\", \"bytes\", \"disk\": what its files take of the disk, null or \"log\", \
\"log_entries\" (what entries take of that; null with --store file), \"images\", \"contents\" (0 with --engine memory), in bytes, \"receiving\": the image that it is getting, null or \"from\", \"index\", \"term\", \"bytes\", \
\"stored\", \"rate\" (bytes a second), \"remaining_s\" (null when that can't be told), and \
\"peers\": an array of \"id\", \"address\", \"matched\", \"next\", \"lag\", \"state\", \"in_flight\", \"fetched\" (bytes of an image), \"last_contact_ms\"; \
all but the first two are null where the node does not lead.")]
pub(super) struct Status {
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct MemberList {
    #[command(flatten)]
    connection: Connection,
}

type Answer = (String, Result<NodeStatusResponse, ClientError>);

pub(super) async fn status(args: Status) -> Result<(), Failure> {
    let answers = args.connection.client()?.status().await;
    if args.connection.json {
        output::print_json(&Value::Array(answers.iter().map(node_json).collect()))?;
    } else {
        output::print(node_table(&answers))?;
        if let Some(table) = peer_table(&answers) {
            output::print(table)?;
        }
        let receiving =
            answers.iter().filter_map(|(endpoint, answer)| Some((endpoint, answer.as_ref().ok()?.receiving?)));
        for (endpoint, receiving) in receiving {
            output::print(receiving_line(endpoint, &receiving))?;
        }
        for (endpoint, error) in
            answers.iter().filter_map(|(endpoint, answer)| Some((endpoint, answer.as_ref().err()?)))
        {
            output::print(format!("{endpoint}: {}", error.cause().message))?;
        }
    }
    if answers.iter().all(|(_, answer)| answer.is_err()) {
        return Err(Failure::runtime("no node answered; is the cluster running, and are these its --endpoints?"));
    }
    Ok(())
}

fn node_json((endpoint, answer): &Answer) -> Value {
    match answer {
        Err(error) => json!({ "endpoint": endpoint, "error": error.cause().message }),
        Ok(node) => json!({
            "endpoint": endpoint,
            "id": node.id,
            "cluster_id": format!("{:016x}", node.cluster_id),
            "role": node.role,
            "learner": node.learner,
            "removed": node.removed,
            "leader": node.leader,
            "term": node.term,
            "log_first": node.log_first,
            "log_last": node.log_last,
            "stored": node.stored,
            "commit": node.commit,
            "applied": node.applied,
            "lag": node.lag,
            "revision": node.revision,
            "compact_revision": node.compact_revision,
            "keys": node.keys,
            "db_size": node.db_size,
            "version": node.version,
            "priority": node.priority,
            "may_lead": node.may_lead,
            "image": node.image.map(|image| image_json(&image)),
            "disk": node.disk.map(|disk| disk_json(&disk)),
            "receiving": node.receiving.map(|receiving| receiving_json(&receiving)),
            "peers": node.peers.iter().map(peer_json).collect::<Vec<_>>(),
        }),
    }
}

fn image_json(image: &Image) -> Value {
    json!({ "index": image.index, "term": image.term, "bytes": image.bytes })
}

fn disk_json(Disk { log, log_entries, images, contents }: &Disk) -> Value {
    json!({ "log": log, "log_entries": log_entries, "images": images, "contents": contents })
}

/// All that a node takes of its disk.
fn on_disk(disk: Option<Disk>) -> String {
    disk.map_or_else(|| "?".into(), |disk| size(disk.log + disk.images + disk.contents))
}

fn receiving_json(receiving: &Receiving) -> Value {
    let image = receiving.image.unwrap_or_default();
    let mut json = image_json(&image);
    json["from"] = receiving.from.into();
    json["stored"] = receiving.stored.into();
    json["rate"] = receiving.rate.into();
    json["remaining_s"] = json!(remaining_seconds(receiving));
    json
}

/// How long an image will take yet, if it goes on as it did.
fn remaining_seconds(receiving: &Receiving) -> Option<u64> {
    let left = receiving.image?.bytes.saturating_sub(receiving.stored);
    left.checked_div(receiving.rate)
}

/// What is under way at a node, in a line of its own.
fn receiving_line(endpoint: &str, receiving: &Receiving) -> String {
    let image = receiving.image.unwrap_or_default();
    let left = match remaining_seconds(receiving) {
        Some(seconds) => format!("about {seconds} s left"),
        None => "it stands still".into(),
    };
    format!(
        "{endpoint}: receives an image from n{}: {} of {}, at {}/s, {left}",
        receiving.from,
        size(receiving.stored),
        size(image.bytes),
        size(receiving.rate)
    )
}

fn peer_json(peer: &PeerStatus) -> Value {
    // Only a leader knows how far another node is.
    let known = |number: u64| (!peer.state.is_empty()).then_some(number);
    json!({
        "id": peer.id,
        "address": peer.address,
        "matched": known(peer.matched),
        "next": known(peer.next),
        "lag": known(peer.lag),
        "state": Some(&peer.state).filter(|state| !state.is_empty()),
        "in_flight": known(peer.in_flight),
        "fetched": peer.fetched,
        "last_contact_ms": peer.last_contact_ms,
    })
}

fn node_table(answers: &[Answer]) -> comfy_table::Table {
    let mut table = output::table([
        "endpoint", "node", "role", "leader", "term", "log", "stored", "commit", "applied", "revision", "keys", "size",
        "disk",
    ]);
    for (endpoint, answer) in answers {
        table.add_row(match answer {
            Err(error) => vec![endpoint.clone(), "?".into(), unreachable_role(error).into()],
            Ok(node) => vec![
                endpoint.clone(),
                format!("n{}", node.id),
                shown_role(node),
                if node.leader == 0 { "none known".into() } else { format!("n{}", node.leader) },
                node.term.to_string(),
                if node.log_last < node.log_first {
                    "empty".into()
                } else {
                    format!("{}..{}", node.log_first, node.log_last)
                },
                node.stored.to_string(),
                node.commit.to_string(),
                node.applied.to_string(),
                node.revision.to_string(),
                node.keys.to_string(),
                size(node.db_size),
                on_disk(node.disk),
            ],
        });
    }
    output::align_right(&mut table, 4..13);
    table
}

/// A node that was removed, or does not vote, is not what its role says.
fn shown_role(node: &NodeStatusResponse) -> String {
    if node.removed {
        "removed".into()
    } else if node.learner {
        "learner".into()
    } else {
        node.role.clone()
    }
}

/// No role, and why: the details follow below the table.
fn unreachable_role(error: &ClientError) -> &'static str {
    match error {
        ClientError::Safe(_) | ClientError::Unknown(_) => "unreachable",
        ClientError::Other(_) => "no status",
    }
}

/// The leader's view of its followers.
fn peer_table(answers: &[Answer]) -> Option<comfy_table::Table> {
    let nodes = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
    // Two nodes may both believe that they lead for a moment; the later term is right.
    let leader = nodes.filter(|node| node.role == "leader").max_by_key(|node| node.term)?;
    if leader.peers.is_empty() {
        return None;
    }
    let title = format!("peers of n{}", leader.id);
    let mut table = output::table([&*title, "address", "state", "matched", "lag", "in flight", "last heard"]);
    for peer in &leader.peers {
        table.add_row(vec![
            format!("n{}", peer.id),
            peer.address.clone(),
            peer.state.clone(),
            peer.matched.to_string(),
            peer.lag.to_string(),
            peer.in_flight.to_string(),
            peer.last_contact_ms.map_or_else(|| "never".into(), |ms| format!("{ms} ms ago")),
        ]);
    }
    output::align_right(&mut table, 3..7);
    Some(table)
}

/// Bytes with a unit that keeps the number short.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

pub(super) async fn member_list(args: MemberList) -> Result<(), Failure> {
    let answer = args.connection.client()?.member_list().await?;
    let cluster = format!("{:016x}", answer.header.as_ref().map_or(0, |header| header.cluster_id));
    if args.connection.json {
        return output::print_json(&json!({
            "cluster_id": cluster,
            "members": answer.members.iter().map(|member| json!({
                "id": member.id,
                "name": member.name,
                "peer_urls": member.peer_urls,
                "client_urls": member.client_urls,
                "learner": member.is_learner,
            })).collect::<Vec<_>>(),
        }));
    }
    let mut table = output::table(["id", "name", "peer addresses", "client addresses"]);
    for member in &answer.members {
        table.add_row(vec![
            member.id.to_string(),
            member.name.clone(),
            member.peer_urls.join(" "),
            member.client_urls.join(" "),
        ]);
    }
    output::print(format!("cluster {cluster}\n{table}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader() -> NodeStatusResponse {
        NodeStatusResponse {
            id: 1,
            role: "leader".into(),
            leader: 1,
            term: 3,
            log_first: 1,
            log_last: 10,
            peers: vec![PeerStatus { state: "probe".into(), lag: 4, ..stranger() }],
            ..NodeStatusResponse::default()
        }
    }

    /// A peer of a node that does not lead.
    fn stranger() -> PeerStatus {
        PeerStatus { id: 2, address: "a:1".into(), ..PeerStatus::default() }
    }

    #[test]
    fn a_node_as_json() {
        let json = node_json(&("127.0.0.1:1".into(), Ok(leader())));
        assert_eq!(json["id"], 1);
        assert_eq!(json["role"], "leader");
        assert_eq!(json["peers"][0]["lag"], 4);
        assert_eq!(json["peers"][0]["last_contact_ms"], Value::Null);
    }

    #[test]
    fn what_a_node_takes_of_its_disk_is_shown_or_is_not_known() {
        let disk = Disk { log: 3 << 20, log_entries: Some(1 << 20), images: 1 << 20, contents: 0 };
        let answer = |disk| [("a:1".to_owned(), Ok(NodeStatusResponse { disk, ..leader() }))];
        let known = answer(Some(disk));
        assert!(node_table(&known).to_string().contains("4.0 MiB"), "{}", node_table(&known));
        let json = node_json(&known[0]);
        assert_eq!((&json["disk"]["log"], &json["disk"]["log_entries"]), (&json!(3 << 20), &json!(1 << 20)));
        assert!(node_table(&answer(None)).to_string().contains('?'));
        assert_eq!(node_json(&answer(None)[0])["disk"], Value::Null);
    }

    #[test]
    fn what_only_a_leader_knows_is_null_elsewhere() {
        let peer = peer_json(&stranger());
        assert_eq!((&peer["id"], &peer["address"]), (&json!(2), &json!("a:1")));
        for field in ["matched", "next", "lag", "state", "in_flight", "last_contact_ms"] {
            assert_eq!(peer[field], Value::Null, "{field}");
        }
    }

    #[test]
    fn the_tables_show_the_leader_and_its_peers() {
        let answers = [("127.0.0.1:1".into(), Ok(leader()))];
        let text = node_table(&answers).to_string();
        assert!(text.contains("n1") && text.contains("1..10"), "{text}");
        let text = peer_table(&answers).unwrap().to_string();
        assert!(text.contains("peers of n1") && text.contains("never"), "{text}");
    }

    #[test]
    fn an_image_on_its_way_shows_how_far_it_is() {
        let image = Image { index: 9, term: 2, bytes: 10 << 20 };
        let receiving = Receiving { from: 2, image: Some(image), stored: 4 << 20, rate: 2 << 20 };
        let line = receiving_line("a:1", &receiving);
        assert_eq!(line, "a:1: receives an image from n2: 4.0 MiB of 10.0 MiB, at 2.0 MiB/s, about 3 s left");
        let json = receiving_json(&receiving);
        assert_eq!((&json["remaining_s"], &json["index"], &json["stored"]), (&json!(3), &json!(9), &json!(4 << 20)));
        let stuck = Receiving { rate: 0, ..receiving };
        assert!(receiving_line("a:1", &stuck).ends_with("it stands still"));
        assert_eq!(receiving_json(&stuck)["remaining_s"], Value::Null);
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(5 << 30), "5.0 GiB");
    }
}
