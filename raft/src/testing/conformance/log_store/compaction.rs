//! Compaction moves the base, and nothing else.

use super::*;

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
