//! Users and roles at the services: who is let in, by what, and for how long.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what went wrong by panicking")]

mod etcd_support;

use std::path::Path;
use std::time::Duration;

use etcd_support::{Local, Ours};
use kv_example::api::authpb::{Permission, permission::Type};
use kv_example::api::etcdserverpb::auth_client::AuthClient;
use kv_example::api::etcdserverpb::cluster_client::ClusterClient;
use kv_example::api::etcdserverpb::kv_client::KvClient;
use kv_example::api::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_example::api::etcdserverpb::request_op::Request as Op;
use kv_example::api::etcdserverpb::*;
use kv_example::api::node::node_client::NodeClient;
use kv_example::api::node::{
    CampaignRequest, CloseSessionRequest, NodeStatusRequest, OpenSessionRequest, SetPreferenceRequest,
    TakeSnapshotRequest, TransferLeadershipRequest,
};
use kv_example::client::{Client, ClientError, ClientOptions, Credentials};
use kv_example::service::{ONCE, Options, RETRY, SESSION_EXPIRED};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

const NOBODY: &str = "etcdserver: user name is empty";
const DENIED: &str = "etcdserver: permission denied";
const STALE: &str = "etcdserver: invalid auth token";

/// A request with a token.
fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("token", token.parse().unwrap());
    request
}

fn put(key: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() }
}

fn get(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.unwrap_err();
    (status.code(), status.message().to_owned())
}

/// A server with authentication enabled: root, and ann, who may read and write keys from `a` to `c`.
struct Place {
    ours: Ours,
    channel: Channel,
    root: String,
    ann: String,
}

impl Place {
    async fn new() -> Self {
        Self::with(Local::default(), Options::default()).await
    }

    async fn with(replica: Local, options: Options) -> Self {
        let ours = Ours::start_as(replica, options).await;
        let channel = ours.channel().await;
        let mut auth = AuthClient::new(channel.clone());
        for name in ["root", "ann"] {
            let password = format!("{name}'s secret");
            auth.user_add(AuthUserAddRequest { name: name.into(), password, options: None }).await.unwrap();
        }
        auth.role_add(AuthRoleAddRequest { name: "r".into() }).await.unwrap();
        let perm = Permission { perm_type: Type::Readwrite.into(), key: "a".into(), range_end: "c".into() };
        let grant = AuthRoleGrantPermissionRequest { name: "r".into(), perm: Some(perm) };
        auth.role_grant_permission(grant).await.unwrap();
        for (user, role) in [("root", "root"), ("ann", "r")] {
            auth.user_grant_role(AuthUserGrantRoleRequest { user: user.into(), role: role.into() }).await.unwrap();
        }
        auth.auth_enable(AuthEnableRequest {}).await.unwrap();
        let mut place = Self { ours, channel, root: String::new(), ann: String::new() };
        (place.root, place.ann) = (place.login("root").await, place.login("ann").await);
        place
    }

    async fn login(&self, name: &str) -> String {
        self.try_login(name, &format!("{name}'s secret")).await.unwrap()
    }

    async fn try_login(&self, name: &str, password: &str) -> Result<String, Status> {
        let request = AuthenticateRequest { name: name.into(), password: password.into() };
        Ok(self.auth().authenticate(request).await?.into_inner().token)
    }

    fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel.clone())
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    fn client(&self, name: &str, password: &str) -> Client {
        let credentials = Some(Credentials { name: name.into(), password: password.into() });
        Client::new(&[self.ours.address.to_string()], ClientOptions { credentials, ..ClientOptions::default() })
            .unwrap()
    }
}

/// All methods of all services, and whether each answers more than once.
fn methods() -> Vec<String> {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files = protox::compile(["etcd/rpc.proto", "raftkv/node.proto"], [protos]).unwrap();
    let mut methods = Vec::new();
    for file in files.file {
        for service in &file.service {
            let names = service.method.iter().map(|method| method.name());
            methods.extend(names.map(|name| format!("/{}.{}/{name}", file.package(), service.name())));
        }
    }
    methods
}

