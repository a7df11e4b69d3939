//! What clients ask for and what they are told: the bookkeeping of a runtime, without its threads.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::cluster::Cluster;
use super::show;
use crate::consensus::{Input, RefusedReason, Reply};
use crate::message::RequestId;
use crate::types::{Index, LogId, Membership, NodeId, Term};

/// The requests at one node that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Batches that were handed over.
    pub(super) asked: BTreeMap<RequestId, Vec<Bytes>>,
    /// Requests that nobody waits for any more.
    pub(super) timed_out: BTreeSet<RequestId>,
    /// Commands that are in the log of a leader, by their place there.
    pub(super) appended: BTreeMap<(Index, Term), (RequestId, Bytes)>,
    /// Reads, with the index that they must cover.
    pub(super) reads: BTreeMap<RequestId, Index>,
    /// Reads that wait for the state machine to reach an index.
    pub(super) readable: BTreeMap<RequestId, Index>,
    pub(super) initializing: BTreeSet<RequestId>,
}

impl Cluster {
    fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// Prepares a proposal; to be stepped.
    pub(super) fn propose(&mut self, id: NodeId, commands: Vec<Bytes>) -> Result<Input, String> {
        let request = self.next_request();
        for command in &commands {
            self.checker.proposed(command);
        }
        self.node(id)?.clients.asked.insert(request, commands.clone());
        Ok(Input::Propose { request, commands })
    }

    /// Prepares a read; to be stepped.
    pub(super) fn read(&mut self, id: NodeId) -> Result<Input, String> {
        let (request, floor) = (self.next_request(), self.checker.visible());
        self.node(id)?.clients.reads.insert(request, floor);
        Ok(Input::Read { request })
    }

    pub(super) fn initialize(&mut self, id: NodeId, membership: Membership) -> Result<Input, String> {
        let request = self.next_request();
        self.node(id)?.clients.initializing.insert(request);
        Ok(Input::Initialize { request, membership })
    }

    pub(super) fn reply(&mut self, id: NodeId, reply: Reply) -> Result<(), String> {
        self.say(|| format!("{id} {}", show::reply(&reply)));
        let unasked = || format!("{id} answers what nobody asked: {reply:?}");
        let clients = &mut self.node(id)?.clients;
        match &reply {
            Reply::Appended { request, first } => {
                if clients.timed_out.remove(request) {
                    return Ok(());
                }
                let commands = clients.asked.remove(request).ok_or_else(unasked)?;
                for (n, command) in commands.into_iter().enumerate() {
                    let at = LogId { term: first.term, index: first.index.plus(n as u64) };
                    if let Some(other) = clients.appended.insert((at.index, at.term), (*request, command)) {
                        return Err(format!("{id} gives {at} to r{} and to r{}", request.0, other.0.0));
                    }
                }
                let known: Vec<_> = self.nodes[&id].applied.range(first.index..).map(|(_, at)| *at).collect();
                known.into_iter().try_for_each(|at| self.settle(id, at))
            }
            Reply::Refused { request, reason: RefusedReason::NotLeader { .. } | RefusedReason::Overloaded } => {
                if clients.reads.remove(request).is_some() || clients.timed_out.remove(request) {
                    return Ok(());
                }
                let commands = clients.asked.remove(request).ok_or_else(unasked)?;
                commands.iter().try_for_each(|command| self.checker.denied(command))
            }
            Reply::Unknown { request } if clients.timed_out.remove(request) => Ok(()),
            Reply::Unknown { request } => clients.asked.remove(request).map(drop).ok_or_else(unasked),
            Reply::Readable { request, index } => {
                let (request, index) = (*request, *index);
                let floor = clients.reads.remove(&request).ok_or_else(unasked)?;
                if index < floor {
                    return Err(format!("a read at {id} gets {index}, but {floor} was visible when it came"));
                }
                let applied = self.nodes[&id].applied.last_key_value().map_or(Index::ZERO, |(index, _)| *index);
                if index > applied {
                    self.node(id)?.clients.readable.insert(request, index);
                }
                Ok(())
            }
            Reply::Initialized { request, .. } => {
                if clients.initializing.remove(request) {
                    Ok(())
                } else {
                    Err(unasked())
                }
            }
        }
    }

    /// An entry was applied at a node: whoever waits for its place learns the outcome. So does whoever waits for a later place
    /// in an earlier term: terms never go back along a log, so that nothing of that term follows any more.
    pub(super) fn settle(&mut self, id: NodeId, at: LogId) -> Result<(), String> {
        let appended = &mut self.node(id)?.clients.appended;
        let settled: Vec<_> = appended
            .range((at.index, Term(0))..)
            .filter(|((index, term), _)| *index == at.index || *term < at.term)
            .map(|(place, waiter)| (*place, waiter.clone()))
            .collect();
        for (place, (request, command)) in settled {
            self.node(id)?.clients.appended.remove(&place);
            if place == (at.index, at.term) {
                self.say(|| format!("{id} answers r{} ok", request.0));
                continue;
            }
            self.say(|| format!("{id} answers r{} lost, {at} is there", request.0));
            self.checker.denied(&command)?;
        }
        Ok(())
    }
}
