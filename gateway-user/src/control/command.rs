//! Changes of the desired state, one variant a verb.

mod group;
mod limit;
mod proxy;

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    api::{ApiError, ErrorKind},
    model::{
        Binding, Eip, Fail, Group, Interface, Limit, LimitChange, MAIN_TABLE, Mapping, Pool, PortRange,
        Proxy, Refuse, Route, RouteKey, Snapshot, Subject, Table, TableKind, Target, error::closest,
    },
};

pub use limit::LimitChanges;
pub use proxy::ProxyChanges;

/// A change of the desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Adds a route; it must not exist.
    RouteAdd(Entry),
    /// Adds a route or takes the place of an equal one.
    RouteReplace(Entry),
    /// Removes a route; it must exist.
    RouteDel {
        /// Table.
        table: String,
        /// Route.
        key: RouteKey,
    },
    /// Gives a set of prefixes the same target.
    RouteImport(Arc<Import>),
    /// Removes all routes of a table.
    RouteFlush {
        /// Table.
        table: String,
    },
    /// Adds an empty table.
    TableAdd {
        /// Name.
        name: String,
        /// What it decides.
        kind: TableKind,
    },
    /// Removes an empty table.
    TableDel {
        /// Name.
        name: String,
    },
    /// Binds sources to a table.
    TableBind {
        /// Table.
        name: String,
        /// Sources.
        binding: Binding,
    },
    /// Takes a binding away.
    TableUnbind {
        /// Table.
        name: String,
        /// Sources.
        binding: Binding,
    },
    /// Adds a pool.
    PoolAdd(Pool),
    /// Changes a pool; what is absent stays.
    PoolSet {
        /// Name.
        name: String,
        /// Addresses.
        addresses: Option<Vec<IpAddr>>,
        /// Ports.
        ports: Option<PortRange>,
        /// Mapping of new flows.
        mapping: Option<Mapping>,
        /// Maximum segment size.
        mss: Option<u16>,
        /// What clients are told.
        refuse: Option<Refuse>,
        /// Limits towards each destination.
        limits: LimitChange,
    },
    /// From now on, these addresses take no new sessions; those that they have go on.
    PoolDrain {
        /// Name.
        name: String,
        /// Addresses of the pool.
        addresses: Vec<IpAddr>,
    },
    /// From now on, they do again.
    PoolUndrain {
        /// Name.
        name: String,
        /// Addresses of the pool.
        addresses: Vec<IpAddr>,
    },
    /// Removes a pool that no route uses.
    PoolDel {
        /// Name.
        name: String,
    },
    /// Maps an outside address to an inside host; it must be free.
    EipAdd(Eip),
    /// Takes an outside address from its host.
    EipDel {
        /// Outside address.
        address: IpAddr,
    },
    /// Adds a proxy.
    ProxyAdd(Proxy),
    /// Changes a proxy; what is absent stays.
    ProxySet {
        /// Name.
        name: String,
        /// What changes.
        changes: ProxyChanges,
    },
    /// From now on, these hosts get no new flows; those that they have go on.
    ProxyDrain {
        /// Name.
        name: String,
        /// Hosts of the proxy.
        hosts: Vec<IpAddr>,
    },
    /// From now on, they do again.
    ProxyUndrain {
        /// Name.
        name: String,
        /// Hosts of the proxy.
        hosts: Vec<IpAddr>,
    },
    /// Removes a proxy that no route and no other proxy uses.
    ProxyDel {
        /// Name.
        name: String,
    },
    /// Adds a limit of sources.
    LimitAdd(Limit),
    /// Changes a limit; what is absent stays.
    LimitSet {
        /// Name.
        name: String,
        /// What changes.
        changes: LimitChanges,
    },
    /// Removes a limit.
    LimitDel {
        /// Name.
        name: String,
    },
    /// Adds a group of usage.
    GroupAdd(Group),
    /// Gives a group other prefixes.
    GroupSet {
        /// Name.
        name: String,
        /// Prefixes.
        prefixes: Vec<IpNet>,
    },
    /// Removes a group of usage.
    GroupDel {
        /// Name.
        name: String,
    },
    /// Adds an interface.
    InterfaceAdd(Interface),
    /// Removes an interface that nothing refers to.
    InterfaceDel {
        /// Device name.
        name: String,
    },
    /// From now on, what no route allows is dropped.
    Activate,
    /// From now on, the host stack does what it did without a gateway.
    Deactivate,
    /// Puts a whole state in the place of the present one.
    Apply {
        /// The state.
        state: Arc<Snapshot>,
        /// Where it comes from.
        origin: Origin,
    },
}