/// Calls any method. What it is sent has one field, the first, if it has any.
async fn call(channel: &Channel, path: &str, token: Option<&str>, first: &str) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<AuthUserGetRequest, ()>::default();
    let message = AuthUserGetRequest { name: first.into() };
    let request = token.map_or_else(|| Request::new(message.clone()), |token| by(token, message.clone()));
    grpc.unary(request, path.parse::<PathAndQuery>().unwrap(), codec).await.map(drop)
}

/// Which methods are for everybody is written here, and nowhere else: a new method that forgets to ask fails this.
#[tokio::test]
async fn nobody_gets_anything_but_what_is_for_everybody() {
    let place = Place::new().await;
    let open = ["/etcdserverpb.Auth/Authenticate", "/etcdserverpb.Maintenance/Status", "/raftkv.kv.v1.Node/Status"];
    let for_users = [
        "/etcdserverpb.KV/Range",
        "/etcdserverpb.KV/Put",
        "/etcdserverpb.KV/DeleteRange",
        "/etcdserverpb.KV/Txn",
        "/etcdserverpb.Cluster/MemberList",
        "/etcdserverpb.Maintenance/Alarm",
        "/etcdserverpb.Auth/UserGet",
        "/etcdserverpb.Auth/RoleGet",
        "/raftkv.kv.v1.Node/OpenSession",
        "/raftkv.kv.v1.Node/CloseSession",
    ];
    let methods = methods();
    assert!(methods.len() > 40, "{methods:?}");
    for name in open.iter().chain(&for_users) {
        assert!(methods.iter().any(|method| method == name), "{name}");
    }
    for method in methods {
        // Keys are checked before anything else.
        let first =
            if method.starts_with("/etcdserverpb.KV/") && !method.ends_with("/Txn") && !method.ends_with("/Compact") {
                "x"
            } else {
                ""
            };
        let nobody = call(&place.channel, &method, None, first).await;
        let forged = call(&place.channel, &method, Some("forged"), first).await;
        let ann = call(&place.channel, &method, Some(&place.ann), first).await;
        if open.contains(&&method[..]) {
            let said = nobody.map_or_else(|status| status.message().to_owned(), |()| String::new());
            assert!(said != NOBODY && said != DENIED && forged.is_ok() == ann.is_ok(), "{method}: {said}");
            continue;
        }
        assert_eq!(refusal(nobody), (Code::InvalidArgument, NOBODY.into()), "{method}");
        assert_eq!(refusal(forged), (Code::Unauthenticated, STALE.into()), "{method}");
        if !for_users.contains(&&method[..]) {
            assert_eq!(refusal(ann), (Code::PermissionDenied, DENIED.into()), "{method}");
        }
    }
}

#[tokio::test]
async fn a_user_does_what_its_roles_permit_and_no_more() {
    for replica in [Local::default(), Local::in_database()] {
        let place = Place::with(replica, Options::default()).await;
        let mut kv = place.kv();
        kv.put(by(&place.ann, put("a"))).await.unwrap();
        assert_eq!(kv.range(by(&place.ann, get("a"))).await.unwrap().into_inner().count, 1);
        let denied = || (Code::PermissionDenied, DENIED.to_owned());
        assert_eq!(refusal(kv.put(by(&place.ann, put("x"))).await), denied());
        for serializable in [false, true] {
            assert_eq!(refusal(kv.range(by(&place.ann, RangeRequest { serializable, ..get("x") })).await), denied());
            let wide = RangeRequest { serializable, range_end: vec![0].into(), ..get("a") };
            assert_eq!(refusal(kv.range(by(&place.ann, wide)).await), denied());
        }
        let compare = vec![Compare { key: "x".into(), ..Default::default() }];
        let read = vec![RequestOp { request: Some(Op::RequestRange(get("a"))) }];
        let write = vec![RequestOp { request: Some(Op::RequestPut(put("a"))) }];
        for success in [read.clone(), write] {
            let good = TxnRequest { success: success.clone(), ..Default::default() };
            kv.txn(by(&place.ann, good)).await.unwrap();
            let bad = TxnRequest { compare: compare.clone(), success, ..Default::default() };
            assert_eq!(refusal(kv.txn(by(&place.ann, bad)).await), denied());
        }
        assert_eq!(kv.put(by(&place.root, put("x"))).await.unwrap().into_inner().header.unwrap().revision, 4);
        // What came before a change of roles may be done after it: nobody has to log in again.
        let mut auth = place.auth();
        let perm = Permission { perm_type: Type::Read.into(), key: "x".into(), ..Default::default() };
        let grant = AuthRoleGrantPermissionRequest { name: "r".into(), perm: Some(perm) };
        auth.role_grant_permission(by(&place.root, grant)).await.unwrap();
        assert_eq!(kv.range(by(&place.ann, get("x"))).await.unwrap().into_inner().count, 1);
        let revoke = AuthUserRevokeRoleRequest { name: "ann".into(), role: "r".into() };
        auth.user_revoke_role(by(&place.root, revoke)).await.unwrap();
        assert_eq!(refusal(kv.range(by(&place.ann, get("a"))).await), denied());
    }
}

