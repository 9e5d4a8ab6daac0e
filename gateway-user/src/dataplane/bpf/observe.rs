//! The reading side: counters, sessions and the fill of maps, through descriptors of its own.

mod sessions;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, PoisonError, RwLock},
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use gateway_common::{
    DropReason, V4, V6, Verdict,
    counter::{Counter, SessionClass, SessionCounters, traffic_index},
    family::{self, MappedAddress},
    interface::NO_SLOT,
    limit::Bucket,
    pool::PoolCounters,
    ports::Destination,
    proxy::{ProxyHost, UP},
    source::{Charge, LimitCounters, Source},
};

use super::{
    clock::{self, Clock},
    netdev, netlink,
    numbers::{CountedAddress, CountedRoute, Numbers},
    pins::Pins,
    records,
    recount::Found,
    shadow::{Live, Shadow},
    sys::{self, Cursor},
    table::SessionTable,
    tunnels,
    usage::Told,
};
use crate::{
    dataplane::{
        AttachedInterface, DestinationStats, Drift, Glance, LimitStats, MapStats, NextHopRow, Observe, Order,
        PoolAddressStats, ProxyHostStats, SessionRow, Traffic, Trial, Tried, UNKNOWN_INTERFACE, UsageStats,
        keep_fullest, session,
    },
    model::RouteKey,
};

/// Elements that one call reads.
const READ: usize = 4_096;

/// How often counters of routes are read without the lock.
const ATTEMPTS: usize = 3;

pub(super) struct BpfObserve {
    clock: Clock,
    numbers: Arc<RwLock<Numbers>>,
    found: Arc<Found>,
    told: Arc<Told>,
    traffic: PerCpuArray<MapData, Counter>,
    drops: PerCpuArray<MapData, Counter>,
    routes: PerCpuArray<MapData, Counter>,
    pools: PerCpuArray<MapData, PoolCounters>,
    sessions: PerCpuArray<MapData, SessionCounters>,
    events_lost: PerCpuArray<MapData, u64>,
    records_lost: PerCpuArray<MapData, u64>,
    half_open: Array<MapData, u32>,
    proxy_hosts: Array<MapData, ProxyHost>,
    proxy_flows: PerCpuArray<MapData, u64>,
    sessions_v4: SessionTable<V4>,
    sessions_v6: SessionTable<V6>,
    destinations: OwnedFd,
    sources: OwnedFd,
    limits: PerCpuArray<MapData, LimitCounters>,
    capacity: u32,
    live: Live,
    shadow: Arc<Shadow>,
}

impl BpfObserve {
    pub(super) fn new(
        clock: Clock,
        pins: &Pins,
        (numbers, found, told): (Arc<RwLock<Numbers>>, Arc<Found>, Arc<Told>),
        capacity: u32,
        shadow: Arc<Shadow>,
    ) -> Result<Self> {
        Ok(Self {
            clock,
            numbers,
            found,
            told,
            traffic: pins.open("TRAFFIC")?,
            drops: pins.open("DROPS")?,
            routes: pins.open("ROUTE_COUNTERS")?,
            pools: pins.open("POOL_COUNTERS")?,
            sessions: pins.open("SESSION_COUNTERS")?,
            events_lost: pins.open("EVENTS_LOST")?,
            records_lost: pins.open("RECORDS_LOST")?,
            half_open: pins.open("HALF_OPEN")?,
            proxy_hosts: pins.open("PROXY_HOSTS")?,
            proxy_flows: pins.open("PROXY_FLOWS")?,
            sessions_v4: SessionTable::open(pins)?,
            sessions_v6: SessionTable::open(pins)?,
            destinations: sys::open_pin(&pins.map("DESTINATIONS"))?,
            sources: sys::open_pin(&pins.map("SOURCES"))?,
            limits: pins.open("LIMIT_COUNTERS")?,
            capacity,
            live: Live::open(pins, capacity)?,
            shadow,
        })
    }

    fn numbers(&self) -> std::sync::RwLockReadGuard<'_, Numbers> {
        self.numbers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads counters of routes without keeping the writer waiting for it, and again if a counter got another
    /// meaning meanwhile. Where changes do not end, the writer waits in the end.
    fn consistent<T>(&self, read: impl Fn(&Counted) -> Result<T>) -> Result<T> {
        for _ in 0..ATTEMPTS {
            let counted = Counted::of(&self.numbers());
            let result = read(&counted)?;
            if self.numbers().meaning == counted.meaning {
                return Ok(result);
            }
        }
        let numbers = self.numbers();
        read(&Counted::of(&numbers))
    }

    fn route_counter(&self, number: u32) -> Result<Counter> {
        Ok(sum(&self.routes.get(&number, 0).context("cannot read a route counter")?))
    }
}

