//! The decoders of this crate as functions of bytes; see `raftkv::testing::fuzzing`.

#![expect(clippy::expect_used, reason = "it reports by panicking")]

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use prost::Message;
use raftkv::LogId;
use raftkv::testing::Random;
use raftkv::testing::fuzzing::{Target, within};

use crate::api::authpb::Permission;
use crate::api::command::auth_change::Change;
use crate::api::command::image_record::Body;
use crate::api::command::member_note::Note;
use crate::api::command::{
    AuthChange, AuthDisable, AuthEnable, Author, ImageRecord, MemberExpected, MemberGone, MemberNote, MemberStarted,
    Outcome, RoleAdd, RoleGrant, RoleRevoke, UserAdd, UserGrant, UserPassword, UserRevoke, command,
};
use crate::api::etcdserverpb::request_op::Request;
use crate::api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use crate::config::{ServerArgs, ServerConfig};
use crate::machine::{apply_one, encode_command_of, encode_command_within};
use crate::server::authority;
use crate::store::{Image, ImageError, Loader, Store, seal_record};

/// The targets of this package.
pub const TARGETS: &[Target] = &[
    Target { name: "commands", run: commands, sample: sample_commands },
    Target { name: "image", run: image, sample: sample_image },
    Target { name: "tokens", run: tokens, sample: sample_tokens },
    Target { name: "txn_syntax", run: txn_syntax, sample: sample_txn_syntax },
    Target { name: "authorities", run: authorities, sample: sample_authorities },
    Target { name: "config_file", run: config_file, sample: sample_config_file },
];

/// Pieces, each with its length in two bytes before it. The last one may be shorter than it says.
fn pieces(mut bytes: &[u8]) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    while let [low, high, rest @ ..] = bytes {
        let (piece, after) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes([*low, *high]))));
        pieces.push(Bytes::copy_from_slice(piece));
        bytes = after;
    }
    pieces
}

fn join(pieces: impl IntoIterator<Item = Bytes>) -> Vec<u8> {
    let mut joined = Vec::new();
    for piece in pieces {
        joined.extend_from_slice(&u16::try_from(piece.len()).unwrap_or(u16::MAX).to_le_bytes());
        joined.extend_from_slice(&piece);
    }
    joined
}

/// What a connection gets, in whatever pieces.
fn authorities(bytes: &[u8]) {
    let pieces = pieces(bytes);
    let whole: Bytes = pieces.concat().into();
    let (in_pieces, at_once) = within(whole.len(), || (authority::passed_on(&pieces), authority::passed_on([&whole])));
    assert!(in_pieces == at_once, "what is passed on depends on the pieces");
    assert!(at_once.len() <= whole.len(), "it has grown");
    let again = authority::passed_on([&at_once.freeze()]);
    assert!(again == in_pieces, "what was replaced is replaced again by something else");
}

fn sample_authorities(random: &mut Random) -> Vec<u8> {
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for _ in 0..random.between(1, 4) {
        let name = random.pick(&[b"\x41", b"\x01", b"\x11", b"\x81"]).unwrap_or(b"\x41");
        let value = random.pick(&[&b""[..], b"a:1", b"http://127.0.0.1:2379"]).unwrap_or(b"");
        let value = [&[value.len() as u8], value].concat();
        let block = [&b"\x83\x86\x44\x02/p"[..], name, &value, b"\x40\x02te\x08trailers"].concat();
        let (kind, flags) = (random.pick(&[0, 1, 1, 4]).unwrap_or(1), random.pick(&[0, 4, 8, 0x20, 0x28]).unwrap_or(4));
        sent.extend([0, 0, block.len() as u8, kind, flags, 0, 0, 0, 1]);
        sent.extend(block);
    }
    let size = usize::try_from(random.between(1, 80)).unwrap_or(1);
    join(sent.chunks(size).map(Bytes::copy_from_slice))
}

/// What the log holds: a run of commands, applied.
fn commands(bytes: &[u8]) {
    let mut store = Store::new();
    for (n, command) in (1..).zip(pieces(bytes)) {
        // A command of a kind that only a newer version knows stops a node.
        let Ok(answer) = apply_one(&mut store, LogId::new(1, n), command) else { continue };
        let outcome = Outcome::decode(answer).expect("an answer that clients can read");
        assert!(outcome.body.is_some(), "an answer says nothing");
    }
    let taken = taken(&store);
    let again = load(&taken, 100).expect("an image of a sound store can be loaded");
    assert!(self::taken(&again) == taken, "a store changes on its way through an image");
}

fn key(random: &mut Random) -> Bytes {
    random.pick(&["a", "ab", "b", "c", "a-key-that-is-longer-than-most-others-are"]).unwrap_or("k").into()
}

