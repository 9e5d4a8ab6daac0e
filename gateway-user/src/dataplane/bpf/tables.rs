//! Maps `ROUTES_V4`, `ROUTES_V6`, `BINDINGS`, `RULES` and `ROUTERS`: the routes as the kernel has them.
//!
//! A change of one prefix, such as most routes that are added, replaces one element of the trie that is in
//! force. Any other change is written into tables and bindings that nobody reads yet, and comes into force with
//! the write of one word, [`gateway_common::config::Policy::bindings`]. So no packet meets half a change.
//!
//! All numbers come from one half of their range. A daemon that takes a gateway over uses the other half than
//! the one before it, so that it need not know what that one had written.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, ArrayOfMaps, LpmTrie, MapData, lpm_trie::Key};
use gateway_common::{
    eip::MAX_EIPS,
    family,
    parse::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP},
    pool::MAX_POOL_ADDRESSES,
    route::{
        ANY_INTERFACE, BindingKey, MAX_BINDINGS, MAX_ROUTERS, MAX_RULES, MAX_TABLE_SLOTS, Route, Router,
        Rule, SYSTEM, Target as Code,
    },
};
use ipnet::IpNet;

use super::{
    compile::{self, Otherwise, View},
    counters::RouteCounters,
    names::Names,
    pins::Pins,
    reap::Reaper,
    space::Space,
    sys,
    trie::{self, Batch, Trie, key_v4, key_v6},
};
use crate::{
    dataplane::Connected,
    model::{self, AccessLog, MAIN_TABLE, Proto, RouteKey, Selector, Table, TableKind, Target},
};

/// `BPF_F_NO_PREALLOC`, which tries must have.
const NO_PREALLOC: u32 = 1;

/// An ifindex that no device has: for a router whose device is missing.
const MISSING_DEVICE: u32 = i32::MAX.cast_unsigned();

/// Room for system routes, and for what is left out of them, beside the capacity. It takes no memory until used.
const SYSTEM_PREFIXES: u32 = MAX_EIPS + MAX_POOL_ADDRESSES + 4_096;

/// A binding to no table: ends a search that would find a prefix of the other family.
const NO_TABLE: u32 = 0;

/// Bits before the IPv4 part of a mapped address, and those of the interface before it.
const MAPPED_BITS: u32 = 96;
const INTERFACE_BITS: u32 = 32;

type BindingTrie = LpmTrie<MapData, BindingKey, u32>;

/// What the tables refer to.
pub(super) struct References<'a> {
    /// Numbers of pools by name.
    pub(super) pools: &'a BTreeMap<String, u32>,
    /// Numbers of proxies by name.
    pub(super) proxies: &'a BTreeMap<String, u32>,
    /// Slots of attached interfaces by name.
    pub(super) slots: &'a BTreeMap<String, u32>,
    /// Ifindexes of devices by name.
    pub(super) devices: &'a BTreeMap<String, u32>,
    /// Where system routes lead.
    pub(super) connected: &'a Connected,
    /// What is recorded.
    pub(super) access_log: Option<&'a AccessLog>,
}

/// Who counts where, and who is recorded under what.
pub(super) struct Owners {
    pub(super) counters: RouteCounters,
    pub(super) names: Names,
}

/// The maps that [`Tables`] takes over.
pub(super) struct TableMaps {
    pub(super) bindings: ArrayOfMaps<MapData, BindingTrie>,
    pub(super) rules: Array<MapData, Rule>,
    pub(super) routers: Array<MapData, Router>,
}

/// The tables in force.
pub(super) struct Tables {
    maps: TableMaps,
    /// Descriptors of `ROUTES_V4`, `ROUTES_V6` and `BINDINGS`, for what aya does not offer.
    outer: [OwnedFd; 3],
    counters: RouteCounters,
    names: Names,
    /// Elements of a table and family.
    capacity: u32,
    live: BTreeMap<String, Live>,
    /// System routes of all that is in `live`.
    connected: Connected,
    slots: Space,
    rule_space: Space,
    router_space: Space,
    routers: HashMap<(IpAddr, Option<String>), u32>,
    /// The element of `BINDINGS` in force.
    bindings: u32,
    /// Slots that a daemon before this one used.
    inherited: std::ops::Range<u32>,
    reaper: Reaper,
}

