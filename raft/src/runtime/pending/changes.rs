//! Changes of the configuration: from the request to the answer.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::take_if;
use crate::change::{Change, ChangeRefused};
use crate::consensus::Time;
use crate::error::{ChangeError, Fatal};
use crate::message::RequestId;
use crate::types::LogId;

pub(crate) type ChangeAnswer = oneshot::Sender<Result<LogId, ChangeError>>;

/// Somebody who waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) change: Change,
    pub(crate) deadline: Time,
    pub(crate) answer: ChangeAnswer,
}

/// All changes in progress; few, for a leader makes one at a time.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// With the core, here or at the leader.
    submitted: VecDeque<(RequestId, Waiter)>,
    /// Nothing was changed: they wait for a leader that is ready.
    parked: VecDeque<Waiter>,
}

impl Changes {
    pub(crate) fn submit(&mut self, request: RequestId, waiter: Waiter) {
        self.submitted.push_back((request, waiter));
    }

    fn take(&mut self, request: RequestId) -> Option<Waiter> {
        let at = self.submitted.iter().position(|(id, _)| *id == request)?;
        self.submitted.remove(at).map(|(_, waiter)| waiter)
    }

    /// The core's answer. True if the change now waits for a leader that is ready.
    pub(crate) fn on_changed(&mut self, request: RequestId, outcome: Result<LogId, ChangeRefused>) -> bool {
        let Some(waiter) = self.take(request) else { return false };
        if outcome == Err(ChangeRefused::NotReady) {
            self.parked.push_back(waiter);
            return true;
        }
        let _ = waiter.answer.send(outcome.map_err(ChangeError::Refused));
        false
    }

    pub(crate) fn park(&mut self, request: RequestId) {
        let waiter = self.take(request);
        self.parked.extend(waiter);
    }

    pub(crate) fn fail(&mut self, request: RequestId, error: ChangeError) {
        if let Some(waiter) = self.take(request) {
            let _ = waiter.answer.send(Err(error));
        }
    }

    pub(crate) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    pub(crate) fn take_parked(&mut self) -> VecDeque<Waiter> {
        std::mem::take(&mut self.parked)
    }

    /// Answers those whose time is over.
    pub(crate) fn expire(&mut self, now: Time) {
        for (_, waiter) in take_if(&mut self.submitted, |(_, waiter)| waiter.deadline <= now) {
            let _ = waiter.answer.send(Err(ChangeError::OutcomeUnknown));
        }
        for waiter in take_if(&mut self.parked, |waiter| waiter.deadline <= now) {
            let _ = waiter.answer.send(Err(ChangeError::Unavailable));
        }
    }

    pub(crate) fn first_deadline(&self) -> Option<Time> {
        self.submitted.iter().map(|(_, waiter)| waiter).chain(&self.parked).map(|waiter| waiter.deadline).min()
    }

    pub(crate) fn stop(&mut self, fatal: &Fatal) {
        let submitted = self.submitted.drain(..).map(|(_, waiter)| waiter);
        for waiter in submitted.chain(self.parked.drain(..)) {
            let _ = waiter.answer.send(Err(ChangeError::Stopped(fatal.clone())));
        }
    }
}
