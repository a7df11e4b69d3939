//! Golden scripts: a cluster driven by commands, and everything that happens as a transcript.
//!
//! `raft/src/testscripts/README.md` lists the commands. `UPDATE_GOLDENFILES=1 cargo test -p raftkv scripts` writes the
//! transcripts anew; review the difference as code.

use std::collections::BTreeSet;
use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Command, Context};

use super::cluster::Cluster;
use super::disk::Disk;
use super::show;
use crate::config::Config;
use crate::consensus::Input;
use crate::message::{AppendReply, Body, ForwardOutcome, Message, RequestId};
use crate::traits::HardState;
use crate::types::{Entry, EntryKind, Index, LogId, Membership, NodeId, Peer, Term};

type Failure = Box<dyn Error>;

#[derive(Default)]
struct Runner {
    cluster: Option<Cluster>,
    /// What the script runs at the moment, for those who look for a failure.
    current: String,
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, context: &Context) -> Result<String, Failure> {
        self.current = command.to_string();
        let later = context.tags.contains("later");
        if command.name == "cluster" {
            self.cluster = Some(create(&mut command.consume_args())?);
        } else {
            let cluster = self.cluster.as_mut().ok_or("the script does not begin with 'cluster'")?;
            let outcome = execute(cluster, &command.name, command.consume_args(), later);
            if let Err(reason) = outcome {
                return Err(format!("{reason}\nafter:\n{}", cluster.take_trace().join("\n")).into());
            }
        }
        let cluster = self.cluster.as_mut().ok_or("there is no cluster")?;
        Ok(cluster.take_trace().join("\n"))
    }
}

/// Runs one script; a failure names it, the command and what led to it.
fn run(path: &str) {
    let mut runner = Runner::default();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testscripts").join(path);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| goldenscript::run(&mut runner, &path)));
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{}: {error}", path.display()),
        Err(panic) => {
            let trace = runner.cluster.as_mut().map(Cluster::take_trace).unwrap_or_default();
            eprintln!("{}: panic in or after '{}'\n{}", path.display(), runner.current, trace.join("\n"));
            std::panic::resume_unwind(panic)
        }
    }
}

// Reading arguments.

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|e| format!("{what}={text}: {e}").into())
}

fn key<T: std::str::FromStr<Err: std::fmt::Display>>(
    args: &mut ArgumentConsumer,
    name: &str,
) -> Result<Option<T>, Failure> {
    args.take_key(name).map(|text| parse(name, text)).transpose()
}

/// `INDEX@TERM`, as transcripts show it.
fn log_id(text: &str) -> Result<LogId, Failure> {
    let (index, term) = text.split_once('@').ok_or_else(|| format!("{text}: a log id is INDEX@TERM"))?;
    Ok(LogId::new(parse("term", term)?, parse("index", index)?))
}

fn duration(text: &str) -> Result<Duration, Failure> {
    let millis = text.strip_suffix("ms").ok_or_else(|| format!("{text}: a duration ends in ms"))?;
    Ok(Duration::from_millis(parse("duration", millis)?))
}

fn yes(text: &str) -> Result<bool, Failure> {
    parse("true or false", text)
}

/// The nodes named by the positional arguments; all, if none is.
fn ids(args: &mut ArgumentConsumer, cluster: &Cluster) -> Result<Vec<NodeId>, Failure> {
    let mut named = Vec::new();
    while let Some(text) = args.next_pos() {
        named.push(NodeId(parse("id", text)?));
    }
    Ok(if named.is_empty() { cluster.nodes.keys().copied().collect() } else { named })
}

fn id(args: &mut ArgumentConsumer) -> Result<NodeId, Failure> {
    Ok(NodeId(parse("id", args.next_pos().ok_or("which node?")?)?))
}

/// A command: as it is written, or `*N` for N bytes.
fn payload(text: &str) -> Result<Bytes, Failure> {
    match text.strip_prefix('*') {
        Some(size) => Ok(Bytes::from(vec![b'x'; parse("size", size)?])),
        None => Ok(Bytes::copy_from_slice(text.as_bytes())),
    }
}

// Commands.