#[tokio::test]
async fn a_login_takes_the_password() {
    let place = Place::new().await;
    let failed = (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password".to_owned());
    for (name, password) in [("ann", ""), ("ann", "root's secret"), ("bob", "bob's secret"), ("", "")] {
        assert_eq!(refusal(place.try_login(name, password).await), failed, "{name} {password}");
    }
    let nobody = AuthUserAddRequest {
        name: "bob".into(),
        password: "bob's secret".into(),
        options: Some(kv_example::api::authpb::UserAddOptions { no_password: true }),
    };
    place.auth().user_add(by(&place.root, nobody)).await.unwrap();
    assert_eq!(refusal(place.try_login("bob", "bob's secret").await), failed, "nobody can log in as bob");
    assert_eq!(refusal(place.try_login("bob", "").await), failed);
    let off = Ours::start().await;
    let request = AuthenticateRequest { name: "ann".into(), password: String::new() };
    let refused = refusal(AuthClient::new(off.channel().await).authenticate(request).await);
    assert_eq!(refused, (Code::FailedPrecondition, "etcdserver: authentication is not enabled".into()));
}

#[tokio::test]
async fn a_token_is_void_when_its_user_has_another_password_or_is_gone() {
    let place = Place::new().await;
    let stale = (Code::Unauthenticated, STALE.to_owned());
    let mut auth = place.auth();
    let change = AuthUserChangePasswordRequest { name: "ann".into(), password: "new".into() };
    auth.user_change_password(by(&place.root, change)).await.unwrap();
    assert_eq!(refusal(place.kv().range(by(&place.ann, get("a"))).await), stale);
    assert!(place.try_login("ann", "ann's secret").await.is_err());
    let ann = place.try_login("ann", "new").await.unwrap();
    place.kv().range(by(&ann, get("a"))).await.unwrap();
    auth.user_delete(by(&place.root, AuthUserDeleteRequest { name: "ann".into() })).await.unwrap();
    assert_eq!(refusal(place.kv().range(by(&ann, get("a"))).await), stale);
    let again = AuthUserAddRequest { name: "ann".into(), password: "new".into(), options: None };
    auth.user_add(by(&place.root, again)).await.unwrap();
    assert_eq!(refusal(place.kv().put(by(&ann, put("a"))).await), stale, "that is another ann");
}

#[tokio::test]
async fn tokens_from_before_it_was_off_are_void() {
    let place = Place::new().await;
    let mut auth = place.auth();
    auth.auth_disable(by(&place.root, AuthDisableRequest {})).await.unwrap();
    // Whoever shows a token meanwhile does no harm.
    place.kv().put(by(&place.ann, put("x"))).await.unwrap();
    place.kv().put(put("x")).await.unwrap();
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
    assert_eq!(refusal(place.kv().put(by(&place.ann, put("a"))).await), (Code::Unauthenticated, STALE.into()));
    place.kv().put(by(&place.login("ann").await, put("a"))).await.unwrap();
}

#[tokio::test]
async fn a_token_expires_and_a_client_logs_in_again() {
    let options = Options { token_ttl: Duration::from_secs(1), ..Options::default() };
    let place = Place::with(Local::default(), options).await;
    let client = place.client("ann", "ann's secret");
    client.put("a", "1").await.unwrap();
    let ann = place.login("ann").await;
    place.kv().range(by(&ann, get("a"))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(refusal(place.kv().range(by(&ann, get("a"))).await), (Code::Unauthenticated, STALE.into()));
    client.put("a", "2").await.unwrap();
    assert_eq!(&client.get("a").await.unwrap().unwrap().value[..], b"2");
    client.close().await;
}

/// While the time is being changed, node by node.
#[tokio::test]
async fn nodes_that_are_told_different_times_take_each_others_tokens() {
    let brief = Options { token_ttl: Duration::from_secs(60), ..Options::default() };
    let place = Place::with(Local::default(), brief).await;
    let long = Options { token_ttl: Duration::from_secs(86_400), ..Options::default() };
    let other = Ours::start_as(place.ours.replica.clone(), long).await.channel().await;
    KvClient::new(other.clone()).put(by(&place.ann, put("a"))).await.unwrap();
    let login = AuthenticateRequest { name: "ann".into(), password: "ann's secret".into() };
    let ann = AuthClient::new(other).authenticate(login).await.unwrap().into_inner().token;
    place.kv().put(by(&ann, put("a"))).await.unwrap();
}

#[tokio::test]
async fn a_client_has_a_name_when_it_is_asked_for_one() {
    let ours = Ours::start().await;
    let place = |name: &str, password: &str| {
        let credentials = Some(Credentials { name: name.into(), password: password.into() });
        Client::new(&[ours.address.to_string()], ClientOptions { credentials, ..ClientOptions::default() }).unwrap()
    };
    let root = place("root", "secret");
    // Nobody is asked for a name yet.
    root.put("k", "1").await.unwrap();
    root.user_add("root", Some("secret")).await.unwrap();
    root.user_add("bob", Some("b")).await.unwrap();
    root.user_grant("root", "root").await.unwrap();
    root.auth_enable().await.unwrap();
    root.put("k", "2").await.unwrap();
    assert_eq!(root.users().await.unwrap(), ["bob", "root"]);
    assert!(root.auth_status().await.unwrap().enabled);
    let denied = place("bob", "b").put("k", "3").await.unwrap_err();
    assert!(matches!(&denied, ClientError::Other(cause) if cause.message == DENIED), "{denied}");
    let wrong = place("bob", "c").put("k", "3").await.unwrap_err();
    assert!(matches!(&wrong, ClientError::Other(cause) if cause.message.contains("authentication failed")), "{wrong}");
    let nobody = Client::new(&[ours.address.to_string()], ClientOptions::default()).unwrap();
    let nobody = nobody.get("k").await.unwrap_err();
    assert!(matches!(&nobody, ClientError::Other(cause) if cause.message == NOBODY), "{nobody}");
    // Another password for the same user: this client's token is void, and so is its password.
    root.user_password("root", "new").await.unwrap();
    assert!(matches!(root.get("k").await, Err(ClientError::Other(_))));
    place("root", "new").role_add("r").await.unwrap();
    let root = place("root", "new");
    let read = Permission { perm_type: Type::Read.into(), key: "k".into(), ..Default::default() };
    root.role_grant("r", read.clone()).await.unwrap();
    root.user_grant("bob", "r").await.unwrap();
    assert_eq!(&place("bob", "b").get("k").await.unwrap().unwrap().value[..], b"2");
    assert_eq!(root.role_permissions("r").await.unwrap(), [read]);
    root.role_revoke("r", "k".into(), Default::default()).await.unwrap();
    assert!(place("bob", "b").get("k").await.is_err());
    root.auth_disable().await.unwrap();
    place("bob", "b").put("k", "4").await.unwrap();
}

/// Answers of writes are kept for whoever asks again; that must be whoever asked first.
#[tokio::test]
async fn a_session_is_its_users_own() {
    let place = Place::new().await;
    assert_eq!(refusal(place.node().open_session(OpenSessionRequest {}).await).1, NOBODY);
    let opened = place.node().open_session(by(&place.ann, OpenSessionRequest {})).await.unwrap().into_inner();
    assert_eq!(opened.proof.len(), 32);
    let write = |token: &str, name: String| {
        let mut request = by(token, put("a"));
        request.metadata_mut().insert(ONCE, name.parse().unwrap());
        let mut kv = place.kv();
        async move { kv.put(request).await }
    };
    let session = opened.session;
    write(&place.ann, format!("{session}/1/1/{}", opened.proof)).await.unwrap();
    let foreign = [
        write(&place.ann, format!("{session}/1/1")).await,
        write(&place.ann, format!("{session}/1/1/{}", "0".repeat(32))).await,
        write(&place.ann, format!("{}/1/1/{}", session + 1, opened.proof)).await,
        // Not even root's.
        write(&place.root, format!("{session}/1/1/{}", opened.proof)).await,
    ];
    for outcome in foreign {
        let status = outcome.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.metadata().get(RETRY).unwrap(), SESSION_EXPIRED, "a client opens one of its own");
    }
    let close = |proof: &str| CloseSessionRequest { session, proof: proof.into() };
    assert!(place.node().close_session(by(&place.root, close(&opened.proof))).await.is_err());
    assert!(place.node().close_session(by(&place.ann, close(""))).await.is_err());
    place.node().close_session(by(&place.ann, close(&opened.proof))).await.unwrap();
}

#[tokio::test]
async fn users_see_themselves_and_root_sees_all() {
    let place = Place::new().await;
    let mut auth = place.auth();
    let user = |name: &str| AuthUserGetRequest { name: name.into() };
    let role = |name: &str| AuthRoleGetRequest { role: name.into() };
    assert_eq!(auth.user_get(by(&place.ann, user("ann"))).await.unwrap().into_inner().roles, ["r"]);
    assert_eq!(auth.role_get(by(&place.ann, role("r"))).await.unwrap().into_inner().perm.len(), 1);
    for outcome in [
        refusal(auth.user_get(by(&place.ann, user("root"))).await),
        refusal(auth.user_get(by(&place.ann, user("bob"))).await),
        refusal(auth.role_get(by(&place.ann, role("root"))).await),
        refusal(auth.role_get(by(&place.ann, role("s"))).await),
    ] {
        assert_eq!(outcome, (Code::PermissionDenied, DENIED.into()));
    }
    assert_eq!(auth.user_get(by(&place.root, user("ann"))).await.unwrap().into_inner().roles, ["r"]);
    assert_eq!(refusal(auth.user_get(by(&place.root, user("bob"))).await).1, "etcdserver: user name not found");
    assert_eq!(refusal(auth.role_get(by(&place.root, role("s"))).await).1, "etcdserver: role name not found");
    let status = auth.auth_status(by(&place.root, AuthStatusRequest {})).await.unwrap().into_inner();
    assert!(status.enabled && status.auth_revision > 5, "{status:?}");
    // Any etcd client sends its token under one of two names.
    let mut request = Request::new(user("ann"));
    request.metadata_mut().insert("authorization", place.ann.parse().unwrap());
    auth.user_get(request).await.unwrap();
}

#[tokio::test]
async fn a_node_tells_everybody_how_it_is_and_users_where_it_is() {
    let place = Place::new().await;
    let status = place.node().status(NodeStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.id, status.client_address.as_str()), (9, ""));
    let status = place.node().status(by(&place.ann, NodeStatusRequest {})).await.unwrap().into_inner();
    assert_eq!(status.client_address, place.ours.address.to_string());
    MaintenanceClient::new(place.channel.clone()).status(StatusRequest {}).await.unwrap();
    place.node().take_snapshot(by(&place.root, TakeSnapshotRequest {})).await.unwrap();
    let members = MemberListRequest { linearizable: true };
    ClusterClient::new(place.channel.clone()).member_list(by(&place.ann, members)).await.unwrap();
}

