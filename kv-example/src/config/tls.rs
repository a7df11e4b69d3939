//! Certificates: where they are, for the links between members and for clients.

use clap::Args;
use raftkv::transport_kit::tls::TlsFiles;

use super::{ConfigError, FileConfig, Given, Layers};

/// The options about certificates, as they were typed. Three belong together.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// This node's certificate for its links to other members: PEM, with the DNS name node-N.raftkv for node N. With this and the next two, members
    /// speak TLS alone, and each proves which node it is. Files that change are read again [env: RAFTKV_PEER_CERT]
    #[arg(long, value_name = "FILE")]
    pub peer_cert: Option<String>,

    /// The private key of --peer-cert [env: RAFTKV_PEER_KEY]
    #[arg(long, value_name = "FILE")]
    pub peer_key: Option<String>,

    /// The CA, or CAs, that sign members' certificates; give each cluster its own [env: RAFTKV_PEER_CA]
    #[arg(long, value_name = "FILE")]
    pub peer_ca: Option<String>,

    /// This node's certificate for clients, with the hosts at which they reach it. With this and the next two, clients speak TLS alone, and need certificates
    /// themselves. May be the same as --peer-cert [env: RAFTKV_CLIENT_CERT]
    #[arg(long, value_name = "FILE")]
    pub client_cert: Option<String>,

    /// The private key of --client-cert [env: RAFTKV_CLIENT_KEY]
    #[arg(long, value_name = "FILE")]
    pub client_key: Option<String>,

    /// The CA, or CAs, that sign the certificates of clients, and those of members for clients: members pass some requests on to each other
    /// [env: RAFTKV_CLIENT_CA]
    #[arg(long, value_name = "FILE")]
    pub client_ca: Option<String>,
}

/// Where certificates are. None: no TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// For the links between members.
    pub peers: Option<TlsFiles>,
    /// For clients.
    pub clients: Option<TlsFiles>,
}

impl TlsConfig {
    pub(super) fn of(args: &TlsArgs, layers: &Layers<'_>) -> Result<Self, ConfigError> {
        let peers = three([
            ("peer-cert", layers.text("peer-cert", args.peer_cert.as_ref(), |f: &FileConfig| f.peer_cert.clone())),
            ("peer-key", layers.text("peer-key", args.peer_key.as_ref(), |f| f.peer_key.clone())),
            ("peer-ca", layers.text("peer-ca", args.peer_ca.as_ref(), |f| f.peer_ca.clone())),
        ])?;
        let clients = three([
            ("client-cert", layers.text("client-cert", args.client_cert.as_ref(), |f| f.client_cert.clone())),
            ("client-key", layers.text("client-key", args.client_key.as_ref(), |f| f.client_key.clone())),
            ("client-ca", layers.text("client-ca", args.client_ca.as_ref(), |f| f.client_ca.clone())),
        ])?;
        Ok(Self { peers, clients })
    }
}

/// All three, or none.
fn three(options: [(&'static str, Option<Given<String>>); 3]) -> Result<Option<TlsFiles>, ConfigError> {
    let Some(said) = options.iter().find_map(|(_, given)| given.as_ref().map(|given| given.origin.clone())) else {
        return Ok(None);
    };
    if let Some(empty) = options.iter().filter_map(|(_, given)| given.as_ref()).find(|given| given.value.is_empty()) {
        return Err(ConfigError(format!("{}: there is no name of a file; leave it out, or name one", empty.origin)));
    }
    let missing: Vec<_> = options.iter().filter(|(_, given)| given.is_none()).map(|(name, _)| *name).collect();
    match options.map(|(_, given)| given.map(|given| given.value)) {
        [Some(cert), Some(key), Some(ca)] => Ok(Some(TlsFiles::new(cert, key, ca))),
        _ => Err(ConfigError(format!(
            "{said} is given without --{}; a certificate, its key and the CA to trust belong together (`kv-example certs` makes them, for development)",
            missing.join(" and --")
        ))),
    }
}
