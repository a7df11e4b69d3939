//! `kv-example` as it is, built as part of this package: Cargo then keeps it up to date with the tests that start it. Only a test that names
//! [`DIE_AT`](raftkv_tests::mortal::DIE_AT) gives it files on which it dies, and one that names [`HUNG_WHILE`](raftkv_tests::hung::HUNG_WHILE) a disk that does not answer.

use std::process::ExitCode;
use std::sync::Arc;

use raftkv_tests::hung;
use raftkv_tests::mortal::Mortal;

fn main() -> ExitCode {
    match Mortal::from_env().or_else(hung::from_env) {
        Some(files) => kv_example::cli::main_on(Arc::new(files)),
        None => kv_example::cli::main(),
    }
}
