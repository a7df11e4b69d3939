//! Writes: from the proposal to the result.

use std::collections::VecDeque;

use bytes::Bytes;

use super::super::intake::{Answer, Load};
use super::results::{Fate, Results};
use super::take_if;
use crate::consensus::Time;
use crate::error::Error;
use crate::message::RequestId;
use crate::mutant;
use crate::types::{EntryKind, Index, LogId, Peer, Term};

/// Writes that are proposed together: all or none, with contiguous indexes.
#[derive(Debug)]
pub(crate) struct Group {
    /// What kind of entries they are to be.
    pub(crate) kind: EntryKind,
    pub(crate) deadline: Time,
    /// What it counts against byte limits.
    pub(crate) cost: u64,
    /// While the core may still refuse them, and when they wait for a leader.
    commands: Vec<Bytes>,
    waiters: VecDeque<Waiter>,
}

#[derive(Debug)]
enum Waiter {
    One(Answer<(LogId, Bytes)>),
    Many(Box<Many>),
}

/// A client that waits for several results.
#[derive(Debug)]
struct Many {
    answer: Answer<Vec<Bytes>>,
    /// How many results are still to come.
    missing: usize,
    results: Vec<Bytes>,
    overwritten: usize,
    forgotten: usize,
}

impl Group {
    pub(crate) fn new(kind: EntryKind, deadline: Time, capacity: usize) -> Self {
        let (commands, waiters) = (Vec::with_capacity(capacity), VecDeque::with_capacity(capacity));
        Self { kind, deadline, cost: 0, commands, waiters }
    }

    pub(crate) fn add_one(&mut self, command: Bytes, answer: Answer<(LogId, Bytes)>, cost: u64) {
        self.commands.push(command);
        self.waiters.push_back(Waiter::One(answer));
        self.cost += cost;
    }

    pub(crate) fn add_many(&mut self, commands: Vec<Bytes>, answer: Answer<Vec<Bytes>>, cost: u64) {
        let missing = commands.len();
        let results = Vec::with_capacity(missing);
        self.commands.extend(commands);
        self.waiters.push_back(Waiter::Many(Box::new(Many { answer, missing, results, overwritten: 0, forgotten: 0 })));
        self.cost += cost;
    }

    /// Tells all that are left the same, and accounts for the group.
    fn fail(self, error: &Error, answered: &mut Load) {
        answered.add(self.waiters.len(), self.cost);
        for waiter in self.waiters {
            match waiter {
                Waiter::One(answer) => drop(answer.send(Err(error.clone()))),
                Waiter::Many(many) => drop(many.answer.send(Err(error.clone()))),
            }
        }
    }
}

impl Many {
    /// Takes in one fate. True when it was the last.
    fn add(&mut self, fate: Fate) -> bool {
        match fate {
            Fate::Applied(answer) => match answer.into() {
                Ok(result) => self.results.push(result),
                Err(_) => self.forgotten += 1,
            },
            Fate::Overwritten => self.overwritten += 1,
            Fate::Forgotten => self.forgotten += 1,
        }
        self.missing -= 1;
        self.missing == 0
    }

    /// A batch of which a part was applied and the rest overwritten is not safe to retry as a whole: its outcome
    /// is reported as unknown.
    fn send(self) {
        let outcome = if self.overwritten + self.forgotten == 0 {
            Ok(self.results)
        } else if self.results.is_empty() && self.forgotten == 0 {
            Err(Error::Lost)
        } else {
            Err(Error::OutcomeUnknown)
        };
        let _ = self.answer.send(outcome);
    }
}

/// A group that is in a leader's log.
#[derive(Debug)]
struct Appended {
    /// The next entry whose fate is awaited.
    next: LogId,
    group: Group,
}

impl Appended {
    /// Answers what is decided up to `upto`. True when nobody waits any more.
    fn settle(&mut self, upto: Index, results: &mut Results, answered: &mut Load) -> bool {
        while self.next.index <= upto {
            let Some(waiter) = self.group.waiters.pop_front() else { break };
            let id = self.next;
            let fate = results.take(id);
            self.next.index = self.next.index.next();
            match waiter {
                Waiter::One(answer) => drop(answer.send(fate.told().map(|result| (id, result)))),
                Waiter::Many(mut many) => {
                    if !many.add(fate) {
                        self.group.waiters.push_front(Waiter::Many(many));
                        continue;
                    }
                    many.send();
                }
            }
            answered.requests += 1;
        }
        self.group.waiters.is_empty()
    }
}

