//! Users and roles as the log changes them, and what they let be done.

use bytes::Bytes;
use prost::Message;
use raftkv::LogId;

use super::super::{Image, Loader, Refusal, Store};
use super::*;
use crate::api::authpb::Permission;
use crate::api::command::auth_change::Change;
use crate::api::command::command::Body;
use crate::api::command::{
    AuthChange, AuthDisable, AuthEnable, MemberGone, MemberNote, Outcome, RoleAdd, RoleDelete, RoleGrant, RoleRevoke,
    UserAdd, UserDelete, UserGrant, UserPassword, UserRevoke, member_note::Note, outcome,
};
use crate::api::etcdserverpb::request_op::Request;
use crate::api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use crate::machine::{apply_one, encode_command_of};

const OLD: &str = "etcdserver: revision of auth store is old";
const DENIED: &str = "etcdserver: permission denied";
const NOBODY: &str = "etcdserver: user name is empty";

/// A store that a test changes command by command.
struct Place(Store);

impl Place {
    /// With authentication enabled, a root, and ann, who has role r.
    fn new() -> Self {
        let mut place = Self(Store::new());
        for change in [add("root"), grant("root", "root"), add("ann"), role("r"), grant("ann", "r"), enable()] {
            place.root(change).unwrap();
        }
        place
    }

    fn revision(&self) -> u64 {
        self.0.head.auth.revision()
    }

    /// Whoever it is, as known now.
    fn author(&self, user: &str) -> Option<Author> {
        Some(Author { user: user.into(), revision: self.revision() })
    }

    fn apply(&mut self, author: Option<Author>, body: Body) -> Result<outcome::Body, String> {
        let answer = apply_one(&mut self.0, LogId::new(1, 1), encode_command_of(author, body)).unwrap();
        let body = Outcome::decode(answer).unwrap().body.unwrap();
        if let outcome::Body::Refusal(refusal) = body { Err(refusal.message) } else { Ok(body) }
    }

    fn root(&mut self, change: Change) -> Result<(), String> {
        self.apply(self.author("root"), Body::Auth(AuthChange { change: Some(change) })).map(drop)
    }

    fn ann(&mut self, body: Body) -> Result<(), String> {
        self.apply(self.author("ann"), body).map(drop)
    }

    fn read(&self, user: &str, key: &str, range_end: &str) -> Result<i64, Refusal> {
        let request = range(key, range_end);
        self.0.range_as(self.author(user).as_ref(), &request, usize::MAX).map(|answer| answer.count)
    }
}

fn add(name: &str) -> Change {
    Change::UserAdd(UserAdd { name: name.into(), password_hash: format!("hash of {name}") })
}

fn grant(user: &str, role: &str) -> Change {
    Change::UserGrant(UserGrant { user: user.into(), role: role.into() })
}

fn role(name: &str) -> Change {
    Change::RoleAdd(RoleAdd { name: name.into() })
}

fn enable() -> Change {
    Change::Enable(AuthEnable { signing_key: vec![7; SIGNING_KEY_BYTES].into() })
}

fn permit(role: &str, kind: Type, key: &str, range_end: &str) -> Change {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    Change::RoleGrant(RoleGrant {
        role: role.into(),
        permission: Some(Permission { perm_type: kind.into(), key, range_end }),
    })
}

fn range(key: &str, range_end: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), range_end: range_end.to_owned().into(), ..Default::default() }
}

fn put(key: &str, prev_kv: bool) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: "v".into(), prev_kv, ..Default::default() }
}

fn delete(key: &str, range_end: &str, prev_kv: bool) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.to_owned().into(), range_end: range_end.to_owned().into(), prev_kv }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn txn(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..Default::default() }
}

