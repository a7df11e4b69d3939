//! Clients: they write and read through the handles of all nodes at once, give up when they like, and write down what they
//! were told.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::ledger::{Ledger, Tag};
use super::machine::Machine;
use super::once::InSession;
use super::record::Record;
use super::subject::{OpOf, RetOf, Subject};
use super::world::Leaders;
use crate::config::Config;
use crate::error::Error;
use crate::handle::{Consistency, Raft};
use crate::testing::linearizability::{CallId, History};
use crate::testing::{Random, lock};
use crate::types::{LogId, NodeId};

/// Where clients find a node.
pub(super) struct Desk<S: Subject> {
    pub(super) raft: Raft,
    pub(super) view: Arc<S::View>,
    pub(super) machine: Arc<Machine>,
}

impl<S: Subject> Clone for Desk<S> {
    fn clone(&self) -> Self {
        Self { raft: self.raft.clone(), view: self.view.clone(), machine: self.machine.clone() }
    }
}

/// What all clients share.
pub(super) struct Load<S: Subject> {
    pub(super) subject: Arc<S>,
    pub(super) config: Config,
    pub(super) record: Record,
    pub(super) ledger: Ledger,
    pub(super) desks: Mutex<BTreeMap<NodeId, Desk<S>>>,
    /// Who led which term.
    pub(super) leaders: Leaders,
    pub(super) history: Mutex<History<OpOf<S>, RetOf<S>>>,
    /// Commands that were answered, with the ids that their clients were told.
    pub(super) written: Mutex<Vec<(LogId, Tag)>>,
    /// Nothing more is begun.
    pub(super) closed: AtomicBool,
}

/// One client.
pub(super) struct Client<S: Subject> {
    pub(super) load: Arc<Load<S>>,
    pub(super) random: Random,
    /// Its commands count up from here.
    pub(super) next_tag: u64,
    pub(super) think: Duration,
    pub(super) session: Option<InSession>,
}

/// A call that was begun: what it asks, its place in the history, and its command's name.
pub(super) struct Asked<S: Subject> {
    op: OpOf<S>,
    pub(super) call: CallId,
    pub(super) tag: Tag,
}

impl<S: Subject> Client<S> {
    /// Begins so many operations, one after the other.
    pub(super) async fn work(mut self, operations: u64) {
        for _ in 0..operations {
            sleep(self.random.duration(self.think)).await;
            if self.load.closed.load(Ordering::Relaxed) {
                return;
            }
            self.ask_somebody().await;
        }
    }

    async fn ask_somebody(&mut self) {
        let desks: Vec<NodeId> = lock(&self.load.desks).keys().copied().collect();
        let Some(node) = self.random.pick(&desks) else { return };
        self.ask(node).await;
    }

    /// One operation, or several together, at this node.
    pub(super) async fn ask(&mut self, node: NodeId) {
        let Some(desk) = lock(&self.load.desks).get(&node).cloned() else { return };
        if self.random.percent(10) {
            return self.read_at_least(node, &desk).await;
        }
        let op = self.load.subject.random_op(&mut self.random);
        let give_up = self.random.percent(15).then(|| self.random.duration(Duration::from_millis(300)));
        match self.load.subject.command(&op) {
            None => self.read(node, &desk, op, give_up).await,
            Some(command) => {
                let mut commands = vec![(op, command)];
                while self.random.percent(10) {
                    let op = self.load.subject.random_op(&mut self.random);
                    commands.extend(self.load.subject.command(&op).map(|command| (op, command)));
                }
                if self.random.percent(30)
                    && commands.len() == 1
                    && let Some((op, command)) = commands.pop()
                {
                    return self.write_once(node, desk, op, command).await;
                }
                self.write(node, &desk, commands, give_up).await;
            }
        }
    }

    /// Whether a write and a read at this node are answered.
    pub(super) async fn succeed(&mut self, node: NodeId) -> bool {
        let Some(desk) = lock(&self.load.desks).get(&node).cloned() else { return false };
        for _ in 0..100 {
            let op = self.load.subject.random_op(&mut self.random);
            if let Some(command) = self.load.subject.command(&op) {
                return self.write(node, &desk, vec![(op, command)], None).await
                    && desk.raft.read(Consistency::Linearizable).await.is_ok();
            }
        }
        desk.raft.read(Consistency::Linearizable).await.is_ok()
    }

