//! What a node does for the list of members without being asked: it tells the others where it serves clients, and as the leader it lets those
//! vote who are to and have caught up, and forgets those who are gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use raftkv::{Change, Error, NodeId, Status as RaftStatus};

use super::members::{configuration, in_sync};
use super::pause::Pauses;
use super::{Context, Replica};
use crate::api::command::{MemberGone, MemberStarted, member_note::Note};

/// How often it looks, while there is something to do or the node does not tell what happens.
const PERIOD: Duration = Duration::from_millis(250);
/// How long a promotion that was refused is left alone.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_secs(2);

/// Works until the node stops.
pub(super) async fn keep<R: Replica>(context: Arc<Context<R>>) {
    let mut refused_at: BTreeMap<NodeId, tokio::time::Instant> = BTreeMap::new();
    let mut pauses = Pauses::new(&context.replica, PERIOD);
    let mut quiet = false;
    loop {
        pauses.pause(quiet).await;
        quiet = match context.replica.status().await {
            Ok(status) => tend(&context, &status, &mut refused_at).await,
            Err(Error::Stopped(_)) => return,
            Err(_) => false,
        };
    }
}

/// Does what there is to do. Tells whether there was nothing, and nothing goes on that may lead to something.
async fn tend<R: Replica>(
    context: &Context<R>,
    status: &RaftStatus,
    refused_at: &mut BTreeMap<NodeId, tokio::time::Instant>,
) -> bool {
    if !configuration(status).contains(status.id) || status.leader.is_none() {
        return false;
    }
    let known = context.announce(status).await;
    if status.leader != Some(status.id) {
        return known;
    }
    let now = tokio::time::Instant::now();
    refused_at.retain(|_, at| now.duration_since(*at) < PAUSE_AFTER_REFUSAL);
    if let Some(id) = context.ripe(status).filter(|id| !refused_at.contains_key(id)) {
        match context.replica.change_membership(Change::new().promote(id)).await {
            Ok(at) => {
                tracing::info!(member = id.0, configuration = %at, "a new member has caught up, and votes from now on")
            }
            Err(error) => {
                tracing::info!(member = id.0, %error, "a new member is not promoted yet");
                refused_at.insert(id, now);
            }
        }
    }
    let reserved = context.reserve_ids(status).await;
    let nobody_gone = context.forget_gone().await;
    let settled = status.change.is_none() && configuration(status).learners.is_empty();
    known && reserved && nobody_gone && settled
}

impl<R: Replica> Context<R> {
    /// Tells the others where this node serves clients, if they don't know. Returns whether they knew.
    async fn announce(&self, status: &RaftStatus) -> bool {
        let client_address = self.options.client_address.clone();
        let known = self
            .view
            .members()
            .get(status.id.0)
            .is_some_and(|info| info.started && info.client_address == client_address);
        // Before it has caught up, what is not applied yet may say so.
        if known || !self.ready.load(Ordering::Relaxed) {
            return known;
        }
        let note = Note::Started(MemberStarted { id: status.id.0, client_address });
        if let Err(error) = self.note_member(note).await {
            tracing::debug!(%error, "the others could not be told that this node runs; will try again");
        }
        false
    }

    /// A learner that is to vote, and has caught up.
    fn ripe(&self, status: &RaftStatus) -> Option<NodeId> {
        if status.change.is_some() {
            return None;
        }
        let (membership, known) = (configuration(status), self.view.members());
        let waits =
            |id: &NodeId| membership.is_learner(*id) && known.get(id.0).is_some_and(|info| info.votes && info.started);
        let mut learners = membership.learners.keys().copied().filter(waits);
        learners.find(|id| in_sync(status, *id))
    }

