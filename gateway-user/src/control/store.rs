//! The state directory: what was changed at run time, and how it relates to the configuration file.
//!
//! `state.json` is lines of JSON, each with a checksum. The first one holds the revision, a fingerprint of the
//! configuration file that the changes were made on, and, as long as the running state differs from that file, the
//! running state itself. Each line behind it is one change of that state; a change is saved when its line is on disk.
//! When the changes outweigh the state, the file is replaced by one with the state alone. The one before it stays as
//! `history-REVISION.json` for a while, so that revisions can be brought back ([`history`]).
//!
//! What a crash leaves of a line that was being written is no change: nobody was told that it was saved. Anything else
//! that is damaged is refused. What only a whole configuration changes (name, timeouts, `no_session`, half-open sessions)
//! is written where it differs from the configuration file; all other capacities always come from there.

pub(super) mod history;

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

use super::saved::{self, Delta, Running, Settings};
use crate::{
    model::{Snapshot, Table},
    refused::Refused,
};

/// Format of the file.
const SCHEMA: &str = "gateway.state/v3";
/// Format of a file that does not tell who made its revisions.
const SECOND_SCHEMA: &str = "gateway.state/v2";
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
    /// A file that may take the place of the present one.
    staged: Option<Staged>,
    /// How many bytes of changes the file may have, if the state has fewer.
    most: u64,
    /// What the configuration file says of what a state need not say; `None` before it is known.
    settings: Option<Settings>,
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

/// A file with a state alone, which is on disk under another name.
#[derive(Debug)]
struct Staged {
    file: File,
    length: u64,
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
    /// Who made it; `None` where it was made before that was written down.
    pub made: Option<Made>,
    /// Until when somebody has to confirm it, or the revision before it comes back: milliseconds since 1970 (UTC).
    pub confirm_by: Option<u64>,
}

/// Who made a revision, when and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// When: seconds since 1970 (UTC).
    pub time: u64,
    /// The user; `None`: the gateway itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The process, 0 where the kernel did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// How, as `gwctl` would be told.
    pub command: String,
}

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State<'a> {
    schema: Cow<'a, str>,
    revision: u64,
    base: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made: Option<Cow<'a, Made>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confirm_by: Option<u64>,
    running: Option<Running<'a>>,
}

