//! [`Raft`]: the handle to a running node, and how to start one.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::change::Change;
use crate::config::Config;
use crate::error::{ChangeError, Error, Fatal, InitializeError, TransferError};
use crate::metrics::{ConfigurationStatus, Metrics, Status};
use crate::runtime::{self, Control, Events, Host, Inbox, NotAdmitted, Parts, Request, Shared, Tasks};
use crate::session::{Once, Op, Session, SessionId};
use crate::traits::{LogStore, Snapshot, StateMachine, Transport};
use crate::types::{ClusterId, Entry, EntryKind, GroupId, LogId, Membership, NodeId};

/// A running node. Cheap to clone; it has no type parameters.
///
/// The node runs until [`Raft::shutdown`] is called, its last handle is dropped (an [`Inbox`] does not count), or it
/// fails. From then on every call answers at once with the reason ([`Error::Stopped`]).
///
/// Every call ends: a write or read that gets no answer from the cluster is answered at its deadline. A dropped future
/// leaves nothing behind, but does not take back a write that was sent.
#[derive(Clone, Debug)]
pub struct Raft {
    shared: Arc<Shared>,
    inbox: Inbox,
    /// Dropped with the last handle.
    _owner: Arc<Owner>,
}

/// Stops the node when nobody owns it any more.
#[derive(Debug)]
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.stop(false);
    }
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Reflects every write that was answered anywhere before the read began. Costs a round trip to a quorum, shared by all
    /// reads that wait.
    Linearizable,
    /// As `Linearizable`, as long as clocks go as was vouched for (`Config::lease_drift` at the leader): the leader answers by its clock while
    /// a quorum has promised to elect nobody else. Costs nothing at the leader, and a round trip to it elsewhere.
    ///
    /// Where the leader has no lease, because leases are off, it was just elected, has handed over or lost its quorum, the read is
    /// answered as a `Linearizable` one. So it may be asked for anywhere, and is never weaker than was agreed on.
    Lease,
    /// Whatever this node has applied. Costs nothing, and may be old.
    Stale,
    /// Reflects the entry with this id, and so everything that was answered before it was written: for a client that goes on at another
    /// node, or tells others of what it wrote ([`Raft::write_with_id`]). Local, and at once where this node has applied that far already.
    ///
    /// It is that very entry which must be there: ids of entries that a change of leader overwrote get [`Error::NeverCommitted`]. Of an
    /// entry in front of an image a node may not be able to tell ([`Error::Compacted`]); where terms have not changed since, or this node
    /// has seen them change since its start, it can. An id that does not come within `Config::read_timeout` gets [`Error::Unavailable`].
    AtLeast(LogId),
}

impl Raft {
    /// Describes a node of a cluster; give it its four backends, then [`Builder::start`] it.
    pub fn builder(id: NodeId, cluster: ClusterId) -> Builder {
        Builder {
            id,
            cluster,
            group: GroupId::default(),
            config: Config::default(),
            seed: None,
            host: None,
            transport: (),
            log: (),
            snapshots: (),
            machine: (),
        }
    }

    /// Replicates a command and applies it; returns the state machine's answer. Works on any node: others than the leader
    /// pass the command on, and answer from their own state machine.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::is_safe_to_retry`] tells whether nothing has happened.
    pub async fn write(&self, command: Bytes) -> Result<Bytes, Error> {
        self.write_with_id(command).await.map(|(_, result)| result)
    }

