//! Changes of who is in the cluster.

use super::{Client, ClientError, Kind};
use crate::api::etcdserverpb::cluster_client::ClusterClient;
use crate::api::etcdserverpb::{
    MemberListRequest, MemberListResponse, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest,
};
use crate::api::node::node_client::NodeClient;
use crate::api::node::{
    AddMemberRequest, Image, MemberChangeResponse, ReplaceMemberRequest, SetPreferenceRequest, SetPreferenceResponse,
    TakeSnapshotRequest, TransferLeadershipRequest,
};

impl Client {
    /// The members of the cluster, after all changes that were made before this call.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn newest_members(&self) -> Result<MemberListResponse, ClientError> {
        self.call(Kind::Read, |channel| async move {
            ClusterClient::new(channel).member_list(MemberListRequest { linearizable: true }).await
        })
        .await
    }

    /// Adds a member at this address (`HOST:PORT`), under this id (0: the cluster chooses). It gets the log first, and votes once it has
    /// caught up, unless it is to be a learner. Returns as soon as it can be started.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn add_member(&self, id: u64, address: &str, learner: bool) -> Result<MemberChangeResponse, ClientError> {
        self.call(Kind::Write, |channel| {
            let request = AddMemberRequest { id, address: address.to_owned(), learner };
            async move { NodeClient::new(channel).add_member(request).await }
        })
        .await
    }

    /// Puts a new member in the place of an old one. Returns when the new one has caught up and the old one is gone.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn replace_member(&self, old: u64, id: u64, address: &str) -> Result<MemberChangeResponse, ClientError> {
        self.call(Kind::Write, |channel| {
            let request = ReplaceMemberRequest { old, id, address: address.to_owned() };
            async move { NodeClient::new(channel).replace_member(request).await }
        })
        .await
    }

    /// Removes a member.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn remove_member(&self, id: u64) -> Result<(), ClientError> {
        self.call(Kind::Write, |channel| async move {
            ClusterClient::new(channel).member_remove(MemberRemoveRequest { id }).await
        })
        .await
        .map(drop)
    }

    /// Lets a learner vote, if it has caught up.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn promote_member(&self, id: u64) -> Result<(), ClientError> {
        self.call(Kind::Write, |channel| async move {
            ClusterClient::new(channel).member_promote(MemberPromoteRequest { id }).await
        })
        .await
        .map(drop)
    }

    /// Changes where the other members reach a member.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn move_member(&self, id: u64, address: &str) -> Result<(), ClientError> {
        self.call(Kind::Write, |channel| {
            let request = MemberUpdateRequest { id, peer_urls: vec![format!("http://{address}")] };
            async move { ClusterClient::new(channel).member_update(request).await }
        })
        .await
        .map(drop)
    }

    /// Hands leadership over to this member, or (0) to the most up-to-date one. Returns who leads then.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn transfer_leadership(&self, target: u64) -> Result<u64, ClientError> {
        // Told twice, it does no harm.
        self.call(Kind::Read, |channel| async move {
            NodeClient::new(channel).transfer_leadership(TransferLeadershipRequest { target }).await
        })
        .await
        .map(|answer| answer.leader)
    }

    /// Has a node write an image of what it has applied, and cut its log. Returns when the image is complete on its disk; none if nothing was applied
    /// yet. With several endpoints it is the first that can.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn take_snapshot(&self) -> Result<Option<Image>, ClientError> {
        let take = |channel| async move { NodeClient::new(channel).take_snapshot(TakeSnapshotRequest {}).await };
        Ok(self.call(Kind::Read, take).await?.image)
    }

    /// Changes a node's priority, and whether it may lead, until it is started again; none leaves it as it is. With several endpoints it is the
    /// first that answers.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn prefer(
        &self,
        priority: Option<u32>,
        may_lead: Option<bool>,
    ) -> Result<SetPreferenceResponse, ClientError> {
        let request = SetPreferenceRequest { priority, may_lead };
        // Twice is as good as once.
        self.call(Kind::Read, |channel| async move { NodeClient::new(channel).set_preference(request).await }).await
    }
}
