//! A disk that does not answer for as long as a test likes.

use std::path::PathBuf;
use std::time::Duration;

use crate::process::notice;
use crate::watched::Watched;

/// The environment variable that names a file: while there is one, nothing gets onto the disk of a server under test (`kv-node`).
pub const HUNG_WHILE: &str = "RAFTKV_TEST_HUNG_WHILE";

/// The disk that the environment asks for; none if it asks for none. Once somebody waits for it, that is told on standard error.
#[must_use]
pub fn from_env() -> Option<Watched> {
    let file = PathBuf::from(std::env::var_os(HUNG_WHILE)?);
    Some(Watched::new(move |operation, path| {
        if file.exists() {
            notice(&format!("the disk does not answer: {operation} {}", path.display()));
        }
        while file.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }))
}
