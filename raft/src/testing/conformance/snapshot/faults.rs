//! Kills, losses of power, errors and damage, for stores that offer the seams.

use super::*;

/// How often a store is opened, used and cut off in one case.
const ROUNDS: u64 = 300;
/// How many operations pass at most before the fault.
const OPERATIONS: u64 = 20;
const SIZE: usize = 2500;

async fn at_any_point<B: Backend>(backend: &B, fault: Fault) {
    let mut random = Random::new(2014);
    // Which image may be the latest; 0 is none.
    let mut possible = vec![0];
    let mut newest = 0;
    let mut reached = 0;
    for round in 0..ROUNDS {
        let store = open(backend).await;
        let found = latest(&store).await.map_or(0, |meta| meta.last.index.0 / 10);
        assert!(
            possible.contains(&found),
            "{fault:?} in round {round} left image {found}, and not one of {possible:?}"
        );
        if found > 0 {
            assert_latest(&store, found, &image(found, SIZE)).await;
        }
        if !backend.arm(fault, random.below(OPERATIONS)) {
            return not_tested(&format!("{fault:?}"));
        }
        // Half of the time the image that was cut off is gone on with; what it became until now is durable, or is gone.
        let first = if random.percent(50) && newest > found { newest } else { newest + 1 };
        for next in first..first + OPERATIONS {
            newest = next;
            if publish(&store, next, &image(next, SIZE)).await.is_err() {
                possible.push(next);
                reached += 1;
                assert!(store.begin(meta(next + 1)).await.is_err(), "an image was begun after {fault:?}");
                break;
            }
            possible = vec![next];
        }
    }
    assert!(
        reached > ROUNDS / 4,
        "only {reached} of {ROUNDS} faults reached the store: does `arm` count its operations?"
    );
}

/// At whatever operation the process is killed, the latest image is whole afterwards: the one that was published last, or the
/// one that was just being published. One that was cut off can be gone on with.
pub async fn a_kill_at_any_point_leaves_a_whole_image<B: Backend>(backend: &B) {
    at_any_point(backend, Fault::Kill).await;
}

/// The same when power is lost.
pub async fn a_loss_of_power_at_any_point_leaves_a_whole_image<B: Backend>(backend: &B) {
    at_any_point(backend, Fault::PowerLoss).await;
}

/// After an error, at any operation, no image is begun or published, and the latest is whole for the next process.
pub async fn an_error_at_any_point_sticks_and_leaves_a_whole_image<B: Backend>(backend: &B) {
    at_any_point(backend, Fault::Error).await;
}

/// A process that was killed while it published may have left the newer image's name in the page cache alone. The next one must not remove the older image on its account before
/// that name is on the disk: the log is cut up to there.
pub async fn a_loss_of_power_while_the_store_is_opened_after_a_kill_leaves_an_image<B: Backend>(backend: &B) {
    /// There is one moment at which a kill is dangerous, and one at which the loss of power is: small images and many rounds come to it.
    const ROUNDS: u64 = 600;
    const SIZE: usize = 100;
    let mut random = Random::new(2023);
    let (mut newest, mut reached) = (1, 0);
    publish(&open(backend).await, newest, &image(newest, SIZE)).await.expect("a published image");
    for round in 0..ROUNDS {
        let store = open(backend).await;
        if !backend.arm(Fault::Kill, random.below(OPERATIONS)) {
            return not_tested(&format!("{:?}", Fault::Kill));
        }
        let mut cut_off = newest;
        for _ in 0..OPERATIONS {
            cut_off += 1;
            if publish(&store, cut_off, &image(cut_off, SIZE)).await.is_err() {
                break;
            }
            newest = cut_off;
        }
        // Mostly early: to open a store may take one operation or many.
        let after = random.below(8);
        if !backend.arm_opening(Fault::PowerLoss, random.below(after + 1)) {
            return not_tested("a fault while a store is opened");
        }
        drop(store);
        reached += u64::from(backend.open().await.is_err());
        let store = open(backend).await;
        let found = latest(&store).await.map_or(0, |meta| meta.last.index.0 / 10);
        assert!(
            [newest, cut_off].contains(&found),
            "round {round} left image {found}, and neither {newest} nor {cut_off}"
        );
        assert_latest(&store, found, &image(found, SIZE)).await;
        newest = found;
    }
    assert!(
        reached > ROUNDS / 4,
        "only {reached} of {ROUNDS} faults came while the store was opened: does `arm_opening` count its operations?"
    );
}

/// What is found of an image that was cut off may be in the page cache alone, and no later sync brings it out where one has failed. Once the image is published it is on the disk all the
/// same: the log is cut up to there.
pub async fn an_image_that_a_kill_or_an_error_cut_off_outlasts_a_loss_of_power_once_it_is_published<B: Backend>(
    backend: &B,
) {
    let mut random = Random::new(2018);
    let (mut newest, mut reached) = (0, 0);
    for _ in 0..ROUNDS {
        let fault = random.pick(&[Fault::Kill, Fault::Error]).unwrap_or(Fault::Kill);
        let store = open(backend).await;
        if !backend.arm(fault, random.below(OPERATIONS)) {
            return not_tested(&format!("{fault:?}"));
        }
        for _ in 0..OPERATIONS {
            newest += 1;
            if publish(&store, newest, &image(newest, SIZE)).await.is_err() {
                reached += 1;
                break;
            }
        }
        drop(store);
        let store = open(backend).await;
        if latest(&store).await != Some(meta(newest)) {
            publish(&store, newest, &image(newest, SIZE)).await.expect("the image that was cut off");
        }
        if !backend.arm(Fault::PowerLoss, 0) {
            return not_tested(&format!("{:?}", Fault::PowerLoss));
        }
        drop(store);
        assert_latest(&open(backend).await, newest, &image(newest, SIZE)).await;
    }
    assert!(
        reached > ROUNDS / 4,
        "only {reached} of {ROUNDS} faults reached the store: does `arm` count its operations?"
    );
}

/// Wherever a bit of an image flips, what is read of it is right, or an error: a damaged image spreads to no other node.
pub async fn damage_is_noticed<B: Backend>(backend: &B) {
    const PLACES: u64 = 500;
    let expected = image(1, SIZE);
    publish(&open(backend).await, 1, &expected).await.expect("a published image");
    let mut random = Random::new(1);
    let mut noticed = 0;
    for _ in 0..PLACES {
        let place = random.any();
        let store = open(backend).await;
        if !backend.damage(place) {
            return not_tested("damage");
        }
        let mut outcomes = vec![read(&store, meta(1).id, 640).await];
        drop(store);
        outcomes.push(match backend.open().await {
            Ok(store) => read(&store, meta(1).id, 640).await,
            Err(error) => Err(error),
        });
        for outcome in &outcomes {
            match outcome {
                Ok(got) => assert!(*got == expected, "damage at {place} was returned as if it were right"),
                Err(error) => assert!(matches!(error, StorageError::Corrupt { .. }), "damage at {place} gave: {error}"),
            }
        }
        noticed += u64::from(outcomes.iter().any(Result::is_err));
        backend.damage(place);
    }
    assert!(
        noticed > PLACES / 2,
        "only {noticed} of {PLACES} flipped bits were noticed: does `damage` reach the image?"
    );
    assert_latest(&open(backend).await, 1, &expected).await;
}
