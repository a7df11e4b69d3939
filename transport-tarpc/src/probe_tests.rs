//! Probes on a clock that is told what time it is.

use std::future::poll_fn;

use tokio::time::{advance, timeout};

use super::*;

const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(2);

async fn verdict(probing: &mut Probing, meter: &Meter) -> Verdict {
    poll_fn(|cx| probing.poll(cx, meter)).await
}

/// Whether nothing is said for this long.
async fn is_patient(probing: &mut Probing, meter: &Meter, time: Duration) -> bool {
    timeout(time, verdict(probing, meter)).await.is_err()
}

/// A probe that is out, of 10 bytes.
async fn probed(meter: &Meter) -> Probing {
    let mut probing = Probing::new(INTERVAL, TIMEOUT);
    let begun = Instant::now();
    assert_eq!(verdict(&mut probing, meter).await, Verdict::Probe);
    assert_eq!(begun.elapsed(), INTERVAL);
    meter.asked();
    meter.turn_came();
    meter.encoded(10);
    probing
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_gone_is_given_up_after_the_timeout() {
    let meter = Meter::default();
    let mut probing = probed(&meter).await;
    meter.took(10);
    let begun = Instant::now();
    assert_eq!(verdict(&mut probing, &meter).await, Verdict::Dead(TIMEOUT));
    assert_eq!(begun.elapsed(), TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_is_probed_again_after_the_interval() {
    let meter = Meter::default();
    let mut probing = probed(&meter).await;
    meter.took(10);
    assert!(is_patient(&mut probing, &meter, TIMEOUT / 2).await);
    probing.answered();
    let begun = Instant::now();
    assert_eq!(verdict(&mut probing, &meter).await, Verdict::Probe);
    assert_eq!(begun.elapsed(), INTERVAL);
}

/// Messages that are sent meanwhile go into the system's buffers, and prove nothing.
#[tokio::test(start_paused = true)]
async fn what_is_written_behind_the_probe_is_no_sign_of_life() {
    let meter = Meter::default();
    let mut probing = probed(&meter).await;
    meter.took(10);
    assert!(is_patient(&mut probing, &meter, TIMEOUT / 2).await);
    meter.encoded(1000);
    meter.took(1000);
    let begun = Instant::now();
    assert_eq!(verdict(&mut probing, &meter).await, Verdict::Dead(TIMEOUT));
    assert_eq!(begun.elapsed(), TIMEOUT / 2);
}

#[tokio::test(start_paused = true)]
async fn a_slow_link_is_given_time_while_bytes_move() {
    let meter = Meter::default();
    meter.encoded(1000);
    let mut probing = probed(&meter).await;
    for _ in 0..10 {
        meter.took(100);
        assert!(is_patient(&mut probing, &meter, TIMEOUT * 9 / 10).await);
    }
    // The probe itself: from now on its time counts.
    meter.took(10);
    assert!(is_patient(&mut probing, &meter, TIMEOUT * 9 / 10).await);
    advance(TIMEOUT / 5).await;
    assert_eq!(verdict(&mut probing, &meter).await, Verdict::Dead(TIMEOUT));
}

#[tokio::test(start_paused = true)]
async fn a_link_that_takes_nothing_any_more_is_given_up() {
    let meter = Meter::default();
    meter.encoded(1000);
    let mut probing = probed(&meter).await;
    meter.took(100);
    assert!(is_patient(&mut probing, &meter, TIMEOUT * 3 / 2).await);
    assert_eq!(verdict(&mut probing, &meter).await, Verdict::Dead(TIMEOUT));
}

#[tokio::test(start_paused = true)]
async fn answers_to_other_things_are_signs_of_life() {
    let meter = Meter::default();
    let mut probing = probed(&meter).await;
    meter.took(10);
    for _ in 0..5 {
        assert!(is_patient(&mut probing, &meter, TIMEOUT * 9 / 10).await);
        meter.came(1);
    }
}