    pub(super) fn invoke(&mut self, op: OpOf<S>) -> Asked<S> {
        let call = lock(&self.load.history).invoke(op.clone());
        self.next_tag += 1;
        Asked { op, call, tag: Tag(self.next_tag) }
    }

    async fn read(&mut self, node: NodeId, desk: &Desk<S>, op: OpOf<S>, give_up: Option<Duration>) {
        let Asked { op, call, tag } = self.invoke(op);
        let lease = self.load.config.lease_drift.is_some() && self.random.percent(60);
        let consistency = if lease { Consistency::Lease } else { Consistency::Linearizable };
        let asked = desk.raft.read(consistency);
        let answer = self.wait(node, desk, self.load.config.read_timeout, give_up, asked).await;
        if lease && matches!(answer, Some(Ok(()))) {
            self.load.record.hit("reads for which a lease does");
        }
        let mut history = lock(&self.load.history);
        // A read that was not answered has no effect that anyone could see.
        let seen = matches!(answer, Some(Ok(()))).then(|| self.load.subject.try_look(&desk.view, &op)).flatten();
        match seen {
            Some(seen) => history.returned(call, seen),
            None => history.failed(call),
        }
        drop(history);
        self.note(node, tag, "read", &answer.map(|answer| answer.map(drop)));
    }

    /// Asks for a state that reflects what some client was told to have written, just now or long ago.
    async fn read_at_least(&mut self, node: NodeId, desk: &Desk<S>) {
        let written = lock(&self.load.written).clone();
        let recent = written[written.len().saturating_sub(3)..].to_vec();
        let old = self.random.percent(30);
        let Some((id, tag)) = self.random.pick(if old { &written } else { &recent }) else { return };
        let asked = desk.raft.read(Consistency::AtLeast(id));
        let answer = self.wait(node, desk, self.load.config.read_timeout, None, asked).await;
        match &answer {
            Some(Ok(())) if !self.load.ledger.reflects(node, id, tag) => {
                self.load.record.violated(format!("at least: {node} says that it reflects {id}, and does not"));
            }
            Some(Err(Error::NeverCommitted { .. })) => {
                self.load.record.violated(format!("at least: {node} says that {id} was never committed"));
            }
            Some(Ok(()) | Err(_)) | None => {}
        }
        self.note(node, tag, "read at least", &answer);
    }

    async fn write(
        &mut self,
        node: NodeId,
        desk: &Desk<S>,
        commands: Vec<(OpOf<S>, Bytes)>,
        give_up: Option<Duration>,
    ) -> bool {
        let mut asked = Vec::new();
        let mut marked = Vec::new();
        for (op, command) in commands {
            let one = self.invoke(op);
            marked.push(one.tag.mark(&command));
            asked.push(one);
        }
        let together = marked.len() > 1;
        let first = asked.first().map(|one| one.tag);
        let written = async {
            if together {
                return desk.raft.write_many(marked).await;
            }
            match marked.into_iter().next() {
                Some(command) => {
                    let (id, answer) = desk.raft.write_with_id(command).await?;
                    lock(&self.load.written).extend(first.map(|tag| (id, tag)));
                    Ok(vec![answer])
                }
                None => Ok(Vec::new()),
            }
        };
        let answer = self.wait(node, desk, self.load.config.write_timeout, give_up, written).await;
        self.settle(node, &asked, &answer);
        let what = if together { "write many" } else { "write" };
        let answered = matches!(answer, Some(Ok(_)));
        if let Some(first) = first {
            self.note(node, first, what, &answer.map(|answer| answer.map(drop)));
        }
        answered
    }

