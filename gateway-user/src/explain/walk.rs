//! The walk itself, in the order of the packet path.

use std::net::IpAddr;

use gateway_common::{
    DropReason, Family as _, V4, V6, Verdict,
    parse::{
        is_group_v4, is_link_scope_v6, is_martian_destination_v4, is_martian_source_v4, is_martian_source_v6,
        is_unspecified_or_loopback_v6,
    },
};
use ipnet::IpNet;

use super::{End, Question, Step, Walk, Way, World};
use crate::model::{
    Fail, Limit, MAIN_TABLE, Mapping, Per, Pool, Proto, ProxyMode, Role, Route, RouteKey, Selector, Table,
    Target,
};

/// Proxies that one packet may be sent to in turn.
const IN_TURN: usize = 2;

/// Walks the checklist with a packet.
pub fn walk(world: &World<'_>, question: &Question) -> Walk {
    let mut walker = Walker { world, question, iif: None, steps: Vec::new() };
    let end = walker.go().unwrap_or_else(|end| end);
    let found = match &end {
        End::Goes(verdict) => verdict.name().to_owned(),
        End::Drop(reason) => format!("drop, {}: {}", reason.name(), reason.help()),
        End::Open(why) => format!("not known: {why}"),
    };
    walker.step("verdict", found);
    Walk { iif: walker.iif, steps: walker.steps, end }
}

/// A step that ends the walk is an `Err`.
type Found<T> = Result<T, End>;

struct Walker<'a> {
    world: &'a World<'a>,
    question: &'a Question,
    iif: Option<String>,
    steps: Vec<Step>,
}

/// A route as packets meet it.
struct Ruling<'a> {
    key: RouteKey,
    /// `None`: a system route.
    route: Option<&'a Route>,
}

impl<'a> Walker<'a> {
    fn step(&mut self, stage: &'static str, found: impl Into<String>) {
        self.steps.push(Step { stage, found: found.into(), notes: Vec::new() });
    }

    fn note(&mut self, note: impl Into<String>) {
        if let Some(step) = self.steps.last_mut() {
            step.notes.push(note.into());
        }
    }

    fn go(&mut self) -> Found<End> {
        self.step("packet", self.question.to_string());
        let role = self.interface()?;
        if !self.world.state.active {
            self.step("activation", "the gateway is inactive: it counts the packet, and the host decides");
            return Ok(End::Goes(Verdict::Host));
        }
        self.step("activation", "the gateway is active: what no route allows is dropped");
        self.addresses()?;
        let outside = role == Role::Outside || role == Role::Both && self.is_translated(self.question.to);
        self.session(outside)?;
        if outside { self.entering() } else { self.leaving() }
    }

    fn interface(&mut self) -> Found<Role> {
        let World { state, ways, .. } = *self.world;
        let from = self.question.from;
        let name = match &self.question.iif {
            Some(name) => Some((name.clone(), "as asked")),
            None => match ways {
                Some(ways) => {
                    ways.way(from).map(|way| (way.device, "the host's routes have the source there"))
                }
                None => self.behind(from),
            },
        };
        let Some((name, why)) = name else {
            let why = format!("which interface has {from} behind it is not known; say it with `iif`");
            self.step("interface", why.clone());
            return Err(End::Open(why));
        };
        self.iif = Some(name.clone());
        let Some(interface) = state.interfaces.get(&name) else {
            self.step("interface", format!("{name} is not an interface of the gateway ({why})"));
            return Err(End::Goes(Verdict::Host));
        };
        let faces = match interface.role {
            Role::Inside => "faces the inside",
            Role::Outside => "faces the outside",
            Role::Both => "faces both sides",
        };
        self.step("interface", format!("{name} {faces} ({why})"));
        Ok(interface.role)
    }

    /// The interface that `address` is behind, as far as the host's subnets and the roles say.
    fn behind(&self, address: IpAddr) -> Option<(String, &'static str)> {
        let World { state, host, .. } = *self.world;
        if let Some((name, _)) = host.and_then(|host| host.link_of(address)) {
            return Some((name.to_owned(), "the source is in its subnet"));
        }
        let bindings = state.tables.values().flat_map(|table| &table.bindings);
        let bound = bindings.filter(|binding| binding.source.contains(&address) && binding.iif.is_some());
        if let Some(binding) = bound.max_by_key(|binding| binding.source.prefix_len()) {
            return Some((binding.iif.clone()?, "a binding has the source there"));
        }
        let mut inside = state.interfaces.values().filter(|interface| interface.role != Role::Outside);
        match (inside.next(), inside.next()) {
            (Some(only), None) => Some((only.name.clone(), "the only one that faces the inside")),
            _ => None,
        }
    }

