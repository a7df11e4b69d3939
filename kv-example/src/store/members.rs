//! What members know of each other beyond Raft's configuration: where they serve clients, whether they ever ran, whether they shall vote, and
//! which ids were ever used.
//!
//! An id is never given out twice: a node that was removed may still run somewhere, and would be taken for the new one.

use imbl::OrdMap;

use super::keys::KeysMut;
use super::{Refusal, Store, Writer};
use crate::api::command::{ImageMember, MemberExpected, MemberNote, MemberNoted, MemberStarted, member_note::Note};

/// How many members may be noted, added and expected ones together.
pub(crate) const MAX_MEMBERS: usize = 256;
/// Host names have at most 253 bytes.
const MAX_ADDRESS: usize = 300;

/// What is known of the members. A clone is a frozen copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// No id up to this one is free.
    highest: u64,
    known: OrdMap<u64, MemberInfo>,
}

/// What is known of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberInfo {
    /// Where the others were told to reach it, when it was added.
    pub address: String,
    /// Where it serves clients; empty before it ran.
    pub client_address: String,
    /// Whether it has ever run.
    pub started: bool,
    /// Whether it shall vote as soon as it has caught up.
    pub votes: bool,
}

impl Members {
    /// What is known of a member.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<&MemberInfo> {
        self.known.get(&id)
    }

    /// Whether a member has or had this id.
    #[must_use]
    pub fn is_used(&self, id: u64) -> bool {
        id <= self.highest
    }

    /// Everybody who is known.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &MemberInfo)> {
        self.known.iter().map(|(id, info)| (*id, info))
    }

    fn expect(&mut self, new: &MemberExpected) -> Result<u64, Refusal> {
        if new.address.is_empty() || new.address.len() > MAX_ADDRESS {
            return Err(Refusal::MemberAddress);
        }
        let waiting = |info: &MemberInfo| !info.started && info.address == new.address;
        // Told twice, since the first answer was lost: the same member.
        let known = self.iter().find(|(id, info)| waiting(info) && (new.id == 0 || new.id == *id)).map(|(id, _)| id);
        let highest = self.highest.max(new.highest);
        let id = match (known, new.id) {
            (Some(id), _) => id,
            (None, 0) => highest.checked_add(1).ok_or(Refusal::MemberIdUsed)?,
            (None, id) if id <= highest => return Err(Refusal::MemberIdUsed),
            (None, id) => id,
        };
        if self.known.len() >= MAX_MEMBERS && known.is_none() {
            return Err(Refusal::TooManyMembers);
        }
        self.highest = highest.max(id);
        let info = MemberInfo { address: new.address.clone(), votes: new.votes, ..MemberInfo::default() };
        self.known.insert(id, info);
        Ok(id)
    }

    fn start(&mut self, MemberStarted { id, client_address }: &MemberStarted) -> Result<u64, Refusal> {
        if *id == 0 || client_address.len() > MAX_ADDRESS {
            return Err(Refusal::MemberAddress);
        }
        if self.known.len() >= MAX_MEMBERS && !self.known.contains_key(id) {
            return Err(Refusal::TooManyMembers);
        }
        self.highest = self.highest.max(*id);
        let mut info = self.known.get(id).cloned().unwrap_or_default();
        info.started = true;
        info.client_address.clone_from(client_address);
        self.known.insert(*id, info);
        Ok(*id)
    }

    fn forget(&mut self, id: u64) -> u64 {
        self.highest = self.highest.max(id);
        self.known.remove(&id);
        id
    }

    pub(crate) fn to_image(&self) -> (u64, Vec<ImageMember>) {
        let members = self.iter().map(|(id, info)| ImageMember {
            id,
            address: info.address.clone(),
            client_address: info.client_address.clone(),
            started: info.started,
            votes: info.votes,
        });
        (self.highest, members.collect())
    }

    pub(crate) fn from_image(highest: u64, members: Vec<ImageMember>) -> Result<Self, &'static str> {
        let mut loaded = Self { highest, ..Self::default() };
        if members.len() > MAX_MEMBERS {
            return Err("it holds more members than there can be");
        }
        for member in members {
            let ImageMember { id, address, client_address, started, votes } = member;
            let sound = id != 0 && id <= highest && address.len().max(client_address.len()) <= MAX_ADDRESS;
            if !sound || loaded.known.insert(id, MemberInfo { address, client_address, started, votes }).is_some() {
                return Err("it holds a member that can't be");
            }
        }
        Ok(loaded)
    }
}

impl<K: KeysMut> Writer<'_, K> {
    /// Takes note of what happens to a member. The store's revision stays as it is.
    pub(crate) fn note_member(&mut self, note: &MemberNote) -> Result<MemberNoted, Refusal> {
        self.store.note_member(note)
    }
}

impl<K> Store<K> {
    fn note_member(&mut self, note: &MemberNote) -> Result<MemberNoted, Refusal> {
        let id = match &note.note {
            Some(Note::Expected(new)) => self.head.members.expect(new)?,
            Some(Note::Started(member)) => self.head.members.start(member)?,
            Some(Note::Gone(member)) => self.head.members.forget(member.id),
            None => return Err(Refusal::Malformed),
        };
        Ok(MemberNoted { id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expect(members: &mut Members, id: u64, address: &str, highest: u64) -> Result<u64, Refusal> {
        members.expect(&MemberExpected { id, address: address.into(), votes: true, highest })
    }

    #[test]
    fn an_id_is_never_given_out_twice() {
        let mut members = Members::default();
        assert_eq!(expect(&mut members, 0, "a", 3), Ok(4));
        assert_eq!(expect(&mut members, 0, "b", 4), Ok(5));
        assert_eq!(members.forget(5), 5);
        assert_eq!(expect(&mut members, 0, "b", 4), Ok(6));
        assert_eq!(expect(&mut members, 5, "b", 4), Err(Refusal::MemberIdUsed));
        assert_eq!(expect(&mut members, 9, "c", 4), Ok(9));
        members.start(&MemberStarted { id: 9, client_address: "d".into() }).unwrap();
        assert_eq!(expect(&mut members, 9, "c", 9), Err(Refusal::MemberIdUsed));
        assert_eq!(expect(&mut members, u64::MAX, "e", 9), Ok(u64::MAX));
        assert_eq!(expect(&mut members, 0, "f", 9), Err(Refusal::MemberIdUsed));
    }

    #[test]
    fn who_asks_again_gets_the_same_id_until_the_member_has_run() {
        let mut members = Members::default();
        assert_eq!(expect(&mut members, 0, "a", 3), Ok(4));
        assert_eq!(expect(&mut members, 0, "a", 4), Ok(4));
        assert_eq!(expect(&mut members, 4, "a", 4), Ok(4));
        members.start(&MemberStarted { id: 4, client_address: "c".into() }).unwrap();
        assert_eq!(expect(&mut members, 0, "a", 4), Ok(5));
    }

    #[test]
    fn an_image_keeps_them() {
        let mut members = Members::default();
        expect(&mut members, 0, "a", 3).unwrap();
        members.start(&MemberStarted { id: 2, client_address: "c".into() }).unwrap();
        members.forget(9);
        let (highest, image) = members.to_image();
        assert_eq!(Members::from_image(highest, image), Ok(members));
        assert!(Members::from_image(1, vec![ImageMember { id: 2, ..Default::default() }]).is_err());
    }
}
