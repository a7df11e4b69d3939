//! Logs for people, on stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// What is logged when nobody says otherwise: this product's own events, and only warnings of the libraries below.
const DEFAULT: &str = "info,h2=warn,hyper=warn,tonic=warn,tower=warn";

/// Starts logging to stderr. `level` beats `RUST_LOG`, which beats the default of `info`.
///
/// # Errors
/// The directives can't be read, or logging was started before.
pub fn start(level: Option<&str>) -> Result<(), String> {
    let rust_log = std::env::var("RUST_LOG").ok().filter(|value| !value.is_empty());
    let filter = match (level, rust_log) {
        (Some(directives), _) => parse(directives)?,
        (None, Some(directives)) => parse(&directives).map_err(|e| format!("environment variable RUST_LOG: {e}"))?,
        (None, None) => parse(DEFAULT)?,
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .try_init()
        .map_err(|e| format!("can't start logging: {e}"))
}

/// Whether these are log directives.
///
/// # Errors
/// What is wrong with them.
pub fn check_directives(directives: &str) -> Result<(), String> {
    parse(directives).map(|_| ())
}

fn parse(directives: &str) -> Result<EnvFilter, String> {
    let mistake = |e: &dyn std::fmt::Display| {
        format!(
            "{directives:?} is no log level: {e}; use error, warn, info, debug or trace, or directives such as `info,raftkv=debug`"
        )
    };
    // A single word that is no level would be taken for a module's name, and silence everything else.
    if !directives.contains(['=', ',', '[']) && directives.parse::<tracing_subscriber::filter::LevelFilter>().is_err() {
        return Err(mistake(&"unknown level"));
    }
    EnvFilter::builder().parse(directives).map_err(|e| mistake(&e))
}
