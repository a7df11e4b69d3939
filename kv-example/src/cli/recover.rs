//! `recover`: when the quorum is lost for good, one survivor goes on alone.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use raftkv::{Fatal, FatalKind, LogStore, NodeId, Snapshot, StorageError, Survivor};
use raftkv_storage_file::{Identity, OsVfs};

use super::{Failure, output};
use crate::api::command::{MemberGone, MemberNote, command, member_note::Note};
use crate::backends::{STORE_CACHE_BYTES, Stores, open_stores};
use crate::machine::encode_command;

#[derive(Args, Debug)]
#[command(after_help = "\
Only when a majority of the members is lost for good, with their disks: else start them again, and nothing is lost. Choose the survivor whose log \
ends last (`kv-example log dump`: term before index), and stop it. Afterwards start it as before. Then wipe the directories of the others before \
they come back with --join: a majority of them as they were would be a second cluster of the same name. Exit code 0 when it was done, 1 when it was \
not, 2 when it can't be.")]
pub(super) struct Recover {
    /// The survivor's data directory: that of `server --data`
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,

    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(args: Recover) -> Result<(), Failure> {
    let identity = Identity::of(&args.data_dir).map_err(|error| storage(&error))?.ok_or_else(|| {
        Failure::usage(format!(
            "--data-dir {}: there is no log in it; name the directory of `server --data`",
            args.data_dir.display()
        ))
    })?;
    let dir = args.data_dir.clone();
    let opened =
        tokio::task::spawn_blocking(move || open_stores(None, STORE_CACHE_BYTES, Arc::new(OsVfs), &dir, identity))
            .await;
    let opened = opened.map_err(|error| Failure::runtime(error.to_string()))?;
    let (_, Stores { log, images, .. }) = opened.map_err(|error| storage(&error))?;
    recover(&args, identity.node, &log, &images).await
}

async fn recover(args: &Recover, id: NodeId, log: &dyn LogStore, images: &dyn Snapshot) -> Result<(), Failure> {
    let survivor = Survivor::inspect(id, log, images).await.map_err(|error| fatal(&error))?;
    let given_up: Vec<_> = survivor.given_up().map(ToString::to_string).collect();
    if given_up.is_empty() {
        return Err(Failure::usage(format!("node {} is the only member already: start it", id.0)));
    }
    output::print(loss(&survivor, &given_up))?;
    if !args.yes && !confirmed(id)? {
        return Err(Failure::runtime("nothing was changed"));
    }
    let entry = survivor.become_only_voter(log, farewell(&survivor)).await.map_err(|error| fatal(&error))?;
    output::print(format!("node {} is the only voter, by entry {entry}: start it as before", id.0))
}

/// What the machine learns of those given up: they are gone, and nobody else gets their ids. The survivor may never have heard that
/// they ran.
fn farewell(survivor: &Survivor) -> Vec<Bytes> {
    let gone = survivor.given_up().map(|peer| Note::Gone(MemberGone { id: peer.id.0 }));
    gone.map(|note| encode_command(command::Body::Member(MemberNote { note: Some(note) }))).collect()
}

fn loss(survivor: &Survivor, given_up: &[String]) -> String {
    let (id, log) = (survivor.id.0, &survivor.log);
    let image = survivor.snapshot.map_or_else(String::new, |image| format!("an image up to {image}, and "));
    format!(
        "node {id} has the configuration {}, and is in term {}\n\
         it holds {image}a log up to {} (index@term)\n\
         to go on alone means:\n\
         - these members are given up, and must never come back with their present directories: {}\n\
         - what the others had on their disks and node {id} has not is LOST, also where clients were told that it was written\n\
         - what node {id} has and was never committed takes effect\n\
         how much either is can't be told from here: compare `kv-example log dump` of all survivors, and take the one that ends last",
        survivor.membership,
        log.hard_state.term.0,
        log.last,
        given_up.join(", ")
    )
}

/// Asks the operator to type the node's number.
fn confirmed(id: NodeId) -> Result<bool, Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage(
            "stdin is no terminal, so nobody can be asked: read the above, then say --yes; nothing was changed",
        ));
    }
    print!("type the node's number ({}) to do it, anything else to leave it: ", id.0);
    std::io::stdout().flush()?;
    let mut line = String::new();
    stdin.lock().read_line(&mut line)?;
    Ok(line.trim() == id.0.to_string())
}

fn storage(error: &StorageError) -> Failure {
    if matches!(error, StorageError::Refused { .. }) {
        return Failure::usage(error.to_string());
    }
    Failure::runtime(error.to_string())
}

fn fatal(error: &Fatal) -> Failure {
    if let FatalKind::Config(reason) = error.kind() {
        return Failure::usage(reason.clone());
    }
    Failure::runtime(error.to_string())
}
