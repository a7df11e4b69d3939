//! Images come back as they were written.

use super::*;

/// A store without data has no image.
pub async fn an_empty_store_has_no_image<B: Backend>(backend: &B) {
    let store = open(backend).await;
    assert_eq!(latest(&store).await, None);
    drop(store);
    assert_eq!(latest(&open(backend).await).await, None);
}

/// In whatever pieces it is written and read, from whatever offset.
pub async fn an_image_comes_back_as_it_was_written<B: Backend>(backend: &B) {
    let store = open(backend).await;
    for (n, piece) in (1..).zip([1, 64, 999, 5000, 100_000]) {
        let image = image(n, if piece == 1 { 40 } else { 5000 });
        let mut writer = store.begin(meta(n)).await.expect("a writer");
        assert_eq!(writer.offset(), 0);
        write(&mut writer, &image, piece).await.expect("the image");
        writer.publish().await.expect("a published image");
        for max in [7, 640, 4999, 5000, usize::MAX] {
            assert!(read(&store, meta(n).id, max).await.expect("a read") == image, "read by {max}, written by {piece}");
        }
        for from in [0, 1, image.len() / 2, image.len() - 1] {
            let got = store.read(&meta(n).id, from as u64, 10).await.expect("a read");
            assert!(!got.is_empty() && image[from..].starts_with(&got), "from {from} on: {got:?}");
        }
        for beyond in [image.len() as u64, 1 << 40, u64::MAX] {
            assert!(store.read(&meta(n).id, beyond, 10).await.expect("a read").is_empty(), "at {beyond}");
        }
    }
}

/// The latest image is there again, time after time.
pub async fn an_image_survives_reopening<B: Backend>(backend: &B) {
    let image = image(1, 30_000);
    publish(&open(backend).await, 1, &image).await.expect("a published image");
    for _ in 0..3 {
        assert_latest(&open(backend).await, 1, &image).await;
    }
}

/// A machine may have nothing to say.
pub async fn an_empty_image_is_an_image<B: Backend>(backend: &B) {
    publish(&open(backend).await, 1, &Bytes::new()).await.expect("a published image");
    assert_latest(&open(backend).await, 1, &Bytes::new()).await;
}

/// Whatever the numbers are, and whoever the members.
pub async fn ids_and_configurations_come_back<B: Backend>(backend: &B) {
    let everyone = Membership::new((1..=200).map(|id| Peer::new(id, format!("node-{id}.example.org:{id}"))));
    let one = Membership::new([Peer::new(u64::MAX, "ü".repeat(1000))]);
    for (n, (id, membership)) in (1..).zip([(0, everyone), (u64::MAX, one), (1 << 63, Membership::default())]) {
        let last = LogId::new(u64::MAX >> 2, n);
        let meta = SnapshotMeta { id: SnapshotId(id), last, membership, membership_at: LogId::new(7, u64::MAX - n) };
        let store = open(backend).await;
        let mut writer = store.begin(meta.clone()).await.expect("a writer");
        writer.append(image(n, 100)).await.expect("the image");
        writer.publish().await.expect("a published image");
        assert_eq!(latest(&store).await, Some(meta.clone()));
        drop(store);
        let store = open(backend).await;
        assert_eq!(latest(&store).await, Some(meta.clone()));
        assert_eq!(read(&store, meta.id, 64).await.expect("a read"), image(n, 100));
    }
}

/// Megabytes, in pieces large and small.
pub async fn a_large_image_comes_back<B: Backend>(backend: &B) {
    let store = open(backend).await;
    let image = image(1, (12 << 20) + 17);
    let mut writer = store.begin(meta(1)).await.expect("a writer");
    write(&mut writer, &image, 1_500_000).await.expect("the image");
    writer.publish().await.expect("a published image");
    assert!(read(&store, meta(1).id, 1 << 20).await.expect("a read") == image);
    drop(store);
    assert!(read(&open(backend).await, meta(1).id, 300_000).await.expect("a read") == image);
}

/// Refusing a read stops nothing.
pub async fn reading_an_image_that_is_not_there_is_misuse<B: Backend>(backend: &B) {
    let store = open(backend).await;
    for _ in 0..2 {
        let got = store.read(&SnapshotId(4711), 0, 10).await;
        assert!(matches!(got, Err(StorageError::Misuse(_))), "not refused as misuse: {got:?}");
        publish(&store, 1, &image(1, 100)).await.expect("a published image");
    }
    assert_latest(&store, 1, &image(1, 100)).await;
}
