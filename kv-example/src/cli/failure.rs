//! How a command fails: one message, one exit code.

use std::process::ExitCode;

use crate::client::ClientError;
use crate::config::ConfigError;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Something went wrong while it ran.
    pub(crate) fn runtime(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// It was called wrongly, or configured wrongly.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// A write that may or may not have taken effect.
    pub(crate) fn unknown_outcome(message: impl Into<String>) -> Self {
        Self { code: 3, message: message.into() }
    }

    /// What went wrong.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Prints the message to stderr and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("kv-example: {}", self.message);
        ExitCode::from(self.code)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Safe(_) | ClientError::Other(_) => Self::runtime(error.to_string()),
            ClientError::Unknown(_) => Self::unknown_outcome(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::runtime(error.to_string())
    }
}
