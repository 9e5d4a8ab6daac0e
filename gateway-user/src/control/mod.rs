//! The control plane: one task owns the desired state and brings the data plane to it.
//!
//! ```text
//! Handle::change ─> command ─> next state ─> validate ─> data plane ─> state directory ─> publish ─> answer
//! ```
//! A change is all or nothing: what fails before the last step leaves everything as it was. Readers
//! ([`Handle::current`]) never wait for writers: they take the state that was published last.
//!
//! A whole state may be put in the place of the present one ([`Handle::apply`]), and one of before be brought back
//! ([`Handle::undo`]). What somebody has to confirm and nobody does is taken back by the task itself, also by that of a
//! daemon that starts later ([`confirm`]).

mod boot;
mod command;
mod confirm;
mod handle;
mod saved;
mod store;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::{
    api::{ApiError, ErrorKind, types::Change},
    dataplane::{Dataplane, Host},
    health::Health,
    model::{Snapshot, Violation, validate_change},
    priority,
};

use boot::{Boot, boot};
pub use command::{Command, Entry, Import, LimitChanges, Origin, ProxyChanges, not_found};
pub use confirm::{Answer, Confirmation};
pub use handle::{ApplyOptions, Handle};
pub use store::{Made, Saved, Store, history::Kept};
use store::{enters_many, is_large};
use worker::Worker;

/// Changes that may wait for their turn; senders beyond that wait to be queued.
const QUEUE: usize = 64;

/// What the configuration file says.
#[derive(Clone, Debug)]
pub struct Base {
    /// The state.
    pub snapshot: Arc<Snapshot>,
    /// Tells one content of the file (and of those it names) from another.
    pub fingerprint: String,
}

/// Who asks for a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Process id; 0 where the kernel did not say.
    pub pid: i32,
}

/// What is in force.
#[derive(Clone, Debug)]
pub struct Current {
    /// The state.
    pub snapshot: Arc<Snapshot>,
    /// Its revision: moves by one with every change, and survives restarts.
    pub revision: u64,
    /// Whether the state differs from the configuration file's.
    pub config_differs: bool,
    /// Whether the configuration file is not the one that the run-time changes were made on.
    pub config_changed: bool,
    /// The last change that had to be confirmed, and what became of it.
    pub confirmation: Option<Confirmation>,
    /// Why the last change could not be put in force or saved; `None` if it was.
    pub apply_error: Option<String>,
    /// Why the data plane could not follow the last change of the host's links; `None` if it could.
    pub host_error: Option<String>,
    /// Why the data plane could not be told which hosts of proxies are up; `None` if it could.
    pub health_error: Option<String>,
}

/// A running control plane.
pub struct Control {
    task: tokio::task::JoinHandle<anyhow::Error>,
    messages: mpsc::Sender<Message>,
}

enum Message {
    Change(Request),
    HostChanged(Host),
    HealthChanged(Health),
    Stop { remove: bool, reply: oneshot::Sender<anyhow::Result<()>> },
}

/// Somebody's wish, and the way to the answer.
struct Request {
    wish: Wish,
    peer: Peer,
    reply: oneshot::Sender<Result<Change, ApiError>>,
}

/// What somebody wants.
#[derive(Clone, Debug)]
enum Wish {
    Command(Command),
    Apply(Arc<Snapshot>, ApplyOptions),
    Undo(Option<u64>),
    Confirm,
}

/// Puts the saved state, or else that of `base`, in force, and starts to take changes.
///
/// # Errors
/// The state cannot be used or put in force. The data plane then does what it did before.
pub async fn start(
    dataplane: Box<dyn Dataplane>,
    host: Host,
    base: Base,
    mut store: Store,
) -> anyhow::Result<(Handle, Control)> {
    let observe = dataplane.observe();
    let Boot { current, base_fingerprint, made } = boot(&base, &mut store)?;
    let worker = Worker::start(dataplane)?;
    worker.host_changed(host.clone()).await.context("cannot tell the data plane about the host")?;
    worker.apply(None, current.snapshot.clone(), false).await.context("cannot put the state in force")?;
    let (revision, revisions) = watch::channel(current.revision);
    let current = Arc::new(ArcSwap::from_pointee(current));
    let health: Arc<ArcSwap<Health>> = Arc::default();
    let store = Arc::new(Mutex::new(store));
    let task =
        Task { worker, store, base, base_fingerprint, current, revision, health: health.clone(), made };
    task.save(vec![task.saved(&task.current.load(), task.made.clone())])
        .await
        .context("cannot save the state")?;
    info!(revision = task.current.load().revision, "the data plane has its state");
    let (messages, queue) = mpsc::channel(QUEUE);
    let handle = Handle {
        messages: messages.clone(),
        directory: task.store.lock().unwrap_or_else(PoisonError::into_inner).directory().into(),
        current: task.current.clone(),
        revisions,
        host: Arc::new(ArcSwap::from_pointee(host)),
        health,
        observe,
    };
    Ok((handle, Control { task: tokio::spawn(task.run(queue)), messages }))
}