impl Appended {
    /// What is left of the group was overwritten.
    fn lose(self, answered: &mut Load) {
        answered.add(self.group.waiters.len(), self.group.cost);
        for waiter in self.group.waiters {
            match waiter {
                Waiter::One(answer) => drop(answer.send(Err(Error::Lost))),
                Waiter::Many(mut many) => {
                    many.overwritten += many.missing;
                    many.send();
                }
            }
        }
    }
}

impl Fate {
    /// What a client is told of it.
    fn told(self) -> Result<Bytes, Error> {
        match self {
            Self::Applied(answer) => answer.into(),
            Self::Overwritten => Err(Error::Lost),
            Self::Forgotten => Err(Error::OutcomeUnknown),
        }
    }
}

/// A group that was refused for want of a leader.
#[derive(Debug)]
struct Parked {
    group: Group,
    /// The leader that the refusal named.
    leader: Option<Peer>,
}

/// All writes in progress.
#[derive(Debug)]
pub(crate) struct Writes {
    /// Proposed, here or at the leader, and not answered by the core. In the order of their names.
    submitted: VecDeque<(RequestId, Group)>,
    /// By the index of the first entry. Groups of different terms may overlap: at most one of them is right.
    appended: VecDeque<Appended>,
    parked: VecDeque<Parked>,
    /// A follower may apply an entry before it learns which of its batches that is: results that nobody claimed are
    /// kept while a batch is out.
    recent: Results,
    recent_cost: u64,
    max_recent_cost: u64,
    /// The term of the last entry applied.
    term: Term,
}

impl Writes {
    pub(crate) fn new(max_recent_cost: u64, applied: Index) -> Self {
        Self {
            submitted: VecDeque::new(),
            appended: VecDeque::new(),
            parked: VecDeque::new(),
            recent: Results::none(applied),
            recent_cost: 0,
            max_recent_cost,
            term: Term(0),
        }
    }

    /// Expects the core's answer, and gives it the commands. A node that `leads` is never refused for want of a leader:
    /// only otherwise are they kept.
    pub(crate) fn submit(&mut self, request: RequestId, mut group: Group, leads: bool) -> Vec<Bytes> {
        let commands = if leads { std::mem::take(&mut group.commands) } else { group.commands.clone() };
        self.submitted.push_back((request, group));
        commands
    }

    fn take_submitted(&mut self, request: RequestId) -> Option<Group> {
        let at = self.submitted.binary_search_by_key(&request, |(id, _)| *id).ok()?;
        self.submitted.remove(at).map(|(_, group)| group)
    }

    /// The group is in the leader's log. What of it is applied here already is answered from the recent results.
    pub(crate) fn on_appended(&mut self, request: RequestId, first: LogId, answered: &mut Load) {
        let Some(mut group) = self.take_submitted(request) else { return };
        group.commands = Vec::new();
        let cost = group.cost;
        let mut appended = Appended { next: first, group };
        if appended.settle(self.recent.upto(), &mut self.recent, answered) {
            answered.bytes += cost;
        } else if appended.next.term < self.term {
            appended.lose(answered);
        } else {
            let at = self.appended.partition_point(|other| other.next.index <= appended.next.index);
            self.appended.insert(at, appended);
        }
        self.forget_unclaimed();
    }

    pub(crate) fn wants_results(&self) -> bool {
        !self.submitted.is_empty() || !self.appended.is_empty()
    }

    /// Whether somebody here waits for what comes of an entry up to this one.
    pub(crate) fn is_awaited(&self, upto: Index) -> bool {
        self.appended.front().is_some_and(|first| first.next.index <= upto)
    }

