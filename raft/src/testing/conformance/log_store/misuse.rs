//! What a store refuses, and that it takes nothing afterwards.

use super::*;

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
