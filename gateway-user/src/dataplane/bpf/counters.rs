//! Map `ROUTE_COUNTERS`: who counts where.
//!
//! A route has a counter of its own while there are enough; the routes beyond share one for each table and
//! kind of target, so that the sums of a table are always right.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, RwLock},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use gateway_common::{counter::Counter, route::MAX_ROUTE_COUNTERS};

use super::{
    numbers::{CountedRoute, Numbers},
    observe::sum,
    space::Space,
};
use crate::model::{RouteKey, Table};

/// Counters kept back for the sums of tables.
const SHARED: u32 = 2_048;

pub(super) struct RouteCounters {
    map: PerCpuArray<MapData, Counter>,
    cpus: usize,
    space: Space,
    own: HashMap<(String, RouteKey), (u32, &'static str)>,
    shared: HashMap<(String, &'static str), u32>,
    numbers: Arc<RwLock<Numbers>>,
}

impl RouteCounters {
    pub(super) fn new(
        map: PerCpuArray<MapData, Counter>,
        cpus: usize,
        numbers: Arc<RwLock<Numbers>>,
    ) -> Self {
        let space = Space::new("route counters", 1, MAX_ROUTE_COUNTERS);
        Self { map, cpus, space, own: HashMap::new(), shared: HashMap::new(), numbers }
    }

    /// See [`Space::begin_change`].
    pub(super) fn begin_change(&mut self) {
        self.space.begin_change();
    }

    /// The counter of a route whose target is of `kind`.
    pub(super) fn number(&mut self, table: &str, key: &RouteKey, kind: &'static str) -> Result<u32> {
        let owner = (table.to_owned(), *key);
        match self.own.get(&owner).copied() {
            Some((number, same)) if same == kind => return Ok(number),
            Some((number, other)) => self.fold(table, number, other)?,
            None => {}
        }
        if self.space.free() <= SHARED {
            return self.shared_number(table, kind);
        }
        let number = self.fresh()?;
        self.own.insert(owner, (number, kind));
        let route = CountedRoute { table: table.to_owned(), key: *key, kind };
        self.write_numbers(|numbers| numbers.routes.insert(number, route));
        Ok(number)
    }

    /// Takes the counters of routes back that `to` does not have; what they counted stays with their table.
    pub(super) fn retire(&mut self, to: &BTreeMap<String, Arc<Table>>) -> Result<()> {
        let gone: Vec<_> = self
            .own
            .iter()
            .filter(|((table, key), _)| !to.get(table).is_some_and(|table| table.routes.contains_key(key)))
            .map(|(owner, counted)| (owner.clone(), *counted))
            .collect();
        for (owner, (number, kind)) in gone {
            self.fold(&owner.0, number, kind)?;
            self.own.remove(&owner);
        }
        Ok(())
    }

    /// Adds what `number` counted to the sum of its table, and gives the number back.
    fn fold(&mut self, table: &str, number: u32, kind: &'static str) -> Result<()> {
        let counted = sum(&self.map.get(&number, 0).context("cannot read a route counter")?);
        self.write_numbers(|numbers| {
            numbers.routes.remove(&number);
            numbers.retired.entry((table.to_owned(), kind)).or_default().add(counted);
        });
        self.space.give_back(number, 1);
        Ok(())
    }

    fn shared_number(&mut self, table: &str, kind: &'static str) -> Result<u32> {
        let owner = (table.to_owned(), kind);
        if let Some(number) = self.shared.get(&owner) {
            return Ok(*number);
        }
        let number = self.fresh()?;
        self.shared.insert(owner.clone(), number);
        self.write_numbers(|numbers| numbers.shared.insert(number, owner));
        Ok(number)
    }

    /// A number whose counter is zero.
    fn fresh(&mut self) -> Result<u32> {
        let number = self.space.one()?;
        let zero = PerCpuValues::try_from(vec![Counter::default(); self.cpus])?;
        self.map.set(number, zero, 0).context("cannot clear a route counter")?;
        Ok(number)
    }

    fn write_numbers<T>(&self, write: impl FnOnce(&mut Numbers) -> T) {
        let mut numbers = self.numbers.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        write(&mut numbers);
    }
}