/// What is wrong with a node is told before what is wrong with a user, as far as the user can't be known.
#[tokio::test]
async fn without_a_quorum_a_token_is_checked_by_what_the_node_knows() {
    let place = Place::new().await;
    place.ours.replica.fail(Some(raftkv::Error::Unavailable));
    let stale = RangeRequest { serializable: true, ..get("a") };
    place.kv().range(by(&place.ann, stale.clone())).await.unwrap();
    assert_eq!(refusal(place.kv().range(stale).await), (Code::InvalidArgument, NOBODY.into()));
    assert_eq!(
        refusal(place.kv().put(by(&place.ann, put("x"))).await).0,
        Code::Unavailable,
        "it may be permitted elsewhere"
    );
    assert_eq!(refusal(place.try_login("ann", "ann's secret").await).0, Code::Unavailable);
}

/// A node that has served, and has the first so many commands of another's log; the others are committed, and not applied there.
async fn behind(place: &Place, known: usize) -> (Ours, Channel) {
    let mut log = place.ours.replica.log.lock().unwrap().clone();
    let replica = Local::default();
    *replica.behind.lock().unwrap() = log.drain(..known).collect();
    let ours = Ours::start_with(replica).await;
    let channel = ours.channel().await;
    // As far as that it has caught up, and serves.
    let begun = KvClient::new(channel.clone()).range(by(&place.root, get("none"))).await;
    assert!(begun.is_ok() || known > 0, "{begun:?}");
    *ours.replica.behind.lock().unwrap() = log;
    (ours, channel)
}

