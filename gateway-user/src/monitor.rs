//! Who watches packets and sessions: hands what the packet path shows to those who want to see it.
//!
//! ```text
//! WATCHED ──> thread `monitor` ──(a bounded queue each)──> streams of the control API
//! ```
//!
//! The thread never waits for a stream. What a stream does not take is lost, counted and told in the stream, and so is
//! what the packet path could not tell. While nobody watches, the thread sleeps and the packet path does nothing.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::dataplane::watch::{Filter, Life, MOST, Seen, Sight, Watchers};

/// How often packets are taken out.
const INTERVAL: Duration = Duration::from_millis(20);
/// How often it is said again that somebody watches, and asked what was lost.
const RENEWAL: Duration = Duration::from_secs(1);
/// Packets that are taken out at once.
const BATCH: usize = 1_024;
/// How often, before others may have a word: more than there is room for in the packet path.
const BATCHES: usize = 16;
/// Packets that wait for a stream.
const BACKLOG: usize = 4_096;
/// So many may watch routes at a time: each compares what there is with what there was, and a million routes take a while.
pub const MOST_FOLLOWERS: usize = MOST;
/// Looks after which nothing comes any more for somebody who has gone: a packet may be under way.
const REST: u8 = 2;

/// The way to the thread. Cheap to clone; the default has no packet path, and shows no packets.
#[derive(Clone)]
pub struct Hub {
    shared: Option<Arc<Shared>>,
    followers: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            shared: None,
            followers: Arc::new(Semaphore::new(MOST_FOLLOWERS)),
            stopping: CancellationToken::new(),
        }
    }
}

/// Why nobody can watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many watch as may.
    Busy,
    /// There is nothing to see.
    Unavailable(String),
}

/// What is told to who watches.
#[derive(Clone, Debug)]
pub enum Event {
    /// A packet.
    Packet(Arc<Seen>),
    /// A session that has opened or ended.
    Session(Arc<Life>),
    /// So many of them were not shown since this was last told.
    Lost(u64),
}

/// Somebody who watches; ends when it is dropped.
pub struct Watch {
    shared: Arc<Shared>,
    number: usize,
    events: mpsc::Receiver<Event>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    places: [Place; MOST],
    /// Whether somebody came or went since the packet path was last told.
    changed: bool,
    stop: bool,
}

#[derive(Default)]
enum Place {
    #[default]
    Free,
    /// Free after so many looks.
    Rests(u8),
    Taken(Taken),
}

struct Taken {
    filter: Filter,
    events: mpsc::Sender<Event>,
    /// Told when the packet path knows.
    ready: Option<oneshot::Sender<Result<(), String>>>,
    /// What the packet path had counted as lost when it was last looked at.
    known: u64,
    /// What has to be told.
    lost: u64,
    /// The last is to be told.
    closing: bool,
}

impl Hub {
    /// Starts the thread.
    ///
    /// # Errors
    /// The kernel makes no thread.
    pub fn start(watchers: Box<dyn Watchers>) -> anyhow::Result<Self> {
        let shared = Arc::<Shared>::default();
        let inner = Arc::clone(&shared);
        thread::Builder::new()
            .name("monitor".to_owned())
            .spawn(move || run(&inner, watchers))
            .context("cannot start the thread `monitor`")?;
        Ok(Self { shared: Some(shared), ..Self::default() })
    }

    /// Begins to watch. When this returns, all packets and sessions that come are seen.
    pub async fn watch(&self, filter: Filter) -> Result<Watch, Refusal> {
        let unavailable = |why: &str| Refusal::Unavailable(why.to_owned());
        let Some(shared) = &self.shared else { return Err(unavailable("this data plane shows no packets")) };
        let (sender, events) = mpsc::channel(BACKLOG);
        let (ready, told) = oneshot::channel();
        let number = {
            let mut state = shared.lock();
            if state.stop {
                return Err(unavailable("the daemon is stopping"));
            }
            let free = state.places.iter_mut().enumerate().find(|(_, place)| matches!(place, Place::Free));
            let (number, place) = free.ok_or(Refusal::Busy)?;
            let (ready, lost) = (Some(ready), 0);
            *place = Place::Taken(Taken { filter, events: sender, ready, known: 0, lost, closing: false });
            state.changed = true;
            number
        };
        shared.changed.notify_one();
        let watch = Watch { shared: Arc::clone(shared), number, events };
        match told.await {
            Ok(Ok(())) => Ok(watch),
            Ok(Err(why)) => Err(Refusal::Unavailable(why)),
            Err(_) => Err(unavailable("the daemon is stopping")),
        }
    }

    /// The right to watch routes, until it is dropped; `None`: as many do as may.
    pub fn follow(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.followers).try_acquire_owned().ok()
    }

    /// Cancelled once the daemon stops.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Ends all streams, and the thread.
    pub fn stop(&self) {
        self.stopping.cancel();
        if let Some(shared) = &self.shared {
            shared.lock().stop = true;
            shared.changed.notify_one();
        }
    }
}

