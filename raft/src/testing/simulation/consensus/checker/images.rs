//! Images: what is offered, installed and restored is what is committed.

use super::{Checker, Nodes};
use crate::testing::simulation::Coverage;
use crate::testing::simulation::consensus::cluster::Node;
use crate::traits::Published;
use crate::types::{LogId, NodeId};

impl Checker {
    /// An image that is offered is on the disk, and what it reflects is committed.
    pub(super) fn offered(&self, node: &Node, image: &Published) -> Result<(), String> {
        if self.limits.is_some() && node.images.published().as_ref() != Some(image) {
            return Err(format!("images: {} offers {image:?}, which it does not have", node.id));
        }
        self.image_is_right(node.id, image)
    }

    /// An image reflects what was committed, and brings the configuration in force there.
    pub(super) fn image_is_right(&self, id: NodeId, image: &Published) -> Result<(), String> {
        let meta = &image.meta;
        if self.limits.is_some() && self.settled(meta.last.index) != Some(meta.last) {
            return Err(format!("images: {id} has an image of {}, which is not what is committed there", meta.last));
        }
        match self.configurations.known_at(meta.last) {
            Some((at, membership)) if at != meta.membership_at || *membership != meta.membership => Err(format!(
                "images: {id} has an image of {} with {} of {}, where {membership} of {at} was in force",
                meta.last, meta.membership, meta.membership_at
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// An image takes the place of the log, up to its last entry: what follows that very entry may have been acknowledged.
    pub(super) fn installs(&mut self, nodes: &Nodes, coverage: &mut Coverage, id: NodeId, last: LogId) {
        let node = &nodes[&id];
        let (Some(core), Some(seen)) = (&node.core, self.seen.get(&id)) else { return };
        let goes_on = seen.last > last && seen.stored > last.index && node.disk.holds(last);
        if goes_on {
            coverage.hit("images installed in front of a log that goes on");
        }
        if goes_on && core.status(node.now).last == last {
            self.dropped =
                Some(format!("images: {id} installs {last}, and drops the log after it, up to {}", seen.last));
        }
    }

    /// A received image is about to take the place of a state.
    pub(crate) fn restores(&self, node: &Node, image: &Published) -> Result<(), String> {
        if node.images.published().as_ref() != Some(image) {
            return Err(format!("images: {} is to restore {image:?}, which it does not have", node.id));
        }
        self.image_is_right(node.id, image)
    }
}
