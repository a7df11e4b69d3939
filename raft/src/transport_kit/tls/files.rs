//! Certificates in files: what is read, and what is checked before it is used.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, Error, RootCertStore, ServerConfig};
use tracing::warn;

use super::explain::of_own;
use super::identity_in;
use crate::transport_kit::link::{Identity, node_name};
use crate::types::NodeId;

/// Where certificates are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// This side's certificate, with those of CAs between it and one of `ca` behind it, and its private key. Only a client may be without.
    pub own: Option<OwnFiles>,
    /// The CAs that certificates of others must be signed by.
    pub ca: PathBuf,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnFiles {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// All three.
    pub fn new(cert: impl Into<PathBuf>, key: impl Into<PathBuf>, ca: impl Into<PathBuf>) -> Self {
        Self { own: Some(OwnFiles { cert: cert.into(), key: key.into() }), ca: ca.into() }
    }

    pub(super) fn shown(&self) -> impl fmt::Display {
        self.own.as_ref().map_or(&self.ca, |own| &own.cert).display()
    }

    fn all(&self) -> impl Iterator<Item = &Path> {
        let own = self.own.iter().flat_map(|own| [&*own.cert, &*own.key]);
        own.chain([&*self.ca])
    }
}

/// What is wrong with certificates: which file, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// Who this side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Node(NodeId),
    Server,
    Client,
}

/// How files looked: when they differ from this, they are read again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamps(Vec<Option<[i64; 6]>>);

impl Stamps {
    pub(super) fn of(files: &TlsFiles) -> Self {
        let stamp = |path| {
            let found = fs::metadata(path).ok()?;
            let [device, file, length] = [found.dev(), found.ino(), found.len()].map(u64::cast_signed);
            Some([device, file, length, found.mtime(), found.mtime_nsec(), found.ctime_nsec()])
        };
        Self(files.all().map(stamp).collect())
    }
}

/// What is in the files, ready for use.
#[derive(Debug)]
pub(super) struct Loaded {
    /// None for whoever only connects.
    pub(super) server: Option<Arc<ServerConfig>>,
    pub(super) client: Arc<ClientConfig>,
    /// What looks at the certificates of those who connect; none for whoever only connects.
    visitors: Option<Arc<dyn ClientCertVerifier>>,
    /// The nodes that this side's certificate names.
    pub(super) own: Identity,
    /// The last moment at which others accept it; none where that was not asked.
    pub(super) until: Option<UnixTime>,
}

/// Reads the files and checks what is in them. Blocks.
pub(super) fn load(files: &TlsFiles, role: Role) -> Result<Loaded, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = Arc::new(read_roots(&files.ca)?);
    let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
    let servers = servers.map_err(|error| TlsError(format!("{}: {error}", files.ca.display())))?;
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
    let clients = clients.map_err(|error| TlsError(format!("{}: {error}", files.ca.display())))?;
    let own = files.own.as_ref().map(|own| read_own(own, &provider)).transpose()?;

    let unfit = |error: rustls::Error| TlsError(format!("this build can't speak TLS 1.3: {error}"));
    let versions = &[&rustls::version::TLS13];
    let client =
        ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).map_err(unfit)?;
    let client = client.with_webpki_verifier(servers.clone());
    let mut client = match &own {
        Some(own) => client.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.clone()))),
        None => client.with_no_client_auth(),
    };
    // What was proved once is not taken for granted later: certificates expire, and CAs are withdrawn.
    client.resumption = rustls::client::Resumption::disabled();
    let client = Arc::new(client);

    if role == Role::Client {
        return Ok(Loaded { server: None, client, visitors: None, own: Identity::of([]), until: None });
    }
    let (Some(own), Some(paths)) = (own, &files.own) else {
        return Err(TlsError("a server needs a certificate and its key".into()));
    };
    let identity = check_own(&own.cert, paths, files, role, &*servers, &*clients)?;
    let until = own.cert.split_first().map(|(own, between)| {
        accepted_until(UnixTime::now(), |at| clients.verify_client_cert(own, between, at).is_ok())
    });
    let server = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).map_err(unfit)?;
    let server = server.with_client_cert_verifier(clients.clone());
    let mut server = server.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(Loaded { server: Some(Arc::new(server)), client, visitors: Some(clients), own: identity, until })
}

