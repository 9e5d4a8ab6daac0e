//! A data plane in this process, for tests of the control plane.
//!
//! It forwards nothing. It keeps what it was told, fails when a test asks it to, and answers reads with the
//! counters and sessions that a test gave it.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::anyhow;
use gateway_common::{
    DropReason,
    counter::{Counter, SessionClass, SessionCounters},
    pool::PoolCounters,
};

use super::{
    AttachedInterface, Dataplane, DestinationStats, Drift, Glance, Host, LimitStats, MapStats, NextHopRow,
    Observe, PoolAddressStats, ProxyHostStats, SessionRow, Sweeper, Swept, Traffic, Trial, Tried, UsageStats,
    keep_fullest,
};
use crate::model::{AttachMode, RouteKey, Snapshot};

/// The data plane. Clones share one state, so that a test can look at what it gave away.
#[derive(Clone, Default)]
pub struct Memory {
    state: Arc<Mutex<State>>,
}

/// What the data plane holds; all of it is open to tests.
#[derive(Default)]
pub struct State {
    /// The state in force.
    pub applied: Option<Snapshot>,
    /// How often a state was put in force.
    pub applies: usize,
    /// What the host looks like. A configured interface is attached when it has a link here.
    pub host: Host,
    /// How often the host was said to have changed.
    pub host_changes: usize,
    /// What was last said of hosts of proxies.
    pub health: BTreeMap<(String, IpAddr), bool>,
    /// Answers of the next calls of [`Dataplane::apply`], first to last: `Some` is a failure. Then success.
    pub script: VecDeque<Option<String>>,
    /// How often [`Sweeper::sweep`] ran.
    pub sweeps: usize,
    /// Whether everything was removed.
    pub removed: bool,
    /// Traffic matrix.
    pub traffic: Vec<Traffic>,
    /// Drops; reasons that are absent read as zero.
    pub drops: BTreeMap<u8, Counter>,
    /// Packets by route.
    pub routes: BTreeMap<(String, RouteKey), Counter>,
    /// Packets by table and target.
    pub tables: BTreeMap<(String, &'static str), Counter>,
    /// Counters of pool addresses; absent ones read as zero.
    pub pools: BTreeMap<IpAddr, PoolCounters>,
    /// By how much counts differ from what there is.
    pub drift: Drift,
    /// What was opened towards destinations.
    pub destinations: Vec<DestinationStats>,
    /// What limits of sources have done; absent ones have done nothing.
    pub limits: Vec<LimitStats>,
    /// What sessions between groups have carried.
    pub usage: Vec<UsageStats>,
    /// Sessions through hosts of proxies; absent ones read as zero.
    pub flows: BTreeMap<IpAddr, u64>,
    /// Sessions opened and closed, in the order of [`SessionClass::ALL`].
    pub session_counters: [SessionCounters; 4],
    /// Sessions.
    pub sessions: Vec<SessionRow>,
    /// Whether every read fails.
    pub unreadable: bool,
}

impl Memory {
    /// The state, locked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> anyhow::Result<T> {
        let state = self.state();
        if state.unreadable { Err(anyhow!("the maps cannot be read")) } else { Ok(read(&state)) }
    }
}

impl Dataplane for Memory {
    fn apply(&mut self, from: Option<&Snapshot>, to: &Snapshot) -> anyhow::Result<()> {
        let mut state = self.state();
        if let Some(Some(failure)) = state.script.pop_front() {
            return Err(anyhow!(failure));
        }
        if from.is_some() && from != state.applied.as_ref() {
            return Err(anyhow!("the controller is mistaken about the state in force"));
        }
        state.applied = Some(to.clone());
        state.applies += 1;
        Ok(())
    }

    fn host_changed(&mut self, host: &Host) -> anyhow::Result<()> {
        let mut state = self.state();
        state.host = host.clone();
        state.host_changes += 1;
        Ok(())
    }

    fn health_changed(&mut self, up: &BTreeMap<(String, IpAddr), bool>) -> anyhow::Result<()> {
        self.state().health.extend(up.iter().map(|(host, up)| (host.clone(), *up)));
        Ok(())
    }

    fn remove(&mut self) -> anyhow::Result<()> {
        let mut state = self.state();
        state.applied = None;
        state.removed = true;
        Ok(())
    }

    fn sweeper(&self) -> Arc<dyn Sweeper> {
        Arc::new(self.clone())
    }

    fn observe(&self) -> Arc<dyn Observe> {
        Arc::new(self.clone())
    }
}

impl Sweeper for Memory {
    fn recount(&self) {}

    fn sweep(&self, _: bool) -> anyhow::Result<Swept> {
        self.state().sweeps += 1;
        Ok(Swept::default())
    }
}

impl Observe for Memory {
    fn interfaces(&self) -> anyhow::Result<Vec<AttachedInterface>> {
        self.read(|state| {
            let configured = state.applied.iter().flat_map(|applied| applied.interfaces.values());
            configured
                .map(|interface| {
                    let link = state.host.links.get(&interface.name);
                    let mode = if interface.mode == AttachMode::Generic { "generic" } else { "native" };
                    AttachedInterface {
                        name: interface.name.clone(),
                        index: link.map_or(0, |link| link.index),
                        role: interface.role,
                        mode: link.map(|_| mode),
                        takes_redirects: link.map(|_| true),
                        shut: false,
                    }
                })
                .collect()
        })
    }

