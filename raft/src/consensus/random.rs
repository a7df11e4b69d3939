//! Randomness as a value: the same seed gives the same draws, everywhere and for ever.

use std::time::Duration;

use crate::mutant;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Any number.
    pub(crate) fn any(&mut self) -> u64 {
        self.next()
    }

    /// A duration from `least` up to, but not including, twice of it.
    pub(crate) fn once_to_twice(&mut self, least: Duration) -> Duration {
        let micros = u64::try_from(least.as_micros()).unwrap_or(u64::MAX).max(1);
        if mutant!("timeouts-in-step") {
            return least;
        }
        least.saturating_add(Duration::from_micros(self.next() % micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_spread_over_once_to_twice() {
        let least = Duration::from_millis(100);
        let mut random = Random::new(7);
        let draws: Vec<_> = (0..1000).map(|_| random.once_to_twice(least)).collect();
        assert!(draws.iter().all(|d| (least..least * 2).contains(d)));
        assert!(draws.iter().any(|d| *d < least * 11 / 10) && draws.iter().any(|d| *d > least * 19 / 10));
    }
}
