//! etcd's `Cluster` service: the members, and changes of them. How they are made is in `members.rs`.

use raftkv::{Membership, NodeId, Peer};
use tonic::{Request, Response, Status};

use super::members::{NewMember, configuration, one_address, passed_on, was_passed_on};
use super::{Context, Replica};
use crate::api::etcdserverpb::cluster_client::ClusterClient;
use crate::api::etcdserverpb::cluster_server::Cluster;
use crate::api::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};

impl<R: Replica> Context<R> {
    /// As in etcd a member has no name before it has run.
    fn member(&self, peer: &Peer, membership: &Membership) -> Member {
        let client = self.client_address(peer.id);
        let runs = client.is_some() || self.view.members().get(peer.id.0).is_none_or(|info| info.started);
        Member {
            id: peer.id.0,
            name: if runs { format!("n{}", peer.id.0) } else { String::new() },
            peer_urls: vec![url(&peer.address, self.options.peers_have_tls)],
            client_urls: client.iter().map(|address| url(address, self.options.clients_tls.is_some())).collect(),
            is_learner: membership.is_learner(peer.id),
        }
    }

    async fn members(&self) -> Result<Vec<Member>, Status> {
        let membership = configuration(&self.status().await?);
        Ok(membership.members().map(|peer| self.member(peer, &membership)).collect())
    }
}

/// Members are all alike in whether they speak TLS.
fn url(address: &str, with_tls: bool) -> String {
    format!("{}://{address}", if with_tls { "https" } else { "http" })
}

#[tonic::async_trait]
impl<R: Replica> Cluster for Context<R> {
    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        self.ensure_root(request.metadata()).await?;
        let MemberAddRequest { peer_urls, is_learner } = request.into_inner();
        let new =
            NewMember { id: 0, address: one_address(&peer_urls, self.options.peers_have_tls)?, votes: !is_learner };
        let id = self.add_member(new).await?;
        let members = self.members().await?;
        let member = members.iter().find(|member| member.id == id).cloned();
        Ok(Response::new(MemberAddResponse { header: self.header(self.view.revision()), member, members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        self.ensure_root(request.metadata()).await?;
        let (metadata, _, request) = request.into_parts();
        let (passed, id) = (was_passed_on(&metadata), NodeId(request.id));
        // A leader that is to go hands over first, and does that itself.
        if !passed
            && self.status().await?.leader == Some(id)
            && let Some(leader) = self.leader().await?
        {
            return ClusterClient::new(leader).member_remove(passed_on(&metadata, request)).await;
        }
        self.remove_member(id).await?;
        let members = self.members().await?;
        Ok(Response::new(MemberRemoveResponse { header: self.header(self.view.revision()), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        self.ensure_root(request.metadata()).await?;
        let MemberUpdateRequest { id, peer_urls } = request.into_inner();
        self.move_member(NodeId(id), one_address(&peer_urls, self.options.peers_have_tls)?).await?;
        let members = self.members().await?;
        Ok(Response::new(MemberUpdateResponse { header: self.header(self.view.revision()), members }))
    }

    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        if request.get_ref().linearizable {
            self.prepare_read(false, request.metadata()).await?;
        }
        self.ensure_user(request.metadata()).await?;
        let members = self.members().await?;
        Ok(Response::new(MemberListResponse { header: self.header(self.view.revision()), members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        self.ensure_root(request.metadata()).await?;
        let (metadata, _, request) = request.into_parts();
        let id = request.id;
        if !was_passed_on(&metadata)
            && let Some(leader) = self.leader().await?
        {
            return ClusterClient::new(leader).member_promote(passed_on(&metadata, request)).await;
        }
        self.promote_member(NodeId(id)).await?;
        let members = self.members().await?;
        Ok(Response::new(MemberPromoteResponse { header: self.header(self.view.revision()), members }))
    }
}
