//! Images on their way.

use raftkv::{Body, Membership, Part, Published, SnapshotId, SnapshotMeta};

use super::{id, log_id, pb};

pub(super) fn encode_offer(image: Published) -> pb::Offer {
    let Published { meta, len, checksum } = image;
    let SnapshotMeta { id, last, membership, membership_at } = meta;
    let (last, membership_at) = (log_id(last), log_id(membership_at));
    // As it is in the log.
    pb::Offer { image: id.0, last, membership: membership.encode(), membership_at, len, checksum }
}

pub(super) fn decode_offer(offer: pb::Offer) -> Result<Body, String> {
    let pb::Offer { image, last, membership, membership_at, len, checksum } = offer;
    let meta = SnapshotMeta {
        id: SnapshotId(image),
        last: id("last", last)?,
        membership: Membership::decode(&membership)?,
        membership_at: id("membership_at", membership_at)?,
    };
    Ok(Body::Offer { image: Published { meta, len, checksum } })
}

pub(super) fn encode_chunk(image: SnapshotId, offset: u64, part: Option<Part>) -> pb::Chunk {
    let part = part.map(|Part { data, checksum }| pb::Part { data, checksum });
    pb::Chunk { image: image.0, offset, part }
}

pub(super) fn decode_chunk(chunk: pb::Chunk) -> Body {
    let pb::Chunk { image, offset, part } = chunk;
    let part = part.map(|pb::Part { data, checksum }| Part { data, checksum });
    Body::Chunk { image: SnapshotId(image), offset, part }
}
