//! What is written to the state directory: a state, and changes of it.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::model::{
    Binding, Difference, Eip, Group, Interface, Limit, NoSession, Pool, Proxy, Routes, Snapshot, Table,
    TableKind, Timeouts,
};

/// The part of a [`Snapshot`] that can be changed at run time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Running<'a> {
    active: bool,
    /// Absent where they are the configuration file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<Settings>,
    interfaces: Cow<'a, BTreeMap<String, Interface>>,
    pools: Cow<'a, BTreeMap<String, Pool>>,
    // Gateways of before there were any did not write these.
    #[serde(default)]
    eips: Cow<'a, BTreeMap<IpAddr, Eip>>,
    #[serde(default)]
    proxies: Cow<'a, BTreeMap<String, Proxy>>,
    #[serde(default)]
    limits: Cow<'a, BTreeMap<String, Limit>>,
    #[serde(default)]
    groups: Cow<'a, BTreeMap<String, Group>>,
    tables: Cow<'a, BTreeMap<String, Arc<Table>>>,
}

/// What only a whole configuration changes: `gwctl` has no words for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    half_open: Option<u32>,
    timeouts: Timeouts,
    no_session: NoSession,
}

/// From one state to the next. What there are few of is written as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Delta<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    active: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<Settings>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interfaces: Option<Cow<'a, BTreeMap<String, Interface>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pools: Option<Cow<'a, BTreeMap<String, Pool>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eips: Option<Cow<'a, BTreeMap<IpAddr, Eip>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proxies: Option<Cow<'a, BTreeMap<String, Proxy>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<Cow<'a, BTreeMap<String, Limit>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    groups: Option<Cow<'a, BTreeMap<String, Group>>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tables_removed: Vec<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tables: Vec<TableDelta<'a>>,
}

/// From one state of a table to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableDelta<'a> {
    name: Cow<'a, str>,
    kind: TableKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bindings: Option<Cow<'a, std::collections::BTreeSet<Binding>>>,
    /// Routes that are gone, as they were.
    #[serde(with = "crate::model::route::as_list", default, skip_serializing_if = "Routes::is_empty")]
    removed: Routes,
    /// Routes that are there and were not, or not like this.
    #[serde(with = "crate::model::route::as_list", default, skip_serializing_if = "Routes::is_empty")]
    set: Routes,
}

impl<'a> Running<'a> {
    /// What is to be written of `state`, over a configuration file that says `base`.
    pub(super) fn of(state: &'a Snapshot, base: Option<&Settings>) -> Self {
        let settings = Settings::of(state);
        Self {
            active: state.active,
            settings: base.is_some_and(|base| *base != settings).then_some(settings),
            interfaces: Cow::Borrowed(&state.interfaces),
            pools: Cow::Borrowed(&state.pools),
            eips: Cow::Borrowed(&state.eips),
            proxies: Cow::Borrowed(&state.proxies),
            limits: Cow::Borrowed(&state.limits),
            groups: Cow::Borrowed(&state.groups),
            tables: Cow::Borrowed(&state.tables),
        }
    }

    /// The whole state, with the rest of `base`. Its tables share what they have in common with those of `base`.
    pub(super) fn over(self, base: &Snapshot) -> Snapshot {
        let mut tables = self.tables.into_owned();
        for (name, table) in &mut tables {
            let Some(original) = base.tables.get(name) else { continue };
            let table = Arc::make_mut(table);
            table.routes = std::mem::take(&mut table.routes).sharing_with(&original.routes);
        }
        let mut state = Snapshot {
            name: base.name.clone(),
            active: self.active,
            capacity: base.capacity,
            timeouts: base.timeouts,
            no_session: base.no_session,
            interfaces: self.interfaces.into_owned(),
            pools: self.pools.into_owned(),
            eips: self.eips.into_owned(),
            proxies: self.proxies.into_owned(),
            limits: self.limits.into_owned(),
            groups: self.groups.into_owned(),
            access_log: base.access_log.clone(),
            tables,
        };
        if let Some(settings) = self.settings {
            settings.apply(&mut state);
        }
        state
    }
}

impl Settings {
    pub(super) fn of(state: &Snapshot) -> Self {
        Self {
            name: state.name.clone(),
            half_open: state.capacity.half_open,
            timeouts: state.timeouts,
            no_session: state.no_session,
        }
    }

    fn apply(self, state: &mut Snapshot) {
        let Self { name, half_open, timeouts, no_session } = self;
        state.capacity.half_open = half_open;
        (state.name, state.timeouts, state.no_session) = (name, timeouts, no_session);
    }
}

