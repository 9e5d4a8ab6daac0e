//! What is wrong with a configuration file, and where.

use std::{fmt, path::Path};

use crate::model::ValueError;

/// What is wrong with a configuration file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: Option<usize>,
    /// The key, as in `pool.addresses`.
    pub key: Option<String>,
    /// One lower-case sentence that names the value.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl ConfigError {
    pub(super) fn of_file(path: &Path, message: impl Into<String>) -> Self {
        let file = path.display().to_string();
        Self { file, line: None, key: None, message: message.into(), hint: None }
    }

    pub(super) fn in_line(path: &Path, line: usize, error: ValueError) -> Self {
        Self { line: Some(line), hint: error.hint, ..Self::of_file(path, error.message) }
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}
