//! Tables: routes, and the sources bound to them.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    Proto, Route, RouteKey, Routes,
    error::{ValueError, suggest},
};

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
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// Source prefix.
    pub source: IpNet,
    /// Inside interface, if only that one is meant. Such a binding beats one without.
    pub iif: Option<String>,
}

/// A set of routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    pub routes: Routes,
}

impl Table {
    /// An empty table.
    pub fn new(name: &str, kind: TableKind) -> Self {
        Self { name: name.to_owned(), kind, bindings: BTreeSet::new(), routes: Routes::default() }
    }

    /// Routes of exactly `prefix`, the one that is asked first at the front.
    pub fn of_prefix(&self, prefix: IpNet) -> Vec<(&RouteKey, &Route)> {
        let mut routes: Vec<_> = self.routes.of_prefix(prefix).collect();
        routes.sort_by_key(|(key, _)| key.selector.precedence());
        routes
    }

    /// Routes that cover `address`, in the order in which they are asked: the longest prefix first.
    pub fn covering(&self, address: IpAddr) -> impl Iterator<Item = (&RouteKey, &Route)> {
        let host = IpNet::from(address);
        (0..=host.max_prefix_len())
            .rev()
            .filter_map(move |length| IpNet::new(address, length).ok())
            .flat_map(|prefix| self.of_prefix(prefix.trunc()))
    }

    /// The route that decides a packet: of those that cover `address` and whose selector matches, the one
    /// with the longest prefix, then by [`Selector::precedence`]. A prefix whose selectors do not match
    /// leaves the packet to the next shorter one.
    pub fn lookup(
        &self,
        address: IpAddr,
        proto: Option<Proto>,
        dport: Option<u16>,
    ) -> Option<(&RouteKey, &Route)> {
        self.covering(address).find(|(key, _)| key.selector.matches(proto, dport))
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.iif {
            None => write!(f, "{}", self.source),
            Some(iif) => write!(f, "{} iif {iif}", self.source),
        }
    }
}

impl TableKind {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Border => "border",
        }
    }
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TableKind {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        [Self::Egress, Self::Border].into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            ValueError::invalid("kind", format!("`{text}` is not a kind of table"))
                .hint(suggest(text, ["egress", "border"]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::words::parse_route_line;

    fn table(lines: &str) -> Table {
        let mut table = Table::new("main", TableKind::Egress);
        let routes = lines.lines().filter_map(|line| parse_route_line(line).expect("a route"));
        table.routes.extend(routes);
        table
    }

    fn decided(table: &Table, to: &str, proto: Option<Proto>, dport: Option<u16>) -> Option<String> {
        let address = to.parse().expect("an address");
        table.lookup(address, proto, dport).map(|(_, route)| route.target.to_string())
    }

    #[test]
    fn the_longest_prefix_whose_selector_matches_decides() {
        let table = table(
            "default via pool rest
             203.0.113.0/24 via pool dns proto udp dport 53
             203.0.113.0/24 via pool low proto udp dport 1-1023
             203.0.113.0/24 via pool udp proto udp
             203.0.113.7 via blackhole proto tcp
             2001:db8::/32 via direct",
        );
        let to = |to, proto, dport| decided(&table, to, proto, dport).unwrap_or_default();
        assert_eq!(to("203.0.113.7", Some(Proto::Tcp), Some(443)), "blackhole");
        assert_eq!(to("203.0.113.7", Some(Proto::Udp), Some(53)), "pool dns");
        assert_eq!(to("203.0.113.7", Some(Proto::Udp), Some(123)), "pool low");
        assert_eq!(to("203.0.113.7", Some(Proto::Udp), Some(4000)), "pool udp");
        assert_eq!(to("203.0.113.7", Some(Proto::Udp), None), "pool udp");
        assert_eq!(to("203.0.113.8", Some(Proto::Tcp), Some(53)), "pool rest");
        assert_eq!(to("203.0.113.8", None, None), "pool rest");
        assert_eq!(to("2001:db8::1", Some(Proto::Icmp), None), "direct");
        assert_eq!(to("2001:db9::1", None, None), "");
    }
}
