//! The state machine as the framework drives it, with each engine.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what went wrong by panicking")]

use std::time::Duration;

use bytes::Bytes;
use kv_example::api::authpb::Permission;
use kv_example::api::command::auth_change::Change;
use kv_example::api::command::{
    AuthChange, AuthDisable, AuthEnable, Author, Outcome, RoleAdd, RoleGrant, UserAdd, UserGrant, UserPassword,
    command, outcome,
};
use kv_example::api::etcdserverpb::request_op::Request;
use kv_example::api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use kv_example::backends::redb::{Options, Owner, RedbMachine};
use kv_example::machine::{KvMachine, KvView, encode_command, encode_command_of, encode_command_within};
use proptest::prelude::*;
use prost::Message;
use raftkv::{ClusterId, LogId, NodeId, StateMachine};

/// A machine with an engine of its own.
trait Kv: StateMachine {
    fn new() -> Self;
    fn view(&self) -> KvView;
}

impl Kv for KvMachine {
    fn new() -> Self {
        Self::new()
    }

    fn view(&self) -> KvView {
        self.view()
    }
}

impl Kv for RedbMachine {
    fn new() -> Self {
        let owner = Owner { cluster: ClusterId(1), node: NodeId(1) };
        let medium = redb::backends::InMemoryBackend::new();
        Self::open_on(medium, owner, Options { cache_bytes: 8 << 20, ..Options::default() }).expect("a database")
    }

    fn view(&self) -> KvView {
        self.view()
    }
}

macro_rules! with_each_engine {
    ($($test:ident)*) => {
        mod in_memory {
            $(#[tokio::test] async fn $test() { super::$test::<super::KvMachine>().await })*
        }

        mod in_a_database {
            $(#[tokio::test] async fn $test() { super::$test::<super::RedbMachine>().await })*
        }
    };
}

with_each_engine! {
    an_image_is_a_moment_that_later_writes_do_not_change
    bytes_that_are_no_command_get_an_answer_and_change_nothing
    a_command_of_a_later_version_stops_the_node_instead_of_being_skipped
    a_damaged_image_is_refused_and_leaves_the_state_alone
    compaction_gives_memory_back_in_the_background
    an_answer_larger_than_its_command_allows_is_refused_and_nothing_is_done
}

fn put(key: &str, value: &str) -> Bytes {
    let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    encode_command(command::Body::Put(put))
}

fn compact(revision: i64) -> Bytes {
    encode_command(command::Body::Compact(CompactionRequest { revision, physical: true }))
}

fn answer(bytes: Bytes) -> outcome::Body {
    Outcome::decode(bytes).unwrap().body.unwrap()
}

async fn apply_all(machine: &mut impl StateMachine, first: u64, commands: &[Bytes], batch: usize) -> Vec<Bytes> {
    let numbered: Vec<(LogId, Bytes)> =
        commands.iter().enumerate().map(|(n, command)| (LogId::new(1, first + n as u64), command.clone())).collect();
    let mut answers = Vec::new();
    for batch in numbered.chunks(batch) {
        answers.extend(machine.apply_batch(batch.to_vec()).await.unwrap());
    }
    answers
}

async fn image(machine: &impl StateMachine) -> Vec<Bytes> {
    let mut chunks = machine.snapshot().await.unwrap();
    let mut image = Vec::new();
    while let Some(chunk) = chunks.next().await.unwrap() {
        image.push(chunk);
    }
    image
}

fn txn(success: Vec<Request>) -> Request {
    let success = success.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
    Request::RequestTxn(TxnRequest { success, ..TxnRequest::default() })
}

fn put_op(key: &str, value: &str) -> Request {
    Request::RequestPut(PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        prev_kv: true,
        ..Default::default()
    })
}

fn delete_op(key: &str, end: &str) -> Request {
    let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
    Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv: true })
}

fn range_op(key: &str, end: &str) -> Request {
    let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
    Request::RequestRange(RangeRequest { key, range_end, ..Default::default() })
}

