//! The cluster and everything around it: starts nodes, takes them down, and sees to what happens to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::durable::Opened;
use super::kept::Kept;
use super::ledger::Ledger;
use super::load::{Desk, Load};
use super::machine::Machine;
use super::members::Made;
use super::network::Network;
use super::plan::Plan;
use super::record::Record;
use super::seat::{Excuses, Notice, Running, Seat, State, check_stopped};
use super::stores::{DiskFault, Outage, Site, Stores};
use super::subject::Subject;
use super::vouched::{Memory, Vouched};
use super::watched::Watched;
use crate::config::Config;
use crate::consensus::{Preference, RoleKind, TransferStep};
use crate::error::{Fatal, FatalKind, StorageError};
use crate::handle::Raft;
use crate::runtime::{Event, Events};
use crate::testing::{Random, lock};
use crate::types::{ClusterId, GroupId, NodeId, Peer, Term};

pub(super) const CLUSTER: ClusterId = ClusterId(0x5151);

pub(super) struct World<S: Subject, T> {
    pub(super) plan: Plan,
    pub(super) record: Record,
    pub(super) random: Random,
    pub(super) network: Network,
    pub(super) ledger: Ledger,
    pub(super) load: Arc<Load<S>>,
    pub(super) seats: BTreeMap<NodeId, Seat<S, T>>,
    pub(super) leaders: Leaders,
    /// Things to be done at a time.
    pub(super) agenda: BTreeMap<(Instant, u64), Due>,
    pub(super) appointments: u64,
    pub(super) notices: UnboundedReceiver<Notice>,
    pub(super) notify: UnboundedSender<Notice>,
    /// How many faults there were.
    pub(super) events: u64,
    pub(super) clients: JoinSet<()>,
    /// Names of commands were given out up to here.
    pub(super) tags: u64,
    /// Machines that stand by.
    pub(super) reserve: BTreeMap<NodeId, Seat<S, T>>,
    /// Whether members may come and go now.
    pub(super) changing: bool,
    /// The operator's call.
    pub(super) operator: JoinSet<Made>,
    /// When the last one ended.
    pub(super) last_change: Instant,
    /// A machine that lost its disk, and the one that is to take its place.
    pub(super) replacing: Option<(NodeId, Peer)>,
    /// The only node that was told at the beginning who they all are.
    pub(super) told_alone: Option<NodeId>,
}

/// Who led which term.
pub(super) type Leaders = Arc<std::sync::Mutex<BTreeMap<Term, NodeId>>>;

/// Something to be done later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Start(NodeId),
    Resume(NodeId),
    Disk(NodeId, DiskFault),
    Heal,
    /// The operator changes who is in the cluster.
    Operate,
    /// A node that was told to end must have ended soon.
    Ended(NodeId, u64),
    /// It must have ended by now: nothing holds it up any more.
    EndedForSure(NodeId, u64),
}

impl Due {
    /// Whether it is about one of these nodes.
    pub(super) fn concerns(self, nodes: &[NodeId]) -> bool {
        match self {
            Self::Start(id) | Self::Resume(id) | Self::Disk(id, _) | Self::Ended(id, _) | Self::EndedForSure(id, _) => {
                nodes.contains(&id)
            }
            Self::Heal | Self::Operate => false,
        }
    }
}

