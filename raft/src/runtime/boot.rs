//! How a node comes up: what is durable is read, the state machine is brought to the newest image, and the tasks start.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tracing::Instrument;

use super::clock::Clock;
use super::driver::Driver;
use super::fetcher::Fetcher;
use super::host::Tasks;
use super::inbox::Inbox;
use super::log_writer::LogWriter;
use super::mailbox::Mailbox;
use super::outbox::{Outbox, Sender};
use super::pending::Pending;
use super::shared::{EndGuard, Shared};
use super::{applier, random};
use crate::config::Config;
use crate::consensus::{Boot, Consensus};
use crate::error::{Fatal, FatalKind};
use crate::traits::{Chunks, LogState, LogStore, Snapshot, SnapshotMeta, StateMachine, Transport};
use crate::types::{ClusterId, EntryKind, GroupId, Index, LogId, Membership, NodeId};

/// How much of the log or of an image is read at a time.
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
    let applied = restore(&mut *parts.machine, &parts.snapshots, snapshot.as_ref()).await?;
    check(&log, applied)?;
    let from_snapshot = snapshot.map(|meta| (meta.last, meta.membership));
    let configurations = find_configurations(&*parts.log, &log, applied.index, from_snapshot).await?;
    tracing::info!(
        base = %log.base, last = %log.last, term = log.hard_state.term.0, %applied,
        members = configurations.last().map(|(_, membership)| membership.to_string()), "starting"
    );
    let seed = parts.seed.unwrap_or_else(random::seed);
    let boot = Boot { id: parts.id, log, configurations, applied, seed };
    Ok(launch(parts, boot, span))
}

/// Brings the state machine to the newest image, unless it is further already.
async fn restore(
    machine: &mut dyn StateMachine,
    snapshots: &Arc<dyn Snapshot>,
    newest: Option<&SnapshotMeta>,
) -> Result<LogId, Fatal> {
    let applied = machine.applied().await?;
    match newest {
        Some(meta) if meta.last.index > applied.index => {
            tracing::info!(snapshot = %meta.id, last = %meta.last, "restoring the state machine");
            let image = Image { snapshots: snapshots.clone(), meta: meta.clone(), offset: 0 };
            machine.restore(Box::new(image)).await?;
            Ok(meta.last)
        }
        Some(_) | None => Ok(applied),
    }
}

/// An image at rest.
struct Image {
    snapshots: Arc<dyn Snapshot>,
    meta: SnapshotMeta,
    offset: u64,
}

#[async_trait]
impl Chunks for Image {
    async fn next(&mut self) -> Result<Option<Bytes>, Fatal> {
        let chunk = self.snapshots.read(&self.meta.id, self.offset, PIECE as usize).await?;
        self.offset += chunk.len() as u64;
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
    }
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
/// The image's configuration is in force until the log holds a later one.
pub(crate) async fn find_configurations(
    log: &dyn LogStore,
    state: &LogState,
    applied: Index,
    from_snapshot: Option<(LogId, Membership)>,
) -> Result<Vec<(LogId, Membership)>, Fatal> {
    let (mut next, end) = (state.base.index.next(), state.last.index.next());
    let mut found = Vec::new();
    while next < end {
        let entries = log.read(next..end, PIECE).await?;
        let Some(last) = entries.last() else {
            let reason = format!("the log store returned nothing for {next}, which it holds");
            return Err(Fatal::new(FatalKind::Bug(reason)));
        };
        next = last.id.index.next();
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
        Some(image) if found.first().is_none_or(|(id, _)| id.index > image.0.index) => found.insert(0, image),
        Some(_) | None => {}
    }
    Ok(found)
}

/// Starts the tasks.
fn launch(parts: Parts, boot: Boot, span: tracing::Span) -> (Arc<Shared>, Inbox) {
    let Parts { id, cluster, group, config, tasks, transport, log, snapshots, machine, .. } = parts;
    let applied = boot.applied.index;
    let shared = Arc::new(Shared::new(id, &config));
    let (inbox, arrivals) = Inbox::channel(cluster, group, id);
    let mut outbox =
        span.in_scope(|| Outbox::new(Sender { cluster, group, node: id }, transport, &config, tasks.clone()));
    let clock = Clock::start(&tasks);
    let pending = Pending::new(&config, random::mix(boot.seed), applied);
    let core = Consensus::new(clock.now(), &config, boot);
    span.in_scope(|| outbox.set_members(&core.correspondents()));
    let (jobs, outcomes) = (Arc::new(Mailbox::new()), Arc::new(Mailbox::new()));
    let applier = tasks.spawn(applier::run(machine, jobs.clone(), outcomes.clone()).instrument(span.clone()));
    let driver = Driver {
        shared: shared.clone(),
        pending,
        core,
        clock,
        writer: LogWriter::new(log.clone(), config.slow_disk),
        fetcher: Fetcher::new(log),
        arrivals,
        outbox,
        jobs,
        applied: outcomes,
        config,
        leaving: None,
    };
    let guard = EndGuard(shared.clone());
    let life = async move {
        driver.drive(applier).await;
        drop(snapshots);
        drop(guard);
    };
    tasks.spawn(life.instrument(span));
    (shared, inbox)
}