#[test]
fn without_a_user_nothing_is_done_once_it_is_enabled() {
    let mut place = Place(Store::new());
    assert!(place.apply(None, Body::Put(put("k", false))).is_ok());
    place = Place::new();
    let all = [
        Body::Put(put("k", false)),
        Body::DeleteRange(delete("k", "", false)),
        Body::Txn(txn(vec![])),
        Body::Compact(CompactionRequest { revision: 1, physical: false }),
        Body::Auth(AuthChange { change: Some(Change::Disable(AuthDisable {})) }),
    ];
    for body in all {
        let before = place.0.head().clone();
        assert_eq!(place.apply(None, body.clone()), Err(NOBODY.into()), "{body:?}");
        let unnamed = Some(Author { user: String::new(), revision: place.revision() });
        assert_eq!(place.apply(unnamed, body.clone()), Err(NOBODY.into()), "{body:?}");
        assert_eq!(*place.0.head(), before, "{body:?}");
    }
    assert_eq!(place.0.range_as(None, &range("k", ""), usize::MAX), Err(Refusal::UserEmpty));
    // Nodes go on to tell each other of members.
    let note = MemberNote { note: Some(Note::Gone(MemberGone { id: 9 })) };
    assert!(place.apply(None, Body::Member(note)).is_ok());
    place.root(Change::Disable(AuthDisable {})).unwrap();
    assert!(place.apply(None, Body::Put(put("k", false))).is_ok());
}

#[test]
fn enabling_takes_a_root_and_keeps_it() {
    let mut place = Place(Store::new());
    assert_eq!(place.root(enable()), Err("etcdserver: root user does not exist".into()));
    place.root(add("root")).unwrap();
    assert_eq!(place.root(enable()), Err("etcdserver: root user does not have root role".into()));
    // The role that may do everything need not be added.
    place.root(grant("root", "root")).unwrap();
    let short = Change::Enable(AuthEnable { signing_key: vec![7; 31].into() });
    assert!(place.root(short).is_err());
    place.root(enable()).unwrap();
    let key = place.0.head.auth.signing_key().to_vec();
    let again = Change::Enable(AuthEnable { signing_key: vec![8; SIGNING_KEY_BYTES].into() });
    place.root(again).unwrap();
    assert_eq!(place.0.head.auth.signing_key(), key, "tokens stay good");
    place.root(role("root")).unwrap();
    let invalid = Err("etcdserver: invalid auth management".into());
    assert_eq!(place.root(Change::UserDelete(UserDelete { name: "root".into() })), invalid);
    assert_eq!(place.root(Change::RoleDelete(RoleDelete { name: "root".into() })), invalid);
    let revoke = Change::UserRevoke(UserRevoke { user: "root".into(), role: "root".into() });
    assert_eq!(place.root(revoke), invalid);
}

#[test]
fn only_root_changes_users_and_roles_and_compacts() {
    let mut place = Place::new();
    place.root(permit("r", Type::Readwrite, "\0", "\0")).unwrap();
    for change in [add("bob"), grant("ann", "root"), role("s"), permit("r", Type::Read, "a", ""), enable()] {
        assert_eq!(place.ann(Body::Auth(AuthChange { change: Some(change) })), Err(DENIED.into()));
    }
    assert_eq!(place.ann(Body::Compact(CompactionRequest { revision: 1, physical: false })), Err(DENIED.into()));
    place.root(grant("ann", "root")).unwrap();
    assert!(place.ann(Body::Compact(CompactionRequest { revision: 1, physical: false })).is_ok());
}

#[test]
fn permissions_of_several_roles_are_one() {
    let mut place = Place::new();
    place.root(role("s")).unwrap();
    place.root(permit("r", Type::Read, "a", "c")).unwrap();
    place.root(permit("s", Type::Readwrite, "c", "f")).unwrap();
    assert_eq!(place.read("ann", "a", "f"), Err(Refusal::PermissionDenied));
    place.root(grant("ann", "s")).unwrap();
    assert_eq!(place.read("ann", "a", "f"), Ok(0));
    assert_eq!(place.read("ann", "a", "f\0"), Err(Refusal::PermissionDenied));
    assert_eq!(place.read("ann", "b", "\0"), Err(Refusal::PermissionDenied));
    assert_eq!(place.read("ann", "0", "b"), Err(Refusal::PermissionDenied));
    assert_eq!(place.ann(Body::DeleteRange(delete("b", "d", false))), Err(DENIED.into()), "it may only read b");
    assert_eq!(place.ann(Body::DeleteRange(delete("c", "f", true))), Ok(()));
    // A permission for the very same range takes the place of the other; another range is another permission.
    place.root(permit("s", Type::Write, "c", "f")).unwrap();
    assert_eq!(place.read("ann", "a", "f"), Err(Refusal::PermissionDenied));
    place.root(permit("s", Type::Read, "c", "g")).unwrap();
    assert_eq!(place.read("ann", "a", "f"), Ok(0));
    let revoke = |end: &str| {
        Change::RoleRevoke(RoleRevoke { role: "s".into(), key: "c".into(), range_end: end.to_owned().into() })
    };
    assert_eq!(place.root(revoke("d")), Err("etcdserver: permission is not granted to the role".into()));
    place.root(revoke("g")).unwrap();
    assert_eq!(place.read("ann", "c", ""), Err(Refusal::PermissionDenied));
    place.root(Change::RoleDelete(RoleDelete { name: "r".into() })).unwrap();
    assert_eq!(place.read("ann", "a", ""), Err(Refusal::PermissionDenied));
    assert_eq!(place.0.head.auth.user("ann").unwrap().roles().collect::<Vec<_>>(), ["s"]);
}