    /// As [`Raft::write`], and also returns the id of the command's entry: any node can be asked for a state that reflects it, with
    /// [`Consistency::AtLeast`].
    ///
    /// # Errors
    /// As for [`Raft::write`].
    pub async fn write_with_id(&self, command: Bytes) -> Result<(LogId, Bytes), Error> {
        self.check_size(command.len() as u64)?;
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Write { kind: EntryKind::Command, command, answer }, answered).await
    }

    /// A client session: [`Session::write`] is applied exactly once, although it is repeated until its outcome is known. Make one for each
    /// client, and use it for all of its writes.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// Opens a session for a client that is elsewhere, and numbers its writes by itself; see [`Raft::write_once`]. It expires when it is not
    /// used for `Config::session_idle`, or when there are more than `Config::max_sessions` and all others were used later.
    ///
    /// # Errors
    /// As for [`Raft::write`]. It does no harm to ask again whatever the error is: a session that nobody uses expires.
    pub async fn open_session(&self) -> Result<SessionId, Error> {
        let session = self.shared.name_session();
        let (idle, most) = (self.shared.session_idle, self.shared.max_sessions);
        self.write_op(&Op::Open { session, idle, most }).await?;
        Ok(session)
    }

    /// As [`Raft::write`], but applied at most once, and exactly once if it is repeated until it is answered: with the same name, at any
    /// node, any number of times. A repetition gets the answer of the first.
    ///
    /// # Errors
    /// As for [`Raft::write`], and [`Error::SessionExpired`], [`Error::AnswerForgotten`] and [`Error::OutOfSequence`]. Repeating it is safe
    /// whatever the error is, if the name is the same.
    pub async fn write_once(&self, once: Once, command: Bytes) -> Result<Bytes, Error> {
        self.check_size(command.len() as u64)?;
        self.write_op(&Op::Write { once, command }).await
    }

    /// Ends a session: nothing is kept for it any more, and its writes are not applied from then on. One that is not open any more is
    /// closed already.
    ///
    /// # Errors
    /// As for [`Raft::write`]. It may be asked again.
    pub async fn close_session(&self, session: SessionId) -> Result<(), Error> {
        self.write_op(&Op::Close { session }).await.map(drop)
    }

    async fn write_op(&self, op: &Op) -> Result<Bytes, Error> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Write { kind: EntryKind::Session, command: op.encode(), answer };
        self.ask(request, answered).await.map(|(_, result)| result)
    }

    pub(crate) fn session_patience(&self) -> std::time::Duration {
        self.shared.session_patience
    }

    /// As [`Raft::write`] for several commands that are proposed together, all or none, and applied in this order without
    /// any other between them; returns one answer each. Their sizes together, with a fixed overhead for each but the first, must not exceed
    /// `Config::max_command_bytes`.
    ///
    /// # Errors
    /// As for [`Raft::write`]. A change of leader may cut a batch in two: where only a part of it was applied, the
    /// answer is [`Error::OutcomeUnknown`].
    pub async fn write_many(&self, commands: Vec<Bytes>) -> Result<Vec<Bytes>, Error> {
        if commands.is_empty() {
            return self.shared.fatal().map_or(Ok(Vec::new()), |fatal| Err(Error::Stopped(fatal.clone())));
        }
        let payload: u64 = commands.iter().map(|command| command.len() as u64).sum();
        self.check_size(payload + Entry::OVERHEAD * (commands.len() as u64 - 1))?;
        let (answer, answered) = oneshot::channel();
        self.ask(Request::WriteMany { commands, answer }, answered).await
    }

    /// Returns when the local state machine is fresh enough to be read, on any node.
    ///
    /// # Errors
    /// Reads may always be retried, except when the node has stopped. See [`Error`].
    pub async fn read(&self, consistency: Consistency) -> Result<(), Error> {
        match consistency {
            Consistency::Linearizable | Consistency::Lease => {
                let lease = consistency == Consistency::Lease;
                let (answer, answered) = oneshot::channel();
                self.ask(Request::Read { lease, answer }, answered).await
            }
            Consistency::AtLeast(id) => {
                let (answer, answered) = oneshot::channel();
                self.ask(Request::ReadAtLeast { id, answer }, answered).await
            }
            Consistency::Stale => self.shared.fatal().map_or(Ok(()), |fatal| Err(Error::Stopped(fatal.clone()))),
        }
    }

    /// What this node knows of itself and its group, now.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn status(&self) -> Result<Status, Error> {
        self.shared.request(|answer| Control::Status { answer }).await.map_err(Error::Stopped)
    }

    /// Where this node stands, and what it has counted since it started: numbers for whatever system watches it. Costs about as much as
    /// [`Raft::status`].
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn metrics(&self) -> Result<Metrics, Error> {
        self.shared.request(|answer| Control::Metrics { answer }).await.map_err(Error::Stopped)
    }

    /// What happens to this node from now on. A listener that lags far behind misses events, and is told so.
    #[must_use]
    pub fn events(&self) -> Events {
        self.shared.listen()
    }

    /// Starts a cluster of these members, this node among them. Tell one member, or each of them the same; repeating
    /// it does nothing, until the membership has changed: then the node refuses it as one that has state. Returns when it is on this node's disk; then the members elect a leader.
    ///
    /// # Errors
    /// The node has other state already, the members make no sense, or the node has stopped.
    pub async fn initialize(&self, members: Membership) -> Result<(), InitializeError> {
        let outcome = self.shared.request(|answer| Control::Initialize { membership: members, answer }).await;
        outcome.unwrap_or_else(|fatal| Err(InitializeError::Stopped(fatal)))
    }

    /// Changes who is in the cluster: any set of voters and learners in one call, on any node. Returns the id of the resulting
    /// configuration when it is committed.
    ///
    /// New voters get the log as learners first, for at most `Config::catch_up_timeout`; [`Status::change`] shows how far that is. Where more
    /// than one voter comes or goes, old and new voters decide together in between (joint consensus, paper §6), so that the cluster
    /// serves throughout. A new node is started with an empty log and [`Builder::start`] alone, and waits to be reached.
    ///
    /// # Errors
    /// See [`ChangeError`]. Nothing is silently left undone: a change that makes no difference is refused as well.
    pub async fn change_membership(&self, change: Change) -> Result<LogId, ChangeError> {
        self.shared.change(change).await
    }

    /// The configuration in force here, with its id for [`Change::only_if`]; none before this node learned of one. A node that lags
    /// behind may have an old one.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn membership(&self) -> Result<Option<ConfigurationStatus>, Error> {
        self.status().await.map(|status| status.configuration)
    }

    /// Hands leadership over to another voter, or to the most up-to-date one that was heard lately, and tells who leads then (thesis
    /// §3.10). To be asked of the leader.
    ///
    /// The successor's log is completed first. Writes that come meanwhile are held back, and go to the new leader; they are not refused. If
    /// the successor does not lead within an election timeout, the transfer is given up and the leader serves again.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        let outcome = self.shared.request(|answer| Control::Transfer { to, answer }).await;
        outcome.unwrap_or_else(|fatal| Err(TransferError::Stopped(fatal)))
    }

    /// Makes this node campaign now rather than at its election timeout. It need not win, and a live leader is
    /// not disturbed.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn campaign(&self) -> Result<(), Error> {
        self.shared.request(|answer| Control::Campaign { answer }).await.map_err(Error::Stopped)
    }

    /// Gives this node another priority than [`Config::priority`](crate::Config::priority), until it ends. Returns when it is in force here; a
    /// leader learns of it with the next heartbeat.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn set_priority(&self, priority: u32) -> Result<(), Error> {
        self.prefer(Some(priority), None).await
    }

    /// Keeps this node from leading, or lets it lead again, until it ends ([`Config::may_lead`](crate::Config::may_lead)). A node that leads hands
    /// over as soon as another voter keeps up with it; [`Raft::status`] and [`Raft::events`] tell when that has happened. Before maintenance
    /// that makes the machine slow, for instance.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn set_may_lead(&self, may_lead: bool) -> Result<(), Error> {
        self.prefer(None, Some(may_lead)).await
    }

    async fn prefer(&self, priority: Option<u32>, may_lead: Option<bool>) -> Result<(), Error> {
        let asked = self.shared.request(|answer| Control::Prefer { priority, may_lead, answer });
        asked.await.map_err(Error::Stopped)
    }

    /// Takes an image of the state machine that reflects at least what this node has applied by now, and cuts the log for it; waits
    /// until it is published. Returns the last entry that it reflects: zero when nothing was applied yet.
    ///
    /// Nodes take images by themselves (`Config::snapshot_entries`, `Config::snapshot_bytes`). This is for a backup, or before a
    /// planned restart.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn snapshot(&self) -> Result<LogId, Error> {
        self.shared.request(|answer| Control::Snapshot { answer }).await.map_err(Error::Stopped)
    }

    /// Ends the node in good order. New requests are refused with [`Error::Stopped`]. A leader hands leadership over first, to the most
    /// up-to-date voter that was heard lately, and requests in progress get their answers, from here or from the next leader. All this takes
    /// at most two election timeouts; what is not answered then is answered with [`Error::Stopped`], and what a backend is doing is let to
    /// its end. Returns when all tasks have ended and the backends are released. May be called more than once, and by several at once;
    /// returns the reason of the first stop.
    pub async fn shutdown(&self) -> Fatal {
        self.shared.stop(true);
        self.shared.ended().await
    }

    /// As [`Raft::shutdown`], but without a transfer of leadership, and requests in progress are answered with [`Error::Stopped`].
    pub async fn shutdown_now(&self) -> Fatal {
        self.shared.stop(false);
        self.shared.ended().await
    }

    /// Waits until the node has stopped, for whatever reason, and tells it.
    pub async fn stopped(&self) -> Fatal {
        self.shared.ended().await
    }

    /// Waits until the node has failed, or its orderly end is over or given up, and tells which. Until it [has stopped](Self::stopped)
    /// its backends do to the end what they are about to do: that may take long, and for ever where a disk does not answer.
    pub async fn stopping(&self) -> Fatal {
        self.shared.ending().await
    }

    /// Where a transport delivers what it receives for this node.
    #[must_use]
    pub fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    /// The node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.shared.id
    }

    fn check_size(&self, size: u64) -> Result<(), Error> {
        let limit = self.shared.max_command_bytes;
        let fits = if size > limit { Err(Error::TooLarge { size, limit }) } else { Ok(()) };
        fits.inspect_err(|error| self.shared.failures.count(error))
    }

    async fn ask<T>(&self, request: Request, answered: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
        let outcome = match self.shared.intake.push(request) {
            Ok(alone) => match self.shared.answered(answered, alone).await {
                Some(outcome) => outcome,
                None => Err(Error::Stopped(self.shared.reason().await)),
            },
            Err(NotAdmitted::Overloaded) => Err(Error::Overloaded),
            Err(NotAdmitted::Stopped) => Err(Error::Stopped(self.shared.reason().await)),
        };
        outcome.inspect_err(|error| self.shared.failures.count(error))
    }
}

