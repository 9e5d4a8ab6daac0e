//! Which hosts of proxies are up: a check of each, as often as its proxy says.
//!
//! Checks go from the gateway host to the proxy host through the host's own stack, and through the tunnel where there is
//! one. What they find is judged
//! ([`judge`]), and the verdicts go to the control plane, which tells the data plane. What the data plane holds of a
//! host stays until a check has said something of it: a daemon that starts does not know better than the one before.

mod judge;
mod probe;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{info, warn};

use crate::{
    control::Handle,
    model::{Check, ProxyMode, Snapshot},
};

use judge::Judge;
use probe::Outcome;

/// The longest that a check waits for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Outcomes that may wait to be judged; checks beyond that wait.
const BACKLOG: usize = 64;

/// What is known of all hosts, by proxy and address.
pub type Health = BTreeMap<(String, IpAddr), HostHealth>;

/// What is known of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostHealth {
    /// What it is taken to be.
    pub state: HealthState,
    /// Since when.
    pub since: Instant,
    /// Why the last check failed; `None` if it did not.
    pub error: Option<String>,
}

/// What a host is taken to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// It is to be checked, and no check has said anything yet: what the data plane held before goes on.
    Unknown,
    /// It gets new flows.
    Up,
    /// It gets none.
    Down,
    /// Nobody asks: it gets new flows.
    Unchecked,
}

impl HealthState {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
            Self::Unchecked => "unchecked",
        }
    }

    /// What the data plane is told; `None`: nothing.
    pub fn is_up(self) -> Option<bool> {
        match self {
            Self::Unknown => None,
            Self::Up | Self::Unchecked => Some(true),
            Self::Down => Some(false),
        }
    }
}

/// Checks the hosts of the state in force until `stop`.
pub async fn run(control: Handle, stop: CancellationToken) {
    let mut revisions = control.revisions();
    let (outcomes, mut queue) = mpsc::channel(BACKLOG);
    let mut hosts = Hosts { outcomes, checked: BTreeMap::new(), started: 0 };
    hosts.follow(&control.snapshot());
    control.health_changed(hosts.health()).await;
    loop {
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            moved = revisions.changed() => match moved {
                Ok(()) => hosts.follow(&control.snapshot()),
                // The control plane has ended, and the daemon with it.
                Err(_) => return,
            },
            Some(finding) = queue.recv() => hosts.judge(finding),
        };
        if changed {
            control.health_changed(hosts.health()).await;
        }
    }
}

/// A host of a proxy.
type Place = (String, IpAddr);

/// What is asked of a host, how often, and whether through a tunnel.
type Plan = (Check, Duration, bool);

/// What a check found.
struct Finding {
    place: Place,
    /// Which checker says so: one that was replaced is not heard.
    checker: u64,
    outcome: Outcome,
}

/// All hosts of the state in force.
struct Hosts {
    outcomes: mpsc::Sender<Finding>,
    checked: BTreeMap<Place, Host>,
    /// Checkers started so far.
    started: u64,
}

struct Host {
    plan: Plan,
    judge: Judge,
    checker: u64,
    /// Ends with the host.
    _task: Option<AbortOnDropHandle<()>>,
}

impl Hosts {
    /// Begins to check what is new in `state` and ends what is gone. Returns whether anything was.
    fn follow(&mut self, state: &Snapshot) -> bool {
        let wanted: BTreeMap<Place, Plan> = state
            .proxies
            .values()
            .flat_map(|proxy| {
                let plan = (proxy.check, proxy.interval, proxy.mode != ProxyMode::L2);
                proxy.hosts.iter().map(move |host| ((proxy.name.clone(), host.address), plan))
            })
            .collect();
        let before = self.checked.len();
        self.checked.retain(|place, host| wanted.get(place) == Some(&host.plan));
        let mut changed = self.checked.len() != before;
        for (place, plan) in wanted {
            if !self.checked.contains_key(&place) {
                changed = true;
                let host = self.start(&place, plan);
                self.checked.insert(place, host);
            }
        }
        changed
    }

    fn start(&mut self, place: &Place, plan: Plan) -> Host {
        self.started += 1;
        let checker = self.started;
        let (check, ..) = plan;
        if check == Check::None {
            return Host { plan, judge: Judge::new(HealthState::Unchecked), checker, _task: None };
        }
        let task = repeat(place.clone(), checker, plan, self.outcomes.clone());
        let task = Some(AbortOnDropHandle::new(tokio::spawn(task)));
        Host { plan, judge: Judge::new(HealthState::Unknown), checker, _task: task }
    }

    /// Takes note of a finding. Returns whether there is anything to tell.
    fn judge(&mut self, Finding { place, checker, outcome }: Finding) -> bool {
        let Some(host) = self.checked.get_mut(&place).filter(|host| host.checker == checker) else {
            return false;
        };
        let before = host.judge.health();
        host.judge.hear(outcome, Instant::now());
        let after = host.judge.health();
        if before.state != after.state {
            report(&place, &after);
        }
        before != after
    }

    fn health(&self) -> Health {
        self.checked.iter().map(|(place, host)| (place.clone(), host.judge.health())).collect()
    }
}

fn report((proxy, host): &Place, health: &HostHealth) {
    let HostHealth { state, error, .. } = health;
    if let Some(error) = error {
        warn!(proxy, %host, "the proxy host is {}: {error}", state.name());
    } else {
        info!(proxy, %host, "the proxy host is {}", state.name());
    }
}

/// Checks a host again and again.
async fn repeat(place: Place, checker: u64, plan: Plan, outcomes: mpsc::Sender<Finding>) {
    let (check, every, tunnel) = plan;
    let mut ticks = interval(every);
    // A check that was late is no reason to hurry the next ones.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let outcome = probe::probe(check, place.1, tunnel, every.min(PATIENCE)).await;
        if outcomes.send(Finding { place: place.clone(), checker, outcome }).await.is_err() {
            return;
        }
    }
}
