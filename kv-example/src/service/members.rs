//! Changes of who is in the cluster: what etcd's `Cluster` service and our own `Node` service have in common.
//!
//! A new member gets the log first and votes later, whoever asks for it: `MemberAdd` answers as soon as it is a learner, so that it can
//! be started then; the leader's steward (`steward.rs`) promotes it once it has caught up. A member that shall stay a learner is promoted by
//! `MemberPromote` alone.

use std::time::Duration;

use raftkv::{Change, ChangeError, ChangeRefused, Membership, NodeId, Peer, ReplicationState, Status as RaftStatus};
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;

use super::auth::token;
use super::refused::{self, not_changed};
use super::{Context, Replica};
use crate::api::command::{MemberExpected, MemberGone, MemberNote, command, member_note::Note, outcome};
use crate::client::endpoint::connect;
use crate::config::HostPort;

/// How long a change waits for another one to end. Below etcdctl's 5 s.
const BUSY_LIMIT: Duration = Duration::from_secs(3);
/// How often a change is tried again whose leader was lost in the middle.
const UNKNOWN_LIMIT: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// How long a leader may take to accept a connection of a member that passes a request on.
const LEADER_LIMIT: Duration = Duration::from_secs(1);
/// The metadata key of a request that a member passed on to the leader: it goes no further.
const PASSED_ON: &str = "raftkv-passed-on";
/// A learner that lacks no more than this many entries, and was heard this lately, is in sync: it catches up with the rest in a moment.
pub(super) const IN_SYNC_ENTRIES: u64 = 4096;
pub(super) const IN_SYNC_SILENCE: Duration = Duration::from_secs(1);

/// A member to be.
#[derive(Clone, Debug)]
pub(super) struct NewMember {
    /// 0: the first one that was never used.
    pub(super) id: u64,
    pub(super) address: String,
    /// Whether it shall vote as soon as it has caught up.
    pub(super) votes: bool,
}

/// The configuration in force, as far as this node knows.
pub(super) fn configuration(status: &RaftStatus) -> Membership {
    match &status.configuration {
        Some(configuration) => configuration.membership.clone(),
        None => Membership::new(status.members.iter().cloned()),
    }
}

/// Whether a leader's learner has all of the log, or will have it in a moment.
pub(super) fn in_sync(status: &RaftStatus, id: NodeId) -> bool {
    status.peers.iter().find(|peer| peer.id == id).is_some_and(|peer| {
        peer.state == ReplicationState::Replicate
            && status.last.index.since(peer.matched) <= IN_SYNC_ENTRIES
            && peer.silent_for.is_some_and(|silence| silence <= IN_SYNC_SILENCE)
    })
}

/// What is left to do until a new member has the place of an old one.
fn replacement(present: &Membership, old: NodeId, new: &Peer, votes: bool) -> Option<Change> {
    match (present.contains(old), present.contains(new.id)) {
        (true, false) => Some(Change::new().replace(old, new.clone())),
        (true, true) if votes && !present.is_voter(new.id) => Some(Change::new().promote(new.id).remove(old)),
        (true, true) => Some(Change::new().remove(old)),
        // Somebody else has removed the old one.
        (false, true) if votes && !present.is_voter(new.id) => Some(Change::new().promote(new.id)),
        (false, false) if votes => Some(Change::new().add_voter(new.clone())),
        (false, false) => Some(Change::new().add_learner(new.clone())),
        (false, true) => None,
    }
}

pub(super) fn was_passed_on(metadata: &MetadataMap) -> bool {
    metadata.contains_key(PASSED_ON)
}

/// The request for the leader, with the token that it came with, and marked so that it goes no further.
pub(super) fn passed_on<T>(metadata: &MetadataMap, message: T) -> tonic::Request<T> {
    let mut request = token::pass_on(metadata, tonic::Request::new(message));
    request.metadata_mut().insert(PASSED_ON, MetadataValue::from_static("1"));
    request
}

/// Reads an address as etcd's clients write it (`http://host:port`), or without the scheme. Members are all alike in whether they speak TLS.
pub(super) fn address(url: &str, with_tls: bool) -> Result<String, Status> {
    let bare = url.trim().trim_end_matches('/');
    let bare = match bare.strip_prefix("https://") {
        Some(_) if !with_tls => {
            return Err(refused::bad_address("members speak without encryption: http://HOST:PORT"));
        }
        Some(bare) => bare,
        None => bare.strip_prefix("http://").unwrap_or(bare),
    };
    let parsed: Result<HostPort, _> = bare.parse();
    match parsed {
        Ok(address) if !address.is_unspecified() => Ok(address.to_string()),
        Ok(address) => Err(refused::bad_address(&format!(
            "nobody can go to {address}, which stands for all addresses of a machine"
        ))),
        Err(reason) => Err(refused::bad_address(&reason)),
    }
}

