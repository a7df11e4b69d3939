//! A node that learned that it was removed keeps a note of that. When it starts again nobody tells it: the others don't speak with it any more.

use std::path::{Path, PathBuf};

use raftkv::{Event, Raft};
use tracing::warn;

const NOTE: &str = "REMOVED";

/// Whether this directory's node knows that it was removed.
pub(super) fn is_noted(data: &Path) -> bool {
    data.join(NOTE).exists()
}

/// Makes the note when the node is removed.
pub(super) fn watch(raft: &Raft, data: &Path) {
    let (mut events, note) = (raft.events(), data.join(NOTE));
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            if let Event::Removed { .. } = event {
                make(note.clone()).await;
            }
        }
    });
}

/// It is for people and for this node's next run: without it the node merely says that it waits for its cluster.
async fn make(note: PathBuf) {
    let text = "This node was removed from its cluster. Its data is of no use any more: delete this directory.\n";
    if let Err(error) = tokio::fs::write(&note, text).await {
        warn!(%error, note = %note.display(), "can't make a note that this node was removed");
    }
}
