//! The nouns of Raft: who (node, group, cluster), when (term), where in the log (index, log id), and what (entry).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number! {
    /// A member of a cluster. Chosen by the operator, positive, and never reused for another machine's data.
    NodeId, "n"
}
number! {
    /// One Raft group. A process and a transport may host many; a single-group service uses the default, 0.
    GroupId, "g"
}
number! {
    /// An election term (paper §5.1). 0 precedes the first election.
    Term, "t"
}
number! {
    /// A position in the log, from 1. 0 is the position before the first entry.
    Index, "i"
}

impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

impl Term {
    /// The term after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Index {
    /// The position before the first entry.
    pub const ZERO: Self = Self(0);

    /// The next position.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The position before this one; 0 stays 0.
    #[must_use]
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The position `n` further on.
    #[must_use]
    pub fn plus(self, n: u64) -> Self {
        Self(self.0 + n)
    }

    /// How many positions this is beyond `other`; 0 when it is not.
    #[must_use]
    pub fn since(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

/// Which cluster a message or a directory belongs to, so that two clusters that meet by mistake refuse each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub u64);

impl ClusterId {
    /// Derives an id from a name and the first members, so that two clusters bootstrapped with different members, or
    /// under different names, are different clusters (FNV-1a, 64 bits: stable across builds and platforms).
    #[must_use]
    pub fn derive(name: &str, members: &Membership) -> Self {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let mut mix = |bytes: &[u8]| {
            for byte in bytes.iter().chain(&[0xff]) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        mix(name.as_bytes());
        for peer in members.voters.values() {
            mix(&peer.id.0.to_be_bytes());
            mix(peer.address.as_bytes());
        }
        Self(hash)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The identity of an entry. Two logs that hold an entry with the same id hold the same entry, and the same entries
/// before it (Log Matching, paper §5.3).
///
/// The derived order, term before index, is the "more up-to-date" order of elections (paper §5.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogId {
    /// The term of the leader that created the entry.
    pub term: Term,
    /// The entry's position.
    pub index: Index,
}

impl LogId {
    /// The id before the first entry of an empty log.
    pub const ZERO: Self = Self { term: Term(0), index: Index(0) };

    /// An id from its two numbers.
    #[must_use]
    pub const fn new(term: u64, index: u64) -> Self {
        Self { term: Term(term), index: Index(index) }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index.0, self.term.0)
    }
}

/// What an entry is for. Backends store it and never look behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum EntryKind {
    /// The empty entry with which a leader opens its term (paper §8).
    Noop = 0,
    /// A command for the state machine.
    Command = 1,
    /// A configuration: an encoded [`Membership`], in force from the moment it is in the log (paper §6).
    Config = 2,
    /// Something that a client's session asks for: most often a command for the state machine that is to be applied once, however often
    /// it is in the log (thesis §6.3).
    Session = 3,
    /// For how many milliseconds the leader of this term has led, as eight little-endian bytes. By such entries all nodes agree on when a
    /// session has expired.
    Clock = 4,
}

impl EntryKind {
    /// The kind with this number on the wire and on disk.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Noop),
            1 => Some(Self::Command),
            2 => Some(Self::Config),
            3 => Some(Self::Session),
            4 => Some(Self::Clock),
            _ => None,
        }
    }

    /// Whether clients may ask for entries of this kind. The others are the leader's own.
    #[must_use]
    pub const fn is_proposed(self) -> bool {
        match self {
            Self::Command | Self::Session => true,
            Self::Noop | Self::Config | Self::Clock => false,
        }
    }
}

/// A log entry. Cloning is cheap: the payload is shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// Its identity.
    pub id: LogId,
    /// What it is for.
    pub kind: EntryKind,
    /// The payload, as the kind says.
    pub data: Bytes,
}

impl Entry {
    /// The fixed part of [`Entry::cost`], in bytes.
    pub const OVERHEAD: u64 = 64;

    /// What the entry counts against every byte limit: its payload and a fixed overhead, so that a flood of empty
    /// commands is bounded as well.
    #[must_use]
    pub fn cost(&self) -> u64 {
        Self::OVERHEAD + self.data.len() as u64
    }

    /// Of entries in order as many as [`LogStore::read`](crate::LogStore::read) gives: those that cost at most `max_bytes` together, and at least one.
    #[must_use]
    pub fn fitting(entries: impl IntoIterator<Item = Self>, max_bytes: u64) -> Vec<Self> {
        let mut left = Some(max_bytes);
        let mut fitting = Vec::new();
        for entry in entries {
            left = left.and_then(|left| left.checked_sub(entry.cost()));
            if left.is_none() && !fitting.is_empty() {
                break;
            }
            fitting.push(entry);
        }
        fitting
    }
}

/// A node and where to reach it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// The node.
    pub id: NodeId,
    /// An address in the transport's own form, for example `host:port`.
    pub address: Arc<str>,
}

impl Peer {
    /// A peer from its number and address.
    #[must_use]
    pub fn new(id: u64, address: impl Into<Arc<str>>) -> Self {
        Self { id: NodeId(id), address: address.into() }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.id.0, self.address)
    }
}