/// A write whose answer may take so much.
fn within(max_answer: Option<u64>, request: Request) -> Bytes {
    let body = match request {
        Request::RequestPut(put) => command::Body::Put(put),
        Request::RequestDeleteRange(delete) => command::Body::DeleteRange(delete),
        Request::RequestTxn(txn) => command::Body::Txn(txn),
        Request::RequestRange(_) => panic!("a read is no command"),
    };
    encode_command_within(None, body, max_answer)
}

async fn everything(view: &KvView) -> kv_example::api::etcdserverpb::RangeResponse {
    let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    // Where there is no root, there is no need for one.
    view.range_as(author("root"), all, usize::MAX).await.unwrap()
}

fn author(user: &str) -> Option<Author> {
    Some(Author { user: user.into(), revision: u64::MAX })
}

fn auth(author: Option<Author>, change: Change) -> Bytes {
    encode_command_of(author, command::Body::Auth(AuthChange { change: Some(change) }))
}

/// Changes of users and roles, most of them root's.
fn auth_command() -> impl Strategy<Value = Bytes> {
    let name = || prop_oneof!["root", "ann", "r"];
    let permission = (0i32..3, "[a-e]", "[a-e]{0,2}").prop_map(|(perm_type, key, range_end)| {
        Some(Permission { perm_type, key: key.into(), range_end: range_end.into() })
    });
    let change = prop_oneof![
        3 => Just(Change::Enable(AuthEnable { signing_key: vec![7; 32].into() })),
        1 => Just(Change::Disable(AuthDisable {})),
        4 => (name(), name()).prop_map(|(name, password_hash)| Change::UserAdd(UserAdd { name, password_hash })),
        1 => (name(), name()).prop_map(|(name, password_hash)| Change::UserPassword(UserPassword { name, password_hash })),
        6 => (name(), name()).prop_map(|(user, role)| Change::UserGrant(UserGrant { user, role })),
        3 => name().prop_map(|name| Change::RoleAdd(RoleAdd { name })),
        3 => (name(), permission).prop_map(|(role, permission)| Change::RoleGrant(RoleGrant { role, permission })),
    ];
    (prop_oneof![5 => Just(author("root")), 1 => Just(author("ann")), 1 => Just(None)], change)
        .prop_map(|(author, change)| auth(author, change))
}

/// A transaction that makes changes and gives much back, some of it nested. No key is changed twice.
fn any_txn(
    first: impl Strategy<Value = String>,
    second: impl Strategy<Value = String>,
) -> impl Strategy<Value = Request> {
    (first, second, "[x-z]{0,40}", 0usize..4).prop_map(|(first, second, value, nested)| {
        let mut ops = vec![range_op("a", "z"), put_op(&first, &value), range_op(&first, ""), range_op("a", "z")];
        if first != second {
            ops.extend([delete_op(&second, ""), range_op("a", "z")]);
        }
        let inner = ops.split_off(nested);
        ops.push(txn(inner));
        txn(ops)
    })
}

