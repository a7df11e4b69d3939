//! The loop around the core: receive → step → dispatch.
//!
//! Whatever has come since the last round goes through the core together, and its effects are collected once: that is
//! where batches come from. Nothing here waits for anything but the next thing to happen.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::applier::{Done, Entries, Job, Outcome};
use super::busy::{BusyPoll, Wait};
use super::clock::Clock;
use super::deferred::Deferred;
use super::events::{Event, Stall};
use super::fetcher::{Fetched, Fetcher, InVain};
use super::images::{self, Images};
use super::inbox::{Arrival, Arrivals, Batch};
use super::intake::Request;
use super::lateness::{Late, Lateness};
use super::leaving::Leaving;
use super::log_writer::LogWriter;
use super::mailbox::Mailbox;
use super::meter::{self, Meter};
use super::outbox::Outbox;
use super::panic_text;
use super::pending::{Pending, Results};
use super::shared::{Control, Shared};
use super::snapshotter::{Snapshotter, Written};
use crate::config::Config;
use crate::consensus::{
    Consensus, Effects, FetchPurpose, Input, Note, Preference, RefusedReason, Reply, Time, TransferRefused,
};
use crate::error::{Fatal, FatalKind, StorageError};
use crate::message::Body;
use crate::metrics::{Metrics, SessionsStatus, Status};
use crate::mutant;
use crate::types::{Entry, Index, Peer};

#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) core: Consensus,
    pub(crate) pending: Pending,
    pub(crate) clock: Clock,
    pub(crate) writer: LogWriter,
    pub(crate) fetcher: Fetcher,
    pub(crate) fetched_in_vain: InVain,
    pub(crate) arrivals: Arrivals,
    pub(crate) outbox: Outbox,
    pub(crate) deferred: Deferred,
    pub(crate) jobs: Arc<Mailbox<Job>>,
    pub(crate) applied: Arc<Mailbox<Outcome>>,
    pub(crate) config: Config,
    pub(crate) lateness: Lateness,
    /// Set once the node is told to end in good order.
    pub(crate) leaving: Option<Leaving>,
    pub(crate) snapshotter: Snapshotter,
    pub(crate) images: Images,
    pub(crate) meter: Meter,
    /// How many sessions are open, and what is kept for them, in bytes.
    pub(crate) sessions: (u64, u64),
    /// Counts the state machine's signs of life beside what it has done.
    pub(crate) signs: Arc<AtomicU64>,
    /// Whether the next request comes soon after the last answer.
    pub(crate) busy: BusyPoll,
    /// Since nobody waits for an answer.
    pub(crate) idle: Option<Wait>,
}

/// Where so many come at once that waking up costs each of them little, a core is better left to others.
const FEW_REQUESTS: usize = 4;

/// What came since the last round. Its buffers are reused.
#[derive(Debug, Default)]
struct Received {
    stored: Option<u64>,
    fetched: Vec<Fetched>,
    applied: Vec<Outcome>,
    written: Vec<Written>,
    imaged: Vec<images::Outcome>,
    control: Vec<Control>,
    arrivals: Vec<Arrival>,
    requests: Vec<Request>,
}

impl Driver {
    /// Runs until the node stops, and then ends everything.
    pub(crate) async fn drive(mut self, applier: JoinHandle<()>) {
        let mut received = Received::default();
        let stopped = AssertUnwindSafe(self.run(&mut received)).catch_unwind().await;
        let fatal = match stopped {
            Ok(Ok(never)) => match never {},
            Ok(Err(fatal)) => fatal,
            Err(panic) => Fatal::new(FatalKind::Bug(panic_text(&*panic).to_owned())),
        };
        self.finish(fatal, received, applier).await;
    }

