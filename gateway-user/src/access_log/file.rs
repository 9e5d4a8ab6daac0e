//! Records in a file, a line each, and the files before it.
//!
//! When a file is large or old enough, it gets the number 1 behind its name, those before it one number more, and the
//! last one is removed. All of it are renames, so that no record is in two files or in none.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};

use super::{Entry, Write};
use crate::{
    dataplane::Logged,
    model::{AccessLog, Fsync},
};

/// Who may read the log: it says who was where.
const MODE: u32 = 0o640;

/// A file, and how it is kept.
pub struct FileSink {
    path: PathBuf,
    file: File,
    size: u64,
    /// When the file began.
    began: SystemTime,
    max_size: u64,
    max_age: Duration,
    keep: u32,
    fsync: Fsync,
    /// When the first record was written that is not synced.
    dirty: Option<Instant>,
    /// Whether the last line may lack its end.
    torn: bool,
    /// Room for lines.
    lines: Vec<u8>,
}

impl FileSink {
    /// Opens the file, and continues it where there is one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(path: &Path, log: &AccessLog) -> Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let (file, size, began, torn) = open(path)?;
        let AccessLog { max_size, max_age, keep, fsync, .. } = *log;
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            began,
            max_size,
            max_age,
            keep,
            fsync,
            dirty: None,
            torn,
            lines: Vec::new(),
        })
    }

    /// Begins another file.
    fn rotate(&mut self) -> Result<()> {
        if self.fsync != Fsync::Never {
            self.file.sync_data().context("cannot sync the access log")?;
        }
        self.dirty = None;
        if self.keep == 0 {
            remove(&self.path)?;
        } else {
            remove(&numbered(&self.path, self.keep))?;
            for number in (1..self.keep).rev() {
                rename(&numbered(&self.path, number), &numbered(&self.path, number + 1))?;
            }
            rename(&self.path, &numbered(&self.path, 1))?;
        }
        (self.file, self.size, self.began, self.torn) = open(&self.path)?;
        Ok(())
    }
}

impl FileSink {
    /// Writes whole lines.
    fn append(&mut self, lines: &[u8]) -> Result<()> {
        if self.torn {
            self.file.write_all(b"\n").context("cannot write the access log")?;
            (self.size, self.torn) = (self.size + 1, false);
        }
        if let Err(error) = self.file.write_all(lines) {
            // Part of it may be there.
            self.torn = true;
            return Err(error).context("cannot write the access log");
        }
        self.size += lines.len() as u64;
        self.dirty.get_or_insert_with(Instant::now);
        Ok(())
    }
}

impl Write for FileSink {
    fn write(&mut self, records: &[&Logged]) -> (usize, Result<()>) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.clear();
        for logged in records {
            Entry::of(logged).write(&mut lines);
        }
        let result = self.append(&lines);
        self.lines = lines;
        // What is there of a part of them is no whole batch.
        (if result.is_ok() { records.len() } else { 0 }, result)
    }

    fn look_after(&mut self) -> Result<()> {
        let due = match (self.fsync, self.dirty) {
            (Fsync::Never, _) | (_, None) => false,
            (Fsync::Always, Some(_)) => true,
            (Fsync::Every(time), Some(since)) => since.elapsed() >= time,
        };
        if due {
            self.file.sync_data().context("cannot sync the access log")?;
            self.dirty = None;
        }
        let age = self.began.elapsed().unwrap_or_default();
        if self.size > 0 && (self.size >= self.max_size || age >= self.max_age) {
            self.rotate()?;
        }
        Ok(())
    }
}

/// Opens a file to append to it: its size, when it began, and whether its last line lacks its end.
fn open(path: &Path) -> Result<(File, u64, SystemTime, bool)> {
    let opened = OpenOptions::new().create(true).append(true).read(true).mode(MODE).open(path);
    let mut file = opened.with_context(|| format!("cannot open {}", path.display()))?;
    let metadata = file.metadata().context("cannot look at the access log")?;
    let size = metadata.len();
    let began = metadata.created().or_else(|_| metadata.modified()).unwrap_or_else(|_| SystemTime::now());
    let mut last = [b'\n'];
    if size > 0 {
        file.seek(SeekFrom::Start(size - 1)).context("cannot read the access log")?;
        file.read_exact(&mut last).context("cannot read the access log")?;
    }
    Ok((file, size, began, last != [b'\n']))
}

/// The name of a file before the one that is written; 1 is the last one.
pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot rename {}", from.display()))
        }
        _ => Ok(()),
    }
}
