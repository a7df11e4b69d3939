//! What the commands of a script do to a cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use goldenscript::ArgumentConsumer;

use super::arguments::{Failure, change, duration, entry_kind, id, ids, key, log_id, message, parse, payload, yes};
use crate::config::Config;
use crate::consensus::{Input, Preference};
use crate::message::{Body, Message};
use crate::testing::simulation::consensus::{Cluster, Disk, show};
use crate::traits::HardState;
use crate::types::{Entry, EntryKind, Index, LogId, Membership, NodeId, Peer, Term};

/// `cluster [nodes=N] [voters=N] [seed=N] [leader=ID] [OPTION=VALUE…]`: with a leader, a cluster that is started, led and at rest.
pub(super) fn create(args: &mut ArgumentConsumer) -> Result<Cluster, Failure> {
    let nodes = key(args, "nodes")?.unwrap_or(3);
    let voters = key(args, "voters")?.unwrap_or(nodes);
    let seed = key(args, "seed")?.unwrap_or(1);
    let leader = key(args, "leader")?.map(NodeId);
    // The times of the stories, whatever suits a service.
    let (ms, default) = (Duration::from_millis, Config::default());
    let mut config = Config { election_timeout: ms(300), heartbeat_interval: ms(50), ..default };
    while let Some((name, value)) = args.next_key() {
        match name {
            "pre_vote" => config.pre_vote = yes(value)?,
            "check_quorum" => config.check_quorum = yes(value)?,
            "election_timeout" => config.election_timeout = duration(value)?,
            "lease_drift" => config.lease_drift = Some(duration(value)?),
            "heartbeat_interval" => config.heartbeat_interval = duration(value)?,
            "write_timeout" => config.write_timeout = duration(value)?,
            "stall_timeout" => config.stall_timeout = duration(value)?,
            "priority_settle" => config.priority_settle = duration(value)?,
            "max_append_bytes" => config.max_append_bytes = parse(name, value)?,
            "max_inflight_appends" => config.max_inflight_appends = parse(name, value)?,
            "max_inflight_bytes" => config.max_inflight_bytes = parse(name, value)?,
            "max_write_bytes" => config.max_write_bytes = parse(name, value)?,
            "max_applying_bytes" => config.max_applying_bytes = parse(name, value)?,
            "max_tail_bytes" => config.max_tail_bytes = parse(name, value)?,
            "max_uncommitted_bytes" => config.max_uncommitted_bytes = parse(name, value)?,
            "max_command_bytes" => config.max_command_bytes = parse(name, value)?,
            "max_members" => config.max_members = parse(name, value)?,
            "catch_up_timeout" => config.catch_up_timeout = duration(value)?,
            "snapshot_entries" => config.snapshot_entries = parse(name, value)?,
            "snapshot_bytes" => config.snapshot_bytes = parse(name, value)?,
            "trailing_entries" => config.trailing_entries = parse(name, value)?,
            "snapshot_chunk_bytes" => config.snapshot_chunk_bytes = parse(name, value)?,
            "snapshot_window_bytes" => config.snapshot_window_bytes = parse(name, value)?,
            "snapshot_bytes_per_second" => config.snapshot_bytes_per_second = parse(name, value)?,
            "max_pending_requests" => config.max_pending_requests = parse(name, value)?,
            _ => return Err(format!("there is no option {name}").into()),
        }
    }
    args.reject_next()?;
    config.validate()?;
    let mut cluster = Cluster::with_transcript(nodes, voters, config, seed);
    cluster.restart_all()?;
    cluster.take_transcript();
    if let Some(leader) = leader {
        if let Some(promised) = cluster.config.lease_drift.map(|_| cluster.config.election_timeout) {
            // A node that has just come up stays out of elections.
            let all: Vec<_> = cluster.nodes.keys().copied().collect();
            cluster.advance(&all, promised, true)?;
        }
        let input = cluster.initialize(leader, cluster.membership())?;
        cluster.step(leader, input)?;
        cluster.stabilize(None)?;
        cluster.step(leader, Input::Campaign)?;
        cluster.stabilize(None)?;
        let all: Vec<_> = cluster.nodes.keys().copied().collect();
        let heartbeat = cluster.config.heartbeat_interval;
        cluster.advance(&all, heartbeat, true)?;
        cluster.take_transcript();
        statuses(&mut cluster, &all)?;
    }
    Ok(cluster)
}

