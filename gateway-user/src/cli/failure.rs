//! Why a command failed: one sentence, one hint, one exit code.

use std::{io, path::Path};

use clap::{
    Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{help, words};
use crate::api::{ClientError, error::exit};

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// Something to tell.
    Told {
        /// Exit code.
        exit: u8,
        /// What happened: one lower-case sentence.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The reader of standard output has seen enough; not an error.
    ReaderGone,
}

impl Failure {
    /// A failure with `exit`.
    pub fn new(exit: u8, message: impl Into<String>) -> Self {
        Self::Told { exit, message: message.into(), hint: None }
    }

    /// The command line makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(exit::USAGE, message)
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(self, text: impl Into<String>) -> Self {
        match self {
            Self::Told { exit, message, .. } => Self::Told { exit, message, hint: Some(text.into()) },
            Self::ReaderGone => self,
        }
    }

    /// The failure of a call to the daemon on `socket`.
    pub fn of_call(error: ClientError, socket: &Path) -> Self {
        let socket = socket.display();
        match error {
            ClientError::Refused(error) => {
                Self::Told { exit: error.kind().exit_code(), message: error.message, hint: error.hint }
            }
            ClientError::Unreachable(error) => Self::new(
                exit::UNREACHABLE,
                format!("gatewayd does not answer on {socket}: {}", reason(&error)),
            )
            .hint(
                "start it (`systemctl start gatewayd`, or `gatewayd --config FILE`), or name its socket \
                         with --socket PATH or GWCTL_SOCKET",
            ),
            ClientError::Gone => Self::gone(&format!("gatewayd on {socket} has died")),
            ClientError::Denied => Self::new(exit::NOT_PERMITTED, format!("permission denied on {socket}"))
                .hint("run the command as root, or as a member of group `gateway`"),
            ClientError::Timeout(_) => Self::new(exit::UNREACHABLE, format!("{error} on {socket}")).hint(
                "a change that was asked for may still be made: check with `gwctl status`; wait longer with \
                 --timeout DUR",
            ),
            ClientError::Protocol(message) => Self::new(exit::UNEXPECTED, message)
                .hint("compare the versions of the two programs with `gwctl version`"),
        }
    }

    /// What goes on until the user has seen enough has ended before that, because of `why`.
    pub(super) fn gone(why: &str) -> Self {
        Self::new(exit::UNREACHABLE, format!("{why}, and the stream has ended with it"))
            .hint("start it again (`systemctl start gatewayd`), and then the command")
    }

    /// The failure of clap to read the command with the names `path`.
    #[expect(clippy::wildcard_enum_match_arm, reason = "clap adds kinds of errors in minor releases")]
    pub(super) fn of_clap(error: &clap::Error, root: &Command, path: &[String]) -> Self {
        let usage = format!("usage: {}", help::usage(root, path));
        let command = help::find(root, path);
        let path = help::full_path(path);
        let words = |kind| words(error, kind, command);
        let arguments = words(ContextKind::InvalidArg);
        let argument = quoted(&arguments, "and");
        match error.kind() {
            ErrorKind::MissingRequiredArgument => {
                // Clap names keywords first, users write subjects first.
                let (mut missing, keywords): (Vec<_>, Vec<_>) =
                    arguments.into_iter().partition(|word| !word.contains(' '));
                missing.extend(keywords);
                Self::usage(format!("`{path}` needs {}", quoted(&missing, "and"))).hint(usage)
            }
            ErrorKind::ArgumentConflict => {
                let prior = quoted(&words(ContextKind::PriorArg), "and");
                if prior == argument || prior.is_empty() {
                    Self::usage(format!("{argument} is given twice")).hint(usage)
                } else {
                    Self::usage(format!("{argument} and {prior} exclude each other")).hint(usage)
                }
            }
            ErrorKind::UnknownArgument => {
                Self::usage(format!("`{path}` has no option {argument}")).hint(usage)
            }
            ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
                let value = words(ContextKind::InvalidValue).concat();
                if value.is_empty() {
                    return Self::usage(format!("{argument} needs a value")).hint(usage);
                }
                let known = words(ContextKind::ValidValue);
                let why = std::error::Error::source(error)
                    .map(|source| format!(": {}", lowercase(&source.to_string())))
                    .unwrap_or_default();
                // The value of an option is a matter of this program, that of a keyword one of the gateway.
                let option = arguments.first().is_some_and(|word| word.starts_with("--"));
                let exit = if option { exit::USAGE } else { exit::INVALID };
                Self::new(exit, format!("`{value}` is not a value of {argument}{why}"))
                    .hint(if known.is_empty() { usage } else { format!("it takes {}", quoted(&known, "or")) })
            }
            // What the tree of commands cannot produce is told in clap's words.
            _ => {
                let text = error.to_string();
                let line = text.lines().next().unwrap_or_default();
                Self::usage(lowercase(line.trim_start_matches("error: "))).hint(usage)
            }
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::ReaderGone
        } else {
            Self::new(exit::UNEXPECTED, format!("cannot write the output: {}", reason(&error)))
        }
    }
}

/// What the system says, without the number: `no such file or directory`.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    lowercase(text.split(" (os error").next().unwrap_or_default())
}

fn lowercase(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        // An acronym keeps its capitals.
        Some(first) if !chars.clone().next().is_some_and(char::is_uppercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// A piece of clap's context in the words of this command line.
fn words(error: &clap::Error, kind: ContextKind, command: &Command) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![in_words(text, command)],
        Some(ContextValue::Strings(texts)) => texts.iter().map(|text| in_words(text, command)).collect(),
        Some(_) | None => Vec::new(),
    }
}

/// What clap writes as `--via <TARGET>`, `<PREFIX>` or `[PREFIX]`, as `via TARGET` and `PREFIX`.
fn in_words(text: &str, command: &Command) -> String {
    let plain = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let plain = plain.replace(['<', '>'], "");
    let plain = plain.strip_prefix("--").map_or(plain.as_str(), |flag| {
        let name = flag.split(' ').next();
        let is_keyword = words::keywords(command).any(|keyword| keyword.get_long() == name);
        if is_keyword { flag } else { &plain }
    });
    plain.to_owned()
}

/// `a`, `b` and `c`, each in backquotes.
pub(super) fn quoted<T: AsRef<str>>(words: &[T], conjunction: &str) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{}`", word.as_ref())).collect();
    match words.as_slice() {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} {conjunction} {last}", first.join(", ")),
    }
}
