//! Reads: their limits, and reads beside writes.

use super::*;

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
