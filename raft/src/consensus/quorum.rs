//! Majorities.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::mutant;
use crate::types::{Membership, NodeId, Peer};

/// How many of `voters` make a majority.
pub(crate) fn majority(voters: usize) -> usize {
    if mutant!("half-is-a-majority") { voters.div_ceil(2) } else { voters / 2 + 1 }
}

/// Who is counted: those that the configuration says.
pub(crate) fn counted(membership: &Membership, leader: NodeId) -> Cow<'_, Membership> {
    if mutant!("learner-is-counted") {
        let mut all = membership.clone();
        all.voters.extend(all.learners.clone());
        return Cow::Owned(all);
    }
    if mutant!("removed-leader-counts-itself") && !membership.is_voter(leader) {
        let mut all = membership.clone();
        all.voters.insert(leader, Peer::new(leader.0, ""));
        return Cow::Owned(all);
    }
    Cow::Borrowed(membership)
}

/// The greatest value that a majority of the voters has reached; of both halves, while the configuration is joint (paper §6). `of`
/// tells each voter's value.
///
/// This is how an index is committed (paper §5.3), a round of heartbeats is confirmed (thesis §6.4), and the moment is found at which
/// a quorum was last heard (thesis §6.2).
pub(crate) fn reached<T: Ord + Copy>(membership: &Membership, of: impl Fn(NodeId) -> T) -> Option<T> {
    halves(membership).map(|half| half_reached(half, &of)).min().flatten()
}

fn half_reached<T: Ord + Copy>(half: &Half, of: impl Fn(NodeId) -> T) -> Option<T> {
    let mut values: Vec<T> = half.keys().map(|id| of(*id)).collect();
    if !mutant!("unsorted-quorum") {
        values.sort_unstable_by(|a, b| b.cmp(a));
    }
    values.get(majority(values.len()) - 1).copied()
}

/// Whether the voters among `ids` are a majority; in both halves, while the configuration is joint.
pub(crate) fn is_majority<'a>(membership: &Membership, ids: impl IntoIterator<Item = &'a NodeId> + Clone) -> bool {
    halves(membership).all(|half| is_half_majority(half, ids.clone()))
}

/// Whether no majority is left without `ids`: they are a majority of either half.
pub(crate) fn is_veto<'a>(membership: &Membership, ids: impl IntoIterator<Item = &'a NodeId> + Clone) -> bool {
    halves(membership).any(|half| is_half_majority(half, ids.clone()))
}

fn is_half_majority<'a>(half: &Half, ids: impl IntoIterator<Item = &'a NodeId>) -> bool {
    ids.into_iter().filter(|id| half.contains_key(id)).count() >= majority(half.len())
}

type Half = BTreeMap<NodeId, Peer>;

/// The sets of voters each of which must agree.
fn halves(membership: &Membership) -> impl Iterator<Item = &Half> {
    let old = membership.is_joint() && !mutant!("joint-counts-only-the-new-half");
    std::iter::once(&membership.voters).chain(old.then_some(&membership.outgoing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Index, Peer};

    fn voters(n: u64) -> Membership {
        Membership::new((1..=n).map(|id| Peer::new(id, format!("node{id}"))))
    }

    #[test]
    fn an_index_is_reached_by_a_majority_whatever_the_order_of_the_nodes() {
        let of = |values: &'static [u64]| move |id: NodeId| Index(values[usize::try_from(id.0).expect("small") - 1]);
        assert_eq!(reached(&voters(1), of(&[7])), Some(Index(7)));
        assert_eq!(reached(&voters(2), of(&[7, 3])), Some(Index(3)));
        assert_eq!(reached(&voters(3), of(&[1, 9, 5])), Some(Index(5)));
        assert_eq!(reached(&voters(3), of(&[9, 1, 1])), Some(Index(1)));
        assert_eq!(reached(&voters(4), of(&[4, 3, 2, 1])), Some(Index(2)));
        assert_eq!(reached(&voters(5), of(&[1, 9, 2, 8, 3])), Some(Index(3)));
        assert_eq!(reached(&voters(0), of(&[])), None);
    }

    #[test]
    fn votes_of_strangers_do_not_count() {
        let membership = voters(3);
        assert!(is_majority(&membership, &[NodeId(1), NodeId(3)]));
        assert!(!is_majority(&membership, &[NodeId(1), NodeId(4), NodeId(5)]));
    }

    /// {1,2,3} replaces {3,4,5}.
    fn joint() -> Membership {
        let outgoing = (3..=5).map(|id| (NodeId(id), Peer::new(id, format!("node{id}")))).collect();
        Membership { outgoing, ..voters(3) }.with_learners([Peer::new(6, "node6")])
    }

    #[test]
    fn a_joint_configuration_needs_a_majority_of_both_halves() {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        assert!(!is_majority(&joint(), &ids(&[1, 2, 3])));
        assert!(!is_majority(&joint(), &ids(&[3, 4, 5, 6])));
        assert!(is_majority(&joint(), &ids(&[1, 3, 4])));
        assert!(
            is_veto(&joint(), &ids(&[1, 2])) && is_veto(&joint(), &ids(&[4, 5])) && !is_veto(&joint(), &ids(&[1, 4]))
        );
    }

    #[test]
    fn a_joint_configuration_has_reached_what_both_halves_have() {
        let values = [9, 8, 1, 2, 3, 99];
        let of = |id: NodeId| values[usize::try_from(id.0).expect("small") - 1];
        assert_eq!(reached(&voters(3), of), Some(8));
        assert_eq!(reached(&joint(), of), Some(2));
    }
}
