//! Members come and go: an operator grows and shrinks the cluster at any time, and replaces machines that lost their disks.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::seat::State;
use super::stores::{Outage, Stores};
use super::subject::Subject;
use super::world::World;
use crate::change::{Change, ChangeRefused};
use crate::consensus::RoleKind;
use crate::error::ChangeError;
use crate::metrics::Status;
use crate::testing::lock;
use crate::types::{Membership, NodeId, Peer};

/// How long a machine has been left alone by changes before its disk may be lost.
const CALM: Duration = Duration::from_secs(2);

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    Yes,
    /// The leader refused it, and gave this reason: there is no such member.
    NoSuchMember,
    No,
}

impl<S: Subject, T: Stores> World<S, T> {
    /// The peers of all machines that can still work.
    fn peers(&self) -> Vec<Peer> {
        self.seats.values().filter(|seat| !seat.is_out()).map(|seat| seat.peer.clone()).collect()
    }

    fn peer(&self, id: NodeId) -> Option<Peer> {
        self.seats.get(&id).filter(|seat| !seat.is_out()).map(|seat| seat.peer.clone())
    }

    /// An operator does something about who is in the cluster, unless another change is still under way.
    pub(super) async fn operate(&mut self) {
        self.hear_operator();
        if !self.changing || !self.operator.is_empty() {
            return;
        }
        if let Some((old, new)) = self.replacing.clone() {
            return self.ask_change(Change::new().replace(old, new));
        }
        let calm = self.last_change.elapsed() >= CALM;
        if calm && self.random.percent(50) && self.wipe().await {
            return;
        }
        let change = self.any_change();
        self.ask_change(change);
    }

    /// Takes note of changes that have ended.
    fn hear_operator(&mut self) {
        while let Some(ended) = self.operator.try_join_next() {
            self.last_change = Instant::now();
            if matches!(ended, Ok(Made::Yes | Made::NoSuchMember)) && self.replacing.take().is_some() {
                self.record.hit("machines replaced");
            }
        }
    }

    /// One to three edits, or a whole other configuration. Not all of them make sense.
    fn any_change(&mut self) -> Change {
        let peers = self.peers();
        let Some(last) = peers.last().cloned() else { return Change::new() };
        if self.random.percent(30) {
            let (voters, learners) = (self.random.any(), self.random.any());
            let among = |set: u64| peers.iter().filter(move |peer| set >> peer.id.0 & 1 == 1).cloned();
            return Change::to(Membership::new(among(voters)).with_learners(among(learners & !voters)));
        }
        let mut change = Change::new();
        for _ in 0..=self.random.below(3) {
            let peer = self.random.pick(&peers).unwrap_or_else(|| last.clone());
            let other = self.random.pick(&peers).unwrap_or_else(|| last.clone());
            change = match self.random.below(7) {
                0 | 1 => change.add_voter(peer),
                2 => change.add_learner(peer),
                3 => change.remove(peer.id),
                4 => change.replace(peer.id, other),
                5 => change.promote(peer.id),
                _ => change.demote(peer.id),
            };
        }
        change
    }

    /// Asks any node that is up for a change; the answer must come in time.
    fn ask_change(&mut self, change: Change) {
        let up: Vec<NodeId> = lock(&self.load.desks).keys().copied().collect();
        let Some(node) = self.random.pick(&up) else { return };
        self.ask_change_of(node, change);
    }

    fn ask_change_of(&mut self, node: NodeId, change: Change) {
        let Some(desk) = lock(&self.load.desks).get(&node).cloned() else { return };
        self.record.node(node, format!("is asked for a change: {:?}", change.edits));
        let (record, client) = (self.record.clone(), self.client(Duration::ZERO));
        let limit = self.plan.config.catch_up_timeout + self.plan.config.write_timeout;
        self.operator.spawn(async move {
            let asked = desk.raft.change_membership(change);
            let (class, made) = match client.wait(node, &desk, limit, None, asked).await {
                Some(Ok(_)) => ("changes made", Made::Yes),
                Some(Err(ChangeError::Refused(ChangeRefused::UnknownNode { .. }))) => {
                    ("changes refused", Made::NoSuchMember)
                }
                Some(Err(ChangeError::Refused(ChangeRefused::NotCaughtUp { .. }))) => {
                    ("changes that did not catch up in time", Made::No)
                }
                Some(Err(ChangeError::Refused(_))) => ("changes refused", Made::No),
                Some(Err(ChangeError::OutcomeUnknown)) => ("changes with an unknown outcome", Made::No),
                Some(Err(ChangeError::Unavailable | ChangeError::Overloaded)) => ("changes not taken up", Made::No),
                Some(Err(ChangeError::Stopped(_))) | None => ("changes at nodes that stop", Made::No),
            };
            record.hit(class);
            record.node(node, format!("the operator hears: {class}"));
            made
        });
    }