/// Runs one command. With `later`, what a request causes waits for the node's next step.
pub(super) fn execute(
    cluster: &mut Cluster,
    name: &str,
    mut args: ArgumentConsumer,
    later: bool,
) -> Result<(), Failure> {
    let args = &mut args;
    match name {
        "propose" | "read" | "initialize" | "campaign" | "snapshot" | "change" | "transfer" | "lost" | "inject" => {
            return request(cluster, name, args, later);
        }
        "deliver" | "drop" | "duplicate" | "delay" | "reorder" | "damage" => return links(cluster, name, args),
        "prefer" => prefer(cluster, args)?,
        "live" => {
            for id in ids(args, cluster)? {
                cluster.step(id, Input::Applying)?;
            }
        }
        "arrive" => {
            for (from, to, message) in std::mem::take(&mut cluster.delayed) {
                cluster.arrive(from, to, message)?;
            }
        }
        "stabilize" => {
            let only: BTreeSet<_> = ids(args, cluster)?.into_iter().collect();
            cluster.stabilize(Some(&only))?;
        }
        "partition" => partition(cluster, args)?,
        "heal" => cluster.cut.clear(),
        "tick" | "wait" | "run" => time(cluster, name, args)?,
        "hold" | "release" | "store" | "apply" | "fetch" | "publish" | "image" => backends(cluster, name, args)?,
        "crash" => {
            let keep = key(args, "keep")?;
            for id in ids(args, cluster)? {
                cluster.crash(id, keep)?;
            }
        }
        "restart" => {
            let applied = args.take_key("applied").map(log_id).transpose()?.unwrap_or_default();
            for id in ids(args, cluster)? {
                cluster.boot(id, applied)?;
                statuses(cluster, &[id])?;
            }
        }
        "disk" => disk(cluster, args)?,
        "rot" => {
            for id in ids(args, cluster)? {
                cluster.node(id)?.images.damage_unfinished(0);
            }
        }
        "status" => statuses(cluster, &ids(args, cluster)?)?,
        "log" => {
            for id in ids(args, cluster)? {
                let line = show::disk(&cluster.node(id)?.disk);
                cluster.note_down(|| format!("{id} has on its disk {line}"));
            }
        }
        "queue" => {
            for ((from, to), queue) in cluster.links.clone() {
                queue
                    .iter()
                    .for_each(|message| cluster.note_down(|| format!("{from} -> {to} {}", show::message(message))));
            }
        }
        "wake" => {
            for id in ids(args, cluster)? {
                let node = cluster.node(id)?;
                let (now, wake) = (node.now, node.next_wake());
                cluster.note_down(|| match wake {
                    Some(wake) => format!("{id} wakes in {}ms", wake.since(now).as_millis()),
                    None => format!("{id} never wakes"),
                });
            }
        }
        _ => return Err(format!("there is no command {name}").into()),
    }
    args.reject_next()
}

/// `prefer [ID…] [priority=N] [may_lead=false]`: what an operator wants of these nodes.
fn prefer(cluster: &mut Cluster, args: &mut ArgumentConsumer) -> Result<(), Failure> {
    let (priority, may_lead) = (key(args, "priority")?, args.take_key("may_lead").map(yes).transpose()?);
    for id in ids(args, cluster)? {
        let was = cluster.node(id)?.preference;
        let (priority, may_lead) = (priority.unwrap_or(was.priority), may_lead.unwrap_or(was.may_lead));
        cluster.prefer(id, Preference { priority, may_lead })?;
    }
    Ok(())
}

fn statuses(cluster: &mut Cluster, ids: &[NodeId]) -> Result<(), Failure> {
    for id in ids {
        let node = cluster.node(*id)?;
        let line =
            node.core.as_ref().map_or_else(|| format!("{id} is down"), |core| show::status(&core.status(node.now)));
        cluster.note_down(|| line);
    }
    Ok(())
}

