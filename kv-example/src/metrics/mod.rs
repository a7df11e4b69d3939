//! What a node counts, for Prometheus and its like: `--listen-metrics`.
//!
//! | file | what it holds |
//! |---|---|
//! | `families.rs` | every name that is served, with what it means |
//! | `requests.rs` | clients' requests, counted by a layer around the services |
//! | `text.rs` | the text format |
//! | `serve.rs` | the HTTP server, and its bounds |
//!
//! README.md has the names in a table; a test compares the two.

mod families;
mod requests;
mod serve;
mod text;

use std::sync::Arc;

use raftkv::transport_kit::Tls;
use raftkv::{Error, Raft};

use crate::gate::Gate;
use crate::machine::KvView;
use crate::room::Room;
pub(crate) use requests::{MeterLayer, RequestMeter};
pub(crate) use serve::serve;

/// Where the numbers come from.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) raft: Raft,
    pub(crate) view: KvView,
    pub(crate) requests: Arc<RequestMeter>,
    /// The node's certificates, and whom they are shown to.
    pub(crate) certificates: Vec<(&'static str, Tls)>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) room: Room,
}

impl Sources {
    /// All numbers, as of now.
    async fn text(&self) -> Result<String, Error> {
        let raft = self.raft.metrics().await?;
        let mut text = text::Text::default();
        families::node(&mut text, &raft);
        families::activity(&mut text, &raft);
        families::contents(&mut text, &self.view);
        families::room(&mut text, self.room.look().await.as_ref());
        families::requests(&mut text, &self.requests);
        families::certificates(&mut text, &self.certificates);
        families::limits(&mut text, &raft.refused, &self.gate);
        Ok(text.into_string())
    }
}
