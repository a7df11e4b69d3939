//! Where connections wait that have not begun: no handshake of TLS is done, or nothing of HTTP/2 was said.
//!
//! Whoever opens connections from a few addresses and says nothing must not take the places of those who do. So only so many connections may wait, and when
//! one more comes, the one that has waited longest goes: honest clients begin at once.

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raftkv::transport_kit::Share;

/// Those who wait. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Anteroom(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    waiting: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// How many have come so far.
    came: u64,
    /// By when they came, with a handle of each connection to end it by.
    by_age: BTreeMap<u64, (TcpStream, Place)>,
}

/// The place of a connection among all that there may be. Clones are the same: whoever is ended gives it up at once, and not only once its task has noticed.
#[derive(Clone, Debug)]
pub(crate) struct Place(Arc<Mutex<Option<Share>>>);

impl Place {
    pub(super) fn new(share: Share) -> Self {
        Self(Arc::new(Mutex::new(Some(share))))
    }

    fn give_up(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// A connection that waits, until this is dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    room: Anteroom,
    number: u64,
}

impl Anteroom {
    /// For so many at most.
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Inner { most: most.max(1), waiting: Mutex::default() }))
    }

    fn waiting(&self) -> MutexGuard<'_, Queue> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection wait. Tells whether another one had to go for it.
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub(super) fn enter(&self, connection: &impl AsFd, place: Place) -> io::Result<(Waiting, bool)> {
        let handle = connection.as_fd().try_clone_to_owned()?.into();
        let is_full = self.waiting().by_age.len() >= self.0.most;
        let made_room = is_full && self.end_oldest();
        let mut waiting = self.waiting();
        waiting.came += 1;
        let number = waiting.came;
        waiting.by_age.insert(number, (handle, place));
        Ok((Waiting { room: self.clone(), number }, made_room))
    }

    /// Ends the connection that has waited longest, if there is one.
    pub(super) fn end_oldest(&self) -> bool {
        let oldest = self.waiting().by_age.pop_first();
        // Whoever reads from it sees its end. One that has ended already can't be ended.
        oldest.is_some_and(|(_, (connection, place))| {
            _ = connection.shutdown(Shutdown::Both);
            place.give_up();
            true
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.room.waiting().by_age.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use raftkv::transport_kit::Shares;

    use super::*;

    #[test]
    fn the_one_that_waits_longest_goes_and_no_one_that_has_begun() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let room = Anteroom::new(2);
        let places = Shares::new(9, 9);
        let place = || Place::new(places.take(None, 1).unwrap());
        let [(first, one), (second, two), (third, three), (fourth, four)] = std::array::from_fn(|_| connect());
        let (begun, made_room) = room.enter(&one, place()).unwrap();
        assert!(!made_room);
        drop(begun);
        let [(_two, before), (_three, then), (_four, last)] =
            [&two, &three, &four].map(|one| room.enter(one, place()).unwrap());
        assert_eq!([before, then, last], [false, false, true]);
        let is_open = |mut client: &TcpStream| {
            client.set_nonblocking(true).unwrap();
            client.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        assert_eq!([&first, &second, &third, &fourth].map(is_open), [true, false, true, true]);
        assert_eq!(places.taken(), 2, "the place of the one that had to go is free at once");
        assert!(room.end_oldest() && !is_open(&third));
        drop((_two, _three, _four));
        assert!(!room.end_oldest() && room.waiting().by_age.is_empty());
    }
}
