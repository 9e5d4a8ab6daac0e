//! The section `access_log`.

use std::time::Duration;

use toml::Spanned;

use super::{ConfigError, Loader, file};
use crate::model::{AccessLog, Sink, Snapshot};

/// Shortest age at which the next file begins.
const MIN_AGE: Duration = Duration::from_secs(1);

impl Loader<'_> {
    /// Reads the section. All tables are known by then.
    pub(super) fn access_log(
        &self,
        section: &file::AccessLog,
        state: &Snapshot,
    ) -> Result<AccessLog, ConfigError> {
        let file::AccessLog { path, all, tables, max_rate, max_size, max_age, keep, fsync } = section;
        let mut log = AccessLog::new(self.parse::<Sink>(path, "access_log.path")?);
        log.all = *all;
        for name in tables {
            let table = name.get_ref();
            if !state.tables.contains_key(table) {
                let message = format!("there is no table `{table}` to record");
                let error = self.source.error(name.span().start, "access_log.tables", message);
                return Err(error.hint("name tables of this file"));
            }
            log.tables.insert(table.clone());
        }
        log.max_rate = max_rate.unwrap_or_default();
        if let Some(size) = max_size {
            log.max_size = self.size(size)?;
        }
        if let Some(age) = max_age {
            log.max_age = self.duration("access_log.max_age", age)?;
            if log.max_age < MIN_AGE {
                let message = format!("`{}` is too short for a file", age.get_ref());
                let error = self.source.error(age.span().start, "access_log.max_age", message);
                return Err(error.hint("a second at least"));
            }
        }
        if let Some(keep) = keep {
            log.keep = *keep.get_ref();
            if log.keep > AccessLog::MAX_KEEP {
                let message = format!("{} files are too many to keep", log.keep);
                let error = self.source.error(keep.span().start, "access_log.keep", message);
                return Err(error.hint(format!("at most {}", AccessLog::MAX_KEEP)));
            }
        }
        if let Some(fsync) = fsync {
            log.fsync = self.parse(fsync, "access_log.fsync")?;
        }
        Ok(log)
    }

    fn size(&self, text: &Spanned<String>) -> Result<u64, ConfigError> {
        let size = parse_size(text.get_ref()).filter(|size| *size >= AccessLog::MIN_SIZE);
        size.ok_or_else(|| {
            let message = format!("`{}` is not the size of a file", text.get_ref());
            let error = self.source.error(text.span().start, "access_log.max_size", message);
            error.hint("write it as in \"100MiB\" or \"1GiB\"; 4KiB at least")
        })
    }
}

const UNITS: [(&str, u32); 4] = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("", 0)];

/// Bytes, as in `100MiB`.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))?;
    let number: u64 = number.trim_end().parse().ok()?;
    number.checked_mul(1 << shift)
}

/// The words for so many bytes.
pub(super) fn size_words(size: u64) -> String {
    let unit = UNITS.iter().find(|(_, shift)| size.trailing_zeros() >= *shift && size > 0);
    let (unit, shift) = unit.unwrap_or(&("", 0));
    format!("{}{unit}", size >> shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, size) in [("100MiB", 100 << 20), ("1GiB", 1 << 30), ("12KiB", 12 << 10), ("5001", 5001)] {
            assert_eq!(parse_size(text), Some(size));
            assert_eq!(size_words(size), text);
        }
        for wrong in ["", "MiB", "1.5GiB", "100MB", "18446744073709551615GiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }
}
