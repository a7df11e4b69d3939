//! Errors in words.

use std::error::Error as StdError;

/// An error with its causes, each said once.
pub(crate) fn explain(error: &(dyn StdError + 'static)) -> String {
    with_causes(error.to_string(), error)
}

/// A status with its causes, in words rather than codes where it has words.
pub(crate) fn explain_status(status: &tonic::Status) -> String {
    let words = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    let text = with_causes(words.to_owned(), status);
    // What the HTTP/2 library says of every stream that is open when its connection ends without an error of the system.
    if text.contains("stream closed because of a broken pipe") { CLOSED_OR_SILENT.into() } else { text }
}

/// What the HTTP/2 library can't tell apart.
pub(crate) const CLOSED_OR_SILENT: &str =
    "the connection ended: the other side closed it, or left a keep-alive probe unanswered";

fn with_causes(mut text: String, error: &(dyn StdError + 'static)) -> String {
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}