    /// The ids that the cluster began with are used, whether their nodes have said that they run or not. Returns whether that was known.
    async fn reserve_ids(&self, status: &RaftStatus) -> bool {
        // A member that was added in the usual way was noted by an earlier entry. Before that is applied here, it must not be taken for one that
        // nobody has noted: this would undo the note, and the member would pass for one that has run before.
        let Some(found) = status.configuration.as_ref().filter(|found| found.id.index <= status.applied) else {
            return false;
        };
        let greatest = found.membership.members().map(|peer| peer.id.0).max().unwrap_or(0);
        let known = self.view.members().is_used(greatest);
        if !known && self.ready.load(Ordering::Relaxed) {
            let _ = self.note_member(Note::Gone(MemberGone { id: greatest })).await;
        }
        known
    }

    /// Those who ran and are members no more. Who is only expected may be added in a moment. Returns whether there are none.
    async fn forget_gone(&self) -> bool {
        // In this order: whoever runs according to what is known was added before, and a configuration that is seen later has it, unless it was
        // removed since.
        let known = self.view.members();
        let Ok(RaftStatus { configuration: Some(configuration), .. }) = self.replica.status().await else {
            return false;
        };
        if !configuration.committed {
            return false;
        }
        let gone = known.iter().find(|(id, info)| info.started && !configuration.membership.contains(NodeId(*id)));
        if let Some((id, _)) = gone {
            // It is there again at the next look if that fails.
            let _ = self.note_member(Note::Gone(MemberGone { id })).await;
        }
        gone.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};

    use bytes::Bytes;
    use raftkv::consensus::RoleKind;
    use raftkv::{
        ChangeError, ConfigurationStatus, Consistency, Index, LogId, Membership, Once, Peer, SessionId, StateMachine,
        Term, TransferError,
    };

    use super::*;
    use crate::api::command::{MemberExpected, MemberNote, command};
    use crate::machine::{KvMachine, encode_command};
    use crate::service::Standing;

    /// A leader, whose log and state machine a test moves on one by one.
    #[derive(Clone)]
    struct Leader {
        machine: Arc<tokio::sync::Mutex<KvMachine>>,
        configuration: Arc<Mutex<ConfigurationStatus>>,
        applied: Arc<AtomicU64>,
        proposed: Arc<AtomicU64>,
        /// What is applied right after the next status was taken, before anybody looks at it.
        meanwhile: Arc<Mutex<Vec<Note>>>,
    }

    impl Leader {
        async fn apply(&self, note: Note) -> Result<Bytes, Error> {
            let body = command::Body::Member(MemberNote { note: Some(note) });
            self.write(encode_command(body)).await
        }

        fn configure(&self, index: u64, voters: &[u64], learners: &[u64]) {
            let peers =
                |ids: &[u64]| ids.iter().map(|id| Peer::new(*id, format!("127.0.0.1:{id}"))).collect::<Vec<_>>();
            let mut membership = Membership::new(peers(voters));
            membership.learners.extend(peers(learners).into_iter().map(|peer| (peer.id, peer)));
            *self.configuration.lock().unwrap() =
                ConfigurationStatus { id: LogId::new(1, index), committed: true, membership };
        }
    }

    impl Replica for Leader {
        async fn write(&self, command: Bytes) -> Result<Bytes, Error> {
            let at = LogId::new(1, 100 + self.proposed.fetch_add(1, Ordering::Relaxed));
            self.machine.lock().await.apply(at, command).await.map_err(Error::Stopped)
        }

        async fn write_once(&self, _: Once, command: Bytes) -> Result<Bytes, Error> {
            self.write(command).await
        }

        async fn open_session(&self) -> Result<SessionId, Error> {
            Err(Error::Unavailable)
        }

        async fn close_session(&self, _: SessionId) -> Result<(), Error> {
            Err(Error::Unavailable)
        }

        async fn read(&self, _: Consistency) -> Result<(), Error> {
            Ok(())
        }

