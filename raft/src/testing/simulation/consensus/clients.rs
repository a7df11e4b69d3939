//! What clients ask for and what they are told: the bookkeeping of a runtime, without its threads.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::classes;
use super::cluster::Cluster;
use super::show;
use crate::consensus::{Input, RefusedReason, Reply};
use crate::message::RequestId;
use crate::types::{Entry, EntryKind, Index, LogId, Membership, NodeId, Term};

/// The requests at one node that wait for an answer.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// Batches that were handed over.
    pub(crate) asked: BTreeMap<RequestId, Vec<Bytes>>,
    /// Of these, the batches of a leader's own clients.
    pub(crate) at_leader: BTreeSet<RequestId>,
    /// Requests that nobody waits for any more.
    pub(crate) timed_out: BTreeSet<RequestId>,
    /// Commands that are in the log of a leader, by their place there.
    pub(crate) appended: BTreeMap<(Index, Term), (RequestId, Bytes)>,
    /// Reads, with the index that they must cover.
    pub(crate) reads: BTreeMap<RequestId, Index>,
    /// Reads that wait for the state machine to reach an index.
    pub(crate) readable: BTreeMap<RequestId, Index>,
    pub(crate) initializing: BTreeSet<RequestId>,
    pub(crate) changing: BTreeSet<RequestId>,
    /// Images asked for, with the index that each must reflect.
    pub(crate) snapshots: BTreeMap<RequestId, Index>,
    /// The configurations that changes were meant for.
    pub(crate) expecting: BTreeMap<RequestId, LogId>,
    pub(crate) transfers: BTreeSet<RequestId>,
}

impl Clients {
    /// A leader's own clients are told what becomes of a batch.
    fn decided(&mut self, reply: &Reply) {
        if let Reply::Appended { request, .. } | Reply::Refused { request, .. } | Reply::Returned { request, .. } =
            reply
        {
            self.at_leader.remove(request);
        }
    }
}

impl Cluster {
    fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// Prepares a proposal; to be stepped.
    pub(crate) fn propose(&mut self, id: NodeId, kind: EntryKind, commands: Vec<Bytes>) -> Result<Input, String> {
        let request = self.next_request();
        for command in &commands {
            self.checker.proposed(command);
        }
        let node = self.node(id)?;
        if node.core.as_ref().is_some_and(|core| core.leader() == Some(id)) {
            node.clients.at_leader.insert(request);
        }
        node.clients.asked.insert(request, commands.clone());
        Ok(Input::Propose { request, kind, commands })
    }

    /// Prepares a read, for which a lease may do; to be stepped.
    pub(crate) fn read(&mut self, id: NodeId, lease: bool) -> Result<Input, String> {
        let (request, floor) = (self.next_request(), self.checker.visible());
        self.node(id)?.clients.reads.insert(request, floor);
        Ok(Input::Read { request, lease })
    }

    pub(crate) fn initialize(&mut self, id: NodeId, membership: Membership) -> Result<Input, String> {
        let request = self.next_request();
        self.node(id)?.clients.initializing.insert(request);
        Ok(Input::Initialize { request, membership })
    }

    #[cfg(test)]
    pub(crate) fn snapshot(&mut self, id: NodeId) -> Result<Input, String> {
        let request = self.next_request();
        let node = self.node(id)?;
        let (core, now) = node.core()?;
        let applied = core.status(now).applied;
        node.clients.snapshots.insert(request, applied);
        Ok(Input::Snapshot { request })
    }

    /// Prepares a change of the configuration; to be stepped.
    pub(crate) fn change(&mut self, id: NodeId, change: crate::change::Change) -> Result<Input, String> {
        let request = self.next_request();
        let clients = &mut self.node(id)?.clients;
        clients.changing.insert(request);
        clients.expecting.extend(change.expected.map(|expected| (request, expected)));
        Ok(Input::Change { request, change })
    }

    /// Prepares a transfer of leadership; to be stepped.
    pub(crate) fn transfer(&mut self, id: NodeId, to: Option<NodeId>) -> Result<Input, String> {
        let request = self.next_request();
        self.node(id)?.clients.transfers.insert(request);
        Ok(Input::Transfer { request, to })
    }

    /// A leader answers its own clients at once, unless it holds them back while it hands over.
    pub(crate) fn check_held(&self, id: NodeId, hands_over: bool) -> Result<(), String> {
        let waiting = self.nodes.get(&id).and_then(|node| node.clients.at_leader.first());
        match waiting {
            Some(request) if !hands_over => Err(format!("hanging: {id} gives no answer to r{}", request.0)),
            Some(_) | None => Ok(()),
        }
    }

    fn initialized(&self, id: NodeId, done: bool) -> Result<(), String> {
        if done && self.nodes[&id].ends_at() == Index::ZERO {
            return Err(format!("durability: {id} says that it is started, and its disk is empty"));
        }
        Ok(())
    }

    /// A client's read was served.
    pub(crate) fn serve(&mut self, request: RequestId) {
        self.coverage.hit("reads confirmed");
        self.served.insert(request);
    }

