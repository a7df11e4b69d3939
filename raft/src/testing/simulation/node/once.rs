//! Clients with a session: they send a write again, to whichever nodes, until they know what became of it or lose patience.

use bytes::Bytes;

use super::load::{Client, Desk};
use super::subject::{OpOf, Subject};
use crate::error::Error;
use crate::session::{Once, SessionId};
use crate::testing::lock;
use crate::types::NodeId;

/// How often a client sends a write at most.
const ATTEMPTS: u64 = 8;

/// A client's session.
#[derive(Clone, Copy, Debug)]
pub(super) struct InSession {
    id: SessionId,
    /// The number of its next write.
    next: u64,
}

impl<S: Subject> Client<S> {
    fn somewhere(&mut self) -> Option<(NodeId, Desk<S>)> {
        let desks: Vec<_> = lock(&self.load.desks).iter().map(|(id, desk)| (*id, desk.clone())).collect();
        let at = usize::try_from(self.random.below(desks.len() as u64)).unwrap_or(0);
        desks.into_iter().nth(at)
    }

    /// The session, opened if need be; none if it was not opened.
    async fn session(&mut self, node: NodeId, desk: &Desk<S>) -> Option<InSession> {
        if self.session.is_none() {
            let asked = desk.raft.open_session();
            let id = self.wait(node, desk, self.load.config.write_timeout, None, asked).await?.ok()?;
            self.load.record.hit("sessions opened");
            self.session = Some(InSession { id, next: 0 });
        }
        self.session
    }

    /// A write that is to take effect once, begun at this node. Once it is tried elsewhere, it holds on to this one no longer: a node of which others let
    /// go has to end.
    pub(super) async fn write_once(&mut self, node: NodeId, desk: Desk<S>, op: OpOf<S>, command: Bytes) {
        let Some(session) = self.session(node, &desk).await else { return };
        self.session = Some(InSession { next: session.next + 1, ..session });
        let once = Once { session: session.id, sequence: session.next, answered: session.next };
        let asked = self.invoke(op);
        let marked = asked.tag.mark(&command);
        let (mut at, mut uncertain) = (Some((node, desk)), false);
        for _ in 0..ATTEMPTS {
            let Some((node, desk)) = at.take() else { break };
            match self.attempt(node, &desk, once, &marked).await {
                Some(Ok(answer)) => {
                    let answered = Some(Ok(vec![answer.clone()]));
                    self.settle(node, std::slice::from_ref(&asked), &answered);
                    if self.random.percent(30) {
                        self.send_again(once, &marked, &answer).await;
                    }
                    return;
                }
                Some(Err(Error::SessionExpired)) => {
                    self.load.record.hit("sessions expired");
                    self.session = None;
                    break;
                }
                Some(Err(Error::AnswerForgotten)) => {
                    self.load.record.hit("answers forgotten");
                    return self.load.ledger.told(asked.tag);
                }
                Some(Err(
                    error @ (Error::OutOfSequence
                    | Error::TooLarge { .. }
                    | Error::NeverCommitted { .. }
                    | Error::Compacted { .. }),
                )) => {
                    return self.load.record.violated(format!("{node} does not take write {once:?}: {error}"));
                }
                Some(Err(Error::NotLeader { .. } | Error::Unavailable | Error::Overloaded | Error::Lost)) => {}
                Some(Err(Error::OutcomeUnknown | Error::Stopped(_))) | None => uncertain = true,
            }
            if self.load.closed.load(std::sync::atomic::Ordering::Relaxed) {
                break;
            }
            let pause = self.random.duration(self.think);
            tokio::time::sleep(pause).await;
            at = self.somewhere();
        }
        if !uncertain {
            lock(&self.load.history).failed(asked.call);
            self.load.ledger.refused(asked.tag);
        }
    }

    async fn attempt(
        &mut self,
        node: NodeId,
        desk: &Desk<S>,
        once: Once,
        marked: &Bytes,
    ) -> Option<Result<Bytes, Error>> {
        let give_up = self.random.percent(30).then(|| self.random.duration(std::time::Duration::from_millis(200)));
        let asked = desk.raft.write_once(once, marked.clone());
        let answer = self.wait(node, desk, self.load.config.write_timeout, give_up, asked).await;
        let text = match &answer {
            Some(Ok(_)) => "ok".into(),
            Some(Err(error)) => error.to_string(),
            None => "given up".into(),
        };
        self.load.record.node(node, format!("client's write {once:?}: {text}"));
        answer
    }

    /// A late repetition of a write that was answered gets the same answer, if any.
    async fn send_again(&mut self, once: Once, marked: &Bytes, first: &Bytes) {
        let Some((node, desk)) = self.somewhere() else { return };
        match self.attempt(node, &desk, once, marked).await {
            Some(Ok(again)) if again == *first => self.load.record.hit("repetitions answered from memory"),
            Some(Ok(again)) => {
                let what = format!("{node} answers {once:?} with {again:?}, and {first:?} was the first answer");
                self.load.record.violated(what);
            }
            Some(Err(error @ Error::OutOfSequence)) => {
                self.load.record.violated(format!("{node} does not know {once:?}: {error}"));
            }
            Some(Err(_)) | None => {}
        }
    }
}