/// What comes to a node from its clients, its operator, or a liar. With `[later]`, its effects wait for the next step.
fn request(cluster: &mut Cluster, name: &str, args: &mut ArgumentConsumer, later: bool) -> Result<(), Failure> {
    let id = id(args)?;
    let input = match name {
        "propose" => {
            let kind = entry_kind(args)?;
            let mut commands = Vec::new();
            while let Some(text) = args.next_pos() {
                commands.push(payload(text)?);
            }
            cluster.propose(id, kind, commands)?
        }
        "read" => {
            let lease = args.take_key("lease").map(yes).transpose()?.unwrap_or(false);
            cluster.read(id, lease)?
        }
        "campaign" => Input::Campaign,
        "change" => {
            let change = change(args)?;
            cluster.change(id, change)?
        }
        "snapshot" => cluster.snapshot(id)?,
        "lost" => {
            let peer = NodeId(parse("id", args.next_pos().ok_or("which peer is lost?")?)?);
            Input::PeerLost { peer }
        }
        "transfer" => {
            let to = args.next_pos().map(|text| parse("id", text)).transpose()?.map(NodeId);
            cluster.transfer(id, to)?
        }
        "initialize" => {
            let mut voters = Vec::new();
            while let Some(text) = args.next_pos() {
                let voter = parse("id", text)?;
                voters.push(Peer::new(voter, format!("h{voter}")));
            }
            let membership = if voters.is_empty() { cluster.membership() } else { Membership::new(voters) };
            cluster.initialize(id, membership)?
        }
        _ => {
            let to = NodeId(parse("id", args.next_pos().ok_or("to which node?")?)?);
            let message = message(args)?;
            args.reject_next()?;
            cluster.note_down(|| format!("{to} <- {id} {}, injected", show::message(&message)));
            return Ok(cluster.step(to, Input::Receive { from: id, message })?);
        }
    };
    args.reject_next()?;
    if later {
        cluster.step_only(id, input)?
    } else {
        cluster.step(id, input)?
    }
    Ok(())
}

/// Messages on their way: `from=ID to=ID type=NAME count=N` choose among them, in the order in which they were sent.
fn links(cluster: &mut Cluster, name: &str, args: &mut ArgumentConsumer) -> Result<(), Failure> {
    let (from, to) = (key(args, "from")?.map(NodeId), key(args, "to")?.map(NodeId));
    let kind: Option<String> = key(args, "type")?;
    let count = key(args, "count")?.unwrap_or(usize::MAX);
    args.reject_next()?;
    let mut chosen = Vec::new();
    for (link, queue) in &cluster.links {
        let fits =
            from.is_none_or(|id| id == link.0) && to.is_none_or(|id| id == link.1) && !cluster.cut.contains(link);
        let named = |message: &Message| kind.as_ref().is_none_or(|kind| kind == message.name());
        let places = queue.iter().enumerate().filter(|(_, message)| fits && named(message));
        chosen.extend(places.map(|(place, message)| (*link, place, message.clone())));
    }
    chosen.truncate(count);
    if chosen.is_empty() {
        return Err("no such message is on its way".into());
    }
    let gone = |nth: usize| chosen[..nth].iter().filter(|other| other.0 == chosen[nth].0).count();
    for (nth, ((from, to), place, message)) in chosen.iter().enumerate() {
        let shown = || format!("{from} -> {to} {}", show::message(message));
        let queue = cluster.links.entry((*from, *to)).or_default();
        match name {
            "deliver" => cluster.deliver(*from, *to, place - gone(nth))?,
            "drop" => {
                queue.remove(place - gone(nth));
                cluster.note_down(|| format!("{} ... lost", shown()));
            }
            "delay" => {
                queue.remove(place - gone(nth));
                cluster.delayed.push((*from, *to, message.clone()));
                cluster.note_down(|| format!("{} ... delayed", shown()));
            }
            "duplicate" => {
                queue.push_back(message.clone());
                cluster.note_down(|| format!("{} ... duplicated", shown()));
            }
            "damage" => {
                if let Some(Message { body: Body::Chunk { part: Some(part), .. }, .. }) = queue.get_mut(*place) {
                    part.data = part.data.iter().map(|byte| byte ^ 1).collect();
                    cluster.note_down(|| format!("{} ... damaged", shown()));
                }
            }
            // The last one goes first.
            _ => {
                if let Some(moved) = queue.remove(*place) {
                    queue.push_front(moved);
                }
                cluster.note_down(|| format!("{} ... overtakes", shown()));
            }
        }
    }
    Ok(())
}

/// `partition ID…` cuts these nodes off from the others; `partition from=ID to=ID` cuts one direction.
fn partition(cluster: &mut Cluster, args: &mut ArgumentConsumer) -> Result<(), Failure> {
    if let (Some(from), Some(to)) = (key(args, "from")?, key(args, "to")?) {
        cluster.cut.insert((NodeId(from), NodeId(to)));
        return Ok(());
    }
    let group = ids(args, cluster)?;
    for other in cluster.nodes.keys().filter(|id| !group.contains(id)) {
        for id in &group {
            cluster.cut.extend([(*id, *other), (*other, *id)]);
        }
    }
    Ok(())
}