/// Where a whole state comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A configuration that somebody has given.
    File,
    /// This revision.
    Revision(u64),
    /// What was in force before this revision, which nobody has confirmed.
    Unconfirmed(u64),
}

/// A route and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Table.
    pub table: String,
    /// What it matches.
    pub key: RouteKey,
    /// What it does.
    pub route: Route,
}

/// Prefixes that get the same target, without `proto` and `dport`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// Table.
    pub table: String,
    /// What they do.
    pub target: Target,
    /// The prefixes. Those that have a route get this target; what has it already stays as it is.
    pub prefixes: BTreeSet<IpNet>,
    /// Whether other routes of the table with this target and without selectors are removed.
    pub prune: bool,
}

impl Command {
    /// The state after the change. References of the new state are not checked here.
    pub fn change(&self, state: &Snapshot) -> Result<Snapshot, ApiError> {
        let mut next = state.clone();
        match self {
            Self::RouteAdd(entry) => route_add(&mut next, entry)?,
            Self::RouteReplace(Entry { table, key, route }) => {
                may_be_logged(&next, key, route)?;
                table_mut(&mut next, table)?.routes.insert(*key, route.clone());
            }
            Self::RouteDel { table, key } => route_del(&mut next, table, key)?,
            Self::RouteImport(import) => route_import(&mut next, import)?,
            Self::RouteFlush { table } => table_mut(&mut next, table)?.routes.clear(),
            Self::TableAdd { name, kind } => {
                if next.tables.contains_key(name) {
                    return Err(exists("table", name).hint("choose another name"));
                }
                next.tables.insert(name.clone(), Arc::new(Table::new(name, *kind)));
            }
            Self::TableDel { name } => table_del(&mut next, name)?,
            Self::TableBind { name, binding } => table_bind(&mut next, name, binding)?,
            Self::TableUnbind { name, binding } => table_unbind(&mut next, name, binding)?,
            Self::PoolAdd(pool) => {
                if next.pools.contains_key(&pool.name) {
                    return Err(exists("pool", &pool.name).hint("change it with `pool set`"));
                }
                next.pools.insert(pool.name.clone(), pool.clone());
            }
            Self::PoolSet { name, addresses, ports, mapping, mss, refuse, limits } => {
                let pool = pool_mut(&mut next, name)?;
                if let Some(addresses) = addresses {
                    pool.addresses.clone_from(addresses);
                    pool.drained.retain(|address| addresses.contains(address));
                }
                pool.ports = ports.unwrap_or(pool.ports);
                pool.mapping = mapping.unwrap_or(pool.mapping);
                pool.mss = mss.unwrap_or(pool.mss);
                pool.refuse = refuse.unwrap_or(pool.refuse);
                pool.per_destination = limits.over(pool.per_destination);
            }
            Self::PoolDrain { name, addresses } => pool_drain(&mut next, name, addresses)?,
            Self::PoolUndrain { name, addresses } => pool_undrain(&mut next, name, addresses)?,
            Self::PoolDel { name } => pool_del(&mut next, name)?,
            Self::EipAdd(eip) => eip_add(&mut next, eip)?,
            Self::EipDel { address } => eip_del(&mut next, *address)?,
            Self::ProxyAdd(proxy) => proxy::add(&mut next, proxy)?,
            Self::ProxySet { name, changes } => proxy::set(&mut next, name, changes)?,
            Self::ProxyDrain { name, hosts } => proxy::having(&mut next, name, hosts)?.drained.extend(hosts),
            Self::ProxyUndrain { name, hosts } => {
                proxy::having(&mut next, name, hosts)?.drained.retain(|host| !hosts.contains(host));
            }
            Self::ProxyDel { name } => proxy::del(&mut next, name)?,
            Self::LimitAdd(added) => limit::add(&mut next, added)?,
            Self::LimitSet { name, changes } => limit::set(&mut next, name, changes)?,
            Self::LimitDel { name } => limit::del(&mut next, name)?,
            Self::GroupAdd(added) => group::add(&mut next, added)?,
            Self::GroupSet { name, prefixes } => group::set(&mut next, name, prefixes)?,
            Self::GroupDel { name } => group::del(&mut next, name)?,
            Self::InterfaceAdd(interface) => {
                if next.interfaces.contains_key(&interface.name) {
                    return Err(exists("interface", &interface.name)
                        .hint("to change its role or mode, delete it and add it again"));
                }
                next.interfaces.insert(interface.name.clone(), interface.clone());
            }
            Self::InterfaceDel { name } => interface_del(&mut next, name)?,
            Self::Activate => next.active = true,
            Self::Deactivate => next.active = false,
            Self::Apply { state: whole, origin: _ } => next = apply(whole, state)?,
        }
        Ok(next)
    }

