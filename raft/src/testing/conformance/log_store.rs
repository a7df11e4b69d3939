//! What every [`LogStore`] must do.
//!
//! Implement [`Backend`] for yours, and expand [`log_store_conformance!`](crate::log_store_conformance) in a test file:
//!
//! ```text
//! raftkv::log_store_conformance!(MyBackend::new());
//! ```

#![expect(clippy::expect_used, reason = "a suite of tests: it reports by panicking")]

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    Entry, EntryKind, HardState, Index, LogId, LogState, LogStore, LogWrite, NodeId, StorageError, Term, TermRun,
};

/// Makes stores for the suite.
pub trait Backend: Send + Sync {
    /// The store under test.
    type Store: LogStore;

    /// Opens the store on this backend's data: the first time on none, later on what was left. The one before has
    /// been dropped.
    fn open(&self) -> impl Future<Output = Self::Store> + Send;
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
    let kind = match index % 3 {
        0 => EntryKind::Noop,
        1 => EntryKind::Command,
        _ => EntryKind::Config,
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

/// A store without data has no hard state, no base and no entry.
pub async fn an_empty_store_has_nothing<B: Backend>(backend: &B) {
    let store = backend.open().await;
    assert_eq!(load(&store).await, LogState::default());
    drop(store);
    assert_eq!(load(&backend.open().await).await, LogState::default());
}

/// A vote without entries is durable; the last one counts.
pub async fn a_hard_state_alone_is_kept<B: Backend>(backend: &B) {
    let store = backend.open().await;
    for state in [hard_state(1, None), hard_state(1, Some(2)), hard_state(3, Some(1)), hard_state(4, None)] {
        write(&store, LogWrite { hard_state: Some(state), entries: Vec::new() }).await;
    }
    drop(store);
    let state = load(&backend.open().await).await;
    assert_eq!(state, LogState { hard_state: hard_state(4, None), ..LogState::default() });
}

/// Ids, kinds and payloads come back unchanged, also empty ones.
pub async fn entries_come_back_as_they_were_written<B: Backend>(backend: &B) {
    let store = backend.open().await;
    let entries: Vec<Entry> = (1..=40).map(|i| sized(1 + i / 10, i, usize::try_from(i % 11).unwrap_or(0))).collect();
    let hard = hard_state(5, Some(3));
    write(&store, LogWrite { hard_state: Some(hard), entries: entries[..15].to_vec() }).await;
    write(&store, LogWrite { hard_state: None, entries: entries[15..].to_vec() }).await;
    assert_eq!(all(&store).await, entries);
    assert_eq!(read(&store, 9, 20).await, entries[8..19]);
    let state = load(&store).await;
    assert_eq!((state.hard_state, state.base, state.last), (hard, LogId::ZERO, LogId::new(5, 40)));
    assert_eq!(state.runs, [run(1, 1), run(2, 10), run(3, 20), run(4, 30), run(5, 40)]);
}

/// Nothing to write is no error.
pub async fn an_empty_write_changes_nothing<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(1, 1..=3)).await;
    let before = load(&store).await;
    write(&store, LogWrite::default()).await;
    assert_eq!(load(&store).await, before);
}

/// A write at an index that is held replaces what is there and beyond.
pub async fn a_suffix_is_replaced<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(1, 1..=5)).await;
    write(&store, append(2, 6..=9)).await;
    write(&store, append(3, 4..=4)).await;
    let expected = [entry(1, 1), entry(1, 2), entry(1, 3), entry(3, 4)];
    assert_eq!(all(&store).await, expected);
    let state = load(&store).await;
    assert_eq!((state.last, state.runs), (LogId::new(3, 4), vec![run(1, 1), run(3, 4)]));
}

/// A write at index 1 replaces the whole log.
pub async fn the_whole_log_is_replaced<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(1, 1..=5)).await;
    write(&store, append(4, 1..=2)).await;
    assert_eq!(all(&store).await, [entry(4, 1), entry(4, 2)]);
    assert_eq!(load(&store).await.runs, [run(4, 1)]);
}

/// What was replaced does not come back, and the log goes on behind the new end.
pub async fn a_replaced_suffix_stays_replaced_after_reopening<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(1, 1..=8)).await;
    write(&store, append(2, 3..=4)).await;
    drop(store);
    let store = backend.open().await;
    assert_eq!(all(&store).await, [entry(1, 1), entry(1, 2), entry(2, 3), entry(2, 4)]);
    write(&store, append(5, 5..=6)).await;
    drop(store);
    let store = backend.open().await;
    assert_eq!(read(&store, 3, 7).await, [entry(2, 3), entry(2, 4), entry(5, 5), entry(5, 6)]);
    assert_eq!(load(&store).await.runs, [run(1, 1), run(2, 3), run(5, 5)]);
}