fn sample_commands(random: &mut Random) -> Vec<u8> {
    let request = |random: &mut Random| match random.below(3) {
        0 => Request::RequestPut(PutRequest {
            key: key(random),
            value: key(random),
            prev_kv: true,
            ..Default::default()
        }),
        1 => Request::RequestRange(RangeRequest { key: key(random), range_end: key(random), ..Default::default() }),
        _ => Request::RequestDeleteRange(DeleteRangeRequest {
            key: key(random),
            range_end: key(random),
            prev_kv: random.percent(50),
        }),
    };
    let count = random.between(1, 8);
    let mut first = Vec::new();
    if random.percent(40) {
        first.extend(
            users().map(|change| encode_command_of(None, command::Body::Auth(AuthChange { change: Some(change) }))),
        );
    }
    let rest = (0..count).map(|_| {
        let author = author(random);
        let most = random.pick(&[None, None, Some(0), Some(100), Some(u64::MAX)]).flatten();
        encode_command_within(
            author,
            match (random.below(12), request(random)) {
                (10.., _) => command::Body::Auth(AuthChange { change: Some(auth_change(random)) }),
                (0, _) => {
                    let revision = i64::try_from(random.below(9)).unwrap_or(0);
                    command::Body::Compact(CompactionRequest { revision, physical: false })
                }
                (1, _) => command::Body::Member(MemberNote { note: Some(note(random)) }),
                (2..7, Request::RequestPut(put)) => command::Body::Put(put),
                (_, Request::RequestDeleteRange(delete)) => command::Body::DeleteRange(delete),
                (_, first) => {
                    let ops = [first, request(random)].map(|request| RequestOp { request: Some(request) }).to_vec();
                    command::Body::Txn(TxnRequest { success: ops, ..Default::default() })
                }
            },
            most,
        )
    });
    join(first.into_iter().chain(rest))
}

/// What it takes until somebody must be somebody.
fn users() -> impl Iterator<Item = Change> {
    let add = |name: &str| Change::UserAdd(UserAdd { name: name.into(), password_hash: "p".into() });
    let grant = |user: &str, role: &str| Change::UserGrant(UserGrant { user: user.into(), role: role.into() });
    let enable = Change::Enable(AuthEnable { signing_key: vec![7; 32].into() });
    [
        add("root"),
        grant("root", "root"),
        add("a"),
        Change::RoleAdd(RoleAdd { name: "r".into() }),
        grant("a", "r"),
        enable,
    ]
    .into_iter()
}

/// Whom a command is of, if anybody's.
fn author(random: &mut Random) -> Option<Author> {
    let user = random.pick(&["", "root", "root", "a", "b"]).unwrap_or("root").into();
    random.percent(70).then(|| Author { user, revision: random.pick(&[0, 5, 9, u64::MAX]).unwrap_or(9) })
}

fn auth_change(random: &mut Random) -> Change {
    let name = |random: &mut Random| random.pick(&["", "root", "a", "r"]).unwrap_or("a").to_owned();
    match random.below(8) {
        0 => Change::Enable(AuthEnable { signing_key: vec![8; random.pick(&[0, 31, 32]).unwrap_or(32)].into() }),
        1 => Change::Disable(AuthDisable {}),
        2 => Change::UserPassword(UserPassword { name: name(random), password_hash: "q".into() }),
        3 => Change::UserGrant(UserGrant { user: name(random), role: name(random) }),
        4 => Change::UserRevoke(UserRevoke { user: name(random), role: name(random) }),
        5 => Change::RoleRevoke(RoleRevoke { role: name(random), key: key(random), range_end: key(random) }),
        _ => {
            let perm_type = random.pick(&[0, 1, 2, 3, -1]).unwrap_or(0);
            let permission = Some(Permission { perm_type, key: key(random), range_end: key(random) });
            Change::RoleGrant(RoleGrant { role: name(random), permission })
        }
    }
}

/// What happens to a member, also to one that there is not.
fn note(random: &mut Random) -> Note {
    let id = random.pick(&[0, 1, 2, 3, 7, u64::MAX]).unwrap_or(0);
    match random.below(3) {
        0 => {
            let address = random.pick(&["", "a:1", "b:2"]).unwrap_or("").into();
            Note::Expected(MemberExpected { id, address, votes: random.percent(50), highest: random.below(5) })
        }
        1 => Note::Started(MemberStarted { id, client_address: "c:3".into() }),
        _ => Note::Gone(MemberGone { id }),
    }
}

fn taken(store: &Store) -> Bytes {
    let (mut image, mut bytes) = (Image::new(store.freeze()), BytesMut::new());
    while let Some(record) = image.next_record() {
        bytes.extend_from_slice(&record);
    }
    bytes.freeze()
}

fn load(image: &Bytes, max: usize) -> Result<Store, ImageError> {
    let mut loader = Loader::default();
    image.chunks(max).try_for_each(|piece| loader.push(piece))?;
    loader.finish()
}

/// An image, as it is, or (by the first byte) in pieces of which each is made a record with its own length and checksum.
fn image(bytes: &[u8]) {
    let [mode, rest @ ..] = bytes else { return };
    let image: Bytes = if mode & 1 == 0 {
        Bytes::copy_from_slice(rest)
    } else {
        pieces(rest).iter().flat_map(|record| seal_record(record)).collect()
    };
    let Ok(mut store) = within(image.len(), || load(&image, 64)) else { return };
    let again = taken(&store);
    assert!(taken(&load(&again, 1000).expect("it can be loaded again")) == again, "an image changes when it is loaded");
    // Whatever was taken can be worked with.
    for (n, command) in (1..).zip(pieces(&sample_commands(&mut Random::new(1)))) {
        apply_one(&mut store, LogId::new(1, n), command).expect("an answer");
    }
}

