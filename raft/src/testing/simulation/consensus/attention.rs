//! Whom a leader hears and what it sent since, as the links saw it: a leader's own account of both may be wrong.

use std::collections::BTreeMap;

use crate::config::Config;
use crate::consensus::Time;
use crate::message::{Body, Message};
use crate::types::{NodeId, Term};

/// What went between nodes, each time in the newest term.
#[derive(Debug, Default)]
pub(crate) struct Attention {
    /// When each node took something in from each other one that was in this term.
    heard: BTreeMap<(NodeId, NodeId), (Term, Time)>,
    /// The appends that each node sent to each other one since it heard it: how many, and their cost.
    ahead: BTreeMap<(NodeId, NodeId), (Term, usize, u64)>,
}

impl Attention {
    /// A node took a message in.
    pub(crate) fn hears(&mut self, id: NodeId, from: NodeId, term: Term, now: Time) {
        self.heard.insert((id, from), (term, now));
        self.ahead.remove(&(id, from));
    }

    /// A node has other members: it begins anew with one that was gone and came back.
    pub(crate) fn members_change(&mut self, id: NodeId) {
        self.ahead.retain(|(from, _), _| *from != id);
    }

    /// When a node last heard another one in this term.
    pub(crate) fn last_heard(&self, id: NodeId, from: NodeId, term: Term) -> Option<Time> {
        self.heard.get(&(id, from)).filter(|(of, _)| *of == term).map(|(_, at)| *at)
    }

    /// A leader sends ahead within its window: without a word from the other one, nothing of the window becomes free.
    pub(crate) fn sends(&mut self, config: &Config, id: NodeId, to: NodeId, message: &Message) -> Result<(), String> {
        if !matches!(message.body, Body::Append { .. }) {
            return Ok(());
        }
        let (term, count, bytes) = self.ahead.entry((id, to)).or_insert((message.term, 0, 0));
        if *term != message.term {
            (*term, *count, *bytes) = (message.term, 0, 0);
        }
        // One passes alone, however large.
        if *count > 0 && (*count >= config.max_inflight_appends || *bytes >= config.max_inflight_bytes) {
            return Err(format!(
                "bounded queues: {id} sends {to} another append after {count} of {bytes} bytes, unanswered"
            ));
        }
        (*count, *bytes) = (*count + 1, *bytes + message.cost());
        Ok(())
    }
}
