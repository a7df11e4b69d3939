//! The `kv-example` command. Everything is in the library; see `kv-example --help`.

use std::process::ExitCode;

// A put allocates some dozens of times, and often frees on another thread: glibc's allocator takes a quarter of the servers' time for that.
#[cfg(all(feature = "jemalloc", unix))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What jemalloc reads when it starts (`_RJEM_MALLOC_CONF` overrides it):
/// * As many arenas as threads that serve where nobody says how many, half of the cores, and not eight times as many: what one thread has freed, others take.
/// * Pages that are not used go back to the system after a second, and not after ten and another ten; where they are 4 MiB in a row, at once. What takes more than that
///   has an arena of its own, and comes from the system each time.
///
/// Without these, answers out of a database took twice the memory. Writes of a MiB are a twelfth fewer for it, where nothing else limits them; from 2 MiB in a row on, they
/// would take a seventh more of the processor. (jemalloc
/// looks at the cores that the process may run on, and not at a container's quota: there are more arenas then.)
#[cfg(all(feature = "jemalloc", unix))]
#[expect(
    unsafe_code,
    reason = "the name is jemalloc's, and nobody else's: its crate puts the prefix before all of its names"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
static CONFIGURATION: &[u8; 82] =
    b"narenas_ratio:0.5,oversize_threshold:4194304,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    kv_example::cli::main()
}