/// Entries are returned as long as their costs together stay within the limit.
pub async fn a_read_stops_at_its_byte_limit<B: Backend>(backend: &B) {
    let store = backend.open().await;
    let entries: Vec<Entry> = (1..=20).map(|i| sized(1, i, 100)).collect();
    write(&store, LogWrite { hard_state: None, entries: entries.clone() }).await;
    let cost = entries[0].cost();
    for (limit, count) in
        [(0, 1), (1, 1), (cost, 1), (2 * cost - 1, 1), (2 * cost, 2), (7 * cost + 1, 7), (99 * cost, 20)]
    {
        let got = store.read(Index(1)..Index(21), limit).await.expect("a read");
        assert_eq!(got, entries[..count], "with a limit of {limit}");
    }
    let got = store.read(Index(5)..Index(7), u64::MAX).await.expect("a read");
    assert_eq!(got, entries[4..6]);
}

/// An entry above the limit is returned when it is the first, and alone.
pub async fn an_oversize_entry_passes_alone<B: Backend>(backend: &B) {
    let store = backend.open().await;
    let entries = vec![sized(1, 1, 10), sized(1, 2, 100_000), sized(1, 3, 10)];
    write(&store, LogWrite { hard_state: None, entries: entries.clone() }).await;
    for (start, expected) in [(1, &entries[..1]), (2, &entries[1..2]), (3, &entries[2..])] {
        let got = store.read(Index(start)..Index(4), 1000).await.expect("a read");
        assert_eq!(got, expected);
    }
}

/// A range that goes beyond the end is cut there.
pub async fn a_read_ends_where_the_log_ends<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(1, 1..=3)).await;
    assert_eq!(read(&store, 2, u64::MAX).await, [entry(1, 2), entry(1, 3)]);
}

/// Compaction forgets entries up to its id, durably.
pub async fn compaction_moves_the_base<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(1, 1..=6)).await;
    write(&store, append(2, 7..=10)).await;
    store.compact(LogId::new(1, 6)).await.expect("a compaction");
    let expected = LogState {
        hard_state: HardState::default(),
        base: LogId::new(1, 6),
        last: LogId::new(2, 10),
        runs: vec![run(2, 7)],
    };
    assert_eq!(load(&store).await, expected);
    expect_misuse(store.read(Index(6)..Index(8), 1000).await);
    drop(store);
    let store = backend.open().await;
    assert_eq!(load(&store).await, expected);
    assert_eq!(all(&store).await, append(2, 7..=10).entries);
    expect_misuse(store.read(Index(6)..Index(8), 1000).await);
}

/// A run of which only the end is left begins after the base.
pub async fn compaction_cuts_a_run_of_terms<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(1, 1..=3)).await;
    write(&store, append(2, 4..=9)).await;
    store.compact(LogId::new(2, 5)).await.expect("a compaction");
    assert_eq!(load(&store).await.runs, [run(2, 6)]);
    store.compact(LogId::new(2, 8)).await.expect("a compaction");
    assert_eq!(load(&store).await.runs, [run(2, 9)]);
    drop(store);
    assert_eq!(load(&backend.open().await).await.runs, [run(2, 9)]);
}

/// A log that is compacted up to its last entry is empty and has a base.
pub async fn compaction_of_everything_keeps_the_base<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(3, 1..=5)).await;
    store.compact(LogId::new(3, 5)).await.expect("a compaction");
    let expected = LogState { base: LogId::new(3, 5), last: LogId::new(3, 5), ..LogState::default() };
    assert_eq!(load(&store).await, expected);
    drop(store);
    assert_eq!(load(&backend.open().await).await, expected);
}

/// A base beyond the end, as after a snapshot from the leader, leaves no entry.
pub async fn compaction_beyond_the_end_empties_the_log<B: Backend>(backend: &B) {
    let store = backend.open().await;
    let hard = hard_state(7, Some(1));
    write(&store, LogWrite { hard_state: Some(hard), ..append(1, 1..=5) }).await;
    store.compact(LogId::new(6, 100)).await.expect("a compaction");
    let expected = LogState { hard_state: hard, base: LogId::new(6, 100), last: LogId::new(6, 100), runs: Vec::new() };
    assert_eq!(load(&store).await, expected);
    drop(store);
    let store = backend.open().await;
    assert_eq!(load(&store).await, expected);
    write(&store, append(7, 101..=102)).await;
    assert_eq!(all(&store).await, append(7, 101..=102).entries);
}