/// The configuration of a group: who votes, who only learns, and where everyone is.
///
/// While one set of voters replaces another, the configuration is *joint* (C<sub>old,new</sub> of the paper, §6): whatever needs a
/// majority needs one of `voters` and one of `outgoing`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Membership {
    /// The members whose votes and logs count.
    pub voters: BTreeMap<NodeId, Peer>,
    /// While the configuration is joint: the voters of the configuration that it replaces, some of which may vote in both. Else empty.
    pub outgoing: BTreeMap<NodeId, Peer>,
    /// Members that get the log, and serve reads, but count in no majority and never campaign (thesis §4.2.1). While the configuration
    /// is joint, one that is to become a learner is in here and still votes among `outgoing`.
    pub learners: BTreeMap<NodeId, Peer>,
}

impl Membership {
    /// A configuration of voters.
    pub fn new(voters: impl IntoIterator<Item = Peer>) -> Self {
        Self { voters: by_id(voters), ..Self::default() }
    }

    /// The same configuration with these learners.
    #[must_use]
    pub fn with_learners(self, learners: impl IntoIterator<Item = Peer>) -> Self {
        Self { learners: by_id(learners), ..self }
    }

    /// Whether one set of voters is being replaced by another, and both must agree to everything.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `id` votes; while the configuration is joint, in either half.
    #[must_use]
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.contains_key(&id) || self.outgoing.contains_key(&id)
    }

    /// Whether `id` is a member that does not vote.
    #[must_use]
    pub fn is_learner(&self, id: NodeId) -> bool {
        self.learners.contains_key(&id) && !self.is_voter(id)
    }

    /// Whether `id` is a voter or a learner.
    #[must_use]
    pub fn contains(&self, id: NodeId) -> bool {
        self.get(id).is_some()
    }

    /// The member with this id.
    #[must_use]
    pub fn get(&self, id: NodeId) -> Option<&Peer> {
        self.voters.get(&id).or_else(|| self.outgoing.get(&id)).or_else(|| self.learners.get(&id))
    }

    /// All members, voters of both halves and learners, each once, in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = &Peer> {
        let all = self.voters.iter().chain(&self.outgoing).chain(&self.learners);
        all.collect::<BTreeMap<_, _>>().into_values()
    }

    /// The voters of both halves, each once, in the order of their ids.
    pub fn all_voters(&self) -> impl Iterator<Item = NodeId> {
        self.voters.keys().chain(self.outgoing.keys()).copied().collect::<BTreeSet<_>>().into_iter()
    }

    /// Why this can't be a configuration, if it can't: no voter, a node id of 0, an empty address, two addresses of one node, or a
    /// voter that is a learner as well.
    ///
    /// # Errors
    /// The reason, for a person.
    pub fn validate(&self) -> Result<(), String> {
        if self.voters.is_empty() {
            return Err("a cluster needs at least one voter".into());
        }
        for (what, peers) in [("voter", &self.voters), ("outgoing voter", &self.outgoing), ("learner", &self.learners)]
        {
            for (id, peer) in peers {
                if id.0 == 0 {
                    return Err(format!("node id 0 is reserved (address {:?})", peer.address));
                }
                if *id != peer.id {
                    return Err(format!("{what} {} is filed under {}", peer.id, id));
                }
                if peer.address.is_empty() {
                    return Err(format!("node {} has an empty address", id.0));
                }
                if let Some(other) = self.get(*id)
                    && other.address != peer.address
                {
                    return Err(format!("node {} has two addresses, {} and {}", id.0, other.address, peer.address));
                }
            }
        }
        match self.learners.keys().find(|id| self.voters.contains_key(id)) {
            Some(id) => Err(format!("node {} is both a voter and a learner", id.0)),
            None => Ok(()),
        }
    }

    /// What the configuration counts against byte limits.
    pub(crate) fn cost(&self) -> u64 {
        let peers = [&self.voters, &self.outgoing, &self.learners].into_iter().flat_map(BTreeMap::values);
        peers.map(|peer| 64 + peer.address.len() as u64).sum()
    }

    /// The bytes that a [`EntryKind::Config`] entry carries: a protobuf message, so that later versions can add to it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let wire = |peers: &BTreeMap<NodeId, Peer>| {
            peers.values().map(|peer| wire::Peer { id: peer.id.0, address: peer.address.as_ref().to_owned() }).collect()
        };
        let (voters, outgoing, learners) = (wire(&self.voters), wire(&self.outgoing), wire(&self.learners));
        prost::Message::encode_to_vec(&wire::Membership { voters, outgoing, learners }).into()
    }

    /// Reads what [`Membership::encode`] wrote, and validates it.
    ///
    /// # Errors
    /// The reason, for a person: undecodable bytes, a member named twice, or what [`Membership::validate`] finds.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let membership = Self::read(bytes)?;
        membership.validate()?;
        Ok(membership)
    }

    /// The same, whether it is valid or not.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let wire = <wire::Membership as prost::Message>::decode(bytes).map_err(|e| e.to_string())?;
        let counts = [wire.voters.len(), wire.outgoing.len(), wire.learners.len()];
        let read = |peers: Vec<wire::Peer>| by_id(peers.into_iter().map(|peer| Peer::new(peer.id, peer.address)));
        let (voters, outgoing, learners) = (read(wire.voters), read(wire.outgoing), read(wire.learners));
        if [voters.len(), outgoing.len(), learners.len()] != counts {
            return Err("a member is named twice".into());
        }
        Ok(Self { voters, outgoing, learners })
    }
}