impl Control {
    /// Waits until the control plane fails, which it does only when the data plane's thread has died.
    pub async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.task).await {
            Ok(error) => error,
            Err(error) => anyhow!(error).context("the control plane failed"),
        }
    }

    /// Stops taking changes. The data plane keeps forwarding, unless `remove` says to take it away.
    pub async fn stop(self, remove: bool) -> anyhow::Result<()> {
        let (reply, answer) = oneshot::channel();
        let sent = self.messages.send(Message::Stop { remove, reply }).await.is_ok();
        if sent && let Ok(result) = answer.await {
            return result;
        }
        Err(anyhow!("the control plane has failed before"))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {} pid {}", self.uid, self.pid)
    }
}

impl Current {
    fn new(snapshot: Arc<Snapshot>, revision: u64) -> Self {
        Self {
            snapshot,
            revision,
            config_differs: false,
            config_changed: false,
            confirmation: None,
            apply_error: None,
            host_error: None,
            health_error: None,
        }
    }
}

/// The owner of the desired state.
struct Task {
    worker: Worker,
    /// Locked by whoever writes, which blocks.
    store: Arc<Mutex<Store>>,
    base: Base,
    /// Fingerprint of the configuration file that the run-time changes were made on.
    base_fingerprint: String,
    current: Arc<ArcSwap<Current>>,
    /// Of [`Task::current`], for those who wait for changes.
    revision: watch::Sender<u64>,
    health: Arc<ArcSwap<Health>>,
    /// Who made what is in force.
    made: Option<Made>,
}

impl Task {
    /// Runs until it is told to stop, or until the data plane's thread has died.
    async fn run(mut self, mut queue: mpsc::Receiver<Message>) -> anyhow::Error {
        let mut next = None;
        loop {
            let message = if next.is_some() {
                next.take()
            } else {
                let confirmation = self.current.load().confirmation.clone();
                tokio::select! {
                    message = queue.recv() => message,
                    () = self.worker.ended() => None,
                    () = confirm::overdue(confirmation.as_ref()) => {
                        self.take_back_unconfirmed().await;
                        continue;
                    }
                }
            };
            match message {
                Some(Message::Change(request)) => {
                    let mut requests = vec![request];
                    while let (None, Ok(message)) = (&next, queue.try_recv()) {
                        if let Message::Change(request) = message {
                            requests.push(request);
                        } else {
                            next = Some(message);
                        }
                    }
                    self.change(requests).await;
                }
                Some(Message::HostChanged(host)) => self.host_changed(host).await,
                Some(Message::HealthChanged(health)) => self.health_changed(health).await,
                Some(Message::Stop { remove, reply }) => {
                    let result = if remove { self.worker.remove().await } else { Ok(()) };
                    self.worker.stop().await;
                    let _ = reply.send(result);
                    return anyhow!("the control plane was stopped");
                }
                None => return anyhow!("the data plane failed; what is pinned keeps forwarding"),
            }
        }
    }

    /// Makes changes that have come together, one after the other, and saves them together: waiting for the disk is
    /// most of what a small change costs.
    async fn change(&mut self, requests: Vec<Request>) {
        let before = self.current.load_full();
        let fingerprint = self.base_fingerprint.clone();
        let mut after = (*before).clone();
        let mut revisions = Vec::new();
        let mut answers = Vec::with_capacity(requests.len());
        for Request { wish, peer, reply } in requests {
            let result = self.fulfil(&mut after, &wish, Some(peer), &mut revisions).await;
            answers.push((wish, peer, reply, result));
        }
        let unsaved = self.settle(&before, after, fingerprint, revisions).await;
        for (wish, peer, reply, result) in answers {
            let result = match (&unsaved, result) {
                (Some(error), Ok(Change { changed: true, .. })) => Err(error.clone()),
                (_, result) => result,
            };
            match &result {
                Ok(Change { changed: true, revision, .. }) => info!(%peer, %wish, revision, "changed"),
                Ok(_) => {}
                Err(refused) => info!(%peer, %wish, code = refused.code, "refused: {refused}"),
            }
            // Whoever asked may have gone; the change stands all the same.
            let _ = reply.send(result);
        }
    }

    /// Saves and publishes what has come into force, or takes it back; returns what to tell those who asked for it then.
    async fn settle(
        &mut self,
        before: &Current,
        after: Current,
        fingerprint: String,
        revisions: Vec<Saved>,
    ) -> Option<ApiError> {
        let Some(made) = revisions.last().map(|saved| saved.made.clone()) else {
            // Nothing but what failed.
            if after.apply_error != before.apply_error {
                self.publish(after);
            }
            return None;
        };
        match self.save(revisions).await {
            Ok(()) => {
                self.made = made;
                self.publish(after);
                None
            }
            Err(error) => {
                self.base_fingerprint = fingerprint;
                Some(self.take_back(before, after, &error).await)
            }
        }
    }

