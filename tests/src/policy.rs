//! Desired states in a few lines.

use std::{collections::BTreeSet, fmt, sync::Arc};

use gateway_user::model::{
    AccessLog, AttachMode, Capacity, Check, Eip, Group, Interface, Limit, MAIN_TABLE, Mapping, NoSession,
    PerDestination, Pool, Proxy, ProxyHost, ProxyMode, Sink as AccessSink, Snapshot, Table, TableKind,
    Timeouts,
    prefix::parse_prefix,
    validate,
    words::{parse_binding, parse_route_line},
};

use crate::{network::Network, packet::ip};

/// An active gateway on the devices of a network that have a role, with room for 1,024 sessions.
///
/// # Panics
/// All methods panic at words that the gateway would refuse: a test is wrong.
#[derive(Clone, Debug)]
pub struct Policy(Snapshot);

impl Policy {
    /// Without routes and pools.
    pub fn of(network: &Network) -> Self {
        let interfaces = network.devices().iter().filter_map(|device| {
            let name = device.name.to_owned();
            Some((name.clone(), Interface { name, role: device.role?, mode: AttachMode::Auto }))
        });
        Self(Snapshot {
            active: true,
            capacity: Capacity { sessions: 1024, routes: 1024, half_open: None },
            interfaces: interfaces.collect(),
            ..Snapshot::default()
        })
    }

    /// Adds a pool, or replaces it. Addresses are separated by blanks.
    pub fn pool(mut self, name: &str, addresses: &str, ports: &str) -> Self {
        let addresses = addresses.split_whitespace().flat_map(|word| refused(Pool::parse_addresses(word)));
        let mut pool = Pool::new(name, addresses.collect(), refused(ports.parse()));
        pool.per_destination = PerDestination::UNLIMITED;
        self.0.pools.insert(name.to_owned(), pool);
        self
    }

    /// Limits what each address of a pool opens towards each destination; 0: no limit.
    pub fn limit(mut self, name: &str, rate: u32, burst: u32, concurrent: u32) -> Self {
        if let Some(pool) = self.0.pools.get_mut(name) {
            pool.per_destination = PerDestination { rate, burst: Some(burst), concurrent };
        }
        self
    }

    /// Adds a limit of sources, or replaces it: `per` is `source` or `prefix`; 0: no limit.
    pub fn limit_sources(
        mut self,
        name: &str,
        from: &str,
        per: &str,
        (rate, burst, concurrent): (u32, u32, u32),
    ) -> Self {
        let limit = Limit {
            per: refused(per.parse()),
            rate,
            burst: (burst != 0).then_some(burst),
            concurrent,
            ..Limit::new(name, refused(parse_prefix("from", from)))
        };
        self.0.limits.insert(name.to_owned(), limit);
        self
    }

    /// Takes a limit of sources away.
    pub fn without_limit(mut self, name: &str) -> Self {
        self.0.limits.remove(name);
        self
    }

    /// Adds a group of usage, or gives it other prefixes. They are separated by blanks.
    pub fn group(mut self, name: &str, prefixes: &str) -> Self {
        let prefixes = prefixes.split_whitespace().map(|word| refused(parse_prefix("prefixes", word)));
        let group = Group { name: name.to_owned(), prefixes: prefixes.collect() };
        self.0.groups.insert(group.name.clone(), group);
        self
    }

    /// Takes a group of usage away.
    pub fn without_group(mut self, name: &str) -> Self {
        self.0.groups.remove(name);
        self
    }

    /// Makes the mappings of a pool endpoint-independent.
    pub fn endpoint_independent(mut self, name: &str) -> Self {
        if let Some(pool) = self.0.pools.get_mut(name) {
            pool.mapping = Mapping::EndpointIndependent;
        }
        self
    }

    /// What clients are told whose flows a pool cannot take: `drop`, `reset` or `icmp`.
    pub fn refuse(mut self, name: &str, how: &str) -> Self {
        if let Some(pool) = self.0.pools.get_mut(name) {
            pool.refuse = refused(how.parse());
        }
        self
    }

    /// Bounds the segments that connections of a pool announce, bytes.
    pub fn mss(mut self, name: &str, mss: u16) -> Self {
        if let Some(pool) = self.0.pools.get_mut(name) {
            pool.mss = mss;
        }
        self
    }

    /// Drops clients' segments that belong to no session in silence.
    pub fn silent_without_session(mut self) -> Self {
        self.0.no_session = NoSession::Drop;
        self
    }

    /// Drains these addresses of a pool, and no others. They are separated by blanks.
    pub fn drain(mut self, name: &str, addresses: &str) -> Self {
        let addresses = addresses.split_whitespace().flat_map(|word| refused(Pool::parse_addresses(word)));
        if let Some(pool) = self.0.pools.get_mut(name) {
            pool.drained = addresses.collect();
        }
        self
    }

    /// Adds an EIP, or gives it to another host.
    pub fn eip(mut self, address: &str, host: &str) -> Self {
        let eip = Eip { address: ip(address), host: ip(host) };
        self.0.eips.insert(eip.address, eip);
        self
    }

    /// Adds a proxy, or replaces it. Hosts are separated by blanks; `fail` is as in a configuration file.
    pub fn proxy(mut self, name: &str, hosts: &str, fail: &str) -> Self {
        let host = |word| ProxyHost { address: ip(word), weight: 1 };
        let proxy = Proxy {
            name: name.to_owned(),
            hosts: hosts.split_whitespace().map(host).collect(),
            drained: BTreeSet::new(),
            mode: ProxyMode::L2,
            check: Check::None,
            interval: Proxy::INTERVAL,
            fail: refused(fail.parse()),
        };
        self.0.proxies.insert(name.to_owned(), proxy);
        self
    }

