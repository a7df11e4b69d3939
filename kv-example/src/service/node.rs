//! Our own `Node` service: what operators want to know beyond etcd's protocol.

use raftkv::{Index, LogId, NodeId, ReplicationState, SessionId, Status as RaftStatus};
use tonic::{Request, Response, Status};

use super::members::{NewMember, address, configuration, passed_on, was_passed_on};
use super::refused::{Intent, not_transferred, to_status};
use super::{Context, Replica, Standing};
use crate::api::node::node_client::NodeClient;
use crate::api::node::node_server::Node;
use crate::api::node::{
    AddMemberRequest, CampaignRequest, CampaignResponse, CloseSessionRequest, CloseSessionResponse, Disk, Image,
    MemberChangeResponse, NodeStatusRequest, NodeStatusResponse, OpenSessionRequest, OpenSessionResponse, PeerStatus,
    Receiving, ReplaceMemberRequest, SetPreferenceRequest, SetPreferenceResponse, TakeSnapshotRequest,
    TakeSnapshotResponse, TransferLeadershipRequest, TransferLeadershipResponse,
};

fn image(last: LogId, bytes: u64) -> Image {
    Image { index: last.index.0, term: last.term.0, bytes }
}

/// How far this node is with the image that it receives.
fn receiving(status: &RaftStatus) -> Option<Receiving> {
    let receiving = status.receiving.as_ref()?;
    Some(Receiving {
        from: receiving.from.0,
        image: Some(image(receiving.last, receiving.len)),
        stored: receiving.stored,
        rate: receiving.rate,
    })
}

/// The other members, with their progress where this node leads, and with their addresses if these may be seen.
fn peers(status: &RaftStatus, known: bool) -> Vec<PeerStatus> {
    let membership = configuration(status);
    let others = status.members.iter().filter(|peer| peer.id != status.id);
    others
        .map(|member| {
            let address = if known { member.address.as_ref().to_owned() } else { String::new() };
            let mut peer = PeerStatus { id: member.id.0, address, ..Default::default() };
            peer.learner = membership.is_learner(member.id);
            if let Some(progress) = status.peers.iter().find(|progress| progress.id == member.id) {
                peer.matched = progress.matched.0;
                peer.next = progress.next.0;
                peer.state = match progress.state {
                    ReplicationState::Probe => "probe".into(),
                    ReplicationState::Replicate => "replicate".into(),
                    ReplicationState::Snapshot => "snapshot".into(),
                };
                peer.in_flight = progress.inflight as u64;
                peer.last_contact_ms =
                    progress.silent_for.map(|silence| u64::try_from(silence.as_millis()).unwrap_or(u64::MAX));
                peer.lag = status.last.index.since(progress.matched);
                peer.fetched = progress.fetched;
            }
            peer
        })
        .collect()
}

impl<R: Replica> Context<R> {
    /// What the node takes of its disk, if it knows.
    async fn disk(&self) -> Option<Disk> {
        let disk = self.options.room.as_ref()?.look().await?;
        Some(Disk { log: disk.log, log_entries: disk.entries, images: disk.images, contents: disk.contents })
    }
}

