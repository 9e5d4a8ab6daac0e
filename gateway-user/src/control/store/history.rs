//! Revisions that are kept: those of `state.json`, and of the files that it has replaced.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use serde::Deserialize;

use super::{CHANGE, FILE, Made, STATE, Saved, read, verified};
use crate::model::Snapshot;

/// Most files there are beside `state.json`.
const MAX_FILES: usize = 16;
/// Most bytes they may have together. The newest stays in any case: the last change can be undone however large it is.
const MAX_BYTES: u64 = 64 << 20;

/// What comes before and after the last revision in the name of a file.
const NAME: (&str, &str) = ("history-", ".json");

/// Who made a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The revision.
    pub revision: u64,
    /// Who made it; `None` where that was not written down.
    pub made: Option<Made>,
}

/// The revisions that are kept in `directory`, the newest first.
///
/// # Errors
/// The directory cannot be read. Files and lines in it that cannot be read are left out.
pub(in crate::control) fn list(directory: &Path) -> anyhow::Result<Vec<Kept>> {
    let mut kept = BTreeMap::new();
    for (_, path) in files(directory)? {
        let Ok(bytes) = fs::read(&path) else { continue };
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let begin = if line.starts_with(STATE) { STATE } else { CHANGE };
            let head = verified(line, begin).and_then(|text| serde_json::from_slice::<Head>(text).ok());
            let Some(Head { revision, made }) = head else { break };
            kept.entry(revision).or_insert(made);
        }
    }
    Ok(kept.into_iter().rev().map(|(revision, made)| Kept { revision, made }).collect())
}

/// Revision `revision` as it was saved in `directory`; `None` if it is not kept. What it leaves to the configuration
/// file comes from `base`.
///
/// # Errors
/// The file that should have it cannot be used.
pub(in crate::control) fn find(
    directory: &Path,
    revision: u64,
    base: &Snapshot,
) -> anyhow::Result<Option<Saved>> {
    let files = files(directory)?;
    let Some((_, path)) = files.into_iter().find(|(last, _)| *last >= revision) else { return Ok(None) };
    let unreadable = || format!("cannot read {}", path.display());
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(unreadable),
    };
    let read = read(&bytes, base, revision).map_err(anyhow::Error::msg).with_context(unreadable)?;
    Ok(Some(read.saved).filter(|saved| saved.revision == revision))
}

/// Keeps `file`, whose last revision is `last`, under another name, as it is about to be replaced.
pub(super) fn keep(directory: &Path, file: &Path, last: u64) -> io::Result<()> {
    let kept = directory.join(format!("{}{last}{}", NAME.0, NAME.1));
    match fs::remove_file(&kept) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => fs::hard_link(file, &kept)?,
    }
    let (mut count, mut bytes) = (0, 0);
    for (_, path) in files(directory)?.into_iter().rev().filter(|(last, _)| *last != u64::MAX) {
        bytes += fs::metadata(&path)?.len();
        count += 1;
        if count > 1 && (count > MAX_FILES || bytes > MAX_BYTES) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// What is asked of a line.
#[derive(Deserialize)]
struct Head {
    revision: u64,
    #[serde(default)]
    made: Option<Made>,
}

/// The files and their last revisions, in order. The last one is `state.json`, with the highest number there is.
fn files(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = vec![(u64::MAX, directory.join(FILE))];
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_prefix(NAME.0)?.strip_suffix(NAME.1)?.parse().ok());
        files.extend(number.map(|number| (number, entry.path())));
    }
    files.sort_unstable();
    Ok(files)
}

/// The state of a revision that was found, on a configuration file that says `base`; `None`: it was that of another
/// configuration file.
pub(in crate::control) fn state_of(
    saved: Saved,
    base: &Arc<Snapshot>,
    fingerprint: &str,
) -> Option<Arc<Snapshot>> {
    match saved.running {
        Some(running) => Some(running),
        None => (saved.base == fingerprint).then(|| Arc::clone(base)),
    }
}