/// `tick ID… [by=D]` moves the clocks of these nodes, else to the next moment that each asked for; `wait D` moves all clocks;
/// `run D` delivers everything meanwhile as well.
fn time(cluster: &mut Cluster, name: &str, args: &mut ArgumentConsumer) -> Result<(), Failure> {
    if name != "tick" {
        let by = duration(args.next_pos().ok_or("for how long?")?)?;
        let all: Vec<_> = cluster.nodes.keys().copied().collect();
        return Ok(cluster.advance(&all, by, name == "run")?);
    }
    let by = args.take_key("by").map(duration).transpose()?;
    for id in ids(args, cluster)? {
        let node = cluster.node(id)?;
        let (now, wake) = (node.now, node.next_wake());
        match (by, wake) {
            (Some(by), _) => cluster.advance(&[id], by, false)?,
            (None, Some(wake)) => cluster.advance(&[id], wake.since(now), false)?,
            (None, None) => return Err(format!("{id} asked for no wake-up").into()),
        }
    }
    Ok(())
}

/// `hold ID… [disk=true] [apply=true] [fetch=true]` (the disk, if nothing is named) and what completes what is held.
fn backends(cluster: &mut Cluster, name: &str, args: &mut ArgumentConsumer) -> Result<(), Failure> {
    let flag = |args: &mut ArgumentConsumer, name: &str| args.take_key(name).map(yes).transpose();
    let (disk, apply, fetch) = (flag(args, "disk")?, flag(args, "apply")?, flag(args, "fetch")?);
    let (snapshot, images) = (flag(args, "snapshot")?, flag(args, "images")?);
    let count = key(args, "count")?.unwrap_or(usize::MAX);
    let whole = flag(args, "whole")?.unwrap_or(true);
    let upto = Index(key(args, "upto")?.unwrap_or(u64::MAX));
    for id in ids(args, cluster)? {
        match name {
            "hold" => {
                let hold = &mut cluster.node(id)?.hold;
                let others = [apply, fetch, snapshot, images].iter().flatten().count();
                hold.disk = disk.unwrap_or(hold.disk || others == 0);
                hold.images = images.unwrap_or(hold.images);
                hold.apply = apply.unwrap_or(hold.apply);
                hold.fetch = fetch.unwrap_or(hold.fetch);
                hold.snapshot = snapshot.unwrap_or(hold.snapshot);
                continue;
            }
            "store" => cluster.store(id, true)?,
            "apply" => cluster.apply(id, upto)?,
            "fetch" => cluster.fetch(id)?,
            "publish" => cluster.publish(id, whole)?,
            "image" => cluster.image(id, count)?,
            _ => cluster.release(id)?,
        }
        if cluster.node(id)?.core.is_some() {
            cluster.drain(id)?;
        }
    }
    Ok(())
}

/// `disk ID… [term=T] [vote=ID] [log="TERM TERM…"] [base=INDEX@TERM]`: restarts nodes from a disk that holds this. The
/// first entry of a log without a base is the configuration.
fn disk(cluster: &mut Cluster, args: &mut ArgumentConsumer) -> Result<(), Failure> {
    let term = key(args, "term")?.map(Term);
    let voted_for = key(args, "vote")?.map(NodeId);
    let base = args.take_key("base").map(log_id).transpose()?.unwrap_or_default();
    let terms = args.take_key("log").unwrap_or_default().split_whitespace();
    let membership = cluster.membership();
    let mut entries = Vec::new();
    for (n, text) in terms.enumerate() {
        let id = LogId { term: Term(parse("term", text)?), index: base.index.plus(n as u64 + 1) };
        let config = id.index == Index(1);
        let data = if config { membership.encode() } else { Bytes::from(id.to_string()) };
        entries.push(Entry { id, kind: if config { EntryKind::Config } else { EntryKind::Command }, data });
    }
    let last = entries.last().map_or(base, |entry| entry.id);
    let hard_state = HardState { term: term.unwrap_or(last.term), voted_for };
    let base_membership = (base != LogId::ZERO).then(|| (base, membership.clone()));
    for id in ids(args, cluster)? {
        let node = cluster.node(id)?;
        node.core = None;
        node.disk = Disk { hard_state, base, base_membership: base_membership.clone(), entries: entries.clone() };
        cluster.checker.ended(id);
        cluster.checker.base(base, &membership);
        cluster.checker.entries(&cluster.nodes, base, &entries)?;
        cluster.boot(id, base)?;
    }
    Ok(())
}
