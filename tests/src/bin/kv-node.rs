//! `kv-example` as it is, built as part of this package: Cargo then keeps it up to date with the tests that start it.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_example::cli::main()
}
