//! `session show` and `session count`: one pass over the sessions, in bounded memory.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use gateway_common::parse::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP};
use ipnet::IpNet;

use super::{
    ApiError,
    request::about,
    types::{Endpoint, SessionCount, SessionProxy, SessionQuery, SessionRow},
};
use crate::{
    dataplane::{self, Glance, Observe, Order},
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
    sort: Option<Order>,
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
        let sorts = [("bytes", Order::Bytes), ("packets", Order::Packets), ("age", Order::Age)];
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
        let (rows, total) = if let Some(order) = self.sort {
            observe.largest(&mut |session| self.filter.matches(session), order, self.limit)?
        } else {
            let mut total = 0;
            let mut first = |session: &dyn Glance| {
                let matches = self.filter.matches(session);
                total += u64::from(matches);
                matches && total <= self.limit as u64
            };
            (observe.sessions(&mut first, 0)?, total)
        };
        Ok(Page { items: rows.into_iter().map(row).collect(), total })
    }

    /// `session count`: the largest groups first.
    pub(super) fn count(&self, observe: &dyn Observe) -> anyhow::Result<Page<SessionCount>> {
        let mut groups: HashMap<Key, u64> = HashMap::new();
        if self.by.is_none() {
            groups.insert(Key::All, 0);
        }
        let mut count = |session: &dyn Glance| {
            if self.filter.matches(session) {
                *groups.entry(key(self.by, session)).or_default() += 1;
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
    /// Asks for what is at hand first.
    fn matches(&self, session: &dyn Glance) -> bool {
        self.from.is_none_or(|from| from.contains(&session.source().0))
            && self.to.is_none_or(|to| to.contains(&session.destination().0))
            && self.proto.is_none_or(|proto| Proto::from_number(session.proto()) == Some(proto))
            && self.dport.is_none_or(|port| session.destination().1 == port)
            && self.pool.as_ref().is_none_or(|pool| session.pool().as_ref() == Some(pool))
            && self.proxy.as_ref().is_none_or(|proxy| session.proxy().as_ref() == Some(proxy))
            && self.state.as_ref().is_none_or(|state| session.state() == state)
    }
}

/// Key of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    All,
    Pool(Option<String>),
    Route(Option<(String, IpNet)>),
    Proto(u8),
    Source(IpAddr),
    Destination(u8, (IpAddr, u16)),
}

fn key(by: Option<Group>, session: &dyn Glance) -> Key {
    match by {
        None => Key::All,
        Some(Group::Pool) => Key::Pool(session.pool()),
        Some(Group::Route) => Key::Route(session.route().map(|(table, key)| (table, key.prefix))),
        Some(Group::Proto) => Key::Proto(session.proto()),
        Some(Group::Source) => Key::Source(session.source().0),
        Some(Group::Destination) => Key::Destination(session.proto(), session.destination()),
    }
}

fn group(key: Key, count: u64) -> SessionCount {
    let mut group = SessionCount { count, ..SessionCount::default() };
    match key {
        Key::All => {}
        Key::Pool(pool) => group.pool = pool,
        Key::Route(route) => (group.table, group.route) = route.unzip(),
        Key::Proto(number) => group.proto = Some(proto(number)),
        Key::Source(source) => group.source = Some(source),
        Key::Destination(number, (address, port)) => {
            group.proto = Some(proto(number));
            group.destination = Some(Endpoint { address, port });
        }
    }
    group
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
