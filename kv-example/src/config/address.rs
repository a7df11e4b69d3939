//! Addresses, as people write them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use raftkv::{Membership, NodeId, Peer};

use super::{ConfigError, Given, Layers, Origin, ServerArgs};

/// A host and a port. The host may be a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl HostPort {
    /// Whether it stands for every address of a machine, as `0.0.0.0` and `[::]` do: good to listen on, and no place to go to.
    #[must_use]
    pub fn is_unspecified(&self) -> bool {
        self.host().parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }

    /// The same port of another host.
    #[must_use]
    pub fn at_host_of(&self, other: &Self) -> Self {
        Self { host: other.host.clone(), port: self.port }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        if trimmed.contains("://") {
            return Err(format!("{text:?} is a URL; leave out the scheme: HOST:PORT, such as 127.0.0.1:2379"));
        }
        let Some((host, port)) = trimmed.rsplit_once(':') else {
            return Err(format!("{text:?} has no port; write HOST:PORT, such as 127.0.0.1:2379"));
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
            format!("{port:?} in {text:?} is not a port; write HOST:PORT with a port from 1 to 65535")
        })?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.contains(':') && !bracketed {
            return Err(format!("{text:?}: put the IPv6 address in brackets, such as [::1]:2379"));
        }
        let valid = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_') || (bracketed && ":[]%".contains(c));
        if host.is_empty() || !host.chars().all(valid) {
            return Err(format!("{text:?} has no valid host; write HOST:PORT, such as 127.0.0.1:2379"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

pub(super) fn parse(given: &Given<String>) -> Result<Given<HostPort>, ConfigError> {
    let value = given.value.parse().map_err(|e| ConfigError(format!("{}: {e}", given.origin)))?;
    Ok(Given { value, origin: given.origin.clone() })
}

/// Where metrics are served, which must be a place of its own.
pub(super) fn of_metrics(
    args: &ServerArgs,
    layers: &Layers<'_>,
    others: &[&Given<HostPort>],
) -> Result<Option<HostPort>, ConfigError> {
    let Some(given) = layers.text("listen-metrics", args.listen_metrics.as_ref(), |f| f.listen_metrics.clone()) else {
        return Ok(None);
    };
    let given = parse(&given)?;
    match others.iter().find(|other| other.value == given.value) {
        Some(other) => Err(ConfigError(format!(
            "{} and {} are both {}; metrics need a port of their own",
            given.origin, other.origin, given.value
        ))),
        None => Ok(Some(given.value)),
    }
}

/// Reads `1=HOST:PORT,2=HOST:PORT`.
pub(super) fn parse_peers(text: &str, origin: &Origin) -> Result<Membership, ConfigError> {
    let mistake = |what: String| ConfigError(format!("{origin}: {what}"));
    let mut by_address: BTreeMap<String, u64> = BTreeMap::new();
    let mut peers: BTreeMap<NodeId, Peer> = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((id, address)) = part.split_once('=') else {
            return Err(mistake(format!("{part:?} is not ID=HOST:PORT, such as 1=127.0.0.1:2380")));
        };
        let id: u64 =
            id.trim().parse().ok().filter(|id| *id != 0).ok_or_else(|| {
                mistake(format!("{id:?} in {part:?} is not a node number; ids are whole numbers from 1"))
            })?;
        let address: HostPort = address.parse().map_err(|e| mistake(format!("node {id}: {e}")))?;
        if address.is_unspecified() {
            return Err(mistake(format!(
                "node {id}: nobody can go to {address}, which stands for all addresses of a machine; name the one at which others \
                 reach it. To listen on all of them, say so with --listen-peer or --listen-client"
            )));
        }
        if let Some(other) = by_address.insert(address.to_string(), id)
            && other != id
        {
            return Err(mistake(format!("nodes {other} and {id} have the same address, {address}; give each its own")));
        }
        if peers.insert(NodeId(id), Peer::new(id, address.to_string())).is_some() {
            return Err(mistake(format!("node {id} is named twice; give each node its own id")));
        }
    }
    let membership = Membership { voters: peers, ..Membership::default() };
    membership.validate().map_err(mistake)?;
    Ok(membership)
}

/// Reads where members serve clients, in the same form.
pub(super) fn parse_clients(
    given: &Given<String>,
    members: Option<&Membership>,
) -> Result<BTreeMap<NodeId, String>, ConfigError> {
    let clients = parse_peers(&given.value, &given.origin)?;
    if let Some(members) = members
        && let Some(stranger) = clients.voters.keys().find(|id| !members.is_voter(**id))
    {
        return Err(ConfigError(format!(
            "{}: node {} is no member; name only those in --peers ({members})",
            given.origin, stranger.0
        )));
    }
    Ok(clients.voters.into_iter().map(|(id, peer)| (id, peer.address.to_string())).collect())
}
