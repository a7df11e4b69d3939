//! A state of the whole cluster, and what may follow it.

use super::bounds::{Bounds, MAX_NODES};
use super::history::History;
use super::marks::{Mark, Marks};
use super::node::{Node, Told};
use super::nodes::{Act, Nodes};
use super::table::mix;

/// One state: a few numbers, so that tens of millions can wait for their turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// The nodes, by number.
    pub(super) nodes: [u32; MAX_NODES],
    pub(super) history: u32,
    pub(super) spent: Spent,
    /// The messages on their way, by number, in order. A set: of two copies, one counts as lost.
    pub(super) flights: Vec<u32>,
}

/// How often each bounded event occurred, four bits each; and whether anybody campaigned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent(u32);

/// The events that are counted.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Count {
    Campaigns = 0,
    Losses = 4,
    Duplicates = 8,
    Crashes = 12,
    Proposals = 16,
    Lapses = 20,
    Reads = 24,
    Changes = 28,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    At {
        node: usize,
        act: Act,
    },
    /// A message comes, but stays on its way.
    Duplicate {
        node: usize,
        flight: u32,
    },
    Lose {
        flight: u32,
    },
}

/// What is wrong in a state that was reached.
#[derive(Debug)]
pub(super) enum Reached {
    Fine,
    /// More messages are on their way than the search allows.
    Beyond,
    Violation(String),
}

impl Spent {
    fn of(self, count: Count) -> u32 {
        self.0 >> count as u8 & 0xf
    }

    fn spend(&mut self, count: Count) {
        self.0 += 1 << count as u8;
    }
}

impl State {
    /// The states that a search begins with: there is one.
    pub(super) fn first(nodes: &mut Nodes) -> Self {
        let mut state = Self::default();
        for node in 0..nodes.bounds.nodes {
            state.nodes[node] = nodes.add(Node::first(&nodes.bounds, node));
        }
        state.history = nodes.add_history(History::default());
        state
    }

    pub(super) fn fingerprint(&self) -> u64 {
        let words = self.nodes.iter().chain([&self.history, &self.spent.0]).chain(&self.flights);
        words.fold(0x9e37_79b9_7f4a_7c15, |hash, word| {
            mix(hash.rotate_left(5) ^ u64::from(*word).wrapping_add(0x9e37_79b9_7f4a_7c15))
        })
    }

    /// For the queue of a search.
    pub(super) fn encode(&self, nodes: usize, words: &mut Vec<u32>) {
        words.push(u32::try_from(self.flights.len()).unwrap_or(u32::MAX));
        words.extend_from_slice(&self.nodes[..nodes]);
        words.extend_from_slice(&[self.history, self.spent.0]);
        words.extend_from_slice(&self.flights);
    }

    /// Reads what `encode` wrote, and tells where the next begins.
    pub(super) fn decode(&mut self, nodes: usize, words: &[u32], at: usize) -> usize {
        let flights = at + 1 + nodes + 2;
        let end = flights + words[at] as usize;
        self.nodes[..nodes].copy_from_slice(&words[at + 1..=at + nodes]);
        self.history = words[flights - 2];
        self.spent = Spent(words[flights - 1]);
        self.flights.clear();
        self.flights.extend_from_slice(&words[flights..end]);
        end
    }

    /// All that may happen next.
    pub(super) fn actions(&self, nodes: &Nodes, actions: &mut Vec<Action>) {
        actions.clear();
        let bounds = &nodes.bounds;
        let spare = |count: Count, most: u32| self.spent.of(count) < most;
        for flight in &self.flights {
            let node = receiver(nodes, *flight);
            actions.push(Action::At { node, act: Act::Deliver(*flight) });
            if spare(Count::Duplicates, bounds.duplicates) {
                actions.push(Action::Duplicate { node, flight: *flight });
            }
            if spare(Count::Losses, bounds.losses) {
                actions.push(Action::Lose { flight: *flight });
            }
        }
        for node in 0..bounds.nodes {
            self.actions_at(nodes, node, actions);
        }
    }

