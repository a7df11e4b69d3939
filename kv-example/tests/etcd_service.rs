//! The services where etcd is no measure: health, readiness, Raft's errors, our own `Node` service.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what went wrong by panicking")]

mod etcd_support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_support::{Local, Ours};
use kv_example::api::etcdserverpb::kv_client::KvClient;
use kv_example::api::etcdserverpb::maintenance_client::MaintenanceClient;
use kv_example::api::etcdserverpb::request_op::Request;
use kv_example::api::etcdserverpb::{PutRequest, PutResponse, RangeRequest, RequestOp, StatusRequest, TxnRequest};
use kv_example::api::node::NodeStatusRequest;
use kv_example::api::node::node_client::NodeClient;
use kv_example::service::{CONSISTENCY, DETAIL, Options, RETRY, RETRY_SAFE, RETRY_UNKNOWN};
use raftkv::{Consistency, Error, Fatal};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

fn put(key: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() }
}

fn get(serializable: bool) -> RangeRequest {
    RangeRequest { key: "k".into(), serializable, ..Default::default() }
}

/// Waits for a health status, for up to five seconds.
async fn becomes(ours: &Ours, wanted: ServingStatus) {
    let mut client = HealthClient::new(ours.channel().await);
    let mut last = None;
    for _ in 0..100 {
        let request = HealthCheckRequest { service: "etcdserverpb.KV".into() };
        last = client.check(request).await.ok().map(|response| response.into_inner().status());
        if last == Some(wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("health is {last:?} instead of {wanted:?}");
}

#[tokio::test]
async fn health_follows_the_leader_and_the_end_of_the_node() {
    let ours = Ours::start().await;
    becomes(&ours, ServingStatus::Serving).await;
    ours.replica.leaderless.store(true, Ordering::Relaxed);
    becomes(&ours, ServingStatus::NotServing).await;
    let mut maintenance = MaintenanceClient::new(ours.channel().await);
    let status = maintenance.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.leader, status.errors), (0, vec!["etcdserver: no leader".to_owned()]));
    ours.replica.leaderless.store(false, Ordering::Relaxed);
    becomes(&ours, ServingStatus::Serving).await;
    ours.replica.fail(Some(Error::Stopped(Fatal::shutdown())));
    becomes(&ours, ServingStatus::NotServing).await;
}

#[tokio::test]
async fn a_server_that_goes_down_says_so_to_health_checks() {
    let ours = Ours::start().await;
    becomes(&ours, ServingStatus::Serving).await;
    ours.services.not_serving().await;
    becomes(&ours, ServingStatus::NotServing).await;
}

#[tokio::test]
async fn a_node_that_has_not_caught_up_answers_no_serializable_read() {
    let replica = Local::default();
    replica.fail(Some(Error::Unavailable));
    let ours = Ours::start_with(replica).await;
    let mut client = KvClient::new(ours.channel().await);
    let status = client.range(get(true)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    assert_eq!(status.metadata().get(RETRY).unwrap(), RETRY_SAFE);
    assert!(status.metadata().get(DETAIL).unwrap().to_str().unwrap().contains("caught up"));

    ours.replica.fail(None);
    becomes(&ours, ServingStatus::Serving).await;
    assert!(client.range(get(true)).await.is_ok());
}

#[tokio::test]
async fn a_client_learns_whether_a_failed_write_may_be_sent_again() {
    let ours = Ours::start().await;
    let mut client = KvClient::new(ours.channel().await);
    let cases = [
        (Error::Unavailable, Code::Unavailable, RETRY_SAFE),
        (Error::Overloaded, Code::ResourceExhausted, RETRY_SAFE),
        (Error::Lost, Code::Unavailable, RETRY_SAFE),
        (Error::OutcomeUnknown, Code::Unavailable, RETRY_UNKNOWN),
        (Error::Stopped(Fatal::state_machine("broken")), Code::Unavailable, RETRY_UNKNOWN),
    ];
    for (error, code, retry) in cases {
        ours.replica.fail(Some(error));
        let status = client.put(put("k")).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert_eq!(status.metadata().get(RETRY).unwrap(), retry);
        let status = client.range(get(false)).await.unwrap_err();
        assert_eq!(status.metadata().get(RETRY).unwrap(), RETRY_SAFE, "a read is always safe to repeat");
    }
    ours.replica.fail(None);
    assert_eq!(client.put(put("k")).await.unwrap().into_inner().header.unwrap().revision, 2);
}

#[tokio::test]
async fn the_node_service_tells_all_that_an_operator_asks_for() {
    let ours = Ours::start().await;
    let mut client = KvClient::new(ours.channel().await);
    client.put(put("k")).await.unwrap();
    client.put(put("l")).await.unwrap();
    let mut node = NodeClient::new(ours.channel().await);
    let status = node.status(NodeStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.id, status.role.as_str(), status.leader, status.term), (9, "leader", 9, 3));
    assert_eq!((status.log_first, status.log_last, status.commit, status.applied, status.lag), (1, 2, 2, 2, 0));
    assert_eq!((status.keys, status.revision, status.compact_revision), (2, 3, 0));
    assert!(status.db_size > 0 && status.peers.is_empty());
    assert_eq!(status.client_address, ours.address.to_string());
}