    /// Addresses that are not for a router.
    fn addresses(&mut self) -> Found<()> {
        let Question { from, to, .. } = *self.question;
        let (group, martian) = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let (from, to) = (V4::address(from.octets()), V4::address(to.octets()));
                (is_group_v4(to), is_martian_source_v4(from) || is_martian_destination_v4(to))
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let (from, to) = (V6::address(from.octets()), V6::address(to.octets()));
                (is_link_scope_v6(&to), is_martian_source_v6(&from) || is_unspecified_or_loopback_v6(&to))
            }
            _ => return Err(End::Open("the addresses are of different families".to_owned())),
        };
        if group {
            self.step("addresses", format!("{to} is for its link or for a group: the host's business"));
            return Err(End::Goes(Verdict::Host));
        }
        if martian {
            self.step("addresses", "no router forwards packets from or to such an address (RFC 1812 5.3.7)");
            return Err(if self.is_local(to) {
                End::Goes(Verdict::Host)
            } else {
                End::Drop(DropReason::Malformed)
            });
        }
        Ok(())
    }

    fn session(&mut self, outside: bool) -> Found<()> {
        let Some(present) = self.world.present else {
            self.step("session", "not looked at: there is no gateway to ask");
            return Ok(());
        };
        let Some(session) = &present.session else {
            self.step("session", "none: the packet begins a flow");
            return Ok(());
        };
        let pool = match (&session.pool, &session.proxy) {
            (_, Some((proxy, host))) => format!("through host {host} of proxy {proxy}"),
            (Some(pool), None) => {
                format!("as {} of pool {pool}", super::Port(session.translated, session.translated_port))
            }
            (None, None) => "without a pool".to_owned(),
        };
        let age = session.age.as_secs();
        self.step("session", format!("there is one, {pool}, {}, {age} s old", session.state));
        if let Some((table, route)) = &session.route {
            self.note(format!("route {route} of table {table} allows it"));
        }
        Err(if outside {
            End::Goes(Verdict::Reply)
        } else if session.proxy.is_some() {
            End::Goes(Verdict::Proxy)
        } else {
            End::Goes(Verdict::Snat)
        })
    }

    /// A packet from inside without a session.
    fn leaving(&mut self) -> Found<End> {
        let Question { from, to, .. } = *self.question;
        if self.is_local(to) || self.is_broadcast(to) {
            self.step("destination", format!("{to} is the host's own"));
            return Ok(End::Goes(Verdict::Host));
        }
        self.source()?;
        let table = self.table(from)?;
        let ruling = self.route(table, to)?;
        let target = ruling.route.map_or(Target::Direct, |route| route.target.clone());
        let system = ruling.route.is_none();
        self.target(&target, system, 0)
    }

    /// The check that the source belongs where it comes from (RFC 3704 2.2).
    fn source(&mut self) -> Found<()> {
        let from = self.question.from;
        let Some(ways) = self.world.ways else {
            let subnet = self.world.host.and_then(|host| host.link_of(from)).map(|(name, _)| name.to_owned());
            return match (subnet, &self.iif) {
                (Some(name), Some(iif)) if name != *iif => {
                    self.step("source", format!("{from} is in a subnet of {name}, not behind {iif}"));
                    self.spoofed()
                }
                (Some(name), _) => {
                    self.step("source", format!("{from} is in a subnet of {name}"));
                    Ok(())
                }
                (None, _) => {
                    self.step("source", format!("{from} is taken to be behind the interface"));
                    Ok(())
                }
            };
        };
        let way = if self.is_local(from) { None } else { ways.way(from) };
        let one_armed = self.role() == Some(Role::Both);
        match (way, &self.iif) {
            (Some(way), Some(iif)) if way.device == *iif && (!one_armed || way.router == from) => {
                self.step("source", format!("the host's routes have {from} behind {iif}"));
                Ok(())
            }
            (way, _) => {
                let there = way.map_or("nowhere".to_owned(), |way| format!("behind {}", way.device));
                self.step("source", format!("the host's routes have {from} {there}"));
                self.spoofed()
            }
        }
    }

    fn spoofed(&mut self) -> Found<()> {
        if self.world.state.tables.values().any(|table| table.kind == crate::model::TableKind::Border) {
            return Err(End::Open(
                "the border table may let a reply through that a router sends on".to_owned(),
            ));
        }
        Err(End::Drop(DropReason::SpoofedSource))
    }

    fn table(&mut self, source: IpAddr) -> Found<&'a Table> {
        let state = self.world.state;
        if let Some((table, binding)) = state.table_of(source, self.iif.as_deref()) {
            self.step("binding", format!("{binding} leads to table {}", table.name));
            return Ok(table);
        }
        self.step("binding", format!("none has {source}: table {MAIN_TABLE}"));
        state.main().ok_or(End::Drop(DropReason::NoRoute))
    }

    fn route(&mut self, table: &'a Table, to: IpAddr) -> Found<Ruling<'a>> {
        let Question { proto, port, .. } = *self.question;
        let system = self.world.connected.covering(to).filter(|subnet| {
            !table.routes.contains_key(&RouteKey { prefix: *subnet, selector: Selector::default() })
        });
        let mut rulings: Vec<Ruling<'_>> =
            table.covering(to).map(|(key, route)| Ruling { key: *key, route: Some(route) }).collect();
        if let Some(subnet) = system {
            let at = rulings.partition_point(|ruling| ruling.key.prefix.prefix_len() >= subnet.prefix_len());
            let key = RouteKey { prefix: subnet, selector: Selector::default() };
            rulings.insert(at, Ruling { key, route: None });
        }
        let port = (proto != Proto::Icmp).then_some(port);
        let winner = rulings.iter().position(|ruling| ruling.key.selector.matches(Some(proto), port));
        let Some(winner) = winner else {
            self.step("route", format!("table {} has none to {to} that matches", table.name));
            for loser in &rulings {
                self.note(format!("not {}: it is for other packets", loser.words()));
            }
            return Err(End::Drop(DropReason::NoRoute));
        };
        self.step("route", rulings[winner].words());
        for (at, loser) in rulings.iter().enumerate().filter(|(at, _)| *at != winner) {
            let why = if at < winner {
                "it is for other packets"
            } else if loser.key.prefix == rulings[winner].key.prefix {
                "it is less specific"
            } else {
                "its prefix is shorter"
            };
            self.note(format!("not {}: {why}", loser.words()));
        }
        Ok(rulings.swap_remove(winner))
    }

    fn target(&mut self, target: &Target, system: bool, depth: usize) -> Found<End> {
        let Question { from, to, .. } = *self.question;
        let translated = self.is_translated(to);
        match target {
            Target::Blackhole => Ok(End::Drop(DropReason::Blackhole)),
            Target::Prohibit => Ok(End::Drop(DropReason::Prohibited)),
            Target::Host => Ok(End::Goes(Verdict::Host)),
            Target::Pool(_) | Target::Eip if translated => {
                Err(End::Open(format!("{to} stands for another inside host, whose own table decides, too")))
            }
            Target::Direct | Target::Gateway { .. } | Target::Proxy(_) if translated => {
                self.step(
                    "destination",
                    format!("{to} is an address of the gateway: only a pool or an EIP leads there"),
                );
                Ok(End::Drop(DropReason::NoSession))
            }
            Target::Direct => {
                let way = self.way(to)?;
                let inside = way.is_none_or(|way| self.is_inside(&way.device));
                if system && !inside {
                    return Ok(End::Drop(DropReason::NoRoute));
                }
                Ok(End::Goes(Verdict::Direct))
            }
            Target::Gateway { address, dev } => {
                self.router(*address, dev.as_deref())?;
                Ok(End::Goes(Verdict::Gateway))
            }
            Target::Eip => {
                let eip = self.world.state.eips.values().find(|eip| eip.host == from);
                let Some(eip) = eip else {
                    self.step("eip", format!("{from} has none"));
                    return Ok(End::Drop(DropReason::NoEip));
                };
                self.step("eip", format!("{from} becomes {}", eip.address));
                self.way(to)?;
                Ok(End::Goes(Verdict::Eip))
            }
            Target::Pool(name) => {
                let Some(pool) = self.world.state.pools.get(name) else {
                    return Err(End::Open(format!("there is no pool {name}")));
                };
                self.way(to)?;
                self.limit()?;
                self.pool(pool)
            }
            Target::Proxy(name) => self.proxy(name, depth),
        }
    }

    /// The way to `to`; `None`: nobody asked the host.
    fn way(&mut self, to: IpAddr) -> Found<Option<Way>> {
        let Some(ways) = self.world.ways else {
            self.tell(to, || format!("where the host's routes have {to}"))?;
            return Ok(None);
        };
        self.leave(ways.way(to), to)
    }

    fn router(&mut self, router: IpAddr, dev: Option<&str>) -> Found<()> {
        let Some(ways) = self.world.ways else {
            return self.tell(router, || format!("router {router}"));
        };
        let way = match dev {
            Some(dev) => Some(ways.hop(dev, router)),
            // A way through another router is none.
            None => ways.way(router).filter(|way| way.router == router),
        };
        self.leave(way, router).map(|_| ())
    }

    /// What the host says of the way to `to`; `unknown`: what is said where it does not.
    fn tell(&mut self, to: IpAddr, unknown: impl FnOnce() -> String) -> Found<()> {
        let Some(Ok(way)) = self.world.told.map(|told| told(to)) else {
            self.step("next hop", unknown());
            return Ok(());
        };
        let way = self.attached(way, to)?;
        self.step("next hop", way.to_string());
        Ok(())
    }

    fn leave(&mut self, way: Option<Way>, to: IpAddr) -> Found<Option<Way>> {
        let way = self.attached(way, to)?;
        self.step("next hop", way.to_string());
        if way.mac.is_none() {
            return Err(End::Open(format!("{} may be known by what it has sent", way.router)));
        }
        Ok(Some(way))
    }

    /// A way to `to` that packets can take.
    fn attached(&mut self, way: Option<Way>, to: IpAddr) -> Found<Way> {
        way.filter(|way| self.world.state.interfaces.contains_key(&way.device)).ok_or_else(|| {
            self.step("next hop", format!("the host has no way to {to} through an interface of the gateway"));
            End::Drop(DropReason::NoRoute)
        })
    }

    fn limit(&mut self) -> Found<()> {
        let (state, from) = (self.world.state, self.question.from);
        let covering = state.limits.values().filter(|limit| limit.from.contains(&from));
        let Some(limit) = covering.max_by_key(|limit| limit.from.prefix_len()) else {
            self.step("source limit", "none");
            return Ok(());
        };
        let Limit { name, from, per, rate, concurrent, .. } = limit;
        let per = if *per == Per::Source { "each client" } else { "all of them together" };
        self.step("source limit", format!("{name}: {from}, {per}, {}", bounds(*rate, *concurrent)));
        let known =
            self.world.present.and_then(|present| present.limits.iter().find(|known| known.name == *name));
        if let Some(known) = known {
            let most = known.most;
            self.note(format!(
                "{} sessions in {} buckets, {most} in the fullest",
                known.sessions, known.sources
            ));
            if *rate > 0 || *concurrent > 0 && most >= u64::from(*concurrent) {
                return Err(End::Open("the limit of its client may be reached".to_owned()));
            }
        }
        Ok(())
    }

    fn pool(&mut self, pool: &Pool) -> Found<End> {
        let Question { to, port, proto, .. } = *self.question;
        let usable: Vec<_> = pool
            .addresses
            .iter()
            .filter(|address| address.is_ipv4() == to.is_ipv4() && !pool.drained.contains(*address))
            .collect();
        let (count, ports) = (usable.len(), pool.ports);
        self.step("pool", format!("{}, ports {ports}; addresses that take new flows: {count}", pool.name));
        if pool.mapping == Mapping::EndpointIndependent {
            self.note("mappings are endpoint-independent: the client keeps its address and port for all destinations");
        }
        if count == 0 {
            return Ok(End::Drop(DropReason::PoolExhausted));
        }
        let limit = pool.per_destination;
        self.step("destination limit", bounds(limit.rate, limit.concurrent));
        let proto = match proto {
            Proto::Tcp => 6,
            Proto::Udp => 17,
            Proto::Icmp if to.is_ipv4() => 1,
            Proto::Icmp => 58,
        };
        let present = self.world.present;
        let mut crowded = false;
        for row in present.iter().flat_map(|present| &present.destinations) {
            if row.pool == pool.name && (row.destination, row.port, row.proto) == (to, port, proto) {
                let tokens = row.tokens.map_or_else(|| "any number".to_owned(), |tokens| tokens.to_string());
                self.note(format!(
                    "{}: {} of {} open, {tokens} may be opened at once",
                    row.address, row.sessions, row.room
                ));
                crowded |= row.sessions >= row.room || row.tokens == Some(0);
            }
        }
        if crowded {
            return Err(End::Open(
                "addresses of the pool are at their limit towards the destination".to_owned(),
            ));
        }
        Ok(End::Goes(Verdict::Snat))
    }

    fn proxy(&mut self, name: &str, depth: usize) -> Found<End> {
        let Some(proxy) = self.world.state.proxies.get(name).filter(|_| depth < IN_TURN) else {
            return Ok(End::Drop(DropReason::ProxyDown));
        };
        let known = |address: &IpAddr| {
            let mut hosts = self.world.present.iter().flat_map(|present| &present.proxies);
            hosts.find(|host| host.proxy == name && host.address == *address).is_none_or(|host| host.up)
        };
        let hosts = proxy.hosts.iter().map(|host| host.address);
        let up: Vec<IpAddr> =
            hosts.filter(|address| !proxy.drained.contains(address) && known(address)).collect();
        let list: Vec<String> = up.iter().map(ToString::to_string).collect();
        if !up.is_empty() {
            self.step("proxy", format!("{name}: one of {}, by both addresses of the flow", list.join(", ")));
            if let (ProxyMode::L2, Some(told)) = (&proxy.mode, self.world.told) {
                for way in up.iter().filter_map(|host| told(*host).ok().flatten()) {
                    self.note(way.to_string());
                }
            }
            return Ok(End::Goes(Verdict::Proxy));
        }
        let fail = match &proxy.fail {
            Fail::Closed => None,
            Fail::Direct => Some(Target::Direct),
            Fail::Pool(pool) => Some(Target::Pool(pool.clone())),
            Fail::Proxy(other) => Some(Target::Proxy(other.clone())),
        };
        let Some(fail) = fail else {
            self.step("proxy", format!("{name}: no host is up"));
            return Ok(End::Drop(DropReason::ProxyDown));
        };
        self.step("proxy", format!("{name}: no host is up, so `{fail}` instead"));
        self.target(&fail, false, depth + 1)
    }

    /// A packet from outside without a session.
    fn entering(&mut self) -> Found<End> {
        let to = self.question.to;
        let state = self.world.state;
        if let Some(eip) = state.eips.get(&to) {
            self.step("destination", format!("{to} is the EIP of {}", eip.host));
            return Err(End::Open("the inside host's own table has to send answers by its EIP".to_owned()));
        }
        if self.is_local(to) || self.is_broadcast(to) {
            self.step("destination", format!("{to} is the host's own"));
            return Ok(End::Goes(Verdict::Host));
        }
        if let Some(pool) = state.pools.values().find(|pool| pool.addresses.contains(&to)) {
            self.step("destination", format!("{to} is an address of pool {}", pool.name));
            if pool.mapping == Mapping::EndpointIndependent {
                return Err(End::Open("there may be a mapping that lets it in".to_owned()));
            }
            return Ok(End::Drop(DropReason::NoSession));
        }
        self.step("destination", format!("{to} is no address of the gateway"));
        Err(End::Open(
            "an inside host may be answered whose table sends packets there untranslated".to_owned(),
        ))
    }

    fn role(&self) -> Option<Role> {
        let interface = self.iif.as_ref().and_then(|name| self.world.state.interfaces.get(name));
        interface.map(|interface| interface.role)
    }

    fn is_inside(&self, device: &str) -> bool {
        let interface = self.world.state.interfaces.get(device);
        interface.is_some_and(|interface| interface.role != Role::Outside)
    }

    /// Whether `address` is one of a pool or an EIP.
    fn is_translated(&self, address: IpAddr) -> bool {
        let state = self.world.state;
        let pool = state.pools.values().any(|pool| pool.addresses.contains(&address));
        pool || state.eips.contains_key(&address)
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.world.host.is_some_and(|host| host.addresses().any(|own| own.addr() == address))
    }

    fn is_broadcast(&self, address: IpAddr) -> bool {
        let of = |own: &IpNet| match own {
            IpNet::V4(own) => own.prefix_len() < 31 && IpAddr::V4(own.broadcast()) == address,
            IpNet::V6(_) => false,
        };
        self.world.host.is_some_and(|host| host.addresses().any(of))
    }
}

impl Ruling<'_> {
    fn words(&self) -> String {
        match self.route {
            Some(route) => format!("{} via {}", self.key, route.target),
            None => format!("{} via direct (system route)", self.key),
        }
    }
}

/// A limit in words.
fn bounds(rate: u32, concurrent: u32) -> String {
    let rate = if rate == 0 { "any rate".to_owned() } else { format!("{rate} a second") };
    let concurrent = if concurrent == 0 { "any number".to_owned() } else { concurrent.to_string() };
    format!("{rate}, {concurrent} at a time")
}
