//! Unfinished images, and those that replace each other.

use super::*;

/// Before it is published, an image is neither the latest nor to be read, also after reopening.
pub async fn an_unfinished_image_is_never_visible<B: Backend>(backend: &B) {
    let (old, new) = (image(1, 3000), image(2, 3000));
    for published in [None, Some(&old)] {
        let store = open(backend).await;
        if let Some(old) = published {
            publish(&store, 1, old).await.expect("a published image");
        }
        let expected = published.map(|_| meta(1));
        let mut writer = store.begin(meta(2)).await.expect("a writer");
        assert_eq!(latest(&store).await, expected);
        write(&mut writer, &new, 700).await.expect("the image");
        assert_eq!(latest(&store).await, expected);
        assert!(store.read(&meta(2).id, 0, 10).await.is_err(), "bytes of an unfinished image were read");
        drop(writer);
        assert_eq!(latest(&store).await, expected);
        drop(store);
        let store = open(backend).await;
        assert_eq!(latest(&store).await, expected);
        assert!(store.read(&meta(2).id, 0, 10).await.is_err(), "bytes of an unfinished image were read");
    }
    assert_latest(&open(backend).await, 1, &old).await;
}

/// A writer that begins again goes on where its offset says: at nothing that was not written.
pub async fn an_unfinished_image_is_resumed<B: Backend>(backend: &B) {
    let store = open(backend).await;
    let image = image(1, 600_000);
    let mut writer = store.begin(meta(1)).await.expect("a writer");
    for (from, to) in [(0, 250_000), (250_000, 400_000)] {
        writer.append(image.slice(from..to)).await.expect("a piece");
    }
    drop(writer);
    let mut writer = store.begin(meta(1)).await.expect("a writer");
    assert_eq!(writer.checksum(), crc32c::crc32c(&image[..400_000]), "of what an earlier writer wrote");
    assert_eq!(writer.offset(), 400_000, "within one process, all that was appended is known to be durable");
    write(&mut writer, &image, 100_000).await.expect("the image");
    writer.publish().await.expect("a published image");
    assert_latest(&store, 1, &image).await;
}

/// The next process goes on as well, at an offset that may lie further back.
pub async fn an_unfinished_image_is_resumed_after_reopening<B: Backend>(backend: &B) {
    let image = image(1, 2_000_000);
    let mut written = 0;
    for part in [500_000, 1_000_000, 1_999_999] {
        let store = open(backend).await;
        let mut writer = store.begin(meta(1)).await.expect("a writer");
        assert!(writer.offset() <= written, "{} of {written} bytes are said to be there", writer.offset());
        let there = usize::try_from(writer.offset()).unwrap_or(usize::MAX);
        assert_eq!(writer.checksum(), crc32c::crc32c(&image[..there]), "of what an earlier run wrote");
        write(&mut writer, &image.slice(..part), 60_000).await.expect("the image");
        written = part as u64;
    }
    let store = open(backend).await;
    let mut writer = store.begin(meta(1)).await.expect("a writer");
    assert!(writer.offset() > 0, "a transfer that begins anew with each process never ends");
    write(&mut writer, &image, 60_000).await.expect("the image");
    writer.publish().await.expect("a published image");
    assert_latest(&store, 1, &image).await;
}

/// What was found to be damaged is forgotten, also by the next process, and takes nothing else with it.
pub async fn a_discarded_image_begins_anew<B: Backend>(backend: &B) {
    let store = open(backend).await;
    publish(&store, 1, &image(1, 3000)).await.expect("a published image");
    let mut writer = store.begin(meta(2)).await.expect("a writer");
    write(&mut writer, &image(9, 500_000), 100_000).await.expect("the image");
    writer.discard().await.expect("an image to forget");
    assert_latest(&store, 1, &image(1, 3000)).await;
    let writer = store.begin(meta(2)).await.expect("a writer");
    assert_eq!((writer.offset(), writer.checksum()), (0, 0), "of a damaged image");
    writer.discard().await.expect("an image to forget");
    drop(store);
    let store = open(backend).await;
    let writer = store.begin(meta(2)).await.expect("a writer");
    assert_eq!((writer.offset(), writer.checksum()), (0, 0), "of a damaged image, in the next process");
    drop(writer);
    publish(&store, 2, &image(2, 3000)).await.expect("a published image");
    assert_latest(&store, 2, &image(2, 3000)).await;
}