/// Another line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change<'a> {
    /// Of the state after it; that of the state before it where it is confirmed, and nothing changes.
    revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made: Option<Cow<'a, Made>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confirm_by: Option<u64>,
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
        Ok(Self {
            directory: directory.to_owned(),
            tail: None,
            staged: None,
            most: MAX_CHANGES,
            settings: None,
        })
    }

    /// Reads what was saved; `None` if nothing ever was. What only the configuration file says comes from `base`.
    ///
    /// # Errors
    /// A file that cannot be read or understood: starting without it would lose routes.
    pub fn load(&mut self, base: &Snapshot) -> anyhow::Result<Option<Saved>> {
        self.settings = Some(Settings::of(base));
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
        let read = read(&bytes, base, u64::MAX).map_err(|error| unreadable(&error))?;
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
        self.save_all(vec![saved])
    }

    /// Saves revisions that have come into force one after the other. Waits for the disk once.
    ///
    /// # Errors
    /// What was saved before is still there, or some of the revisions are.
    pub fn save_all(&mut self, revisions: Vec<Saved>) -> anyhow::Result<()> {
        let path = self.path();
        let begun = self.tail.as_ref().map(|tail| (tail.end, tail.saved.clone()));
        let mut replaced = false;
        let written = self.write_all(&path, revisions, &mut replaced);
        if written.is_err() && !replaced {
            // Lines of revisions that did not come into force must not stay.
            self.tail = self.tail.take().zip(begun).and_then(|(tail, (end, saved))| {
                tail.file.set_len(end).ok()?;
                Some(Tail { end, saved, ..tail })
            });
        }
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_all(&mut self, path: &Path, revisions: Vec<Saved>, replaced: &mut bool) -> io::Result<()> {
        let mut added = false;
        for saved in revisions {
            if self.tail.as_ref().is_some_and(|tail| tail.saved == saved) {
                continue;
            }
            added = self.add(&saved)?;
            if !added {
                self.replace(path, saved)?;
                *replaced = true;
            }
        }
        if added { self.sync() } else { Ok(()) }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Adds a line to the file, if it is one that takes it. It is on disk after [`Store::sync`].
    fn add(&mut self, saved: &Saved) -> io::Result<bool> {
        let path = self.path();
        let Some(tail) = self.tail.as_mut().filter(|tail| tail.is_at(&path)) else { return Ok(false) };
        let (Some(before), Some(running)) = (&tail.saved.running, &saved.running) else { return Ok(false) };
        if tail.saved.base != saved.base {
            return Ok(false);
        }
        let Some(delta) = Delta::between(before, running, MAX_ROUTES) else { return Ok(false) };
        let mut line = Vec::new();
        let made = saved.made.as_ref().map(Cow::Borrowed);
        let change = Change { revision: saved.revision, made, confirm_by: saved.confirm_by, delta };
        write_line(&mut line, CHANGE, &change)?;
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
        tail.end = end;
        tail.saved = saved.clone();
        Ok(true)
    }

    /// Has the lines that were added on disk.
    fn sync(&mut self) -> io::Result<()> {
        let synced = self.tail.as_ref().map_or(Ok(()), |tail| tail.file.sync_data());
        if synced.is_err() {
            // What is on disk now is anybody's guess, and asking again would not tell (fsync(2)).
            self.tail = None;
        }
        synced
    }

    /// Writes what is about to come into force beside the present file, for [`Store::save`] to put it in its place: a
    /// large state takes a while.
    ///
    /// # Errors
    /// It cannot be written. Nothing is changed.
    pub fn stage(&mut self, saved: Saved) -> io::Result<()> {
        self.staged = None;
        let temporary = self.path().with_extension("json.tmp");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
        let mut writer = BufWriter::with_capacity(1 << 16, file);
        let state = State {
            schema: SCHEMA.into(),
            revision: saved.revision,
            base: Cow::Borrowed(&saved.base),
            made: saved.made.as_ref().map(Cow::Borrowed),
            confirm_by: saved.confirm_by,
            running: saved.running.as_deref().map(|state| Running::of(state, self.settings.as_ref())),
        };
        let length = write_line(&mut writer, STATE, &state)?;
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        self.staged = Some(Staged { file, length, saved });
        Ok(())
    }

    /// Puts a file in the place of the present one that has the state alone.
    fn replace(&mut self, path: &Path, saved: Saved) -> io::Result<()> {
        if self.staged.as_ref().is_none_or(|staged| staged.saved != saved) {
            self.stage(saved)?;
        }
        let Some(Staged { file, length, saved }) = self.staged.take() else { return Ok(()) };
        let temporary = path.with_extension("json.tmp");
        if let Some(tail) = self.tail.as_ref().filter(|tail| tail.is_at(path)) {
            history::keep(&self.directory, path, tail.saved.revision)?;
        }
        fs::rename(&temporary, path)?;
        // From here on, the file before is gone.
        self.tail = None;
        // The rename itself is on disk only once the directory is.
        File::open(&self.directory)?.sync_all()?;
        self.tail = Some(Tail { file, state: length, end: length, saved });
        Ok(())
    }
}

/// Whether whole tables of many routes are entered for a change. One of a single route is made in place.
pub(super) fn enters_many(before: &Snapshot, after: &Snapshot) -> bool {
    let known = |table: &Table| before.tables.get(&table.name);
    let is_other = |table: &&Arc<Table>| known(table).is_none_or(|known| !Arc::ptr_eq(known, table));
    let changed: Vec<_> = after.tables.values().filter(is_other).collect();
    let routes: usize = changed.iter().map(|table| table.routes.len()).sum();
    let is_bound = |table: &&Arc<Table>| known(table).is_some_and(|known| known.bindings == table.bindings);
    routes > MAX_ROUTES && (!changed.iter().all(is_bound) || saved::differ_in_more(before, after, 1))
}

/// Whether a change is written as a state.
pub(super) fn is_large(before: &Snapshot, after: &Snapshot) -> bool {
    saved::differ_in_more(before, after, MAX_ROUTES)
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

/// Reads a file up to the revision `until`.
fn read(bytes: &[u8], base: &Snapshot, until: u64) -> Result<Read, String> {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let has_checksum = first.starts_with(STATE);
    let text = if has_checksum { verified(first, STATE).ok_or("its first line is damaged")? } else { bytes };
    let State { schema, revision, base: fingerprint, made, confirm_by, running } =
        serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let known: &[&str] = if has_checksum { &[SCHEMA, SECOND_SCHEMA] } else { &[FIRST_SCHEMA] };
    if !known.contains(&&*schema) {
        return Err(format!("its schema is `{schema}` and not `{SCHEMA}`"));
    }
    let running = running.map(|running| Arc::new(running.over(base)));
    let made = made.map(Cow::into_owned);
    let mut saved = Saved { revision, base: fingerprint.into_owned(), running, made, confirm_by };
    if !has_checksum {
        return Ok(Read { saved, state: None, end: bytes.len() as u64 });
    }
    let takes_lines = schema == SCHEMA;
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
        let Change { revision, made, confirm_by, delta } =
            serde_json::from_slice(text).map_err(|error| damaged(&format!("makes no sense: {error}")))?;
        if revision > until {
            break;
        }
        let confirms = revision == saved.revision && delta == Delta::default();
        if revision <= saved.revision && !confirms {
            return Err(damaged(&format!("makes revision {revision} of revision {}", saved.revision)));
        }
        let state = saved.running.as_mut().map(Arc::make_mut).ok_or_else(|| damaged("changes no state"))?;
        delta.apply(state).map_err(|why| damaged(&format!("makes no sense: {why}")))?;
        (saved.revision, saved.confirm_by) = (revision, confirm_by);
        saved.made = made.map(Cow::into_owned);
        end += line.len();
    }
    Ok(Read { saved, state: takes_lines.then_some(first.len() as u64), end: end as u64 })
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