/// Everything is known but the last command, and then the two commands before it, and so on.
#[tokio::test]
async fn a_node_that_is_behind_lets_nobody_do_what_the_cluster_does_not() {
    let place = Place::new().await;
    let all = place.ours.replica.log.lock().unwrap().len();
    for known in 0..=all {
        let (_ours, channel) = behind(&place, known).await;
        let mut kv = KvClient::new(channel.clone());
        assert_eq!(refusal(kv.put(put("a")).await), (Code::InvalidArgument, NOBODY.into()), "{known}");
        let (_ours, channel) = behind(&place, known).await;
        let mut kv = KvClient::new(channel.clone());
        assert_eq!(refusal(kv.range(get("a")).await), (Code::InvalidArgument, NOBODY.into()), "{known}");
        let (_ours, channel) = behind(&place, known).await;
        let mut cluster = ClusterClient::new(channel.clone());
        let add = MemberAddRequest { peer_urls: vec!["http://127.0.0.1:1".into()], is_learner: true };
        assert_eq!(refusal(cluster.member_add(add).await), (Code::InvalidArgument, NOBODY.into()), "{known}");
        // Nor does it give another's answers away.
        let (_ours, channel) = behind(&place, known).await;
        let mut request = Request::new(put("a"));
        request.metadata_mut().insert(ONCE, "1/1/1".parse().unwrap());
        assert_eq!(
            refusal(KvClient::new(channel).put(request).await),
            (Code::InvalidArgument, NOBODY.into()),
            "{known}"
        );
    }
}