/// Where the log holds another entry at the index, nothing after it can be right.
pub async fn compaction_at_another_term_empties_the_log<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(1, 1..=9)).await;
    store.compact(LogId::new(2, 4)).await.expect("a compaction");
    let expected = LogState { base: LogId::new(2, 4), last: LogId::new(2, 4), ..LogState::default() };
    assert_eq!(load(&store).await, expected);
    drop(store);
    let store = backend.open().await;
    assert_eq!(load(&store).await, expected);
    write(&store, append(2, 5..=5)).await;
    assert_eq!(all(&store).await, [entry(2, 5)]);
}

/// A base that is behind moves nothing, whatever its term.
pub async fn compaction_below_the_base_changes_nothing<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(2, 1..=9)).await;
    store.compact(LogId::new(2, 5)).await.expect("a compaction");
    let before = load(&store).await;
    for upto in [LogId::ZERO, LogId::new(2, 3), LogId::new(2, 5), LogId::new(9, 5), LogId::new(9, 1)] {
        store.compact(upto).await.expect("a compaction");
        assert_eq!(load(&store).await, before, "after compacting up to {upto}");
    }
    assert_eq!(all(&store).await, append(2, 6..=9).entries);
}

/// Writes and compactions in turn, across reopening.
pub async fn entries_go_on_after_compaction<B: Backend>(backend: &B) {
    let mut store = backend.open().await;
    for round in 0..10 {
        let first = round * 10 + 1;
        write(&store, append(round + 1, first..=first + 9)).await;
        store.compact(LogId::new(round + 1, first + 4)).await.expect("a compaction");
        if round % 3 == 2 {
            drop(store);
            store = backend.open().await;
        }
        assert_eq!(all(&store).await, append(round + 1, first + 5..=first + 9).entries);
    }
    let state = load(&store).await;
    assert_eq!((state.base, state.last, state.runs), (LogId::new(10, 95), LogId::new(10, 100), vec![run(10, 96)]));
}

/// The first entry after the base can be replaced.
pub async fn a_suffix_is_replaced_right_after_the_base<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(1, 1..=9)).await;
    store.compact(LogId::new(1, 4)).await.expect("a compaction");
    write(&store, append(2, 5..=6)).await;
    assert_eq!(all(&store).await, append(2, 5..=6).entries);
    drop(store);
    let store = backend.open().await;
    assert_eq!(all(&store).await, append(2, 5..=6).entries);
    assert_eq!(load(&store).await.runs, [run(2, 5)]);
}

/// Hard state, base, entries and terms are all there again, time after time.
pub async fn reopening_keeps_everything<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, LogWrite { hard_state: Some(hard_state(1, Some(1))), ..append(1, 1..=4) }).await;
    write(&store, LogWrite { hard_state: Some(hard_state(2, None)), ..append(2, 5..=6) }).await;
    store.compact(LogId::new(1, 2)).await.expect("a compaction");
    write(&store, append(2, 7..=7)).await;
    let (state, entries) = (load(&store).await, all(&store).await);
    assert_eq!(entries.len(), 5);
    drop(store);
    for _ in 0..3 {
        let store = backend.open().await;
        assert_eq!(load(&store).await, state);
        assert_eq!(all(&store).await, entries);
    }
}

/// Entries of megabytes, between small ones.
pub async fn large_entries_come_back<B: Backend>(backend: &B) {
    let store = backend.open().await;
    let sizes = [3, 1 << 20, 0, (3 << 20) + 7, 65_536, 1];
    let entries: Vec<Entry> = (1..).zip(sizes).map(|(index, size)| sized(1, index, size)).collect();
    write(&store, LogWrite { hard_state: None, entries: entries[..4].to_vec() }).await;
    write(&store, LogWrite { hard_state: None, entries: entries[4..].to_vec() }).await;
    assert!(all(&store).await == entries, "large entries changed");
    drop(store);
    let store = backend.open().await;
    for entry in &entries {
        let got = read(&store, entry.id.index.0, entry.id.index.0 + 1).await;
        assert!(got == [entry.clone()], "entry {} changed", entry.id);
    }
}

