//! `session show` and `session count`: one pass over the sessions, in bounded memory.

use std::{cmp::Ordering, collections::HashMap, net::IpAddr, time::Duration};

use gateway_common::{
    counter::Counter,
    parse::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP},
};
use ipnet::IpNet;

use super::{
    ApiError,
    request::about,
    types::{Endpoint, SessionCount, SessionProxy, SessionQuery, SessionRow},
};
use crate::{
    dataplane::{self, Observe},
    model::{Proto, ValueError, error::suggest, prefix::parse_prefix},
};

/// States of sessions, see [`SessionRow::state`].
const STATES: [&str; 6] = ["opening", "established", "closing", "closed", "active", "replied"];

/// Which sessions.
pub(super) struct Filter {
    from: Option<IpNet>,
    to: Option<IpNet>,
    proto: Option<Proto>,
    dport: Option<u16>,
    pool: Option<String>,
    proxy: Option<String>,
    state: Option<String>,
}

/// What `session show` puts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Bytes,
    Packets,
    Age,
}

/// What `session count` groups by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    Pool,
    Route,
    Proto,
    Source,
    Destination,
}

/// A query that was read.
pub(super) struct Request {
    filter: Filter,
    sort: Option<Sort>,
    by: Option<Group>,
    limit: usize,
}

/// Items, and how many there would have been without a limit.
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    pub(super) total: u64,
}

impl SessionQuery {
    pub(super) fn read(&self) -> Result<Request, ApiError> {
        self.read_values().map_err(about("session"))
    }

    fn read_values(&self) -> Result<Request, ValueError> {
        let prefix =
            |field, text: &Option<String>| text.as_deref().map(|text| parse_prefix(field, text)).transpose();
        if let Some(state) = &self.state
            && !STATES.contains(&state.as_str())
        {
            return Err(ValueError::invalid("state", format!("`{state}` is not a state of a session"))
                .hint(suggest(state, STATES)));
        }
        let sorts = [("bytes", Sort::Bytes), ("packets", Sort::Packets), ("age", Sort::Age)];
        let groups = [
            ("pool", Group::Pool),
            ("route", Group::Route),
            ("proto", Group::Proto),
            ("source", Group::Source),
            ("destination", Group::Destination),
        ];
        let limit = self.limit.unwrap_or(SessionQuery::DEFAULT_LIMIT);
        if limit == 0 || limit > SessionQuery::MAX_LIMIT {
            return Err(ValueError::invalid("limit", format!("a limit of {limit} is not possible"))
                .hint(format!("between 1 and {}", SessionQuery::MAX_LIMIT)));
        }
        Ok(Request {
            filter: Filter {
                from: prefix("from", &self.from)?,
                to: prefix("to", &self.to)?,
                proto: self.proto.as_deref().map(str::parse).transpose()?,
                dport: self.dport,
                pool: self.pool.clone(),
                proxy: self.proxy.clone(),
                state: self.state.clone(),
            },
            sort: choice("sort", self.sort.as_deref(), &sorts)?,
            by: choice("by", self.by.as_deref(), &groups)?,
            limit: limit as usize,
        })
    }
}

impl Request {
    /// `session show`.
    pub(super) fn show(&self, observe: &dyn Observe) -> anyhow::Result<Page<SessionRow>> {
        let mut total = 0;
        let rows = match self.sort {
            None => {
                let mut first = |row: &dataplane::SessionRow| {
                    let matches = self.filter.matches(row);
                    total += u64::from(matches);
                    matches && total <= self.limit as u64
                };
                observe.sessions(&mut first, 0)?
            }
            Some(sort) => {
                let mut top = Top::new(sort, self.limit);
                let mut collect = |row: &dataplane::SessionRow| {
                    if self.filter.matches(row) {
                        total += 1;
                        top.offer(row);
                    }
                    // Kept in `top`, not by the data plane: a million rows would not be welcome.
                    false
                };
                observe.sessions(&mut collect, 0)?;
                top.finish()
            }
        };
        Ok(Page { items: rows.into_iter().map(row).collect(), total })
    }

    /// `session count`: the largest groups first.
    pub(super) fn count(&self, observe: &dyn Observe) -> anyhow::Result<Page<SessionCount>> {
        let mut groups: HashMap<Key, u64> = HashMap::new();
        if self.by.is_none() {
            groups.insert(Key::default(), 0);
        }
        let mut count = |row: &dataplane::SessionRow| {
            if self.filter.matches(row) {
                *groups.entry(key(self.by, row)).or_default() += 1;
            }
            false
        };
        observe.sessions(&mut count, 0)?;
        let total = groups.len() as u64;
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
        groups.truncate(self.limit);
        let items = groups.into_iter().map(|(key, count)| group(key, count)).collect();
        Ok(Page { items, total })
    }
}