impl Loaded {
    /// The last moment at which a chain is accepted that somebody has shown, and that is accepted now.
    pub(super) fn expiry_of(&self, chain: &[CertificateDer<'_>]) -> Option<UnixTime> {
        let (visitors, (own, between), now) = (self.visitors.as_ref()?, chain.split_first()?, UnixTime::now());
        let mut at = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + CENTURY));
        // Asked of a time behind the end of a certificate, the verifier names that end, and of a chain of one does nothing more. Of a certificate that has long been over it may as well, where the
        // chain has another in its place.
        for _ in chain {
            match visitors.verify_client_cert(own, between, at) {
                Ok(_) => break,
                Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }))
                    if (now..at).contains(&not_after) =>
                {
                    at = not_after;
                }
                Err(_) => {
                    return Some(accepted_until(now, |at| visitors.verify_client_cert(own, between, at).is_ok()));
                }
            }
        }
        Some(at)
    }
}

/// Longer than any certificate is good for.
const CENTURY: u64 = 100 * 365 * 24 * 3600;

/// The last moment at which something is accepted that is accepted now. A certificate expires with the first one of its chain, so the verifier is asked rather
/// than the certificate read: some thirty times.
fn accepted_until(now: UnixTime, accepted: impl Fn(UnixTime) -> bool) -> UnixTime {
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let (mut good, mut bad) = (now.as_secs(), now.as_secs() + CENTURY);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        *(if accepted(at(middle)) { &mut good } else { &mut bad }) = middle;
    }
    at(good)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| {
        TlsError(format!(
            "{}: can't read the file: {error}; name one that is there, and that this user may read",
            path.display()
        ))
    })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, pem::Error>>();
    let found =
        found.map_err(|error| TlsError(format!("{}: what is in the file is no PEM: {error}", path.display())))?;
    if found.is_empty() {
        return Err(TlsError(format!(
            "{}: there is no certificate in the file; it has to begin with -----BEGIN CERTIFICATE-----",
            path.display()
        )));
    }
    Ok(found)
}

fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|error| {
            TlsError(format!("{}: a certificate in the file can't be used as that of a CA: {error}", path.display()))
        })?;
    }
    Ok(roots)
}

fn read_own(OwnFiles { cert, key }: &OwnFiles, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = read_certificates(cert)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| {
        let what = if matches!(error, pem::Error::NoItemsFound) {
            "there is no private key in the file".to_owned()
        } else {
            format!("the private key in the file can't be read: {error}")
        };
        TlsError(format!("{}: {what}; it has to begin with -----BEGIN PRIVATE KEY-----", key.display()))
    })?;
    match CertifiedKey::from_der(chain, private, provider) {
        Ok(own) => Ok(Arc::new(own)),
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError(format!(
            "{}: this is not the key of the certificate in {}; name the two that were made together",
            key.display(),
            cert.display()
        ))),
        Err(error) => Err(TlsError(format!("{} and {} can't be used: {error}", cert.display(), key.display()))),
    }
}

/// Has the log tell of a private key that others may read. It is used all the same: which users there are, this side can't know. A key of another user that is
/// there for a group, which this side is in, is as it should be.
pub(super) fn warn_of_readers(files: &TlsFiles) {
    let Some(OwnFiles { key, .. }) = &files.own else { return };
    let Ok(found) = fs::metadata(key) else { return };
    let (own, mode) = (found.uid() == rustix::process::geteuid().as_raw(), found.mode() & 0o7777);
    if mode & (if own { 0o077 } else { 0o007 }) != 0 {
        warn!(
            key = %key.display(), mode = format_args!("{mode:04o}"),
            "others may read this private key, and then pass for this side: take that from them (chmod go= FILE), and have a new one made if they may have"
        );
    }
}

/// Puts this side's certificate to the test that others will put it to.
fn check_own(
    chain: &[CertificateDer<'static>],
    paths: &OwnFiles,
    files: &TlsFiles,
    role: Role,
    servers: &dyn ServerCertVerifier,
    clients: &dyn ClientCertVerifier,
) -> Result<Identity, TlsError> {
    let wrong = |reason: String| TlsError(format!("{}: {reason}", paths.cert.display()));
    let Some((own, between)) = chain.split_first() else { return Err(wrong("there is no certificate".into())) };
    let now = UnixTime::now();
    clients.verify_client_cert(own, between, now).map_err(|error| wrong(of_own(&error, files)))?;
    let identity = identity_in(Some(chain));
    // A server's host names are whatever its clients call it; the rest of the test is the same.
    let name = match role {
        Role::Node(node) => {
            identity.check(node).map_err(&wrong)?;
            Some(node_name(node))
        }
        Role::Server | Role::Client => None,
    };
    let any = || webpki::EndEntityCert::try_from(own).ok()?.valid_dns_names().next().map(str::to_owned);
    if let Some(name) = name.or_else(any)
        && let Ok(name) = ServerName::try_from(name)
    {
        servers.verify_server_cert(own, between, &name, &[], now).map_err(|error| wrong(of_own(&error, files)))?;
    }
    Ok(identity)
}