    fn traffic(&self) -> anyhow::Result<Vec<Traffic>> {
        self.read(|state| state.traffic.clone())
    }

    fn drops(&self) -> anyhow::Result<Vec<(DropReason, Counter)>> {
        self.read(|state| {
            let count = |reason: &DropReason| state.drops.get(&(*reason as u8)).copied().unwrap_or_default();
            DropReason::ALL.iter().map(|reason| (*reason, count(reason))).collect()
        })
    }

    fn routes(&self) -> anyhow::Result<BTreeMap<(String, RouteKey), Counter>> {
        self.read(|state| state.routes.clone())
    }

    fn tables(&self) -> anyhow::Result<BTreeMap<(String, &'static str), Counter>> {
        self.read(|state| state.tables.clone())
    }

    fn destinations(&self) -> anyhow::Result<Vec<DestinationStats>> {
        self.read(|state| state.destinations.clone())
    }

    fn fullest(&self) -> anyhow::Result<BTreeMap<String, Vec<f64>>> {
        self.read(|state| {
            let mut pools: BTreeMap<String, Vec<f64>> = BTreeMap::new();
            for row in &state.destinations {
                let ratio = f64::from(row.sessions) / f64::from(row.room.max(1));
                keep_fullest(pools.entry(row.pool.clone()).or_default(), ratio);
            }
            pools
        })
    }

    fn limits(&self) -> anyhow::Result<Vec<LimitStats>> {
        self.read(|state| state.limits.clone())
    }

    fn usage(&self) -> anyhow::Result<Arc<[UsageStats]>> {
        self.read(|state| state.usage.clone().into())
    }

    fn pools(&self) -> anyhow::Result<Vec<PoolAddressStats>> {
        self.read(|state| {
            let pools = state.applied.iter().flat_map(|applied| applied.pools.values());
            let of_pool = pools.flat_map(|pool| pool.addresses.iter().map(move |address| (pool, *address)));
            of_pool
                .map(|(pool, address)| PoolAddressStats {
                    pool: pool.name.clone(),
                    address,
                    ports: pool.ports.count(),
                    drained: pool.drained.contains(&address),
                    counters: state.pools.get(&address).copied().unwrap_or_default(),
                })
                .collect()
        })
    }

    fn proxies(&self) -> anyhow::Result<Vec<ProxyHostStats>> {
        self.read(|state| {
            let proxies = state.applied.iter().flat_map(|applied| applied.proxies.values());
            let of_proxy =
                proxies.flat_map(|proxy| proxy.hosts.iter().map(move |host| (proxy, host.address)));
            of_proxy
                .map(|(proxy, address)| ProxyHostStats {
                    proxy: proxy.name.clone(),
                    address,
                    up: state.health.get(&(proxy.name.clone(), address)).copied().unwrap_or(true),
                    flows: state.flows.get(&address).copied().unwrap_or_default(),
                })
                .collect()
        })
    }

    fn next_hop(&self, _: IpAddr) -> anyhow::Result<Option<NextHopRow>> {
        anyhow::bail!("this data plane has no host")
    }

    fn session_counters(&self) -> anyhow::Result<Vec<(SessionClass, SessionCounters)>> {
        self.read(|state| SessionClass::ALL.iter().copied().zip(state.session_counters).collect())
    }

    fn sessions(
        &self,
        filter: &mut dyn FnMut(&dyn Glance) -> bool,
        limit: usize,
    ) -> anyhow::Result<Vec<SessionRow>> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        self.read(|state| state.sessions.iter().filter(|row| filter(*row)).take(limit).cloned().collect())
    }

    fn session(
        &self,
        proto: u8,
        source: (IpAddr, u16),
        destination: (IpAddr, u16),
    ) -> anyhow::Result<Option<SessionRow>> {
        self.read(|state| {
            let mut sessions = state.sessions.iter();
            let found = sessions.find(|row| {
                let server = (row.destination, row.destination_port);
                row.proto == proto
                    && ((row.source, row.source_port) == source && server == destination
                        || server == source && (row.translated, row.translated_port) == destination)
            });
            found.cloned()
        })
    }

    fn try_packet(&self, _: &Trial<'_>) -> anyhow::Result<Tried> {
        anyhow::bail!("there are no programs in memory")
    }

    fn maps(&self) -> anyhow::Result<Vec<MapStats>> {
        self.read(|state| {
            let capacity = state.applied.as_ref().map_or(0, |applied| applied.capacity.sessions);
            let entries = state.sessions.len() as u64;
            vec![MapStats { name: "SESSIONS_V4".to_owned(), entries, capacity: u64::from(capacity) }]
        })
    }

    fn records_lost(&self) -> anyhow::Result<u64> {
        self.read(|_| 0)
    }

    fn drift(&self) -> anyhow::Result<Drift> {
        self.read(|state| state.drift)
    }

    fn events_lost(&self) -> anyhow::Result<u64> {
        self.read(|_| 0)
    }
}