#[test]
fn a_range_that_can_not_be_is_not_permitted() {
    let mut place = Place::new();
    for (key, end) in [("", ""), ("", "b"), ("b", "a"), ("b", "b")] {
        let refused = place.root(permit("r", Type::Read, key, end));
        assert_eq!(refused, Err("etcdserver: invalid auth management".into()), "{key:?} {end:?}");
    }
    let permission = Some(Permission { perm_type: 3, key: "a".into(), range_end: Bytes::new() });
    assert!(place.root(Change::RoleGrant(RoleGrant { role: "r".into(), permission })).is_err());
    let nothing = Change::RoleGrant(RoleGrant { role: "r".into(), permission: None });
    assert_eq!(place.root(nothing), Err("etcdserver: permission not given".into()));
}

/// What was there before is read, wherever it is asked for.
#[test]
fn who_may_only_write_does_not_get_previous_values() {
    let mut place = Place::new();
    place.root(permit("r", Type::Write, "a", "c")).unwrap();
    for (prev_kv, wanted) in [(false, Ok(())), (true, Err(DENIED.to_owned()))] {
        let put = || put("a", prev_kv);
        let delete = || delete("a", "c", prev_kv);
        assert_eq!(place.ann(Body::Put(put())), wanted);
        assert_eq!(place.ann(Body::DeleteRange(delete())), wanted);
        for request in [Request::RequestPut(put()), Request::RequestDeleteRange(delete())] {
            let within = Request::RequestTxn(txn(vec![op(request.clone())]));
            assert_eq!(place.ann(Body::Txn(txn(vec![op(request)]))), wanted);
            assert_eq!(place.ann(Body::Txn(txn(vec![op(within)]))), wanted);
        }
    }
    place.root(permit("r", Type::Read, "a", "b")).unwrap();
    assert_eq!(place.ann(Body::Put(put("a", true))), Ok(()));
    assert_eq!(place.ann(Body::DeleteRange(delete("a", "c", true))), Err(DENIED.into()), "not all of it");
}

/// Both branches and all comparisons are asked for, also where they would not run, and however deep they are.
#[test]
fn a_transaction_is_permitted_if_all_of_it_is() {
    let mut place = Place::new();
    place.root(permit("r", Type::Readwrite, "a", "c")).unwrap();
    let compare = |key: &str, end: &str| Compare {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        ..Default::default()
    };
    let good = TxnRequest {
        compare: vec![compare("a", "c")],
        success: vec![op(Request::RequestPut(put("a", true)))],
        failure: vec![op(Request::RequestRange(range("a", "c")))],
    };
    assert_eq!(place.ann(Body::Txn(good.clone())), Ok(()));
    let bad_ops = [
        Request::RequestRange(range("secret", "")),
        Request::RequestRange(range("a", "c\0")),
        Request::RequestPut(put("secret", false)),
        Request::RequestDeleteRange(delete("b", "\0", false)),
    ];
    let mut bad = vec![
        TxnRequest { compare: vec![compare("a", ""), compare("secret", "")], ..good.clone() },
        TxnRequest { compare: vec![compare("a", "\0")], ..good.clone() },
    ];
    for one in bad_ops {
        bad.push(TxnRequest { success: vec![op(one.clone())], ..good.clone() });
        bad.push(TxnRequest { failure: vec![op(one)], ..good.clone() });
    }
    for bad in bad {
        let within = |txn: &TxnRequest| op(Request::RequestTxn(txn.clone()));
        let nested = TxnRequest { failure: vec![within(&bad)], ..good.clone() };
        let deeper = TxnRequest { success: vec![within(&nested)], ..good.clone() };
        for txn in [bad, nested, deeper] {
            let before = place.0.head().clone();
            assert_eq!(place.ann(Body::Txn(txn.clone())), Err(DENIED.into()), "{txn:?}");
            assert_eq!(*place.0.head(), before);
            let author = place.author("ann");
            assert_eq!(place.0.head.auth.rights(author.as_ref()).unwrap().txn(&txn), Err(Refusal::PermissionDenied));
        }
    }
    let read = TxnRequest {
        compare: vec![compare("a", "c")],
        success: vec![op(Request::RequestRange(range("b", "")))],
        ..Default::default()
    };
    assert!(place.0.read_txn_as(place.author("ann").as_ref(), &read, usize::MAX).is_ok());
    let read = TxnRequest { failure: vec![op(Request::RequestRange(range("c", "")))], ..read };
    assert_eq!(place.0.read_txn_as(place.author("ann").as_ref(), &read, usize::MAX), Err(Refusal::PermissionDenied));
}

