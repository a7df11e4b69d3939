//! A client's connection lasts no longer than the certificate that was shown on it. Those between members do: their certificates may all be of one day, and the
//! cluster would be gone with it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, Sleep, sleep};

/// What the log and the client's protocol are told.
pub(super) const EXPIRED: &str =
    "the certificate that it has shown has expired meanwhile: it may connect again with another one";
/// How often the clock is looked at, which may be set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// The end of a certificate.
pub(super) struct Expiry {
    at: SystemTime,
    look: Pin<Box<Sleep>>,
}

impl Expiry {
    pub(super) fn new(at: SystemTime) -> Self {
        Self { at, look: Box::pin(sleep(left(at, SystemTime::now()).min(LOOK_EVERY))) }
    }

    /// Ready once it has come.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.look.as_mut().poll(cx));
            let left = left(self.at, SystemTime::now());
            if left.is_zero() {
                return Poll::Ready(());
            }
            self.look.as_mut().reset(Instant::now() + left.min(LOOK_EVERY));
        }
    }
}

/// How long a certificate is still good. It is for the whole of its last second.
fn left(at: SystemTime, now: SystemTime) -> Duration {
    (at + Duration::from_secs(1)).duration_since(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn it_comes_when_the_last_second_is_over() {
        let at = SystemTime::now() + Duration::from_secs(1);
        let mut expiry = Expiry::new(at);
        poll_fn(|cx| expiry.poll(cx)).await;
        assert!(SystemTime::now() >= at + Duration::from_secs(1));
        // It stays so, and has been for those that come too late.
        poll_fn(|cx| expiry.poll(cx)).await;
        let mut past = Expiry::new(at - Duration::from_secs(3600));
        poll_fn(|cx| past.poll(cx)).await;
    }

    #[test]
    fn a_certificate_is_good_for_the_whole_of_its_last_second() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        let after = |millis| left(at, at + Duration::from_millis(millis));
        assert_eq!([after(0), after(999), after(1000), after(5000)].map(|left| left.as_millis()), [1000, 1, 0, 0]);
    }
}