impl Filter {
    fn matches(&self, row: &dataplane::SessionRow) -> bool {
        self.from.is_none_or(|from| from.contains(&row.source))
            && self.to.is_none_or(|to| to.contains(&row.destination))
            && self.proto.is_none_or(|proto| Proto::from_number(row.proto) == Some(proto))
            && self.dport.is_none_or(|port| row.destination_port == port)
            && self.pool.as_ref().is_none_or(|pool| row.pool.as_ref() == Some(pool))
            && self
                .proxy
                .as_ref()
                .is_none_or(|proxy| row.proxy.as_ref().is_some_and(|(name, _)| name == proxy))
            && self.state.as_ref().is_none_or(|state| row.state == state)
    }
}

/// The `limit` largest rows of those that were offered.
struct Top {
    sort: Sort,
    limit: usize,
    rows: Vec<dataplane::SessionRow>,
}

impl Top {
    fn new(sort: Sort, limit: usize) -> Self {
        Self { sort, limit, rows: Vec::new() }
    }

    fn offer(&mut self, row: &dataplane::SessionRow) {
        self.rows.push(row.clone());
        // Cutting back at twice the limit costs a constant time a row.
        if self.rows.len() >= 2 * self.limit {
            let sort = self.sort;
            self.rows.select_nth_unstable_by(self.limit - 1, |a, b| order(sort, a, b));
            self.rows.truncate(self.limit);
        }
    }

    fn finish(mut self) -> Vec<dataplane::SessionRow> {
        let sort = self.sort;
        self.rows.sort_by(|a, b| order(sort, a, b));
        self.rows.truncate(self.limit);
        self.rows
    }
}

fn order(sort: Sort, a: &dataplane::SessionRow, b: &dataplane::SessionRow) -> Ordering {
    let both = |row: &dataplane::SessionRow| {
        let mut sum: Counter = row.sent;
        sum.add(row.received);
        sum
    };
    let largest_first = match sort {
        Sort::Bytes => both(b).bytes.cmp(&both(a).bytes),
        Sort::Packets => both(b).packets.cmp(&both(a).packets),
        Sort::Age => b.age.cmp(&a.age),
    };
    // Equals in a fixed order, so that a screen that is redrawn does not jump.
    let tuple = |row: &dataplane::SessionRow| {
        (row.proto, row.source, row.source_port, row.destination, row.destination_port)
    };
    largest_first.then_with(|| tuple(a).cmp(&tuple(b)))
}

/// Key of a group: only the fields of its kind are set.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    pool: Option<String>,
    route: Option<(String, IpNet)>,
    proto: Option<u8>,
    source: Option<IpAddr>,
    destination: Option<(IpAddr, u16)>,
}

fn key(by: Option<Group>, row: &dataplane::SessionRow) -> Key {
    match by {
        None => Key::default(),
        Some(Group::Pool) => Key { pool: row.pool.clone(), ..Key::default() },
        Some(Group::Route) => {
            let route = row.route.as_ref().map(|(table, key)| (table.clone(), key.prefix));
            Key { route, ..Key::default() }
        }
        Some(Group::Proto) => Key { proto: Some(row.proto), ..Key::default() },
        Some(Group::Source) => Key { source: Some(row.source), ..Key::default() },
        Some(Group::Destination) => Key {
            proto: Some(row.proto),
            destination: Some((row.destination, row.destination_port)),
            ..Key::default()
        },
    }
}

fn group(key: Key, count: u64) -> SessionCount {
    let (table, route) = key.route.unzip();
    SessionCount {
        pool: key.pool,
        table,
        route,
        proto: key.proto.map(proto),
        source: key.source,
        destination: key.destination.map(|(address, port)| Endpoint { address, port }),
        count,
    }
}

fn row(row: dataplane::SessionRow) -> SessionRow {
    let (table, key) = row.route.unzip();
    SessionRow {
        proto: proto(row.proto),
        source: Endpoint { address: row.source, port: row.source_port },
        translated: Endpoint { address: row.translated, port: row.translated_port },
        destination: Endpoint { address: row.destination, port: row.destination_port },
        pool: row.pool,
        proxy: row.proxy.map(|(name, host)| SessionProxy { name, host }),
        table,
        route: key.map(|key| key.prefix),
        state: row.state.to_owned(),
        age: seconds(row.age),
        idle: seconds(row.idle),
        sent: row.sent.into(),
        received: row.received.into(),
    }
}

/// Seconds with three decimals: the clock of sessions is no finer.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

pub(super) fn proto(number: u8) -> String {
    match number {
        PROTO_TCP => "tcp".to_owned(),
        PROTO_UDP => "udp".to_owned(),
        PROTO_ICMP | PROTO_ICMPV6 => "icmp".to_owned(),
        other => other.to_string(),
    }
}

fn choice<T: Copy>(
    field: &'static str,
    text: Option<&str>,
    choices: &[(&'static str, T)],
) -> Result<Option<T>, ValueError> {
    let Some(text) = text else { return Ok(None) };
    let found = choices.iter().find(|(name, _)| *name == text);
    found.map(|(_, choice)| Some(*choice)).ok_or_else(|| {
        ValueError::invalid(field, format!("`{text}` is not a value of `{field}`"))
            .hint(suggest(text, choices.iter().map(|(name, _)| *name)))
    })
}