/// A command is checked by the node that takes it, and applied later: what has changed meanwhile counts.
#[test]
fn a_command_is_judged_by_the_users_and_roles_when_it_is_applied() {
    let mut place = Place::new();
    place.root(permit("r", Type::Readwrite, "a", "c")).unwrap();
    let checked = place.author("ann");
    let write = || Body::Put(put("a", false));
    // Other permissions do no harm, as long as they permit it.
    place.root(permit("r", Type::Read, "x", "")).unwrap();
    assert!(place.apply(checked.clone(), write()).is_ok());
    place.root(Change::UserRevoke(UserRevoke { user: "ann".into(), role: "r".into() })).unwrap();
    assert_eq!(place.apply(checked.clone(), write()), Err(DENIED.into()));
    place.root(grant("ann", "r")).unwrap();
    assert!(place.apply(checked.clone(), write()).is_ok());
    // Whoever knows the former password is not this user any more.
    place.root(Change::UserPassword(UserPassword { name: "ann".into(), password_hash: "new".into() })).unwrap();
    assert_eq!(place.apply(checked.clone(), write()), Err(OLD.into()));
    assert_eq!(place.0.range_as(checked.as_ref(), &range("a", ""), usize::MAX), Err(Refusal::AuthOldRevision));
    let checked = place.author("ann");
    assert!(place.apply(checked.clone(), write()).is_ok());
    // Nor is another user of the same name.
    place.root(Change::UserDelete(UserDelete { name: "ann".into() })).unwrap();
    assert_eq!(place.apply(checked.clone(), write()), Err(DENIED.into()));
    place.root(add("ann")).unwrap();
    place.root(grant("ann", "r")).unwrap();
    assert_eq!(place.apply(checked, write()), Err(OLD.into()));
}

#[test]
fn what_was_known_before_it_was_off_counts_no_more() {
    let mut place = Place::new();
    place.root(permit("r", Type::Write, "a", "")).unwrap();
    let checked = place.author("ann");
    place.root(Change::Disable(AuthDisable {})).unwrap();
    assert!(place.apply(None, Body::Put(put("z", false))).is_ok());
    place.root(enable()).unwrap();
    assert_eq!(place.apply(checked, Body::Put(put("a", false))), Err(OLD.into()));
    assert_eq!(place.ann(Body::Put(put("a", false))), Ok(()));
}

