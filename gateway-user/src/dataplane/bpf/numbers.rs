//! Names and numbers: the kernel counts by number, people ask by name.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use gateway_common::{counter::Counter, limit::Limit};

use crate::{dataplane::AttachedInterface, model::RouteKey};

/// What the reading side needs to know of the writing side's numbers.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// Interfaces; names of slots that were given up stay until the slot is given to another.
    pub(super) slots: HashMap<u32, String>,
    /// Interfaces that are configured.
    pub(super) interfaces: Vec<AttachedInterface>,
    /// Moves whenever a counter of the next three gets another meaning or is added to `retired`.
    pub(super) meaning: u64,
    /// Counters that belong to one route.
    pub(super) routes: HashMap<u32, CountedRoute>,
    /// Counters shared by the routes of a table with the same kind of target.
    pub(super) shared: HashMap<u32, (String, &'static str)>,
    /// What deleted routes had counted, by table and kind of target.
    pub(super) retired: BTreeMap<(String, &'static str), Counter>,
    /// Pool addresses by element of `POOL_ADDRESSES`.
    pub(super) pool_addresses: BTreeMap<u32, CountedAddress>,
    /// Hosts of proxies by element of `PROXY_HOSTS`.
    pub(super) proxy_hosts: BTreeMap<u32, (String, IpAddr)>,
    /// How many EIPs there are.
    pub(super) eips: usize,
    /// Limits of sources by number.
    pub(super) limits: BTreeMap<u32, String>,
    /// How many TCP sessions may be half open.
    pub(super) half_open: u32,
}

/// A route with a counter of its own.
#[derive(Clone, Debug)]
pub(super) struct CountedRoute {
    pub(super) table: Arc<str>,
    pub(super) key: RouteKey,
    pub(super) kind: &'static str,
}

/// A pool address.
#[derive(Clone, Debug)]
pub(super) struct CountedAddress {
    pub(super) pool: String,
    pub(super) address: IpAddr,
    pub(super) ports: u32,
    pub(super) drained: bool,
    pub(super) limit: Limit,
}

impl CountedAddress {
    /// Sessions that there may be to each destination: as many as there are ports, or as the limit says.
    pub(super) fn room(&self) -> u32 {
        match self.limit.concurrent {
            0 => self.ports,
            concurrent => self.ports.min(concurrent),
        }
    }
}
