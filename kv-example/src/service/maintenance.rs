//! etcd's `Maintenance` service, as far as it means something here.

use raftkv::NodeId;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::members::configuration;
use super::refused::not_transferred;
use super::{Context, Replica, unsupported};
use crate::api::etcdserverpb::alarm_request::AlarmAction;
use crate::api::etcdserverpb::maintenance_server::Maintenance;
use crate::api::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse,
};

#[tonic::async_trait]
impl<R: Replica> Maintenance for Context<R> {
    type SnapshotStream = BoxStream<SnapshotResponse>;

    /// This server raises no alarms, so the list is empty. `etcdctl endpoint health` asks for it.
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        match request.get_ref().action() {
            AlarmAction::Get => self.ensure_user(request.metadata()).await.map(drop)?,
            AlarmAction::Activate | AlarmAction::Deactivate => self.ensure_root(request.metadata()).await?,
        }
        match request.into_inner().action() {
            AlarmAction::Get => {
                let header = self.header(self.view.revision());
                Ok(Response::new(AlarmResponse { header, alarms: Vec::new() }))
            }
            AlarmAction::Activate | AlarmAction::Deactivate => Err(unsupported("changing alarms")),
        }
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let status = Context::status(self).await?;
        let bytes = i64::try_from(self.view.stats().bytes).unwrap_or(i64::MAX);
        let errors = match (self.ensure_member().await, status.leader) {
            (Err(outside), _) => vec![outside.message().to_owned()],
            (Ok(()), None) => vec!["etcdserver: no leader".to_owned()],
            (Ok(()), Some(_)) => Vec::new(),
        };
        Ok(Response::new(StatusResponse {
            header: self.header(self.view.revision()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            db_size: bytes,
            leader: status.leader.map_or(0, |leader| leader.0),
            raft_index: status.commit.0,
            raft_term: status.term.0,
            raft_applied_index: status.applied.0,
            errors,
            db_size_in_use: bytes,
            is_learner: configuration(&status).is_learner(status.id),
        }))
    }

    async fn defragment(&self, request: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        self.ensure_root(request.metadata()).await?;
        Err(unsupported("defragmentation (what a compaction frees is used again without it)"))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.ensure_root(request.metadata()).await?;
        Err(unsupported("Hash (use HashKV)"))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        self.ensure_root(request.metadata()).await?;
        let newest = self.view.revision();
        let checksum = self.view.checksum(request.into_inner().revision).await?;
        Ok(Response::new(HashKvResponse {
            header: self.header(newest.max(checksum.revision)),
            hash: checksum.crc,
            compact_revision: checksum.compacted,
            hash_revision: checksum.revision,
        }))
    }

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        self.ensure_root(request.metadata()).await?;
        Err(unsupported("Snapshot"))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        self.ensure_root(request.metadata()).await?;
        let target = NodeId(request.into_inner().target_id);
        let status = Context::status(self).await?;
        if status.leader != Some(target) || status.leader != Some(status.id) {
            self.replica.transfer_leadership(Some(target)).await.map_err(|error| not_transferred(&error))?;
        }
        Ok(Response::new(MoveLeaderResponse { header: self.header(self.view.revision()) }))
    }
}