    /// Puts the hosts of a proxy behind tunnels.
    pub fn tunnelled(mut self, name: &str, mode: ProxyMode) -> Self {
        if let Some(proxy) = self.0.proxies.get_mut(name) {
            proxy.mode = mode;
        }
        self
    }

    /// Drains these hosts of a proxy, and no others. They are separated by blanks.
    pub fn drain_hosts(mut self, name: &str, hosts: &str) -> Self {
        if let Some(proxy) = self.0.proxies.get_mut(name) {
            proxy.drained = hosts.split_whitespace().map(ip).collect();
        }
        self
    }

    /// Takes an EIP away.
    pub fn without_eip(mut self, address: &str) -> Self {
        self.0.eips.remove(&ip(address));
        self
    }

    /// Adds routes to table `main`, a line each, as in a route file.
    pub fn routes(self, lines: &str) -> Self {
        self.table(MAIN_TABLE, &[], lines)
    }

    /// Adds bindings and routes to a table, and makes it if it is not there.
    pub fn table(mut self, name: &str, bindings: &[&str], routes: &str) -> Self {
        let mut table = self
            .0
            .tables
            .get(name)
            .map_or_else(|| Table::new(name, TableKind::Egress), |table| Table::clone(table));
        table.bindings.extend(bindings.iter().map(|binding| refused(parse_binding(binding))));
        table.routes.extend(routes.lines().filter_map(|line| refused(parse_route_line(line))));
        self.0.tables.insert(name.to_owned(), Arc::new(table));
        self
    }

    /// Adds routes to the border table `return`, and makes it if it is not there.
    pub fn border(mut self, routes: &str) -> Self {
        self = self.table("return", &[], routes);
        if let Some(table) = self.0.tables.get_mut("return") {
            Arc::make_mut(table).kind = TableKind::Border;
        }
        self
    }

    /// Adds a route to a table, as in a route file. `None`: the gateway would refuse it.
    pub fn try_route(&self, table: &str, line: &str) -> Option<Self> {
        let (key, route) = parse_route_line(line).ok()??;
        let mut policy = self.clone().table(table, &[], "");
        Arc::make_mut(policy.0.tables.get_mut(table)?).routes.insert(key, route);
        validate(&policy.0).ok().map(|()| policy)
    }

    /// Removes all routes and bindings.
    pub fn without_routes(mut self) -> Self {
        self.0.tables = Snapshot::default().tables;
        self
    }

    /// Switches the gateway on.
    pub fn active(mut self) -> Self {
        self.0.active = true;
        self
    }

    /// Switches the gateway off.
    pub fn inactive(mut self) -> Self {
        self.0.active = false;
        self
    }

    /// With room for this many sessions of each family.
    pub fn sessions(mut self, sessions: u32) -> Self {
        self.0.capacity.sessions = sessions;
        self
    }

    /// With room for this many prefixes of each table and family.
    pub fn prefixes(mut self, routes: u32) -> Self {
        self.0.capacity.routes = routes;
        self
    }

    /// Records everything.
    #[must_use]
    pub fn recorded(mut self) -> Self {
        self.0.access_log =
            Some(AccessLog { all: true, ..AccessLog::new(AccessSink::File("/nowhere".into())) });
        self
    }

    /// How many TCP sessions may be half open.
    pub fn half_open(mut self, most: u32) -> Self {
        self.0.capacity.half_open = Some(most);
        self
    }

    /// Idle time of every kind of session.
    #[must_use]
    pub fn idle(mut self, time: std::time::Duration) -> Self {
        self.0.timeouts = Timeouts {
            tcp_established: time,
            tcp_opening: time,
            tcp_closing: time,
            udp: time,
            udp_dns: time,
            icmp: time,
        };
        self
    }

    /// Idle time of UDP sessions, and of those to port 53.
    #[must_use]
    pub fn udp_idle(mut self, udp: std::time::Duration, dns: std::time::Duration) -> Self {
        (self.0.timeouts.udp, self.0.timeouts.udp_dns) = (udp, dns);
        self
    }

    /// Idle time of established connections, and of those that open or close.
    #[must_use]
    pub fn tcp_idle(mut self, established: std::time::Duration, others: std::time::Duration) -> Self {
        let timeouts = &mut self.0.timeouts;
        (timeouts.tcp_established, timeouts.tcp_opening, timeouts.tcp_closing) =
            (established, others, others);
        self
    }

    /// The state, which the gateway accepts.
    pub fn snapshot(&self) -> Snapshot {
        refused(validate(&self.0));
        self.0.clone()
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", if self.0.active { "active" } else { "inactive" })?;
        for pool in self.0.pools.values() {
            write!(f, "; pool {} {:?} ports {}", pool.name, pool.addresses, pool.ports)?;
        }
        for eip in self.0.eips.values() {
            write!(f, "; eip {} host {}", eip.address, eip.host)?;
        }
        for table in self.0.tables.values() {
            write!(f, "; table {}", table.name)?;
            table.bindings.iter().try_for_each(|binding| write!(f, " from {binding}"))?;
            table.routes.iter().try_for_each(|(key, route)| write!(f, ", {key} via {}", route.target))?;
        }
        Ok(())
    }
}

fn refused<T, E: fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("the gateway refuses the policy of the test: {error}"))
}