/// A table as the kernel has it.
struct Live {
    source: Arc<Table>,
    slot: u32,
    v4: Trie<trie::V4>,
    v6: Trie<trie::V6>,
    /// Runs of `RULES` in use, by prefix.
    runs: HashMap<IpNet, Run>,
}

/// A run of `RULES`: start and length.
type Run = (u32, u32);

/// A change that is written and waits for the word that puts it into force.
pub(super) struct Pending {
    /// The element of `BINDINGS` to put into force.
    pub(super) bindings: u32,
    fresh: Vec<Live>,
}

impl Tables {
    /// Takes the maps over; `bindings` and `half` say what is in force.
    pub(super) fn new(
        maps: TableMaps,
        pins: &Pins,
        Owners { counters, names }: Owners,
        capacity: u32,
        bindings: u32,
        half: u32,
    ) -> Result<Self> {
        let outer = |name| sys::open_pin(&pins.map(name));
        let slots = |half: u32| (half * MAX_TABLE_SLOTS / 2).max(1)..(half + 1) * MAX_TABLE_SLOTS / 2;
        let own = slots(half);
        Ok(Self {
            maps,
            outer: [outer("ROUTES_V4")?, outer("ROUTES_V6")?, outer("BINDINGS")?],
            counters,
            names,
            capacity,
            live: BTreeMap::new(),
            connected: Connected::default(),
            slots: Space::new("tables", own.start, own.end),
            rule_space: Space::new("route selectors", half * MAX_RULES, (half + 1) * MAX_RULES),
            router_space: Space::new("routers", half * MAX_ROUTERS, (half + 1) * MAX_ROUTERS),
            routers: HashMap::new(),
            bindings,
            inherited: slots(1 - half),
            reaper: Reaper::start()?,
        })
    }

    /// Writes what makes `to` the tables.
    ///
    /// `None`: it is in force already, because one element was replaced in place or nothing changed. That is done only
    /// where tables change `alone`: what comes into force with the word must not come after a table.
    ///
    /// # Errors
    /// Nothing is changed.
    pub(super) fn prepare(
        &mut self,
        to: &BTreeMap<String, Arc<Table>>,
        references: &References<'_>,
        alone: bool,
    ) -> Result<Option<Pending>> {
        for space in [&mut self.slots, &mut self.rule_space, &mut self.router_space] {
            space.begin_change();
        }
        self.counters.begin_change();
        self.write_routers(to, references)?;
        self.follow_host(references)?;
        let changed: Vec<&Arc<Table>> = to
            .values()
            .filter(|table| self.live.get(&table.name).is_none_or(|live| !Arc::ptr_eq(&live.source, table)))
            .collect();
        if alone
            && let [table] = changed[..]
            && self.live.len() == to.len()
            && let Some(live) = self.live.get(&table.name)
            && live.source.bindings == table.bindings
        {
            let view = |table| View::of(table, references.connected);
            if let Some(prefixes) = compile::changed_prefixes(view(&live.source), view(table), 1) {
                self.replace_element(table, prefixes.first().copied(), references)?;
                return Ok(None);
            }
        }
        let mut fresh = Vec::with_capacity(changed.len());
        let result = changed
            .iter()
            .try_for_each(|table| self.build(table, references, &mut fresh))
            .and_then(|()| self.write_bindings(to, &fresh, references));
        match result {
            Ok(()) => Ok(Some(Pending { bindings: 1 - self.bindings, fresh })),
            Err(error) => {
                for live in fresh {
                    self.discard(live)?;
                }
                Err(error)
            }
        }
    }

    /// What packets are recorded under that no route covers.
    pub(super) fn unrouted(&mut self) -> Result<u16> {
        self.names.unrouted()
    }

    /// Which element of `BINDINGS` is in force when `pending` is.
    pub(super) fn bindings(&self, pending: Option<&Pending>) -> u32 {
        pending.map_or(self.bindings, |pending| pending.bindings)
    }

