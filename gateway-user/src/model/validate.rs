//! What makes a whole state acceptable: every reference leads somewhere, nothing overlaps, everything fits.

mod group;
mod proxy;
mod route;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::IpAddr,
    time::Duration,
};

use gateway_common::{
    eip::MAX_EIPS,
    interface::MAX_INTERFACES,
    limit::{MAX_BURST, MAX_CONCURRENT, MAX_RATE},
    pool::{FIRST_PORT, MAX_ADDRESSES_PER_POOL, MAX_MSS, MAX_POOL_ADDRESSES, MAX_POOLS, MIN_MSS, MIN_MSS_V6},
    route::{MAX_BINDINGS, MAX_TABLE_SLOTS},
    source,
};

use ipnet::IpNet;

use super::{
    Binding, Eip, Interface, MAIN_TABLE, Pool, Role, RouteKey, Snapshot, Table, TableKind, Timeouts,
    error::{ValueError, closest},
    prefix::{check_unicast, family},
};

pub use proxy::{INTERVALS, MAX_WEIGHT};
use route::pool_for;

/// Longest name of a gateway, pool or table, in bytes.
pub const MAX_NAME: usize = 63;
/// Tables there can be: a replacement needs a second slot for a moment, and slot 0 is never used.
pub const MAX_TABLES: usize = MAX_TABLE_SLOTS as usize / 4 - 1;
/// Limits of sources there can be: while they change, there are those before, too.
pub const MAX_LIMITS: usize = source::MAX_LIMITS as usize / 2;
/// Bindings there can be: some elements are kept for the binding of table `main` to every source.
pub const MAX_SOURCES: usize = MAX_BINDINGS as usize - 16;
/// Largest capacity that can be configured; the memory is taken when the gateway starts.
pub const MAX_CAPACITY: u32 = 1 << 26;
/// Longest idle time.
pub const MAX_TIMEOUT: Duration = Duration::from_hours(24 * 365);

/// The part of a state that is at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Name, capacity, timeouts.
    Gateway,
    /// An interface.
    Interface(String),
    /// A pool.
    Pool(String),
    /// An EIP, by its outside address.
    Eip(IpAddr),
    /// A proxy.
    Proxy(String),
    /// A limit of sources.
    Limit(String),
    /// A group of usage.
    Group(String),
    /// A table.
    Table(String),
    /// A binding of the table.
    Binding(String, Binding),
    /// A route of the table.
    Route(String, RouteKey),
}

/// A state that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where.
    pub subject: Box<Subject>,
    /// Why.
    pub error: ValueError,
}

impl Subject {
    /// The noun of the subject.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Interface(_) => "interface",
            Self::Pool(_) => "pool",
            Self::Eip(_) => "eip",
            Self::Proxy(_) => "proxy",
            Self::Limit(_) => "limit",
            Self::Group(_) => "group",
            Self::Table(_) => "table",
            Self::Binding(..) => "binding",
            Self::Route(..) => "route",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => f.write_str("gateway"),
            Self::Interface(name) => write!(f, "interface {name}"),
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Eip(address) => write!(f, "eip {address}"),
            Self::Proxy(name) => write!(f, "proxy {name}"),
            Self::Limit(name) => write!(f, "limit {name}"),
            Self::Group(name) => write!(f, "group {name}"),
            Self::Table(name) => write!(f, "table {name}"),
            Self::Binding(table, binding) => write!(f, "table {table}, binding {binding}"),
            Self::Route(table, key) => write!(f, "table {table}, route {key}"),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.error)
    }
}

impl std::error::Error for Violation {}

/// Checks a whole state.
pub fn validate(state: &Snapshot) -> Result<(), Violation> {
    validate_change(None, state)
}

/// Checks what `before`, which is acceptable, was changed to. Of a table, this looks at what has changed.
pub fn validate_change(before: Option<&Snapshot>, state: &Snapshot) -> Result<(), Violation> {
    gateway(state).map_err(at(&Subject::Gateway))?;
    interfaces(state)?;
    pools(state)?;
    eips(state)?;
    proxy::proxies(state)?;
    limits(state)?;
    group::groups(state)?;
    tables(state)?;
    bindings(state)?;
    route::shared(state)?;
    state.tables.values().try_for_each(|table| {
        let before = before.and_then(|before| before.tables.get(&table.name));
        route::routes(state, table, before.map(|before| &**before))
    })
}

