//! Maps `ROUTE_COUNTERS` and `ROUTE_OWNERS`: who counts where.
//!
//! A route has a counter of its own while there are enough; the routes beyond share one for each group, a table
//! and a kind of target. What deleted routes counted is added up in one more counter of their group, so that
//! the sums of a table are always right and never become less.
//!
//! `ROUTE_OWNERS` names the owner of each counter by a digest. The next daemon finds there the counter of each
//! route it knows, so that none begins anew and none counts what belongs to another.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::AsFd as _,
    sync::{Arc, PoisonError, RwLock},
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, IterableMap as _, MapData, PerCpuArray, PerCpuValues};
use gateway_common::{
    counter::{Counter, CounterOwner},
    route::MAX_ROUTE_COUNTERS,
};

use super::{
    numbers::{CountedRoute, Numbers},
    observe::sum,
    space::Space,
    sys,
};
use crate::{
    dataplane::Connected,
    model::{Difference, RouteKey, Table, Target},
};

/// Counters kept back for groups.
const SHARED: u32 = 2_048;

/// A table and a kind of target.
type Group = (String, &'static str);

/// A counter that a route has left: table, number and kind of target.
type Left = (String, u32, &'static str);

pub(super) struct RouteCounters {
    map: PerCpuArray<MapData, Counter>,
    owners: Array<MapData, CounterOwner>,
    cpus: usize,
    space: Space,
    /// Number and kind of target, by table.
    own: HashMap<String, HashMap<RouteKey, (u32, &'static str)>>,
    /// Number by kind of target, by table.
    shared: HashMap<String, HashMap<&'static str, u32>>,
    retired: HashMap<Group, u32>,
    /// Number and group of what a daemon before this one gave away and nobody has claimed yet, by owner.
    inherited: HashMap<u64, (u32, u64)>,
    /// What the counters were last brought to; `None` after a change that failed, or none yet.
    settled: Option<(BTreeMap<String, Arc<Table>>, Connected)>,
    /// The same, while a change goes on.
    before: Option<(BTreeMap<String, Arc<Table>>, Connected)>,
    numbers: Arc<RwLock<Numbers>>,
}

impl RouteCounters {
    /// Takes the maps over, with the counters that are given away.
    pub(super) fn new(
        map: PerCpuArray<MapData, Counter>,
        owners: Array<MapData, CounterOwner>,
        cpus: usize,
        numbers: Arc<RwLock<Numbers>>,
    ) -> Result<Self> {
        let mut space = Space::new("route counters", 1, MAX_ROUTE_COUNTERS);
        let mut inherited = HashMap::new();
        let given = sys::elements(owners.map().fd().as_fd()).context("cannot read the owners of counters")?;
        for (number, CounterOwner { owner, group }) in (0..).zip(given) {
            if owner != 0 && inherited.insert(owner, (number, group)).is_none() {
                space.take(number);
            }
        }
        let (own, shared, retired) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (settled, before) = (None, None);
        Ok(Self { map, owners, cpus, space, own, shared, retired, inherited, settled, before, numbers })
    }

    /// See [`Space::begin_change`].
    pub(super) fn begin_change(&mut self) {
        self.space.begin_change();
        self.before = self.settled.take();
    }

    /// The counter of a route whose target is of `kind`.
    pub(super) fn number(&mut self, table: &str, key: &RouteKey, kind: &'static str) -> Result<u32> {
        match self.own.get(table).and_then(|own| own.get(key)).copied() {
            Some((number, same)) if same == kind => return Ok(number),
            Some((number, other)) => {
                self.own.get_mut(table).and_then(|own| own.remove(key));
                self.fold(table, number, other)?;
            }
            None => {}
        }
        let full = self.space.free() <= SHARED;
        // Most routes of large tables come by here.
        if full
            && self.inherited.is_empty()
            && let Some(number) = self.shared.get(table).and_then(|shared| shared.get(kind))
        {
            return Ok(*number);
        }
        let group = (table.to_owned(), kind);
        let digest = route_digest(table, key, kind);
        if full && !self.inherited.contains_key(&digest) {
            return self.shared_number(group);
        }
        let number = self.claim(digest, &group)?;
        self.own.entry(group.0.clone()).or_default().insert(*key, (number, kind));
        let route = CountedRoute { table: group.0.into(), key: *key, kind };
        self.write_numbers(|numbers| numbers.routes.insert(number, route));
        Ok(number)
    }

    /// Takes the counters of routes back that `to` does not have; what they counted stays with their group.
    pub(super) fn retire(&mut self, to: &BTreeMap<String, Arc<Table>>, connected: &Connected) -> Result<()> {
        if !self.inherited.is_empty() {
            self.settle(to)?;
        }
        let gone = match self.before.take() {
            Some((before, system)) if system == *connected => self.left(&before, to, connected),
            _ => self.unknown_to(to, connected),
        };
        gone.into_iter().try_for_each(|(table, number, kind)| self.fold(&table, number, kind))?;
        self.settled = Some((to.clone(), connected.clone()));
        Ok(())
    }

    /// Forgets the counters of routes that `before` has and `to` has not, and returns them.
    fn left(
        &mut self,
        before: &BTreeMap<String, Arc<Table>>,
        to: &BTreeMap<String, Arc<Table>>,
        connected: &Connected,
    ) -> Vec<Left> {
        let mut gone = Vec::new();
        for (name, table) in before {
            let Some(own) = self.own.get_mut(name) else { continue };
            let Some(after) = to.get(name) else {
                gone.extend(own.drain().map(|(_, (number, kind))| (name.clone(), number, kind)));
                continue;
            };
            let removed = table.routes.diff(&after.routes).filter(|difference| difference.after.is_none());
            for Difference { key, .. } in removed.filter(|difference| !is_system(connected, difference.key)) {
                gone.extend(own.remove(key).map(|(number, kind)| (name.clone(), number, kind)));
            }
        }
        self.own.retain(|_, own| !own.is_empty());
        gone
    }

    /// Forgets all counters of routes that `to` has not, and returns them.
    fn unknown_to(&mut self, to: &BTreeMap<String, Arc<Table>>, connected: &Connected) -> Vec<Left> {
        let mut gone = Vec::new();
        self.own.retain(|table, own| {
            own.retain(|key, (number, kind)| {
                let has = |table: &Arc<Table>| is_system(connected, key) || table.routes.contains_key(key);
                let keep = to.get(table).is_some_and(has);
                if !keep {
                    gone.push((table.clone(), *number, *kind));
                }
                keep
            });
            !own.is_empty()
        });
        gone
    }

    /// Settles what is left of the daemon before, once the routes have claimed what is theirs: sums are taken
    /// up, and routes that it had and `to` does not are added to them. What belongs to no table is given up.
    fn settle(&mut self, to: &BTreeMap<String, Arc<Table>>) -> Result<()> {
        let groups: HashMap<u64, Group> = to
            .keys()
            .flat_map(|table| Target::KINDS.map(|kind| (table.clone(), kind)))
            .map(|group| (group_digest(GROUP, &group), group))
            .collect();
        for group in groups.values() {
            let digest = group_digest(RETIRED, group);
            if self.inherited.contains_key(&digest) {
                let number = self.claim(digest, group)?;
                let counted = self.counted(number)?;
                self.retired.insert(group.clone(), number);
                self.write_numbers(|numbers| numbers.retired.entry(group.clone()).or_default().add(counted));
            }
        }
        for (number, group) in std::mem::take(&mut self.inherited).into_values() {
            match groups.get(&group) {
                Some((table, kind)) => self.fold(table, number, kind)?,
                None => self.give_back(number)?,
            }
        }
        Ok(())
    }

    /// Adds what `number` counted to the sum of its group, and gives the number back.
    fn fold(&mut self, table: &str, number: u32, kind: &'static str) -> Result<()> {
        let counted = self.counted(number)?;
        let group = (table.to_owned(), kind);
        let total = self.write_numbers(|numbers| {
            numbers.routes.remove(&number);
            let total = numbers.retired.entry(group.clone()).or_default();
            total.add(counted);
            *total
        });
        if counted.packets > 0 {
            self.keep_sum(group, total)?;
        }
        self.give_back(number)
    }

    /// Writes the sum of a group where the next daemon finds it.
    fn keep_sum(&mut self, group: Group, total: Counter) -> Result<()> {
        let number = if let Some(number) = self.retired.get(&group) {
            *number
        } else if self.space.free() == 0 {
            tracing::warn!(
                table = group.0,
                "no counter is left for the sum of deleted routes: a restart resets it"
            );
            return Ok(());
        } else {
            let number = self.claim(group_digest(RETIRED, &group), &group)?;
            self.retired.insert(group, number);
            number
        };
        self.set(number, total)
    }

    fn shared_number(&mut self, group: Group) -> Result<u32> {
        if let Some(number) = self.shared.get(&group.0).and_then(|shared| shared.get(group.1)) {
            return Ok(*number);
        }
        let number = self.claim(group_digest(SHARE, &group), &group)?;
        self.shared.entry(group.0.clone()).or_default().insert(group.1, number);
        self.write_numbers(|numbers| numbers.shared.insert(number, group));
        Ok(number)
    }

    /// The number that the owner had under another daemon, or else one whose counter is zero.
    fn claim(&mut self, owner: u64, group: &Group) -> Result<u32> {
        if let Some((number, _)) = self.inherited.remove(&owner) {
            return Ok(number);
        }
        let number = self.space.one()?;
        self.set(number, Counter::default())?;
        let owner = CounterOwner { owner, group: group_digest(GROUP, group) };
        self.owners.set(number, owner, 0).context("cannot write the owner of a counter")?;
        Ok(number)
    }

    fn give_back(&mut self, number: u32) -> Result<()> {
        self.owners.set(number, CounterOwner::default(), 0).context("cannot clear the owner of a counter")?;
        self.space.give_back(number, 1);
        Ok(())
    }

    fn counted(&self, number: u32) -> Result<Counter> {
        Ok(sum(&self.map.get(&number, 0).context("cannot read a route counter")?))
    }

    /// Writes a counter that no packet counts on.
    fn set(&mut self, number: u32, value: Counter) -> Result<()> {
        let mut values = vec![Counter::default(); self.cpus];
        values[0] = value;
        let values = PerCpuValues::try_from(values)?;
        self.map.set(number, values, 0).context("cannot write a route counter")
    }

    fn write_numbers<T>(&self, write: impl FnOnce(&mut Numbers) -> T) -> T {
        let mut numbers = self.numbers.write().unwrap_or_else(PoisonError::into_inner);
        numbers.meaning += 1;
        write(&mut numbers)
    }
}

/// Whether a route of the system is counted under `key`.
fn is_system(connected: &Connected, key: &RouteKey) -> bool {
    key.selector.is_any() && connected.subnets.contains_key(&key.prefix)
}

// What a digest is of: numbers that are in kernels of running gateways.
const ROUTE: u8 = 1;
const SHARE: u8 = 2;
const RETIRED: u8 = 3;
const GROUP: u8 = 4;
const USAGE: u8 = 5;

fn route_digest(table: &str, key: &RouteKey, kind: &str) -> u64 {
    let proto = key.selector.proto.map_or("", |proto| proto.name());
    let ports = key.selector.dport.map_or_else(String::new, |ports| format!("{}-{}", ports.low, ports.high));
    digest(ROUTE, &[table, kind, &key.prefix.to_string(), proto, &ports])
}

fn group_digest(what: u8, (table, kind): &Group) -> u64 {
    digest(what, &[table, kind])
}

/// The owner of a group of usage, see [`gateway_common::usage::Group`].
pub(super) fn group_owner(name: &str) -> u64 {
    digest(USAGE, &[name])
}

/// FNV-1a, which is the same in every version of the daemon. Never 0. With all counters given away, two owners
/// have the same digest once in 10^11 gateways.
fn digest(what: u8, words: &[&str]) -> u64 {
    let terminated = words.iter().flat_map(|word| word.bytes().chain([0]));
    let hash = [what].into_iter().chain(terminated).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_that_running_gateways_carry() {
        let key = RouteKey {
            prefix: "192.0.2.0/24".parse().expect("a prefix"),
            selector: crate::model::Selector::default(),
        };
        assert_eq!(route_digest("main", &key, "pool"), 0x3e54_17c0_cf5c_26f4);
        assert_ne!(route_digest("main", &key, "direct"), route_digest("main", &key, "pool"));
        let group = ("main".to_owned(), "pool");
        assert_ne!(group_digest(SHARE, &group), group_digest(RETIRED, &group));
    }

    #[test]
    fn every_kind_of_target_has_a_group() {
        let targets = [
            "direct",
            "pool nat",
            "eip",
            "proxy squid",
            "gateway 192.0.2.1",
            "blackhole",
            "prohibit",
            "host",
        ];
        let kinds = targets.map(|text| text.parse::<Target>().expect("a target").kind());
        assert_eq!(kinds, Target::KINDS);
    }
}