    /// Slot of the border table when `pending` is in force, 0 if there is none.
    pub(super) fn border(&self, to: &BTreeMap<String, Arc<Table>>, pending: Option<&Pending>) -> u32 {
        let Some(table) = to.values().find(|table| table.kind == TableKind::Border) else { return NO_TABLE };
        let mut fresh = pending.iter().flat_map(|pending| &pending.fresh);
        let fresh = fresh.find(|live| live.source.name == table.name);
        fresh.or_else(|| self.live.get(&table.name)).map_or(NO_TABLE, |live| live.slot)
    }

    /// Makes a change final whose word is written: frees the tables that it replaced.
    pub(super) fn commit(&mut self, pending: Pending, to: &BTreeMap<String, Arc<Table>>) -> Result<()> {
        self.bindings = pending.bindings;
        let mut replaced = Vec::new();
        for live in pending.fresh {
            replaced.extend(self.live.insert(live.source.name.clone(), live));
        }
        let gone: Vec<String> = self.live.keys().filter(|name| !to.contains_key(*name)).cloned().collect();
        replaced.extend(gone.iter().filter_map(|name| self.live.remove(name)));
        for live in replaced {
            self.discard(live)?;
        }
        for slot in std::mem::take(&mut self.inherited) {
            self.clear_slot(slot)?;
        }
        sys::clear_inner_map(self.outer[2].as_fd(), 1 - self.bindings)
            .context("cannot empty the old bindings")
    }

    /// Forgets what no route of `to` uses any more. The numbers rest until the next change.
    pub(super) fn tidy(&mut self, to: &BTreeMap<String, Arc<Table>>) -> Result<()> {
        let used: BTreeSet<(IpAddr, Option<&String>)> = routers_of(to).collect();
        let space = &mut self.router_space;
        self.routers.retain(|(address, dev), number| {
            let keep = used.contains(&(*address, dev.as_ref()));
            if !keep {
                space.give_back(*number, 1);
            }
            keep
        });
        self.counters.retire(to, &self.connected)
    }

    /// Brings the tables in force to the system routes that the host's devices ask for. Each is a change of its own,
    /// as it was for the host.
    fn follow_host(&mut self, references: &References<'_>) -> Result<()> {
        if self.connected == *references.connected {
            return Ok(());
        }
        for name in self.live.keys().cloned().collect::<Vec<_>>() {
            let Some(mut live) = self.live.remove(&name) else { continue };
            let table = Arc::clone(&live.source);
            let view = |connected| View::of(&table, connected);
            let (before, after) = (view(&self.connected), view(references.connected));
            let written = compile::changed_prefixes(before, after, usize::MAX)
                .into_iter()
                .flatten()
                .try_for_each(|prefix| self.write_element(&mut live, &table, prefix, references));
            self.live.insert(name, live);
            written?;
        }
        self.connected = references.connected.clone();
        Ok(())
    }

    /// Gives every router that `to` names a number, and writes where it is.
    fn write_routers(
        &mut self,
        to: &BTreeMap<String, Arc<Table>>,
        references: &References<'_>,
    ) -> Result<()> {
        for (address, dev) in routers_of(to) {
            let key = (address, dev.cloned());
            let number = if let Some(number) = self.routers.get(&key) {
                *number
            } else {
                let number = self.router_space.one()?;
                self.routers.insert(key, number);
                number
            };
            let ifindex = dev.map_or(0, |dev| references.devices.get(dev).copied().unwrap_or(MISSING_DEVICE));
            let router = Router { address: family::from_ip(address), ifindex };
            self.maps.routers.set(number, router, 0).context("cannot write a router")?;
        }
        Ok(())
    }

    /// Makes `table` the table in force, whose element of `prefix` differs, if any does.
    fn replace_element(
        &mut self,
        table: &Arc<Table>,
        prefix: Option<IpNet>,
        references: &References<'_>,
    ) -> Result<()> {
        let Some(mut live) = self.live.remove(&table.name) else { return Ok(()) };
        let result = prefix.map_or(Ok(()), |prefix| self.write_element(&mut live, table, prefix, references));
        if result.is_ok() {
            live.source = Arc::clone(table);
        }
        self.live.insert(table.name.clone(), live);
        result
    }

