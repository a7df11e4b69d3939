//! TLS for transports, and for what is served beside them (feature `tls`): both sides prove with certificates who they are.
//!
//! | question | answer |
//! |---|---|
//! | Which node is it? | A certificate for node 7 has `node-7.raftkv` among its DNS names, however the node is reached. |
//! | Whom to trust? | Those whose certificates are signed by a CA in the file that this node was given. Give each cluster a CA of its own. |
//! | What is spoken? | TLS 1.3 alone, without resumption: every connection proves everything anew. |
//! | How are certificates replaced? | Put the new files in the place of the old ones. The next connection, in either direction, uses them; those that are open go on. |
//! | What if the new files are no good? | The log says what is wrong, once, and those in use stay in use. They are read again until they are good: a certificate may not be valid yet. |
//! | And if the disk hangs? | Connections are made with what was read before. |
//! | What about one that expires? | Nobody lets its node in any more, nor is let in by it. Connections that are open go on, unless whoever serves them looks at [`Link::expires`](super::Link::expires). |
//! | And one that was stolen? | There are no lists of revoked certificates: let certificates live for days or weeks, or give the cluster a new CA, by way of a file that holds both. |
//!
//! A transport has its connections pass a [`Gate`](super::Gate) as they come in, and opens them with [`connect_link`](super::connect_link); then it has
//! [`Gate::vouches`](super::Gate::vouches) compare the sender that a hello names with the certificate.

#[cfg(feature = "dev-certs")]
pub mod dev;
mod explain;
mod files;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::{Dispatch, Span, dispatcher, error, info};

use super::lane::Failure;
use super::link::{Identity, Link, named_node, node_name, see_off};
use crate::metrics::RefusedFor;
use crate::types::NodeId;
pub(super) use explain::refusal;
use explain::{Said, explain};
use files::{Loaded, Role, Stamps};
pub use files::{OwnFiles, TlsError, TlsFiles};

/// Certificates, and whom to trust: read from files, and read again when these change. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: TlsFiles,
    role: Role,
    /// Never held while a disk is waited for.
    state: Mutex<State>,
    /// One looks at a time. Whoever comes meanwhile looks later, for what is looked at may be older than what they should find.
    looking: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct State {
    loaded: Arc<Loaded>,
    /// What the files looked like when that was read.
    stamps: Stamps,
    failed: Option<Failed>,
}

/// Files that could not be used.
#[derive(Debug)]
struct Failed {
    reason: TlsError,
    stamps: Stamps,
    at: Instant,
}

/// How long a connection waits for a look at the files, which takes no time unless the disk hangs, or all threads for such work do.
const PATIENCE: Duration = Duration::from_millis(500);
/// Files that were no good are read again after this, though they look the same: they may be good by now, or a read may have failed.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Why a connection was not let in.
#[derive(Clone, Debug)]
pub struct Denied {
    reason: String,
    news: bool,
    kind: RefusedFor,
}

impl Denied {
    /// Why, in words.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether it is worth telling: that somebody opens a connection and closes it again (a load balancer's probe, say) is not.
    #[must_use]
    pub fn is_news(&self) -> bool {
        self.news
    }

    /// What it counts as.
    #[must_use]
    pub fn kind(&self) -> RefusedFor {
        self.kind
    }
}

impl Tls {
    /// For the links between a node and its peers.
    ///
    /// # Errors
    /// The files can't be read, don't belong together, or hold no certificate that is valid now, for this node, in both directions.
    pub fn for_node(files: TlsFiles, node: NodeId) -> Result<Self, TlsError> {
        Self::open(files, Role::Node(node))
    }

    /// For a server whose clients prove who they are, and which may be a client of others like it. These are known by the host at which they are reached.
    ///
    /// # Errors
    /// The files can't be read, don't belong together, or hold no certificate that is valid now, in both directions.
    pub fn for_server(files: TlsFiles) -> Result<Self, TlsError> {
        Self::open(files, Role::Server)
    }

    /// For somebody who only connects, to servers that are known by their hosts; the certificate and its key may be left out.
    ///
    /// # Errors
    /// The files can't be read, or don't belong together.
    pub fn for_client(files: TlsFiles) -> Result<Self, TlsError> {
        Self::open(files, Role::Client)
    }

    fn open(files: TlsFiles, role: Role) -> Result<Self, TlsError> {
        let stamps = Stamps::of(&files);
        let loaded = Arc::new(files::load(&files, role)?);
        files::warn_of_readers(&files);
        let state = Mutex::new(State { loaded, stamps, failed: None });
        Ok(Self(Arc::new(Shared { files, role, state, looking: Arc::default() })))
    }

    /// Reads the files again if they have changed. Every connection does so by itself; whoever calls this now and then makes the log tell of a change, or
    /// of what is wrong with it, while there are none. Takes as long as the disk does.
    pub async fn refresh(&self) {
        let alone = self.0.looking.clone().lock_owned().await;
        let (shared, log, span) = (self.0.clone(), dispatcher::get_default(Dispatch::clone), Span::current());
        // It ends by itself, whoever waits for it or does not.
        let look = move || dispatcher::with_default(&log, || span.in_scope(|| shared.look()));
        #[allow(clippy::disallowed_methods, reason = "files beside the core; there are none in simulations")]
        let looking = tokio::task::spawn_blocking(move || {
            look();
            drop(alone);
        });
        // Fails only when the runtime ends.
        let _ = looking.await;
    }

    /// What is in the files, as far as it is good, and as far as they can be read in time: whoever connects must not wait for a disk that hangs.
    async fn loaded(&self) -> Arc<Loaded> {
        let _ = timeout(PATIENCE, self.refresh()).await;
        self.0.state().loaded.clone()
    }

