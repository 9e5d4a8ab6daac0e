//! Revisions of before, and those that somebody has to confirm.
//!
//! What is not confirmed in time is taken back: the state of the revision before comes into force again, as a revision
//! of its own. The time goes on while the daemon is away; one that starts later takes it back then.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use tracing::{error, info, warn};

use super::{
    Base, Command, Current, Made, Origin, Peer, Saved, Task, Wish,
    store::history::{self, state_of},
};
use crate::{
    api::{ApiError, ErrorKind},
    model::Snapshot,
};

/// A change that has to be confirmed, or had to be.
#[derive(Clone, Debug)]
pub struct Confirmation {
    /// Its revision.
    pub revision: u64,
    /// Until when: milliseconds since 1970 (UTC).
    pub by: u64,
    /// What came of it; `None`: it waits.
    pub answer: Option<Answer>,
    /// What comes into force again if nobody confirms it.
    back: Arc<Snapshot>,
}

/// What came of a change that had to be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Somebody has confirmed it.
    Confirmed,
    /// It was taken back.
    TakenBack,
}

impl Confirmation {
    pub(super) fn new(revision: u64, within: Duration, back: Arc<Snapshot>) -> Self {
        let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        Self { revision, by: now().saturating_add(within), answer: None, back }
    }

    /// What comes into force again, while it waits.
    pub(super) fn waits(&self) -> Option<Arc<Snapshot>> {
        self.answer.is_none().then(|| self.back.clone())
    }

    /// Until when it has to be confirmed, while it waits.
    pub(super) fn confirm_by(&self) -> Option<u64> {
        self.answer.is_none().then_some(self.by)
    }

    pub(super) fn answered(self, answer: Answer) -> Self {
        Self { answer: Some(answer), ..self }
    }

    /// How much time there is left.
    pub fn left(&self) -> Duration {
        Duration::from_millis(self.by.saturating_sub(now()))
    }
}

impl Made {
    /// A revision that somebody makes, or the gateway itself.
    pub(super) fn by(peer: Option<Peer>, command: &Command) -> Self {
        let (uid, pid) = (peer.map(|peer| peer.uid), peer.map(|peer| peer.pid));
        Self { time: now() / 1000, uid, pid, command: command.to_string() }
    }

    pub(super) fn by_gateway(command: &str) -> Self {
        Self { time: now() / 1000, uid: None, pid: None, command: command.to_owned() }
    }
}

/// Milliseconds since 1970 (UTC).
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Waits until what has to be confirmed has not been in time.
pub(super) async fn overdue(confirmation: Option<&Confirmation>) {
    match confirmation.filter(|confirmation| confirmation.answer.is_none()) {
        Some(confirmation) => tokio::time::sleep(confirmation.left()).await,
        None => std::future::pending().await,
    }
}

/// What was saved, or what was there before it where nobody has confirmed it in time.
pub(super) fn after_start(saved: Saved, directory: &Path, base: &Base) -> (Saved, Option<Confirmation>) {
    let Some(by) = saved.confirm_by else { return (saved, None) };
    let revision = saved.revision;
    let found = history::find(directory, revision.saturating_sub(1), &base.snapshot);
    let before = match found.and_then(|found| found.context("what was in force before is not kept")) {
        Ok(before) => before,
        Err(error) => {
            error!(revision, "nobody has confirmed what is in force, and it cannot be taken back: {error:#}");
            return (Saved { confirm_by: None, ..saved }, None);
        }
    };
    let back = before.running.clone().unwrap_or_else(|| base.snapshot.clone());
    let confirmation = Confirmation { revision, by, answer: None, back };
    if by > now() {
        info!(revision, "what is in force has to be confirmed");
        return (saved, Some(confirmation));
    }
    warn!(revision, "nobody has confirmed what was in force; it is taken back");
    let made = Made::by_gateway(&taken_back(revision));
    let saved = Saved { revision: revision + 1, made: Some(made), confirm_by: None, ..before };
    (saved, Some(confirmation.answered(Answer::TakenBack)))
}

/// The answer to `confirm`.
pub(super) fn confirmed(current: &Current) -> Result<Confirmation, ApiError> {
    let nothing = || {
        let message = format!("nothing waits to be confirmed; revision {} is in force", current.revision);
        ApiError::new("confirm", ErrorKind::NotFound, message).hint("`gwctl history` shows what was changed")
    };
    let confirmation = current.confirmation.clone().ok_or_else(nothing)?;
    match confirmation.answer {
        None => Ok(confirmation.answered(Answer::Confirmed)),
        Some(Answer::Confirmed) => Err(nothing()),
        Some(Answer::TakenBack) => {
            let message =
                format!("revision {} was taken back before it was confirmed", confirmation.revision);
            Err(ApiError::new("confirm", ErrorKind::NotFound, message).hint("apply it again"))
        }
    }
}

