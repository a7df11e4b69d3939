//! The `kv-example` command. Everything is in the library; see `kv-example --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_example::cli::main()
}