/// A member has one address here.
pub(super) fn one_address(urls: &[String], with_tls: bool) -> Result<String, Status> {
    match urls {
        [url] => address(url, with_tls),
        [] => Err(refused::bad_address("there is none; name the address at which the other members will reach it")),
        _ => Err(refused::several_addresses()),
    }
}

impl<R: Replica> Context<R> {
    /// Adds a learner, which votes later if it is to. Told twice, it does nothing. Returns its id.
    pub(super) async fn add_member(&self, new: NewMember) -> Result<u64, Status> {
        let present = configuration(&self.status().await?);
        if new.id != 0 && present.get(NodeId(new.id)).is_some_and(|peer| *peer.address == new.address) {
            return Ok(new.id);
        }
        if let Some(other) = present.members().find(|peer| *peer.address == new.address) {
            return Err(refused::address_used(other));
        }
        self.ensure_room(&present, !new.votes)?;
        let id = self.expect_member(&new, &present).await?;
        let peer = Peer::new(id, new.address);
        self.make(|present| (!present.contains(peer.id)).then(|| Change::new().add_learner(peer.clone()))).await?;
        Ok(id)
    }

    fn ensure_room(&self, present: &Membership, learner: bool) -> Result<(), Status> {
        let limit = self.options.max_members;
        if present.members().count() >= limit { Err(refused::too_many_members(limit, learner)) } else { Ok(()) }
    }

    /// Gets an id for a new member, which nobody had before.
    async fn expect_member(&self, new: &NewMember, present: &Membership) -> Result<u64, Status> {
        let highest = present.members().map(|peer| peer.id.0).max().unwrap_or(0);
        let expected = MemberExpected { id: new.id, address: new.address.clone(), votes: new.votes, highest };
        self.note_member(Note::Expected(expected)).await
    }

    pub(super) async fn note_member(&self, note: Note) -> Result<u64, Status> {
        match self.propose_own(command::Body::Member(MemberNote { note: Some(note) })).await? {
            outcome::Body::Member(noted) => Ok(noted.id),
            outcome::Body::Put(_)
            | outcome::Body::DeleteRange(_)
            | outcome::Body::Txn(_)
            | outcome::Body::Compact(_)
            | outcome::Body::Auth(_)
            | outcome::Body::Refusal(_) => Err(super::kv::unexpected()),
        }
    }

    /// Removes a member that does not lead, or this node. A leader hands over first, so that no write in progress is left open.
    pub(super) async fn remove_member(&self, id: NodeId) -> Result<(), Status> {
        let status = self.status().await?;
        let present = configuration(&status);
        if !present.contains(id) {
            return Err(refused::member_not_found(id, &present));
        }
        if status.leader == Some(id) && status.id == id && present.voters.len() > 1 {
            // When nobody can take over, the change itself tells why.
            let handed_over = self.replica.transfer_leadership(None).await;
            tracing::info!(outcome = ?handed_over, "this leader is to be removed: leadership is handed over first");
        }
        self.make(|present| present.contains(id).then(|| Change::new().remove(id))).await?;
        if id != self.options.node {
            // Without it the leader's steward does it later.
            let _ = self.note_member(Note::Gone(MemberGone { id: id.0 })).await;
        }
        Ok(())
    }

    /// Changes where a member is reached.
    pub(super) async fn move_member(&self, id: NodeId, address: String) -> Result<(), Status> {
        let present = configuration(&self.status().await?);
        if !present.contains(id) {
            return Err(refused::member_not_found(id, &present));
        }
        let peer = Peer::new(id.0, address);
        self.make(|present| (present.get(id) != Some(&peer)).then(|| Change::new().set_address(peer.clone()))).await
    }

    /// Lets a learner vote, if it is in sync. To be asked of the leader, if that can be reached: nobody else knows.
    pub(super) async fn promote_member(&self, id: NodeId) -> Result<(), Status> {
        let status = self.status().await?;
        let present = configuration(&status);
        if !present.contains(id) {
            return Err(refused::member_not_found(id, &present));
        }
        if !present.is_learner(id) {
            return Err(refused::no_learner(id));
        }
        if status.leader == Some(status.id) && !in_sync(&status, id) {
            return Err(refused::not_in_sync(&status, id));
        }
        self.make(|present| (!present.is_voter(id)).then(|| Change::new().promote(id))).await
    }