#[test]
fn refused_changes_say_why_and_change_nothing() {
    let mut place = Place::new();
    let before = place.0.head().clone();
    let long = "n".repeat(MAX_NAME_BYTES + 1);
    let rows = [
        (add(""), "user name is empty"),
        (add(&long), "request is too large"),
        (add("ann"), "user name already exists"),
        (Change::UserDelete(UserDelete { name: "bob".into() }), "user name not found"),
        (Change::UserPassword(UserPassword { name: "bob".into(), ..Default::default() }), "user name not found"),
        (grant("bob", "r"), "user name not found"),
        (grant("ann", "s"), "role name not found"),
        (Change::UserRevoke(UserRevoke { user: "ann".into(), role: "s".into() }), "role is not granted to the user"),
        (role(""), "role name is empty"),
        (role(&long), "request is too large"),
        (role("r"), "role name already exists"),
        (Change::RoleDelete(RoleDelete { name: "s".into() }), "role name not found"),
        (permit("s", Type::Read, "a", ""), "role name not found"),
        (Change::RoleRevoke(RoleRevoke { role: "s".into(), ..Default::default() }), "role name not found"),
    ];
    for (change, words) in rows {
        assert_eq!(place.root(change.clone()), Err(format!("etcdserver: {words}")), "{change:?}");
    }
    // Granted twice is granted.
    place.root(grant("ann", "r")).unwrap();
    assert_eq!(*place.0.head(), before);
}

#[test]
fn users_and_roles_take_a_bounded_room() {
    let mut place = Place::new();
    let key = "k".repeat(1 << 20);
    let grants = (0..9).map(|n| place.root(permit("r", Type::Read, &format!("{n}{key}"), ""))).collect::<Vec<_>>();
    let refused = grants.iter().filter(|outcome| outcome.is_err()).count();
    assert!((1..9).contains(&refused) && grants[8] == Err(Refusal::AuthTooLarge.to_string()));
    let image = image(&place.0);
    assert!(load(&image).is_ok_and(|again| again.head.auth == place.0.head.auth));
}

fn image(store: &Store) -> Vec<u8> {
    let mut image = Image::new(store.freeze());
    std::iter::from_fn(|| image.next_record()).flatten().collect()
}

fn load(image: &[u8]) -> Result<Store, String> {
    let mut loader = Loader::default();
    loader.push(image).and_then(|()| loader.finish()).map_err(|error| error.to_string())
}

#[test]
fn an_image_keeps_users_and_roles() {
    let mut place = Place::new();
    place.root(permit("r", Type::Readwrite, "a", "c")).unwrap();
    place.ann(Body::Put(put("a", false))).unwrap();
    let again = load(&image(&place.0)).unwrap();
    assert_eq!(*again.head(), *place.0.head());
    place.0 = again;
    assert_eq!(place.read("ann", "a", "c"), Ok(1));
    assert_eq!(place.read("ann", "c", ""), Err(Refusal::PermissionDenied));
}

/// The first version's images have no users, and this version's neither, as long as there are none.
#[test]
fn an_image_without_users_is_what_it_was_before_there_were_any() {
    let mut store = Store::new();
    apply_one(&mut store, LogId::new(1, 1), encode_command_of(None, Body::Put(put("k", false)))).unwrap();
    let bytes = image(&store);
    // Its length and checksum, then: the head (field 1), format 1, revision 2, compacted at -1.
    let old = [
        &b"\x11\0\0\0"[..],
        &crc32c::crc32c(b"\x0a\x0f\x08\x01\x10\x02\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01").to_le_bytes(),
        b"\x0a\x0f\x08\x01\x10\x02\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ]
    .concat();
    assert_eq!(bytes[..old.len()], old);
    assert_eq!(*load(&bytes).unwrap().head(), *store.head());
}

#[test]
fn an_image_with_users_that_can_not_be_is_refused() {
    let place = Place::new();
    let sound = || place.0.head.auth.to_image();
    assert!(Auth::from_image(sound()).is_ok());
    let change: [fn(&mut crate::api::command::ImageAuth); 11] = [
        |auth| auth.revision = 0,
        |auth| auth.revision = u64::MAX,
        |auth| auth.since = auth.revision + 1,
        |auth| auth.signing_key = Bytes::new(),
        |auth| auth.signing_key = vec![1; 33].into(),
        |auth| auth.users[1].roles.clear(),
        |auth| auth.users[0].name = String::new(),
        |auth| auth.users[0].since = auth.revision + 1,
        |auth| auth.users[0].roles = vec!["unknown".into()],
        |auth| auth.users.push(auth.users[0].clone()),
        |auth| auth.roles.push(auth.roles[0].clone()),
    ];
    for (n, change) in change.into_iter().enumerate() {
        let mut image = sound();
        change(&mut image);
        assert!(Auth::from_image(image).is_err(), "{n}");
    }
}
