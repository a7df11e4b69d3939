//! How a node comes up: what is durable is read, the state machine is brought to the newest image, and the tasks start.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use super::busy::BusyPoll;
use super::clock::Clock;
use super::deferred::Deferred;
use super::driver::Driver;
use super::fetcher::{Fetcher, InVain};
use super::host::Tasks;
use super::image;
use super::images::Images;
use super::inbox::Inbox;
use super::lateness::Lateness;
use super::log_writer::LogWriter;
use super::mailbox::Mailbox;
use super::meter::Meter;
use super::outbox::{Outbox, Sender};
use super::pace::Pace;
use super::pending::Pending;
use super::replica::{Replica, Standing, pass_sessions, restore_machine};
use super::shared::{EndGuard, Shared};
use super::snapshotter::Snapshotter;
use super::{applier, random};
use crate::config::Config;
use crate::consensus::{Boot, Consensus};
use crate::error::{Fatal, FatalKind};
use crate::mutant;
use crate::session::Sessions;
use crate::traits::{LogState, LogStore, Published, Snapshot, StateMachine, Transport};
use crate::types::{ClusterId, Entry, EntryKind, GroupId, Index, LogId, Membership, NodeId};

/// How much of the log is read at a time.
const PIECE: u64 = 4 << 20;

/// Everything a node is made of.
pub(crate) struct Parts {
    pub(crate) id: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) group: GroupId,
    pub(crate) config: Config,
    pub(crate) seed: Option<u64>,
    pub(crate) tasks: Tasks,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) log: Arc<dyn LogStore>,
    pub(crate) snapshots: Arc<dyn Snapshot>,
    pub(crate) machine: Box<dyn StateMachine>,
}

/// Starts a node. When this fails, everything has been let go.
pub(crate) async fn start(parts: Parts) -> Result<(Arc<Shared>, Inbox), Fatal> {
    let span = tracing::info_span!(parent: None, "raft", node = parts.id.0, group = parts.group.0);
    boot(parts, span.clone()).instrument(span).await
}

async fn boot(mut parts: Parts, span: tracing::Span) -> Result<(Arc<Shared>, Inbox), Fatal> {
    if parts.id == NodeId(0) {
        return Err(Fatal::new(FatalKind::Config("node id 0 is reserved: give each node a positive id".into())));
    }
    parts.config.validate().map_err(|reason| Fatal::new(FatalKind::Config(reason)))?;
    let log = parts.log.load().await?;
    let snapshot = parts.snapshots.latest().await?;
    let reflected = parts.machine.applied().await?;
    let reflected = if mutant!("durable-machine-replays") { LogId::ZERO } else { reflected };
    let log = cut(&*parts.log, log, snapshot.as_ref(), reflected).await?;
    let replica = restore(&mut parts, snapshot.as_ref(), reflected).await?;
    check(&log, replica.applied)?;
    let replica = catch_up(&*parts.log, log.base, replica).await?;
    let applied = replica.applied;
    let from_snapshot = snapshot.as_ref().map(|image| (image.meta.membership_at, image.meta.membership.clone()));
    let configurations = find_configurations(&*parts.log, &log, applied.index, from_snapshot).await?;
    tracing::info!(
        base = %log.base, last = %log.last, term = log.hard_state.term.0, %applied,
        snapshot = snapshot.as_ref().map(|image| image.meta.last.to_string()),
        members = configurations.last().map(|(_, membership)| membership.to_string()), "starting"
    );
    let seed = parts.seed.unwrap_or_else(random::seed);
    let boot = Boot { id: parts.id, log, configurations, snapshot, applied, seed };
    Ok(launch(parts, replica, boot, span))
}

/// Whether the log holds this entry, or has it as its base.
fn holds(log: &LogState, id: LogId) -> bool {
    if id.index == log.base.index {
        return id == log.base;
    }
    let run = log.runs.iter().rfind(|run| run.first <= id.index);
    id.index > log.base.index && id.index <= log.last.index && run.is_some_and(|run| run.term == id.term)
}

/// Cuts a log that an image has overtaken: the image was received from another node, and power was lost before the log was cut.
async fn cut(
    store: &dyn LogStore,
    log: LogState,
    newest: Option<&Published>,
    reflected: LogId,
) -> Result<LogState, Fatal> {
    let Some(last) = newest.map(|image| image.meta.last) else { return Ok(log) };
    if last.index < log.base.index || holds(&log, last) {
        return Ok(log);
    }
    // A node has its term on disk before it publishes an image of it.
    if log.hard_state.term < last.term || reflected > last || last.index == log.base.index {
        return Err(Fatal::new(FatalKind::Config(format!(
            "the snapshot reflects {last}, but the log ({} to {}, {}) does not fit: it is another node's log, or has lost entries; \
             restore the log that belongs to this snapshot, or replace this node",
            log.base, log.last, log.hard_state.term
        ))));
    }
    tracing::info!(base = %log.base, end = %log.last, snapshot = %last, "cutting the log, which a snapshot has overtaken");
    store.compact(last).await?;
    Ok(LogState { base: last, last, runs: Vec::new(), ..log })
}

