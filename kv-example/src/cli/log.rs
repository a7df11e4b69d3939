//! `log dump`: a node's log, line by line.

use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use raftkv::StorageError;

use super::Failure;
use crate::backends::dump_log;

/// How many directories an error names.
const MOST_SHOWN: usize = 9;

#[derive(Subcommand, Debug)]
pub(super) enum Log {
    /// Print a node's log: segments or the database, batches, terms, sizes, and what is wrong with it
    Dump(Dump),
}

#[derive(Args, Debug)]
#[command(after_help = "\
Changes nothing, and works beside a running server with --store file; the newest lines may then show a write that is under way. A log of --store redb is printed \
while no server runs on it. Exit code 0 when the log is sound, 1 when it is damaged.")]
pub(super) struct Dump {
    /// The node's data directory: that of `server --data`
    dir: PathBuf,
}

pub(super) fn run(log: Log) -> Result<ExitCode, Failure> {
    let Log::Dump(Dump { dir }) = log;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut written = Ok(());
    let dumped = dump_log(&dir, &mut |line| {
        // After a failure the rest goes nowhere.
        if written.is_ok() {
            written = writeln!(out, "{line}");
        }
    });
    match written.and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => return Err(Failure::runtime(format!("stdout: {e}"))),
        Ok(()) | Err(_) => {}
    }
    match dumped {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Err(Failure::runtime(format!("the log in {} is damaged", dir.display()))),
        Err(error @ StorageError::Refused { .. }) => Err(Failure::usage(format!("{error}{}", below(&dir)))),
        Err(error) => Err(Failure::runtime(error.to_string())),
    }
}

/// Says which directories below hold a log: whoever names that of `cluster --data` means one of them.
fn below(dir: &Path) -> String {
    if dir.join("IDENTITY").is_file() {
        return String::new();
    }
    let Ok(entries) = std::fs::read_dir(dir) else { return String::new() };
    let logs = entries.flatten().map(|entry| entry.path()).filter(|path| path.join("IDENTITY").is_file());
    let mut logs: Vec<_> = logs.take(MOST_SHOWN).map(|path| path.display().to_string()).collect();
    logs.sort_unstable();
    if logs.is_empty() { String::new() } else { format!("; there are logs in {}", logs.join(", ")) }
}