    /// What the command is about: faults found there need no further introduction.
    pub fn subject(&self) -> Subject {
        match self {
            Self::RouteAdd(Entry { table, key, .. })
            | Self::RouteReplace(Entry { table, key, .. })
            | Self::RouteDel { table, key } => Subject::Route(table.clone(), *key),
            Self::RouteFlush { table: name } | Self::TableAdd { name, .. } | Self::TableDel { name } => {
                Subject::Table(name.clone())
            }
            Self::RouteImport(import) => Subject::Table(import.table.clone()),
            Self::TableBind { name, binding } | Self::TableUnbind { name, binding } => {
                Subject::Binding(name.clone(), binding.clone())
            }
            Self::PoolAdd(Pool { name, .. })
            | Self::PoolSet { name, .. }
            | Self::PoolDrain { name, .. }
            | Self::PoolUndrain { name, .. }
            | Self::PoolDel { name } => Subject::Pool(name.clone()),
            Self::EipAdd(Eip { address, .. }) | Self::EipDel { address } => Subject::Eip(*address),
            Self::ProxyAdd(Proxy { name, .. })
            | Self::ProxySet { name, .. }
            | Self::ProxyDrain { name, .. }
            | Self::ProxyUndrain { name, .. }
            | Self::ProxyDel { name } => Subject::Proxy(name.clone()),
            Self::LimitAdd(Limit { name, .. }) | Self::LimitSet { name, .. } | Self::LimitDel { name } => {
                Subject::Limit(name.clone())
            }
            Self::GroupAdd(Group { name, .. }) | Self::GroupSet { name, .. } | Self::GroupDel { name } => {
                Subject::Group(name.clone())
            }
            Self::InterfaceAdd(Interface { name, .. }) | Self::InterfaceDel { name } => {
                Subject::Interface(name.clone())
            }
            Self::Activate | Self::Deactivate | Self::Apply { .. } => Subject::Gateway,
        }
    }
}