fn create(args: &mut ArgumentConsumer) -> Result<Cluster, Failure> {
    let nodes = key(args, "nodes")?.unwrap_or(3);
    let voters = key(args, "voters")?.unwrap_or(nodes);
    let seed = key(args, "seed")?.unwrap_or(1);
    let leader = key(args, "leader")?.map(NodeId);
    let mut config = Config::default();
    while let Some((name, value)) = args.next_key() {
        match name {
            "pre_vote" => config.pre_vote = yes(value)?,
            "check_quorum" => config.check_quorum = yes(value)?,
            "election_timeout" => config.election_timeout = duration(value)?,
            "heartbeat_interval" => config.heartbeat_interval = duration(value)?,
            "max_append_bytes" => config.max_append_bytes = parse(name, value)?,
            "max_inflight_appends" => config.max_inflight_appends = parse(name, value)?,
            "max_inflight_bytes" => config.max_inflight_bytes = parse(name, value)?,
            "max_write_bytes" => config.max_write_bytes = parse(name, value)?,
            "max_applying_bytes" => config.max_applying_bytes = parse(name, value)?,
            "max_tail_bytes" => config.max_tail_bytes = parse(name, value)?,
            "max_uncommitted_bytes" => config.max_uncommitted_bytes = parse(name, value)?,
            "max_command_bytes" => config.max_command_bytes = parse(name, value)?,
            "max_pending_requests" => config.max_pending_requests = parse(name, value)?,
            _ => return Err(format!("there is no option {name}").into()),
        }
    }
    args.reject_next()?;
    config.validate()?;
    let mut cluster = Cluster::new(nodes, voters, config, seed, true);
    cluster.restart_all()?;
    cluster.take_trace();
    if let Some(leader) = leader {
        let input = cluster.initialize(leader, cluster.membership())?;
        cluster.step(leader, input)?;
        cluster.stabilize(None)?;
        cluster.step(leader, Input::Campaign)?;
        cluster.stabilize(None)?;
        let all: Vec<_> = cluster.nodes.keys().copied().collect();
        let heartbeat = cluster.config.heartbeat_interval;
        cluster.advance(&all, heartbeat, true)?;
        cluster.take_trace();
        statuses(&mut cluster, &all)?;
    }
    Ok(cluster)
}

fn execute(cluster: &mut Cluster, name: &str, mut args: ArgumentConsumer, later: bool) -> Result<(), Failure> {
    let args = &mut args;
    match name {
        "propose" | "read" | "initialize" | "campaign" | "inject" => return request(cluster, name, args, later),
        "deliver" | "drop" | "duplicate" | "delay" | "reorder" => return links(cluster, name, args),
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
        "hold" | "release" | "store" | "apply" | "fetch" => backends(cluster, name, args)?,
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
        "status" => statuses(cluster, &ids(args, cluster)?)?,
        "log" => {
            for id in ids(args, cluster)? {
                let line = show::disk(&cluster.node(id)?.disk);
                cluster.say(|| format!("{id} has on its disk {line}"));
            }
        }
        "queue" => {
            for ((from, to), queue) in cluster.links.clone() {
                queue.iter().for_each(|message| cluster.say(|| format!("{from} -> {to} {}", show::message(message))));
            }
        }
        "wake" => {
            for id in ids(args, cluster)? {
                let node = cluster.node(id)?;
                let (now, wake) = (node.now, node.next_wake());
                cluster.say(|| match wake {
                    Some(wake) => format!("{id} wakes in {}ms", wake.since(now).as_millis()),
                    None => format!("{id} never wakes"),
                });
            }
        }
        _ => return Err(format!("there is no command {name}").into()),
    }
    args.reject_next()
}

fn statuses(cluster: &mut Cluster, ids: &[NodeId]) -> Result<(), Failure> {
    for id in ids {
        let node = cluster.node(*id)?;
        let line =
            node.core.as_ref().map_or_else(|| format!("{id} is down"), |core| show::status(&core.status(node.now)));
        cluster.say(|| line);
    }
    Ok(())
}

