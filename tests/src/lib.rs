//! Real servers on 127.0.0.1, killed, paused, cut off and starved, under load that remembers what it was told.
//!
//! The tests themselves are in `tests/processes`; this library is what they are written with:
//!
//! * [`Cluster`] starts server processes, signals them, asks them, and leaves none behind.
//! * [`Network`] stands between the nodes and can be cut, in both directions or in one, delayed, and healed.
//! * [`Load`] writes and reads without pause, and remembers; [`Cluster::verify`] compares its memory with what every node holds, and
//!   checks that the history of a few hot keys ([`hot`]) is linearizable.
//! * [`mortal`] gives a server files on which it dies at a chosen operation of the install of an image, and [`hung`] a disk that does not answer.
//!
//! `cargo run --release -p raftkv-tests --bin chaos -- --minutes 5` does all of this at random, from a seed: see [`chaos`].
//! `cargo run --release -p raftkv-tests --bin failover` measures how long a cluster is without a leader, beside etcd's, and
//! `cargo run --release -p raftkv-tests --bin curves` how cost grows with clients, values, nodes, keys and distance: see [`curves`].
//!
//! Environment variables:
//!
//! | name | meaning |
//! |---|---|
//! | `RAFTKV_TEST_ROUNDS` | rounds of `kill -9`, and of losses of power; by default a few |
//! | `RAFTKV_AWAY_ENTRIES` | how many entries a node misses before it comes back through an image; by default 20,000 |
//! | `RAFTKV_TEST_SERVER` | what every server is made of, in its own options, such as `--store redb --engine redb`; `tests/matrix.sh` goes through all |
//! | `RAFTKV_TEST_SEED` | the seed that a test printed, to hurt the same nodes again |
//! | `RAFTKV_TEST_FAILOVER_MS` | how long a failover may take, for machines slower than usual; default 2000 |
//! | `RAFTKV_TEST_KEEP` | keep the data and logs of a test that failed, and say where they are |

pub mod chaos;
pub mod client;
mod cluster;
pub mod curves;
pub mod disk;
mod etcd;
pub mod history;
pub mod hot;
pub mod hung;
mod load;
#[cfg(target_os = "linux")]
pub mod lossy_disk;
pub mod mortal;
mod network;
mod ports;
pub mod process;
pub mod simulation;
mod watched;

pub use cluster::{Cluster, ClusterOptions, Leader, PATIENCE, stack};
pub use etcd::Etcd;
pub use load::{History, Load, LoadOptions};
pub use network::Network;
pub use ports::Port;

/// A number from the environment, or else this one.
///
/// # Errors
/// The variable holds something else.
pub fn number_from_env(name: &str, default: u64) -> anyhow::Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| anyhow::anyhow!("{name}={text:?} is not a whole number")),
        Err(_) => Ok(default),
    }
}
