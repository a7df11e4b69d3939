//! Messages on their way between the nodes of a cluster.

use std::collections::BTreeSet;

use super::classes;
use super::cluster::Cluster;
use super::show;
use crate::consensus::Input;
use crate::message::{Body, Message};
use crate::testing::simulation::TraceEvent;
use crate::types::NodeId;

/// A cluster that is not quiet after this many deliveries never will be.
const MAX_DELIVERIES: usize = 100_000;

impl Cluster {
    /// Takes a message off a link and hands it over. A node that is down gets nothing.
    pub(crate) fn deliver(&mut self, from: NodeId, to: NodeId, place: usize) -> Result<(), String> {
        let Some(message) = self.links.get_mut(&(from, to)).and_then(|queue| queue.remove(place)) else {
            return Ok(());
        };
        self.arrive(from, to, message)
    }

    /// Takes a message off a link and hands it over, but leaves what follows for the node's next step.
    pub(crate) fn deliver_only(&mut self, from: NodeId, to: NodeId, place: usize) -> Result<(), String> {
        let Some(message) = self.links.get_mut(&(from, to)).and_then(|queue| queue.remove(place)) else {
            return Ok(());
        };
        if self.node(to)?.core.is_none() {
            return Ok(());
        }
        self.arrive_only(from, to, message)
    }

    pub(crate) fn arrive_only(&mut self, from: NodeId, to: NodeId, message: Message) -> Result<(), String> {
        self.came(from, to, &message, ", more comes");
        self.receive(from, to, message)
    }

    pub(crate) fn arrive(&mut self, from: NodeId, to: NodeId, message: Message) -> Result<(), String> {
        if self.node(to)?.core.is_none() {
            self.note_down(|| format!("{to} <- {from} {} ... lost", message.name()));
            self.lose(from, to, &message);
            return Ok(());
        }
        self.came(from, to, &message, "");
        self.receive(from, to, message)?;
        self.drain(to)
    }

    fn receive(&mut self, from: NodeId, to: NodeId, message: Message) -> Result<(), String> {
        let (core, now) = self.node(to)?.core()?;
        let (leads, term, before) = (classes::is_of_a_leader(&message), message.term, core.term());
        // One that the leader itself wants is no disturbance; that it does is checked where it is sent.
        let campaign = matches!(message.body, Body::PreVote { .. } | Body::Vote { transfer: false, .. });
        if let Body::PreVote { proposed, .. } = message.body {
            self.checker.polled(to, from, proposed, before, now);
        }
        let (core, now) = self.node(to)?.core()?;
        core.step(now, Input::Receive { from, message });
        let after = core.term();
        let heard = leads && core.leader() == Some(from) && after == term;
        if after == term {
            self.checker.reached(to, from, term, now);
        }
        self.checker.heard(to, heard.then_some((term, now)));
        if campaign {
            self.checker.campaigned(to, before, after, now)?;
        }
        Ok(())
    }

    /// Delivers everything between the nodes given, or all, until nothing is on its way any more.
    pub(crate) fn stabilize(&mut self, only: Option<&BTreeSet<NodeId>>) -> Result<(), String> {
        let mut delivered = 0;
        loop {
            let within = |id: &NodeId| only.is_none_or(|only| only.contains(id));
            let open: Vec<_> = self
                .links
                .iter()
                .filter(|(link, queue)| {
                    !queue.is_empty() && !self.cut.contains(link) && within(&link.0) && within(&link.1)
                })
                .map(|(link, queue)| (*link, queue.len()))
                .collect();
            if open.is_empty() {
                return Ok(());
            }
            for ((from, to), count) in open {
                for _ in 0..count {
                    self.deliver(from, to, 0)?;
                }
                delivered += count;
            }
            if delivered > MAX_DELIVERIES {
                return Err(format!("the cluster is not quiet after {delivered} deliveries"));
            }
        }
    }

    fn came(&mut self, from: NodeId, to: NodeId, message: &Message, more: &str) {
        self.note_down(|| format!("{to} <- {from} {}{more}", message.name()));
        let what = (from.0, to.0, message.name(), message.cost(), message.term);
        self.trace.step(self.at, what, || TraceEvent::Delivered { from, to, text: show::message(message) });
    }

    /// A message is lost.
    pub(crate) fn lose(&mut self, from: NodeId, to: NodeId, message: &Message) {
        self.trace.step(self.at, (from.0, to.0), || TraceEvent::Dropped { from, to, text: show::message(message) });
    }
}
