//! Losses of power to be tried at one moment.

use raftkv::testing::Random;

use super::{Fate, Moment, SimDisk};

/// Patterns of damage for so many pending sectors, lengths and names: all of a kind; up to a place, from a place on, and at a single one; and some by chance.
/// The places are all there are, or so many of them.
#[must_use]
pub fn patterns(pending: usize, random: &mut Random, by_chance: usize, places: Option<usize>) -> Vec<Vec<Fate>> {
    if pending == 0 {
        return vec![Vec::new()];
    }
    let mut out = [Fate::Lost, Fate::Kept, Fate::Garbage, Fate::Early].map(|fate| vec![fate; pending]).to_vec();
    let mut place = || usize::try_from(random.below(pending as u64)).unwrap_or_default();
    let places: Vec<usize> = match places {
        Some(some) => (0..some).map(|_| place()).collect(),
        None => (0..pending).collect(),
    };
    for at in places {
        let mut prefix = vec![Fate::Lost; pending];
        prefix[..at].fill(Fate::Kept);
        out.push(prefix.clone());
        prefix[at] = Fate::Garbage;
        out.push(prefix);
        let mut suffix = vec![Fate::Kept; pending];
        suffix[..at].fill(Fate::Lost);
        out.push(suffix);
        for single in [Fate::Lost, Fate::Garbage, Fate::Early] {
            let mut one = vec![Fate::Kept; pending];
            one[at] = single;
            out.push(one);
        }
    }
    let fates = [Fate::Lost, Fate::Kept, Fate::Garbage, Fate::Early, Fate::Kept];
    for _ in 0..by_chance {
        out.push((0..pending).filter_map(|_| random.pick(&fates)).collect());
    }
    out
}

impl Moment {
    /// The disk after a loss of power at this moment, at which each of [`Moment::pending`] meets its fate, in that order. What there is none for is lost.
    #[must_use]
    pub fn suffer(&self, fates: &[Fate]) -> SimDisk {
        let mut fates = fates.iter().copied();
        self.lose_power(|_| fates.next().unwrap_or(Fate::Lost))
    }
}
