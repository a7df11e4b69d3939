//! The standard health service (`grpc.health.v1.Health`).
//!
//! A node serves when it is a member, knows a leader, and has caught up with the cluster once since its start. The check names are the
//! empty one, for the whole node, and those of etcd's services.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use raftkv::{Consistency, Error};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use super::pause::Pauses;
use super::{Context, Replica};

/// How often the node is looked at, unless all is well and it tells what happens.
const PERIOD: Duration = Duration::from_millis(100);
const NAMES: [&str; 5] =
    ["", "etcdserverpb.KV", "etcdserverpb.Maintenance", "etcdserverpb.Cluster", "etcdserverpb.Auth"];

#[derive(Clone, Debug)]
pub(super) struct Health(HealthReporter);

impl Health {
    pub(super) fn new() -> (Self, HealthServer<HealthService>) {
        let reporter = HealthReporter::new();
        let service = HealthService::from_health_reporter(reporter.clone());
        let health = Self(reporter);
        // A reporter begins by saying that all is well. Nobody else has it yet, so this needs no waiting.
        let _ = health.set(false).now_or_never();
        (health, HealthServer::new(service))
    }

    pub(super) async fn set(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in NAMES {
            self.0.set_service_status(name, status).await;
        }
    }
}

/// Keeps the health service, the term and the readiness up to date until the node stops.
pub(super) async fn watch<R: Replica>(context: Arc<Context<R>>, health: Health) {
    let mut serving = None;
    let mut pauses = Pauses::new(&context.replica, PERIOD);
    loop {
        let now = match context.replica.status().await {
            Ok(status) => {
                context.saw(&status);
                status.leader.is_some() && context.ensure_member().await.is_ok() && is_ready(&context).await
            }
            Err(Error::Stopped(reason)) => {
                tracing::info!(%reason, "the node has stopped: health checks say so from now on");
                health.set(false).await;
                return;
            }
            // It is busy, not broken: the next look will tell.
            Err(_) => serving.unwrap_or(false),
        };
        let changed = serving != Some(now);
        if changed {
            tracing::info!(serving = now, "health");
            health.set(now).await;
            serving = Some(now);
        }
        pauses.pause(now && !changed).await;
    }
}

/// Whether the node has caught up once; finds out by a read barrier, if it is not known.
async fn is_ready<R: Replica>(context: &Context<R>) -> bool {
    if !context.ready.load(Ordering::Relaxed) && context.replica.read(Consistency::Linearizable).await.is_ok() {
        context.ready.store(true, Ordering::Relaxed);
    }
    context.ready.load(Ordering::Relaxed)
}