    async fn run(&mut self, received: &mut Received) -> Result<Infallible, Fatal> {
        let mut effects = Effects::default();
        loop {
            let now = self.receive(received).await?;
            self.step(now, received)?;
            self.core.effects(now, &mut effects);
            if self.clock.is_simulated() {
                // Release builds check themselves here alone.
                self.core.assert_invariants();
            }
            self.dispatch(now, &mut effects);
            self.leave(now)?;
        }
    }

    /// Waits until something happens, then takes all that is there.
    async fn receive(&mut self, received: &mut Received) -> Result<Time, Fatal> {
        let leaving = self.leaving.as_ref().map(Leaving::next_wake);
        let (writer, meter) = (self.writer.next_wake(), self.meter.next_wake());
        let wake = [self.core.next_wake(), self.pending.next_wake(), writer, meter, leaving];
        let wake = wake.into_iter().flatten().min();
        self.clock.wake_at(wake);
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            match self.poll_sources(cx, received) {
                Ok(false) => {
                    if self.deferred.is_waiting() {
                        // To the end of the queue.
                        cx.waker().wake_by_ref();
                    } else {
                        self.await_request(cx);
                    }
                    Poll::Pending
                }
                Ok(true) if !yielded => {
                    // Lets the other tasks of this thread run first: they take what was dispatched, and what they send
                    // comes with this batch.
                    yielded = true;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Ok(true) => Poll::Ready(Ok(())),
                Err(fatal) => Poll::Ready(Err(fatal)),
            }
        })
        .await?;
        let now = self.clock.now();
        match (self.idle.take_if(|_| !received.requests.is_empty()), received.requests.len()) {
            (_, 0) => {}
            (Some(idle), 1..=FEW_REQUESTS) => self.busy.came(&idle, now.0),
            (None, 1..=FEW_REQUESTS) => {}
            (_, _) => self.busy.is_not_worth_it(now.0),
        }
        if let Some(Late { times, most }) = self.lateness.check(wake, now) {
            tracing::warn!(
                times,
                ?most,
                "this node was not run in time, so its heartbeats and votes are late as well: the machine is overloaded, or the process was paused"
            );
        }
        Ok(now)
    }

    /// There is nothing to do. While clients wait, it is the disk or another node that is waited for, which takes longer.
    fn await_request(&mut self, cx: &mut Context<'_>) {
        if self.pending.is_waited_for() {
            self.idle = None;
        } else if self.busy.is_on() {
            let idle = self.idle.get_or_insert_with(|| self.busy.wait(self.clock.now().0));
            self.busy.look_again(idle, cx, || self.clock.now().0);
        }
    }

    /// Takes what is there from each source, in a fixed order. True once there was something.
    fn poll_sources(&mut self, cx: &mut Context<'_>, received: &mut Received) -> Result<bool, Fatal> {
        if self.deferred.is_due() {
            self.send_deferred();
        }
        if received.stored.is_none()
            && let Poll::Ready(stored) = self.writer.poll(cx)
        {
            received.stored = Some(stored?);
        }
        while let Poll::Ready(fetched) = self.fetcher.poll(cx) {
            received.fetched.push(fetched);
        }
        let Received { stored, fetched, applied, written, imaged, control, arrivals, requests } = received;
        let _ = self.applied.poll_take(cx, applied);
        let _ = self.snapshotter.written.poll_take(cx, written);
        let _ = self.images.done.poll_take(cx, imaged);
        let _ = self.shared.control.poll_take(cx, control);
        let _ = self.arrivals.poll_take(cx, arrivals);
        let _ = self.shared.intake.poll_take(cx, &mut self.pending.answered, requests);
        let due = self.clock.poll(cx).is_ready();
        Ok(due
            || stored.is_some()
            || !fetched.is_empty()
            || !applied.is_empty()
            || !written.is_empty()
            || !imaged.is_empty()
            || !control.is_empty()
            || !arrivals.is_empty()
            || !requests.is_empty())
    }

    /// What a read of the log found; nothing, if what was asked for is not there any more and need not be. That the store has lost what it
    /// acknowledged is an error.
    fn fetched(
        &mut self,
        purpose: FetchPurpose,
        entries: Result<Vec<Entry>, StorageError>,
    ) -> Result<Vec<Entry>, StorageError> {
        let gone = matches!(entries, Err(StorageError::Misuse(_)));
        match purpose {
            // An image has taken their place.
            FetchPurpose::Apply if gone && !self.core.awaits_fetched_to_apply() => Ok(Vec::new()),
            // Another leader's entries have replaced them meanwhile, or an image has. The core asks again if it still wants any. That ends soon,
            // unless they are lost.
            FetchPurpose::Follower(id) if gone => {
                let is_lost = self.fetched_in_vain.another(self.core.term(), id);
                if is_lost { entries } else { Ok(Vec::new()) }
            }
            FetchPurpose::Follower(id) => {
                self.fetched_in_vain.over(id);
                entries
            }
            FetchPurpose::Apply => entries,
        }
    }

    /// Takes everything through the core. What ended comes before what begins.
    fn step(&mut self, now: Time, received: &mut Received) -> Result<(), Fatal> {
        if let Some(seq) = received.stored.take() {
            let over = self.meter.write_ends(now);
            self.recovered(Stall::Disk, over);
            self.core.step(now, Input::Stored { seq });
        }
        for (purpose, entries) in received.fetched.drain(..) {
            let entries = self.fetched(purpose, entries)?;
            self.core.step(now, Input::Fetched { purpose, entries });
        }
        for outcome in received.applied.drain(..) {
            self.worked(now, outcome?);
        }
        for Written { id, image } in received.written.drain(..) {
            self.core.step(now, Input::Snapshotted { id, image: image? });
        }
        for outcome in received.imaged.drain(..) {
            self.core.step(now, outcome?);
        }
        for arrival in received.arrivals.drain(..) {
            match arrival {
                Arrival::Batch(Batch { sender, batch, cost }) => {
                    self.outbox.learn(&sender);
                    self.meter.received(cost);
                    for envelope in batch {
                        self.meter.message(&envelope.message);
                        self.core.step(now, Input::Receive { from: envelope.from, message: envelope.message });
                    }
                    self.arrivals.make_room(cost);
                }
                Arrival::Lost(peer) => {
                    self.arrivals.hint_taken();
                    self.core.step(now, Input::PeerLost { peer });
                }
            }
        }
        // Before it could be taken for stalled.
        if let Some(over) = self.meter.machine_lives(now, self.signs.load(Ordering::Relaxed)) {
            self.core.step(now, Input::Applying);
            self.recovered(Stall::StateMachine, over);
        }
        if self.core.next_wake().is_some_and(|wake| wake <= now) {
            self.core.step(now, Input::Tick);
        }
        self.writer.check(now);
        for what in self.meter.stalls(now) {
            self.stalled(what);
        }
        let leader = self.core.leader();
        let leads = leader == Some(self.shared.id);
        self.pending.check(now, leader.is_some(), leads, |input| self.core.step(now, input));
        self.meter.requests(&received.requests);
        self.pending.submit(now, leads, &mut received.requests, |input| self.core.step(now, input));
        self.pending.settle_at_least(|id| self.core.reflects(id));
        for control in received.control.drain(..) {
            self.control(now, control)?;
        }
        Ok(())
    }

    /// The state machine has done something.
    fn worked(&mut self, now: Time, done: Done) {
        match done {
            Done::Applied { results, sessions } => {
                let over = self.meter.apply_ends(now, results.upto());
                self.recovered(Stall::StateMachine, over);
                self.sessions = sessions;
                self.core.step(now, Input::Applied { index: results.upto() });
                self.pending.on_applied(results);
            }
            Done::Frozen(frozen) => self.snapshotter.start(frozen),
            Done::Restored { last, sessions } => {
                self.sessions = sessions;
                let over = self.meter.restore_ends(now, last.index);
                self.recovered(Stall::StateMachine, over);
                self.core.step(now, Input::Restored { last });
                // What the image brought has no results.
                let mut results = Results::none(last.index);
                results.extend_to(last);
                self.pending.on_applied(results);
            }
        }
    }

    fn control(&mut self, now: Time, control: Control) -> Result<(), Fatal> {
        match control {
            Control::Initialize { membership, answer } => {
                let input = self.pending.initialize(membership, answer);
                self.core.step(now, input);
            }
            Control::Change { change, answer } => {
                let input = self.pending.change(now, change, answer);
                self.core.step(now, input);
            }
            Control::Campaign { answer } => {
                self.core.step(now, Input::Campaign);
                let _ = answer.send(());
            }
            Control::Prefer { priority, may_lead, answer } => {
                let now_is = self.core.preference();
                let preference = Preference {
                    priority: priority.unwrap_or(now_is.priority),
                    may_lead: may_lead.unwrap_or(now_is.may_lead),
                };
                tracing::info!(priority = preference.priority, may_lead = preference.may_lead, "preference");
                self.core.step(now, Input::Prefer { preference });
                let _ = answer.send(());
            }
            Control::Snapshot { answer } => {
                let input = self.pending.snapshot(answer);
                self.core.step(now, input);
            }
            Control::Transfer { to, answer } => {
                let input = self.pending.transfer(to, answer);
                self.core.step(now, input);
            }
            Control::Metrics { answer } => drop(answer.send(self.metrics(now))),
            Control::Status { answer } => drop(answer.send(self.status(now))),
            Control::Stop { orderly: true } => self.begin_to_leave(now),
            Control::Stop { orderly: false } => return Err(Fatal::shutdown()),
        }
        Ok(())
    }

    fn status(&self, now: Time) -> Status {
        let (open, kept_bytes) = self.sessions;
        Status { sessions: SessionsStatus { open, kept_bytes }, ..self.core.status(now) }
    }

    fn stalled(&self, what: Stall) {
        let since = self.config.stall_timeout;
        let words = match what {
            Stall::Disk => "a write of the log is not done",
            Stall::StateMachine => "the state machine does not get on with what it has to do",
        };
        tracing::warn!(for_ = ?since, "{words}: this node gives leadership up, and does not campaign until that is over");
        self.shared.announcer.announce(Event::Stalled { what, since });
    }

    /// A stall is over, if there was one.
    fn recovered(&self, what: Stall, after: Option<Duration>) {
        if let Some(took) = after {
            tracing::info!(?what, ?took, "a stall is over");
            self.shared.announcer.announce(Event::Recovered { what, took });
        }
    }

    fn metrics(&self, now: Time) -> Metrics {
        let (served, rounds, leased) = (self.pending.reads_served(), self.core.read_rounds(), self.core.leased_reads());
        let reads = meter::Reads { served, rounds, leased };
        let (load, failed) = (self.shared.intake.load(), self.shared.failures.read());
        self.meter.read(&self.status(now), &self.outbox, reads, load, failed, self.arrivals.refused())
    }

    /// The node is to end in good order: it takes in nothing new, and a leader hands over.
    fn begin_to_leave(&mut self, now: Time) {
        if self.leaving.is_some() {
            return;
        }
        self.shared.intake.close();
        let leads = self.core.leader() == Some(self.shared.id);
        self.leaving = Some(Leaving::begin(now, &self.config, leads));
        if leads {
            let (unheard, _) = oneshot::channel();
            let input = self.pending.transfer(None, unheard);
            self.core.step(now, input);
        }
    }

    /// Ends the node once nothing holds it any more.
    fn leave(&mut self, now: Time) -> Result<(), Fatal> {
        let waiting = self.pending.is_waited_for() || !self.shared.intake.is_empty();
        let over = self.leaving.as_mut().is_some_and(|leaving| leaving.is_over(now, &self.core, waiting));
        if over { Err(Fatal::shutdown()) } else { Ok(()) }
    }

    /// Passes on what is to be done.
    fn dispatch(&mut self, now: Time, effects: &mut Effects) {
        for note in effects.notes.drain(..) {
            self.note(now, note);
        }
        for reply in effects.replies.drain(..) {
            let leader = self.named_leader(&reply);
            self.pending.on_reply(now, reply, leader);
        }
        // Sent before the answers to clients here, it would wake up the others, who would keep the cores from those who write them.
        let awaited = |last: &Entry| self.pending.is_awaited(last.id.index);
        let answers_come = self.leaving.is_none() && effects.apply.last().is_some_and(awaited);
        for (to, message) in effects.send.drain(..) {
            if answers_come && matches!(message.body, Body::Commit { .. }) {
                self.deferred.push(to, message);
                continue;
            }
            // Nothing is to overtake what waits.
            self.send_deferred();
            let forward = if let Body::Forward { request, .. } | Body::Change { request, .. } = &message.body {
                Some(*request)
            } else {
                None
            };
            self.meter.sending(&message);
            if !self.outbox.send(to, message)
                && let Some(request) = forward
            {
                // It never left, so it was never proposed.
                let reason = RefusedReason::Overloaded;
                self.pending.on_reply(now, Reply::Refused { request, reason }, None);
            }
        }
        if let Some(write) = effects.write.take() {
            self.meter.write_begins(now, &write);
            self.writer.start(now, write);
        }
        for fetch in effects.fetch.drain(..) {
            self.fetcher.start(fetch);
        }
        if let Some(image) = effects.restore.take() {
            self.meter.apply_begins(now, image.meta.last.index);
            let _ = self.jobs.push(Job::Restore(image));
        }
        if !effects.apply.is_empty() {
            let entries = std::mem::take(&mut effects.apply);
            self.meter.apply_begins(now, entries.last().map_or(Index::ZERO, |entry| entry.id.index));
            // The applier ends before the driver only with an outcome that stops the driver as well.
            let wants_results = self.pending.wants_results();
            let _ = self.jobs.push(Job::Apply(Entries { entries, wants_results }));
        }
        if let Some(id) = effects.snapshot.take() {
            let _ = self.jobs.push(Job::Freeze(id));
        }
        self.snapshotter.hurry(self.core.snapshot_is_awaited());
        effects.images.drain(..).for_each(|work| self.images.push(work));
    }

    fn send_deferred(&mut self) {
        for (to, message) in self.deferred.drain() {
            self.meter.sending(&message);
            self.outbox.send(to, message);
        }
    }

    /// The leader that a refusal names, with its address.
    fn named_leader(&self, reply: &Reply) -> Option<Peer> {
        match reply {
            Reply::Refused { reason: RefusedReason::NotLeader { leader: Some(leader) }, .. }
            | Reply::Transferred { outcome: Err(TransferRefused::NotLeader { leader: Some(leader) }), .. } => {
                self.core.membership()?.get(*leader).cloned()
            }
            Reply::Refused {
                reason: RefusedReason::NotLeader { leader: None } | RefusedReason::Overloaded | RefusedReason::Moved,
                ..
            }
            | Reply::Appended { .. }
            | Reply::Returned { .. }
            | Reply::Unknown { .. }
            | Reply::Readable { .. }
            | Reply::Changed { .. }
            | Reply::Initialized { .. }
            | Reply::Snapshotted { .. }
            | Reply::Transferred { .. } => None,
        }
    }

    /// Logs what an operator would like to know, and announces what the node's owner would.
    fn note(&mut self, now: Time, note: Note) {
        self.meter.note(&note);
        match note {
            Note::Role { role, term, why } => {
                tracing::info!(%role, term = term.0, why, "role");
                self.shared.announcer.announce(Event::Role { role, term });
            }
            Note::Leader { leader, term } => {
                match leader {
                    Some(leader) => {
                        tracing::info!(leader = leader.0, term = term.0, "leader");
                        self.pending.on_leader(now);
                    }
                    None => tracing::info!(term = term.0, "no leader"),
                }
                self.shared.announcer.announce(Event::Leader { leader, term });
            }
            Note::Suspect { leader } => {
                tracing::info!(
                    leader = leader.0,
                    "the connection with the leader was lost: asking soon whether another should lead"
                );
            }
            Note::Yield { to, why } => tracing::info!(to = to.0, why, "hands over by its own wish"),
            Note::Transfer { to, step } => {
                tracing::info!(to = to.0, %step, "transfer of leadership");
                self.shared.announcer.announce(Event::Transfer { to, step });
            }
            Note::Truncated { from, upto } => {
                tracing::warn!(from = from.0, upto = upto.0, "uncommitted entries of a former leader are replaced");
                self.shared.announcer.announce(Event::Truncated { from, upto });
            }
            Note::Membership { index, membership } => {
                tracing::info!(index = index.0, %membership, "configuration");
                self.outbox.set_members(&self.core.correspondents());
                self.shared.announcer.announce(Event::Membership { index, membership });
            }
            Note::SnapshotTaken { last, len } => {
                tracing::info!(%last, bytes = len, "took a snapshot");
                self.shared.announcer.announce(Event::SnapshotTaken { last, len });
            }
            Note::ReceivingSnapshot { from, last, stored, len, rate } => {
                tracing::info!(from = from.0, %last, bytes = stored, of = len, rate, "receiving a snapshot");
                self.shared.announcer.announce(Event::SnapshotReceiving { from, last, stored, len });
            }
            Note::SnapshotInstalled { last, len } => {
                tracing::info!(%last, bytes = len, "a snapshot takes the place of the state and the log");
                self.shared.announcer.announce(Event::SnapshotInstalled { last, len });
            }
            Note::SnapshotDamaged { from, last, part } => {
                tracing::warn!(
                    from = from.0, %last, part,
                    "what was received of a snapshot is damaged: it is dropped, and received again"
                );
            }
            Note::Removed { index } => {
                tracing::warn!(index = index.0, "this node is removed from the cluster: it may be stopped");
                self.shared.announcer.announce(Event::Removed { index });
            }
            Note::Ignored { from, message, why } => tracing::debug!(from = from.0, message, why, "ignored"),
            Note::Violation { from, message, why } => {
                tracing::warn!(from = from.0, message, why, "a peer said what no correct node says");
            }
        }
    }

    /// Tells everyone who waits, then lets go of everything, without breaking off what a backend is doing.
    async fn finish(mut self, fatal: Fatal, received: Received, applier: JoinHandle<()>) {
        if fatal.is_shutdown() {
            tracing::info!("stopping");
        } else {
            tracing::error!(reason = %fatal, "the node stops");
        }
        self.shared.close(fatal.clone());
        if mutant!("waiters-forgotten-at-the-end") {
            std::mem::forget(std::mem::replace(
                &mut self.pending,
                Pending::new(&crate::Config::default(), 0, crate::Index(0)),
            ));
        }
        self.pending.stop(&fatal);
        // Whoever waits for the reason is told before a backend that is let go of can hold this thread.
        tokio::task::yield_now().await;
        // Clients whose requests are dropped unanswered learn the reason from their handle.
        drop(received);
        drop(self.arrivals);
        self.jobs.close_and_drain();
        // The applier ends after the batch that it is at, or the next, however much was handed to it.
        self.applied.close_and_drain();
        self.outbox.finish().await;
        self.writer.finish().await;
        self.fetcher.finish().await;
        let _ = applier.await;
        self.snapshotter.finish().await;
        self.images.finish().await;
        tracing::info!("stopped");
    }
}
