//! One run: turmoil everywhere; then a majority is left in peace and must serve; then all are, and must agree; then the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::kept::Kept;
use super::ledger::Ledger;
use super::load::Load;
use super::network::Network;
use super::plan::Plan;
use super::record::Record;
use super::seat::{Seat, check_stopped};
use super::stores::{DiskFault, Outage, Stores};
use super::subject::Subject;
use super::world::{Leaders, World};
use crate::consensus::{Preference, RoleKind};
use crate::metrics::Status;
use crate::testing::linearizability::{Budget, check};
use crate::testing::simulation::Options;
use crate::testing::{Random, lock};
use crate::types::{Membership, NodeId};

/// What a run leaves behind.
pub(super) struct Outcome {
    pub(super) record: Record,
    pub(super) nodes: u64,
    pub(super) events: u64,
    pub(super) took: Duration,
}

/// Runs a seed on the present runtime, whose clock must be paused.
pub(super) async fn run<S: Subject, T: Stores>(
    subject: Arc<S>,
    stores: &(dyn Fn() -> T + Sync),
    seed: u64,
    options: &Options,
    keep: usize,
) -> Outcome {
    let mut random = Random::new(seed);
    let mut plan = Plan::new(seed, &mut random, options);
    if subject.is_durable() {
        plan.widen();
    }
    let record = Record::new(keep);
    let mut world = World::new(plan, random, record.clone(), subject, stores);
    let network = tokio::spawn(world.network.clone().deliver());
    let whole = async {
        world.begin().await;
        world.turmoil().await;
        world.majority_serves().await;
        world.all_agree().await;
        world.some_leave().await;
        world.end_all().await;
        world.settle();
    };
    // What hangs in spite of all bounds is found here.
    if timeout(Duration::from_secs(3600), whole).await.is_err() {
        record.violated("no end: the run hangs");
    }
    network.abort();
    Outcome { nodes: world.plan.nodes, events: world.events, took: record.now(), record }
}