/// The command as an operator would type it.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |addresses: &[IpAddr]| commas(addresses);
        match self {
            Self::RouteAdd(Entry { table, key, route }) => {
                write!(f, "route add {key} via {} table {table}", route.target)
            }
            Self::RouteReplace(Entry { table, key, route }) => {
                write!(f, "route replace {key} via {} table {table}", route.target)
            }
            Self::RouteDel { table, key } => write!(f, "route del {key} table {table}"),
            Self::RouteImport(import) => {
                let Import { table, target, prefixes, prune } = &**import;
                let prune = if *prune { " --prune" } else { "" };
                write!(f, "route import - via {target} table {table}{prune} ({} prefixes)", prefixes.len())
            }
            Self::RouteFlush { table } => write!(f, "route flush table {table}"),
            Self::TableAdd { name, kind } => write!(f, "table add {name} kind {kind}"),
            Self::TableDel { name } => write!(f, "table del {name}"),
            Self::TableBind { name, binding } => write!(f, "table bind {name} from {binding}"),
            Self::TableUnbind { name, binding } => write!(f, "table unbind {name} from {binding}"),
            Self::PoolAdd(Pool { name, addresses, ports, mapping, mss, refuse, per_destination, .. }) => {
                write!(f, "pool add {name} address {} ports {ports}", list(addresses))?;
                if !mapping.is_default() {
                    write!(f, " mapping {mapping}")?;
                }
                if *mss != 0 {
                    write!(f, " mss {mss}")?;
                }
                if !refuse.is_default() {
                    write!(f, " refuse {refuse}")?;
                }
                LimitChange::of(*per_destination).fmt(f)
            }
            Self::PoolSet { name, addresses, ports, mapping, mss, refuse, limits } => {
                write!(f, "pool set {name}")?;
                if let Some(addresses) = addresses {
                    write!(f, " address {}", list(addresses))?;
                }
                ports.map_or(Ok(()), |ports| write!(f, " ports {ports}"))?;
                mapping.map_or(Ok(()), |mapping| write!(f, " mapping {mapping}"))?;
                mss.map_or(Ok(()), |mss| write!(f, " mss {mss}"))?;
                refuse.map_or(Ok(()), |refuse| write!(f, " refuse {refuse}"))?;
                limits.fmt(f)
            }
            Self::PoolDrain { name, addresses } => {
                write!(f, "pool drain {name} address {}", list(addresses))
            }
            Self::PoolUndrain { name, addresses } => {
                write!(f, "pool undrain {name} address {}", list(addresses))
            }
            Self::PoolDel { name } => write!(f, "pool del {name}"),
            Self::EipAdd(Eip { address, host }) => write!(f, "eip add {address} host {host}"),
            Self::EipDel { address } => write!(f, "eip del {address}"),
            Self::ProxyAdd(Proxy { name, hosts, mode, check, interval, fail, drained: _ }) => {
                let interval = humantime::format_duration(*interval);
                write!(f, "proxy add {name} host {} mode {mode} check {check}", commas(hosts))?;
                write!(f, " interval {interval} fail {fail}")
            }
            Self::ProxySet { name, changes } => write!(f, "proxy set {name}{changes}"),
            Self::ProxyDrain { name, hosts } => write!(f, "proxy drain {name} host {}", list(hosts)),
            Self::ProxyUndrain { name, hosts } => write!(f, "proxy undrain {name} host {}", list(hosts)),
            Self::ProxyDel { name } => write!(f, "proxy del {name}"),
            Self::LimitAdd(Limit { name, from, per, rate, burst, concurrent }) => {
                write!(f, "limit add {name} from {from} per {per} rate {rate}")?;
                burst.map_or(Ok(()), |burst| write!(f, " burst {burst}"))?;
                write!(f, " concurrent {concurrent}")
            }
            Self::LimitSet { name, changes } => write!(f, "limit set {name}{changes}"),
            Self::LimitDel { name } => write!(f, "limit del {name}"),
            Self::GroupAdd(Group { name, prefixes }) => {
                write!(f, "group add {name} prefix {}", commas(prefixes))
            }
            Self::GroupSet { name, prefixes } => write!(f, "group set {name} prefix {}", commas(prefixes)),
            Self::GroupDel { name } => write!(f, "group del {name}"),
            Self::InterfaceAdd(Interface { name, role, mode }) => {
                write!(f, "interface add {name} role {role} mode {mode}")
            }
            Self::InterfaceDel { name } => write!(f, "interface del {name}"),
            Self::Activate => f.write_str("activate"),
            Self::Deactivate => f.write_str("deactivate"),
            Self::Apply { origin: Origin::File, .. } => f.write_str("apply"),
            Self::Apply { origin: Origin::Revision(revision), .. } => write!(f, "undo {revision}"),
            Self::Apply { origin: Origin::Unconfirmed(revision), .. } => {
                f.write_str(&super::confirm::taken_back(*revision))
            }
        }
    }
}

