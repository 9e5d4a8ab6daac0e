//! The way to the control plane.

use std::{path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Command, Current, Kept, Message, Peer, Request, Wish, store};
use crate::{
    api::{ApiError, ErrorKind, types::Change},
    dataplane::{Host, Observe},
    health::Health,
    model::Snapshot,
};

/// The way to the control plane. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) messages: mpsc::Sender<Message>,
    /// Of the store.
    pub(super) directory: Arc<Path>,
    pub(super) current: Arc<ArcSwap<Current>>,
    pub(super) revisions: watch::Receiver<u64>,
    pub(super) host: Arc<ArcSwap<Host>>,
    pub(super) health: Arc<ArcSwap<Health>>,
    pub(super) observe: Arc<dyn Observe>,
}

/// How a whole state is to be put in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApplyOptions {
    /// Whether nothing is to be done but to say what would be.
    pub check: bool,
    /// Within which time it has to be confirmed, or it is taken back.
    pub confirm: Option<Duration>,
    /// The revision that the caller believes to be in force.
    pub expect: Option<u64>,
}

impl Handle {
    /// Makes a change. When this returns, it is in force and saved, or nothing has changed.
    pub async fn change(&self, command: Command, peer: Peer) -> Result<Change, ApiError> {
        self.ask(Wish::Command(command), peer).await
    }

    /// Puts `state` in the place of what is in force, or says whether it could be.
    pub async fn apply(
        &self,
        state: Snapshot,
        options: ApplyOptions,
        peer: Peer,
    ) -> Result<Change, ApiError> {
        self.ask(Wish::Apply(Arc::new(state), options), peer).await
    }

    /// Brings a revision back, the one before the present one if none is named. It gets a number of its own.
    pub async fn undo(&self, revision: Option<u64>, peer: Peer) -> Result<Change, ApiError> {
        self.ask(Wish::Undo(revision), peer).await
    }

    /// Keeps what waits to be confirmed.
    pub async fn confirm(&self, peer: Peer) -> Result<Change, ApiError> {
        self.ask(Wish::Confirm, peer).await
    }

    /// The revisions that can be brought back, and who made them; the newest first. Blocks while files are read.
    pub fn history(&self) -> anyhow::Result<Vec<Kept>> {
        store::history::list(&self.directory)
    }

    async fn ask(&self, wish: Wish, peer: Peer) -> Result<Change, ApiError> {
        let stopping = || ApiError::new("daemon", ErrorKind::Internal, "the daemon is stopping");
        let (reply, answer) = oneshot::channel();
        let message = Message::Change(Request { wish, peer, reply });
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