/// Ten thousand entries in batches, read from everywhere.
pub async fn many_small_entries_come_back<B: Backend>(backend: &B) {
    let store = backend.open().await;
    let entries: Vec<Entry> = (1..=10_000).map(|i| entry(1 + i / 3000, i)).collect();
    for batch in entries.chunks(333) {
        write(&store, LogWrite { hard_state: None, entries: batch.to_vec() }).await;
    }
    drop(store);
    let store = backend.open().await;
    assert!(all(&store).await == entries, "some entry changed");
    for start in (1..10_000).step_by(487) {
        let got = store.read(Index(start)..Index(10_001), 1 << 12).await.expect("a read");
        let at = usize::try_from(start).unwrap_or(0) - 1;
        assert!(got == entries[at..at + got.len()] && got.len() > 1, "the entries from {start} on changed");
    }
    assert_eq!(load(&store).await.runs, [run(1, 1), run(2, 3000), run(3, 6000), run(4, 9000)]);
}

/// Hundreds of writes of an entry or two, with truncations between.
pub async fn many_small_writes_come_back<B: Backend>(backend: &B) {
    let store = backend.open().await;
    let mut expected: Vec<Entry> = Vec::new();
    for n in 1_u64..=200 {
        let keep = if n % 7 == 0 { expected.len() - 3 } else { expected.len() };
        expected.truncate(keep);
        let first = keep as u64 + 1;
        let batch = append(n, first..=first + n % 2);
        expected.extend(batch.entries.iter().cloned());
        write(&store, batch).await;
    }
    assert_eq!(all(&store).await, expected);
    drop(store);
    assert_eq!(all(&backend.open().await).await, expected);
}

/// A reader sees whole entries, in order, while others are being written.
pub async fn reads_run_beside_writes<B: Backend>(backend: &B) {
    let store = Arc::new(backend.open().await);
    write(&store, append(1, 1..=10)).await;
    let writer = Arc::clone(&store);
    let writing = tokio::spawn(async move {
        for first in (11..1000).step_by(10) {
            write(&writer, append(1, first..=first + 9)).await;
        }
    });
    let mut rounds = 0;
    while rounds < 3 || !writing.is_finished() {
        let last = load(&store).await.last.index.0;
        let from = 1 + (rounds * 37) % last;
        for (got, index) in read(&store, from, last + 1).await.into_iter().zip(from..) {
            assert_eq!(got, entry(1, index));
        }
        rounds += 1;
        tokio::task::yield_now().await;
    }
    writing.await.expect("the writer");
    assert_eq!(all(&store).await.len(), 1000);
}

/// Reads must start at an entry that is held, and ask for one at least. Refusing one stops nothing.
pub async fn reading_what_is_not_held_is_misuse<B: Backend>(backend: &B) {
    let store = backend.open().await;
    expect_misuse(store.read(Index(1)..Index(2), 100).await);
    write(&store, append(1, 1..=3)).await;
    expect_misuse(store.read(Index(0)..Index(2), 100).await);
    expect_misuse(store.read(Index(4)..Index(5), 100).await);
    expect_misuse(store.read(Index(2)..Index(2), 100).await);
    write(&store, append(1, 4..=4)).await;
    assert_eq!(read(&store, 4, 5).await, [entry(1, 4)]);
}

/// An entry that does not follow the last one is refused, and nothing is written any more.
pub async fn writing_a_gap_is_misuse_and_sticks<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(1, 1..=3)).await;
    expect_misuse(store.write(append(1, 5..=5)).await);
    expect_stopped(&store).await;
    drop(store);
    assert_eq!(all(&backend.open().await).await, append(1, 1..=3).entries);
}

/// An entry at or below the base is refused, and nothing is written any more.
pub async fn writing_below_the_base_is_misuse_and_sticks<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(1, 1..=5)).await;
    store.compact(LogId::new(1, 3)).await.expect("a compaction");
    expect_misuse(store.write(append(2, 3..=6)).await);
    expect_stopped(&store).await;
    drop(store);
    assert_eq!(all(&backend.open().await).await, append(1, 4..=5).entries);
}

/// Entries of one write must be contiguous; otherwise nothing of it is written, and nothing any more.
pub async fn writing_entries_out_of_order_is_misuse_and_sticks<B: Backend>(backend: &B) {
    let store = backend.open().await;
    write(&store, append(1, 1..=2)).await;
    let entries = vec![entry(1, 3), entry(1, 5)];
    expect_misuse(store.write(LogWrite { hard_state: Some(hard_state(9, None)), entries }).await);
    expect_stopped(&store).await;
    drop(store);
    let store = backend.open().await;
    assert_eq!(all(&store).await, append(1, 1..=2).entries);
    assert_eq!(load(&store).await.hard_state, HardState::default());
}