/// A state machine that is up, and what is known of the sessions of those who write to it.
struct Restored {
    applied: LogId,
    sessions: Sessions,
    /// What the sessions reflect.
    sessions_upto: Index,
    /// Whether the machine keeps records of them.
    keeps_records: bool,
}

/// Brings the state machine to the newest image, unless it is further already.
async fn restore(parts: &mut Parts, newest: Option<&Published>, reflected: LogId) -> Result<Restored, Fatal> {
    let max_bytes = parts.config.max_session_bytes;
    let kept = parts.machine.records().await?;
    let keeps_records = kept.is_some();
    let is_newer =
        |image: &&Published| image.meta.last.index > reflected.index || mutant!("image-restored-over-newer-state");
    let unreadable =
        |reason| Fatal::state_machine(format!("the records that it kept of sessions can't be read: {reason}"));
    let kept = kept.map(|records| Sessions::from_records(records, max_bytes)).transpose().map_err(unreadable)?;
    // A machine that has not kept any so far has its sessions in image and log, as one that keeps none.
    if let (Some(sessions), None) = (kept.flatten(), newest.filter(is_newer)) {
        let sessions = if mutant!("records-of-sessions-lost") { Sessions::new(max_bytes) } else { sessions };
        return Ok(Restored { applied: reflected, sessions, sessions_upto: reflected.index, keeps_records });
    }
    let Some(Published { meta, .. }) = newest else {
        let sessions = Sessions::new(max_bytes);
        return Ok(Restored { applied: reflected, sessions, sessions_upto: Index::ZERO, keeps_records });
    };
    let (section, image) = image::open(&parts.snapshots, meta.id).await?;
    let sessions = section.sessions(max_bytes);
    let mut applied = reflected;
    if newest.is_some_and(|image| is_newer(&image)) {
        tracing::info!(snapshot = %meta.id, last = %meta.last, "restoring the state machine");
        restore_machine(&mut *parts.machine, image, meta.last, keeps_records.then_some(&sessions)).await?;
        applied = meta.last;
    }
    Ok(Restored { applied, sessions, sessions_upto: meta.last.index, keeps_records })
}

/// Reads a piece of the log, and moves on behind it.
async fn read_on(log: &dyn LogStore, next: &mut Index, end: Index) -> Result<Vec<Entry>, Fatal> {
    let entries = log.read(*next..end, PIECE).await?;
    let Some(last) = entries.last() else {
        let reason = format!("the log store returned nothing for {next}, which it holds");
        return Err(Fatal::new(FatalKind::Bug(reason)));
    };
    *next = last.id.index.next();
    Ok(entries)
}

/// A state machine that is durable itself and keeps no records may be ahead of the image: what happened to sessions in between is read from
/// the log, which holds all that is not in an image.
async fn catch_up(log: &dyn LogStore, base: LogId, mut replica: Restored) -> Result<Restored, Fatal> {
    if replica.sessions_upto < base.index && replica.sessions_upto < replica.applied.index {
        return Err(Fatal::new(FatalKind::Config(format!(
            "the log begins after {base}, but what clients' sessions have done is known only to index {}: the snapshot that belongs to this log \
             is missing; restore the snapshot directory, or replace this node",
            replica.sessions_upto
        ))));
    }
    let end = replica.applied.index.next();
    let mut next = replica.sessions_upto.next();
    while next < end {
        let entries = read_on(log, &mut next, end).await?;
        pass_sessions(&mut replica.sessions, entries);
    }
    Ok(replica)
}

/// The log must go on where the state machine stands.
fn check(log: &LogState, applied: LogId) -> Result<(), Fatal> {
    let wrong = |reason| Err(Fatal::new(FatalKind::Config(reason)));
    if applied.index < log.base.index {
        return wrong(format!(
            "the log begins after {}, but state machine and snapshots reach only to {applied}: entries between are missing; \
             restore the snapshot directory that belongs to this log, or replace this node",
            log.base
        ));
    }
    if applied.index > log.last.index {
        return wrong(format!(
            "the state machine reflects {applied}, but the log ends at {}: it is another node's log, or has lost entries; \
             restore the log that belongs to this state, or replace this node",
            log.last
        ));
    }
    Ok(())
}

/// The last configuration at or before `applied`, and all after it. The whole log is read, in pieces: only entries tell what they are.
/// The image's configuration is in force there unless the log holds a later one.
pub(crate) async fn find_configurations(
    log: &dyn LogStore,
    state: &LogState,
    applied: Index,
    from_snapshot: Option<(LogId, Membership)>,
) -> Result<Vec<(LogId, Membership)>, Fatal> {
    let (mut next, end) = (state.base.index.next(), state.last.index.next());
    let mut found = Vec::new();
    while next < end {
        let entries = read_on(log, &mut next, end).await?;
        for entry in entries.into_iter().filter(|entry| entry.kind == EntryKind::Config) {
            let membership = Membership::decode(&entry.data).map_err(|reason| {
                Fatal::new(FatalKind::Bug(format!("the configuration at {} can't be read: {reason}", entry.id)))
            })?;
            if entry.id.index <= applied {
                found.clear();
            }
            found.push((entry.id, membership));
        }
    }
    match from_snapshot {
        Some(image) if found.first().is_none_or(|(id, _)| id.index > applied) => found.insert(0, image),
        Some(_) | None => {}
    }
    Ok(found)
}

