//! The `kv-example` command. Everything is in the library; see `kv-example --help`.

use std::process::ExitCode;

// A put allocates some dozens of times, and often frees on another thread: glibc's allocator takes a quarter of the servers' time for that.
#[cfg(all(feature = "jemalloc", unix))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What jemalloc reads when it starts: pages that are not used go back to the system after a second, and not after ten and another ten.
#[cfg(all(feature = "jemalloc", unix))]
#[expect(
    unsafe_code,
    reason = "the name is jemalloc's, and nobody else's: its crate puts the prefix before all of its names"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
static CONFIGURATION: &[u8; 37] = b"dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    kv_example::cli::main()
}