/// What comes to a node from its clients, its operator, or a liar. With `[later]`, its effects wait for the next step.
fn request(cluster: &mut Cluster, name: &str, args: &mut ArgumentConsumer, later: bool) -> Result<(), Failure> {
    let id = id(args)?;
    let input = match name {
        "propose" => {
            let mut commands = Vec::new();
            while let Some(text) = args.next_pos() {
                commands.push(payload(text)?);
            }
            cluster.propose(id, commands)?
        }
        "read" => cluster.read(id)?,
        "campaign" => Input::Campaign,
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
            cluster.say(|| format!("{to} <- {id} {}, injected", show::message(&message)));
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

/// A hand-written message: `TYPE term=T field=value…`.
fn message(args: &mut ArgumentConsumer) -> Result<Message, Failure> {
    let kind = args.next_pos().ok_or("which message?")?;
    let term = Term(key(args, "term")?.ok_or("term=?")?);
    let number = |args: &mut ArgumentConsumer, name: &str| key::<u64>(args, name).map(Option::unwrap_or_default);
    let at = |args: &mut ArgumentConsumer, name: &str| args.take_key(name).map_or(Ok(LogId::ZERO), log_id);
    let granted = args.take_key("granted").map(yes).transpose()?.unwrap_or(false);
    let body = match kind {
        "PreVote" => Body::PreVote { proposed: Term(number(args, "for")?), last: at(args, "last")? },
        "PreVoteReply" => Body::PreVoteReply { proposed: Term(number(args, "for")?), granted },
        "Vote" => Body::Vote { last: at(args, "last")? },
        "VoteReply" => Body::VoteReply { granted },
        "Append" => Body::Append {
            prev: at(args, "prev")?,
            commit: Index(number(args, "commit")?),
            entries: args
                .take_key("entries")
                .unwrap_or_default()
                .split_whitespace()
                .map(command)
                .collect::<Result<_, _>>()?,
        },
        "Accepted" => Body::AppendReply(AppendReply::Accepted { stored: Index(number(args, "stored")?) }),
        "Rejected" => Body::AppendReply(AppendReply::Rejected { prev: at(args, "prev")?, hint: at(args, "hint")? }),
        "Heartbeat" => Body::Heartbeat { commit: Index(number(args, "commit")?), round: number(args, "round")? },
        "HeartbeatReply" => Body::HeartbeatReply {
            round: number(args, "round")?,
            matching: Index(number(args, "matching")?),
            stored: Index(number(args, "stored")?),
        },
        "ReadIndex" => Body::ReadIndex { request: RequestId(number(args, "request")?) },
        "ReadIndexReply" => {
            Body::ReadIndexReply { request: RequestId(number(args, "request")?), index: key(args, "index")?.map(Index) }
        }
        "Forward" => Body::Forward {
            request: RequestId(number(args, "request")?),
            commands: args
                .take_key("commands")
                .unwrap_or_default()
                .split_whitespace()
                .map(payload)
                .collect::<Result<_, _>>()?,
        },
        "ForwardReply" => Body::ForwardReply {
            request: RequestId(number(args, "request")?),
            outcome: match (args.take_key("first"), args.take_key("overloaded")) {
                (Some(first), _) => ForwardOutcome::Appended { first: log_id(first)? },
                (None, Some(_)) => ForwardOutcome::Overloaded,
                (None, None) => ForwardOutcome::NotLeader,
            },
        },
        "Commit" => Body::Commit { index: Index(number(args, "index")?) },
        _ => return Err(format!("there is no message {kind}").into()),
    };
    Ok(Message { term, body })
}

/// A made-up entry: its payload is its id, so that equal ids are equal entries.
fn command(text: &str) -> Result<Entry, Failure> {
    Ok(Entry { id: log_id(text)?, kind: EntryKind::Command, data: Bytes::copy_from_slice(text.as_bytes()) })
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
                cluster.say(|| format!("{} ... lost", shown()));
            }
            "delay" => {
                queue.remove(place - gone(nth));
                cluster.delayed.push((*from, *to, message.clone()));
                cluster.say(|| format!("{} ... delayed", shown()));
            }
            "duplicate" => {
                queue.push_back(message.clone());
                cluster.say(|| format!("{} ... duplicated", shown()));
            }
            // The last one goes first.
            _ => {
                if let Some(moved) = queue.remove(*place) {
                    queue.push_front(moved);
                }
                cluster.say(|| format!("{} ... overtakes", shown()));
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
    let upto = Index(key(args, "upto")?.unwrap_or(u64::MAX));
    for id in ids(args, cluster)? {
        match name {
            "hold" => {
                let hold = &mut cluster.node(id)?.hold;
                hold.disk = disk.unwrap_or(hold.disk || (apply.is_none() && fetch.is_none()));
                hold.apply = apply.unwrap_or(hold.apply);
                hold.fetch = fetch.unwrap_or(hold.fetch);
                continue;
            }
            "store" => cluster.store(id, true)?,
            "apply" => cluster.apply(id, upto)?,
            "fetch" => cluster.fetch(id)?,
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
    let base_membership = (base != LogId::ZERO).then(|| (base.index, membership.clone()));
    for id in ids(args, cluster)? {
        let node = cluster.node(id)?;
        node.core = None;
        node.disk = Disk { hard_state, base, base_membership: base_membership.clone(), entries: entries.clone() };
        cluster.checker.ended(id);
        cluster.checker.entries(base, &entries)?;
        cluster.boot(id, base)?;
    }
    Ok(())
}

/// One test a script: the list says which there are, and a test that none is missing.
macro_rules! scripts {
    ($($topic:ident { $($name:ident,)+ })+) => {
        $(mod $topic { $(
            #[test]
            fn $name() {
                super::run(concat!(stringify!($topic), "/", stringify!($name), ".txt"));
            }
        )+ })+

        #[test]
        fn every_script_is_a_test() {
            let listed: BTreeSet<String> =
                [$($(concat!(stringify!($topic), "/", stringify!($name), ".txt")),+),+].map(String::from).into();
            assert_eq!(listed, found(), "list every script in script.rs");
        }
    };
}

/// The scripts on disk.
fn found() -> BTreeSet<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testscripts");
    let mut found = BTreeSet::new();
    for topic in std::fs::read_dir(&root).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir()) {
        for script in std::fs::read_dir(topic.path()).unwrap().map(Result::unwrap) {
            found.insert(format!("{}/{}", topic.file_name().display(), script.file_name().display()));
        }
    }
    found
}

#[test]
fn every_script_opens_with_what_it_shows() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testscripts");
    for script in found() {
        let text = std::fs::read_to_string(root.join(&script)).unwrap();
        assert!(text.starts_with("# "), "{script} has no opening comment");
    }
}

scripts! {
    bootstrap {
        a_cluster_is_started_on_one_node,
        a_cluster_may_be_started_on_every_node,
        a_node_that_has_a_log_is_not_started_again,
        a_node_that_was_started_with_other_members_is_another_cluster,
        a_repeated_start_changes_nothing,
        a_start_is_answered_once_it_is_on_disk,
        a_start_of_other_members_is_refused,
        a_start_that_makes_no_sense_is_refused,
        two_starts_at_once_on_one_node,
    }
    commit {
        a_commit_index_never_goes_back,
        a_commit_travels_with_the_next_append,
        a_follower_applies_only_what_is_on_its_disk,
        a_leader_counts_itself_only_when_its_disk_is_done,
        a_majority_is_counted_by_value,
        a_minority_commits_nothing,
        an_acknowledgement_of_another_term_counts_nothing,
        figure_8_c_an_entry_of_an_earlier_term_is_not_committed_by_counting,
        figure_8_e_an_entry_of_the_own_term_commits_all_before_it,
        followers_commit_without_the_leaders_disk,
        what_waits_for_the_state_machine_is_bounded,
    }
    durability {
        a_candidate_forgotten_by_a_crash_is_free_again,
        a_candidate_that_gave_way_asks_for_no_votes,
        a_candidates_vote_for_itself_waits_for_the_disk,
        a_candidates_vote_survives_a_crash,
        a_follower_in_a_new_term_acknowledges_nothing_before_the_term_is_on_disk,
        a_node_without_a_log_remembers_its_vote,
        a_single_voter_answers_after_its_disk,
        a_torn_write_leaves_a_prefix,
        a_vote_on_disk_survives_a_crash,
        a_vote_waits_for_the_disk,
        a_write_that_was_overtaken_by_a_truncation_proves_nothing,
        an_acknowledgement_waits_for_the_disk,
        one_write_at_a_time_carries_all_that_waits,
        promises_of_an_earlier_term_are_dropped,
        writes_are_bounded_and_one_oversize_entry_passes_alone,
    }
    election {
        a_candidate_gives_way_to_the_leader_of_its_term,
        a_duplicated_vote_counts_once,
        a_higher_term_is_no_vote,
        a_late_vote_changes_nothing,
        a_leader_is_elected,
        a_leader_steps_down_before_a_higher_term,
        a_leader_without_a_quorum_steps_down_and_keeps_its_vote,
        a_log_is_compared_by_term_before_index,
        a_message_of_an_earlier_term_is_refused,
        a_minority_elects_nobody,
        a_new_leader_has_what_was_committed,
        a_node_without_a_configuration_waits,
        a_second_leader_of_a_term_is_a_violation,
        a_single_voter_elects_itself_and_restarts,
        a_split_vote_is_resolved_by_other_timeouts,
        a_vote_is_given_once_a_term,
        an_empty_log_after_a_snapshot_counts_with_the_snapshots_term,
        lost_requests_are_followed_by_another_election,
        timeouts_are_drawn_from_once_to_twice_the_configured_time,
        two_voters_need_each_other,
        votes_of_strangers_do_not_count,
    }
    forward {
        a_batch_is_appended_whole_and_in_order,
        a_batch_larger_than_the_limit_passes_alone,
        a_batch_whose_leader_is_lost_has_an_unknown_outcome,
        a_command_at_a_follower_is_answered_from_its_own_state,
        a_leader_at_its_limit_refuses,
        a_poll_in_the_same_term_gives_nothing_up,
        a_repeated_batch_is_not_refused_by_its_former_leader,
        a_repeated_batch_is_proposed_once,
        an_entry_beyond_the_end_of_a_later_terms_log_is_lost,
        an_entry_that_is_overwritten_is_lost,
        only_members_may_pass_on_commands,
        the_answer_may_come_after_the_entry,
        unanswered_batches_are_bounded,
        without_a_leader_nothing_is_proposed,
    }
    prevote {
        a_follower_that_catches_up_does_not_campaign,
        a_late_answer_to_a_poll_changes_nothing,
        a_live_leader_is_not_disturbed_by_a_campaign,
        a_live_leader_is_not_disturbed_by_a_poll,
        a_lost_leader_is_replaced_within_two_timeouts,
        a_node_that_does_not_poll_answers_polls_by_the_rules,
        a_poll_is_refused_to_a_stale_log,
        a_poll_raises_no_term,
        a_pre_candidate_forgets_its_former_leader,
        a_pre_candidate_that_hears_the_leader_follows_it_again,
        a_repeated_answer_to_a_poll_counts_once,
        a_stuck_candidate_with_a_higher_term_is_freed,
        an_operators_campaign_does_not_disturb_a_live_leader,
    }
    reads {
        a_cut_off_leader_serves_no_read,
        a_follower_asks_the_leader,
        a_followers_reads_are_refused_when_its_leader_is_lost,
        a_lost_question_is_asked_again,
        a_lost_round_is_repeated_by_the_next_heartbeat,
        a_node_that_leads_no_more_answers_no_index,
        a_read_is_confirmed_by_a_round_of_heartbeats,
        a_read_without_a_leader_is_refused,
        a_repeated_answer_counts_once,
        a_restarted_node_reads_only_what_it_has_applied_again,
        a_single_voter_reads_at_once,
        an_answer_to_an_earlier_round_confirms_nothing,
        an_answer_to_an_earlier_terms_heartbeat_confirms_nothing,
        an_answer_with_an_index_is_for_its_question_only,
        many_reads_share_a_round,
        no_read_before_an_entry_of_the_own_term_is_committed,
        reads_are_refused_when_the_leader_steps_down,
    }
    recovery {
        a_cut_off_leaders_entries_are_lost_and_said_to_be,
        a_follower_that_hears_nothing_does_no_harm,
        a_follower_that_is_not_heard_does_no_harm,
        a_machine_that_kept_its_state_is_not_given_it_again,
        a_paused_leader_comes_back,
        a_restart_applies_in_bounded_pieces,
        a_whole_cluster_loses_power,
        an_acknowledged_write_survives_its_leader,
        an_idle_cluster_says_little,
        one_way_links_do_not_stop_the_others,
        power_is_lost_again_during_recovery,
    }
    replication {
        a_command_reaches_all_and_is_applied_everywhere,
        a_commit_index_beyond_what_matches_is_not_believed,
        a_conflict_with_a_committed_entry_is_refused,
        a_crashed_leaders_unsent_entries_are_overwritten,
        a_dead_follower_costs_nothing,
        a_follower_that_diverged_by_terms_needs_a_round_trip_for_each,
        a_full_window_is_reopened_by_a_heartbeat,
        a_heartbeat_tells_only_what_the_follower_has,
        a_late_rejection_is_ignored,
        a_lost_append_is_sent_again,
        a_page_of_conflicts_converges,
        a_probe_whose_answer_was_lost_ends_with_a_heartbeat,
        a_read_for_a_follower_outlives_a_term,
        a_repeated_append_changes_nothing,
        a_restarted_follower_gets_what_it_missed,
        a_slow_disk_at_a_follower_is_no_lost_append,
        appends_are_bounded_and_one_oversize_entry_passes_alone,
        appends_are_sent_ahead_of_their_answers,
        appends_out_of_order_converge,
        appends_that_no_leader_sends_are_refused,
        entries_older_than_the_memory_are_read_from_disk,
        figure_7_a,
        figure_7_b,
        figure_7_c,
        figure_7_d,
        figure_7_e,
        figure_7_f,
        heartbeats_go_on_while_a_large_append_is_on_its_way,
        many_commands_travel_in_one_append,
        only_a_proven_conflict_truncates,
        the_window_is_bounded_in_bytes,
    }
}
