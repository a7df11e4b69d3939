//! Linearizable reads: from the question for an index to the moment when it is applied here.

use std::collections::VecDeque;

use super::super::intake::{Answer, Load};
use super::take_if;
use crate::consensus::Time;
use crate::error::Error;
use crate::message::RequestId;
use crate::mutant;
use crate::types::{Entry, Index, Peer};

/// Reads that are asked about together.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) deadline: Time,
    /// Whether the leader's lease will do.
    pub(crate) lease: bool,
    pub(crate) readers: Vec<Answer<()>>,
}

impl Group {
    fn answer(self, outcome: &Result<(), Error>, answered: &mut Load) {
        answered.add(self.readers.len(), self.readers.len() as u64 * Entry::OVERHEAD);
        for reader in self.readers {
            let _ = reader.send(outcome.clone());
        }
    }
}

/// All reads in progress.
#[derive(Debug)]
pub(crate) struct Reads {
    /// In the order of their names. The core repeats questions that may have been lost.
    asked: VecDeque<(RequestId, Group)>,
    /// Answered by the core, in the order of the index that must be applied.
    confirmed: VecDeque<(Index, Group)>,
    /// Refused for want of a leader, with the one that the refusal named.
    parked: VecDeque<(Group, Option<Peer>)>,
    applied: Index,
    /// How many were answered in this run.
    pub(crate) served: u64,
}

impl Reads {
    pub(crate) fn new(applied: Index) -> Self {
        Self { asked: VecDeque::new(), confirmed: VecDeque::new(), parked: VecDeque::new(), applied, served: 0 }
    }

    pub(crate) fn submit(&mut self, request: RequestId, group: Group) {
        self.asked.push_back((request, group));
    }

    fn take_asked(&mut self, request: RequestId) -> Option<Group> {
        let at = self.asked.binary_search_by_key(&request, |(id, _)| *id).ok()?;
        self.asked.remove(at).map(|(_, group)| group)
    }

    pub(crate) fn on_readable(&mut self, request: RequestId, index: Index, answered: &mut Load) {
        let Some(group) = self.take_asked(request) else { return };
        if index <= self.applied || mutant!("read-before-applied") {
            self.served += group.readers.len() as u64;
            return group.answer(&Ok(()), answered);
        }
        let at = self.confirmed.partition_point(|(other, _)| *other <= index);
        self.confirmed.insert(at, (index, group));
    }

    pub(crate) fn on_applied(&mut self, upto: Index, answered: &mut Load) {
        self.applied = upto;
        while self.confirmed.front().is_some_and(|(index, _)| *index <= upto)
            && let Some((_, group)) = self.confirmed.pop_front()
        {
            self.served += group.readers.len() as u64;
            group.answer(&Ok(()), answered);
        }
    }

    pub(crate) fn fail(&mut self, request: RequestId, error: &Error, answered: &mut Load) {
        if let Some(group) = self.take_asked(request) {
            group.answer(&Err(error.clone()), answered);
        }
    }

    pub(crate) fn park(&mut self, request: RequestId, leader: Option<&Peer>) {
        if let Some(group) = self.take_asked(request) {
            self.parked.push_back((group, leader.cloned()));
        }
    }

    pub(crate) fn is_waited_for(&self) -> bool {
        !self.asked.is_empty() || !self.confirmed.is_empty() || !self.parked.is_empty()
    }

    pub(crate) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    pub(crate) fn take_parked(&mut self) -> impl Iterator<Item = Group> + use<> {
        std::mem::take(&mut self.parked).into_iter().map(|(group, _)| group)
    }

    pub(crate) fn expire(&mut self, now: Time, answered: &mut Load) {
        let unavailable = Err(Error::Unavailable);
        for (_, group) in take_if(&mut self.asked, |(_, group)| group.deadline <= now) {
            group.answer(&unavailable, answered);
        }
        for (_, group) in take_if(&mut self.confirmed, |(_, group)| group.deadline <= now) {
            group.answer(&unavailable, answered);
        }
        for (group, leader) in take_if(&mut self.parked, |(group, _)| group.deadline <= now) {
            let outcome = if leader.is_some() { Err(Error::NotLeader { leader }) } else { unavailable.clone() };
            group.answer(&outcome, answered);
        }
    }

    pub(crate) fn first_deadline(&self) -> Option<Time> {
        let asked = self.asked.iter().map(|(_, group)| group.deadline);
        let confirmed = self.confirmed.iter().map(|(_, group)| group.deadline);
        let parked = self.parked.iter().map(|(group, _)| group.deadline);
        asked.chain(confirmed).chain(parked).min()
    }

    /// Tells everyone the same.
    pub(crate) fn fail_all(&mut self, error: &Error, answered: &mut Load) {
        let asked = self.asked.drain(..).map(|(_, group)| group);
        let confirmed = self.confirmed.drain(..).map(|(_, group)| group);
        let parked = self.parked.drain(..).map(|(group, _)| group);
        for group in asked.chain(confirmed).chain(parked) {
            group.answer(&Err(error.clone()), answered);
        }
    }
}
