//! Named sets of bounds.

use super::bounds::Bounds;

/// Some searches.
#[derive(Clone, Debug)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// The searches.
    pub searches: Vec<Bounds>,
}

/// All presets.
#[must_use]
pub fn presets() -> Vec<Preset> {
    vec![Preset { name: "tiny", searches: tiny() }]
}

/// For a debug build, in seconds.
fn tiny() -> Vec<Bounds> {
    vec![
        Bounds { in_flight: 3, ..Bounds::new("elections") },
        Bounds { nodes: 2, crashes: 1, slow_disks: 3, in_flight: 3, ..Bounds::new("two nodes that crash") },
    ]
}