/// Checks a name that the operator chose.
pub fn check_name(noun: &str, name: &str) -> Result<(), ValueError> {
    let refuse = |why: &str| {
        Err(ValueError::invalid("name", format!("{noun} name `{name}` {why}"))
            .hint("use letters, digits, `-`, `_` and `.`, beginning with a letter or a digit"))
    };
    if name.is_empty() {
        refuse("is empty")
    } else if name.len() > MAX_NAME {
        refuse(&format!("is longer than {MAX_NAME} bytes"))
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
        || name.contains(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
    {
        refuse("has a character that names cannot have")
    } else {
        Ok(())
    }
}

/// Idle times that are shorter than the standards ask for: allowed, and worth a warning.
pub fn below_standard(timeouts: &Timeouts) -> Vec<String> {
    let standard = [
        ("tcp_established", timeouts.tcp_established, Duration::from_mins(124), "RFC 5382 REQ-5"),
        ("tcp_closing", timeouts.tcp_closing, Duration::from_mins(4), "RFC 5382 REQ-5"),
        ("udp", timeouts.udp, Duration::from_mins(2), "RFC 4787 REQ-5"),
        ("icmp", timeouts.icmp, Duration::from_mins(1), "RFC 5508 REQ-2"),
    ];
    standard
        .into_iter()
        .filter(|(_, value, least, _)| value < least)
        .map(|(name, value, least, source)| {
            format!(
                "timeouts.{name} is {}, below the {} of {source}: quiet flows will be cut",
                humantime::format_duration(value),
                humantime::format_duration(least)
            )
        })
        .collect()
}

fn at(subject: &Subject) -> impl FnOnce(ValueError) -> Violation {
    |error| Violation { subject: Box::new(subject.clone()), error }
}

fn gateway(state: &Snapshot) -> Result<(), ValueError> {
    check_name("gateway", &state.name)?;
    for (field, value) in [
        ("sessions", state.capacity.sessions),
        ("routes", state.capacity.routes),
        ("half_open", state.capacity.half_open()),
    ] {
        if value == 0 || value > MAX_CAPACITY {
            return Err(ValueError::invalid(field, format!("a capacity of {value} {field} is not possible"))
                .hint(format!("between 1 and {MAX_CAPACITY}")));
        }
    }
    let timeouts = &state.timeouts;
    for (field, value) in [
        ("tcp_established", timeouts.tcp_established),
        ("tcp_opening", timeouts.tcp_opening),
        ("tcp_closing", timeouts.tcp_closing),
        ("udp", timeouts.udp),
        ("udp_dns", timeouts.udp_dns),
        ("icmp", timeouts.icmp),
    ] {
        if value < Duration::from_secs(1) || value > MAX_TIMEOUT {
            let value = humantime::format_duration(value);
            return Err(ValueError::invalid(field, format!("an idle time of {value} is not possible"))
                .hint("between 1s and 365days"));
        }
    }
    Ok(())
}

fn interfaces(state: &Snapshot) -> Result<(), Violation> {
    for (number, name) in state.interfaces.keys().enumerate() {
        let subject = Subject::Interface(name.clone());
        Interface::check_name(name).map_err(at(&subject))?;
        if number >= MAX_INTERFACES as usize {
            let message = format!("interface `{name}` is one more than the {MAX_INTERFACES} there can be");
            return Err(at(&subject)(ValueError::full("name", message).hint("remove one first")));
        }
    }
    Ok(())
}

fn pools(state: &Snapshot) -> Result<(), Violation> {
    let mut owners: HashMap<IpAddr, &str> = HashMap::new();
    for (number, pool) in state.pools.values().enumerate() {
        let subject = Subject::Pool(pool.name.clone());
        check_name("pool", &pool.name).map_err(at(&subject))?;
        if number >= MAX_POOLS as usize {
            let message = format!("pool `{}` is one more than the {MAX_POOLS} there can be", pool.name);
            return Err(at(&subject)(ValueError::full("name", message).hint("remove one first")));
        }
        one_pool(pool).map_err(at(&subject))?;
        for address in &pool.addresses {
            let Some(owner) = owners.insert(*address, &pool.name) else { continue };
            let error = if owner == pool.name {
                ValueError::invalid("addresses", format!("address {address} appears twice"))
                    .hint("remove one")
            } else {
                let message = format!("address {address} belongs to pool `{owner}` already");
                ValueError::invalid("addresses", message).hint("an address can be in one pool only")
            };
            return Err(at(&subject)(error));
        }
        if owners.len() > MAX_POOL_ADDRESSES as usize {
            let message = format!("all pools together have more than {MAX_POOL_ADDRESSES} addresses");
            return Err(at(&subject)(ValueError::full("addresses", message).hint("remove some")));
        }
    }
    Ok(())
}

fn one_pool(pool: &Pool) -> Result<(), ValueError> {
    if pool.addresses.is_empty() {
        return Err(ValueError::invalid("addresses", format!("pool `{}` has no address", pool.name))
            .hint("give it at least one outside address"));
    }
    if pool.addresses.len() > MAX_ADDRESSES_PER_POOL as usize {
        let message = format!("pool `{}` has {} addresses", pool.name, pool.addresses.len());
        return Err(ValueError::full("addresses", message).hint(format!("at most {MAX_ADDRESSES_PER_POOL}")));
    }
    if pool.ports.low < FIRST_PORT {
        let message = format!("port {} is below {FIRST_PORT}", pool.ports.low);
        return Err(ValueError::invalid("ports", message)
            .hint(format!("the ports below {FIRST_PORT} stay with hosts: use {FIRST_PORT}-65535")));
    }
    if let Some(stranger) = pool.drained.iter().find(|address| !pool.addresses.contains(address)) {
        let message = format!("address {stranger} is drained, and not one of pool `{}`", pool.name);
        return Err(ValueError::invalid("drained", message).hint("name addresses of the pool"));
    }
    let least = if pool.addresses.iter().any(IpAddr::is_ipv6) { MIN_MSS_V6 } else { MIN_MSS };
    if pool.mss != 0 && !(least..=MAX_MSS).contains(&pool.mss) {
        return Err(Pool::bad_mss(&pool.mss.to_string(), least));
    }
    let limits = &pool.per_destination;
    bounds(limits.rate, limits.burst(), limits.concurrent)?;
    pool.addresses.iter().try_for_each(|address| check_unicast("addresses", *address))
}

/// Bounds of a limit.
fn bounds(rate: u32, burst: u32, concurrent: u32) -> Result<(), ValueError> {
    for (field, value, most) in
        [("rate", rate, MAX_RATE), ("burst", burst, MAX_BURST), ("concurrent", concurrent, MAX_CONCURRENT)]
    {
        if value > most {
            return Err(ValueError::invalid(field, format!("{field} {value} is not possible"))
                .hint(format!("at most {most}; 0 for no limit")));
        }
    }
    if rate != 0 && burst == 0 {
        return Err(ValueError::invalid("burst", "burst 0 would admit nothing")
            .hint("at least 1; leave it out for the connections of a second"));
    }
    Ok(())
}

fn limits(state: &Snapshot) -> Result<(), Violation> {
    let mut owners: BTreeMap<IpNet, &str> = BTreeMap::new();
    for (number, limit) in state.limits.values().enumerate() {
        let mut check = || {
            check_name("limit", &limit.name)?;
            if number >= MAX_LIMITS {
                let message =
                    format!("limit `{}` is one more than the {MAX_LIMITS} there can be", limit.name);
                return Err(ValueError::full("name", message).hint("remove one first"));
            }
            bounds(limit.rate, limit.burst(), limit.concurrent)?;
            match owners.insert(limit.from, &limit.name) {
                None => Ok(()),
                Some(other) => {
                    let message = format!("source {} has limit `{other}` already", limit.from);
                    Err(ValueError::invalid("from", message)
                        .hint("a source has one limit: remove one, or choose a longer prefix"))
                }
            }
        };
        check().map_err(at(&Subject::Limit(limit.name.clone())))?;
    }
    Ok(())
}

fn eips(state: &Snapshot) -> Result<(), Violation> {
    let mut hosts: HashMap<IpAddr, IpAddr> = HashMap::new();
    let pool_of: HashMap<IpAddr, &str> = state
        .pools
        .values()
        .flat_map(|pool| pool.addresses.iter().map(|address| (*address, pool.name.as_str())))
        .collect();
    for (number, eip) in state.eips.values().enumerate() {
        let Eip { address, host } = *eip;
        let mut check = || {
            if number >= MAX_EIPS as usize {
                let message = format!("EIP {address} is one more than the {MAX_EIPS} there can be");
                return Err(ValueError::full("address", message).hint("remove one first"));
            }
            one_eip(eip)?;
            if let Some(pool) = pool_of.get(&address) {
                let message = format!("address {address} cannot be an EIP and belong to pool `{pool}`");
                return Err(ValueError::invalid("address", message)
                    .hint("an EIP stands for one host alone: choose another address"));
            }
            if pool_of.contains_key(&host) || state.eips.contains_key(&host) {
                let message = format!("host {host} is an outside address of the gateway");
                return Err(ValueError::invalid("host", message).hint("give the address of an inside host"));
            }
            match hosts.insert(host, address) {
                None => Ok(()),
                Some(other) => {
                    let message = format!("host {host} has EIP {other} already");
                    Err(ValueError::invalid("host", message)
                        .hint("a host has one EIP: it leaves with that one"))
                }
            }
        };
        check().map_err(at(&Subject::Eip(address)))?;
    }
    Ok(())
}

fn one_eip(Eip { address, host }: &Eip) -> Result<(), ValueError> {
    check_unicast("address", *address)?;
    check_unicast("host", *host)?;
    if address.is_ipv4() != host.is_ipv4() {
        return Err(ValueError::invalid(
            "host",
            format!("EIP {address} is {} and host {host} is not", family(*address)),
        )
        .hint("use two addresses of the same family"));
    }
    Ok(())
}

fn tables(state: &Snapshot) -> Result<(), Violation> {
    if !state.tables.contains_key(MAIN_TABLE) {
        let error = ValueError::invalid("name", format!("table `{MAIN_TABLE}` is missing"));
        return Err(at(&Subject::Table(MAIN_TABLE.to_owned()))(error));
    }
    for (number, table) in state.tables.values().enumerate() {
        let subject = Subject::Table(table.name.clone());
        check_name("table", &table.name).map_err(at(&subject))?;
        if table.kind == TableKind::Border {
            border(state, table).map_err(at(&subject))?;
        }
        if number >= MAX_TABLES {
            let message = format!("table `{}` is one more than the {MAX_TABLES} there can be", table.name);
            return Err(at(&subject)(ValueError::full("name", message).hint("remove one first")));
        }
    }
    Ok(())
}

/// A border table decides replies: there is one, and nobody is bound to it.
fn border(state: &Snapshot, table: &Table) -> Result<(), ValueError> {
    let name = &table.name;
    if name == MAIN_TABLE {
        let message =
            format!("table `{MAIN_TABLE}` decides packets from inside and cannot be of kind `border`");
        return Err(ValueError::invalid("kind", message).hint("give the border table another name"));
    }
    let other = state.tables.values().find(|other| other.kind == TableKind::Border && other.name != *name);
    if let Some(other) = other {
        let message = format!("table `{name}` would be a second border table beside `{}`", other.name);
        return Err(ValueError::invalid("kind", message).hint("there is one border table for all replies"));
    }
    match table.bindings.first() {
        None => Ok(()),
        Some(binding) => {
            let message =
                format!("source {binding} cannot be bound to border table `{name}`: it decides replies");
            Err(ValueError::invalid("bind", message).hint("bind it to a table of kind `egress`"))
        }
    }
}

fn bindings(state: &Snapshot) -> Result<(), Violation> {
    let mut owners: BTreeMap<&Binding, &str> = BTreeMap::new();
    for table in state.tables.values() {
        for binding in &table.bindings {
            let subject = Subject::Binding(table.name.clone(), binding.clone());
            if let Some(iif) = &binding.iif {
                inside(state, iif).map_err(at(&subject))?;
            }
            if let Some(owner) = owners.insert(binding, &table.name) {
                let message = format!("source {binding} is bound to table `{owner}` already");
                let error =
                    ValueError::invalid("bind", message).hint(format!("unbind it from `{owner}` first"));
                return Err(at(&subject)(error));
            }
            if owners.len() > MAX_SOURCES {
                let message = format!("binding {binding} is one more than there can be");
                return Err(at(&subject)(ValueError::full("bind", message).hint("remove one first")));
            }
        }
    }
    Ok(())
}

/// A binding's interface has to be one that packets come in through.
fn inside(state: &Snapshot, name: &str) -> Result<(), ValueError> {
    match state.interfaces.get(name) {
        Some(Interface { role: Role::Inside | Role::Both, .. }) => Ok(()),
        Some(_) => Err(ValueError::invalid("iif", format!("interface `{name}` faces the outside"))
            .hint("bindings are for interfaces with role `inside` or `both`")),
        None => Err(unknown_interface("iif", state, name)),
    }
}

/// `noun` `name` does not exist; one with addresses for `keyword` would.
fn unknown<'a>(
    field: &'static str,
    noun: &str,
    name: &str,
    keyword: &str,
    known: impl Iterator<Item = &'a String>,
) -> ValueError {
    ValueError::invalid(field, format!("{noun} `{name}` does not exist")).hint(
        match closest(name, known.map(String::as_str)) {
            Some(close) => format!("did you mean `{close}`?"),
            None => format!("add it first: {noun} add {name} {keyword} ADDR"),
        },
    )
}

fn unknown_interface(field: &'static str, state: &Snapshot, name: &str) -> ValueError {
    ValueError::invalid(field, format!("interface `{name}` is not one of the gateway's")).hint(match closest(
        name,
        state.interfaces.keys().map(String::as_str),
    ) {
        Some(close) => format!("did you mean `{close}`?"),
        None => "add the interface first".to_owned(),
    })
}