    /// Writes a table into a slot that nobody reads.
    fn build(
        &mut self,
        table: &Arc<Table>,
        references: &References<'_>,
        fresh: &mut Vec<Live>,
    ) -> Result<()> {
        let mut live = Live {
            source: Arc::clone(table),
            slot: self.slots.one()?,
            v4: Trie::create(self.capacity.saturating_add(SYSTEM_PREFIXES))?,
            v6: Trie::create(self.capacity.saturating_add(SYSTEM_PREFIXES))?,
            runs: HashMap::new(),
        };
        let result = self.fill(&mut live, table, references);
        let entered = result.and_then(|()| {
            let [v4, v6, _] = &self.outer;
            live.v4.enter(v4.as_fd(), live.slot).context("cannot enter a table")?;
            live.v6.enter(v6.as_fd(), live.slot).context("cannot enter a table")
        });
        fresh.push(live);
        entered
    }

    /// Writes every element of a table into its empty tries.
    fn fill(&mut self, live: &mut Live, table: &Table, references: &References<'_>) -> Result<()> {
        let Live { v4, v6, runs, .. } = live;
        thread::scope(|scope| {
            let batches = (Batch::new(scope, v4), Batch::new(scope, v6));
            self.fill_with(batches, runs, table, references)
        })
    }

    fn fill_with<'scope, 'env>(
        &mut self,
        (mut v4, mut v6): (Batch<'scope, 'env, trie::V4>, Batch<'scope, 'env, trie::V6>),
        runs: &mut HashMap<IpNet, Run>,
        table: &Table,
        references: &References<'_>,
    ) -> Result<()> {
        let mut routes = table.routes.iter().peekable();
        while let Some((key, route)) = routes.next() {
            let mut alone = key.selector.is_any();
            while routes.next_if(|(next, _)| next.prefix == key.prefix).is_some() {
                alone = false;
            }
            // Nearly all prefixes of large tables have one route, which needs no search.
            let value = if alone {
                self.route(table, key, route, references)?
            } else {
                let Some((value, run)) = self.element(table, key.prefix, references)? else { continue };
                runs.extend(run.map(|run| (key.prefix, run)));
                value
            };
            match key.prefix {
                IpNet::V4(net) => v4.add(key_v4(net), value),
                IpNet::V6(net) => v6.add(key_v6(net), value),
            }
            .with_context(|| format!("cannot fill table {} up to {}", table.name, key.prefix))?;
        }
        for prefix in compile::system_prefixes(View::of(table, references.connected).connected) {
            if compile::has_routes(table, prefix) {
                continue;
            }
            let Some((value, run)) = self.element(table, prefix, references)? else { continue };
            runs.extend(run.map(|run| (prefix, run)));
            match prefix {
                IpNet::V4(net) => v4.add(key_v4(net), value),
                IpNet::V6(net) => v6.add(key_v6(net), value),
            }
            .with_context(|| format!("cannot fill table {} with system routes", table.name))?;
        }
        v4.finish().and_then(|()| v6.finish()).with_context(|| format!("cannot fill table {}", table.name))
    }

    /// Writes the element of `prefix` as `table` has it, or removes it.
    ///
    /// # Errors
    /// The element is as it was.
    fn write_element(
        &mut self,
        live: &mut Live,
        table: &Table,
        prefix: IpNet,
        references: &References<'_>,
    ) -> Result<()> {
        let run = if let Some((value, run)) = self.element(table, prefix, references)? {
            let entered = match prefix {
                IpNet::V4(net) => live.v4.insert(&key_v4(net), &value),
                IpNet::V6(net) => live.v6.insert(&key_v6(net), &value),
            };
            if let Err(error) = entered {
                if let Some((start, length)) = run {
                    self.rule_space.give_back(start, length);
                }
                return Err(anyhow::Error::new(error)
                    .context(format!("cannot enter {prefix} into table {}", table.name)));
            }
            run
        } else {
            match prefix {
                IpNet::V4(net) => live.v4.remove(&key_v4(net)),
                IpNet::V6(net) => live.v6.remove(&key_v6(net)),
            }
            .with_context(|| format!("cannot remove {prefix} from table {}", table.name))?;
            None
        };
        let before = match run {
            Some(run) => live.runs.insert(prefix, run),
            None => live.runs.remove(&prefix),
        };
        if let Some((start, length)) = before {
            self.rule_space.give_back(start, length);
        }
        Ok(())
    }