impl<S: Subject, T: Stores> World<S, T> {
    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.seats.keys().copied().collect()
    }

    /// The nodes that are up.
    pub(super) fn up(&self) -> Vec<NodeId> {
        self.seats.iter().filter(|(_, seat)| seat.is_up()).map(|(id, _)| *id).collect()
    }

    /// Who led the newest term.
    pub(super) fn leader(&self) -> Option<NodeId> {
        lock(&self.leaders).last_key_value().map(|(_, leader)| *leader)
    }

    pub(super) fn later(&mut self, after: Duration, due: Due) {
        self.appointments += 1;
        self.agenda.insert((Instant::now() + after, self.appointments), due);
    }

    /// Lets the world go on until then. True once `done` says so, false when the time is over.
    pub(super) async fn go_on(
        &mut self,
        until: Instant,
        faults: &[NodeId],
        mut done: impl FnMut(&Self) -> bool,
    ) -> bool {
        let mut next_fault = self.next_fault();
        while !self.record.is_violated() {
            if done(self) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            let appointment = self.agenda.first_key_value().map_or(until, |((at, _), _)| *at);
            let wake = until.min(appointment).min(next_fault);
            if let Ok(Some(notice)) = timeout_at(wake, self.notices.recv()).await {
                self.take(notice);
            }
            while let Some(((at, number), due)) = self.agenda.first_key_value().map(|(key, due)| (*key, *due))
                && at <= Instant::now()
            {
                self.agenda.remove(&(at, number));
                self.perform(due).await;
            }
            if Instant::now() >= next_fault {
                if !faults.is_empty() && self.events < self.plan.events {
                    self.events += 1;
                    self.inject(faults);
                }
                next_fault = self.next_fault();
            }
        }
        false
    }

    fn next_fault(&mut self) -> Instant {
        Instant::now() + Duration::from_millis(10) + self.random.duration(self.plan.pace * 2)
    }

    async fn perform(&mut self, due: Due) {
        match due {
            Due::Start(id) => self.start(id).await,
            Due::Resume(id) => self.resume(id),
            Due::Disk(id, fault) => self.disk(id, fault),
            Due::Heal => self.network.heal(|_, _| true),
            Due::Operate => self.operate().await,
            Due::Ended(id, run) => {
                if self.seats.get(&id).is_some_and(|seat| seat.run == run && seat.running().is_some()) {
                    self.resume(id);
                    self.ledger.hang(id, None);
                    self.disk(id, DiskFault::Heal);
                    let Config { write_timeout, catch_up_timeout, .. } = self.plan.config;
                    // A change that was asked for there goes on, and so does a node that it was only let go of.
                    let let_go =
                        self.seats.get(&id).and_then(Seat::running).is_some_and(|running| running.desk.is_none());
                    let change = if let_go && !self.operator.is_empty() { catch_up_timeout } else { Duration::ZERO };
                    self.later(write_timeout * 2 + change + Duration::from_secs(2), Due::EndedForSure(id, run));
                }
            }
            Due::EndedForSure(id, run) => {
                if self.seats.get(&id).is_some_and(|seat| seat.run == run && seat.running().is_some()) {
                    self.record.violated(format!("no end: {id} was told to stop, and does not"));
                }
            }
        }
    }

    fn resume(&mut self, id: NodeId) {
        if let Some(running) = self.seats.get(&id).and_then(Seat::running)
            && running.machine.is_paused()
        {
            self.record.node(id, "goes on");
            running.machine.resume();
        }
    }

    /// Something befalls a disk, or ends to. False where that is not simulated.
    pub(super) fn befall(&mut self, id: NodeId, fault: DiskFault) -> bool {
        let Some(seat) = self.seats.get_mut(&id) else { return false };
        if !seat.stores.fault(fault, &mut self.random) {
            return false;
        }
        seat.excuses.befall(fault);
        self.record.node(id, format!("disk: {fault:?}"));
        true
    }

    pub(super) fn disk(&mut self, id: NodeId, fault: DiskFault) {
        let _ = self.befall(id, fault);
    }

    /// Starts a node that is down.
    pub(super) async fn start(&mut self, id: NodeId) {
        if self.seats.get(&id).is_some_and(|seat| matches!(seat.state, State::Down)) {
            // The world waits for a start, which may write: a disk that hangs meanwhile would hang all of it for ever.
            self.disk(id, DiskFault::Resume);
        }
        let Some(seat) = self.seats.get_mut(&id).filter(|seat| matches!(seat.state, State::Down)) else { return };
        seat.run += 1;
        let run = seat.run;
        self.record.node(id, format!("starts, run {run}"));
        if run > 1 {
            self.record.hit("restarts");
        }
        let site = Site {
            cluster: CLUSTER,
            group: GroupId::default(),
            node: id,
            seed: id.0 + self.plan.seed,
            run,
            record: self.record.clone(),
            notices: self.notify.clone(),
        };
        // Up to a tenth too slow or too fast, the same in all runs of the machine.
        let rate = 900_000 + u32::try_from(Random::new(site.seed).below(200_000)).unwrap_or(100_000);
        let machine = Arc::new(Machine::new(if self.plan.may_misjudge_time() { rate } else { 1_000_000 }));
        let opened = seat.open(&site, &self.load.subject, &self.ledger).await;
        let started = match opened {
            Err(fatal) => Err(fatal),
            Ok(Opened { log, snapshots, keeping, view }) => {
                let log = Vouched::new(log, seat.memory.clone(), run, id, self.record.clone());
                let snapshots = Watched::new(snapshots, seat.memory.clone(), run);
                let Preference { priority, may_lead } = seat.preference;
                let node = Raft::builder(id, CLUSTER)
                    .config(Config { priority, may_lead, ..self.plan.config.clone() })
                    .seed(self.random.any())
                    .host(machine.clone())
                    .transport(self.network.endpoint(seat.peer.clone()))
                    .log(log)
                    .snapshots(snapshots)
                    .state_machine(keeping);
                let started = start_or_lose_power(node.start(), id, run, &mut self.notices, &self.notify).await;
                started.map(|raft| (raft, view))
            }
        };
        match started {
            Ok((raft, view)) => {
                tokio::spawn(watch(
                    raft.events(),
                    id,
                    run,
                    self.record.clone(),
                    self.leaders.clone(),
                    self.notify.clone(),
                ));
                self.network.connect(raft.inbox());
                let desk = Desk { raft, view: Arc::new(view), machine: machine.clone() };
                lock(&self.load.desks).insert(id, desk.clone());
                seat.state = State::Running(Running { desk: Some(desk), machine, ending: false });
            }
            Err(fatal) => self.not_started(id, run, &fatal),
        }
    }

    fn not_started(&mut self, id: NodeId, run: u64, fatal: &Fatal) {
        self.record.node(id, format!("does not start: {fatal}"));
        let mut power = false;
        let mut others = Vec::new();
        while let Ok(notice) = self.notices.try_recv() {
            if matches!(notice, Notice::PowerFailed { node, run: failed } if node == id && failed == run) {
                power = true;
            } else {
                others.push(notice);
            }
        }
        for other in others {
            let _ = self.notify.send(other);
        }
        if power {
            self.record.hit("power lost in recovery");
            return self.take_down(id, Outage::PowerLoss);
        }
        self.judge(id, fatal, false, None);
    }

    /// Checks that a node had a reason to stop, and decides how it goes on.
    fn judge(&mut self, id: NodeId, fatal: &Fatal, ending: bool, began: Option<Instant>) {
        let Some(seat) = self.seats.get_mut(&id) else { return };
        if seat.excuses.machine_damaged && self.load.subject.is_damage(fatal) {
            seat.move_away(&self.record);
        } else if !seat.excuses.explain(fatal, ending, began) {
            let excuses = seat.excuses;
            return self
                .record
                .violated(format!("no cause: {id} stopped with {fatal:?}, and nothing explains it ({excuses:?})"));
        }
        self.record.hit(class_of(fatal));
        if matches!(fatal.kind(), FatalKind::Storage(StorageError::Corrupt { .. })) {
            lock(&self.load.desks).remove(&id);
            self.network.disconnect(id);
            seat.state = State::Out;
            seat.stores.outage(Outage::Kill, &mut self.random);
            return;
        }
        self.take_down(id, Outage::Kill);
    }

    /// The machine goes down now, and comes up later.
    pub(super) fn take_down(&mut self, id: NodeId, how: Outage) {
        let Some(seat) = self.seats.get_mut(&id).filter(|seat| !seat.is_out()) else { return };
        // A log whose last batch is damaged while the note of it is lost can't be told from a torn one, as its documentation says: one
        // of the two may happen.
        let how = if seat.excuses.damaged { Outage::Kill } else { how };
        self.record.node(id, format!("down: {how:?}"));
        lock(&self.load.desks).remove(&id);
        self.network.disconnect(id);
        if let Some(running) = seat.running() {
            running.machine.switch_off();
        }
        seat.state = State::Down;
        seat.excuses.next_run();
        seat.stores.outage(how, &mut self.random);
        if seat.kept.outage(how, &mut self.random) > 0 {
            self.record.hit("durable state machines that lost commits");
        }
        // Now and then it is back before the messages that it sent have arrived.
        let most = if self.random.percent(30) { 20 } else { 1500 };
        let pause = Duration::from_millis(1) + self.random.duration(Duration::from_millis(most));
        self.later(pause, Due::Start(id));
    }

    /// Tells a node to stop, or lets go of it without a word.
    pub(super) fn end(&mut self, id: NodeId, politely: bool) {
        let Some(seat) = self.seats.get_mut(&id) else { return };
        let State::Running(running) = &mut seat.state else { return };
        running.ending = true;
        lock(&self.load.desks).remove(&id);
        self.record.node(id, if politely { "is told to stop" } else { "is let go of" });
        self.record.hit(if politely { "shutdowns" } else { "drops without a shutdown" });
        if politely {
            if let Some(desk) = running.desk.clone() {
                tokio::spawn(async move { desk.raft.shutdown().await });
            }
        } else {
            running.desk = None;
        }
        let run = seat.run;
        self.later(Duration::from_secs(4), Due::Ended(id, run));
    }

    fn take(&mut self, notice: Notice) {
        match notice {
            Notice::PowerFailed { node, run } => {
                if self.seats.get(&node).is_some_and(|seat| seat.run == run && seat.running().is_some()) {
                    self.record.hit("power lost in the middle of an operation");
                    self.take_down(node, Outage::PowerLoss);
                }
            }
            Notice::Stopped { node, run, fatal } => {
                let Some(seat) = self.seats.get(&node).filter(|seat| seat.run == run) else { return };
                let Some(running) = seat.running() else { return };
                if let Some(desk) = &running.desk
                    && let Err(what) = check_stopped(&desk.raft)
                {
                    return self.record.violated(what);
                }
                let ending = running.ending;
                let began = seat.memory.began();
                self.judge(node, &fatal, ending, began);
            }
        }
    }
}

