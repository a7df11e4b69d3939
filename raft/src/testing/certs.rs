//! Certificates for tests, and a place for their files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::transport_kit::Tls;
use crate::transport_kit::tls::TlsFiles;
use crate::transport_kit::tls::dev::{DevCa, Issued, Subject, Validity};
use crate::types::NodeId;

/// A CA, and a directory with the files of those whom it knows. It ends with this.
pub struct Desk {
    dir: PathBuf,
    /// The CA.
    pub ca: DevCa,
    laid: AtomicU64,
}

#[allow(clippy::new_without_default, reason = "it makes files")]
#[allow(clippy::expect_used, reason = "a test reports by panicking")]
impl Desk {
    /// An empty one, with a new CA.
    #[must_use]
    pub fn new() -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let name = format!("raftkv-certs-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).expect("a directory for certificates");
        Self { dir, ca: Self::other_ca(), laid: AtomicU64::new(0) }
    }

    /// A CA that nobody knows yet.
    #[must_use]
    pub fn other_ca() -> DevCa {
        DevCa::new(Validity::days(1)).expect("a CA")
    }

    /// A certificate of this CA for a node on this machine.
    #[must_use]
    pub fn issue(ca: &DevCa, node: u64, validity: Validity) -> Issued {
        let hosts = vec!["127.0.0.1".into()];
        ca.issue(&Subject { name: format!("node {node}"), node: Some(NodeId(node)), hosts }, validity)
            .expect("a certificate")
    }

    /// Where a file is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a file for its owner alone, as whoever replaces one should: there is never half of it.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path("new"), text).expect("a file");
        fs::set_permissions(self.path("new"), fs::Permissions::from_mode(0o600)).expect("a file of this user");
        fs::rename(self.path("new"), self.path(name)).expect("a file");
    }

    /// Puts a certificate down under this name, with the CAs to trust.
    pub fn lay(&self, name: &str, issued: &Issued, trusted: &[&DevCa]) -> TlsFiles {
        self.write(&format!("{name}.crt"), &issued.certificate);
        self.write(&format!("{name}.key"), &issued.key);
        self.trust(name, trusted)
    }

    /// Changes the CAs to trust under this name.
    pub fn trust(&self, name: &str, trusted: &[&DevCa]) -> TlsFiles {
        let bundle: String = trusted.iter().map(|ca| ca.certificate()).collect();
        self.write(&format!("{name}.ca"), &bundle);
        let [cert, key, ca] = ["crt", "key", "ca"].map(|kind| self.path(&format!("{name}.{kind}")));
        TlsFiles::new(cert, key, ca)
    }

    /// A node's TLS with files of its own.
    #[must_use]
    pub fn node(&self, id: u64) -> Tls {
        let name = format!("n{id}-{}", self.laid.fetch_add(1, Ordering::Relaxed));
        self.named(&name, &self.ca, id)
    }

    /// The same with files of this name, and this CA.
    #[must_use]
    pub fn named(&self, name: &str, ca: &DevCa, id: u64) -> Tls {
        let files = self.lay(name, &Self::issue(ca, id, Validity::days(1)), &[ca]);
        Tls::for_node(files, NodeId(id)).expect("good certificates")
    }

    /// Where it all is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // What is left is in a temporary directory.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