/// Whether more than `most` routes differ.
pub(super) fn differ_in_more(before: &Snapshot, after: &Snapshot, most: usize) -> bool {
    let none = Routes::default();
    let mut left = most;
    after.tables.iter().any(|(name, table)| {
        let known = before.tables.get(name).map_or(&none, |table| &table.routes);
        let count = known.diff(&table.routes).take(left + 1).count();
        let is_more = count > left;
        left = left.saturating_sub(count);
        is_more
    })
}

impl<'a> Delta<'a> {
    /// What makes `after` of `before`; `None` where more than `most` routes differ.
    pub(super) fn between(before: &'a Snapshot, after: &'a Snapshot, most: usize) -> Option<Self> {
        let mut room = most;
        let mut tables = Vec::new();
        for (name, table) in &after.tables {
            let known = before.tables.get(name);
            if known.is_none_or(|known| known != table) {
                tables.push(TableDelta::between(known.map(|known| &**known), table, &mut room)?);
            }
        }
        let removed = before.tables.keys().filter(|name| !after.tables.contains_key(*name));
        Some(Self {
            active: (before.active != after.active).then_some(after.active),
            settings: (Settings::of(before) != Settings::of(after)).then(|| Settings::of(after)),
            interfaces: changed(&before.interfaces, &after.interfaces),
            pools: changed(&before.pools, &after.pools),
            eips: changed(&before.eips, &after.eips),
            proxies: changed(&before.proxies, &after.proxies),
            limits: changed(&before.limits, &after.limits),
            groups: changed(&before.groups, &after.groups),
            tables_removed: removed.map(Cow::from).collect(),
            tables,
        })
    }

    /// Makes the change. `Err` says why it cannot be one of `state`.
    pub(super) fn apply(self, state: &mut Snapshot) -> Result<(), String> {
        state.active = self.active.unwrap_or(state.active);
        if let Some(settings) = self.settings {
            settings.apply(state);
        }
        replace(&mut state.interfaces, self.interfaces);
        replace(&mut state.pools, self.pools);
        replace(&mut state.eips, self.eips);
        replace(&mut state.proxies, self.proxies);
        replace(&mut state.limits, self.limits);
        replace(&mut state.groups, self.groups);
        for name in self.tables_removed {
            if state.tables.remove(&*name).is_none() {
                return Err(format!("it removes table `{name}`, which is not there"));
            }
        }
        self.tables.into_iter().try_for_each(|table| table.apply(state))
    }
}

impl<'a> TableDelta<'a> {
    /// See [`Delta::between`]. Takes what it writes from `room`.
    fn between(before: Option<&'a Table>, after: &'a Table, room: &mut usize) -> Option<Self> {
        let none = Routes::default();
        let known = before.map_or(&none, |before| &before.routes);
        let (mut removed, mut set) = (Routes::default(), Routes::default());
        for Difference { key, before, after } in known.diff(&after.routes) {
            *room = room.checked_sub(1)?;
            match (before, after) {
                (_, Some(route)) => drop(set.insert(*key, route.clone())),
                (Some(route), None) => drop(removed.insert(*key, route.clone())),
                (None, None) => {}
            }
        }
        let bindings = before.is_none_or(|before| before.bindings != after.bindings);
        Some(Self {
            name: Cow::from(&after.name),
            kind: after.kind,
            bindings: bindings.then_some(Cow::Borrowed(&after.bindings)),
            removed,
            set,
        })
    }

    fn apply(self, state: &mut Snapshot) -> Result<(), String> {
        let name = self.name.into_owned();
        let fresh = || Arc::new(Table::new(&name, self.kind));
        let table = Arc::make_mut(state.tables.entry(name.clone()).or_insert_with(fresh));
        table.kind = self.kind;
        if let Some(bindings) = self.bindings {
            table.bindings = bindings.into_owned();
        }
        for (key, route) in self.removed.iter() {
            if table.routes.remove(key).as_deref() != Some(route) {
                return Err(format!("it removes route {key} of table `{name}`, which is not there"));
            }
        }
        for (key, route) in self.set.iter() {
            table.routes.insert(*key, route.clone());
        }
        Ok(())
    }
}

fn changed<'a, T: Clone + PartialEq>(before: &T, after: &'a T) -> Option<Cow<'a, T>> {
    (before != after).then_some(Cow::Borrowed(after))
}

fn replace<T: Clone>(present: &mut T, change: Option<Cow<'_, T>>) {
    if let Some(change) = change {
        *present = change.into_owned();
    }
}