    /// A machine loses its disk, and a new one under a new name is to take its place. Never so many that the others are no quorum of a
    /// configuration that may be in force: so all must be up, and say so. Nor one that knows alone that there is a cluster.
    async fn wipe(&mut self) -> bool {
        let peers = self.peers();
        if self.up().len() != peers.len() || self.reserve.is_empty() || self.replacing.is_some() {
            return false;
        }
        let statuses = self.statuses().await;
        let configurations: Vec<_> = statuses.iter().filter_map(|status| status.configuration.as_ref()).collect();
        let Some(newest) = configurations.iter().max_by_key(|found| found.id) else { return false };
        let voters: Vec<NodeId> = newest.membership.voters.keys().copied().collect();
        let quiet = statuses.len() == peers.len()
            && configurations.len() == peers.len()
            && statuses.iter().all(|status| status.change.is_none());
        let Some(gone) = self.random.pick(&voters).filter(|id| quiet && self.peer(*id).is_some()) else { return false };
        let left: BTreeSet<_> = peers.iter().map(|peer| peer.id).filter(|id| *id != gone).collect();
        if voters.len() < 3 || !configurations.iter().all(|found| is_quorum(&found.membership, &left)) {
            return false;
        }
        let Some((id, seat)) = self.reserve.pop_first() else { return false };
        self.record.hit("machines wiped");
        self.record.node(gone, format!("loses its disk; {id} is to take its place"));
        self.take_down(gone, Outage::Kill);
        if let Some(seat) = self.seats.get_mut(&gone) {
            seat.state = State::Out;
        }
        self.replacing = Some((gone, seat.peer.clone()));
        self.seats.insert(id, seat);
        self.start(id).await;
        true
    }

    /// The operator's last change ends, and everything that can work does. Then no more nodes than it takes for a quorum of every
    /// configuration that may be in force; and which of them are members of all of these, and so must serve.
    pub(super) async fn needed(&mut self, sound: Vec<NodeId>) -> (Vec<NodeId>, Vec<NodeId>) {
        self.changing = false;
        self.agenda.clear();
        self.network.heal(|_, _| true);
        for id in &sound {
            self.mend(*id).await;
        }
        self.await_operator().await;
        self.go_on(Instant::now() + CALM, &[], |_| false).await;
        if self.random.percent(60) {
            self.wipe().await;
        }
        let statuses = self.statuses().await;
        let targets = statuses.iter().filter_map(|status| status.change.as_ref()).map(|change| change.target.clone());
        let mut in_play: Vec<Membership> = targets.collect();
        in_play.extend(statuses.iter().filter_map(|status| status.configuration.clone()).map(|found| found.membership));
        if let Some((old, new)) = &self.replacing {
            let replaced = in_play.iter().filter(|membership| membership.voters.contains_key(old)).cloned();
            let replaced = replaced.map(|mut membership| {
                membership.voters.remove(old);
                membership.learners.remove(&new.id);
                membership.voters.insert(new.id, new.clone());
                membership
            });
            let replaced: Vec<_> = replaced.collect();
            in_play.extend(replaced);
        }
        let mut asked: Vec<NodeId> = self.peers().iter().map(|peer| peer.id).collect();
        let mut left: BTreeSet<NodeId> = asked.iter().copied().collect();
        while !asked.is_empty() {
            let place = usize::try_from(self.random.below(asked.len() as u64)).unwrap_or(0);
            let id = asked.swap_remove(place);
            left.remove(&id);
            if !in_play.iter().all(|membership| is_quorum(membership, &left)) {
                left.insert(id);
            }
        }
        // A joint configuration ends in its new half.
        let stays = |id: &NodeId| {
            in_play.iter().all(|membership| membership.voters.contains_key(id) || membership.learners.contains_key(id))
        };
        let (left, serving): (Vec<_>, Vec<_>) =
            (left.iter().copied().collect(), left.iter().copied().filter(stays).collect());
        if let Some((old, new)) = self.replacing.clone()
            && let Some(node) = self.random.pick(&left)
        {
            self.ask_change_of(node, Change::new().replace(old, new));
        }
        (left, serving)
    }

