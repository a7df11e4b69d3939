//! Clients' requests, counted by method and outcome: a layer around all services, which need not know of it.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Request, Response};
use raftkv::metrics::Histogram;
use tonic::Code;
use tower_layer::Layer;
use tower_service::Service;

/// The methods that are told apart. Others, such as those that are not served, are one.
pub(super) const METHODS: [(&str, &str); 46] = [
    ("/etcdserverpb.KV/Range", "KV.Range"),
    ("/etcdserverpb.KV/Put", "KV.Put"),
    ("/etcdserverpb.KV/DeleteRange", "KV.DeleteRange"),
    ("/etcdserverpb.KV/Txn", "KV.Txn"),
    ("/etcdserverpb.KV/Compact", "KV.Compact"),
    ("/etcdserverpb.Cluster/MemberAdd", "Cluster.MemberAdd"),
    ("/etcdserverpb.Cluster/MemberRemove", "Cluster.MemberRemove"),
    ("/etcdserverpb.Cluster/MemberUpdate", "Cluster.MemberUpdate"),
    ("/etcdserverpb.Cluster/MemberList", "Cluster.MemberList"),
    ("/etcdserverpb.Cluster/MemberPromote", "Cluster.MemberPromote"),
    ("/etcdserverpb.Maintenance/Alarm", "Maintenance.Alarm"),
    ("/etcdserverpb.Maintenance/Status", "Maintenance.Status"),
    ("/etcdserverpb.Maintenance/Defragment", "Maintenance.Defragment"),
    ("/etcdserverpb.Maintenance/Hash", "Maintenance.Hash"),
    ("/etcdserverpb.Maintenance/HashKV", "Maintenance.HashKV"),
    ("/etcdserverpb.Maintenance/Snapshot", "Maintenance.Snapshot"),
    ("/etcdserverpb.Maintenance/MoveLeader", "Maintenance.MoveLeader"),
    ("/etcdserverpb.Auth/AuthEnable", "Auth.AuthEnable"),
    ("/etcdserverpb.Auth/AuthDisable", "Auth.AuthDisable"),
    ("/etcdserverpb.Auth/AuthStatus", "Auth.AuthStatus"),
    ("/etcdserverpb.Auth/Authenticate", "Auth.Authenticate"),
    ("/etcdserverpb.Auth/UserAdd", "Auth.UserAdd"),
    ("/etcdserverpb.Auth/UserGet", "Auth.UserGet"),
    ("/etcdserverpb.Auth/UserList", "Auth.UserList"),
    ("/etcdserverpb.Auth/UserDelete", "Auth.UserDelete"),
    ("/etcdserverpb.Auth/UserChangePassword", "Auth.UserChangePassword"),
    ("/etcdserverpb.Auth/UserGrantRole", "Auth.UserGrantRole"),
    ("/etcdserverpb.Auth/UserRevokeRole", "Auth.UserRevokeRole"),
    ("/etcdserverpb.Auth/RoleAdd", "Auth.RoleAdd"),
    ("/etcdserverpb.Auth/RoleGet", "Auth.RoleGet"),
    ("/etcdserverpb.Auth/RoleList", "Auth.RoleList"),
    ("/etcdserverpb.Auth/RoleDelete", "Auth.RoleDelete"),
    ("/etcdserverpb.Auth/RoleGrantPermission", "Auth.RoleGrantPermission"),
    ("/etcdserverpb.Auth/RoleRevokePermission", "Auth.RoleRevokePermission"),
    ("/raftkv.kv.v1.Node/Status", "Node.Status"),
    ("/raftkv.kv.v1.Node/Campaign", "Node.Campaign"),
    ("/raftkv.kv.v1.Node/AddMember", "Node.AddMember"),
    ("/raftkv.kv.v1.Node/ReplaceMember", "Node.ReplaceMember"),
    ("/raftkv.kv.v1.Node/TransferLeadership", "Node.TransferLeadership"),
    ("/raftkv.kv.v1.Node/TakeSnapshot", "Node.TakeSnapshot"),
    ("/raftkv.kv.v1.Node/SetPreference", "Node.SetPreference"),
    ("/raftkv.kv.v1.Node/OpenSession", "Node.OpenSession"),
    ("/raftkv.kv.v1.Node/CloseSession", "Node.CloseSession"),
    ("/grpc.health.v1.Health/Check", "Health.Check"),
    ("/grpc.health.v1.Health/Watch", "Health.Watch"),
    ("", "other"),
];

/// gRPC's codes, in the order of their numbers, and after them the requests whose client did not wait for the answer.
pub(super) const OUTCOMES: [&str; 18] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
    "GIVEN_UP",
];

/// What is counted of the requests.
#[derive(Debug)]
pub(crate) struct RequestMeter {
    methods: [Method; METHODS.len()],
    /// Begun and not answered.
    running: AtomicU64,
}

impl Default for RequestMeter {
    fn default() -> Self {
        Self { methods: std::array::from_fn(|_| Method::default()), running: AtomicU64::new(0) }
    }
}

#[derive(Debug, Default)]
pub(super) struct Method {
    outcomes: [AtomicU64; OUTCOMES.len()],
    /// Until the answer was there. Held for the time of an addition.
    latency: Mutex<Histogram>,
}