fn by_id(peers: impl IntoIterator<Item = Peer>) -> BTreeMap<NodeId, Peer> {
    peers.into_iter().map(|peer| (peer.id, peer)).collect()
}

/// `1=a,2=b`, and where there are such, ` from 1=a,3=c` for the outgoing voters and ` learners 4=d`.
impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, peers) in [("", &self.voters), (" from ", &self.outgoing), (" learners ", &self.learners)] {
            for (n, peer) in peers.values().enumerate() {
                write!(f, "{}{peer}", if n == 0 { what } else { "," })?;
            }
        }
        Ok(())
    }
}

/// The encoding of a configuration. Field numbers are for ever.
mod wire {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Peer {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(string, tag = "2")]
        pub(super) address: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Membership {
        #[prost(message, repeated, tag = "1")]
        pub(super) voters: Vec<Peer>,
        #[prost(message, repeated, tag = "2")]
        pub(super) outgoing: Vec<Peer>,
        #[prost(message, repeated, tag = "3")]
        pub(super) learners: Vec<Peer>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_log_ids_is_term_before_index() {
        assert!(LogId::new(2, 1) > LogId::new(1, 9));
        assert!(LogId::new(2, 2) > LogId::new(2, 1));
    }

    #[test]
    fn a_membership_survives_its_encoding() {
        let membership = Membership::new([Peer::new(1, "a:1"), Peer::new(2, "b:2")]);
        assert_eq!(Membership::decode(&membership.encode()), Ok(membership.clone()));
        // What was written before there were learners and joint configurations.
        assert_eq!(membership.encode()[..], *b"\x0a\x07\x08\x01\x12\x03a:1\x0a\x07\x08\x02\x12\x03b:2");
        let outgoing = by_id([Peer::new(1, "a:1"), Peer::new(3, "c:3")]);
        let joint = Membership { outgoing, ..membership }.with_learners([Peer::new(3, "c:3"), Peer::new(4, "d:4")]);
        assert_eq!(Membership::decode(&joint.encode()), Ok(joint));
    }

    #[test]
    fn a_joint_membership_has_the_members_of_both_halves_once() {
        let outgoing = by_id([Peer::new(1, "a:1"), Peer::new(3, "c:3")]);
        let plain = Membership::new([Peer::new(1, "a:1"), Peer::new(2, "b:2")]);
        let joint = Membership { outgoing, ..plain.clone() }.with_learners([Peer::new(3, "c:3"), Peer::new(4, "d:4")]);
        assert_eq!(joint.members().map(|peer| peer.id.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(joint.all_voters().map(|id| id.0).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(joint.is_voter(NodeId(3)) && !joint.is_learner(NodeId(3)) && joint.is_learner(NodeId(4)));
        assert_eq!(
            (plain.to_string(), joint.to_string()),
            ("1=a:1,2=b:2".into(), "1=a:1,2=b:2 from 1=a:1,3=c:3 learners 3=c:3,4=d:4".into(),)
        );
    }

    #[test]
    fn a_membership_of_nonsense_is_refused_with_a_reason() {
        assert!(Membership::decode(&[0xff, 0x01]).is_err());
        assert!(Membership::decode(&[]).unwrap_err().contains("at least one voter"));
        assert!(Membership::new([Peer::new(0, "a:1")]).validate().unwrap_err().contains("reserved"));
        assert!(Membership::new([Peer::new(1, "")]).validate().unwrap_err().contains("empty address"));
        let one = Membership::new([Peer::new(1, "a:1")]);
        let both = one.clone().with_learners([Peer::new(1, "a:1")]);
        assert!(both.validate().unwrap_err().contains("both a voter and a learner"));
        let moved = Membership { outgoing: by_id([Peer::new(1, "b:1")]), ..one };
        assert!(moved.validate().unwrap_err().contains("two addresses"));
    }

    #[test]
    fn clusters_of_other_names_or_members_have_other_ids() {
        let one = Membership::new([Peer::new(1, "a:1")]);
        let two = Membership::new([Peer::new(1, "a:1"), Peer::new(2, "b:2")]);
        assert_eq!(ClusterId::derive("kv", &one), ClusterId::derive("kv", &one));
        assert_ne!(ClusterId::derive("kv", &one), ClusterId::derive("kv", &two));
        assert_ne!(ClusterId::derive("kv", &one), ClusterId::derive("other", &one));
    }
}
