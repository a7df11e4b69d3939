//! etcd's `Cluster` service: the list of members.

use raftkv::Peer;
use tonic::{Request, Response, Status};

use super::{Context, Replica, unsupported};
use crate::api::etcdserverpb::cluster_server::Cluster;
use crate::api::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};

impl<R: Replica> Context<R> {
    fn member(&self, peer: &Peer) -> Member {
        let client = if peer.id == self.options.node {
            Some(&self.options.client_address)
        } else {
            self.options.client_addresses.get(&peer.id)
        };
        Member {
            id: peer.id.0,
            name: format!("n{}", peer.id.0),
            peer_urls: vec![url(&peer.address)],
            client_urls: client.filter(|address| !address.is_empty()).map(|address| url(address)).into_iter().collect(),
            is_learner: false,
        }
    }
}

fn url(address: &str) -> String {
    format!("http://{address}")
}

#[tonic::async_trait]
impl<R: Replica> Cluster for Context<R> {
    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        Err(unsupported("MemberAdd"))
    }

    async fn member_remove(&self, _: Request<MemberRemoveRequest>) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(unsupported("MemberRemove"))
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(unsupported("MemberUpdate"))
    }

    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.prepare_read(false).await?;
        }
        let members = self.status().await?.members.iter().map(|peer| self.member(peer)).collect();
        Ok(Response::new(MemberListResponse { header: self.header(self.view.revision()), members }))
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(unsupported("MemberPromote"))
    }
}