/// The revision that `undo` brings back.
pub(super) fn to_undo(current: &Current, revision: Option<u64>) -> Result<u64, ApiError> {
    let present = current.revision;
    match revision {
        None if present <= 1 => Err(not_kept(0).hint("nothing has been changed so far")),
        None => Ok(present - 1),
        Some(revision) if revision > present => {
            let message = format!("there is no revision {revision}: {present} is in force");
            Err(ApiError::new("undo", ErrorKind::NotFound, message)
                .hint("see what there is with `gwctl history`"))
        }
        Some(revision) => Ok(revision),
    }
}

/// The answer to those who change something while something else waits to be confirmed.
pub(super) fn in_the_way(revision: u64) -> ApiError {
    let message = format!("revision {revision} waits to be confirmed");
    ApiError::new("apply", ErrorKind::Conflict, message)
        .hint("`gwctl confirm` keeps it, `gwctl undo` takes it back")
}

/// Refuses a change of another revision than the caller believes to be in force.
pub(super) fn expected(current: &Current, expected: Option<u64>) -> Result<(), ApiError> {
    let revision = current.revision;
    match expected {
        Some(expected) if expected != revision => {
            let message = format!("revision {revision} is in force, not {expected}");
            Err(ApiError::new("apply", ErrorKind::Conflict, message)
                .hint("look at what has changed with `gwctl diff -f FILE`, and `gwctl history`")
                .field("expect_revision"))
        }
        _ => Ok(()),
    }
}

impl Task {
    /// The state of a revision of before.
    pub(super) async fn find(&self, revision: u64) -> Result<Arc<Snapshot>, ApiError> {
        let (directory, base) = {
            let store = self.store.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            (store.directory().to_owned(), self.base.clone())
        };
        let find = move || -> Result<Arc<Snapshot>, ApiError> {
            let found = history::find(&directory, revision, &base.snapshot).map_err(|error| {
                ApiError::new(
                    "undo",
                    ErrorKind::Internal,
                    format!("revision {revision} cannot be read: {error:#}"),
                )
            })?;
            let saved = found.ok_or_else(|| not_kept(revision))?;
            state_of(saved, &base.snapshot, &base.fingerprint).ok_or_else(|| {
                let message = format!(
                    "revision {revision} was that of the configuration file, which is another one now"
                );
                ApiError::new("undo", ErrorKind::NotFound, message)
                    .hint("bring the file back and load it with `gwctl apply -f FILE`")
            })
        };
        let fault =
            |error| ApiError::new("daemon", ErrorKind::Internal, format!("cannot look for it: {error}"));
        tokio::task::spawn_blocking(find).await.map_err(fault)?
    }

    /// Takes back what nobody has confirmed.
    pub(super) async fn take_back_unconfirmed(&mut self) {
        let before = self.current.load_full();
        let Some(confirmation) = before.confirmation.clone() else { return };
        let Some(back) = confirmation.waits() else { return };
        let revision = confirmation.revision;
        let command = Command::Apply { state: back, origin: Origin::Unconfirmed(revision) };
        let mut after = (*before).clone();
        // It waits no longer, whatever comes of this.
        after.confirmation = Some(confirmation.answered(Answer::TakenBack));
        let (mut revisions, fingerprint) = (Vec::new(), self.base_fingerprint.clone());
        match self.fulfil(&mut after, &Wish::Command(command), None, &mut revisions).await {
            Ok(_) => warn!(revision, "nobody has confirmed it; it was taken back"),
            Err(refused) => {
                error!(revision, "nobody has confirmed it, and it cannot be taken back: {refused}");
                after.apply_error = Some(refused.message);
            }
        }
        if revisions.is_empty() {
            revisions.push(self.saved(&after, self.made.clone()));
        }
        self.settle(&before, after, fingerprint, revisions).await;
    }
}

/// What took the place of `revision`, in words.
pub(super) fn taken_back(revision: u64) -> String {
    format!("take back revision {revision}, which nobody has confirmed")
}

fn not_kept(revision: u64) -> ApiError {
    let message = if revision == 0 {
        "there is no revision before this one".to_owned()
    } else {
        format!("revision {revision} is not kept")
    };
    ApiError::new("undo", ErrorKind::NotFound, message).hint("see what there is with `gwctl history`")
}
