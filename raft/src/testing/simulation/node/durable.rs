//! What a node opens when it starts; and state machines that are durable by themselves: they go on with what all commands up to there make.

use std::sync::Arc;

use super::kept::Keeping;
use super::ledger::{Ledger, Witness};
use super::record::Record;
use super::seat::Seat;
use super::stores::{Outage, Site, Stores};
use super::subject::Subject;
use super::world::World;
use crate::error::Fatal;
use crate::testing::lock;
use crate::traits::{LogStore, Snapshot, StateMachine};
use crate::types::{Index, LogId, NodeId};

/// Everything that a node starts with.
pub(super) struct Opened<S: Subject> {
    pub(super) log: Arc<dyn LogStore>,
    pub(super) snapshots: Arc<dyn Snapshot>,
    pub(super) keeping: Keeping<Witness<S::Machine>>,
    pub(super) view: S::View,
}

impl<S: Subject, T: Stores> Seat<S, T> {
    pub(super) async fn open(&mut self, site: &Site, subject: &Arc<S>, ledger: &Ledger) -> Result<Opened<S>, Fatal> {
        let alive = Arc::new(());
        self.alive.push(Arc::downgrade(&alive));
        let (log, snapshots) = self.stores.open(site).await?;
        let (machine, view) = subject.start_on(site, self.stores.disk())?;
        let reflected = if subject.is_durable() { machine.applied().await? } else { LogId::ZERO };
        let mut witness = Witness::new(machine, site.node, ledger.clone(), alive);
        if subject.is_durable() {
            witness = witness.goes_on(reflected.index, self.memory.clone(), site.run);
            // What is damaged may not be readable, which the node is told with its next command.
            if subject.fingerprint(&view).is_some() || !self.excuses.machine_damaged {
                compare(&**subject, ledger, &site.record, site.node, reflected.index, &view).await?;
            }
        }
        let keeping = Keeping::open(witness, self.kept.clone(), site.run).await?;
        if reflected.max(keeping.upto()) > LogId::ZERO {
            site.hit("durable state machines that go on");
        }
        Ok(Opened { log, snapshots, keeping, view })
    }

    /// What its state machine keeps is damaged, and moved out of the way.
    pub(super) fn move_away(&mut self, record: &Record) {
        record.hit("state machines that begin anew after damage");
        record.node(self.peer.id, "what its state machine kept is moved away");
        self.stores.move_away();
        self.excuses.machine_damaged = false;
    }
}

/// Compares what a machine holds with what all commands up to there make.
async fn compare<S: Subject>(
    subject: &S,
    ledger: &Ledger,
    record: &Record,
    node: NodeId,
    upto: Index,
    view: &S::View,
) -> Result<(), Fatal> {
    let (mut machine, other) = subject.start();
    let commands = ledger.commands(upto);
    if !commands.is_empty() {
        machine.apply_batch(commands).await?;
    }
    let (expected, found) = (subject.fingerprint(&other), subject.fingerprint(view));
    if expected != found {
        record.violated(format!(
            "state: {node} reflects everything up to {}, and holds {found:x?}, where all commands up to there make {expected:x?}",
            upto.0
        ));
    }
    Ok(())
}

impl<S: Subject, T: Stores> World<S, T> {
    /// An operator does what a damaged state machine would say.
    pub(super) fn move_away(&mut self, id: NodeId) {
        if self.seats.get(&id).is_some_and(|seat| seat.excuses.machine_damaged && !seat.is_out()) {
            self.take_down(id, Outage::Kill);
            if let Some(seat) = self.seats.get_mut(&id) {
                seat.move_away(&self.record);
            }
        }
    }

    /// All have applied the same, and hold the same.
    pub(super) async fn compare_all(&self) {
        if !self.load.subject.is_durable() {
            return;
        }
        let desks: Vec<_> = lock(&self.load.desks).iter().map(|(id, desk)| (*id, desk.clone())).collect();
        for (id, desk) in desks {
            let all = Index(u64::MAX);
            if let Err(fatal) = compare(&*self.load.subject, &self.ledger, &self.record, id, all, &desk.view).await {
                self.record.violated(format!("state: a machine that is given all commands fails: {fatal}"));
            }
        }
    }
}