#[tonic::async_trait]
impl<R: Replica> Node for Context<R> {
    async fn status(&self, request: Request<NodeStatusRequest>) -> Result<Response<NodeStatusResponse>, Status> {
        // Everybody may ask for the leader, or whether a node is well; where the others are is for users.
        let known = self.is_known(request.metadata());
        let status = Context::status(self).await?;
        let stats = self.view.stats();
        let Index(applied) = status.applied;
        Ok(Response::new(NodeStatusResponse {
            id: status.id.0,
            cluster_id: self.options.cluster.0,
            role: status.role.to_string(),
            leader: status.leader.map_or(0, |NodeId(id)| id),
            term: status.term.0,
            log_first: status.base.index.next().0,
            log_last: status.last.index.0,
            commit: status.commit.0,
            applied,
            lag: status.commit.since(status.applied),
            peers: peers(&status, known),
            db_size: stats.bytes,
            revision: self.view.revision(),
            // 0 is easier to understand than etcd's -1.
            compact_revision: self.view.compacted().max(0),
            keys: stats.live,
            client_address: if known { self.options.client_address.clone() } else { String::new() },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            stored: status.stored.0,
            removed: self.standing() == Standing::Removed,
            learner: configuration(&status).is_learner(status.id),
            catching_up: status.change.iter().flat_map(|change| &change.catching_up).map(|id| id.0).collect(),
            image: status.snapshot.map(|snapshot| image(snapshot.last, snapshot.len)),
            receiving: receiving(&status),
            priority: status.priority,
            may_lead: status.may_lead,
            disk: self.disk().await,
        }))
    }

    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        self.ensure_root_here(request.metadata()).await?;
        self.replica.campaign().await.map_err(|error| to_status(&error, Intent::Read))?;
        let term = Context::status(self).await?.term.0;
        Ok(Response::new(CampaignResponse { term }))
    }

    async fn add_member(&self, request: Request<AddMemberRequest>) -> Result<Response<MemberChangeResponse>, Status> {
        self.ensure_root(request.metadata()).await?;
        let AddMemberRequest { id, address: url, learner } = request.into_inner();
        let id = Context::add_member(
            self,
            NewMember { id, address: address(&url, self.options.peers_have_tls)?, votes: !learner },
        )
        .await?;
        Ok(Response::new(MemberChangeResponse { id, cluster_id: self.options.cluster.0 }))
    }

    async fn replace_member(
        &self,
        request: Request<ReplaceMemberRequest>,
    ) -> Result<Response<MemberChangeResponse>, Status> {
        self.ensure_root(request.metadata()).await?;
        let (metadata, _, request) = request.into_parts();
        let (passed, old) = (was_passed_on(&metadata), NodeId(request.old));
        // A leader that is to go hands over first, and does that itself.
        if !passed
            && Context::status(self).await?.leader == Some(old)
            && let Some(leader) = self.leader().await?
        {
            return NodeClient::new(leader).replace_member(passed_on(&metadata, request)).await;
        }
        let new = NewMember {
            id: request.id,
            address: address(&request.address, self.options.peers_have_tls)?,
            votes: false,
        };
        let id = Context::replace_member(self, old, new).await?;
        Ok(Response::new(MemberChangeResponse { id, cluster_id: self.options.cluster.0 }))
    }

    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        self.ensure_member().await?;
        self.catch_up().await?;
        let author = self.ensure_user(request.metadata()).await?;
        // A session that was opened unknown to anybody expires.
        let session = self.replica.open_session().await.map_err(|error| to_status(&error, Intent::Read))?;
        Ok(Response::new(OpenSessionResponse { session: session.0, proof: self.proof(author.as_ref(), session.0) }))
    }

    async fn close_session(
        &self,
        request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        self.ensure_member().await?;
        self.newest_auth().await?;
        let author = self.ensure_user(request.metadata()).await?;
        let CloseSessionRequest { session, proof } = request.into_inner();
        self.ensure_own_session(author.as_ref(), session, &proof)?;
        let session = SessionId(session);
        self.replica.close_session(session).await.map_err(|error| to_status(&error, Intent::Read))?;
        Ok(Response::new(CloseSessionResponse {}))
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipResponse>, Status> {
        self.ensure_root(request.metadata()).await?;
        let (metadata, _, request) = request.into_parts();
        let target = Some(NodeId(request.target)).filter(|target| target.0 != 0);
        let status = Context::status(self).await?;
        if target.is_some() && status.leader == target {
            return Ok(Response::new(TransferLeadershipResponse { leader: request.target }));
        }
        if !was_passed_on(&metadata)
            && let Some(leader) = self.leader().await?
        {
            return NodeClient::new(leader).transfer_leadership(passed_on(&metadata, request)).await;
        }
        let leader = self.replica.transfer_leadership(target).await.map_err(|error| not_transferred(&error))?;
        Ok(Response::new(TransferLeadershipResponse { leader: leader.0 }))
    }

    async fn take_snapshot(
        &self,
        request: Request<TakeSnapshotRequest>,
    ) -> Result<Response<TakeSnapshotResponse>, Status> {
        self.ensure_root_here(request.metadata()).await?;
        let last = self.replica.snapshot().await.map_err(|error| to_status(&error, Intent::Read))?;
        // Another one may be complete already: then that is the one to speak of.
        let newest = Context::status(self).await?.snapshot.filter(|newest| newest.last >= last);
        Ok(Response::new(TakeSnapshotResponse { image: newest.map(|newest| image(newest.last, newest.len)) }))
    }

    async fn set_preference(
        &self,
        request: Request<SetPreferenceRequest>,
    ) -> Result<Response<SetPreferenceResponse>, Status> {
        self.ensure_root_here(request.metadata()).await?;
        let SetPreferenceRequest { priority, may_lead } = request.into_inner();
        self.replica.prefer(priority, may_lead).await.map_err(|error| to_status(&error, Intent::Read))?;
        let status = Context::status(self).await?;
        Ok(Response::new(SetPreferenceResponse { priority: status.priority, may_lead: status.may_lead }))
    }
}
