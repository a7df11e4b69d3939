//! Majorities.

use crate::mutant;
use crate::types::{Membership, NodeId};

/// How many of `voters` make a majority.
pub(crate) fn majority(voters: usize) -> usize {
    if mutant!("half-is-a-majority") { voters.div_ceil(2) } else { voters / 2 + 1 }
}

/// The greatest value that a majority of the voters has reached. `of` tells each voter's value.
///
/// This is how an index is committed (paper §5.3), a round of heartbeats is confirmed (thesis §6.4), and the moment is found at which
/// a quorum was last heard (thesis §6.2).
pub(crate) fn reached<T: Ord + Copy>(membership: &Membership, of: impl Fn(NodeId) -> T) -> Option<T> {
    let mut values: Vec<T> = membership.voters.keys().map(|id| of(*id)).collect();
    if !mutant!("unsorted-quorum") {
        values.sort_unstable_by(|a, b| b.cmp(a));
    }
    values.get(majority(values.len()) - 1).copied()
}

/// Whether the voters among `ids` are a majority.
pub(crate) fn is_majority<'a>(membership: &Membership, ids: impl IntoIterator<Item = &'a NodeId>) -> bool {
    let count = ids.into_iter().filter(|id| membership.is_voter(**id)).count();
    count >= majority(membership.voters.len())
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
}
