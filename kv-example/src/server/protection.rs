//! Certificates of a node, for its links to other members and for its clients.

use std::time::{Duration, SystemTime};

use raftkv::NodeId;
use raftkv::transport_kit::Tls;
use raftkv::transport_kit::tls::{TlsError, TlsFiles};

use tokio::time::{Instant, timeout};
use tracing::{error, warn};

use crate::cli::Failure;
use crate::config::ServerConfig;

/// How often the files are looked at while nobody connects, so that the log soon tells what became of new ones.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A certificate that expires sooner than this is one that nobody seems to renew.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// How often the log is told of that.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// What the files hold. None: no TLS.
#[derive(Clone)]
pub(super) struct Protection {
    pub(super) peers: Option<Tls>,
    pub(super) clients: Option<Tls>,
}

impl Protection {
    /// Reads the files of a node whose id is known.
    pub(super) fn open(config: &ServerConfig) -> Result<Self, Failure> {
        let peers = config.tls.peers.clone().map(|files| Tls::for_node(files, config.id).map_err(of_peers));
        Ok(Self { peers: peers.transpose()?, clients: clients(config)? })
    }

    /// Each with whom it is shown to.
    pub(super) fn all(&self) -> Vec<(&'static str, Tls)> {
        let all = [("members", &self.peers), ("clients", &self.clients)];
        all.into_iter().filter_map(|(whom, tls)| Some((whom, tls.clone()?))).collect()
    }

    /// Has the log tell of files that change, and of certificates that should.
    pub(super) fn watch(&self) {
        let mut all: Vec<_> = self.all().into_iter().map(|(whom, tls)| Watched { whom, tls, told: None }).collect();
        if all.is_empty() {
            return;
        }
        tokio::spawn(async move {
            loop {
                for watched in &mut all {
                    // One whose disk hangs keeps nobody from looking at the others.
                    let _ = timeout(LOOK_EVERY, watched.tls.refresh()).await;
                    watched.look();
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
    }
}

/// A certificate, and what the log was told of its end.
struct Watched {
    whom: &'static str,
    tls: Tls,
    told: Option<(Instant, Age)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Fresh,
    Old,
    Expired,
}

impl Age {
    fn of(expires: SystemTime, now: SystemTime) -> Self {
        match expires.duration_since(now) {
            Ok(left) if left >= SOON => Self::Fresh,
            Ok(_) => Self::Old,
            Err(_) => Self::Expired,
        }
    }
}

impl Watched {
    fn look(&mut self) {
        let (Some(expires), now) = (self.tls.expires(), SystemTime::now()) else { return };
        let (whom, age) = (self.whom, Age::of(expires, now));
        if self.told.is_some_and(|(at, told)| told == age && at.elapsed() < WARN_EVERY) {
            return;
        }
        self.told = Some((Instant::now(), age));
        let days = expires.duration_since(now).map_or(0, |left| left.as_secs() / (24 * 3600));
        match age {
            Age::Fresh => {}
            Age::Old => warn!(days, "the certificate for {whom} expires soon: put another one in its place"),
            Age::Expired => error!(
                "the certificate for {whom} has expired: connections that are open go on, and no others come to be; put another one in its place"
            ),
        }
    }
}

/// For clients, and for this node where it is one of other members.
pub(super) fn clients(config: &ServerConfig) -> Result<Option<Tls>, Failure> {
    let files = config.tls.clients.clone();
    let opened = files.map(|files| Tls::for_server(files).map_err(|error| mistake("client", &error)));
    opened.transpose()
}

/// Who a node is that was given no id: its certificate says so.
pub(super) fn node_of(files: &TlsFiles) -> Result<NodeId, Failure> {
    let named = Tls::for_server(files.clone()).map_err(of_peers)?.own_nodes();
    match named[..] {
        [node] => Ok(node),
        [] => Err(Failure::usage(
            "--peer-cert: the certificate names no node, such as node-4.raftkv; have one made for this node's id, and say it with --id",
        )),
        _ => Err(Failure::usage("--peer-cert: the certificate names several nodes; say with --id which one this is")),
    }
}

fn of_peers(error: TlsError) -> Failure {
    mistake("peer", &error)
}

fn mistake(whose: &str, error: &TlsError) -> Failure {
    Failure::usage(format!("--{whose}-cert, --{whose}-key, --{whose}-ca: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_grows_old_before_it_expires() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        let second = Duration::from_secs(1);
        let of = |expires| Age::of(expires, now);
        assert_eq!(
            [of(now + SOON), of(now + SOON - second), of(now), of(now - second)],
            [Age::Fresh, Age::Old, Age::Old, Age::Expired]
        );
    }
}