/// Starts the tasks.
fn launch(parts: Parts, restored: Restored, boot: Boot, span: tracing::Span) -> (Arc<Shared>, Inbox) {
    let Parts { id, cluster, group, mut config, tasks, transport, log, snapshots, machine, .. } = parts;
    // A simulation tells who runs next; and on one core, whoever looks keeps it from those whom he waits for.
    if tasks.0.is_some() || std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1) {
        config.busy_poll = Duration::ZERO;
    }
    let applied = boot.applied.index;
    let shared = Arc::new(Shared::new(id, &config, random::mix(boot.seed ^ u64::from_le_bytes(*b"sessions"))));
    let (inbox, arrivals) = Inbox::channel(cluster, group, id);
    let mut outbox =
        span.in_scope(|| Outbox::new(Sender { cluster, group, node: id }, transport, &config, tasks.clone()));
    let clock = Clock::start(&tasks, config.lease_drift.is_some());
    let pending = Pending::new(&config, random::mix(boot.seed), applied);
    let configured = boot.configurations.iter().rfind(|(at, _)| at.index <= applied);
    let (membership_at, membership) = configured.cloned().unwrap_or_default();
    let standing = Standing { applied: boot.applied, membership_at, membership };
    let Restored { sessions, keeps_records, .. } = restored;
    let open_sessions = sessions.tally();
    let max_session_bytes = config.max_session_bytes;
    let mut replica = Replica { machine, standing, sessions, max_session_bytes, keeps_records };
    replica.note_changes();
    let core = Consensus::new(clock.now(), &config, boot);
    span.in_scope(|| outbox.set_members(&core.correspondents()));
    let (jobs, outcomes) = (Arc::new(Mailbox::new()), Arc::new(Mailbox::new()));
    let images = span.in_scope(|| Images::start(snapshots.clone(), &tasks));
    let store = snapshots.clone();
    let snapshotter = Snapshotter::new(snapshots, tasks.clone(), &config);
    let signs = Arc::default();
    let (clock_of_applier, pace) = (Clock::start(&tasks, false), Pace::new(&config));
    let desk = applier::Desk { images: store, clock: clock_of_applier, pace, signs: Arc::clone(&signs) };
    let meter = Meter::new(&config, applied);
    let applier = tasks.spawn(applier::run(replica, desk, jobs.clone(), outcomes.clone()).instrument(span.clone()));
    let driver = Driver {
        meter,
        signs,
        busy: BusyPoll::new(config.busy_poll),
        idle: None,
        shared: shared.clone(),
        pending,
        core,
        clock,
        writer: LogWriter::new(log.clone(), config.slow_disk),
        fetcher: Fetcher::new(log),
        fetched_in_vain: InVain::default(),
        arrivals,
        outbox,
        deferred: Deferred::default(),
        jobs,
        applied: outcomes,
        lateness: Lateness::new(config.election_timeout),
        config,
        leaving: None,
        snapshotter,
        images,
        sessions: open_sessions,
    };
    let guard = EndGuard(shared.clone());
    let life = async move {
        driver.drive(applier).await;
        drop(guard);
    };
    tasks.spawn(life.instrument(span));
    (shared, inbox)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemLog;
    use crate::traits::LogWrite;
    use crate::types::Peer;

    /// A state machine that is durable itself may be further than the newest image, and so may the configuration.
    #[tokio::test]
    async fn the_image_brings_a_configuration_only_where_the_log_has_none_by_then() {
        let members = |id: u64| Membership::new([Peer::new(id, "h")]);
        let entries = [(1, None), (2, Some(2)), (3, None), (4, Some(4))].map(|(index, config)| Entry {
            id: LogId::new(1, index),
            kind: if config.is_some() { EntryKind::Config } else { EntryKind::Noop },
            data: config.map_or(bytes::Bytes::new(), |id| members(id).encode()),
        });
        let log = MemLog::new();
        log.write(LogWrite { hard_state: None, entries: entries.to_vec() }).await.unwrap();
        let state = log.load().await.unwrap();
        let image = (LogId::ZERO, members(9));
        for (applied, expected) in [(1, &[0, 2, 4][..]), (2, &[2, 4]), (3, &[2, 4]), (4, &[4])] {
            let found = find_configurations(&log, &state, Index(applied), Some(image.clone())).await.unwrap();
            assert_eq!(found.iter().map(|(at, _)| at.index.0).collect::<Vec<_>>(), expected, "applied {applied}");
        }
    }
}
