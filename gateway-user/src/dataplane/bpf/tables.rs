//! Maps `ROUTES_V4`, `ROUTES_V6`, `BINDINGS`, `RULES` and `ROUTERS`: the routes as the kernel has them.
//!
//! A change of one prefix, such as most routes that are added, replaces one element of the trie that is in
//! force. Any other change is written into tables and bindings that nobody reads yet, and comes into force with
//! the write of one word, [`gateway_common::config::Config::bindings`]. So no packet meets half a change.
//!
//! All numbers come from one half of their range. A daemon that takes a gateway over uses the other half than
//! the one before it, so that it need not know what that one had written.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, ArrayOfMaps, LpmTrie, MapData, MapError, lpm_trie::Key};
use gateway_common::{
    family,
    parse::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP},
    route::{
        ANY_INTERFACE, BindingKey, MAX_BINDINGS, MAX_ROUTERS, MAX_RULES, MAX_TABLE_SLOTS, Route, Router,
        Rule, Target as Code,
    },
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{compile, counters::RouteCounters, pins::Pins, space::Space, sys};
use crate::model::{MAIN_TABLE, Proto, RouteKey, Table, Target};

/// `BPF_F_NO_PREALLOC`, which tries must have.
const NO_PREALLOC: u32 = 1;

/// An ifindex that no device has: for a router whose device is missing.
const MISSING_DEVICE: u32 = i32::MAX.cast_unsigned();

/// A binding to no table: ends a search that would find a prefix of the other family.
const NO_TABLE: u32 = 0;

/// Bits before the IPv4 part of a mapped address, and those of the interface before it.
const MAPPED_BITS: u32 = 96;
const INTERFACE_BITS: u32 = 32;

type TrieV4 = LpmTrie<MapData, u32, Route>;
type TrieV6 = LpmTrie<MapData, [u32; 4], Route>;
type BindingTrie = LpmTrie<MapData, BindingKey, u32>;

/// What the tables refer to.
pub(super) struct References<'a> {
    /// Numbers of pools by name.
    pub(super) pools: &'a BTreeMap<String, u32>,
    /// Slots of attached interfaces by name.
    pub(super) slots: &'a BTreeMap<String, u32>,
    /// Ifindexes of devices by name.
    pub(super) devices: &'a BTreeMap<String, u32>,
}

/// The maps that [`Tables`] takes over.
pub(super) struct TableMaps {
    pub(super) routes_v4: ArrayOfMaps<MapData, TrieV4>,
    pub(super) routes_v6: ArrayOfMaps<MapData, TrieV6>,
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
    /// Elements of a table and family.
    capacity: u32,
    live: BTreeMap<String, Live>,
    slots: Space,
    rule_space: Space,
    router_space: Space,
    routers: HashMap<(IpAddr, Option<String>), u32>,
    /// The element of `BINDINGS` in force.
    bindings: u32,
    /// Slots that a daemon before this one used.
    inherited: std::ops::Range<u32>,
}