/// What is no command is judged by the node alone, so it asks for the newest users first.
#[tokio::test]
async fn a_node_that_is_behind_lets_nobody_do_what_is_for_root() {
    let place = Place::new().await;
    let nobody = (Code::InvalidArgument, NOBODY.to_owned());
    let all = place.ours.replica.log.lock().unwrap().len();
    // From the last command back to where there is no user at all.
    for known in [0, all - 1] {
        for method in 0..7 {
            let (_ours, channel) = behind(&place, known).await;
            assert_eq!(for_root(channel, None, method).await, nobody, "method {method}, {known} of {all} commands");
        }
    }
    // Ann was root for a while.
    let (user, role) = ("ann".to_owned(), "root".to_owned());
    let grant = AuthUserGrantRoleRequest { user: user.clone(), role: role.clone() };
    place.auth().user_grant_role(by(&place.root, grant)).await.unwrap();
    let granted = place.ours.replica.log.lock().unwrap().len();
    place.auth().user_revoke_role(by(&place.root, AuthUserRevokeRoleRequest { name: user, role })).await.unwrap();
    for method in 0..7 {
        let (_ours, channel) = behind(&place, granted).await;
        let denied = (Code::PermissionDenied, "etcdserver: permission denied".to_owned());
        assert_eq!(for_root(channel, Some(&place.ann), method).await, denied, "method {method}");
    }
}