    async fn await_operator(&mut self) {
        let config = &self.plan.config;
        let most = (config.catch_up_timeout + config.write_timeout) * 2 + Duration::from_secs(5);
        let until = Instant::now() + most;
        while !self.operator.is_empty() && !self.record.is_violated() {
            if Instant::now() > until {
                self.record.violated("no answer: a change does not end");
            }
            self.go_on(Instant::now() + Duration::from_millis(20), &[], |_| false).await;
            self.hear_operator();
        }
    }

    /// Everything works: all machines that can become voters, whatever was before.
    pub(super) async fn regroup(&mut self) {
        self.await_operator().await;
        let all: BTreeSet<NodeId> = self.peers().iter().map(|peer| peer.id).collect();
        self.record.cluster(format!("all shall vote: {all:?}"));
        self.reach(&all, |status| is_committed(status, &all)).await;
    }

    /// Some leave for good, whoever leads perhaps among them: they learn it, and the others go on.
    pub(super) async fn part(&mut self) -> Vec<NodeId> {
        let mut stay: BTreeSet<NodeId> = self.peers().iter().map(|peer| peer.id).collect();
        let mut gone = BTreeSet::new();
        while stay.len() > 1 && (gone.is_empty() || self.random.percent(40)) {
            let all: Vec<_> = stay.iter().copied().collect();
            gone.extend(self.random.pick(&all).filter(|id| stay.remove(id)));
        }
        let leader =
            self.statuses().await.iter().find(|status| status.role == RoleKind::Leader).map(|status| status.id);
        let removes_itself = leader.is_none_or(|id| gone.contains(&id));
        self.record.cluster(format!("these leave for good: {gone:?}"));
        self.reach(&stay, |status| match stay.contains(&status.id) {
            true => is_committed(status, &stay),
            // A leader that is removed itself does not wait until all the others know.
            false => status.removed.is_some() || (removes_itself && leader != Some(status.id)),
        })
        .await;
        stay.into_iter().collect()
    }

    /// Asks that these be the voters, again and again, until all is as it should be.
    async fn reach(&mut self, voters: &BTreeSet<NodeId>, done: impl Fn(&Status) -> bool) {
        let patience = self.plan.patience() * 2 + self.plan.config.catch_up_timeout * 3;
        let until = Instant::now() + patience;
        let target = Membership::new(voters.iter().filter_map(|id| self.peer(*id)));
        while !self.record.is_violated() {
            let statuses = self.statuses().await;
            if statuses.len() == self.peers().len() && statuses.iter().all(&done) {
                return;
            }
            if Instant::now() > until {
                let text = format!("no progress: {voters:?} are not the voters after {patience:?}: {statuses:#?}");
                return self.record.violated(text);
            }
            self.hear_operator();
            let stays: Vec<NodeId> = voters.iter().copied().collect();
            // Whoever is no member knows no leader.
            let leader =
                statuses.iter().filter(|status| status.role == RoleKind::Leader).max_by_key(|status| status.term);
            let asked = leader.map(|status| status.id).or_else(|| self.random.pick(&stays));
            if let Some(node) = asked.filter(|_| self.operator.is_empty()) {
                self.ask_change_of(node, Change::to(target.clone()));
            }
            self.go_on(Instant::now() + Duration::from_millis(100), &[], |_| false).await;
        }
    }
}

/// Whether these are a majority of each half.
fn is_quorum(membership: &Membership, ids: &BTreeSet<NodeId>) -> bool {
    let half = |voters: &std::collections::BTreeMap<NodeId, Peer>| {
        voters.keys().filter(|id| ids.contains(id)).count() * 2 > voters.len()
    };
    half(&membership.voters) && (membership.outgoing.is_empty() || half(&membership.outgoing))
}

/// Whether a node knows that these are the voters, and that it stays so.
fn is_committed(status: &Status, voters: &BTreeSet<NodeId>) -> bool {
    status.configuration.as_ref().is_some_and(|found| {
        found.committed && !found.membership.is_joint() && found.membership.voters.keys().eq(voters.iter())
    })
}