    fn actions_at(&self, nodes: &Nodes, node: usize, actions: &mut Vec<Action>) {
        let (bounds, facts) = (&nodes.bounds, &nodes.facts[self.nodes[node] as usize]);
        let spare = |count: Count, most: u32| self.spent.of(count) < most;
        let mut may = |allowed: bool, act: Act| {
            if allowed {
                actions.push(Action::At { node, act });
            }
        };
        may(facts.writing.is_some(), Act::Stored);
        let campaigns = spare(Count::Campaigns, bounds.campaigns) && self.may_begin(bounds, node);
        may(!facts.leads && campaigns && bounds.may_campaign(node, facts.term), Act::Timeout);
        may(facts.leads && facts.rounds < bounds.heartbeats, Act::Heartbeat);
        may(spare(Count::Lapses, bounds.lapses), Act::Lapse);
        if spare(Count::Crashes, bounds.crashes) {
            may(true, Act::Restart(0));
            for kept in 0..=facts.writing.unwrap_or_default() {
                may(facts.writing.is_some(), Act::Restart(kept + 1));
            }
        }
        // Whoever knows no leader refuses, and nothing changes.
        let accepts = facts.leads || (bounds.forwarding && facts.knows_leader);
        may(accepts && spare(Count::Proposals, bounds.proposals), Act::Propose(self.spent.of(Count::Proposals)));
        may(accepts && spare(Count::Reads, bounds.reads), Act::Read(self.spent.of(Count::Reads)));
        let changes = u32::try_from(bounds.changes.len()).unwrap_or_default();
        may(facts.leads && spare(Count::Changes, changes), Act::Change(self.spent.of(Count::Changes)));
    }

    /// At first all nodes are alike, save for their names. So the first to campaign may as well be n1: a run in which it is another
    /// is the same run under other names.
    fn may_begin(&self, bounds: &Bounds, node: usize) -> bool {
        let alike = bounds.logs.is_empty()
            && bounds.changes.is_empty()
            && bounds.campaigners == u8::MAX
            && bounds.slow_disks == 0;
        node == 0 || !alike || self.spent.of(Count::Campaigns) > 0
    }

    /// Lets something happen.
    pub(super) fn take(&mut self, nodes: &mut Nodes, action: Action, marks: &mut Marks) -> Reached {
        let (node, act) = match action {
            Action::Lose { flight } => {
                self.spent.spend(Count::Losses);
                self.remove(flight);
                marks.set(Mark::LostMessage);
                return Reached::Fine;
            }
            Action::Duplicate { node, flight } => {
                self.spent.spend(Count::Duplicates);
                marks.set(Mark::DuplicatedMessage);
                (node, Act::Deliver(flight))
            }
            Action::At { node, act } => {
                match act {
                    Act::Deliver(flight) => self.remove(flight),
                    Act::Timeout => self.spent.spend(Count::Campaigns),
                    Act::Lapse => self.spent.spend(Count::Lapses),
                    Act::Restart(_) => self.spent.spend(Count::Crashes),
                    Act::Propose(_) => self.spent.spend(Count::Proposals),
                    Act::Read(_) => self.spent.spend(Count::Reads),
                    Act::Change(_) => self.spent.spend(Count::Changes),
                    Act::Heartbeat | Act::Stored => {}
                }
                (node, act)
            }
        };
        let was = self.nodes[node];
        let number = nodes.change(was, act);
        let change = &nodes.changes[number];
        if let Some(violation) = &change.violation {
            return Reached::Violation(violation.to_string());
        }
        self.nodes[node] = change.next;
        marks.add(change.marks);
        self.launch(nodes, number);
        if let Err(violation) = self.judge(nodes, node, was, act, number, marks) {
            return Reached::Violation(violation);
        }
        if self.flights.len() > nodes.bounds.in_flight { Reached::Beyond } else { Reached::Fine }
    }

    fn remove(&mut self, flight: u32) {
        if let Ok(at) = self.flights.binary_search(&flight) {
            self.flights.remove(at);
        }
    }

    /// Sends what is sent, and takes away what nobody needs any more.
    fn launch(&mut self, nodes: &Nodes, change: usize) {
        for flight in &nodes.changes[change].sent {
            if let Err(at) = self.flights.binary_search(flight) {
                self.flights.insert(at, *flight);
            }
        }
        let receivers = self.nodes;
        self.flights.retain(|flight| !nodes.is_void(*flight, receivers[receiver(nodes, *flight)]));
    }