    /// Does what somebody wants, and adds to `revisions` what is to be saved of it.
    async fn fulfil(
        &mut self,
        current: &mut Current,
        wish: &Wish,
        peer: Option<Peer>,
        revisions: &mut Vec<Saved>,
    ) -> Result<Change, ApiError> {
        let waiting = current.confirmation.as_ref().and_then(Confirmation::waits);
        let (command, options) = match wish {
            Wish::Confirm => {
                let confirmation = confirm::confirmed(current)?;
                current.confirmation = Some(confirmation);
                revisions.push(self.saved(current, self.made.clone()));
                return Ok(Change::new(current.revision, true));
            }
            Wish::Undo(revision) => {
                let revision = confirm::to_undo(current, *revision)?;
                let state = match &waiting {
                    Some(back) if revision + 1 == current.revision => back.clone(),
                    _ => self.find(revision).await?,
                };
                (Command::Apply { state, origin: Origin::Revision(revision) }, ApplyOptions::default())
            }
            _ if waiting.is_some() => return Err(confirm::in_the_way(current.revision)),
            Wish::Apply(state, options) => {
                confirm::expected(current, options.expect)?;
                (Command::Apply { state: state.clone(), origin: Origin::File }, *options)
            }
            Wish::Command(command) => (command.clone(), ApplyOptions::default()),
        };
        let Some(next) = plan(command.clone(), current.snapshot.clone()).await? else {
            if waiting.is_some() {
                // What waited is what was there before.
                current.confirmation = current.confirmation.take().map(|it| it.answered(Answer::TakenBack));
                revisions.push(self.saved(current, self.made.clone()));
            }
            return Ok(Change::new(current.revision, false));
        };
        if options.check {
            return Ok(Change::new(current.revision, true));
        }
        let mut following = self.following(current, Arc::new(next));
        following.confirmation = match options.confirm {
            Some(within) => Some(Confirmation::new(following.revision, within, current.snapshot.clone())),
            None if waiting.is_some() => {
                current.confirmation.clone().map(|it| it.answered(Answer::TakenBack))
            }
            None => current.confirmation.clone(),
        };
        let saved = self.saved(&following, Some(Made::by(peer, &command)));
        self.put_in_force(current, &command, following, &saved).await?;
        revisions.push(saved);
        Ok(Change::new(current.revision, true))
    }

    /// What is in force once `next` is.
    fn following(&self, current: &Current, next: Arc<Snapshot>) -> Current {
        let config_differs = *next != *self.base.snapshot;
        Current {
            snapshot: next,
            revision: current.revision + 1,
            config_differs,
            config_changed: config_differs && self.base_fingerprint != self.base.fingerprint,
            apply_error: None,
            ..current.clone()
        }
    }

    /// Makes a change, which is not saved, of what is in force. What takes long to save is written meanwhile, as `saved`.
    async fn put_in_force(
        &mut self,
        current: &mut Current,
        command: &Command,
        following: Current,
        saved: &Saved,
    ) -> Result<(), ApiError> {
        let (from, to) = (current.snapshot.clone(), following.snapshot.clone());
        let (is_large, stands_back) = (is_large(&from, &to), enters_many(&from, &to));
        let apply = self.worker.apply(Some(from), to, stands_back);
        let (applied, ()) = tokio::join!(apply, self.stage(is_large && saved.running.is_some(), saved));
        if let Err(error) = applied {
            error!(%command, "rolled back: {error:#}");
            current.apply_error = Some(format!("{error:#}"));
            return Err(rolled_back(&error));
        }
        if !following.config_differs {
            self.base_fingerprint.clone_from(&self.base.fingerprint);
        }
        *current = following;
        Ok(())
    }

    /// Writes what is to be saved beside what is, if that is worth it.
    async fn stage(&self, is_worth_it: bool, saved: &Saved) {
        if !is_worth_it {
            return;
        }
        let (store, saved) = (self.store.clone(), saved.clone());
        let stage = move || store.lock().unwrap_or_else(PoisonError::into_inner).stage(saved);
        // It is tried again when it is saved, and told then.
        if let Err(error) = priority::stand_back(stage).await.flatten() {
            warn!("cannot write the state beside the one in force: {error}");
        }
    }

