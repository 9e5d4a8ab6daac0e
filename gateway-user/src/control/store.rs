//! The state directory: what was changed at run time, and how it relates to the configuration file.
//!
//! `state.json` is lines of JSON, each with a checksum. The first one holds the revision, a fingerprint of the
//! configuration file that the changes were made on, and, as long as the running state differs from that file, the
//! running state itself. Each line behind it is one change of that state; a change is saved when its line is on disk.
//! When the changes outweigh the state, the file is replaced by one with the state alone.
//!
//! What a crash leaves of a line that was being written is no change: nobody was told that it was saved. Anything else
//! that is damaged is refused. What `gwctl` has no words for (name, capacity, timeouts, `no_session`) always comes from
//! the configuration file.

use std::{
    borrow::Cow,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::saved::{Delta, Running};
use crate::{model::Snapshot, refused::Refused};

/// Format of the file.
const SCHEMA: &str = "gateway.state/v2";
/// Format of a file that is one line without a checksum, and never has another one.
const FIRST_SCHEMA: &str = "gateway.state/v1";
/// Name of the file.
const FILE: &str = "state.json";

/// What the lines begin with.
const STATE: &[u8] = b"{\"state\":";
const CHANGE: &[u8] = b"{\"change\":";
/// What stands before the checksum of a line, and nowhere else: quotes in JSON strings are escaped.
const CHECKSUM: &[u8] = b",\"crc32\":\"";
/// Length of what ends a line: that, eight digits, and what closes it.
const END: usize = CHECKSUM.len() + 8 + 2;

/// Routes that differ in a change that is written as such. With more, the state is written.
const MAX_ROUTES: usize = 1 << 16;
/// Changes that may follow the state before the file is replaced, in bytes; or as much as the state has.
const MAX_CHANGES: u64 = 4 << 20;

/// The state directory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// The file, as it was read or written last; `None` while it is not known to be whole.
    tail: Option<Tail>,
    /// How many bytes of changes the file may have, if the state has fewer.
    most: u64,
}

/// A file that another line can be added to.
#[derive(Debug)]
struct Tail {
    file: File,
    /// Length of the first line.
    state: u64,
    /// Length of all lines.
    end: u64,
    saved: Saved,
}

/// What the state directory says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Revision of the state that was last in force.
    pub revision: u64,
    /// Fingerprint of the configuration file that the run-time changes were made on.
    pub base: String,
    /// The running state, if it differs from the configuration file.
    pub running: Option<Arc<Snapshot>>,
}

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State<'a> {
    schema: Cow<'a, str>,
    revision: u64,
    base: Cow<'a, str>,
    running: Option<Running<'a>>,
}

/// Another line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change<'a> {
    /// Of the state after it.
    revision: u64,
    delta: Delta<'a>,
}

impl Store {
    /// The store in `directory`, which is made if it is missing.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("cannot make the state directory {}", directory.display()))?;
        Ok(Self { directory: directory.to_owned(), tail: None, most: MAX_CHANGES })
    }

    /// Reads what was saved; `None` if nothing ever was. What only the configuration file says comes from `base`.
    ///
    /// # Errors
    /// A file that cannot be read or understood: starting without it would lose routes.
    pub fn load(&mut self, base: &Snapshot) -> anyhow::Result<Option<Saved>> {
        let path = self.path();
        let unreadable = |error: &dyn std::fmt::Display| {
            Refused::error(
                format!("the state file {} cannot be used: {error}", path.display()),
                "restore it from a backup, or move it away to start with what the configuration file says; \
                 the changes made with gwctl are lost then",
            )
        };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&error)),
        };
        let read = read(&bytes, base).map_err(|error| unreadable(&error))?;
        let lost = bytes.len() as u64 - read.end;
        if lost > 0 {
            tracing::warn!(
                "the state file {} ends in {lost} bytes of a change that was not saved",
                path.display()
            );
        }
        if let Some(state) = read.state {
            let file = OpenOptions::new().write(true).open(&path).map_err(|error| unreadable(&error))?;
            file.set_len(read.end).map_err(|error| unreadable(&error))?;
            self.tail = Some(Tail { file, state, end: read.end, saved: read.saved.clone() });
        }
        Ok(Some(read.saved))
    }

    /// Saves what is in force: after a crash, either what was saved before or this is there.
    ///
    /// # Errors
    /// What was saved before is still there.
    pub fn save(&mut self, saved: Saved) -> anyhow::Result<()> {
        let path = self.path();
        if self.tail.as_ref().is_some_and(|tail| tail.saved == saved) {
            return Ok(());
        }
        let added =
            self.add(&saved).and_then(|added| if added { Ok(()) } else { self.replace(&path, saved) });
        added.with_context(|| format!("cannot write {}", path.display()))
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Adds a line to the file, if it is one that takes it.
    fn add(&mut self, saved: &Saved) -> io::Result<bool> {
        let path = self.path();
        let Some(tail) = self.tail.as_mut().filter(|tail| tail.is_at(&path)) else { return Ok(false) };
        let (Some(before), Some(running)) = (&tail.saved.running, &saved.running) else { return Ok(false) };
        if tail.saved.base != saved.base {
            return Ok(false);
        }
        let Some(delta) = Delta::between(before, running, MAX_ROUTES) else { return Ok(false) };
        let mut line = Vec::new();
        write_line(&mut line, CHANGE, &Change { revision: saved.revision, delta })?;
        let end = tail.end + line.len() as u64;
        if end - tail.state > self.most.max(tail.state) {
            return Ok(false);
        }
        if let Err(error) = tail.file.write_all_at(&line, tail.end) {
            if tail.file.set_len(tail.end).is_err() {
                self.tail = None;
            }
            return Err(error);
        }
        if let Err(error) = tail.file.sync_data() {
            // What is on disk now is anybody's guess, and asking again would not tell (fsync(2)).
            self.tail = None;
            return Err(error);
        }
        tail.end = end;
        tail.saved = saved.clone();
        Ok(true)
    }

    /// Puts a file in the place of the present one that has the state alone.
    fn replace(&mut self, path: &Path, saved: Saved) -> io::Result<()> {
        let temporary = path.with_extension("json.tmp");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut writer = BufWriter::with_capacity(1 << 16, file);
        let state = State {
            schema: SCHEMA.into(),
            revision: saved.revision,
            base: Cow::Borrowed(&saved.base),
            running: saved.running.as_deref().map(Running::of),
        };
        let length = write_line(&mut writer, STATE, &state)?;
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // From here on, the file before is gone.
        self.tail = None;
        // The rename itself is on disk only once the directory is.
        File::open(&self.directory)?.sync_all()?;
        self.tail = Some(Tail { file, state: length, end: length, saved });
        Ok(())
    }
}