#[tokio::test]
async fn a_node_without_a_leader_was_never_healthy() {
    let replica = Local::default();
    replica.leaderless.store(true, Ordering::Relaxed);
    let ours = Ours::start_with(replica).await;
    let mut client = HealthClient::new(ours.channel().await);
    for service in ["", "etcdserverpb.KV"] {
        let request = HealthCheckRequest { service: service.into() };
        assert_eq!(client.check(request).await.unwrap().into_inner().status(), ServingStatus::NotServing);
    }
}

/// The log entry and its answer nest one message deeper than the request, and decoders have a limit.
#[tokio::test]
async fn transactions_nest_as_deep_as_they_are_let() {
    let ours = Ours::start().await;
    let mut client = KvClient::new(ours.channel().await);
    let nest = |depth: usize, innermost: Request| {
        let request = (0..depth).fold(innermost, |request, _| {
            Request::RequestTxn(TxnRequest {
                success: vec![RequestOp { request: Some(request) }],
                ..Default::default()
            })
        });
        TxnRequest { success: vec![RequestOp { request: Some(request) }], ..Default::default() }
    };
    let with_prev = || PutRequest { prev_kv: true, ..put("k") };
    for revision in 2..4 {
        let response = client.txn(nest(31, Request::RequestPut(with_prev()))).await.unwrap().into_inner();
        assert_eq!(response.header.unwrap().revision, revision);
    }
    let response = client.txn(nest(31, Request::RequestRange(get(false)))).await.unwrap().into_inner();
    assert!(format!("{response:?}").contains("version: 2"), "{response:?}");
    let status = client.txn(nest(32, Request::RequestPut(with_prev()))).await.unwrap_err();
    assert_eq!(status.message(), "etcdserver: too many operations in txn request");
}

#[tokio::test]
async fn a_range_of_a_large_store_is_read_while_writes_go_on() {
    let ours = Ours::start().await;
    let mut client = KvClient::new(ours.channel().await);
    for n in 0..5000 {
        client.put(put(&format!("{n:05}"))).await.unwrap();
    }
    let all = RangeRequest { key: "0".into(), range_end: vec![0].into(), ..Default::default() };
    let mut other = client.clone();
    let (read, write) = tokio::join!(client.range(all), other.put(put("x")));
    let (read, write) = (read.unwrap().into_inner(), write.unwrap().into_inner());
    let header = read.header.unwrap();
    assert_eq!(read.count, if header.revision < write.header.unwrap().revision { 5000 } else { 5001 });
    assert_eq!(read.count as usize, read.kvs.len());
}

/// Whoever asks for a service that is not here learns which one, and not just that something is missing.
#[tokio::test]
async fn a_service_that_is_not_here_is_named() {
    let ours = Ours::start().await;
    for (path, name) in [
        ("/etcdserverpb.Lease/LeaseGrant", "Lease.LeaseGrant"),
        ("/etcdserverpb.Watch/Watch", "Watch.Watch"),
        ("/v3lockpb.Lock/Lock", "Lock.Lock"),
        ("/", "the method"),
    ] {
        let mut client = tonic::client::Grpc::new(ours.channel().await);
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
        let answer = client.unary(tonic::Request::new(put("k")), path.parse().unwrap(), codec).await;
        let status = answer.unwrap_err();
        let words = format!("etcdserver: {name} is not supported by this server");
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, &*words), "{path}");
    }
}

#[tokio::test]
async fn a_request_chooses_how_its_read_becomes_linearizable_and_else_the_server() {
    for lease_reads in [false, true] {
        let ours = Ours::start_as(Local::default(), Options { lease_reads, ..Options::default() }).await;
        let mut client = KvClient::new(ours.channel().await);
        becomes(&ours, ServingStatus::Serving).await;
        let by_default = if lease_reads { Consistency::Lease } else { Consistency::Linearizable };
        for (header, serializable, wanted) in [
            (None, false, by_default),
            (None, true, Consistency::Stale),
            (Some("lease"), false, Consistency::Lease),
            (Some("linearizable"), false, Consistency::Linearizable),
            (Some("linearizable"), true, Consistency::Stale),
        ] {
            let mut request = tonic::Request::new(get(serializable));
            if let Some(header) = header {
                request.metadata_mut().insert(CONSISTENCY, header.parse().unwrap());
            }
            client.range(request).await.unwrap();
            assert_eq!(*ours.replica.asked.lock().unwrap(), Some(wanted), "{header:?}, {serializable}");
        }
        let mut request = tonic::Request::new(get(false));
        request.metadata_mut().insert(CONSISTENCY, "eventual".parse().unwrap());
        let status = client.range(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("`linearizable` or `lease`"), "{}", status.message());
    }
}