/// A node that is not started yet. The four backends must all be given before [`Builder::start`] exists.
#[derive(Clone, Debug)]
#[must_use = "a node does nothing before `start`"]
pub struct Builder<T = (), L = (), S = (), M = ()> {
    id: NodeId,
    cluster: ClusterId,
    group: GroupId,
    config: Config,
    seed: Option<u64>,
    host: Option<Arc<dyn Host>>,
    transport: T,
    log: L,
    snapshots: S,
    machine: M,
}

impl<T, L, S, M> Builder<T, L, S, M> {
    /// The group within the process; 0 if not given.
    pub fn group(self, group: GroupId) -> Self {
        Self { group, ..self }
    }

    /// Times and limits; the defaults suit a cluster in one data centre.
    pub fn config(self, config: Config) -> Self {
        Self { config, ..self }
    }

    /// Makes the node's random choices repeatable, for simulations: each run of each node needs a seed of its own.
    /// Without one they differ from run to run, as they should.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// Runs the node on a machine of a simulation.
    #[doc(hidden)]
    pub fn host(self, host: Arc<dyn Host>) -> Self {
        Self { host: Some(host), ..self }
    }

    /// Carries messages to the other nodes.
    pub fn transport<T2: Transport>(self, transport: T2) -> Builder<T2, L, S, M> {
        let Self { id, cluster, group, config, seed, host, log, snapshots, machine, .. } = self;
        Builder { id, cluster, group, config, seed, host, transport, log, snapshots, machine }
    }

