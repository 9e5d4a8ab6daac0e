//! Values that `gwctl` reads itself. All others are for the daemon to read, by the one grammar it has.

use std::{fmt::Display, str::FromStr, time::Duration};

use crate::config::parse_size;

/// A port.
pub(super) fn port(text: &str) -> Result<u16, String> {
    number(text, "a port is a number from 0 to 65535")
}

/// A network identifier; the daemon knows which there are.
pub(super) fn vni(text: &str) -> Result<u32, String> {
    number(text, "a network identifier is a whole number")
}

/// How many.
pub(super) fn count(text: &str) -> Result<u64, String> {
    number(text, "it is a whole number")
}

/// A duration with its unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "a duration has a unit, as in 500ms, 5s or 1m".to_owned())
}

/// Bytes, with a unit or without.
pub(super) fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "a size is a number of bytes, or one with KiB, MiB or GiB".to_owned())
}

/// Seconds between two looks.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds
        .filter(|interval| *interval >= Duration::from_millis(100))
        .ok_or_else(|| "an interval is a number of seconds, 0.1 or more".to_owned())
}

fn number<T: FromStr>(text: &str, what: impl Display) -> Result<T, String> {
    text.parse().map_err(|_| what.to_string())
}
