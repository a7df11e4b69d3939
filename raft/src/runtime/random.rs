//! Seeds. The only randomness of a node; a simulation gives its own.

use std::hash::{BuildHasher, RandomState};

/// Differs from run to run and from process to process.
#[expect(clippy::disallowed_methods, reason = "a node of the real world; those of a simulation are given their seeds")]
pub(crate) fn seed() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Another number that looks random, always the same for the same seed (splitmix64's output function).
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
