//! The nouns of Raft: who (node, group, cluster), when (term), where in the log (index, log id), and what (entry).

use std::collections::BTreeMap;
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
}

impl EntryKind {
    /// The kind with this number on the wire and on disk.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Noop),
            1 => Some(Self::Command),
            2 => Some(Self::Config),
            _ => None,
        }
    }
}

/// A log entry. Cloning is cheap: the payload is shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Its identity.
    pub id: LogId,
    /// What it is for.
    pub kind: EntryKind,
    /// The payload: empty, a command, or an encoded [`Membership`].
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

/// The configuration of a group: who votes, and where everyone is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Membership {
    /// The members whose votes and logs count.
    pub voters: BTreeMap<NodeId, Peer>,
}

impl Membership {
    /// A configuration of voters.
    pub fn new(voters: impl IntoIterator<Item = Peer>) -> Self {
        Self { voters: voters.into_iter().map(|peer| (peer.id, peer)).collect() }
    }

    /// Whether `id` votes.
    #[must_use]
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.contains_key(&id)
    }

    /// The member with this id.
    #[must_use]
    pub fn get(&self, id: NodeId) -> Option<&Peer> {
        self.voters.get(&id)
    }

    /// All members, in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = &Peer> {
        self.voters.values()
    }

    /// Why this can't be a configuration, if it can't: no voter, a node id of 0, or an empty address.
    ///
    /// # Errors
    /// The reason, for a person.
    pub fn validate(&self) -> Result<(), String> {
        if self.voters.is_empty() {
            return Err("a cluster needs at least one voter".into());
        }
        for (id, peer) in &self.voters {
            if id.0 == 0 {
                return Err(format!("node id 0 is reserved (address {:?})", peer.address));
            }
            if *id != peer.id {
                return Err(format!("voter {} is filed under {}", peer.id, id));
            }
            if peer.address.is_empty() {
                return Err(format!("node {} has an empty address", id.0));
            }
        }
        Ok(())
    }

    /// The bytes that a [`EntryKind::Config`] entry carries: a protobuf message, so that later versions can add to it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let voters = self
            .voters
            .values()
            .map(|peer| wire::Peer { id: peer.id.0, address: peer.address.as_ref().to_owned() })
            .collect();
        prost::Message::encode_to_vec(&wire::Membership { voters }).into()
    }

    /// Reads what [`Membership::encode`] wrote, and validates it.
    ///
    /// # Errors
    /// The reason, for a person: undecodable bytes, a voter named twice, or what [`Membership::validate`] finds.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let wire = <wire::Membership as prost::Message>::decode(bytes).map_err(|e| e.to_string())?;
        let count = wire.voters.len();
        let membership = Self::new(wire.voters.into_iter().map(|peer| Peer::new(peer.id, peer.address)));
        if membership.voters.len() != count {
            return Err("a voter is named twice".into());
        }
        membership.validate()?;
        Ok(membership)
    }
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, peer) in self.voters.values().enumerate() {
            write!(f, "{}{peer}", if n == 0 { "" } else { "," })?;
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
        assert_eq!(Membership::decode(&membership.encode()), Ok(membership));
    }

    #[test]
    fn a_membership_of_nonsense_is_refused_with_a_reason() {
        assert!(Membership::decode(&[0xff, 0x01]).is_err());
        assert!(Membership::decode(&[]).unwrap_err().contains("at least one voter"));
        assert!(Membership::new([Peer::new(0, "a:1")]).validate().unwrap_err().contains("reserved"));
        assert!(Membership::new([Peer::new(1, "")]).validate().unwrap_err().contains("empty address"));
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