/// A table as the kernel has it.
struct Live {
    source: Arc<Table>,
    slot: u32,
    v4: TrieV4,
    v6: TrieV6,
    /// Runs of `RULES` in use, by prefix: start and length.
    runs: HashMap<IpNet, (u32, u32)>,
}

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
        counters: RouteCounters,
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
            capacity,
            live: BTreeMap::new(),
            slots: Space::new("tables", own.start, own.end),
            rule_space: Space::new("route selectors", half * MAX_RULES, (half + 1) * MAX_RULES),
            router_space: Space::new("routers", half * MAX_ROUTERS, (half + 1) * MAX_ROUTERS),
            routers: HashMap::new(),
            bindings,
            inherited: slots(1 - half),
        })
    }

    /// Writes what makes `to` the tables.
    ///
    /// `None`: it is in force already, because one element was replaced in place or nothing changed.
    ///
    /// # Errors
    /// Nothing is changed.
    pub(super) fn prepare(
        &mut self,
        to: &BTreeMap<String, Arc<Table>>,
        references: &References<'_>,
    ) -> Result<Option<Pending>> {
        for space in [&mut self.slots, &mut self.rule_space, &mut self.router_space] {
            space.begin_change();
        }
        self.counters.begin_change();
        self.write_routers(to, references)?;
        let changed: Vec<&Arc<Table>> = to
            .values()
            .filter(|table| self.live.get(&table.name).is_none_or(|live| !Arc::ptr_eq(&live.source, table)))
            .collect();
        if let [table] = changed[..]
            && self.live.len() == to.len()
            && let Some(live) = self.live.get(&table.name)
            && live.source.bindings == table.bindings
        {
            let prefixes = compile::changed_prefixes(&live.source, table);
            if prefixes.len() <= 1 {
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
        self.counters.retire(to)
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
        let trie = |error: MapError| anyhow::Error::new(error).context("cannot make a table");
        let mut live = Live {
            source: Arc::clone(table),
            slot: self.slots.one()?,
            v4: TrieV4::create(self.capacity, NO_PREALLOC).map_err(trie)?,
            v6: TrieV6::create(self.capacity, NO_PREALLOC).map_err(trie)?,
            runs: HashMap::new(),
        };
        let mut last = None;
        let mut result = Ok(());
        for key in table.routes.keys() {
            if last.replace(key.prefix) != Some(key.prefix) {
                result = self.write_element(&mut live, table, key.prefix, references);
                if result.is_err() {
                    break;
                }
            }
        }
        if result.is_ok() {
            self.maps.routes_v4.set(live.slot, &live.v4, 0).context("cannot enter a table")?;
            self.maps.routes_v6.set(live.slot, &live.v6, 0).context("cannot enter a table")?;
        }
        fresh.push(live);
        result
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
        let run = if let Some(element) = compile::element(table, prefix)? {
            let length = element.rules.len() as u32;
            let start = if length == 0 { 0 } else { self.rule_space.run(length)? };
            let entered = self.enter_element(live, table, prefix, start, &element, references);
            if let Err(error) = entered {
                self.rule_space.give_back(start, length);
                return Err(error);
            }
            Some((start, length)).filter(|(_, length)| *length > 0)
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

    /// Writes the rules of an element from `start` on, and then the element, which makes them count.
    fn enter_element(
        &mut self,
        live: &mut Live,
        table: &Table,
        prefix: IpNet,
        start: u32,
        element: &compile::Element,
        references: &References<'_>,
    ) -> Result<()> {
        for (at, key) in (start..).zip(&element.rules) {
            let rule = self.rule(table, key, references)?;
            self.maps.rules.set(at, rule, 0).context("cannot write a route selector")?;
        }
        let otherwise =
            element.otherwise.map_or(Ok(Route::default()), |key| self.route(table, &key, references))?;
        let value = Route { rules: element.rules.len() as u16, rule: start, ..otherwise };
        match prefix {
            IpNet::V4(net) => live.v4.insert(&key_v4(net), value, 0),
            IpNet::V6(net) => live.v6.insert(&key_v6(net), value, 0),
        }
        .with_context(|| format!("cannot enter {prefix} into table {}", table.name))
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
        let route = self.route(table, key, references)?;
        Ok(Rule { proto, reserved: [0; 3], port_low, port_high, route })
    }

    fn route(&mut self, table: &Table, key: &RouteKey, references: &References<'_>) -> Result<Route> {
        let target = &table.routes.get(key).context("a route vanished while it was compiled")?.target;
        let (code, object) = match target {
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
                bail!("route {key} goes through proxy {proxy}, and proxies are not supported")
            }
            Target::Blackhole => (Code::Blackhole, 0),
            Target::Prohibit => (Code::Prohibit, 0),
            Target::Host => (Code::Host, 0),
        };
        let counter = self.counters.number(&table.name, key, target.kind())?;
        Ok(Route { target: code as u8, flags: 0, rules: 0, object, counter, rule: 0 })
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

fn key_v4(net: Ipv4Net) -> Key<u32> {
    Key::new(net.prefix_len().into(), u32::from(net.network()).to_be())
}

fn key_v6(net: Ipv6Net) -> Key<[u32; 4]> {
    Key::new(net.prefix_len().into(), family::from_ip(net.network().into()))
}

/// The routers that routes of `tables` name.
fn routers_of(tables: &BTreeMap<String, Arc<Table>>) -> impl Iterator<Item = (IpAddr, Option<&String>)> {
    tables.values().flat_map(|table| table.routes.values()).filter_map(|route| match &route.target {
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