    /// Puts a new member in the place of an old one, in one change. Returns its id once it votes, or learns, in place of the old one.
    pub(super) async fn replace_member(&self, old: NodeId, new: NewMember) -> Result<u64, Status> {
        let present = configuration(&self.status().await?);
        if !present.contains(old) {
            return Err(refused::member_not_found(old, &present));
        }
        let there = present.members().find(|peer| *peer.address == new.address && peer.id != old);
        let id = match there {
            // Added before, and perhaps started: all that is left is to take the place.
            Some(peer) if present.is_learner(peer.id) && (new.id == 0 || new.id == peer.id.0) => peer.id.0,
            Some(other) => return Err(refused::address_used(other)),
            None => self.expect_member(&new, &present).await?,
        };
        let peer = Peer::new(id, new.address);
        let votes = present.is_voter(old);
        self.make(|present| replacement(present, old, &peer, votes)).await?;
        if old != self.options.node {
            let _ = self.note_member(Note::Gone(MemberGone { id: old.0 })).await;
        }
        Ok(id)
    }

    /// Makes the change that `plan` makes of the configuration in force; none when there is nothing left to do. Waits for another change that is
    /// in progress, and looks again when the leader was lost in the middle.
    async fn make(&self, plan: impl Fn(&Membership) -> Option<Change>) -> Result<(), Status> {
        let mut unknown = 0;
        let mut busy_since: Option<Instant> = None;
        loop {
            let status = self.status().await?;
            let Some(change) = plan(&configuration(&status)) else { return Ok(()) };
            if self.is_removed(&status) {
                return Err(refused::removed());
            }
            let error = match self.replica.change_membership(change.clone()).await {
                Ok(id) => {
                    tracing::info!(configuration = %id, ?change, "the members have changed");
                    self.see_change().await;
                    return Ok(());
                }
                Err(error) => error,
            };
            let again = match &error {
                ChangeError::Refused(ChangeRefused::NoDifference) => {
                    self.see_change().await;
                    return Ok(());
                }
                ChangeError::Refused(ChangeRefused::InProgress { .. } | ChangeRefused::NotReady) => {
                    busy_since.get_or_insert_with(Instant::now).elapsed() < BUSY_LIMIT
                }
                ChangeError::OutcomeUnknown => {
                    unknown += 1;
                    unknown <= UNKNOWN_LIMIT
                }
                ChangeError::Refused(_)
                | ChangeError::Unavailable
                | ChangeError::Overloaded
                | ChangeError::Stopped(_)
                | _ => false,
            };
            if !again {
                tracing::info!(%error, ?change, "the members have not changed");
                return Err(not_changed(&error));
            }
            tokio::time::sleep(BUSY_PAUSE).await;
            if matches!(error, ChangeError::OutcomeUnknown) {
                self.see_change().await;
            }
        }
    }

    /// Waits until this node knows of the change as well, as far as it can.
    async fn see_change(&self) {
        let _ = tokio::time::timeout(LEADER_LIMIT, self.replica.read(raftkv::Consistency::Linearizable)).await;
    }

    /// A way to the leader's services, where another node leads and can be reached by its address for clients.
    pub(super) async fn leader(&self) -> Result<Option<Channel>, Status> {
        let status = self.status().await?;
        let Some(leader) = status.leader.filter(|leader| *leader != status.id) else { return Ok(None) };
        let Some(address) = self.client_address(leader) else { return Ok(None) };
        let Ok(address) = address.parse() else { return Ok(None) };
        let connected = connect(&address, LEADER_LIMIT, self.options.clients_tls.as_ref()).await;
        Ok(connected.inspect_err(|reason| tracing::warn!(%address, reason, "the leader can't be asked")).ok())
    }

    /// Where a member serves clients, as far as anybody said.
    pub(super) fn client_address(&self, id: NodeId) -> Option<String> {
        if id == self.options.node {
            return Some(self.options.client_address.clone()).filter(|address| !address.is_empty());
        }
        let noted = self.view.members().get(id.0).map(|info| info.client_address.clone());
        let noted = noted.filter(|address| !address.is_empty());
        noted.or_else(|| self.options.client_addresses.get(&id).cloned())
    }

    /// Whether this node is a member no more. One that was removed in an earlier run is known to have run, or forgotten; a new one, whose
    /// log does not reach to its own addition yet, is expected, or has an id that nobody had.
    pub(super) fn is_removed(&self, status: &RaftStatus) -> bool {
        let without = status.configuration.as_ref().filter(|found| !found.membership.contains(status.id));
        if without.is_some() && self.options.was_removed {
            return true;
        }
        let without = without.is_some_and(|configuration| configuration.committed);
        let id = status.id.0;
        let members = without.then(|| self.view.members());
        let was_there = members.is_some_and(|known| known.get(id).map_or(known.is_used(id), |info| info.started));
        status.removed.is_some() || was_there
    }
}