    pub(crate) fn reply(&mut self, id: NodeId, reply: Reply) -> Result<(), String> {
        self.say(id, || show::reply(&reply));
        let unasked = || format!("answers: {id} answers what nobody asked: {reply:?}");
        let is_read = |request| self.nodes.get(&id).is_some_and(|node| node.clients.reads.contains_key(&request));
        let is_read = matches!(&reply, Reply::Refused { request, .. } if is_read(*request));
        classes::replied(&mut self.coverage, &reply, is_read);
        let clients = &mut self.node(id)?.clients;
        clients.decided(&reply);
        match &reply {
            Reply::Appended { request, first } => {
                if clients.timed_out.remove(request) {
                    return Ok(());
                }
                let commands = clients.asked.remove(request).ok_or_else(unasked)?;
                for (n, command) in commands.into_iter().enumerate() {
                    let at = LogId { term: first.term, index: first.index.plus(n as u64) };
                    if let Some(other) = clients.appended.insert((at.index, at.term), (*request, command)) {
                        return Err(format!("answers: {id} gives {at} to r{} and to r{}", request.0, other.0.0));
                    }
                }
                self.forget_covered(id)?;
                let known: Vec<_> = self.nodes[&id].applied.range(first.index..).map(|(_, at)| *at).collect();
                let known = known.into_iter().filter_map(|at| self.checker.applied_at(at.index).cloned());
                known.collect::<Vec<_>>().into_iter().try_for_each(|entry| self.settle(id, &entry))
            }
            Reply::Refused {
                request,
                reason: RefusedReason::NotLeader { .. } | RefusedReason::Overloaded | RefusedReason::Moved,
            }
            | Reply::Returned { request, commands: _ } => {
                let settled = clients.reads.remove(request).is_some() || clients.changing.remove(request);
                if settled || clients.timed_out.remove(request) {
                    return Ok(());
                }
                let commands = clients.asked.remove(request).ok_or_else(unasked)?;
                commands.iter().try_for_each(|command| self.checker.denied(command))
            }
            Reply::Unknown { request } if clients.timed_out.remove(request) => Ok(()),
            Reply::Unknown { request } if clients.changing.remove(request) => {
                self.coverage.hit("changes with an unknown outcome");
                Ok(())
            }
            Reply::Changed { request, outcome }
                if clients.changing.remove(request) || clients.timed_out.remove(request) =>
            {
                let expected = clients.expecting.remove(request).zip(outcome.as_ref().ok());
                expected.map_or(Ok(()), |(expected, new)| self.checker.changed(expected, *new))
            }
            Reply::Unknown { request } => clients.asked.remove(request).map(drop).ok_or_else(unasked),
            Reply::Readable { request, index } => {
                let (request, index) = (*request, *index);
                let floor = clients.reads.remove(&request).ok_or_else(unasked)?;
                if index < floor {
                    return Err(format!(
                        "stale read: a read at {id} gets {index}, but {floor} was visible when it came"
                    ));
                }
                let applied = self.nodes[&id].applied.last_key_value().map_or(Index::ZERO, |(index, _)| *index);
                if index > applied {
                    self.node(id)?.clients.readable.insert(request, index);
                } else {
                    self.serve(request);
                }
                Ok(())
            }
            Reply::Snapshotted { request, last } => {
                let wanted = clients.snapshots.remove(request).filter(|wanted| *wanted <= last.index);
                wanted.map(drop).ok_or_else(unasked)
            }
            Reply::Transferred { request, outcome: _ } if clients.transfers.remove(request) => Ok(()),
            Reply::Initialized { request, outcome } if clients.initializing.remove(request) => {
                self.initialized(id, outcome.is_ok())
            }
            Reply::Changed { .. } | Reply::Transferred { .. } | Reply::Initialized { .. } => Err(unasked()),
        }
    }

    /// What an image brought is not applied one by one: whoever waits for the outcome there will not learn it here. Nothing of an earlier
    /// term follows.
    pub(crate) fn forget_covered(&mut self, id: NodeId) -> Result<(), String> {
        let node = self.node(id)?;
        let covered = node.covered;
        let appended = &mut node.clients.appended;
        let before = appended.len();
        appended.retain(|(index, _), _| *index > covered.index);
        let forgotten = before - appended.len();
        let lost: Vec<_> =
            appended.iter().filter(|((_, term), _)| *term < covered.term).map(|(at, w)| (*at, w.clone())).collect();
        appended.retain(|(_, term), _| *term >= covered.term);
        self.coverage.add("writes whose outcome an image covers", forgotten as u64);
        for (_, (request, command)) in lost {
            self.say(id, || format!("answers r{} lost, the image of {covered} is there", request.0));
            self.checker.denied(&command)?;
        }
        Ok(())
    }

    /// The state machine has reached an index: reads that wait for it are served.
    pub(crate) fn serve_upto(&mut self, id: NodeId, index: Index) -> Result<(), String> {
        let readable = &mut self.node(id)?.clients.readable;
        let ready: Vec<_> =
            readable.iter().filter(|(_, wanted)| **wanted <= index).map(|(request, _)| *request).collect();
        readable.retain(|_, wanted| *wanted > index);
        for request in ready {
            self.serve(request);
            self.say(id, || format!("serves r{}", request.0));
        }
        Ok(())
    }

    /// An entry was applied at a node: whoever waits for its place learns the outcome. So does whoever waits for a later place
    /// in an earlier term: terms never go back along a log, so that nothing of that term follows any more.
    pub(crate) fn settle(&mut self, id: NodeId, entry: &Entry) -> Result<(), String> {
        let at = entry.id;
        let appended = &mut self.node(id)?.clients.appended;
        let settled: Vec<_> = appended
            .range((at.index, Term(0))..)
            .filter(|((index, term), _)| *index == at.index || *term < at.term)
            .map(|(place, waiter)| (*place, waiter.clone()))
            .collect();
        for (place, (request, command)) in settled {
            self.node(id)?.clients.appended.remove(&place);
            if place == (at.index, at.term) {
                if command != entry.data {
                    return Err(format!("outcomes: {id} answers r{}, {command:?}, but {entry:?} is there", request.0));
                }
                self.coverage.hit("writes answered");
                self.say(id, || format!("answers r{} ok", request.0));
                continue;
            }
            self.coverage.hit("writes proven lost");
            self.say(id, || format!("answers r{} lost, {at} is there", request.0));
            self.checker.denied(&command)?;
        }
        Ok(())
    }
}
