//! Errors of the control API, and what they mean to HTTP and to a shell.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{Fault, ValueError};

/// Exit codes of `gwctl` and `gatewayd`.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// Something nobody planned for.
    pub const UNEXPECTED: u8 = 1;
    /// The command line makes no sense.
    pub const USAGE: u8 = 2;
    /// No daemon answers on the socket.
    pub const UNREACHABLE: u8 = 3;
    /// The subject does not exist.
    pub const NOT_FOUND: u8 = 4;
    /// The subject exists, or the revision has moved on.
    pub const EXISTS: u8 = 5;
    /// The caller may not do this.
    pub const NOT_PERMITTED: u8 = 6;
    /// A value or the configuration is not acceptable.
    pub const INVALID: u8 = 7;
    /// The change could not be made and was rolled back.
    pub const ROLLED_BACK: u8 = 8;
    /// The gateway is not healthy.
    pub const UNHEALTHY: u8 = 9;
    /// There are differences.
    pub const DIFFERENCES: u8 = 10;
}

/// What kind of failure it is: the last part of an error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The subject exists already.
    Exists,
    /// The subject does not exist.
    NotFound,
    /// A value is not acceptable.
    Invalid,
    /// Something else still refers to the subject.
    InUse,
    /// A capacity would be exceeded.
    Full,
    /// The value is known and this version cannot do it.
    Unsupported,
    /// The caller may not do this.
    NotPermitted,
    /// The state has moved on since the caller read it.
    Conflict,
    /// The change failed half-way and was undone.
    RolledBack,
    /// The request is larger than the daemon reads.
    TooLarge,
    /// The daemon did not finish in time.
    Timeout,
    /// A fault of the daemon.
    Internal,
}

impl ErrorKind {
    /// The one table of error kinds: name, HTTP status, exit code.
    pub(super) const TABLE: &'static [(Self, &'static str, u16, u8)] = &[
        (Self::Exists, "exists", 409, exit::EXISTS),
        (Self::NotFound, "not_found", 404, exit::NOT_FOUND),
        (Self::Invalid, "invalid", 422, exit::INVALID),
        (Self::InUse, "in_use", 409, exit::INVALID),
        (Self::Full, "full", 422, exit::INVALID),
        (Self::Unsupported, "unsupported", 422, exit::INVALID),
        (Self::NotPermitted, "not_permitted", 403, exit::NOT_PERMITTED),
        (Self::Conflict, "conflict", 412, exit::EXISTS),
        (Self::RolledBack, "rolled_back", 500, exit::ROLLED_BACK),
        (Self::TooLarge, "too_large", 413, exit::INVALID),
        (Self::Timeout, "timeout", 504, exit::UNEXPECTED),
        (Self::Internal, "internal", 500, exit::UNEXPECTED),
    ];

    /// The last part of the error code.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// The HTTP status.
    pub fn status(self) -> u16 {
        self.entry().2
    }

    /// The exit code of the command that met the error.
    pub fn exit_code(self) -> u8 {
        self.entry().3
    }

    fn entry(self) -> &'static (Self, &'static str, u16, u8) {
        // The table is in the order of the enum; a test holds it to that.
        &Self::TABLE[self as usize]
    }
}

/// A failure, as the API and the shell show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What happened to what, for programs: `route.exists`, `pool.in_use`, `unsupported`.
    pub code: String,
    /// What happened: one lower-case sentence that names the value.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The field of the request that is at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl ApiError {
    /// An error about `noun` (`route`, `pool`, ...; empty: about nothing in particular).
    pub fn new(noun: &str, kind: ErrorKind, message: impl Into<String>) -> Self {
        let code = if noun.is_empty() { kind.name().to_owned() } else { format!("{noun}.{}", kind.name()) };
        Self { code, message: message.into(), hint: None, field: None }
    }

    /// A value of the contract that this version cannot do.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new("", ErrorKind::Unsupported, message)
    }

    /// A value of `noun` that was refused.
    pub fn value(noun: &str, error: ValueError) -> Self {
        let kind = match error.fault {
            Fault::Invalid => ErrorKind::Invalid,
            Fault::Full => ErrorKind::Full,
            Fault::Unsupported => {
                return Self { hint: error.hint, ..Self::unsupported(error.message).field(error.field) };
            }
        };
        Self { hint: error.hint, ..Self::new(noun, kind, error.message).field(error.field) }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the field at fault.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// What kind of failure it is. A code this version does not know is an internal error.
    pub fn kind(&self) -> ErrorKind {
        let name = self.code.rsplit('.').next().unwrap_or_default();
        ErrorKind::TABLE
            .iter()
            .find(|(_, known, ..)| *known == name)
            .map_or(ErrorKind::Internal, |(kind, ..)| *kind)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (number, (kind, ..)) in ErrorKind::TABLE.iter().enumerate() {
            assert_eq!(*kind as usize, number);
        }
        assert_eq!(ErrorKind::Internal as usize + 1, ErrorKind::TABLE.len());
    }

    #[test]
    fn a_code_tells_its_kind() {
        for (kind, ..) in ErrorKind::TABLE {
            assert_eq!(ApiError::new("route", *kind, "").kind(), *kind);
            assert_eq!(ApiError::new("", *kind, "").kind(), *kind);
        }
        assert_eq!(ApiError::new("route", ErrorKind::Exists, "").code, "route.exists");
    }
}
