//! Tables: routes, and the sources bound to them.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Route, RouteKey};

/// What a table decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    /// Packets from the inside.
    #[default]
    Egress,
    /// Replies from the outside, after translation.
    Border,
}

/// Which sources a table serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Binding {
    /// Source prefix.
    pub source: IpNet,
    /// Inside interface, if only that one is meant. Such a binding beats one without.
    pub iif: Option<String>,
}

/// A set of routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Name.
    pub name: String,
    /// What it decides.
    #[serde(default)]
    pub kind: TableKind,
    /// Sources it serves. No two tables have an equal binding.
    #[serde(default)]
    pub bindings: BTreeSet<Binding>,
    /// Routes; several with different selectors may share a prefix.
    #[serde(with = "super::route::as_list", default)]
    pub routes: BTreeMap<RouteKey, Route>,
}

impl Table {
    /// An empty table.
    pub fn new(name: &str, kind: TableKind) -> Self {
        Self { name: name.to_owned(), kind, bindings: BTreeSet::new(), routes: BTreeMap::new() }
    }
}