    /// The element of `prefix`, whose rules are written, and their run; `None` where there is nothing to enter.
    fn element(
        &mut self,
        table: &Table,
        prefix: IpNet,
        references: &References<'_>,
    ) -> Result<Option<(Route, Option<Run>)>> {
        let view = View::of(table, references.connected);
        let Some(element) = compile::element(view, prefix)? else { return Ok(None) };
        let length = element.rules.len() as u32;
        let start = if length == 0 { 0 } else { self.rule_space.run(length)? };
        match self.write_rules(table, &element, start, references) {
            Ok(value) => Ok(Some((value, Some((start, length)).filter(|(_, length)| *length > 0)))),
            Err(error) => {
                self.rule_space.give_back(start, length);
                Err(error)
            }
        }
    }

    /// Writes the rules of an element from `start` on; they count once the element is entered.
    fn write_rules(
        &mut self,
        table: &Table,
        element: &compile::Element,
        start: u32,
        references: &References<'_>,
    ) -> Result<Route> {
        for (at, key) in (start..).zip(&element.rules) {
            let rule = self.rule(table, key, references)?;
            self.maps.rules.set(at, rule, 0).context("cannot write a route selector")?;
        }
        let otherwise = match &element.otherwise {
            Some(Otherwise::Route(key)) => self.route(table, key, route_of(table, key)?, references)?,
            Some(Otherwise::System(prefix)) => {
                let key = RouteKey { prefix: *prefix, selector: Selector::default() };
                let counter = self.counters.number(&table.name, &key, Target::Direct.kind())?;
                Route {
                    target: Code::Direct as u8,
                    flags: SYSTEM,
                    counter: counter as u16,
                    ..Route::default()
                }
            }
            None => Route::default(),
        };
        Ok(Route { rules: element.rules.len() as u16, rule: start, ..otherwise })
    }

    fn rule(&mut self, table: &Table, key: &RouteKey, references: &References<'_>) -> Result<Rule> {
        let v4 = matches!(key.prefix, IpNet::V4(_));
        let proto = match key.selector.proto {
            None => 0,
            Some(Proto::Tcp) => PROTO_TCP,
            Some(Proto::Udp) => PROTO_UDP,
            Some(Proto::Icmp) if v4 => PROTO_ICMP,
            Some(Proto::Icmp) => PROTO_ICMPV6,
        };
        let (port_low, port_high) = key.selector.dport.map_or((0, u16::MAX), |ports| (ports.low, ports.high));
        let route = self.route(table, key, route_of(table, key)?, references)?;
        Ok(Rule { proto, reserved: [0; 3], port_low, port_high, route })
    }

    fn route(
        &mut self,
        table: &Table,
        key: &RouteKey,
        route: &model::Route,
        references: &References<'_>,
    ) -> Result<Route> {
        let (code, object) = match &route.target {
            Target::Direct => (Code::Direct, 0),
            Target::Pool(pool) => {
                let number = references.pools.get(pool);
                (Code::Pool, *number.with_context(|| format!("there is no pool {pool}"))?)
            }
            Target::Gateway { address, dev } => {
                let number = self.routers.get(&(*address, dev.clone()));
                (Code::Gateway, *number.context("a router has no number")?)
            }
            Target::Eip => (Code::Eip, 0),
            Target::Proxy(proxy) => {
                let number = references.proxies.get(proxy);
                (Code::Proxy, *number.with_context(|| format!("there is no proxy {proxy}"))?)
            }
            Target::Blackhole => (Code::Blackhole, 0),
            Target::Prohibit => (Code::Prohibit, 0),
            Target::Host => (Code::Host, 0),
        };
        let counter = self.counters.number(&table.name, key, route.target.kind())? as u16;
        let recorded = references.access_log.is_some_and(|log| log.records(&table.name, route.log));
        let log = if recorded && route.target.is_recordable() {
            self.names.number(&table.name, key, &route.target)?
        } else {
            0
        };
        Ok(Route { target: code as u8, flags: 0, rules: 0, object, counter, log, rule: 0 })
    }