        async fn status(&self) -> Result<RaftStatus, Error> {
            let applied = Index(self.applied.load(Ordering::Relaxed));
            let configuration = self.configuration.lock().unwrap().clone();
            let notes = std::mem::take(&mut *self.meanwhile.lock().unwrap());
            for note in notes {
                self.apply(note).await?;
            }
            Ok(RaftStatus {
                role: RoleKind::Leader,
                term: Term(1),
                leader: Some(NodeId(1)),
                members: configuration.membership.members().cloned().collect(),
                configuration: Some(configuration),
                last: LogId::new(1, 100),
                stored: applied,
                commit: applied,
                applied,
                ..RaftStatus::of_new(NodeId(1))
            })
        }

        async fn campaign(&self) -> Result<(), Error> {
            Ok(())
        }

        async fn change_membership(&self, _: Change) -> Result<LogId, ChangeError> {
            Err(ChangeError::Unavailable)
        }

        async fn transfer_leadership(&self, _: Option<NodeId>) -> Result<NodeId, TransferError> {
            Err(TransferError::NoSuccessor)
        }

        async fn snapshot(&self) -> Result<LogId, Error> {
            Ok(LogId::ZERO)
        }

        async fn prefer(&self, _: Option<u32>, _: Option<bool>) -> Result<(), Error> {
            Ok(())
        }
    }

    async fn context() -> Context<Leader> {
        let machine = KvMachine::new();
        let view = machine.view();
        let membership = Membership::new([Peer::new(1, "127.0.0.1:1")]);
        let replica = Leader {
            machine: Arc::new(tokio::sync::Mutex::new(machine)),
            configuration: Arc::new(Mutex::new(ConfigurationStatus { id: LogId::ZERO, committed: true, membership })),
            applied: Arc::default(),
            proposed: Arc::default(),
            meanwhile: Arc::default(),
        };
        Context {
            replica,
            view,
            options: crate::service::Options { node: NodeId(1), ..Default::default() },
            passwords: crate::service::auth::Passwords::new(|all| all),
            term: AtomicU64::new(0),
            ready: AtomicBool::new(true),
            standing: AtomicU8::new(Standing::Member as u8),
        }
    }

    fn expected(id: u64) -> Note {
        Note::Expected(MemberExpected { id, address: format!("127.0.0.1:{id}"), votes: true, highest: 0 })
    }

    async fn reserve(context: &Context<Leader>) {
        let status = context.replica.status().await.unwrap();
        context.reserve_ids(&status).await;
    }

    #[tokio::test]
    async fn the_ids_that_a_cluster_began_with_are_used() {
        let context = context().await;
        context.replica.configure(1, &[1, 2, 3], &[]);
        context.replica.applied.store(1, Ordering::Relaxed);
        reserve(&context).await;
        let known = context.view.members();
        assert!(known.is_used(3) && !known.is_used(4));
    }

    /// The log is ahead of the state machine: member 8 is in the configuration, and the note that it is expected is not applied.
    #[tokio::test]
    async fn a_note_that_is_not_applied_yet_is_not_undone() {
        let context = context().await;
        context.replica.configure(8, &[1], &[8]);
        context.replica.applied.store(5, Ordering::Relaxed);
        reserve(&context).await;
        assert_eq!(context.replica.proposed.load(Ordering::Relaxed), 0, "the note may be on its way");
        context.replica.apply(expected(8)).await.unwrap();
        context.replica.applied.store(8, Ordering::Relaxed);
        reserve(&context).await;
        assert!(context.view.members().get(8).is_some_and(|info| info.votes && !info.started));
    }

    /// A member is added and started while the leader is about to look for those who are gone.
    #[tokio::test]
    async fn a_member_that_comes_meanwhile_is_not_forgotten() {
        let context = context().await;
        let started = Note::Started(MemberStarted { id: 8, client_address: "127.0.0.1:80".into() });
        *context.replica.meanwhile.lock().unwrap() = vec![expected(8), started];
        context.forget_gone().await;
        assert!(context.view.members().get(8).is_some_and(|info| info.votes), "it is to vote");
        // One that is gone is forgotten, and its id stays used.
        context.forget_gone().await;
        assert!(context.view.members().get(8).is_none() && context.view.members().is_used(8));
    }
}
