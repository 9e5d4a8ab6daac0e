//! Who had an address and a port of a pool at a time: what the files say.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    net::IpAddr,
    path::Path,
};

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};
use memchr::memmem::Finder;

use super::{Entry, file::numbered};

/// Times are told to the second by whoever asks, and kept to about 130 ms by who answers.
pub const SLACK: SignedDuration = SignedDuration::from_secs(1);

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// Address of a pool.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// `tcp`, `udp`, `icmp`; `None`: any.
    pub proto: Option<String>,
    /// When.
    pub at: Timestamp,
}

impl Question {
    /// Whether a session is meant that had it from `start` to `end`, or has it.
    pub fn covers(&self, start: Timestamp, end: Option<Timestamp>) -> bool {
        start.duration_since(self.at) <= SLACK && end.is_none_or(|end| self.at.duration_since(end) <= SLACK)
    }

    /// Whether a record is of the address and the port, whenever that was.
    fn is_about(&self, entry: &Entry<'_>) -> bool {
        entry.translated.is_some_and(|end| (end.address, end.port) == (self.address, self.port))
            && self.proto.as_ref().is_none_or(|proto| *proto == entry.proto)
    }
}

/// Searches the file at `path` and those before it. Of a session that has ended there is the record of its end; of
/// others, and of those whose end was not recorded, that of its beginning.
///
/// # Errors
/// A file cannot be read.
pub fn search(path: &Path, keep: u32, question: &Question) -> Result<Vec<Entry<'static>>> {
    // From the last one on: what is renamed meanwhile is met twice, and not missed.
    let numbers = (1..=keep).map(|number| numbered(path, number));
    let mut files = Vec::new();
    for path in [path.to_owned()].into_iter().chain(numbers) {
        match File::open(&path) {
            Ok(file) => files.push(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
        }
    }
    let (mut ended, mut open) = (Vec::new(), Vec::new());
    let needle = needle(question);
    let finder = Finder::new(&needle);
    for file in files {
        let mut file = BufReader::with_capacity(1 << 18, file);
        let mut line = Vec::new();
        while file.read_until(b'\n', &mut line).context("cannot read the access log")? > 0 {
            if finder.find(&line).is_some()
                // What is no record is what a crash has left.
                && let Ok(entry) = serde_json::from_slice::<Entry<'static>>(&line)
                && question.is_about(&entry)
            {
                let list = if entry.end.is_some() { &mut ended } else { &mut open };
                list.push(entry);
            }
            line.clear();
        }
    }
    open.retain(|open| !ended.iter().any(|ended| is_same(open, ended)));
    ended.extend(open);
    // Not before: the end of a session says that a beginning is not meant.
    ended.retain(|entry| question.covers(entry.start, entry.end));
    ended.sort_by_key(|entry| entry.start);
    ended.dedup_by(|one, other| is_same(one, other));
    Ok(ended)
}

/// What a line has that answers: records are written by [`Entry::write`] alone.
fn needle(question: &Question) -> String {
    let Question { address, port, .. } = question;
    format!("\"translated\":{{\"address\":\"{address}\",\"port\":{port}}}")
}

/// Whether two records are of one session.
pub fn is_same(one: &Entry<'_>, other: &Entry<'_>) -> bool {
    one.proto == other.proto
        && one.source == other.source
        && one.destination == other.destination
        && one.translated == other.translated
        && one.start.duration_since(other.start).abs() <= SLACK
}