fn commas(items: &[impl fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The error of a command whose subject is missing; suggests a name that is not.
pub fn not_found<'a>(noun: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> ApiError {
    let error = ApiError::new(noun, ErrorKind::NotFound, format!("{noun} `{name}` does not exist"));
    error.hint(match closest(name, known) {
        Some(close) => format!("did you mean `{close}`?"),
        None => format!("see what there is with `{noun} show`"),
    })
}

fn exists(noun: &str, name: &str) -> ApiError {
    ApiError::new(noun, ErrorKind::Exists, format!("{noun} `{name}` exists already"))
}

fn in_use(noun: &str, name: &str, by: &str) -> ApiError {
    ApiError::new(noun, ErrorKind::InUse, format!("{noun} `{name}` is in use by {by}"))
}

/// `whole` in the place of `state`; what they have in common is shared.
fn apply(whole: &Snapshot, state: &Snapshot) -> Result<Snapshot, ApiError> {
    for (name, asked, present) in [
        ("sessions", whole.capacity.sessions, state.capacity.sessions),
        ("routes", whole.capacity.routes, state.capacity.routes),
    ] {
        if asked != present {
            let message =
                format!("capacity.{name} is {present} and cannot become {asked} while the gateway is there");
            return Err(ApiError::new("apply", ErrorKind::Invalid, message).field(format!("capacity.{name}")).hint(
                "leave it as it is; to change it, write it into the configuration file of gatewayd and start that \
                 anew after `gatewayd --detach-on-exit`",
            ));
        }
    }
    if whole.access_log != state.access_log {
        let message = "the access log is opened when gatewayd starts, and cannot become another one";
        return Err(ApiError::new("apply", ErrorKind::Invalid, message).field("access_log").hint(
            "leave `[access_log]` as it is; to change it, write it into the configuration file of gatewayd and restart \
             that",
        ));
    }
    let mut next = whole.clone();
    for (name, table) in &mut next.tables {
        let Some(present) = state.tables.get(name) else { continue };
        if table == present {
            table.clone_from(present);
        } else {
            let table = Arc::make_mut(table);
            table.routes = std::mem::take(&mut table.routes).sharing_with(&present.routes);
        }
    }
    Ok(next)
}

fn table_mut<'a>(state: &'a mut Snapshot, name: &str) -> Result<&'a mut Table, ApiError> {
    if !state.tables.contains_key(name) {
        return Err(not_found("table", name, state.tables.keys().map(String::as_str)).field("table"));
    }
    let table = state.tables.get_mut(name).map(Arc::make_mut);
    table.ok_or_else(|| ApiError::new("table", ErrorKind::Internal, format!("table `{name}` vanished")))
}

/// A route that would be logged nowhere is not accepted.
fn may_be_logged(state: &Snapshot, key: &RouteKey, route: &Route) -> Result<(), ApiError> {
    if !route.log || state.access_log.is_some() {
        return Ok(());
    }
    let message = format!("route {key} cannot be logged: there is no access log");
    Err(ApiError::new("route", ErrorKind::Invalid, message)
        .hint("add a section `[access_log]` with a `path` to the configuration file, and restart gatewayd")
        .field("log"))
}

fn route_add(state: &mut Snapshot, Entry { table, key, route }: &Entry) -> Result<(), ApiError> {
    may_be_logged(state, key, route)?;
    let routes = &mut table_mut(state, table)?.routes;
    if let Some(present) = routes.get(key) {
        let message = format!("route {key} exists already in table `{table}`, via {}", present.target);
        return Err(ApiError::new("route", ErrorKind::Exists, message)
            .hint("use `route replace` to change it")
            .field("prefix"));
    }
    routes.insert(*key, route.clone());
    Ok(())
}

fn route_import(state: &mut Snapshot, import: &Import) -> Result<(), ApiError> {
    let routes = &mut table_mut(state, &import.table)?.routes;
    if import.prune {
        routes.retain(|key, route| {
            !key.selector.is_any() || route.target != import.target || import.prefixes.contains(&key.prefix)
        });
    }
    routes.lead(&import.prefixes, &import.target);
    Ok(())
}