/// What is left off does not pile up, whoever gives it up: the newest at most is gone on with, and in the next process as well.
pub async fn of_unfinished_images_the_newest_is_kept<B: Backend>(backend: &B) {
    let mut store = open(backend).await;
    for reopened in [false, true] {
        let mut writers = Vec::new();
        for n in [2, 4, 3] {
            let mut writer = store.begin(meta(n)).await.expect("a writer");
            write(&mut writer, &image(n, 600_000), 100_000).await.expect("the image");
            writers.push(writer);
        }
        drop(writers);
        if reopened {
            drop(store);
            store = open(backend).await;
        }
        // An older one than what is left, so that this need not give way to it.
        drop(store.begin(meta(1)).await.expect("a writer"));
        for n in [2, 3] {
            let writer = store.begin(meta(n)).await.expect("a writer");
            assert_eq!(writer.offset(), 0, "image {n} was kept beside a newer one (reopened: {reopened})");
        }
        let writer = store.begin(meta(4)).await.expect("a writer");
        assert!(writer.offset() > 0, "the newest was not kept (reopened: {reopened})");
        writer.discard().await.expect("an image to forget");
    }
}

/// A node takes an image while it receives another: neither is in the other's way.
pub async fn two_images_are_written_side_by_side<B: Backend>(backend: &B) {
    let store = open(backend).await;
    let (one, two) = (image(1, 300_000), image(2, 400_000));
    let mut first = store.begin(meta(1)).await.expect("a writer");
    write(&mut first, &one.slice(..100_000), 50_000).await.expect("a piece");
    let mut second = store.begin(meta(2)).await.expect("a writer");
    write(&mut second, &two.slice(..200_000), 50_000).await.expect("a piece");
    // What is begun and left off beside them takes neither away.
    drop(store.begin(meta(3)).await.expect("a writer"));
    write(&mut first, &one, 100_000).await.expect("a writer goes on beside another");
    write(&mut second, &two, 100_000).await.expect("a writer goes on beside another");
    first.publish().await.expect("a published image");
    assert_latest(&store, 1, &one).await;
    second.publish().await.expect("a published image");
    assert_latest(&store, 2, &two).await;
}

/// What was left of another image under the same name is not gone on with.
pub async fn another_meta_begins_anew<B: Backend>(backend: &B) {
    let store = open(backend).await;
    let mut writer = store.begin(meta(1)).await.expect("a writer");
    write(&mut writer, &image(1, 5000), 1000).await.expect("the image");
    drop(writer);
    let other = SnapshotMeta { last: LogId::new(9, 99), ..meta(1) };
    let mut writer = store.begin(other.clone()).await.expect("a writer");
    assert_eq!(writer.offset(), 0);
    write(&mut writer, &image(2, 3000), 1000).await.expect("the image");
    writer.publish().await.expect("a published image");
    assert_eq!(latest(&store).await, Some(other));
    assert!(read(&store, meta(1).id, 640).await.expect("a read") == image(2, 3000));
}

/// Publishing moves the latest, once the image is whole, and time after time.
pub async fn a_newer_image_replaces_an_older_one<B: Backend>(backend: &B) {
    let mut store = open(backend).await;
    for n in 1..=6 {
        let image = image(n, 1000 * usize::try_from(n).unwrap_or(1));
        publish(&store, n, &image).await.expect("a published image");
        assert_latest(&store, n, &image).await;
        if n % 2 == 0 {
            drop(store);
            store = open(backend).await;
            assert_latest(&store, n, &image).await;
        }
    }
}

/// An image that comes too late is dropped: the state never goes back.
pub async fn an_older_image_does_not_replace_a_newer_one<B: Backend>(backend: &B) {
    let store = open(backend).await;
    let newer = image(5, 2000);
    publish(&store, 5, &newer).await.expect("a published image");
    // Whether it is refused, or taken and dropped, is up to the store.
    let _ = publish(&store, 3, &image(3, 2000)).await;
    assert_latest(&store, 5, &newer).await;
    drop(store);
    let store = open(backend).await;
    assert_latest(&store, 5, &newer).await;
    publish(&store, 6, &image(6, 10)).await.expect("nothing is stopped by it");
    assert_latest(&store, 6, &image(6, 10)).await;
}

/// A node takes an image of its own of an entry of which it also receives one, and goes by the one that it published last.
pub async fn of_two_images_of_one_entry_the_later_one_stays<B: Backend>(backend: &B) {
    let mut store = open(backend).await;
    for n in 1..=12 {
        // Ids are random, so the later one may have the lesser.
        let meta = SnapshotMeta { id: meta(n).id, ..meta(1) };
        let image = image(n, if n % 3 == 0 { 300_000 } else { 200 });
        let mut writer = store.begin(meta.clone()).await.expect("a writer");
        write(&mut writer, &image, 100_000).await.expect("the image");
        writer.publish().await.expect("a published image");
        if n % 4 == 0 {
            drop(store);
            store = open(backend).await;
        }
        assert_eq!(latest(&store).await, Some(meta.clone()), "image {n}");
        assert!(read(&store, meta.id, 100_000).await.expect("a read") == image, "the bytes of image {n} changed");
    }
}