    /// Undoes what is in force and could not be saved. Returns what to tell those who asked for it.
    async fn take_back(&self, before: &Current, after: Current, cause: &anyhow::Error) -> ApiError {
        // The file may have been replaced before the failure.
        if let Err(error) = self.save(vec![self.saved(before, self.made.clone())]).await {
            warn!("cannot save the state that was in force before: {error:#}");
        }
        let stands_back = enters_many(&after.snapshot, &before.snapshot);
        let back = self.worker.apply(Some(after.snapshot.clone()), before.snapshot.clone(), stands_back);
        match back.await {
            Ok(()) => {
                error!("rolled back: {cause:#}");
                self.publish(Current { apply_error: Some(format!("{cause:#}")), ..before.clone() });
                rolled_back(cause)
            }
            Err(failure) => {
                // The truth is what the data plane does.
                error!("in force, not saved ({cause:#}), and not taken back: {failure:#}");
                let message = format!("the change is in force but could not be saved: {cause:#}");
                self.publish(Current { apply_error: Some(message.clone()), ..after });
                ApiError::new("state", ErrorKind::Internal, message)
                    .hint("make room in the state directory and make any change again, or it will be lost")
            }
        }
    }

    /// What is to be saved of `current`.
    fn saved(&self, current: &Current, made: Option<Made>) -> Saved {
        Saved {
            revision: current.revision,
            base: if current.config_differs { &self.base_fingerprint } else { &self.base.fingerprint }
                .clone(),
            running: current.config_differs.then(|| current.snapshot.clone()),
            made,
            confirm_by: current.confirmation.as_ref().and_then(Confirmation::confirm_by),
        }
    }

    async fn save(&self, revisions: Vec<Saved>) -> anyhow::Result<()> {
        let store = self.store.clone();
        let write = move || store.lock().unwrap_or_else(PoisonError::into_inner).save_all(revisions);
        tokio::task::spawn_blocking(write).await?
    }

    async fn host_changed(&self, host: Host) {
        let host_error = self.worker.host_changed(host).await.err().map(|error| format!("{error:#}"));
        if let Some(error) = &host_error {
            error!("the data plane cannot follow a change of the host's links: {error}");
        }
        let current = self.current.load_full();
        if current.host_error != host_error {
            self.publish(Current { host_error, ..(*current).clone() });
        }
    }

    async fn health_changed(&self, health: Health) {
        let known = health.iter().filter_map(|(host, health)| Some((host.clone(), health.state.is_up()?)));
        let told = self.worker.health_changed(known.collect()).await;
        self.health.store(Arc::new(health));
        let health_error = told.err().map(|error| format!("{error:#}"));
        if let Some(error) = &health_error {
            error!("the data plane cannot be told which hosts of proxies are up: {error}");
        }
        let current = self.current.load_full();
        if current.health_error != health_error {
            self.publish(Current { health_error, ..(*current).clone() });
        }
    }

    fn publish(&self, current: Current) {
        let revision = current.revision;
        self.current.store(Arc::new(current));
        self.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
    }
}

/// The answer to those whose change came to nothing.
fn rolled_back(cause: &anyhow::Error) -> ApiError {
    let message = format!("the change could not be put in force and was rolled back: {cause:#}");
    ApiError::new("apply", ErrorKind::RolledBack, message)
        .hint("nothing has changed; see the log of gatewayd for what led to it")
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(command) => command.fmt(f),
            Self::Apply(_, ApplyOptions { check: true, .. }) => f.write_str("apply --check"),
            Self::Apply(..) => f.write_str("apply"),
            Self::Undo(Some(revision)) => write!(f, "undo {revision}"),
            Self::Undo(None) => f.write_str("undo"),
            Self::Confirm => f.write_str("confirm"),
        }
    }
}

/// The state after `command`, checked; `None` if that is `state` itself. Large tables take a while.
async fn plan(command: Command, state: Arc<Snapshot>) -> Result<Option<Snapshot>, ApiError> {
    let carries_many = if let Command::Apply { state: whole, .. } = &command {
        enters_many(&state, whole)
    } else {
        matches!(command, Command::RouteImport(_))
    };
    let plan = move || {
        let next = command.change(&state)?;
        if next == *state {
            return Ok(None);
        }
        validate_change(Some(&*state), &next).map_err(|violation| explain(&command, violation))?;
        Ok(Some(next))
    };
    let planned = if carries_many {
        priority::stand_back(plan).await
    } else {
        tokio::task::spawn_blocking(plan).await.map_err(io::Error::from)
    };
    let fault =
        |error| ApiError::new("daemon", ErrorKind::Internal, format!("cannot plan the change: {error}"));
    planned.map_err(fault)?
}

/// A violation, as the error of the command that would have led to it.
fn explain(command: &Command, violation: Violation) -> ApiError {
    let Violation { subject, error } = violation;
    let foreign = *subject != command.subject();
    let mut explained = ApiError::value(subject.noun(), error);
    if foreign {
        explained.message = format!("{subject}: {}", explained.message);
        explained.field = None;
    }
    explained
}
