//! What a node is told that joins a cluster instead of beginning one.

use std::collections::BTreeMap;

use raftkv::{Membership, NodeId};

use super::{
    ConfigError, FileConfig, Given, HostPort, Layers, ServerArgs, TlsConfig, address, auth, own_address, required,
};
use crate::client::Credentials;

/// How a node becomes a member of a cluster that there is already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Where its members serve clients.
    pub endpoints: Vec<String>,
    /// Where they will reach this node.
    pub address: HostPort,
    /// Whether it shall never vote, unless it is promoted by hand.
    pub learner: bool,
    /// As whom it asks, where authentication is enabled.
    pub user: Option<Credentials>,
}

/// Who a node is, and how it comes to be in a cluster.
pub(super) struct Place {
    /// 0: the cluster will say.
    pub(super) id: NodeId,
    /// Empty for a node that joins.
    pub(super) membership: Membership,
    /// Where the other members reach it.
    pub(super) own: HostPort,
    pub(super) listen_peer: Given<HostPort>,
    pub(super) join: Option<Join>,
}

impl Place {
    pub(super) fn of(args: &ServerArgs, layers: &Layers<'_>, tls: &TlsConfig) -> Result<Self, ConfigError> {
        let id = layers.text("id", args.id.as_ref(), |f| f.id.map(|n| n.to_string()));
        let peers = layers.text("peers", args.peers.as_ref(), |f| f.peers.as_ref().map(super::file::FilePeers::joined));
        let listen_peer = layers.text("listen-peer", args.listen_peer.as_ref(), |f| f.listen_peer.clone());
        let listen_peer = listen_peer.map(|given| address::parse(&given)).transpose()?;
        let advertised = layers.text("advertise-peer", args.advertise_peer.as_ref(), |f| f.advertise_peer.clone());
        let join = layers.text("join", args.join.as_ref(), |f| f.join.clone());
        match (join, peers) {
            (Some(join), Some(peers)) => Err(ConfigError(format!(
                "{} and {} are both given; a node joins a cluster that there is, or begins one with its peers: leave one out",
                join.origin, peers.origin
            ))),
            (Some(join), None) => {
                let endpoints = endpoints(&join, tls)?;
                Self::joining(args, layers, id, (&join, endpoints), listen_peer, advertised)
            }
            (None, peers) => Self::beginning(id, peers, listen_peer),
        }
    }

    fn beginning(
        id: Option<Given<String>>,
        peers: Option<Given<String>>,
        listen_peer: Option<Given<HostPort>>,
    ) -> Result<Self, ConfigError> {
        let id = required(id, "id", "1")?.parse::<u64>("a node number such as 1")?;
        let peers = required(peers, "peers", "1=10.0.0.1:2380,2=10.0.0.2:2380,3=10.0.0.3:2380").map_err(|error| {
            ConfigError(format!(
                "{error}; to join a cluster that there is, say --join with the addresses of its members for clients"
            ))
        })?;
        let membership = address::parse_peers(&peers.value, &peers.origin)?;
        let own = own_address(&id, &membership, &peers.origin)?;
        let listen_peer = listen_peer.unwrap_or_else(|| Given { value: own.clone(), origin: peers.origin.clone() });
        Ok(Self { id: NodeId(id.value), membership, own, listen_peer, join: None })
    }

    fn joining(
        args: &ServerArgs,
        layers: &Layers<'_>,
        id: Option<Given<String>>,
        (join, endpoints): (&Given<String>, Vec<String>),
        listen_peer: Option<Given<HostPort>>,
        advertised: Option<Given<String>>,
    ) -> Result<Self, ConfigError> {
        let id = match id {
            Some(id) => id.parse::<u64>("a node number such as 4")?.value,
            None => 0,
        };
        let listen_peer = listen_peer.ok_or_else(|| {
            ConfigError(format!(
                "--listen-peer is missing: with {} say at which address the other members will reach this node, such as --listen-peer \
                 10.0.0.4:2380",
                join.origin
            ))
        })?;
        let own = match &advertised {
            Some(given) => address::parse(given)?,
            None => listen_peer.clone(),
        };
        if own.value.is_unspecified() {
            return Err(ConfigError(format!(
                "{}: nobody can go to {}, which stands for all addresses of a machine; say with --advertise-peer at which one the other \
                 members will reach this node",
                own.origin, own.value
            )));
        }
        let learner = args.learner || learner(layers)?;
        let join = Join { endpoints, address: own.value.clone(), learner, user: auth::join_user(args, layers)? };
        Ok(Self { id: NodeId(id), membership: Membership::default(), own: own.value, listen_peer, join: Some(join) })
    }

    /// Where members serve clients, as it was said.
    pub(super) fn clients(&self, given: Option<&Given<String>>) -> Result<BTreeMap<NodeId, String>, ConfigError> {
        match given {
            Some(given) => address::parse_clients(given, self.join.is_none().then_some(&self.membership)),
            None => Ok(BTreeMap::new()),
        }
    }
}

fn endpoints(join: &Given<String>, tls: &TlsConfig) -> Result<Vec<String>, ConfigError> {
    // Members serve clients in the same way as this node does.
    let (scheme, advice) = match tls.clients {
        Some(_) => ("https", "this node has --client-cert, and with that members serve clients over TLS alone"),
        None => ("http", "for TLS say --client-cert, --client-key and --client-ca as well"),
    };
    let parts = join.value.split(',').map(str::trim).filter(|part| !part.is_empty());
    let parsed = parts.map(|part| {
        let bare = match part.split_once("://") {
            Some((found, bare)) if found == scheme => bare,
            Some(("http" | "https", bare)) => {
                return Err(ConfigError(format!(
                    "{}: say {scheme}://{bare}, or leave the scheme out: {advice}",
                    join.origin
                )));
            }
            Some(_) | None => part,
        };
        let bare = bare.trim_end_matches('/');
        bare.parse()
            .map(|address: HostPort| address.to_string())
            .map_err(|e| ConfigError(format!("{}: {e}", join.origin)))
    });
    let endpoints: Vec<_> = parsed.collect::<Result<_, _>>()?;
    if endpoints.is_empty() {
        return Err(ConfigError(format!(
            "{}: there is no address; name those at which members of the cluster serve clients, such as 10.0.0.1:2379",
            join.origin
        )));
    }
    Ok(endpoints)
}

fn learner(layers: &Layers<'_>) -> Result<bool, ConfigError> {
    let given = layers.text("learner", None, |f: &FileConfig| f.learner.map(|learner| learner.to_string()));
    given.map_or(Ok(false), |given| Ok(given.parse::<bool>("true or false")?.value))
}
