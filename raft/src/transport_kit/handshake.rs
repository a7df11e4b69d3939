//! What a receiver asks of whoever connects.

use crate::error::Refusal;
use crate::runtime::Inbox;
use crate::types::{ClusterId, NodeId, Peer};

/// Host names have at most 253 bytes. Whoever claims a longer address is refused.
pub const MAX_ADDRESS_BYTES: usize = 300;

/// What a sender says of itself before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// The version of the protocol that it speaks.
    pub version: u32,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Who it is.
    pub from: NodeId,
    /// Where it receives, for answers to nodes that are in no configuration known here yet.
    pub address: &'a str,
    /// Whom it wants to reach.
    pub to: NodeId,
}

impl Hello<'_> {
    /// The sender, if this receiver is whom it wants, and speaks this version.
    ///
    /// # Errors
    /// Why it is refused: both sides should log it.
    pub fn check(&self, inbox: &Inbox, version: u32) -> Result<Peer, String> {
        if self.version != version {
            return Err(format!(
                "this node speaks version {version} of the protocol, not {}: upgrade the older one",
                self.version
            ));
        }
        let (ours, theirs) = (inbox.cluster(), self.cluster);
        if ours != theirs {
            return Err(Refusal::WrongCluster { ours, theirs }.to_string());
        }
        let (ours, wanted) = (inbox.node(), self.to);
        if ours != wanted {
            return Err(Refusal::WrongNode { ours, wanted }.to_string());
        }
        if self.from.0 == 0 || self.address.is_empty() || self.address.len() > MAX_ADDRESS_BYTES {
            return Err("the hello names no node, or no address that could be one".into());
        }
        Ok(Peer::new(self.from.0, self.address))
    }
}