fn sample_image(random: &mut Random) -> Vec<u8> {
    let mut store = Store::new();
    for command in pieces(&sample_commands(random)) {
        apply_one(&mut store, LogId::new(1, 1), command).expect("an answer");
    }
    let image = taken(&store);
    if random.percent(30) {
        return [&[0], &image[..]].concat();
    }
    let mut rest = &image[..];
    let mut records = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk::<8>() {
        let [a, b, c, d, ..] = *header;
        let (record, behind) = after.split_at(after.len().min(u32::from_le_bytes([a, b, c, d]) as usize));
        let mut record = ImageRecord::decode(record).expect("a record of a sound image");
        strange_numbers(random, &mut record);
        records.push(record.encode_to_vec().into());
        rest = behind;
    }
    [vec![1], join(records)].concat()
}

/// Sometimes replaces a number by one that no sound store has.
fn strange_numbers(random: &mut Random, record: &mut ImageRecord) {
    let strange = random.pick(&[i64::MAX, i64::MIN, -1, 0, 1, 1 << 62]).unwrap_or(0);
    match &mut record.body {
        Some(_) if random.percent(70) => {}
        Some(Body::Head(head)) if random.percent(50) => head.revision = strange,
        Some(Body::Head(head)) => head.compact_revision = strange,
        Some(Body::Keys(keys)) => {
            for version in keys.keys.iter_mut().flat_map(|key| &mut key.versions) {
                match random.below(9) {
                    0 => version.mod_revision = strange,
                    1 => version.create_revision = strange,
                    2 => version.version = strange,
                    _ => {}
                }
            }
        }
        Some(Body::Auth(auth)) => match random.below(6) {
            0 => auth.revision = strange as u64,
            1 => auth.since = strange as u64,
            2 => auth.enabled ^= true,
            3 => auth.signing_key = vec![1; random.pick(&[0, 31, 32]).unwrap_or(32)].into(),
            4 => auth.users.iter_mut().for_each(|user| user.since = strange as u64),
            _ => auth.users.truncate(1),
        },
        Some(Body::End(_)) | None => {}
    }
}

/// What a client shows to say who it is, and what shows that a session is its own.
fn tokens(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    within(text.len(), || crate::service::auth::token::read_again(&text, &[7; 32]));
}

fn sample_tokens(random: &mut Random) -> Vec<u8> {
    let user = random.pick(&["", "root", "ann/\u{e4}", "a-name-that-is-longer-than-most-others-are"]).unwrap_or("");
    crate::service::auth::token::sample(user, [(); 4].map(|()| random.any()), &[7; 32]).into_bytes()
}

/// What a person writes for `txn`.
fn txn_syntax(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    within(text.len(), || crate::cli::parse_txn(&text));
}

fn sample_txn_syntax(random: &mut Random) -> Vec<u8> {
    let lines = [
        "if value(k) = v",
        r#"if value("a b)") != "\x00\n\"""#,
        "if version(k) > 3",
        "if created(k) < 18446744073709551615",
        "if missing(k)",
        "then put k \"two words\"",
        "then get --prefix k",
        "else del a c",
        "# nothing",
    ];
    let lines = (0..random.between(1, 5)).filter_map(|_| random.pick(&lines));
    lines.collect::<Vec<_>>().join("\n").into_bytes()
}

/// The server's configuration file.
fn config_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let args = ServerArgs::default();
    if let Ok(config) = within(text.len(), || ServerConfig::from_text(&args, &text, &PathBuf::from("kv.toml"))) {
        if config.join.is_none() {
            assert_eq!(config.membership.validate(), Ok(()));
            assert!(config.membership.is_voter(config.id));
        }
        assert_eq!(config.raft.validate(), Ok(()), "a configuration was taken that no node starts with");
    }
}

fn sample_config_file(random: &mut Random) -> Vec<u8> {
    let mut lines = vec![
        "id = 1".to_owned(),
        "data = \"/var/lib/kv\"".to_owned(),
        random
            .pick(&[
                "peers = \"1=a:1,2=[::1]:2\"",
                "peers = { 1 = \"a:1\", 2 = \"b:2\" }",
                "join = \"a:1,http://b:2\"\nlisten-peer = \"c:3\"\nlearner = true",
            ])
            .unwrap_or("")
            .to_owned(),
        "listen-client = \"0.0.0.0:2379\"".to_owned(),
    ];
    let numbers =
        ["election-timeout-ms", "heartbeat-ms", "request-timeout-ms", "max-request-bytes", "max-pending-requests"];
    for name in numbers {
        if random.percent(40) {
            lines.push(format!("{name} = {}", random.any() >> random.between(1, 63)));
        }
    }
    if random.percent(30) {
        lines.push("log-level = \"info,raftkv=debug\"".to_owned());
    }
    lines.join("\n").into_bytes()
}
