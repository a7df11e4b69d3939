//! Who may be connected: so many in all, so many of one address, and only so many that have not begun.
//!
//! Whoever opens connections from a few addresses and says nothing must not take the places of those who do. So a connection waits until it has begun, which
//! is for its protocol to say. Only so many may wait, and when one more comes, the one that has waited longest goes: honest ones begin at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::shares::{Exhausted, Share, Shares};

/// Places for connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Entrance(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Shares,
    most_waiting: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// How many have come so far.
    came: u64,
    /// Those that have not begun, by when they came.
    by_age: BTreeMap<u64, Seat>,
}

/// The place of a connection that waits.
#[derive(Debug)]
struct Seat {
    share: Share,
    gone: oneshot::Sender<()>,
}

/// A connection that was let in.
#[derive(Debug)]
pub struct Visitor {
    /// Its place.
    pub place: Place,
    /// When it must go.
    pub eviction: Eviction,
}

/// The place of one connection. Clones are the same: it is given back when the last one is dropped, or at once when the connection must go.
#[derive(Clone, Debug)]
pub struct Place(Arc<Held>);

#[derive(Debug)]
struct Held {
    entrance: Entrance,
    number: u64,
    /// There once the connection has begun.
    begun: OnceLock<Share>,
}

/// Completes when a connection that has not begun must go. Whoever serves it closes it then, and need not tell anybody.
#[derive(Debug)]
pub struct Eviction(State);

#[derive(Debug)]
enum State {
    Waiting(oneshot::Receiver<()>),
    Begun,
    Gone,
}

impl Entrance {
    /// For so many connections in all, so many of one address, and so many that have not begun.
    #[must_use]
    pub fn new(most: usize, of_address: usize, most_waiting: usize) -> Self {
        let places = Shares::new(most, of_address);
        Self(Arc::new(Inner { places, most_waiting: most_waiting.max(1), waiting: Mutex::default() }))
    }

    /// Lets a connection in, which has yet to begin. Tells whether another one had to go for it.
    ///
    /// # Errors
    /// There is no place left.
    pub fn enter(&self, from: Option<IpAddr>) -> Result<(Visitor, bool), Exhausted> {
        let mut made_room = false;
        let mut share = self.0.places.take(from, 1);
        if matches!(share, Err(Exhausted::All(_))) {
            made_room = self.end_oldest();
            share = self.0.places.take(from, 1);
        }
        let share = share?;
        if self.waiting().by_age.len() >= self.0.most_waiting {
            made_room |= self.end_oldest();
        }
        let (gone, going) = oneshot::channel();
        let mut waiting = self.waiting();
        waiting.came += 1;
        let number = waiting.came;
        waiting.by_age.insert(number, Seat { share, gone });
        let place = Place(Arc::new(Held { entrance: self.clone(), number, begun: OnceLock::new() }));
        Ok((Visitor { place, eviction: Eviction(State::Waiting(going)) }, made_room))
    }

    /// How many places are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.places.taken()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection that has waited longest, if there is one.
    fn end_oldest(&self) -> bool {
        let Some((_, Seat { share, gone })) = self.waiting().by_age.pop_first() else { return false };
        drop(share);
        // It may be ending by itself.
        let _ = gone.send(());
        true
    }
}

impl Place {
    /// The connection has begun: it need not go for others any more. Tells whether it still has its place.
    pub fn begin(&self) -> bool {
        let seat = self.0.entrance.waiting().by_age.remove(&self.0.number);
        self.0.begun.get().is_some() || seat.is_some_and(|seat| self.0.begun.set(seat.share).is_ok())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let seat = self.entrance.waiting().by_age.remove(&self.number);
        drop(seat);
    }
}

impl Future for Eviction {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let State::Waiting(going) = &mut self.0
            && let Poll::Ready(outcome) = Pin::new(going).poll(cx)
        {
            self.0 = if outcome.is_ok() { State::Gone } else { State::Begun };
        }
        if matches!(self.0, State::Gone) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn enter(entrance: &Entrance, address: u8) -> (Visitor, bool) {
        entrance.enter(Some([10, 0, 0, address].into())).unwrap()
    }

    fn must_go(visitor: &mut Visitor) -> bool {
        // Asked again it says the same.
        let first = (&mut visitor.eviction).now_or_never();
        assert_eq!((&mut visitor.eviction).now_or_never(), first);
        first.is_some()
    }

    #[test]
    fn the_one_that_waits_longest_goes_and_none_that_has_begun() {
        let entrance = Entrance::new(9, 9, 2);
        let (mut first, made_room) = enter(&entrance, 1);
        assert!(first.place.begin() && first.place.clone().begin() && !made_room);
        let [(mut second, before), (mut third, then), (mut fourth, last)] = [(); 3].map(|()| enter(&entrance, 1));
        assert_eq!([before, then, last], [false, false, true]);
        assert_eq!(entrance.taken(), 3, "the place of the one that has to go is free at once");
        assert_eq!([&mut first, &mut second, &mut third, &mut fourth].map(must_go), [false, true, false, false]);
        assert!(!second.place.begin(), "it comes too late");
        drop((first, second, third));
        assert_eq!(entrance.taken(), 1);
        drop(fourth);
        assert!(entrance.taken() == 0 && entrance.waiting().by_age.is_empty());
    }

    #[test]
    fn when_all_places_are_taken_one_that_has_not_begun_makes_room_if_there_is_one() {
        let entrance = Entrance::new(3, 2, 3);
        let ((mut first, _), (second, _)) = (enter(&entrance, 1), enter(&entrance, 1));
        assert_eq!(
            entrance.enter(Some([10, 0, 0, 1].into())).unwrap_err(),
            Exhausted::Address([10, 0, 0, 1].into(), 2)
        );
        assert!(second.place.begin());
        let (third, made_room) = enter(&entrance, 2);
        assert!(third.place.begin() && !made_room && !must_go(&mut first));
        let (fourth, made_room) = enter(&entrance, 2);
        assert!(made_room && must_go(&mut first) && fourth.place.begin());
        assert_eq!(entrance.enter(Some([10, 0, 0, 3].into())).unwrap_err(), Exhausted::All(3));
    }

    /// Else whoever has all that it may have could end the connections of others, one by one, and gain nothing.
    #[test]
    fn an_address_that_has_its_part_makes_nobody_go() {
        let entrance = Entrance::new(2, 1, 2);
        let ((mut other, _), (own, _)) = (enter(&entrance, 1), enter(&entrance, 2));
        assert!(own.place.begin());
        for _ in 0..3 {
            let refused = entrance.enter(Some([10, 0, 0, 2].into())).unwrap_err();
            assert_eq!(refused, Exhausted::Address([10, 0, 0, 2].into(), 1));
        }
        assert!(!must_go(&mut other) && other.place.begin(), "it was to go for one that was refused");
    }

    #[tokio::test]
    async fn whoever_serves_a_connection_is_woken_when_it_must_go() {
        let entrance = Entrance::new(1, 1, 1);
        let (visitor, _) = enter(&entrance, 1);
        let waiting = tokio::spawn(visitor.eviction);
        tokio::task::yield_now().await;
        let _second = enter(&entrance, 2);
        waiting.await.unwrap();
    }
}
