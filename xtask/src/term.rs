//! Colour for people, plain text for everything else.

use std::{
    env,
    io::{IsTerminal, stdout},
    sync::OnceLock,
};

/// Whether escape sequences are written: a terminal, and `NO_COLOR` not set. `CLICOLOR_FORCE` overrides.
pub(crate) fn colour() -> bool {
    static COLOUR: OnceLock<bool> = OnceLock::new();
    *COLOUR.get_or_init(|| {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        !set("NO_COLOR") && (set("CLICOLOR_FORCE") || stdout().is_terminal())
    })
}

/// Something that went as it should.
pub(crate) fn good(text: &str) -> String {
    paint("32", text)
}

/// Something to look at.
pub(crate) fn warn(text: &str) -> String {
    paint("33", text)
}

/// Something that failed.
pub(crate) fn error(text: &str) -> String {
    paint("1;31", text)
}

/// A heading, a name or a command.
pub(crate) fn strong(text: &str) -> String {
    paint("1", text)
}

/// The title of a section.
pub(crate) fn title(text: &str) -> String {
    paint("1;36", text)
}

/// The name of a host.
pub(crate) fn host(text: &str) -> String {
    paint("35", text)
}

/// Something of lesser interest.
pub(crate) fn dim(text: &str) -> String {
    paint("2", text)
}

fn paint(code: &str, text: &str) -> String {
    if colour() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}