    /// Keeps the log. It must be this node's own, from run to run.
    pub fn log<L2: LogStore>(self, log: L2) -> Builder<T, L2, S, M> {
        let Self { id, cluster, group, config, seed, host, transport, snapshots, machine, .. } = self;
        Builder { id, cluster, group, config, seed, host, transport, log, snapshots, machine }
    }

    /// Keeps images of the state machine.
    pub fn snapshots<S2: Snapshot>(self, snapshots: S2) -> Builder<T, L, S2, M> {
        let Self { id, cluster, group, config, seed, host, transport, log, machine, .. } = self;
        Builder { id, cluster, group, config, seed, host, transport, log, snapshots, machine }
    }

    /// What is replicated.
    pub fn state_machine<M2: StateMachine>(self, machine: M2) -> Builder<T, L, S, M2> {
        let Self { id, cluster, group, config, seed, host, transport, log, snapshots, .. } = self;
        Builder { id, cluster, group, config, seed, host, transport, log, snapshots, machine }
    }
}

impl<T: Transport, L: LogStore, S: Snapshot, M: StateMachine> Builder<T, L, S, M> {
    /// Reads what is durable, and starts the node's tasks on the current tokio runtime. A node without a log then waits for
    /// [`Raft::initialize`], here or at another member.
    ///
    /// # Errors
    /// The configuration makes no sense, a backend failed, or what the backends hold does not fit together.
    pub async fn start(self) -> Result<Raft, Fatal> {
        let parts = Parts {
            id: self.id,
            cluster: self.cluster,
            group: self.group,
            config: self.config,
            seed: self.seed,
            tasks: Tasks(self.host),
            transport: Arc::new(self.transport),
            log: Arc::new(self.log),
            snapshots: Arc::new(self.snapshots),
            machine: Box::new(self.machine),
        };
        let (shared, inbox) = runtime::start(parts).await?;
        Ok(Raft { _owner: Arc::new(Owner(shared.clone())), shared, inbox })
    }
}
