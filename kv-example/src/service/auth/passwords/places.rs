//! Who may wait for a hash.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use raftkv::transport_kit::{Exhausted, Share, Shares};
use tonic::Status;

use super::super::super::refused::too_many_logins;
use super::Asker;

/// So many places, of which one address may have a part, and one name.
#[derive(Clone, Debug)]
pub(super) struct Places {
    all: Shares,
    of_name: usize,
    /// None has an entry that has nothing, so there are no more than there are places.
    names: Arc<Mutex<HashMap<String, usize>>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _share: Share,
    of: Places,
    name: String,
}

impl Places {
    pub(super) fn new(all: usize, of_address: usize, of_name: usize) -> Self {
        Self { all: Shares::new(all, of_address), of_name, names: Arc::default() }
    }

    /// # Errors
    /// There is none left for them, or for anybody.
    pub(super) fn take(&self, Asker { from, name }: Asker) -> Result<Place, Status> {
        let share = self.all.take(from, 1).map_err(|full| match full {
            Exhausted::All(_) => too_many_logins("many log in at the same time; try again later, or at another node"),
            Exhausted::Address(..) => too_many_logins(
                "many log in from this address at the same time (--max-address-percent); try again later",
            ),
        })?;
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = names.entry(name.clone()).or_default();
        if *taken >= self.of_name {
            return Err(too_many_logins(
                "many log in as this user at the same time; try again later, or at another node",
            ));
        }
        *taken += 1;
        drop(names);
        Ok(Place { _share: share, of: self.clone(), name })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut names = self.of.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = names.get_mut(&self.name) {
            *taken -= 1;
            if *taken == 0 {
                names.remove(&self.name);
            }
        }
    }
}
