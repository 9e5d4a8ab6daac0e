//! A sentence and a remedy, for the operator who starts the daemon.

use std::fmt;

/// Why something is not done, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// One lower-case sentence.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl Refused {
    /// A refusal as an error.
    pub fn error(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
        Self { message: message.into(), hint: hint.into() }.into()
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}