fn route_del(state: &mut Snapshot, name: &str, key: &RouteKey) -> Result<(), ApiError> {
    if table_mut(state, name)?.routes.remove(key).is_some() {
        return Ok(());
    }
    let message = format!("route {key} does not exist in table `{name}`");
    let error = ApiError::new("route", ErrorKind::NotFound, message).field("prefix");
    let siblings = state.tables.get(name).map_or_else(Vec::new, |table| table.of_prefix(key.prefix));
    let elsewhere = state.tables.values().find(|table| table.routes.contains_key(key));
    Err(match (siblings.first(), elsewhere) {
        (Some((sibling, _)), _) => error.hint(format!("there is {sibling}")),
        (None, Some(table)) => error.hint(format!("table `{}` has it", table.name)),
        (None, None) => error.hint(format!("see what there is with `route show table {name}`")),
    })
}

fn table_del(state: &mut Snapshot, name: &str) -> Result<(), ApiError> {
    let Some(table) = state.tables.get(name) else {
        return Err(not_found("table", name, state.tables.keys().map(String::as_str)));
    };
    if name == MAIN_TABLE {
        let message = format!("table `{MAIN_TABLE}` cannot be deleted: it serves sources without a binding");
        return Err(ApiError::new("table", ErrorKind::InUse, message)
            .hint(format!("to remove its routes: route flush table {MAIN_TABLE}")));
    }
    if let Some(binding) = table.bindings.first() {
        return Err(in_use("table", name, &format!("the binding from {binding}"))
            .hint(format!("unbind it first: table unbind {name} from {binding}")));
    }
    if !table.routes.is_empty() {
        let count = table.routes.len();
        let message = format!("table `{name}` has {count} {}", if count == 1 { "route" } else { "routes" });
        return Err(ApiError::new("table", ErrorKind::InUse, message)
            .hint(format!("empty it first: route flush table {name}")));
    }
    state.tables.remove(name);
    Ok(())
}

fn table_bind(state: &mut Snapshot, name: &str, binding: &Binding) -> Result<(), ApiError> {
    let owner = state.tables.values().find(|table| table.bindings.contains(binding));
    if let Some(owner) = owner {
        let owner = &owner.name;
        return Err(ApiError::new(
            "binding",
            ErrorKind::Exists,
            format!("source {binding} is bound to table `{owner}` already"),
        )
        .hint(format!("unbind it first: table unbind {owner} from {binding}"))
        .field("from"));
    }
    table_mut(state, name)?.bindings.insert(binding.clone());
    Ok(())
}

fn table_unbind(state: &mut Snapshot, name: &str, binding: &Binding) -> Result<(), ApiError> {
    let table = table_mut(state, name)?;
    if table.bindings.remove(binding) {
        return Ok(());
    }
    let message = format!("source {binding} is not bound to table `{name}`");
    Err(ApiError::new("binding", ErrorKind::NotFound, message)
        .hint(format!("see what is with `table show {name}`"))
        .field("from"))
}

fn pool_mut<'a>(state: &'a mut Snapshot, name: &str) -> Result<&'a mut Pool, ApiError> {
    if !state.pools.contains_key(name) {
        return Err(not_found("pool", name, state.pools.keys().map(String::as_str)));
    }
    let pool = state.pools.get_mut(name);
    pool.ok_or_else(|| ApiError::new("pool", ErrorKind::Internal, format!("pool `{name}` vanished")))
}

fn pool_drain(state: &mut Snapshot, name: &str, addresses: &[IpAddr]) -> Result<(), ApiError> {
    let pool = pool_mut(state, name)?;
    if let Some(stranger) = addresses.iter().find(|address| !pool.addresses.contains(address)) {
        return Err(stranger_to(pool, *stranger));
    }
    pool.drained.extend(addresses);
    Ok(())
}

