//! What stands for TLS where it was not compiled in (feature `tls`): nobody can have any.

use std::convert::Infallible;
use std::time::Duration;

use tokio::net::TcpStream;

use super::lane::Failure;
use super::link::{Identity, Link};
use crate::metrics::RefusedFor;
use crate::types::NodeId;

/// Certificates, and whom to trust. There are none without the feature `tls`.
#[derive(Clone, Debug)]
pub struct Tls(Infallible);

/// Why a connection was not let in.
#[derive(Clone, Debug)]
pub struct Denied(Infallible);

impl Denied {
    /// Why, in words.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self.0 {}
    }

    /// Whether it is worth telling.
    #[must_use]
    pub fn is_news(&self) -> bool {
        match self.0 {}
    }

    /// What it counts as.
    #[must_use]
    pub fn kind(&self) -> RefusedFor {
        match self.0 {}
    }
}

impl Tls {
    pub(super) async fn accept(&self, _: TcpStream, _: &[u8], _: Duration) -> Result<(Link, Identity), Denied> {
        match self.0 {}
    }

    pub(super) async fn connect_to_node(&self, _: TcpStream, _: NodeId, _: &[u8]) -> Result<Link, Failure> {
        match self.0 {}
    }
}