    /// Writes the bindings into the element that is not in force.
    fn write_bindings(
        &mut self,
        to: &BTreeMap<String, Arc<Table>>,
        fresh: &[Live],
        references: &References<'_>,
    ) -> Result<()> {
        let mut trie = BindingTrie::create(MAX_BINDINGS, NO_PREALLOC).context("cannot make the bindings")?;
        let slot = |name: &str| {
            let fresh = fresh.iter().find(|live| live.source.name == name);
            fresh.or_else(|| self.live.get(name)).map_or(NO_TABLE, |live| live.slot)
        };
        let mut bindings: BTreeMap<(u32, u32, [u32; 4]), u32> = BTreeMap::new();
        // The defaults first: a binding of the same prefix replaces them.
        let v4: [u32; 4] = family::from_ip(IpAddr::from([0u8; 4]));
        bindings.insert((ANY_INTERFACE, MAPPED_BITS, v4), slot(MAIN_TABLE));
        bindings.insert((ANY_INTERFACE, 0, [0; 4]), slot(MAIN_TABLE));
        for table in to.values() {
            for binding in &table.bindings {
                let interface = match &binding.iif {
                    None => ANY_INTERFACE,
                    Some(name) => match references.slots.get(name) {
                        Some(slot) => BindingKey::interface(*slot),
                        // No packet comes from an interface that is not attached.
                        None => continue,
                    },
                };
                let bits = match binding.source {
                    IpNet::V4(net) => MAPPED_BITS + u32::from(net.prefix_len()),
                    IpNet::V6(net) => u32::from(net.prefix_len()),
                };
                if bits < MAPPED_BITS {
                    bindings.entry((interface, MAPPED_BITS, v4)).or_insert(NO_TABLE);
                }
                let source = family::from_ip(binding.source.network());
                bindings.insert((interface, bits, source), slot(&table.name));
            }
        }
        for ((interface, bits, source), slot) in bindings {
            trie.insert(&Key::new(INTERFACE_BITS + bits, BindingKey { interface, source }), slot, 0)
                .context("cannot write a binding")?;
        }
        self.maps.bindings.set(1 - self.bindings, &trie, 0).context("cannot enter the bindings")
    }

    fn discard(&mut self, live: Live) -> Result<()> {
        self.clear_slot(live.slot)?;
        self.slots.give_back(live.slot, 1);
        for (start, length) in live.runs.into_values() {
            self.rule_space.give_back(start, length);
        }
        // No packet reads the tries any more: the kernel has waited for those that did.
        self.reaper.take(live.source, live.v4, live.v6);
        Ok(())
    }

    fn clear_slot(&self, slot: u32) -> Result<()> {
        for outer in &self.outer[..2] {
            // Older kernels wait for all packets under way at each deletion, also where there is nothing.
            let occupied: Option<u32> =
                sys::lookup(outer.as_fd(), &slot).context("cannot read the list of tables")?;
            if occupied.is_none() {
                continue;
            }
            sys::clear_inner_map(outer.as_fd(), slot).context("cannot empty a table")?;
        }
        Ok(())
    }
}

/// A route of the table that is compiled.
fn route_of<'a>(table: &'a Table, key: &RouteKey) -> Result<&'a model::Route> {
    table.routes.get(key).context("a route vanished while it was compiled")
}

/// The routers that routes of `tables` name.
fn routers_of(tables: &BTreeMap<String, Arc<Table>>) -> impl Iterator<Item = (IpAddr, Option<&String>)> {
    tables.values().flat_map(|table| table.routes.targets()).filter_map(|target| match target {
        Target::Gateway { address, dev } => Some((*address, dev.as_ref())),
        Target::Direct
        | Target::Pool(_)
        | Target::Eip
        | Target::Proxy(_)
        | Target::Blackhole
        | Target::Prohibit
        | Target::Host => None,
    })
}