    /// The nodes that this side's certificate names.
    #[must_use]
    pub fn own_nodes(&self) -> Vec<NodeId> {
        self.0.state().loaded.own.nodes().to_vec()
    }

    /// The last moment at which others accept this side's certificate, or at least one of its chain; none for whoever only connects.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        self.0.state().loaded.until.map(wall_clock)
    }

    /// Makes the handshake on a connection that came in, and tells which nodes the other side's certificate names.
    ///
    /// # Errors
    /// It does not speak TLS, or not in time, or has no certificate that is valid here. It was told, and the connection is closed.
    pub async fn accept(
        &self,
        stream: TcpStream,
        protocol: &[u8],
        limit: Duration,
    ) -> Result<(Link, Identity), Denied> {
        let denied = |reason: String| Denied { reason, news: true, kind: RefusedFor::Error };
        let deadline = Instant::now() + limit;
        let loaded = timeout_at(deadline, self.loaded()).await;
        let loaded = loaded.unwrap_or_else(|_| self.0.state().loaded.clone());
        let Some(server) = &loaded.server else { return Err(denied("this side only connects to others".into())) };
        let mut server = rustls::ServerConfig::clone(server);
        server.alpn_protocols = vec![protocol.to_vec()];
        let handshake = TlsAcceptor::from(Arc::new(server)).accept(stream).into_fallible();
        match timeout_at(deadline, handshake).await {
            Ok(Ok(stream)) => {
                let shown = stream.get_ref().1.peer_certificates();
                let (identity, expires) = (identity_in(shown), loaded.expiry_of(shown.unwrap_or_default()));
                Ok((Link::protected(stream, expires.map(wall_clock)), identity))
            }
            Ok(Err((error, stream))) => {
                let why = denied(explain(&error, &self.0.files, Said::ByWhoeverConnects));
                let news =
                    error.kind() != io::ErrorKind::UnexpectedEof && error.kind() != io::ErrorKind::ConnectionReset;
                see_off(stream).await;
                Err(Denied { news, ..why })
            }
            Err(_) => {
                let why = denied(format!("it did not make the handshake of TLS within {limit:?}"));
                Err(Denied { kind: RefusedFor::Silence, ..why })
            }
        }
    }

    /// Makes the handshake on a connection that was opened to a node. The caller limits the time.
    ///
    /// With TLS 1.3 this side may be done before the other one has looked at its certificate: what comes of that is in [`Link::trouble`] then.
    ///
    /// # Errors
    /// Whoever answers does not speak TLS, or has no certificate that is valid here, and for this node.
    pub async fn connect_to_node(&self, stream: TcpStream, node: NodeId, protocol: &[u8]) -> Result<Link, Failure> {
        self.connect(stream, &node_name(node), protocol).await
    }

    /// The same to a server that is known by its host: a name, or an IP address without brackets.
    ///
    /// # Errors
    /// Whoever answers does not speak TLS, or has no certificate that is valid here, and for this host.
    pub async fn connect_to_host(&self, stream: TcpStream, host: &str, protocol: &[u8]) -> Result<Link, Failure> {
        self.connect(stream, host, protocol).await
    }

    async fn connect(&self, stream: TcpStream, name: &str, protocol: &[u8]) -> Result<Link, Failure> {
        let to = ServerName::try_from(name.to_owned())
            .map_err(|_| Failure::unreachable(format!("{name:?} is no name that a certificate could have")))?;
        let client = self.loaded().await.client.clone();
        let connector = TlsConnector::from(client);
        match connector.with_alpn(vec![protocol.to_vec()]).connect(to, stream).await {
            Ok(stream) => Ok(Link::protected(stream, None)),
            Err(error) => {
                let reason = explain(&error, &self.0.files, Said::ByWhoeverAnswers);
                Err(match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                    Some(rustls::Error::InvalidCertificate(_)) => Failure::refusing(reason),
                    Some(_) => Failure::refused(reason),
                    None => Failure::unreachable(reason),
                })
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files if they are not those that are in use, and tells the log what came of that. Blocks.
    fn look(&self) {
        let stamps = Stamps::of(&self.files);
        if !self.state().is_due(&stamps) {
            return;
        }
        match files::load(&self.files, self.role) {
            Ok(loaded) => {
                *self.state() = State { loaded: Arc::new(loaded), stamps, failed: None };
                let certificate = self.files.shown();
                info!(%certificate, "certificates have changed; new connections use the new ones");
                files::warn_of_readers(&self.files);
            }
            Err(reason) => {
                let failed = Failed { reason: reason.clone(), stamps, at: Instant::now() };
                let before = self.state().failed.replace(failed);
                if before.is_none_or(|failed| failed.reason != reason) {
                    error!(%reason, "certificates have changed, but can't be used; the earlier ones stay in use");
                }
            }
        }
    }
}

impl State {
    /// Whether files that look so are to be read.
    fn is_due(&mut self, stamps: &Stamps) -> bool {
        if self.stamps == *stamps {
            self.failed = None;
            return false;
        }
        let tried = |failed: &Failed| failed.stamps == *stamps && failed.at.elapsed() < AGAIN_AFTER;
        !self.failed.as_ref().is_some_and(tried)
    }
}

fn wall_clock(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

/// The nodes that the first of these certificates names.
fn identity_in(certificates: Option<&[CertificateDer<'static>]>) -> Identity {
    let names = certificates.and_then(<[_]>::first).and_then(|own| webpki::EndEntityCert::try_from(own).ok());
    Identity::of(names.iter().flat_map(|own| own.valid_dns_names()).filter_map(named_node))
}