fn pool_undrain(state: &mut Snapshot, name: &str, addresses: &[IpAddr]) -> Result<(), ApiError> {
    let pool = pool_mut(state, name)?;
    if let Some(stranger) = addresses.iter().find(|address| !pool.addresses.contains(address)) {
        return Err(stranger_to(pool, *stranger));
    }
    pool.drained.retain(|address| !addresses.contains(address));
    Ok(())
}

/// The error of a command about an address that the pool does not have.
fn stranger_to(pool: &Pool, address: IpAddr) -> ApiError {
    let message = format!("address {address} is not in pool `{}`", pool.name);
    ApiError::new("pool", ErrorKind::NotFound, message)
        .hint(format!("see its addresses with `pool show {}`", pool.name))
        .field("address")
}

fn pool_del(state: &mut Snapshot, name: &str) -> Result<(), ApiError> {
    if !state.pools.contains_key(name) {
        return Err(not_found("pool", name, state.pools.keys().map(String::as_str)));
    }
    let uses = |target: &Target| matches!(target, Target::Pool(pool) if pool == name);
    if let Some(by) = users(state, uses) {
        return Err(in_use("pool", name, &by).hint("delete those routes or give them another target first"));
    }
    if let Some(by) = proxy::relying(state, |fail| matches!(fail, Fail::Pool(pool) if pool == name)) {
        return Err(in_use("pool", name, &format!("proxy `{by}`, which uses it when it fails"))
            .hint(format!("give that another way first: proxy set {by} fail closed")));
    }
    state.pools.remove(name);
    Ok(())
}

fn eip_add(state: &mut Snapshot, eip: &Eip) -> Result<(), ApiError> {
    if let Some(present) = state.eips.get(&eip.address) {
        let message = format!("EIP {} exists already, for host {}", present.address, present.host);
        return Err(ApiError::new("eip", ErrorKind::Exists, message)
            .hint(format!("to give it to another host: eip del {}", present.address))
            .field("address"));
    }
    state.eips.insert(eip.address, *eip);
    Ok(())
}

fn eip_del(state: &mut Snapshot, address: IpAddr) -> Result<(), ApiError> {
    if state.eips.remove(&address).is_some() {
        return Ok(());
    }
    let error =
        ApiError::new("eip", ErrorKind::NotFound, format!("EIP {address} does not exist")).field("address");
    Err(match state.eips.values().find(|eip| eip.host == address) {
        Some(eip) => error.hint(format!("{address} is the host of EIP {}", eip.address)),
        None => error.hint("see what there is with `eip show`"),
    })
}

fn interface_del(state: &mut Snapshot, name: &str) -> Result<(), ApiError> {
    if !state.interfaces.contains_key(name) {
        return Err(not_found("interface", name, state.interfaces.keys().map(String::as_str)));
    }
    let bound = state.tables.values().find_map(|table| {
        table
            .bindings
            .iter()
            .find(|binding| binding.iif.as_deref() == Some(name))
            .map(|binding| (table, binding))
    });
    if let Some((table, binding)) = bound {
        let table = &table.name;
        return Err(in_use("interface", name, &format!("the binding of table `{table}` from {binding}"))
            .hint(format!("unbind it first: table unbind {table} from {binding}")));
    }
    let uses = |target: &Target| matches!(target, Target::Gateway { dev: Some(dev), .. } if dev == name);
    if let Some(by) = users(state, uses) {
        return Err(
            in_use("interface", name, &by).hint("delete those routes or give them another target first")
        );
    }
    state.interfaces.remove(name);
    Ok(())
}

/// The routes whose target is such a one, in words; `None` if there is none.
fn users(state: &Snapshot, concerns: impl Fn(&Target) -> bool) -> Option<String> {
    let using = state.tables.values().filter(|table| table.routes.targets().any(&concerns));
    let mut users = using.flat_map(|table| {
        table.routes.iter().filter(|(_, route)| concerns(&route.target)).map(move |(key, _)| (table, key))
    });
    let (table, key) = users.next()?;
    let one = format!("route {key} of table `{}`", table.name);
    Some(match users.count() {
        0 => one,
        1 => format!("{one} and another"),
        more => format!("{one} and {more} others"),
    })
}