/// A node publishes an image of its own while it publishes one that it received, and the store works on both at once: the newer one stays,
/// whichever began first, and is the latest from the moment on when it is published.
pub async fn of_two_images_published_at_once_the_newer_one_stays<B: Backend>(backend: &B) {
    let store = open(backend).await;
    let mut n = 1;
    for (of_older, of_newer) in [(200, 200), (200, 300_000), (300_000, 200), (300_000, 300_000)] {
        for newer_first in [true, false, true, false, true, false] {
            let (older, newer) = (image(n, of_older), image(n + 1, of_newer));
            let mut first = store.begin(meta(n)).await.expect("a writer");
            write(&mut first, &older, 100_000).await.expect("the image");
            let mut second = store.begin(meta(n + 1)).await.expect("a writer");
            write(&mut second, &newer, 100_000).await.expect("the image");
            let (first, second) = (first.publish(), second.publish());
            // Whether the older one is refused, or taken and dropped, is up to the store.
            let (_, published) = if newer_first {
                let (published, late) = tokio::join!(second, first);
                (late, published)
            } else {
                tokio::join!(first, second)
            };
            published.expect("the newer image");
            assert_latest(&store, n + 1, &newer).await;
            n += 2;
        }
    }
    drop(store);
    let store = open(backend).await;
    assert_latest(&store, n - 1, &image(n - 1, 300_000)).await;
    publish(&store, n, &image(n, 10)).await.expect("nothing is stopped by it");
    assert_latest(&store, n, &image(n, 10)).await;
}

/// A newer image is begun while another is unfinished, and is published first.
pub async fn two_images_may_be_written_in_quick_succession<B: Backend>(backend: &B) {
    let store = open(backend).await;
    let (one, two, three) = (image(1, 4000), image(2, 4000), image(3, 4000));
    let mut first = store.begin(meta(1)).await.expect("a writer");
    first.append(one.slice(..2000)).await.expect("a piece");
    publish(&store, 2, &two).await.expect("a published image");
    assert_latest(&store, 2, &two).await;
    // The first one may go on, to no avail.
    if first.append(one.slice(2000..)).await.is_ok() {
        let _ = first.publish().await;
    }
    assert_latest(&store, 2, &two).await;
    publish(&store, 3, &three).await.expect("a published image");
    drop(store);
    assert_latest(&open(backend).await, 3, &three).await;
}

/// Two writers of one image would tear it: the one that began last has it.
pub async fn a_writer_that_was_replaced_writes_no_more<B: Backend>(backend: &B) {
    let store = open(backend).await;
    let image = image(1, 2000);
    let mut first = store.begin(meta(1)).await.expect("a writer");
    first.append(image.slice(..500)).await.expect("a piece");
    let mut second = store.begin(meta(1)).await.expect("a writer");
    assert_eq!(second.offset(), 500);
    assert!(first.append(image.slice(500..600)).await.is_err(), "two writers write one image");
    write(&mut second, &image, 300).await.expect("the image");
    assert!(first.publish().await.is_err(), "a writer published what another was writing");
    assert_eq!(latest(&store).await, None);
    second.publish().await.expect("a published image");
    assert_latest(&store, 1, &image).await;
}

/// Whoever reads while images come and go gets right bytes, or is told that the image is gone.
pub async fn readers_run_beside_a_writer<B: Backend>(backend: &B) {
    const IMAGES: u64 = 30;
    let store = std::sync::Arc::new(open(backend).await);
    publish(&store, 1, &image(1, 20_000)).await.expect("a published image");
    let writer = store.clone();
    let writing = tokio::spawn(async move {
        for n in 2..=IMAGES {
            publish(&writer, n, &image(n, 20_000)).await.expect("a published image");
            tokio::task::yield_now().await;
        }
    });
    let (mut rounds, mut whole, mut newest) = (0, 0, 1);
    while rounds < 3 || !writing.is_finished() {
        let meta = latest(&store).await.expect("there is always one");
        let n = meta.last.index.0 / 10;
        assert!(n >= newest, "image {n} is the latest after {newest}");
        newest = n;
        match read(&store, meta.id, 3000).await {
            Ok(got) => {
                assert!(got == image(n, 20_000), "the bytes of image {n} changed");
                whole += 1;
            }
            Err(error) => assert!(matches!(error, StorageError::Misuse(_)), "{error}"),
        }
        rounds += 1;
        tokio::task::yield_now().await;
    }
    writing.await.expect("the writer");
    assert!(whole > 0, "no reader ever came to an end");
    assert_latest(&store, IMAGES, &image(IMAGES, 20_000)).await;
}
