//! The control plane: one task owns the desired state and brings the data plane to it.
//!
//! ```text
//! Handle::change ─> command ─> next state ─> validate ─> data plane ─> state directory ─> publish ─> answer
//! ```
//! A change is all or nothing: what fails before the last step leaves everything as it was. Readers
//! ([`Handle::current`]) never wait for writers: they take the state that was published last.

mod command;
mod saved;
mod store;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::{
    api::{ApiError, ErrorKind, types::Change},
    dataplane::{Dataplane, Host, Observe},
    health::Health,
    model::{Snapshot, Violation, validate, validate_change},
    refused::Refused,
};

pub use command::{Command, Entry, Import, LimitChanges, ProxyChanges, not_found};
pub use store::{Saved, Store};
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
    /// Why the last change could not be put in force or saved; `None` if it was.
    pub apply_error: Option<String>,
    /// Why the data plane could not follow the last change of the host's links; `None` if it could.
    pub host_error: Option<String>,
    /// Why the data plane could not be told which hosts of proxies are up; `None` if it could.
    pub health_error: Option<String>,
}

/// The way to the control plane. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    messages: mpsc::Sender<Message>,
    current: Arc<ArcSwap<Current>>,
    revisions: watch::Receiver<u64>,
    host: Arc<ArcSwap<Host>>,
    health: Arc<ArcSwap<Health>>,
    observe: Arc<dyn Observe>,
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
    command: Command,
    peer: Peer,
    reply: oneshot::Sender<Result<Change, ApiError>>,
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
    let Boot { current, base_fingerprint } = boot(&base, &mut store)?;
    let worker = Worker::start(dataplane)?;
    worker.host_changed(host.clone()).await.context("cannot tell the data plane about the host")?;
    worker.apply(None, current.snapshot.clone()).await.context("cannot put the state in force")?;
    let (revision, revisions) = watch::channel(current.revision);
    let current = Arc::new(ArcSwap::from_pointee(current));
    let health: Arc<ArcSwap<Health>> = Arc::default();
    let store = Arc::new(Mutex::new(store));
    let task = Task { worker, store, base, base_fingerprint, current, revision, health: health.clone() };
    task.save(&task.current.load()).await.context("cannot save the state")?;
    info!(revision = task.current.load().revision, "the data plane has its state");
    let (messages, queue) = mpsc::channel(QUEUE);
    let handle = Handle {
        messages: messages.clone(),
        current: task.current.clone(),
        revisions,
        host: Arc::new(ArcSwap::from_pointee(host)),
        health,
        observe,
    };
    Ok((handle, Control { task: tokio::spawn(task.run(queue)), messages }))
}

impl Handle {
    /// Makes a change. When this returns, it is in force and saved, or nothing has changed.
    pub async fn change(&self, command: Command, peer: Peer) -> Result<Change, ApiError> {
        let stopping = || ApiError::new("daemon", ErrorKind::Internal, "the daemon is stopping");
        let (reply, answer) = oneshot::channel();
        let message = Message::Change(Request { command, peer, reply });
        self.messages.send(message).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Tells the data plane what the host looks like. Returns when it is queued.
    pub async fn host_changed(&self, host: Host) {
        self.host.store(Arc::new(host.clone()));
        // A control plane that has stopped has no use for it.
        let _ = self.messages.send(Message::HostChanged(host)).await;
    }

    /// What the host looked like when the data plane was last told.
    pub fn host(&self) -> Arc<Host> {
        self.host.load_full()
    }

    /// Tells the data plane which hosts of proxies are up. Returns when it is queued.
    pub async fn health_changed(&self, health: Health) {
        // A control plane that has stopped has no use for it.
        let _ = self.messages.send(Message::HealthChanged(health)).await;
    }

    /// What is known of the hosts of proxies; the data plane has been told.
    pub fn health(&self) -> Arc<Health> {
        self.health.load_full()
    }

    /// Changes with every revision that comes into force.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revisions.clone()
    }

    /// What is in force.
    pub fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// The state in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load().snapshot.clone()
    }

    /// The revision in force.
    pub fn revision(&self) -> u64 {
        self.current.load().revision
    }

    /// Whether the last change could be put in force.
    pub fn last_apply_success(&self) -> bool {
        self.current.load().apply_error.is_none()
    }

    /// The reading side of the data plane.
    pub fn observe(&self) -> Arc<dyn Observe> {
        self.observe.clone()
    }
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

/// What to start with.
struct Boot {
    current: Current,
    base_fingerprint: String,
}

