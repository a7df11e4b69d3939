//! What a node does for the list of members without being asked: it tells the others where it serves clients, and as the leader it lets those
//! vote who are to and have caught up, and forgets those who are gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use raftkv::{Change, Error, NodeId, Status as RaftStatus};

use super::members::{configuration, in_sync};
use super::{Context, Replica};
use crate::api::command::{MemberGone, MemberStarted, member_note::Note};

/// How often it looks.
const PERIOD: Duration = Duration::from_millis(250);
/// How long a promotion that was refused is left alone.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_secs(2);

/// Works until the node stops.
pub(super) async fn keep<R: Replica>(context: Arc<Context<R>>) {
    let mut refused_at: BTreeMap<NodeId, tokio::time::Instant> = BTreeMap::new();
    loop {
        tokio::time::sleep(PERIOD).await;
        let status = match context.replica.status().await {
            Ok(status) => status,
            Err(Error::Stopped(_)) => return,
            Err(_) => continue,
        };
        if !configuration(&status).contains(status.id) || status.leader.is_none() {
            continue;
        }
        context.announce(&status).await;
        if status.leader != Some(status.id) {
            continue;
        }
        let now = tokio::time::Instant::now();
        refused_at.retain(|_, at| now.duration_since(*at) < PAUSE_AFTER_REFUSAL);
        if let Some(id) = context.ripe(&status).filter(|id| !refused_at.contains_key(id)) {
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
        context.reserve_ids(&status).await;
        context.forget_gone(&status).await;
    }
}

impl<R: Replica> Context<R> {
    /// Tells the others where this node serves clients, if they don't know.
    async fn announce(&self, status: &RaftStatus) {
        let client_address = self.options.client_address.clone();
        let known = self
            .view
            .members()
            .get(status.id.0)
            .is_some_and(|info| info.started && info.client_address == client_address);
        // Before it has caught up, what is not applied yet may say so.
        if known || !self.ready.load(Ordering::Relaxed) {
            return;
        }
        let note = Note::Started(MemberStarted { id: status.id.0, client_address });
        if let Err(error) = self.note_member(note).await {
            tracing::debug!(%error, "the others could not be told that this node runs; will try again");
        }
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

    /// The ids that the cluster began with are used, whether their nodes have said that they run or not.
    async fn reserve_ids(&self, status: &RaftStatus) {
        let greatest = configuration(status).members().map(|peer| peer.id.0).max().unwrap_or(0);
        if !self.view.members().is_used(greatest) && self.ready.load(Ordering::Relaxed) {
            let _ = self.note_member(Note::Gone(MemberGone { id: greatest })).await;
        }
    }

    /// Those who ran and are members no more. Who is only expected may be added in a moment.
    async fn forget_gone(&self, status: &RaftStatus) {
        let Some(configuration) = status.configuration.as_ref().filter(|configuration| configuration.committed) else {
            return;
        };
        let known = self.view.members();
        let gone = known.iter().find(|(id, info)| info.started && !configuration.membership.contains(NodeId(*id)));
        if let Some((id, _)) = gone {
            // It is there again at the next look if that fails.
            let _ = self.note_member(Note::Gone(MemberGone { id })).await;
        }
    }
}
