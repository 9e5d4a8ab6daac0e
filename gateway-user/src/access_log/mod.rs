//! The access log: what the packet path has recorded of sessions, written down.
//!
//! ```text
//! RECORDS ──> reader ──(bounded queue)──> writer ──> sink
//! ```
//!
//! Two threads: one takes records out of the kernel's ring buffer before it is full, and never waits for anything; the
//! other writes them, and waits for the disk if it must. What finds no room between them is lost, and so is what is
//! above the configured rate and what the sink does not take. Every record that is lost is counted, with the cause
//! ([`Lost`]); those that found no room in the ring buffer are counted by the packet path.

mod entry;
mod file;
mod ipfix;
mod journal;
#[cfg(test)]
mod tests;
pub mod whohad;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    dataplane::{Logged, Records},
    model::{AccessLog, Sink},
};

pub use entry::{End, Entry, Flow};
pub use file::FileSink;
use ipfix::Exporter;
use journal::Journal;

/// How often the reader looks: the ring buffer holds 34,000 records, the more the longer it takes.
const INTERVAL: Duration = Duration::from_millis(50);
/// Records that are taken out at once.
const BATCH: usize = 4_096;
/// Batches between reader and writer.
const BACKLOG: usize = 64;
/// How often the sink is looked after where nothing is written.
const IDLE: Duration = Duration::from_millis(250);
/// Time between two complaints about a sink.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);

/// Why a record was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The writer has fallen behind.
    Queue,
    /// There were more in a second than the configuration allows.
    Rate,
    /// The sink has not taken it.
    Sink,
}

impl Lost {
    /// Every cause.
    pub const ALL: [Self; 3] = [Self::Queue, Self::Rate, Self::Sink];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Rate => "rate",
            Self::Sink => "sink",
        }
    }
}

/// What has become of records since the daemon began.
#[derive(Debug, Default)]
pub struct Stats {
    written: AtomicU64,
    lost: [AtomicU64; 3],
}

impl Stats {
    /// Records that the sink has taken.
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Records that were lost.
    pub fn lost(&self, cause: Lost) -> u64 {
        self.lost[cause as usize].load(Relaxed)
    }

    fn lose(&self, cause: Lost, count: u64) {
        self.lost[cause as usize].fetch_add(count, Relaxed);
    }
}

/// Takes records.
pub trait Write: Send {
    /// Takes records. Returns how many it has taken, and why not all of them.
    fn write(&mut self, records: &[&Logged]) -> (usize, anyhow::Result<()>);

    /// Does what is due by now, such as beginning another file. Called several times a second.
    ///
    /// # Errors
    /// What is due cannot be done.
    fn look_after(&mut self) -> anyhow::Result<()>;
}

/// An access log that is being written.
pub struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Opens the sink of a configuration.
///
/// # Errors
/// It cannot be written to.
pub fn open(log: &AccessLog) -> anyhow::Result<Box<dyn Write>> {
    match &log.path {
        Sink::File(path) => {
            let sink = FileSink::open(path, log)
                .with_context(|| format!("cannot write the access log {}", path.display()))?;
            Ok(Box::new(sink))
        }
        Sink::Journal => {
            let sink = Journal::open(Path::new(journal::SOCKET)).context("cannot write the access log")?;
            Ok(Box::new(sink))
        }
        Sink::Ipfix(collector) => {
            let sink = Exporter::open(*collector).context("cannot export the access log")?;
            Ok(Box::new(sink))
        }
    }
}

/// Begins to write records down; `None`: they are taken out of the ring buffer and forgotten, since nobody asks for
/// them any more.
///
/// # Errors
/// The kernel makes no thread.
pub fn start(
    mut records: Box<dyn Records>,
    sink: Option<(Box<dyn Write>, u32)>,
    stats: &Arc<Stats>,
) -> anyhow::Result<Running> {
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = sync_channel(BACKLOG);
    let mut threads = Vec::new();
    if let Some((sink, max_rate)) = sink {
        let writer = Writer { sink, rate: Rate::new(max_rate), stats: Arc::clone(stats), complained: None };
        threads.push(spawn("access-log-writer", move || writer.run(&receiver))?);
    }
    let (stopped, stats) = (Arc::clone(&stop), Arc::clone(stats));
    threads.push(spawn("access-log", move || {
        while !stopped.load(Relaxed) {
            drain(&mut *records, &sender, &stats);
            thread::sleep(INTERVAL);
        }
        // What was recorded until now is written; the rest is for the next daemon.
        drain(&mut *records, &sender, &stats);
    })?);
    Ok(Running { stop, threads })
}

impl Running {
    /// Writes what there is, and ends.
    pub fn stop(self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.into_iter().rev() {
            if thread.join().is_err() {
                tracing::warn!("a thread of the access log has failed");
            }
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run).context("cannot start the access log")
}

/// Takes all records out that there are, and passes them on. Waits for nobody.
fn drain(records: &mut dyn Records, queue: &SyncSender<Vec<Logged>>, stats: &Stats) {
    loop {
        let mut batch = Vec::new();
        let count = match records.read(BATCH, &mut batch) {
            Ok(count) => count,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "cannot read the records of sessions");
                return;
            }
        };
        let recorded = batch.len() as u64;
        if recorded > 0
            && let Err(TrySendError::Full(_)) = queue.try_send(batch)
        {
            stats.lose(Lost::Queue, recorded);
        }
        if count < BATCH {
            return;
        }
    }
}

/// Writes records.
struct Writer {
    sink: Box<dyn Write>,
    rate: Rate,
    stats: Arc<Stats>,
    complained: Option<Instant>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Vec<Logged>>) {
        loop {
            match queue.recv_timeout(IDLE) {
                Ok(batch) => self.take(&batch),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if let Err(error) = self.sink.look_after() {
                self.complain(&error);
            }
        }
        if let Err(error) = self.sink.look_after() {
            self.complain(&error);
        }
    }

    fn take(&mut self, batch: &[Logged]) {
        let now = Instant::now();
        let records: Vec<&Logged> = batch.iter().filter(|_| self.rate.admit(now)).collect();
        self.stats.lose(Lost::Rate, (batch.len() - records.len()) as u64);
        if records.is_empty() {
            return;
        }
        let (taken, result) = self.sink.write(&records);
        self.stats.written.fetch_add(taken as u64, Relaxed);
        self.stats.lose(Lost::Sink, (records.len() - taken) as u64);
        if let Err(error) = result {
            self.complain(&error);
        }
    }

    /// Says what is wrong with the sink, but not with every record.
    fn complain(&mut self, error: &anyhow::Error) {
        if self.complained.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) {
            tracing::error!(
                error = format!("{error:#}"),
                "the access log cannot be written: records are lost"
            );
            self.complained = Some(Instant::now());
        }
    }
}

/// Records in a second.
struct Rate {
    most: u32,
    since: Instant,
    count: u32,
}

impl Rate {
    fn new(most: u32) -> Self {
        Self { most, since: Instant::now(), count: 0 }
    }

    fn admit(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        self.most == 0 || self.count <= self.most
    }
}