impl<S: Subject, T> Seat<S, T> {
    pub(super) fn new(id: NodeId, stores: T, kept: Kept) -> Self {
        let peer = Peer::new(id.0, format!("sim:{}", id.0));
        Self {
            peer,
            stores,
            memory: Memory::default(),
            run: 0,
            state: State::Down,
            excuses: Excuses::default(),
            alive: Vec::new(),
            kept,
            preference: Preference { priority: 0, may_lead: true },
        }
    }
}

/// The end of a node, as a class of coverage.
fn class_of(fatal: &Fatal) -> &'static str {
    match fatal.kind() {
        FatalKind::Shutdown => "nodes ended in good order",
        FatalKind::Storage(StorageError::Full { .. }) => "nodes stopped by a full disk",
        FatalKind::Storage(StorageError::Corrupt { .. }) => "nodes stopped by corruption",
        FatalKind::Storage(_) => "nodes stopped by a failing disk",
        FatalKind::StateMachine(_) | FatalKind::Config(_) | FatalKind::Bug(_) => "nodes stopped otherwise",
    }
}

/// Follows what a node says of itself: one leader a term, and the reason of its end.
async fn watch(
    mut events: Events,
    node: NodeId,
    run: u64,
    record: Record,
    leaders: Leaders,
    notify: UnboundedSender<Notice>,
) {
    while let Some(event) = events.next().await {
        match event {
            Event::Role { role, term } => {
                record.node(node, format!("{role} of {term}"));
                match role {
                    RoleKind::Leader => {
                        record.hit("elections won");
                        let other = *lock(&leaders).entry(term).or_insert(node);
                        if other != node {
                            record.violated(format!("two leaders: {other} and {node} both lead {term}"));
                        }
                    }
                    RoleKind::Candidate => record.hit("campaigns"),
                    RoleKind::PreCandidate | RoleKind::Follower => {}
                }
            }
            Event::Truncated { from, upto } => {
                record.hit("entries truncated");
                record.node(node, format!("truncates {} to {}", from.0, upto.0));
            }
            Event::Membership { membership, .. } => {
                record.node(node, format!("has the members {membership}"));
                if membership.is_joint() {
                    record.hit("joint configurations");
                }
            }
            Event::Removed { .. } => {
                record.node(node, "is removed");
                record.hit("nodes that learned that they are removed");
            }
            Event::SnapshotTaken { last, len } => {
                record.hit("snapshots taken");
                record.node(node, format!("took an image of {last}, {len} bytes"));
            }
            Event::SnapshotInstalled { last, len } => {
                record.hit("snapshots installed");
                record.node(node, format!("installed an image of {last}, {len} bytes"));
            }
            Event::Transfer { to, step } => {
                record.node(node, format!("transfer to {to} {step}"));
                record.hit(match step {
                    TransferStep::Begins => "transfers begun",
                    TransferStep::GivenUp => "transfers given up",
                    TransferStep::Refused => "transfers refused by the successor",
                });
            }
            Event::SnapshotReceiving { .. } => {}
            Event::Stalled { what, .. } => {
                record.hit("stalls");
                record.node(node, format!("stalls: {what:?}"));
            }
            Event::Recovered { what, took } => record.node(node, format!("goes on after {took:?}: {what:?}")),
            Event::Leader { .. } => {}
            Event::Missed { count } => record.node(node, format!("{count} events missed")),
            Event::Stopped(fatal) => {
                record.node(node, format!("has stopped: {fatal}"));
                let _ = notify.send(Notice::Stopped { node, run, fatal });
            }
        }
    }
}

/// A start ends in vain when power fails in the middle of it: what waits for the disk then would wait for ever, and the world with it.
async fn start_or_lose_power(
    start: impl Future<Output = Result<Raft, Fatal>>,
    id: NodeId,
    run: u64,
    notices: &mut UnboundedReceiver<Notice>,
    notify: &UnboundedSender<Notice>,
) -> Result<Raft, Fatal> {
    tokio::pin!(start);
    loop {
        if let Ok(started) = tokio::time::timeout(Duration::from_millis(100), &mut start).await {
            return started;
        }
        let mut failed = false;
        for notice in std::iter::from_fn(|| notices.try_recv().ok()).collect::<Vec<_>>() {
            failed |= matches!(notice, Notice::PowerFailed { node, run: of } if node == id && of == run);
            let _ = notify.send(notice);
        }
        if failed {
            return Err(Fatal::shutdown());
        }
    }
}