/// How one of the methods refuses that are for root alone and no commands. Where the machine is busy, the newest users may not be known within the second that
/// a request waits for them.
async fn for_root(channel: Channel, token: Option<&str>, method: usize) -> (Code, String) {
    let mut refused = (Code::Unavailable, String::new());
    for _ in 0..20 {
        if refused.0 == Code::Unavailable {
            refused = ask_for_root(channel.clone(), token, method).await;
        }
    }
    refused
}

async fn ask_for_root(channel: Channel, token: Option<&str>, method: usize) -> (Code, String) {
    fn of<T>(token: Option<&str>, message: T) -> Request<T> {
        match token {
            Some(token) => by(token, message),
            None => Request::new(message),
        }
    }
    let (mut node, mut maintenance) = (NodeClient::new(channel.clone()), MaintenanceClient::new(channel));
    match method {
        0 => refusal(node.campaign(of(token, CampaignRequest {})).await),
        1 => refusal(node.transfer_leadership(of(token, TransferLeadershipRequest { target: 2 })).await),
        2 => refusal(node.take_snapshot(of(token, TakeSnapshotRequest {})).await),
        3 => refusal(node.set_preference(of(token, SetPreferenceRequest::default())).await),
        4 => refusal(maintenance.hash_kv(of(token, HashKvRequest::default())).await),
        5 => refusal(maintenance.move_leader(of(token, MoveLeaderRequest { target_id: 2 })).await),
        _ => refusal(maintenance.defragment(of(token, DefragmentRequest {})).await),
    }
}

/// Without that there might never be a leader again: a node may have been told not to lead.
#[tokio::test]
async fn without_a_quorum_a_node_does_for_root_what_concerns_it_alone() {
    let place = Place::new().await;
    place.ours.replica.fail(Some(raftkv::Error::Unavailable));
    let prefer = SetPreferenceRequest { priority: Some(3), may_lead: Some(true) };
    place.node().set_preference(by(&place.root, prefer)).await.unwrap();
    place.node().take_snapshot(by(&place.root, TakeSnapshotRequest {})).await.unwrap();
    assert_eq!(refusal(place.node().set_preference(by(&place.ann, prefer)).await).0, Code::Unavailable);
    let transfer = TransferLeadershipRequest { target: 2 };
    assert_eq!(refusal(place.node().transfer_leadership(by(&place.root, transfer)).await).0, Code::Unavailable);
}

/// It took the state that it began with for the cluster's, in which there are no users yet, when it could not ask for the newest in time.
#[tokio::test]
async fn a_node_that_can_not_catch_up_lets_nobody_do_what_is_for_root() {
    let replica = Local::default();
    replica.fail(Some(raftkv::Error::Unavailable));
    let ours = Ours::start_with(replica).await;
    let channel = ours.channel().await;
    let mut cluster = ClusterClient::new(channel.clone());
    let add = MemberAddRequest { peer_urls: vec!["http://127.0.0.1:1".into()], is_learner: true };
    let remove = MemberRemoveRequest { id: 2 };
    let update = MemberUpdateRequest { id: 2, peer_urls: vec!["http://127.0.0.1:1".into()] };
    assert_eq!(refusal(cluster.member_add(add).await).0, Code::Unavailable);
    assert_eq!(refusal(cluster.member_remove(remove).await).0, Code::Unavailable);
    assert_eq!(refusal(cluster.member_update(update).await).0, Code::Unavailable);
    assert_eq!(refusal(cluster.member_promote(MemberPromoteRequest { id: 2 }).await).0, Code::Unavailable);
    let mut maintenance = MaintenanceClient::new(channel.clone());
    assert_eq!(refusal(maintenance.hash_kv(HashKvRequest::default()).await).0, Code::Unavailable);
    assert_eq!(refusal(maintenance.move_leader(MoveLeaderRequest { target_id: 2 }).await).0, Code::Unavailable);
    // Nor does it tell anybody what is for users.
    assert_eq!(refusal(cluster.member_list(MemberListRequest { linearizable: false }).await).0, Code::Unavailable);
    assert_eq!(refusal(maintenance.alarm(AlarmRequest::default()).await).0, Code::Unavailable);
    let status = NodeClient::new(channel).status(NodeStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.client_address, "");
}