    /// Writes down what became of a write.
    pub(super) fn settle(&self, node: NodeId, asked: &[Asked<S>], answer: &Option<Result<Vec<Bytes>, Error>>) {
        let load = &self.load;
        let mut history = lock(&load.history);
        match answer {
            Some(Ok(answers)) => {
                if answers.len() != asked.len() {
                    load.record.violated(format!("answers: {} for {} commands", answers.len(), asked.len()));
                }
                for (one, answer) in asked.iter().zip(answers) {
                    history.returned(one.call, load.subject.answer(&one.op, answer));
                }
                let told: Vec<_> = asked.iter().map(|one| one.tag).zip(answers.iter().cloned()).collect();
                load.ledger.answered(node, &told);
            }
            Some(Err(
                Error::NotLeader { .. } | Error::Unavailable | Error::Overloaded | Error::Lost | Error::TooLarge { .. },
            )) => {
                for one in asked {
                    history.failed(one.call);
                    load.ledger.refused(one.tag);
                }
            }
            Some(Err(error @ (Error::NeverCommitted { .. } | Error::Compacted { .. }))) => {
                load.record.violated(format!("answers: {node} answers a write as if it were a read: {error}"));
            }
            // It may still happen.
            Some(Err(Error::OutcomeUnknown | Error::Stopped(_))) | None => {}
            Some(Err(error @ (Error::SessionExpired | Error::AnswerForgotten | Error::OutOfSequence))) => {
                load.record.violated(format!("answers: {error}, to a write without a session"));
            }
        }
    }

    /// Waits for an answer, until the client gives up. No answer by the time at which there must be one is a violation.
    pub(super) async fn wait<T, E>(
        &self,
        node: NodeId,
        desk: &Desk<S>,
        limit: Duration,
        give_up: Option<Duration>,
        asked: impl Future<Output = Result<T, E>>,
    ) -> Option<Result<T, E>> {
        tokio::pin!(asked);
        if let Some(give_up) = give_up {
            return timeout(give_up, asked).await.ok();
        }
        let (began, stood) = (Instant::now(), desk.machine.stood());
        loop {
            // A slow clock takes longer, and a machine that stands still answers nobody.
            let allowed = limit * 3 / 2 + Duration::from_secs(1) + (desk.machine.stood() - stood);
            let left = allowed.saturating_sub(began.elapsed());
            if left.is_zero() {
                self.load.record.violated(format!("no answer: a call at {node} hangs since {:?}", began.elapsed()));
                return None;
            }
            if let Ok(answer) = timeout(left, &mut asked).await {
                return Some(answer);
            }
        }
    }

    fn note(&self, node: NodeId, tag: Tag, what: &str, answer: &Option<Result<(), Error>>) {
        let (class, text) = match answer {
            None => ("calls given up by the client", "given up"),
            Some(Ok(())) if what == "read" => ("reads answered", "ok"),
            Some(Ok(())) if what == "read at least" => ("reads that reflect an entry", "ok"),
            Some(Ok(())) => ("writes answered", "ok"),
            Some(Err(Error::NotLeader { .. })) => ("answer NotLeader", "not the leader"),
            Some(Err(Error::Unavailable)) => ("answer Unavailable", "unavailable"),
            Some(Err(Error::Overloaded)) => ("answer Overloaded", "overloaded"),
            Some(Err(Error::Lost)) => ("answer Lost", "lost"),
            Some(Err(Error::OutcomeUnknown)) => ("answer OutcomeUnknown", "unknown"),
            Some(Err(Error::Stopped(_))) => ("answer Stopped", "stopped"),
            Some(Err(Error::TooLarge { .. })) => ("answer TooLarge", "too large"),
            Some(Err(Error::NeverCommitted { .. })) => ("answer NeverCommitted", "never committed"),
            Some(Err(Error::Compacted { .. })) => ("answer Compacted", "cut off"),
            Some(Err(Error::SessionExpired | Error::AnswerForgotten | Error::OutOfSequence)) => {
                ("answers for sessions", "session")
            }
        };
        self.load.record.hit(class);
        if matches!(answer, Some(Ok(())))
            && what != "read at least"
            && lock(&self.load.leaders).last_key_value().is_some_and(|(_, leader)| *leader != node)
        {
            let read = what == "read";
            self.load.record.hit(if read { "reads answered by followers" } else { "writes forwarded by followers" });
        }
        self.load.record.node(node, format!("client's {what} {:x}: {text}", tag.0));
    }
}
