//! What every [`LogStore`] must do.
//!
//! Say how your store is opened ([`Backend`]), and expand [`log_store_conformance!`](crate::log_store_conformance) in a test file:
//!
//! ```
//! use raftkv::testing::MemLog;
//! use raftkv::testing::conformance::log_store::Backend;
//!
//! struct Memory(MemLog);
//!
//! impl Backend for Memory {
//!     type Store = MemLog;
//!
//!     async fn open(&self) -> MemLog {
//!         self.0.reopen()
//!     }
//! }
//!
//! raftkv::log_store_conformance!(Memory(MemLog::new()));
//! # fn main() {}
//! ```
//!
//! # What is tested
//!
//! * Entries and hard state come back as they were written, also after the store was dropped and opened again, in any sizes.
//! * A write replaces what is at its first index and beyond; [`LogStore::load`] tells the right bounds and terms.
//! * Reads keep their limits, and run beside writes.
//! * Compaction moves the base, and empties the log where it must.
//! * Misuse is refused, and nothing is taken afterwards.
//! * With [`Backend::arm`]: at whatever operation the process is killed, or power is lost, everything that was acknowledged is there
//!   afterwards, and of the step under way no more than [`LogStore::write`] allows; and after an error nothing is acknowledged
//!   any more.
//!
//! A store passes when every case does. If one fails, its doc comment says what is asked for, and the trait says why.

#![expect(clippy::expect_used, reason = "a suite of tests: it reports by panicking")]

mod compaction;
mod entries;
mod faults;
mod misuse;
mod reads;

pub use compaction::*;
pub use entries::*;
pub use faults::*;
pub use misuse::*;
pub use reads::*;

use std::sync::Arc;

use bytes::Bytes;

use super::{Fault, not_tested};
use crate::testing::Random;
use crate::{
    Entry, EntryKind, HardState, Index, LogId, LogState, LogStore, LogWrite, NodeId, StorageError, Term, TermRun,
};

/// Makes stores for the suite.
pub trait Backend: Send + Sync {
    /// The store under test.
    type Store: LogStore;

    /// Opens the store on this backend's data: the first time on none, later on what was left, by a crash if one was armed. The one
    /// before has been dropped. Ends whatever was armed.
    fn open(&self) -> impl Future<Output = Self::Store> + Send;

    /// Lets `after` further operations of the open store on its medium pass (a write to a file, a sync, a rename, as you count
    /// them), and has the next one meet with `fault`. After a kill or a loss of power, all that follow fail as well. False if you
    /// offer no such seam.
    fn arm(&self, fault: Fault, after: u64) -> bool {
        let _ = (fault, after);
        false
    }
}

/// Makes a `#[test]` of each case of the [`LogStore`](crate::LogStore) suite. The argument is an expression that gives a new
/// [`Backend`](crate::testing::conformance::log_store::Backend), with no data.
#[macro_export]
macro_rules! log_store_conformance {
    ($backend:expr) => {
        $crate::log_store_conformance!(
            @cases $backend;
            an_empty_store_has_nothing
            a_hard_state_alone_is_kept
            entries_come_back_as_they_were_written
            an_empty_write_changes_nothing
            a_suffix_is_replaced
            the_whole_log_is_replaced
            a_replaced_suffix_stays_replaced_after_reopening
            a_read_stops_at_its_byte_limit
            an_oversize_entry_passes_alone
            a_read_ends_where_the_log_ends
            compaction_moves_the_base
            compaction_cuts_a_run_of_terms
            compaction_of_everything_keeps_the_base
            compaction_beyond_the_end_empties_the_log
            compaction_at_another_term_empties_the_log
            compaction_below_the_base_changes_nothing
            entries_go_on_after_compaction
            a_suffix_is_replaced_right_after_the_base
            reopening_keeps_everything
            large_entries_come_back
            many_small_entries_come_back
            many_small_writes_come_back
            reads_run_beside_writes
            reading_what_is_not_held_is_misuse
            writing_a_gap_is_misuse_and_sticks
            writing_below_the_base_is_misuse_and_sticks
            writing_entries_out_of_order_is_misuse_and_sticks
            a_kill_at_any_point_loses_nothing_that_was_acknowledged
            a_loss_of_power_at_any_point_loses_nothing_that_was_acknowledged
            an_error_at_any_point_sticks_and_loses_nothing
            what_is_found_after_a_kill_or_an_error_outlasts_a_loss_of_power
        );
    };
    (@cases $backend:expr; $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::testing::conformance::run(
                    $crate::testing::conformance::log_store::$case(&$backend)
                );
            }
        )*
    };
}

/// An entry with a payload that tells it from all others.
#[must_use]
pub fn entry(term: u64, index: u64) -> Entry {
    sized(term, index, 24)
}

/// An entry with a payload of `len` bytes.
#[must_use]
pub fn sized(term: u64, index: u64, len: usize) -> Entry {
    let text = format!("{index}@{term}.");
    let data: Vec<u8> = text.bytes().cycle().take(len).collect();
    let kind = match index % 5 {
        0 => EntryKind::Noop,
        1 => EntryKind::Command,
        2 => EntryKind::Config,
        3 => EntryKind::Session,
        _ => EntryKind::Clock,
    };
    Entry { id: LogId::new(term, index), kind, data: Bytes::from(data) }
}

/// A write of entries of one term.
#[must_use]
pub fn append(term: u64, indexes: std::ops::RangeInclusive<u64>) -> LogWrite {
    LogWrite { hard_state: None, entries: indexes.map(|index| entry(term, index)).collect() }
}

fn hard_state(term: u64, vote: Option<u64>) -> HardState {
    HardState { term: Term(term), voted_for: vote.map(NodeId) }
}

fn run(term: u64, first: u64) -> TermRun {
    TermRun { term: Term(term), first: Index(first) }
}

async fn write(store: &impl LogStore, write: LogWrite) {
    store.write(write).await.expect("a write");
}

async fn load(store: &impl LogStore) -> LogState {
    store.load().await.expect("a load")
}

async fn read(store: &impl LogStore, start: u64, end: u64) -> Vec<Entry> {
    store.read(Index(start)..Index(end), u64::MAX).await.expect("a read")
}

/// All entries that the store says it holds.
async fn all(store: &impl LogStore) -> Vec<Entry> {
    let state = load(store).await;
    if state.base == state.last {
        return Vec::new();
    }
    read(store, state.base.index.0 + 1, state.last.index.0 + 1).await
}

fn expect_misuse<T: std::fmt::Debug>(result: Result<T, StorageError>) {
    assert!(matches!(result, Err(StorageError::Misuse(_))), "not refused as misuse: {result:?}");
}

async fn expect_stopped(store: &impl LogStore) {
    let again = store.write(LogWrite { hard_state: Some(hard_state(99, None)), entries: Vec::new() }).await;
    assert!(again.is_err(), "a write was taken after one that failed");
    assert!(store.compact(LogId::new(1, 1)).await.is_err(), "a compaction was taken after a write that failed");
}
