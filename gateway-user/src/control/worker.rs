//! The thread that owns the data plane. Writing maps blocks; nothing else may wait for it.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use tokio::sync::oneshot;
use tracing::warn;

use crate::{
    dataplane::{Dataplane, Host, SWEEP_INTERVAL},
    model::Snapshot,
};

/// How often a fault that repeats with every sweep is logged.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);

/// The way to the thread.
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
    thread: thread::JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

enum Job {
    Apply { from: Option<Arc<Snapshot>>, to: Arc<Snapshot>, reply: Reply },
    HostChanged { host: Host, reply: Reply },
    Remove { reply: Reply },
}

type Reply = oneshot::Sender<anyhow::Result<()>>;

impl Worker {
    /// Starts the thread.
    pub(super) fn start(dataplane: Box<dyn Dataplane>) -> anyhow::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let (alive, ended) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("dataplane".to_owned())
            .spawn(move || {
                // Dropped when the thread ends, however it does.
                let _alive: oneshot::Sender<()> = alive;
                work(dataplane, &queue);
            })
            .context("cannot start the thread of the data plane")?;
        Ok(Self { jobs, thread, ended })
    }

    /// See [`Dataplane::apply`].
    pub(super) async fn apply(&self, from: Option<Arc<Snapshot>>, to: Arc<Snapshot>) -> anyhow::Result<()> {
        self.call(|reply| Job::Apply { from, to, reply }).await
    }

    /// See [`Dataplane::host_changed`].
    pub(super) async fn host_changed(&self, host: Host) -> anyhow::Result<()> {
        self.call(|reply| Job::HostChanged { host, reply }).await
    }

    /// See [`Dataplane::remove`].
    pub(super) async fn remove(&self) -> anyhow::Result<()> {
        self.call(|reply| Job::Remove { reply }).await
    }

    /// Waits until the thread has ended, which it does by itself only when the data plane panics.
    pub(super) async fn ended(&mut self) {
        let _ = (&mut self.ended).await;
    }

    /// Ends the thread and drops the data plane.
    pub(super) async fn stop(self) {
        drop(self.jobs);
        let thread = self.thread;
        // A panic has been reported by the panic hook.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }

    async fn call(&self, job: impl FnOnce(Reply) -> Job) -> anyhow::Result<()> {
        let gone = || anyhow!("the thread of the data plane is gone");
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn work(mut dataplane: Box<dyn Dataplane>, queue: &mpsc::Receiver<Job>) {
    let mut next_sweep = Instant::now() + SWEEP_INTERVAL;
    let mut last_complaint: Option<Instant> = None;
    loop {
        let wait = next_sweep.saturating_duration_since(Instant::now());
        // Asked before the queue, so that a stream of commands does not keep sessions from expiring.
        if wait.is_zero() {
            if let Err(error) = dataplane.sweep()
                && last_complaint.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL)
            {
                warn!("cannot remove idle sessions: {error:#}");
                last_complaint = Some(Instant::now());
            }
            next_sweep = Instant::now() + SWEEP_INTERVAL;
            continue;
        }
        // Whoever asked may have gone when the answer is there; the work is done all the same.
        match queue.recv_timeout(wait) {
            Ok(Job::Apply { from, to, reply }) => drop(reply.send(dataplane.apply(from.as_deref(), &to))),
            Ok(Job::HostChanged { host, reply }) => drop(reply.send(dataplane.host_changed(&host))),
            Ok(Job::Remove { reply }) => {
                drop(reply.send(dataplane.remove()));
                return;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