impl Method {
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUTCOMES.iter().zip(&self.outcomes).map(|(name, count)| (*name, count.load(Ordering::Relaxed)))
    }

    pub(super) fn latency(&self) -> Histogram {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl RequestMeter {
    pub(super) fn methods(&self) -> impl Iterator<Item = (&'static str, &Method)> {
        METHODS.iter().map(|(_, name)| *name).zip(&self.methods)
    }

    pub(super) fn running(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }
}

/// Puts the meter around a service.
#[derive(Clone, Debug)]
pub(crate) struct MeterLayer(pub(crate) Arc<RequestMeter>);

impl<S> Layer<S> for MeterLayer {
    type Service = Metered<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Metered { inner, meter: self.0.clone() }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Metered<S> {
    inner: S,
    meter: Arc<RequestMeter>,
}

impl<S, In, Out> Service<Request<In>> for Metered<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let running = Running::begin(self.meter.clone(), request.uri().path());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            running.end(outcome(&answer));
            Ok(answer)
        })
    }
}

/// A refusal is in the headers; where there is none, the method has answered.
fn outcome<T>(answer: &Response<T>) -> usize {
    let code = answer.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
    usize::try_from(code as i32).unwrap_or(Code::Unknown as usize).min(OUTCOMES.len() - 2)
}

/// A request in progress.
struct Running {
    meter: Arc<RequestMeter>,
    method: usize,
    since: Instant,
    outcome: usize,
}

impl Running {
    fn begin(meter: Arc<RequestMeter>, path: &str) -> Self {
        let known = METHODS.iter().position(|(known, _)| *known == path);
        meter.running.fetch_add(1, Ordering::Relaxed);
        let method = known.unwrap_or(METHODS.len() - 1);
        Self { meter, method, since: Instant::now(), outcome: OUTCOMES.len() - 1 }
    }

    fn end(mut self, outcome: usize) {
        self.outcome = outcome;
    }
}

impl Drop for Running {
    /// Whatever became of it: the client may be gone.
    fn drop(&mut self) {
        self.meter.running.fetch_sub(1, Ordering::Relaxed);
        let method = &self.meter.methods[self.method];
        method.outcomes[self.outcome].fetch_add(1, Ordering::Relaxed);
        method.latency.lock().unwrap_or_else(PoisonError::into_inner).record(self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(meter: &RequestMeter, method: &str) -> Vec<(&'static str, u64)> {
        let (_, method) = meter.methods().find(|(name, _)| *name == method).unwrap();
        method.outcomes().filter(|(_, count)| *count > 0).collect()
    }

    #[tokio::test]
    async fn requests_are_counted_by_method_and_outcome_also_those_given_up() {
        let meter = Arc::new(RequestMeter::default());
        let answer = |request: Request<()>| async move {
            if request.uri().path().ends_with("Txn") {
                std::future::pending::<()>().await;
            }
            let status = if request.uri().path().ends_with("Put") { "14" } else { "0" };
            let answer = Response::builder();
            let answer = if status == "0" { answer } else { answer.header("grpc-status", status) };
            Ok::<_, std::convert::Infallible>(answer.body(()).unwrap())
        };
        let mut service = MeterLayer(meter.clone()).layer(Answering(answer));
        let request = |path: &str| Request::builder().uri(path).body(()).unwrap();
        for path in ["/etcdserverpb.KV/Range", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put", "/no/such"] {
            service.call(request(path)).await.unwrap();
        }
        let given_up = service.call(request("/etcdserverpb.KV/Txn"));
        assert_eq!(meter.running(), 1);
        drop(given_up);
        assert_eq!(meter.running(), 0);
        assert_eq!(counted(&meter, "KV.Range"), [("OK", 2)]);
        assert_eq!(counted(&meter, "KV.Put"), [("UNAVAILABLE", 1)]);
        assert_eq!(counted(&meter, "KV.Txn"), [("GIVEN_UP", 1)]);
        assert_eq!(counted(&meter, "other"), [("OK", 1)]);
        assert_eq!(meter.methods[0].latency().count(), 2);
    }

    #[test]
    fn every_method_that_is_served_has_a_name() {
        let served = [include_str!("../api/etcdserverpb.rs"), include_str!("../api/node.rs")].concat();
        let served =
            served.split("\" => {").filter_map(|text| text.rsplit_once("\"/")).map(|(_, path)| path.to_owned());
        let served: Vec<_> = served.filter(|path| path.contains('/')).collect();
        assert!(served.len() > 20, "{served:?}");
        for path in served {
            assert!(METHODS.iter().any(|(known, _)| known.trim_start_matches('/') == path), "{path} is not among them");
        }
    }

    struct Answering<F>(F);

    impl<F, Fut> Service<Request<()>> for Answering<F>
    where
        F: Fn(Request<()>) -> Fut,
        Fut: Future<Output = Result<Response<()>, std::convert::Infallible>> + Send + 'static,
    {
        type Response = Response<()>;
        type Error = std::convert::Infallible;
        type Future = Fut;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Fut {
            (self.0)(request)
        }
    }
}