impl<S: Subject, T: Stores> World<S, T> {
    fn new(plan: Plan, mut random: Random, record: Record, subject: Arc<S>, stores: &dyn Fn() -> T) -> Self {
        let network = Network::new(random.fork(), plan.link.clone(), record.clone());
        let ledger = Ledger::new(record.clone());
        let leaders = Leaders::default();
        let load = Load {
            subject: subject.clone(),
            leaders: leaders.clone(),
            config: plan.config.clone(),
            record: record.clone(),
            ledger: ledger.clone(),
            desks: Mutex::default(),
            history: Mutex::default(),
            written: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        let kept = |id| if subject.is_durable() { Kept::AsItIs } else { plan.kept(id) };
        let seat = |id| (id, Seat::new(id, stores(), kept(id)));
        let all = (1..=plan.nodes + plan.reserve).map(|id| seat(NodeId(id)));
        let (seats, reserve) = all.partition(|(id, _)| id.0 <= plan.nodes);
        let changing = plan.may_change();
        let (notify, notices) = mpsc::unbounded_channel();
        Self {
            plan,
            record,
            random,
            network,
            ledger,
            load: Arc::new(load),
            seats,
            leaders,
            agenda: BTreeMap::new(),
            appointments: 0,
            notices,
            notify,
            events: 0,
            clients: JoinSet::new(),
            tags: 0,
            reserve,
            changing,
            operator: JoinSet::new(),
            last_change: Instant::now(),
            replacing: None,
            told_alone: None,
        }
    }

    /// All nodes start, and one or all of them are told who they are.
    async fn begin(&mut self) {
        for id in self.ids() {
            self.start(id).await;
        }
        let voters: Vec<_> =
            self.seats.values().map(|seat| seat.peer.clone()).filter(|peer| peer.id.0 <= self.plan.voters).collect();
        let members = Membership::new(voters);
        if self.changing {
            self.record.hit("runs with changing members");
        }
        // Damage at the only node that knows would leave nobody who does.
        let all = self.random.percent(50) || self.plan.may_damage();
        let told = if all { members.voters.keys().copied().collect() } else { vec![NodeId(1)] };
        self.told_alone = (!all).then_some(NodeId(1));
        for id in told {
            let raft = lock(&self.load.desks).get(&id).map(|desk| desk.raft.clone());
            let Some(raft) = raft else { continue };
            self.record.hit(if all { "told all nodes who they are" } else { "told one node who they are" });
            if let Err(error) = raft.initialize(members.clone()).await {
                self.record.violated(format!("not initialized: {id}: {error}"));
            }
        }
    }

    /// Clients work, and whatever can go wrong does.
    async fn turmoil(&mut self) {
        for _ in 0..self.plan.clients {
            let client = self.client(self.plan.think);
            self.clients.spawn(client.work(self.plan.operations));
        }
        let all = self.ids();
        let until = Instant::now() + self.plan.turmoil;
        self.go_on(until, &all, |_| false).await;
    }

    /// Everything that can be mended at this node is.
    pub(super) async fn mend(&mut self, id: NodeId) {
        self.ledger.hang(id, None);
        self.disk(id, DiskFault::Heal);
        self.move_away(id);
        let Some(seat) = self.seats.get(&id) else { return };
        if let Some(running) = seat.running() {
            running.machine.resume();
            if running.ending {
                self.take_down(id, Outage::Kill);
            }
        }
        self.start(id).await;
        // Where only nodes are left that are kept from leading, nobody leads.
        if let Some(seat) = self.seats.get(&id).filter(|seat| !seat.preference.may_lead) {
            self.prefer(id, Preference { may_lead: true, ..seat.preference });
        }
    }

    /// A majority is left in peace while faults go on at the others: it must serve within a bound.
    async fn majority_serves(&mut self) {
        let mut sound: Vec<NodeId> = self.seats.iter().filter(|(_, seat)| seat.is_sound()).map(|(id, _)| *id).collect();
        let (majority, serving) = if self.plan.may_change() {
            self.needed(sound).await
        } else {
            let quorum = self.seats.len() / 2 + 1;
            // While nothing is committed, the others may not even know that they are members.
            let needed = self.told_alone.filter(|_| self.ledger.len() == 0);
            while sound.len() > quorum {
                let out = usize::try_from(self.random.below(sound.len() as u64)).unwrap_or(0);
                let out = if sound.get(out).copied() == needed { (out + 1) % sound.len() } else { out };
                sound.remove(out);
            }
            (sound.clone(), sound)
        };
        let others: Vec<NodeId> = self.ids().into_iter().filter(|id| !majority.contains(id)).collect();
        self.record.cluster(format!("a majority is left in peace: {majority:?}"));
        self.agenda.retain(|_, due| !due.concerns(&majority));
        for id in &majority {
            self.mend(*id).await;
        }
        self.network.heal(|from, to| majority.contains(&from) && majority.contains(&to));
        // Faults at the others leave the majority time to go on in between.
        self.plan.pace = self.plan.pace.max(self.plan.config.election_timeout * 4);
        self.serve(&serving, &others, "the majority serves").await;
    }

    /// A write and a read at each of these nodes must be answered within the bound.
    async fn serve(&mut self, nodes: &[NodeId], faults: &[NodeId], what: &'static str) {
        let began = Instant::now();
        let patience = self.plan.patience();
        let mut probes = JoinSet::new();
        for id in nodes {
            let mut client = self.client(Duration::ZERO);
            let id = *id;
            probes.spawn(async move {
                while !client.succeed(id).await {
                    sleep(Duration::from_millis(20)).await;
                }
            });
        }
        let probes = Arc::new(Mutex::new(probes));
        let answered = {
            let probes = probes.clone();
            move |_: &Self| {
                let mut probes = lock(&probes);
                while probes.try_join_next().is_some() {}
                probes.is_empty()
            }
        };
        if self.go_on(began + patience, faults, answered).await {
            self.record.cluster(format!("{what} after {:?}", began.elapsed()));
            let slow = began.elapsed() > patience / 2;
            self.record.hit(if slow { "recoveries that took over half of the bound" } else { "recoveries" });
        } else if !self.record.is_violated() {
            let statuses = self.statuses().await;
            self.record.violated(format!("no progress: {nodes:?} do not serve after {patience:?}: {statuses:#?}"));
        }
    }

    pub(super) async fn statuses(&self) -> Vec<Status> {
        let desks: Vec<_> = lock(&self.load.desks).values().cloned().collect();
        let mut statuses = Vec::new();
        for desk in desks {
            statuses.extend(timeout(Duration::from_secs(1), desk.raft.status()).await.ok().and_then(Result::ok));
        }
        statuses
    }

    /// Where members come and go, some do so at last, while nothing else happens.
    async fn some_leave(&mut self) {
        if self.plan.may_change() && self.up().len() > 1 && !self.record.is_violated() {
            let stay = self.part().await;
            self.serve(&stay, &[], "those that stay serve").await;
        }
    }

    /// All that are not damaged beyond use are left in peace: they must serve, and hold the same.
    async fn all_agree(&mut self) {
        let began = Instant::now();
        self.record.cluster("all are left in peace");
        self.load.closed.store(true, Ordering::Relaxed);
        self.agenda.clear();
        self.network.heal(|_, _| true);
        let ids = self.ids();
        for id in &ids {
            self.mend(*id).await;
        }
        let nodes: Vec<NodeId> = self.seats.iter().filter(|(_, seat)| seat.is_sound()).map(|(id, _)| *id).collect();
        if self.plan.may_change() {
            self.regroup().await;
        }
        self.serve(&nodes, &[], "all serve").await;
        // The clients' calls end by themselves.
        let until = Instant::now()
            + self.plan.config.write_timeout.max(self.plan.config.read_timeout) * 2
            + Duration::from_secs(8);
        let idle = |world: &mut Self| {
            while world.clients.try_join_next().is_some() {}
            world.clients.is_empty()
        };
        while !idle(self) && Instant::now() < until && !self.record.is_violated() {
            self.go_on(Instant::now() + Duration::from_millis(50), &[], |_| false).await;
        }
        if !self.clients.is_empty() {
            self.record.violated("no answer: a client's call does not end");
        }
        let bound = began + self.plan.patience() * 2 + self.plan.preferring();
        while !self.record.is_violated() {
            let statuses = self.statuses().await;
            let same = statuses.windows(2).all(|two| two[0].applied == two[1].applied);
            let up = self.up();
            let settled = statuses.iter().all(|status| status.applied == status.last.index);
            if same
                && settled
                && rightly_led(&statuses)
                && statuses.len() == up.len()
                && nodes.iter().all(|id| up.contains(id))
            {
                return self.compare_all().await;
            }
            if Instant::now() > bound {
                self.record.violated(format!("no agreement: the nodes differ for too long: {statuses:#?}"));
            }
            self.go_on(Instant::now() + Duration::from_millis(20), &[], |_| false).await;
        }
    }

    /// All nodes end in good order, and let go of everything.
    async fn end_all(&mut self) {
        let desks: Vec<_> = std::mem::take(&mut *lock(&self.load.desks)).into_iter().collect();
        for (id, desk) in desks {
            let (first, second) = (desk.raft.clone(), desk.raft.clone());
            // Twice at once.
            let ended =
                timeout(Duration::from_secs(5), futures_util::future::join(first.shutdown(), second.shutdown()));
            match ended.await {
                Err(_) => self.record.violated(format!("no end: {id} does not shut down")),
                Ok((one, other)) => {
                    let Some(seat) = self.seats.get(&id) else { continue };
                    // Nobody knows of a fault that could end it otherwise, unless it has met one before.
                    let explained = |fatal| seat.excuses.explain(fatal, true, seat.memory.began());
                    if let Some(fatal) = [&one, &other].into_iter().find(|fatal| !explained(fatal)) {
                        self.record.violated(format!("no cause: {id} was shut down, and says {fatal:?}"));
                    }
                    if let Err(what) = check_stopped(&desk.raft) {
                        self.record.violated(what);
                    }
                }
            }
        }
        self.seats.values_mut().for_each(|seat| seat.state = super::seat::State::Down);
        // What was switched off is gone when its tasks were looked at once more.
        sleep(Duration::from_millis(5)).await;
        for (id, seat) in &self.seats {
            if seat.alive.iter().any(|alive| alive.strong_count() > 0) {
                self.record.violated(format!("not released: {id} has ended, and somebody holds its state machine"));
            }
        }
    }

    /// What clients were told is what has happened.
    fn settle(&self) {
        if self.record.is_violated() {
            return;
        }
        if let Err(what) = self.ledger.settle() {
            return self.record.violated(format!("broken word: {what}"));
        }
        let model = self.load.subject.model();
        if let Err(error) = check(&model, &lock(&self.load.history), Budget::default()) {
            self.record.violated(format!("not linearizable: {error}"));
        }
        if self.record.count("storage faults") > 0 {
            self.record.hit("runs with storage faults");
        }
        if self.ledger.len() > 0 {
            self.record.hit("runs that applied something");
        }
    }
}

/// Whether no voter should lead rather than the one that does.
fn rightly_led(statuses: &[Status]) -> bool {
    let leads = statuses.iter().filter(|status| status.role == RoleKind::Leader).max_by_key(|status| status.term);
    let Some(leader) = leads else { return false };
    let votes = |id| leader.configuration.as_ref().is_some_and(|found| found.membership.is_voter(id));
    !statuses.iter().any(|status| votes(status.id) && status.priority > leader.priority)
}