    /// Checks the properties that concern more than one node, and keeps the history.
    fn judge(
        &mut self,
        nodes: &mut Nodes,
        node: usize,
        was: u32,
        act: Act,
        change: usize,
        marks: &mut Marks,
    ) -> Result<(), String> {
        let is = self.nodes[node];
        let (before, after) = (&nodes.facts[was as usize], &nodes.facts[is as usize]);
        let told = &nodes.changes[change].told;
        let elected = after.leads && !(before.leads && before.term == after.term);
        let commits = after.commit > before.commit;
        let stores = after.disk != before.disk;
        let moves = after.durable_term != before.durable_term;
        if after.log != before.log || stores {
            self.compare_logs(nodes, node)?;
        }
        let (restarted, reads) = (matches!(act, Act::Restart(_)), matches!(act, Act::Read(_)));
        if !(elected || commits || stores || moves || reads || restarted) && told.is_empty() {
            return Ok(());
        }
        let mut history = nodes.histories[self.history as usize].clone();
        if restarted {
            history.restarted(node);
        }
        if let Act::Read(number) = act {
            history.read_begins(number, node);
        }
        if elected {
            marks.set(Mark::Elected);
            let late = history.elected(node, after, &nodes.logs)?;
            if late {
                marks.set(Mark::ElectedLate);
            }
            if self.leaders(nodes) > 1 {
                marks.set(Mark::TwoLeaders);
            }
        }
        if commits {
            let new = history.commits(node, after.leads || before.leads, after, &nodes.logs)?;
            self.mark_commits(nodes, node, &new, marks);
        }
        if stores && self.loses_what_a_majority_stored(nodes, node, was) {
            marks.set(Mark::Figure8);
        }
        if moves {
            let terms = self.nodes[..nodes.bounds.nodes].iter().map(|node| nodes.facts[*node as usize].durable_term);
            history.forget_terms_before(terms.min().unwrap_or_default());
        }
        for told in told {
            match told {
                Told::Readable { number, index } => {
                    marks.set(nodes.read_mark(is));
                    history.read_ends(*number, Some(*index))?;
                }
                Told::Unreadable { number } => history.read_ends(*number, None)?,
                Told::Refused { number } => history.refused |= 1 << number,
            }
        }
        if commits || stores {
            let disks = self.nodes[..nodes.bounds.nodes].iter().map(|node| nodes.facts[*node as usize].disk);
            history
                .durable(disks.map(|disk| nodes.logs.get(disk)), |holders| nodes.bounds.is_quorum_of_any(holders))?;
        }
        nodes.check_refused(&history)?;
        self.history = nodes.add_history(history);
        Ok(())
    }

    fn compare_logs(&self, nodes: &Nodes, node: usize) -> Result<(), String> {
        let own = &nodes.facts[self.nodes[node] as usize];
        for other in &self.nodes[..nodes.bounds.nodes] {
            let other = &nodes.facts[*other as usize];
            nodes.logs.match_each_other(own.log, other.log)?;
            nodes.logs.match_each_other(own.log, other.disk)?;
            nodes.logs.match_each_other(own.disk, other.log)?;
            nodes.logs.match_each_other(own.disk, other.disk)?;
        }
        Ok(())
    }

    fn leaders(&self, nodes: &Nodes) -> usize {
        self.nodes[..nodes.bounds.nodes].iter().filter(|node| nodes.facts[**node as usize].leads).count()
    }

    fn mark_commits(&self, nodes: &Nodes, node: usize, new: &[crate::types::LogId], marks: &mut Marks) {
        let term = nodes.facts[self.nodes[node] as usize].term;
        if !new.is_empty() {
            marks.set(Mark::Committed);
        }
        if new.iter().any(|id| id.term.0 < term && id.term.0 > 0) {
            marks.set(Mark::CommittedIndirectly);
        }
        let latest = self.nodes[..nodes.bounds.nodes].iter().map(|node| nodes.facts[*node as usize].term).max();
        if !new.is_empty() && latest.is_some_and(|latest| latest > term) {
            marks.set(Mark::CommittedLate);
        }
    }

    /// Whether the node removed an entry from its disk that a majority of the disks held.
    fn loses_what_a_majority_stored(&self, nodes: &Nodes, node: usize, was: u32) -> bool {
        let log = |node: u32| nodes.logs.get(nodes.facts[node as usize].disk);
        let (before, after) = (log(was), log(self.nodes[node]));
        let removed = before.iter().zip(after).find(|(before, after)| before != after).map(|(before, _)| before);
        removed.is_some_and(|removed| {
            let place = usize::try_from(removed.0.index.prev().0).unwrap_or(usize::MAX);
            let others = (0..nodes.bounds.nodes).filter(|other| *other != node);
            let holders = others.filter(|other| log(self.nodes[*other]).get(place) == Some(removed)).count() + 1;
            holders * 2 > nodes.bounds.nodes
        })
    }
}

/// Which node a message is for.
fn receiver(nodes: &Nodes, flight: u32) -> usize {
    usize::try_from(nodes.flights[flight as usize].to.0 - 1).unwrap_or_default()
}
