//! The threads of the data plane: one owns it, because writing maps blocks and nothing else may wait for it; one
//! removes sessions.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::IpAddr,
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
    dataplane::{Dataplane, Host, SWEEP_INTERVAL, Sweeper},
    model::Snapshot,
    priority,
};

/// How often a fault that repeats with every sweep is logged.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);

/// Pause between two slices of the sweep that have much to do.
const BREATH: Duration = Duration::from_micros(500);

/// The way to the threads.
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
    /// Dropped to end the thread that sweeps.
    sweeping: mpsc::Sender<Infallible>,
    threads: [thread::JoinHandle<()>; 2],
    ended: [oneshot::Receiver<()>; 2],
}

enum Job {
    Apply { from: Option<Arc<Snapshot>>, to: Arc<Snapshot>, stands_back: bool, reply: Reply },
    HostChanged { host: Host, reply: Reply },
    HealthChanged { up: BTreeMap<(String, IpAddr), bool>, reply: Reply },
    Remove { reply: Reply },
}

type Reply = oneshot::Sender<anyhow::Result<()>>;

impl Worker {
    /// Starts the threads.
    pub(super) fn start(dataplane: Box<dyn Dataplane>) -> anyhow::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let (sweeping, end) = mpsc::channel();
        let sweeper = dataplane.sweeper();
        let (thread, ended) = spawn("dataplane", move || work(dataplane, &queue))?;
        let (sweep_thread, sweep_ended) = spawn("sweep", move || sweep(&*sweeper, &end))?;
        Ok(Self { jobs, sweeping, threads: [thread, sweep_thread], ended: [ended, sweep_ended] })
    }

    /// See [`Dataplane::apply`]. A change that is large stands back for packets.
    pub(super) async fn apply(
        &self,
        from: Option<Arc<Snapshot>>,
        to: Arc<Snapshot>,
        stands_back: bool,
    ) -> anyhow::Result<()> {
        self.call(|reply| Job::Apply { from, to, stands_back, reply }).await
    }

    /// See [`Dataplane::host_changed`].
    pub(super) async fn host_changed(&self, host: Host) -> anyhow::Result<()> {
        self.call(|reply| Job::HostChanged { host, reply }).await
    }

    /// See [`Dataplane::health_changed`].
    pub(super) async fn health_changed(&self, up: BTreeMap<(String, IpAddr), bool>) -> anyhow::Result<()> {
        self.call(|reply| Job::HealthChanged { up, reply }).await
    }

    /// See [`Dataplane::remove`].
    pub(super) async fn remove(&self) -> anyhow::Result<()> {
        self.call(|reply| Job::Remove { reply }).await
    }

    /// Waits until one of the threads has ended, which they do by themselves only when the data plane panics.
    pub(super) async fn ended(&mut self) {
        let [work, sweep] = &mut self.ended;
        tokio::select! {
            _ = work => {}
            _ = sweep => {}
        }
    }

    /// Ends the threads and drops the data plane.
    pub(super) async fn stop(self) {
        drop((self.jobs, self.sweeping));
        let threads = self.threads;
        // A panic has been reported by the panic hook.
        let _ = tokio::task::spawn_blocking(move || threads.map(thread::JoinHandle::join)).await;
    }

    async fn call(&self, job: impl FnOnce(Reply) -> Job) -> anyhow::Result<()> {
        let gone = || anyhow!("the thread of the data plane is gone");
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Starts a thread; also returns what ends with it, however it does.
fn spawn(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> anyhow::Result<(thread::JoinHandle<()>, oneshot::Receiver<()>)> {
    let (alive, ended) = oneshot::channel();
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Dropped when the thread ends.
            let _alive: oneshot::Sender<()> = alive;
            run();
        })
        .with_context(|| format!("cannot start the thread `{name}`"))?;
    Ok((thread, ended))
}

/// The thread that owns the data plane.
fn work(mut dataplane: Box<dyn Dataplane>, queue: &mpsc::Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        // Whoever asked may have gone when the answer is there; the work is done all the same.
        match job {
            Job::Apply { from, to, stands_back, reply } => {
                let mut apply = || dataplane.apply(from.as_deref(), &to);
                drop(reply.send(if stands_back { priority::standing_back(apply) } else { apply() }));
            }
            Job::HostChanged { host, reply } => drop(reply.send(dataplane.host_changed(&host))),
            Job::HealthChanged { up, reply } => drop(reply.send(dataplane.health_changed(&up))),
            Job::Remove { reply } => {
                drop(reply.send(dataplane.remove()));
                return;
            }
        }
    }
}

/// The thread that removes sessions.
fn sweep(sweeper: &dyn Sweeper, end: &mpsc::Receiver<Infallible>) {
    let mut pause = SWEEP_INTERVAL;
    let (mut turn_began, mut last_complaint): (Option<Instant>, Option<Instant>) = (None, None);
    let mut urgent = false;
    set_priority(urgent);
    while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(pause) {
        let turn = turn_began.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL);
        if turn {
            turn_began = Some(Instant::now());
        }
        let swept = sweeper.sweep(turn);
        if let Err(error) = &swept
            && last_complaint.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL)
        {
            warn!("cannot remove idle sessions: {error:#}");
            last_complaint = Some(Instant::now());
        }
        let swept = swept.unwrap_or_default();
        pause = if swept.busy { BREATH } else { SWEEP_INTERVAL };
        if swept.urgent != urgent {
            urgent = swept.urgent;
            set_priority(urgent);
        }
    }
}

/// Sets the priority of the calling thread. A million sessions that expire at once take minutes to go where packets need
/// the processor, which nobody feels until new flows find no room: while they do, it takes its half.
fn set_priority(urgent: bool) {
    priority::set(if urgent { priority::FULL } else { priority::UNNOTICED });
}