fn any_command() -> impl Strategy<Value = Bytes> {
    let key = || "[a-e]{1,2}";
    prop_oneof![
        6 => auth_command(),
        4 => ("root|ann", key(), "[x-z]{0,9}").prop_map(|(user, key, value)| {
            let put = PutRequest { key: key.into(), value: value.into(), prev_kv: true, ..Default::default() };
            encode_command_of(author(&user), command::Body::Put(put))
        }),
        10 => (key(), "[x-z]{0,9}").prop_map(|(key, value)| put(&key, &value)),
        2 => (key(), key()).prop_map(|(key, end)| {
            let delete = DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: true };
            encode_command(command::Body::DeleteRange(delete))
        }),
        6 => (prop::option::of(60u64..500), any_txn(key(), key())).prop_map(|(most, txn)| within(most, txn)),
        1 => (0i64..60).prop_map(compact),
        1 => prop::collection::vec(any::<u8>(), 1..9)
            .prop_map(Bytes::from)
            .prop_filter("of a known kind", |bytes| {
                !kv_example::api::command::Command::decode(bytes.clone()).is_ok_and(|command| command.body.is_none())
            }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the commands are batched, whenever garbage is dropped, and whether a node began with an image or with the
    /// first command: the answers, the states and the images are the same.
    #[test]
    fn nodes_that_apply_the_same_commands_are_the_same(
        commands in prop::collection::vec(any_command(), 1..80),
        batch in 1usize..40,
        cut in any::<prop::sample::Index>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut one, mut two, mut late) = (KvMachine::new(), KvMachine::new(), KvMachine::new());
            let (mut three, mut later) = (RedbMachine::new(), RedbMachine::new());
            let answers = apply_all(&mut one, 1, &commands, 1).await;
            assert_eq!(answers, apply_all(&mut two, 1, &commands, batch).await);
            assert_eq!(answers, apply_all(&mut three, 1, &commands, batch).await);

            let cut = cut.index(commands.len());
            // Each takes the image that the other engine has made.
            let (mut half, mut other_half) = (RedbMachine::new(), KvMachine::new());
            apply_all(&mut half, 1, &commands[..cut], batch).await;
            late.restore(Box::new(image(&half).await.into_iter())).await.unwrap();
            assert_eq!(apply_all(&mut late, cut as u64 + 1, &commands[cut..], batch).await, answers[cut..]);
            apply_all(&mut other_half, 1, &commands[..cut], batch).await;
            later.restore(Box::new(image(&other_half).await.into_iter())).await.unwrap();
            assert_eq!(apply_all(&mut later, cut as u64 + 1, &commands[cut..], batch).await, answers[cut..]);

            let wanted = (one.view().checksum(0).await, image(&one).await, everything(&one.view()).await);
            for other in [two.view(), late.view(), three.view(), later.view()] {
                assert_eq!((other.checksum(0).await, everything(&other).await), (wanted.0.clone(), wanted.2.clone()));
            }
            for other in [image(&two).await, image(&late).await, image(&three).await, image(&later).await] {
                assert_eq!(other, wanted.1);
            }
        });
    }
}

/// Each key takes 64 bytes in an answer, beside its own and those of its value.
async fn an_answer_larger_than_its_command_allows_is_refused_and_nothing_is_done<M: Kv>() {
    let value = "v".repeat(35);
    let writes = [
        // Who looks at what is there before the transaction finds nothing that it could give back.
        (300, txn(vec![put_op("a", &value), range_op("a", ""), range_op("a", ""), range_op("a", "")])),
        // What is nested shares the limit.
        (
            300,
            txn(vec![
                put_op("a", &value),
                range_op("a", ""),
                txn(vec![range_op("a", ""), txn(vec![range_op("a", "b")])]),
            ]),
        ),
        // Previous values count, of puts and of deletions; what was deleted is given back no more.
        (200, txn(vec![put_op("k1", "new"), delete_op("k2", "k3"), range_op("k2", "k3")])),
        // A put takes the place of what was there, and other keys stay.
        (269, txn(vec![put_op("k1", "new"), range_op("k", "l")])),
        (100, put_op("k1", "new")),
        (200, delete_op("k", "l")),
    ];
    for (n, (bytes, request)) in writes.into_iter().enumerate() {
        let mut machine = M::new();
        let first = [within(None, put_op("k1", &"v".repeat(34))), within(None, put_op("k2", &"v".repeat(34)))];
        apply_all(&mut machine, 1, &first, 2).await;
        let (before, revision) = (image(&machine).await, machine.view().revision());
        let refused = machine.apply(LogId::new(1, 3), within(Some(bytes - 1), request.clone())).await.unwrap();
        let outcome::Body::Refusal(refusal) = answer(refused) else {
            panic!("write {n}: {bytes} bytes were given back")
        };
        assert_eq!(refusal.message, "raftkv: the answer would be too large");
        assert_eq!((image(&machine).await, machine.view().revision()), (before, revision), "write {n} did something");
        // As much as there is room for; and an entry of before there was such a limit.
        let mut other = M::new();
        apply_all(&mut other, 1, &first, 2).await;
        let all = machine.apply(LogId::new(1, 4), within(Some(bytes), request.clone())).await.unwrap();
        assert!(!matches!(answer(all.clone()), outcome::Body::Refusal(_)), "write {n}: {:?}", answer(all));
        assert_eq!(other.apply(LogId::new(1, 3), within(None, request)).await.unwrap(), all, "write {n}");
        assert_eq!(image(&machine).await, image(&other).await, "write {n}");
        assert_eq!(machine.view().revision(), revision + 1);
    }
}

