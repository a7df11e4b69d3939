//! What is in the database beside keys and sessions: whose it is, and where its store stands.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use raftkv::LogId;
use redb::{Database, ReadableDatabase, TableDefinition, TableError, WriteTransaction};

use super::Owner;
use super::database::identity;
use crate::api::command::{ImageAuth, ImageHead};
use crate::store::{Auth, Head, Members, Stats};

/// | key | value |
/// |---|---|
/// | `format` | one byte, [`FORMAT`], or [`FORMAT_WITH_AUTH`] where there is something to say of users and roles |
/// | `owner` | cluster and node, eight bytes each |
/// | `state` | the numbers of a [`State`], eight bytes each, little-endian |
/// | `members` | [`Members`], as the head of an image has them |
/// | `auth` | [`Auth`], as an image has it; none where there is nothing to say |
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const FORMAT: u8 = 1;
/// A version that knows nothing of users must not open it: it would let everybody do everything.
const FORMAT_WITH_AUTH: u8 = 2;
const NUMBERS: usize = 9;

/// Where the store stands. It moves with each transaction, in that transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// The tables in force.
    pub(super) generation: u64,
    pub(super) head: Head,
    /// The last entry that is reflected.
    pub(super) applied: LogId,
}

impl State {
    fn encode(&self) -> Vec<u8> {
        let Self { generation, head: Head { revision, compacted, swept, stats, members: _, auth: _ }, applied } = self;
        let Stats { live, versions, bytes } = *stats;
        let signed = [*revision, *compacted, *swept].map(i64::to_le_bytes);
        let numbers = [*generation, live, versions, bytes, applied.term.0, applied.index.0].map(u64::to_le_bytes);
        signed.into_iter().chain(numbers).flatten().collect()
    }

    fn decode(bytes: &[u8], members: Members, auth: Auth) -> Option<Self> {
        let numbers: Vec<[u8; 8]> = bytes.as_chunks().0.to_vec();
        if bytes.len() != NUMBERS * 8 {
            return None;
        }
        let signed = |at: usize| i64::from_le_bytes(numbers[at]);
        let number = |at: usize| u64::from_le_bytes(numbers[at]);
        let stats = Stats { live: number(4), versions: number(5), bytes: number(6) };
        let head =
            Head { revision: signed(0), compacted: signed(1), swept: signed(2), stats, members, auth: Arc::new(auth) };
        Some(Self { generation: number(3), head, applied: LogId::new(number(7), number(8)) })
    }
}

fn encode_members(members: &Members) -> Vec<u8> {
    let (highest_member, members) = members.to_image();
    ImageHead { highest_member, members, ..ImageHead::default() }.encode_to_vec()
}

/// What the table says of users and roles, and the format that goes with it.
fn encode_auth(auth: &Auth) -> Option<(u8, Vec<u8>)> {
    (*auth != Auth::default()).then(|| (FORMAT_WITH_AUTH, auth.to_image().encode_to_vec()))
}

/// Writes them down.
fn save_auth(meta: &mut redb::Table<'_, &'static str, &'static [u8]>, auth: &Auth) -> Result<(), redb::Error> {
    let (format, image) = encode_auth(auth).unwrap_or((FORMAT, Vec::new()));
    meta.insert("format", &[format][..])?;
    if image.is_empty() {
        meta.remove("auth")?;
    } else {
        meta.insert("auth", &image[..])?;
    }
    Ok(())
}

fn damage(reason: &str) -> redb::Error {
    redb::Error::Corrupted(format!("table \"meta\": {reason}"))
}

/// What a database says of itself; a new one says nothing yet. Or the reason why it is refused.
pub(super) fn load(db: &Database, owner: Owner) -> Result<Result<State, String>, redb::Error> {
    let meta = match db.begin_read()?.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Ok(State::default())),
        Err(error) => return Err(error.into()),
    };
    let get = |key: &str| -> Result<Bytes, redb::Error> {
        let value = meta.get(key)?.ok_or_else(|| damage(&format!("\"{key}\" is missing")))?;
        Ok(Bytes::copy_from_slice(value.value()))
    };
    let format = get("format")?;
    if !matches!(*format, [FORMAT | FORMAT_WITH_AUTH]) {
        return Ok(Err(format!(
            "the database is of format {format:?}, and this version knows {FORMAT} and {FORMAT_WITH_AUTH}: another version wrote it; use that one"
        )));
    }
    if get("owner")?[..] != identity(owner)[..] {
        return Ok(Err(format!(
            "the database belongs to another node or cluster than node {} of {}: move it away if that is a mistake, and the node makes its own",
            owner.node.0, owner.cluster
        )));
    }
    let members = ImageHead::decode(get("members")?).map_err(|error| damage(&error.to_string()))?;
    let members = Members::from_image(members.highest_member, members.members).map_err(damage)?;
    let auth = match *format {
        [FORMAT_WITH_AUTH] => {
            let image = ImageAuth::decode(get("auth")?).map_err(|error| damage(&error.to_string()))?;
            Auth::from_image(image).map_err(damage)?
        }
        _ => Auth::default(),
    };
    State::decode(&get("state")?, members, auth).map(Ok).ok_or_else(|| damage("\"state\" has another length"))
}

/// Makes a database this owner's, with this state.
pub(super) fn claim(transaction: &WriteTransaction, owner: Owner, state: &State) -> Result<(), redb::Error> {
    let mut meta = transaction.open_table(META)?;
    save_auth(&mut meta, &state.head.auth)?;
    meta.insert("owner", &identity(owner)[..])?;
    meta.insert("state", &state.encode()[..])?;
    meta.insert("members", &encode_members(&state.head.members)[..])?;
    Ok(())
}

/// Notes what has changed.
pub(super) fn save(transaction: &WriteTransaction, before: &State, now: &State) -> Result<(), redb::Error> {
    if before == now {
        return Ok(());
    }
    let mut meta = transaction.open_table(META)?;
    meta.insert("state", &now.encode()[..])?;
    if before.head.auth != now.head.auth {
        save_auth(&mut meta, &now.head.auth)?;
    }
    if before.head.members != now.head.members {
        meta.insert("members", &encode_members(&now.head.members)[..])?;
    }
    Ok(())
}
