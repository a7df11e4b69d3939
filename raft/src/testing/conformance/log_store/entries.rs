//! What was written is there, in order, whole, and again after reopening.

use super::*;

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