async fn an_image_is_a_moment_that_later_writes_do_not_change<M: Kv>() {
    let mut machine = M::new();
    apply_all(&mut machine, 1, &[put("a", "1"), put("a", "2"), put("b", "3")], 10).await;
    let before = image(&machine).await;
    let mut chunks = machine.snapshot().await.unwrap();
    apply_all(&mut machine, 4, &[put("a", "4"), compact(5), put("c", "5")], 10).await;
    machine.view().swept(5).await.unwrap();
    let mut taken = Vec::new();
    while let Some(chunk) = chunks.next().await.unwrap() {
        taken.push(chunk);
    }
    assert_eq!(taken, before);
}

async fn bytes_that_are_no_command_get_an_answer_and_change_nothing<M: Kv>() {
    let mut machine = M::new();
    for bytes in [&[0x0a, 0xff][..], &[]] {
        let bytes = machine.apply(LogId::new(1, 1), Bytes::from_static(bytes)).await.unwrap();
        let outcome::Body::Refusal(refusal) = answer(bytes) else { panic!("a refusal") };
        assert!(refusal.message.contains("can't be decoded"), "{}", refusal.message);
    }
    assert_eq!(machine.view().revision(), 1);
}

async fn a_command_of_a_later_version_stops_the_node_instead_of_being_skipped<M: Kv>() {
    let mut machine = M::new();
    // Field 15, which no version so far has.
    let error = machine.apply(LogId::new(4, 7), Bytes::from_static(&[0x7a, 0x00])).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("7@4") && text.contains("upgrade this node"), "{text}");
    // A change of users and roles (field 17) of an unknown kind.
    let error =
        M::new().apply(LogId::new(4, 8), Bytes::from_static(&[0x8a, 0x01, 0x02, 0x7a, 0x00])).await.unwrap_err();
    assert!(error.to_string().contains("upgrade this node"), "{error}");
}

async fn a_damaged_image_is_refused_and_leaves_the_state_alone<M: Kv>() {
    let mut machine = M::new();
    apply_all(&mut machine, 1, &[put("a", "1")], 1).await;
    let mut damaged = image(&machine).await.concat();
    damaged[20] ^= 1;
    let error = machine.restore(Box::new(vec![Bytes::from(damaged)].into_iter())).await.unwrap_err();
    assert!(error.to_string().contains("the image is damaged at byte"), "{error}");
    assert_eq!(everything(&machine.view()).await.count, 1);
}

async fn compaction_gives_memory_back_in_the_background<M: Kv>() {
    let mut machine = M::new();
    let view = machine.view();
    let mut commands: Vec<Bytes> = (0..30_000).map(|n| put(&format!("k{:04}", n % 5000), &"v".repeat(100))).collect();
    commands.extend((0..2500).map(|n| {
        let delete = DeleteRangeRequest { key: format!("k{n:04}").into(), ..Default::default() };
        encode_command(command::Body::DeleteRange(delete))
    }));
    apply_all(&mut machine, 1, &commands, 256).await;
    let full = view.stats();
    assert_eq!((full.live, full.versions), (2500, 32_500));
    apply_all(&mut machine, 32_501, &[compact(32_501)], 1).await;
    tokio::time::timeout(Duration::from_secs(20), view.swept(32_501)).await.expect("the sweep ends").unwrap();
    let swept = view.stats();
    assert_eq!((swept.live, swept.versions), (2500, 2500));
    assert!(swept.bytes * 8 < full.bytes, "{} of {} bytes are left", swept.bytes, full.bytes);
}
