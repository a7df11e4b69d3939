//! Our own `Node` service: what operators want to know beyond etcd's protocol.

use raftkv::{Index, NodeId, ReplicationState, Status as RaftStatus};
use tonic::{Request, Response, Status};

use super::refused::{Intent, to_status};
use super::{Context, Replica};
use crate::api::node::node_server::Node;
use crate::api::node::{CampaignRequest, CampaignResponse, NodeStatusRequest, NodeStatusResponse, PeerStatus};

/// The other members, with their progress where this node leads.
fn peers(status: &RaftStatus) -> Vec<PeerStatus> {
    let others = status.members.iter().filter(|peer| peer.id != status.id);
    others
        .map(|member| {
            let mut peer =
                PeerStatus { id: member.id.0, address: member.address.as_ref().to_owned(), ..Default::default() };
            if let Some(progress) = status.peers.iter().find(|progress| progress.id == member.id) {
                peer.matched = progress.matched.0;
                peer.next = progress.next.0;
                peer.state = match progress.state {
                    ReplicationState::Probe => "probe".into(),
                    ReplicationState::Replicate => "replicate".into(),
                };
                peer.in_flight = progress.inflight as u64;
                peer.last_contact_ms =
                    progress.silent_for.map(|silence| u64::try_from(silence.as_millis()).unwrap_or(u64::MAX));
                peer.lag = status.last.index.since(progress.matched);
            }
            peer
        })
        .collect()
}

#[tonic::async_trait]
impl<R: Replica> Node for Context<R> {
    async fn status(&self, _: Request<NodeStatusRequest>) -> Result<Response<NodeStatusResponse>, Status> {
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
            peers: peers(&status),
            db_size: stats.bytes,
            revision: self.view.revision(),
            // 0 is easier to understand than etcd's -1.
            compact_revision: self.view.compacted().max(0),
            keys: stats.live,
            client_address: self.options.client_address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            stored: status.stored.0,
        }))
    }

    async fn campaign(&self, _: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        self.replica.campaign().await.map_err(|error| to_status(&error, Intent::Read))?;
        let term = Context::status(self).await?.term.0;
        Ok(Response::new(CampaignResponse { term }))
    }
}
