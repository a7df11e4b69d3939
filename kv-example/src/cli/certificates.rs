//! How client commands speak TLS: by the options that `etcdctl` has.

use std::path::PathBuf;

use clap::Args;
use raftkv::transport_kit::Tls;
use raftkv::transport_kit::tls::{OwnFiles, TlsFiles};

use super::Failure;

/// Certificates of a client.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "TLS")]
pub(crate) struct Certificates {
    /// Speak TLS, and trust in servers whose certificates are signed by this CA
    #[arg(long, value_name = "FILE", env = "RAFTKV_CACERT", hide_env_values = true)]
    pub(crate) cacert: Option<PathBuf>,
    /// This client's certificate
    #[arg(long, value_name = "FILE", env = "RAFTKV_CERT", hide_env_values = true, requires = "tls_key")]
    pub(crate) cert: Option<PathBuf>,
    /// The private key of --cert
    #[arg(
        id = "tls_key",
        long = "key",
        value_name = "FILE",
        env = "RAFTKV_KEY",
        hide_env_values = true,
        requires = "cert"
    )]
    pub(crate) key: Option<PathBuf>,
}

impl Certificates {
    /// None where none are named.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, Failure> {
        let own = self.cert.clone().zip(self.key.clone()).map(|(cert, key)| OwnFiles { cert, key });
        match (&self.cacert, own) {
            (Some(ca), own) => {
                let opened = Tls::for_client(TlsFiles { own, ca: ca.clone() });
                opened.map(Some).map_err(|error| Failure::usage(format!("--cacert, --cert, --key: {error}")))
            }
            (None, Some(_)) => Err(Failure::usage(
                "--cert is given without --cacert: name the CA that signs the servers' certificates as well (`ca.crt` of `kv-example certs`)",
            )),
            (None, None) => Ok(None),
        }
    }
}