impl Tail {
    /// Whether it is the file at `path`, which somebody may have removed.
    fn is_at(&self, path: &Path) -> bool {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let (own, there) = (self.file.metadata().map(identity), fs::metadata(path).map(identity));
        matches!((own, there), (Ok(own), Ok(there)) if own == there)
    }
}

/// What a file says.
struct Read {
    saved: Saved,
    /// Length of the first line, if lines can be added.
    state: Option<u64>,
    /// Length of all lines that are whole.
    end: u64,
}

fn read(bytes: &[u8], base: &Snapshot) -> Result<Read, String> {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let has_checksum = first.starts_with(STATE);
    let text = if has_checksum { verified(first, STATE).ok_or("its first line is damaged")? } else { bytes };
    let State { schema, revision, base: fingerprint, running } =
        serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let expected = if has_checksum { SCHEMA } else { FIRST_SCHEMA };
    if schema != expected {
        return Err(format!("its schema is `{schema}` and not `{SCHEMA}`"));
    }
    let running = running.map(|running| Arc::new(running.over(base)));
    let mut saved = Saved { revision, base: fingerprint.into_owned(), running };
    if !has_checksum {
        return Ok(Read { saved, state: None, end: bytes.len() as u64 });
    }
    let mut end = first.len();
    let mut lines = lines.enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let damaged = |why: &str| format!("line {} {why}", number + 2);
        let Some(text) = verified(line, CHANGE) else {
            let whole = line.len().saturating_sub(END + 1);
            let several = line[..whole].windows(CHECKSUM.len()).any(|window| window == CHECKSUM);
            if lines.peek().is_some() || several {
                return Err(damaged("is damaged, and others follow it"));
            }
            break;
        };
        let Change { revision, delta } =
            serde_json::from_slice(text).map_err(|error| damaged(&format!("makes no sense: {error}")))?;
        let state = saved.running.as_mut().map(Arc::make_mut).ok_or_else(|| damaged("changes no state"))?;
        delta.apply(state).map_err(|why| damaged(&format!("makes no sense: {why}")))?;
        if revision <= saved.revision {
            return Err(damaged(&format!("makes revision {revision} of revision {}", saved.revision)));
        }
        saved.revision = revision;
        end += line.len();
    }
    Ok(Read { saved, state: Some(first.len() as u64), end: end as u64 })
}

/// The value in a line, if the line is whole.
fn verified<'a>(line: &'a [u8], begin: &[u8]) -> Option<&'a [u8]> {
    let line = line.strip_suffix(b"\"}\n")?;
    let (text, digits) = line.split_at_checked(line.len().checked_sub(8)?)?;
    let text = text.strip_suffix(CHECKSUM)?;
    let expected = format!("{:08x}", crc32fast::hash(text));
    (digits == expected.as_bytes()).then(|| text.strip_prefix(begin))?
}

/// Writes a line; returns its length.
fn write_line(out: &mut impl Write, begin: &[u8], value: &impl Serialize) -> io::Result<u64> {
    let mut sum = Sum { out, hasher: crc32fast::Hasher::new(), length: 0 };
    sum.write_all(begin)?;
    serde_json::to_writer(&mut sum, value)?;
    let Sum { out, hasher, length } = sum;
    out.write_all(CHECKSUM)?;
    out.write_all(format!("{:08x}\"}}\n", hasher.finalize()).as_bytes())?;
    Ok(length + END as u64 + 1)
}

/// Writes, and sums up what it has written.
struct Sum<'a, W> {
    out: &'a mut W,
    hasher: crc32fast::Hasher,
    length: u64,
}

impl<W: Write> Write for Sum<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests;