impl Watch {
    /// The next event; `None`: there are no more.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Watches no longer. What was seen until now is still told, and what was lost.
    pub fn close(&self) {
        let mut state = self.shared.lock();
        if let Place::Taken(taken) = &mut state.places[self.number] {
            taken.closing = true;
            state.changed = true;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread.
fn run(shared: &Shared, mut watchers: Box<dyn Watchers>) {
    let (mut renewed, mut batch) = (Instant::now(), Vec::new());
    loop {
        let mut state = shared.lock();
        let mut is_nobodys = false;
        while !state.stop && state.places.iter().all(|place| matches!(place, Place::Free)) {
            is_nobodys = true;
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if is_nobodys {
            // What a daemon before this one was shown, and did not come to read.
            discard(&mut *watchers, &mut batch);
        }
        if state.stop {
            state.places = Default::default();
        }
        let due = renewed.elapsed() >= RENEWAL;
        if due || state.changed || state.stop {
            renewed = Instant::now();
            state.changed = false;
            tell(&mut state, &mut *watchers);
        }
        if state.stop {
            return;
        }
        if let Err(error) = deliver(&mut state, &mut *watchers, &mut batch, due) {
            tracing::warn!(error = format!("{error:#}"), "packets cannot be shown");
        }
        let changed = settle(&mut state);
        state.changed |= changed;
        drop(state);
        thread::sleep(INTERVAL);
    }
}

/// Tells the packet path who watches, and those who came that it knows.
fn tell(state: &mut State, watchers: &mut dyn Watchers) {
    let known = watchers.lost();
    let filters = std::array::from_fn(|number| match &state.places[number] {
        Place::Taken(taken) if !taken.closing => Some(taken.filter.clone()),
        Place::Taken(_) | Place::Free | Place::Rests(_) => None,
    });
    let told = known.and_then(|known| watchers.set(&filters).map(|()| known));
    if let Err(error) = &told {
        tracing::warn!(error = format!("{error:#}"), "the packet path cannot be told who watches");
    }
    for (number, place) in state.places.iter_mut().enumerate() {
        let Place::Taken(taken) = place else { continue };
        let Some(ready) = taken.ready.take() else { continue };
        match &told {
            Ok(known) => {
                taken.known = known[number];
                // Whoever asked may have gone.
                let _ = ready.send(Ok(()));
            }
            Err(error) => {
                let _ = ready.send(Err(format!("{error:#}")));
                *place = Place::Rests(REST);
            }
        }
    }
}

/// Takes out what there is, for nobody.
fn discard(watchers: &mut dyn Watchers, batch: &mut Vec<(u32, Sight)>) {
    for _ in 0..BATCHES {
        let count = watchers.read(BATCH, batch).unwrap_or_default();
        batch.clear();
        if count < BATCH {
            break;
        }
    }
}

/// Hands out what there is. `due`: it is time to ask what was lost, too.
fn deliver(
    state: &mut State,
    watchers: &mut dyn Watchers,
    batch: &mut Vec<(u32, Sight)>,
    due: bool,
) -> anyhow::Result<()> {
    for _ in 0..BATCHES {
        let count = watchers.read(BATCH, batch)?;
        for (whom, sight) in batch.drain(..) {
            let event = match sight {
                Sight::Packet(seen) => Event::Packet(seen),
                Sight::Session(life) => Event::Session(life),
            };
            for (number, place) in state.places.iter_mut().enumerate() {
                if let Place::Taken(taken) = place
                    && whom >> number & 1 != 0
                    && let Err(mpsc::error::TrySendError::Full(_)) = taken.events.try_send(event.clone())
                {
                    taken.lost += 1;
                }
            }
        }
        if count < BATCH {
            break;
        }
    }
    let closing = state.places.iter().any(|place| matches!(place, Place::Taken(taken) if taken.closing));
    if due || closing {
        let lost = watchers.lost()?;
        for (place, lost) in state.places.iter_mut().zip(lost) {
            if let Place::Taken(taken) = place {
                taken.lost += lost.saturating_sub(taken.known);
                taken.known = lost;
            }
        }
    }
    Ok(())
}

/// Tells what was lost, and frees the places of those who have gone. Returns whether somebody has.
fn settle(state: &mut State) -> bool {
    let mut gone = false;
    for place in &mut state.places {
        match place {
            Place::Free => {}
            Place::Rests(0) => *place = Place::Free,
            Place::Rests(looks) => *looks -= 1,
            Place::Taken(taken) => {
                if taken.lost > 0 && taken.events.try_send(Event::Lost(taken.lost)).is_ok() {
                    taken.lost = 0;
                }
                if taken.events.is_closed() || (taken.closing && taken.lost == 0) {
                    *place = Place::Rests(REST);
                    gone = true;
                }
            }
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_watch_routes_as_may_and_another_when_one_has_gone() {
        let hub = Hub::default();
        let mut followers: Vec<_> = std::iter::from_fn(|| hub.clone().follow()).collect();
        assert_eq!(followers.len(), MOST_FOLLOWERS);
        assert!(hub.follow().is_none());
        drop(followers.pop());
        assert!(hub.follow().is_some());
    }
}