    /// Answers the groups whose entries, or others in their place, were applied.
    pub(crate) fn on_applied(&mut self, mut results: Results, answered: &mut Load) {
        let upto = results.upto();
        let touched = self.appended.iter().take_while(|appended| appended.next.index <= upto).count();
        let mut unsettled = 0;
        for at in 0..touched {
            let appended = &mut self.appended[at];
            if appended.settle(upto, &mut results, answered) {
                answered.bytes += appended.group.cost;
            } else {
                self.appended.swap(unsettled, at);
                unsettled += 1;
            }
        }
        self.appended.drain(unsettled..touched);
        // Those that go on all wait for the next index now, so their order is still right.
        if results.term() > self.term {
            self.term = results.term();
            // Terms never go back along a log: what is of an earlier one and not applied by now never will be.
            for appended in take_if(&mut self.appended, |appended| appended.next.term < self.term) {
                appended.lose(answered);
            }
        }
        self.recent_cost += if self.submitted.is_empty() { 0 } else { results.cost() };
        self.recent.append(results);
        self.forget_unclaimed();
    }

    fn forget_unclaimed(&mut self) {
        if self.submitted.is_empty() {
            self.recent.clear();
            self.recent_cost = 0;
        }
        if self.recent_cost > self.max_recent_cost {
            // Results that were claimed cost nothing any more.
            self.recent_cost = self.recent.cost();
        }
        while self.recent_cost > self.max_recent_cost
            && let Some(cost) = self.recent.forget_first()
        {
            self.recent_cost = self.recent_cost.saturating_sub(cost);
        }
    }

    /// The core, or the end of leadership, decided a batch's outcome.
    pub(crate) fn fail(&mut self, request: RequestId, error: &Error, answered: &mut Load) {
        if let Some(group) = self.take_submitted(request) {
            group.fail(error, answered);
            self.forget_unclaimed();
        }
    }

    /// Nothing of the batch was proposed: it waits for a leader.
    pub(crate) fn park(&mut self, request: RequestId, leader: Option<&Peer>, answered: &mut Load) {
        let Some(group) = self.take_submitted(request) else { return };
        if group.commands.is_empty() {
            group.fail(&Error::NotLeader { leader: leader.cloned() }, answered);
        } else {
            self.parked.push_back(Parked { group, leader: leader.cloned() });
        }
        self.forget_unclaimed();
    }

    /// Nothing of the batch was proposed, and these are its commands: it waits for the next leader.
    pub(crate) fn take_back(&mut self, request: RequestId, commands: Vec<Bytes>) {
        let Some(group) = self.take_submitted(request) else { return };
        self.parked.push_back(Parked { group: Group { commands, ..group }, leader: None });
        self.forget_unclaimed();
    }

    pub(crate) fn is_waited_for(&self) -> bool {
        !self.submitted.is_empty() || !self.appended.is_empty() || !self.parked.is_empty()
    }

    pub(crate) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    pub(crate) fn take_parked(&mut self) -> impl Iterator<Item = Group> + use<> {
        std::mem::take(&mut self.parked).into_iter().map(|parked| parked.group)
    }

    /// Answers the groups whose time is over.
    pub(crate) fn expire(&mut self, now: Time, answered: &mut Load) {
        for (_, group) in take_if(&mut self.submitted, |(_, group)| group.deadline <= now) {
            let refused = mutant!("deadline-told-as-refused");
            group.fail(if refused { &Error::Unavailable } else { &Error::OutcomeUnknown }, answered);
        }
        for appended in take_if(&mut self.appended, |appended| appended.group.deadline <= now) {
            appended.group.fail(&Error::OutcomeUnknown, answered);
        }
        for parked in take_if(&mut self.parked, |parked| parked.group.deadline <= now) {
            let error = match parked.leader {
                Some(leader) => Error::NotLeader { leader: Some(leader) },
                None => Error::Unavailable,
            };
            parked.group.fail(&error, answered);
        }
        self.forget_unclaimed();
    }

    pub(crate) fn first_deadline(&self) -> Option<Time> {
        let submitted = self.submitted.iter().map(|(_, group)| group.deadline);
        let appended = self.appended.iter().map(|appended| appended.group.deadline);
        let parked = self.parked.iter().map(|parked| parked.group.deadline);
        submitted.chain(appended).chain(parked).min()
    }

    /// Tells everyone the same.
    pub(crate) fn fail_all(&mut self, error: &Error, answered: &mut Load) {
        let submitted = self.submitted.drain(..).map(|(_, group)| group);
        let appended = self.appended.drain(..).map(|appended| appended.group);
        let parked = self.parked.drain(..).map(|parked| parked.group);
        for group in submitted.chain(appended).chain(parked) {
            group.fail(error, answered);
        }
        self.forget_unclaimed();
    }
}