/// Who counts where, at one moment. See [`Numbers`].
struct Counted {
    meaning: u64,
    routes: Vec<(u32, CountedRoute)>,
    shared: HashMap<u32, (String, &'static str)>,
    retired: BTreeMap<(String, &'static str), Counter>,
}

impl Counted {
    fn of(numbers: &Numbers) -> Self {
        Self {
            meaning: numbers.meaning,
            routes: numbers.routes.iter().map(|(number, route)| (*number, route.clone())).collect(),
            shared: numbers.shared.clone(),
            retired: numbers.retired.clone(),
        }
    }
}

/// Adds the counters of all CPUs.
pub(super) fn sum(values: &PerCpuValues<Counter>) -> Counter {
    let mut total = Counter::default();
    values.iter().for_each(|counter| total.add(*counter));
    total
}

impl Observe for BpfObserve {
    fn interfaces(&self) -> Result<Vec<AttachedInterface>> {
        let mut interfaces = self.numbers().interfaces.clone();
        let attached = interfaces.iter().map(|interface| interface.index).filter(|index| *index != 0);
        let features =
            netdev::features(attached).context("cannot ask the kernel what the devices can do with XDP")?;
        for interface in &mut interfaces {
            interface.takes_redirects =
                features.get(&interface.index).map(|features| features.takes_redirects());
        }
        Ok(interfaces)
    }

    fn traffic(&self) -> Result<Vec<Traffic>> {
        let slots = self.numbers().slots.clone();
        let mut cells = Vec::new();
        let unknown = UNKNOWN_INTERFACE.to_owned();
        // Cells of slots without a name have never been used.
        for (ingress, ingress_name) in slots.iter().chain([(&NO_SLOT, &unknown)]) {
            for egress in slots.keys().chain([&NO_SLOT]) {
                for verdict in Verdict::ALL {
                    let index = traffic_index(*ingress, *egress, *verdict);
                    let counter = sum(&self.traffic.get(&index, 0).context("cannot read map TRAFFIC")?);
                    if counter.packets > 0 {
                        let (ingress, egress) = (ingress_name.clone(), slots.get(egress).cloned());
                        cells.push(Traffic { ingress, egress, verdict: *verdict, counter });
                    }
                }
            }
        }
        Ok(cells)
    }

    fn drops(&self) -> Result<Vec<(DropReason, Counter)>> {
        DropReason::ALL
            .iter()
            .map(|reason| {
                let values = self.drops.get(&u32::from(*reason as u8), 0).context("cannot read map DROPS")?;
                Ok((*reason, sum(&values)))
            })
            .collect()
    }

    fn routes(&self) -> Result<BTreeMap<(String, RouteKey), Counter>> {
        self.consistent(|counted| {
            let routes = counted.routes.iter();
            routes
                .map(|(number, route)| {
                    Ok(((route.table.to_string(), route.key), self.route_counter(*number)?))
                })
                .collect()
        })
    }

    fn tables(&self) -> Result<BTreeMap<(String, &'static str), Counter>> {
        self.consistent(|counted| {
            let mut tables = counted.retired.clone();
            for (number, route) in &counted.routes {
                let counter = self.route_counter(*number)?;
                tables.entry((route.table.to_string(), route.kind)).or_default().add(counter);
            }
            for (number, owner) in &counted.shared {
                tables.entry(owner.clone()).or_default().add(self.route_counter(*number)?);
            }
            Ok(tables)
        })
    }

    fn pools(&self) -> Result<Vec<PoolAddressStats>> {
        let pool_addresses = self.numbers().pool_addresses.clone();
        pool_addresses
            .iter()
            .map(|(element, counted)| {
                let values = self.pools.get(element, 0).context("cannot read map POOL_COUNTERS")?;
                let mut counters = PoolCounters::default();
                for cpu in values.iter() {
                    counters.attempts += cpu.attempts;
                    counters.established += cpu.established;
                    counters.allocation_errors += cpu.allocation_errors;
                    counters.over_rate += cpu.over_rate;
                    counters.over_concurrent += cpu.over_concurrent;
                    counters.idle_timeouts += cpu.idle_timeouts;
                    counters.opened += cpu.opened;
                    counters.closed += cpu.closed;
                }
                Ok(PoolAddressStats {
                    pool: counted.pool.clone(),
                    address: counted.address,
                    ports: counted.ports,
                    drained: counted.drained,
                    counters,
                })
            })
            .collect()
    }

    fn proxies(&self) -> Result<Vec<ProxyHostStats>> {
        let hosts = self.numbers().proxy_hosts.clone();
        hosts
            .into_iter()
            .map(|(element, (proxy, address))| {
                let host = self.proxy_hosts.get(&element, 0).context("cannot read map PROXY_HOSTS")?;
                let flows = self.proxy_flows.get(&element, 0).context("cannot read map PROXY_FLOWS")?;
                // What one CPU opens another one may remove.
                let flows = flows.iter().fold(0, |sum: u64, of_cpu| sum.wrapping_add(*of_cpu));
                Ok(ProxyHostStats { proxy, address, up: host.flags & UP != 0, flows })
            })
            .collect()
    }

    fn destinations(&self) -> Result<Vec<DestinationStats>> {
        let pool_addresses = self.numbers().pool_addresses.clone();
        let addresses: HashMap<IpAddr, &CountedAddress> =
            pool_addresses.values().map(|counted| (counted.address, counted)).collect();
        let now = clock::monotonic()?;
        let mut rows = Vec::new();
        let mut cursor = Cursor::default();
        let (mut keys, mut values) = (Vec::<Destination>::new(), Vec::<Bucket>::new());
        loop {
            let more =
                sys::lookup_batch(self.destinations.as_fd(), &mut cursor, &mut keys, &mut values, READ)
                    .context("cannot read the buckets of destinations")?;
            for (key, bucket) in keys.iter().zip(&values) {
                let address = family::to_ip(&key.address);
                // What is for no server is a mapping. An address that has left its pool has no name here.
                let destination = family::to_ip(&key.server);
                let Some(counted) = addresses.get(&address).filter(|_| !destination.is_unspecified()) else {
                    continue;
                };
                rows.push(DestinationStats {
                    pool: counted.pool.clone(),
                    address,
                    destination,
                    port: u16::from_be_bytes(key.port),
                    proto: key.proto,
                    sessions: bucket.count(),
                    room: counted.room(),
                    tokens: counted.limit.tokens(bucket.full, now),
                    admitted: bucket.admitted,
                    over_rate: bucket.over_rate,
                    over_concurrent: bucket.over_concurrent,
                });
            }
            if !more {
                return Ok(rows);
            }
        }
    }

    fn fullest(&self) -> Result<BTreeMap<String, Vec<f64>>> {
        let pool_addresses = self.numbers().pool_addresses.clone();
        let addresses: HashMap<MappedAddress, &CountedAddress> =
            pool_addresses.values().map(|counted| (family::from_ip(counted.address), counted)).collect();
        let mut pools: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut cursor = Cursor::default();
        let (mut keys, mut values) = (Vec::<Destination>::new(), Vec::<Bucket>::new());
        loop {
            let more =
                sys::lookup_batch(self.destinations.as_fd(), &mut cursor, &mut keys, &mut values, READ)
                    .context("cannot read the buckets of destinations")?;
            for (key, bucket) in keys.iter().zip(&values) {
                // What is for no server is a mapping.
                let mapping = family::to_ip(&key.server).is_unspecified();
                let Some(counted) = addresses.get(&key.address).filter(|_| !mapping) else { continue };
                let ratio = f64::from(bucket.count()) / f64::from(counted.room().max(1));
                keep_fullest(pools.entry(&counted.pool).or_default(), ratio);
            }
            if !more {
                return Ok(pools.into_iter().map(|(pool, ratios)| (pool.to_owned(), ratios)).collect());
            }
        }
    }

    fn limits(&self) -> Result<Vec<LimitStats>> {
        let numbers = self.numbers().limits.clone();
        let mut stats = BTreeMap::new();
        for (number, name) in numbers {
            let values = self.limits.get(&number, 0).context("cannot read map LIMIT_COUNTERS")?;
            let mut counters = LimitCounters::default();
            for cpu in values.iter() {
                // What one CPU takes another one may give back.
                counters.admitted = counters.admitted.wrapping_add(cpu.admitted);
                counters.over_rate += cpu.over_rate;
                counters.over_concurrent += cpu.over_concurrent;
            }
            stats.insert(number, LimitStats { name, counters, ..LimitStats::default() });
        }
        if stats.is_empty() {
            return Ok(Vec::new());
        }
        let mut cursor = Cursor::default();
        let (mut keys, mut values) = (Vec::<Source>::new(), Vec::<Bucket>::new());
        loop {
            let more = sys::lookup_batch(self.sources.as_fd(), &mut cursor, &mut keys, &mut values, READ)
                .context("cannot read the buckets of sources")?;
            for (source, bucket) in keys.iter().zip(&values) {
                let number = Charge::from_number(source.charge as u16).limit();
                let Some(stats) = stats.get_mut(&number) else { continue };
                let sessions = u64::from(bucket.count());
                stats.sources += 1;
                stats.sessions += sessions;
                stats.most = stats.most.max(sessions);
            }
            if !more {
                return Ok(stats.into_values().collect());
            }
        }
    }

    fn session_counters(&self) -> Result<Vec<(SessionClass, SessionCounters)>> {
        SessionClass::ALL
            .iter()
            .map(|class| {
                let values =
                    self.sessions.get(&(*class as u32), 0).context("cannot read SESSION_COUNTERS")?;
                let mut counters = SessionCounters::default();
                for cpu in values.iter() {
                    counters.created += cpu.created;
                    counters.closed += cpu.closed;
                    counters.expired += cpu.expired;
                    counters.killed += cpu.killed;
                    counters.mapped += cpu.mapped;
                    counters.unmapped += cpu.unmapped;
                }
                Ok((*class, counters))
            })
            .collect()
    }

    fn sessions(&self, filter: &mut dyn FnMut(&dyn Glance) -> bool, limit: usize) -> Result<Vec<SessionRow>> {
        let mut rows = Vec::new();
        self.walk::<V4>(&self.sessions_v4, filter, limit, &mut rows)?;
        self.walk::<V6>(&self.sessions_v6, filter, limit, &mut rows)?;
        Ok(rows)
    }

    fn largest(
        &self,
        filter: &mut dyn FnMut(&dyn Glance) -> bool,
        order: Order,
        limit: usize,
    ) -> Result<(Vec<SessionRow>, u64)> {
        let v4 = self.rank(&self.sessions_v4, filter, order, limit)?;
        let v6 = self.rank(&self.sessions_v6, filter, order, limit)?;
        let (Some((mut rows, v4)), Some((more, v6))) = (v4, v6) else {
            return session::largest(self, filter, order, limit);
        };
        rows.extend(more);
        order.cut(&mut rows, limit);
        Ok((rows, v4 + v6))
    }

    fn session(
        &self,
        proto: u8,
        source: (IpAddr, u16),
        destination: (IpAddr, u16),
    ) -> Result<Option<SessionRow>> {
        if source.0.is_ipv4() != destination.0.is_ipv4() {
            return Ok(None);
        }
        if source.0.is_ipv4() {
            self.find_session(&self.sessions_v4, proto, source, destination)
        } else {
            self.find_session(&self.sessions_v6, proto, source, destination)
        }
    }

    fn next_hop(&self, to: IpAddr) -> Result<Option<NextHopRow>> {
        let Some(way) = tunnels::way_to(to) else { return Ok(None) };
        let mac = netlink::neighbor_at(way.ifindex, way.neighbor).context("cannot ask for a neighbor")?;
        Ok(Some(NextHopRow { ifindex: way.ifindex, router: way.neighbor, mac }))
    }

    fn try_packet(&self, trial: &Trial<'_>) -> Result<Tried> {
        self.shadow.run(&self.live, &self.numbers(), trial)
    }

    fn maps(&self) -> Result<Vec<MapStats>> {
        let mut stats = Vec::new();
        let (mut sessions, mut mappings) = (0, 0);
        for (_, counters) in self.session_counters()? {
            sessions += counters.created.saturating_sub(counters.closed + counters.expired + counters.killed);
            mappings += counters.mapped.saturating_sub(counters.unmapped);
        }
        // A mapping takes the room of a session.
        for (name, entries) in [("sessions", sessions + mappings), ("mappings", mappings)] {
            stats.push(MapStats { name: name.to_owned(), entries, capacity: u64::from(self.capacity) });
        }
        let numbers = self.numbers();
        stats.push(MapStats {
            name: "half_open".to_owned(),
            entries: self.half_open.get(&0, 0).context("cannot read map HALF_OPEN")?.into(),
            capacity: numbers.half_open.into(),
        });
        let counted = numbers.routes.len() + numbers.shared.len();
        stats.push(MapStats {
            name: "route_counters".to_owned(),
            entries: counted as u64,
            capacity: u64::from(gateway_common::route::MAX_ROUTE_COUNTERS),
        });
        stats.push(MapStats {
            name: "pool_addresses".to_owned(),
            entries: numbers.pool_addresses.len() as u64,
            capacity: u64::from(gateway_common::pool::MAX_POOL_ADDRESSES),
        });
        stats.push(MapStats {
            name: "eips".to_owned(),
            entries: numbers.eips as u64,
            capacity: u64::from(gateway_common::eip::MAX_EIPS),
        });
        stats.push(MapStats {
            name: "interfaces".to_owned(),
            entries: numbers.interfaces.len() as u64,
            capacity: u64::from(gateway_common::interface::MAX_INTERFACES),
        });
        Ok(stats)
    }

    fn usage(&self) -> Result<Arc<[UsageStats]>> {
        Ok(self.told.read())
    }

    fn records_lost(&self) -> Result<u64> {
        records::lost(&self.records_lost)
    }

    fn drift(&self) -> Result<Drift> {
        Ok(self.found.drift())
    }

    fn events_lost(&self) -> Result<u64> {
        let values = self.events_lost.get(&0, 0).context("cannot read map EVENTS_LOST")?;
        Ok(values.iter().sum())
    }
}