#[tokio::test]
async fn a_node_that_is_behind_tells_nobody_what_is_for_users() {
    let place = Place::new().await;
    let all = place.ours.replica.log.lock().unwrap().len();
    for known in [0, all - 1] {
        let (_ours, channel) = behind(&place, known).await;
        let list = ClusterClient::new(channel).member_list(MemberListRequest { linearizable: false }).await;
        assert_eq!(refusal(list), (Code::InvalidArgument, NOBODY.into()), "{known}");
        let (_ours, channel) = behind(&place, known).await;
        let session = NodeClient::new(channel).open_session(OpenSessionRequest {}).await;
        assert_eq!(refusal(session), (Code::InvalidArgument, NOBODY.into()), "{known}");
    }
    // Without a quorum by what the node knows.
    let (ours, channel) = behind(&place, 0).await;
    ours.replica.fail(Some(raftkv::Error::Unavailable));
    ClusterClient::new(channel).member_list(MemberListRequest { linearizable: false }).await.unwrap();
}

/// It was told to be refused, so that the client opened another session and wrote again.
#[tokio::test]
async fn a_write_that_was_applied_while_users_came_is_not_told_to_be_refused() {
    let place = Place::new().await;
    let log = place.ours.replica.log.lock().unwrap().clone();
    let replica = Local::default();
    let ours = Ours::start_with(replica).await;
    let channel = ours.channel().await;
    let mut request = Request::new(put("a"));
    KvClient::new(channel.clone()).put(put("b")).await.unwrap();
    let session = NodeClient::new(channel.clone()).open_session(OpenSessionRequest {}).await.unwrap().into_inner();
    request.metadata_mut().insert(ONCE, format!("{}/1/1", session.session).parse().unwrap());
    // The commands that bring users are applied together with the write.
    *ours.replica.behind.lock().unwrap() = log;
    let status = KvClient::new(channel).put(request).await.unwrap_err();
    assert_eq!(
        status.metadata().get("raftkv-retry").and_then(|retry| retry.to_str().ok()),
        Some("unknown"),
        "{status}"
    );
}

#[tokio::test]
async fn a_node_that_is_behind_refuses_nobody_whom_the_cluster_lets_in() {
    let place = Place::new().await;
    let all = place.ours.replica.log.lock().unwrap().len();
    for known in 0..=all {
        let (_ours, channel) = behind(&place, known).await;
        KvClient::new(channel).put(by(&place.ann, put("a"))).await.unwrap();
        let (_ours, channel) = behind(&place, known).await;
        KvClient::new(channel).range(by(&place.ann, get("a"))).await.unwrap();
        let (_ours, channel) = behind(&place, known).await;
        let stale = RangeRequest { serializable: true, ..get("a") };
        KvClient::new(channel).range(by(&place.ann, stale)).await.unwrap();
        let (_ours, channel) = behind(&place, known).await;
        AuthClient::new(channel).user_list(by(&place.root, AuthUserListRequest {})).await.unwrap();
    }
    // What it knows is not enough any more: a token of the former password.
    let change = AuthUserChangePasswordRequest { name: "ann".into(), password: "new".into() };
    place.auth().user_change_password(by(&place.root, change)).await.unwrap();
    let (_ours, channel) = behind(&place, all).await;
    let old = refusal(KvClient::new(channel.clone()).put(by(&place.ann, put("a"))).await);
    assert_eq!(old, (Code::InvalidArgument, "etcdserver: revision of auth store is old".into()));
    let (_ours, channel) = behind(&place, all).await;
    assert_eq!(
        refusal(KvClient::new(channel).range(by(&place.ann, get("a"))).await),
        (Code::Unauthenticated, STALE.into())
    );
}
