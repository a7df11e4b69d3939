//! `log dump`: a node's log, line by line.

use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use raftkv::StorageError;
use raftkv_storage_file::{DumpLine, DumpVerdict, OsVfs, dump};

use super::Failure;
use crate::backends::StoreKind;

/// How many directories an error names.
const MOST_SHOWN: usize = 9;

#[derive(Subcommand, Debug)]
pub(super) enum Log {
    /// Print a node's log: segments, records, terms, sizes, and what is wrong with it
    Dump(Dump),
}

#[derive(Args, Debug)]
#[command(after_help = "\
Changes nothing, and works beside a running server; the newest lines may then show a write that is under way. \
Exit code 0 when the log is sound, 1 when it is damaged.")]
pub(super) struct Dump {
    /// The node's data directory: that of `server --data`
    dir: PathBuf,
}

pub(super) fn run(log: Log) -> Result<ExitCode, Failure> {
    let Log::Dump(Dump { dir }) = log;
    if let Ok(Some(StoreKind::Redb)) = StoreKind::of(&OsVfs, &dir) {
        return Err(Failure::usage(format!(
            "{}: the log there is in a redb database (log.redb), and this prints logs of `--store file`; `kv-example recover` tells where it ends",
            dir.display()
        )));
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut written = Ok(());
    let mut sound = false;
    let dumped = dump(&dir, |line| {
        sound = matches!(line, DumpLine::Verdict(DumpVerdict::Sound { .. }));
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
        Ok(()) if sound => Ok(ExitCode::SUCCESS),
        Ok(()) => Err(Failure::runtime(format!("the log in {} is damaged", dir.display()))),
        Err(error @ StorageError::Refused { .. }) => Err(Failure::usage(format!("{error}{}", below(&dir)))),
        Err(error) => Err(Failure::runtime(error.to_string())),
    }
}

/// Says which directories below hold a log: whoever names that of `cluster --data` means one of them.
fn below(dir: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(dir) else { return String::new() };
    let logs = entries.flatten().map(|entry| entry.path()).filter(|path| path.join("IDENTITY").is_file());
    let mut logs: Vec<_> = logs.take(MOST_SHOWN).map(|path| path.display().to_string()).collect();
    logs.sort_unstable();
    if logs.is_empty() { String::new() } else { format!("; there are logs in {}", logs.join(", ")) }
}