/// Decides between the saved state and the configuration file.
fn boot(base: &Base, store: &mut Store) -> anyhow::Result<Boot> {
    validate(&base.snapshot).context("the configuration is not acceptable")?;
    let current = |snapshot, revision| Current {
        snapshot,
        revision,
        config_differs: false,
        config_changed: false,
        apply_error: None,
        host_error: None,
        health_error: None,
    };
    let from_base = |revision| Boot {
        current: current(base.snapshot.clone(), revision),
        base_fingerprint: base.fingerprint.clone(),
    };
    let Some(saved) = store.load(&base.snapshot)? else { return Ok(from_base(1)) };
    let file_changed = saved.base != base.fingerprint;
    let Some(running) = saved.running else {
        return Ok(from_base(saved.revision + u64::from(file_changed)));
    };
    if *running == *base.snapshot {
        return Ok(from_base(saved.revision));
    }
    validate(&running).map_err(|violation| {
        Refused::error(
            format!("what was changed at run time does not fit the configuration file: {violation}"),
            "change the configuration file back, or move the file state.json in the state directory away; \
             the changes made with gwctl are lost then",
        )
    })?;
    if file_changed {
        warn!("the configuration file has changed, and changes made with gwctl win over it");
    } else {
        info!("changes made with gwctl win over the configuration file");
    }
    let current =
        Current { config_differs: true, config_changed: file_changed, ..current(running, saved.revision) };
    Ok(Boot { current, base_fingerprint: saved.base })
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
}

impl Task {
    /// Runs until it is told to stop, or until the data plane's thread has died.
    async fn run(mut self, mut queue: mpsc::Receiver<Message>) -> anyhow::Error {
        let mut next = None;
        loop {
            let message = if next.is_some() {
                next.take()
            } else {
                tokio::select! {
                    message = queue.recv() => message,
                    () = self.worker.ended() => None,
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
        let mut answers = Vec::with_capacity(requests.len());
        for Request { command, peer, reply } in requests {
            let result = self.put_in_force(&mut after, &command).await;
            answers.push((command, peer, reply, result));
        }
        let saved = if after.revision == before.revision { Ok(()) } else { self.save(&after).await };
        let unsaved = match saved {
            Ok(()) => {
                self.publish(after);
                None
            }
            Err(error) => {
                self.base_fingerprint = fingerprint;
                Some(self.take_back(&before, after, &error).await)
            }
        };
        for (command, peer, reply, result) in answers {
            let result = match (&unsaved, result) {
                (Some(error), Ok(Change { changed: true, .. })) => Err(error.clone()),
                (_, result) => result,
            };
            match &result {
                Ok(Change { changed: true, revision, .. }) => info!(%peer, %command, revision, "changed"),
                Ok(_) => {}
                Err(refused) => info!(%peer, %command, code = refused.code, "refused: {refused}"),
            }
            // Whoever asked may have gone; the change stands all the same.
            let _ = reply.send(result);
        }
    }

    /// Makes a change, which is not saved, of what is in force.
    async fn put_in_force(&mut self, current: &mut Current, command: &Command) -> Result<Change, ApiError> {
        let Some(next) = plan(command.clone(), current.snapshot.clone()).await? else {
            return Ok(Change::new(current.revision, false));
        };
        let next = Arc::new(next);
        if let Err(error) = self.worker.apply(Some(current.snapshot.clone()), next.clone()).await {
            error!(%command, "rolled back: {error:#}");
            current.apply_error = Some(format!("{error:#}"));
            return Err(rolled_back(&error));
        }
        let config_differs = *next != *self.base.snapshot;
        if !config_differs {
            self.base_fingerprint.clone_from(&self.base.fingerprint);
        }
        *current = Current {
            snapshot: next,
            revision: current.revision + 1,
            config_differs,
            config_changed: config_differs && self.base_fingerprint != self.base.fingerprint,
            apply_error: None,
            ..current.clone()
        };
        Ok(Change::new(current.revision, true))
    }

    /// Undoes what is in force and could not be saved. Returns what to tell those who asked for it.
    async fn take_back(&self, before: &Current, after: Current, cause: &anyhow::Error) -> ApiError {
        // The file may have been replaced before the failure.
        if let Err(error) = self.save(before).await {
            warn!("cannot save the state that was in force before: {error:#}");
        }
        match self.worker.apply(Some(after.snapshot.clone()), before.snapshot.clone()).await {
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

    async fn save(&self, current: &Current) -> anyhow::Result<()> {
        let store = self.store.clone();
        let running = current.config_differs.then(|| current.snapshot.clone());
        let saved = Saved { revision: current.revision, base: self.base_fingerprint.clone(), running };
        let write = move || store.lock().unwrap_or_else(PoisonError::into_inner).save(saved);
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

/// The state after `command`, checked; `None` if that is `state` itself. Large tables take a while.
async fn plan(command: Command, state: Arc<Snapshot>) -> Result<Option<Snapshot>, ApiError> {
    let plan = move || {
        let next = command.change(&state)?;
        if next == *state {
            return Ok(None);
        }
        validate_change(Some(&*state), &next).map_err(|violation| explain(&command, violation))?;
        Ok(Some(next))
    };
    let fault =
        |error| ApiError::new("daemon", ErrorKind::Internal, format!("cannot plan the change: {error}"));
    tokio::task::spawn_blocking(plan).await.map_err(fault)?
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
