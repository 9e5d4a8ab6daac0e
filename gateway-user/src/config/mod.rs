//! The configuration file: the state that the gateway starts from.
//!
//! [`load`] reads TOML and the route files it names, and accepts all of it or nothing. [`export()`] writes a
//! state in the same form: what it writes loads to the same state.

mod access_log;
mod error;
mod export;
mod file;
mod locate;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use toml::Spanned;

use crate::model::{
    Eip, Group, Interface, Limit, LimitChange, PerDestination, Pool, PortRange, Proxy, ProxyMode, RouteKey,
    Snapshot, Table, TableKind, ValueError,
    error::suggest,
    prefix::{parse_address, parse_prefix},
    validate,
    validate::below_standard,
    words,
};

pub(crate) use access_log::parse_size;
pub use error::ConfigError;
pub use export::export;
use file::{File, Source};

/// A configuration that was accepted.
#[derive(Clone, Debug)]
pub struct Config {
    /// The state it describes.
    pub snapshot: Snapshot,
    /// Where metrics are to be served, if it says so.
    pub metrics: Option<SocketAddr>,
    /// Tells one content of the file, and of the route files it names, from another.
    pub fingerprint: String,
    /// What is allowed and may surprise.
    pub warnings: Vec<String>,
}

/// Reads and checks the configuration file at `path`.
///
/// # Errors
/// The first thing that is wrong: file, line, key, what is wrong with it and what to do.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = read(path).map_err(|error| {
        ConfigError::of_file(path, error).hint("give the path of the configuration file with --config")
    })?;
    let directory = path.parent().unwrap_or(Path::new(""));
    parse(Source { path, text: &text }, Some(directory))
}

/// Reads and checks a configuration that is no file of this host: `name` is what errors call it. It names no route files.
///
/// # Errors
/// As [`load`].
pub fn read_text(name: &str, text: &str) -> Result<Config, ConfigError> {
    parse(Source { path: Path::new(name), text }, None)
}

/// Reads and checks a configuration whose route files are in `directory`.
///
/// # Errors
/// As [`load`].
pub fn read_text_in(name: &str, text: &str, directory: &Path) -> Result<Config, ConfigError> {
    parse(Source { path: Path::new(name), text }, Some(directory))
}

fn parse(source: Source<'_>, directory: Option<&Path>) -> Result<Config, ConfigError> {
    let text = source.text;
    let file = File::parse(&source)?;
    let mut loader = Loader { source, directory, fingerprint: Fingerprint::new(), lines: Vec::new() };
    loader.fingerprint.add(text.as_bytes());
    let (snapshot, metrics) = loader.state(&file)?;
    validate(&snapshot)
        .map_err(|violation| locate::locate(&loader.source, &file, &loader.lines, violation))?;
    let mut warnings = below_standard(&snapshot.timeouts);
    warnings.extend(snapshot.unrecorded());
    Ok(Config { snapshot, metrics, fingerprint: loader.fingerprint.finish(), warnings })
}

/// A route that came from a route file, and where it stands there.
struct RouteLine {
    table: String,
    key: RouteKey,
    path: PathBuf,
    line: usize,
}

struct Loader<'a> {
    source: Source<'a>,
    /// Of the route files, if there may be any.
    directory: Option<&'a Path>,
    fingerprint: Fingerprint,
    lines: Vec<RouteLine>,
}

impl Loader<'_> {
    fn state(&mut self, file: &File) -> Result<(Snapshot, Option<SocketAddr>), ConfigError> {
        let mut state = Snapshot::default();
        let metrics = self.gateway(file, &mut state)?;
        for interface in &file.interface {
            self.interface(interface, &mut state)?;
        }
        for pool in &file.pool {
            self.pool(pool, &mut state)?;
        }
        for eip in &file.eip {
            self.eip(eip, &mut state)?;
        }
        for proxy in &file.proxy {
            self.proxy(proxy, &mut state)?;
        }
        for limit in &file.limit {
            self.limit(limit, &mut state)?;
        }
        for group in &file.group {
            self.group(group, &mut state)?;
        }
        let mut names = BTreeSet::new();
        for table in &file.table {
            if !names.insert(table.name.get_ref()) {
                return Err(self.source.twice("table", &table.name));
            }
            let table = self.table(table)?;
            state.tables.insert(table.name.clone(), Arc::new(table));
        }
        if let Some(section) = &file.access_log {
            state.access_log = Some(self.access_log(section, &state)?);
        }
        Ok((state, metrics))
    }

    fn gateway(&self, file: &File, state: &mut Snapshot) -> Result<Option<SocketAddr>, ConfigError> {
        let file::Gateway { name, state: activation, metrics, no_session } = &file.gateway;
        if let Some(name) = name {
            state.name.clone_from(name.get_ref());
        }
        if let Some(activation) = activation {
            state.active = match activation.get_ref().as_str() {
                "active" => true,
                "inactive" => false,
                other => {
                    let message = format!("`{other}` is not a state of a gateway");
                    return Err(self
                        .source
                        .error(activation.span().start, "gateway.state", message)
                        .hint(suggest(other, ["active", "inactive"])));
                }
            };
        }
        if let Some(no_session) = no_session {
            state.no_session = self.parse(no_session, "gateway.no_session")?;
        }
        let metrics = metrics.as_ref().map(|metrics| {
            metrics.get_ref().parse().map_err(|_| {
                let message = format!("`{}` is not an address and a port", metrics.get_ref());
                self.source
                    .error(metrics.span().start, "gateway.metrics", message)
                    .hint("write 127.0.0.1:9464 or [::1]:9464")
            })
        });
        if let Some(sessions) = &file.capacity.sessions {
            state.capacity.sessions = self.capacity("capacity.sessions", sessions)?;
        }
        if let Some(routes) = &file.capacity.routes {
            state.capacity.routes = self.capacity("capacity.routes", routes)?;
        }
        if let Some(half_open) = &file.capacity.half_open {
            state.capacity.half_open = Some(self.capacity("capacity.half_open", half_open)?);
        }
        for (key, text, timeout) in [
            ("timeouts.tcp_established", &file.timeouts.tcp_established, &mut state.timeouts.tcp_established),
            ("timeouts.tcp_opening", &file.timeouts.tcp_opening, &mut state.timeouts.tcp_opening),
            ("timeouts.tcp_closing", &file.timeouts.tcp_closing, &mut state.timeouts.tcp_closing),
            ("timeouts.udp", &file.timeouts.udp, &mut state.timeouts.udp),
            ("timeouts.udp_dns", &file.timeouts.udp_dns, &mut state.timeouts.udp_dns),
            ("timeouts.icmp", &file.timeouts.icmp, &mut state.timeouts.icmp),
        ] {
            if let Some(text) = text {
                *timeout = self.duration(key, text)?;
            }
        }
        metrics.transpose()
    }

    fn capacity(&self, key: &str, value: &Spanned<i64>) -> Result<u32, ConfigError> {
        u32::try_from(*value.get_ref()).map_err(|_| {
            let message = format!("a capacity of {} is not possible", value.get_ref());
            self.source
                .error(value.span().start, key, message)
                .hint(format!("between 1 and {}", validate::MAX_CAPACITY))
        })
    }

    fn duration(&self, key: &str, text: &Spanned<String>) -> Result<Duration, ConfigError> {
        humantime::parse_duration(text.get_ref()).map_err(|_| {
            let message = format!("`{}` is not a time", text.get_ref());
            self.source.error(text.span().start, key, message).hint("write it as in \"2h4m\" or \"90s\"")
        })
    }

    fn interface(&self, interface: &file::Interface, state: &mut Snapshot) -> Result<(), ConfigError> {
        let name = interface.name.get_ref().clone();
        let role = self.parse(&interface.role, "interface.role")?;
        let mode = interface.mode.as_ref().map(|mode| self.parse(mode, "interface.mode"));
        let added = Interface { name: name.clone(), role, mode: mode.transpose()?.unwrap_or_default() };
        match state.interfaces.insert(name, added) {
            None => Ok(()),
            Some(_) => Err(self.source.twice("interface", &interface.name)),
        }
    }

    fn pool(&self, pool: &file::Pool, state: &mut Snapshot) -> Result<(), ConfigError> {
        let name = pool.name.get_ref().clone();
        let parse = |key, texts: &[Spanned<String>]| {
            let mut addresses = Vec::new();
            for text in texts {
                let parsed = Pool::parse_addresses(text.get_ref());
                addresses.extend(parsed.map_err(|error| self.source.value(text.span().start, key, error))?);
            }
            Ok(addresses)
        };
        let addresses = parse("pool.addresses", &pool.addresses)?;
        let drained = parse("pool.drained", &pool.drained)?.into_iter().collect();
        let ports = pool.ports.as_ref().map(|ports| self.parse(ports, "pool.ports"));
        let ports = ports.transpose()?.unwrap_or(PortRange::POOL);
        let mapping = pool.mapping.as_ref().map(|mapping| self.parse(mapping, "pool.mapping"));
        let mapping = mapping.transpose()?.unwrap_or_default();
        let mss = pool.mss.as_ref().map(|mss| {
            let parsed = Pool::mss(*mss.get_ref());
            parsed.map_err(|error| self.source.value(mss.span().start, "pool.mss", error))
        });
        let mss = mss.transpose()?.unwrap_or_default();
        let refuse = pool.refuse.as_ref().map(|refuse| self.parse(refuse, "pool.refuse"));
        let refuse = refuse.transpose()?.unwrap_or_default();
        let limits = pool.per_destination.as_ref().map_or_else(LimitChange::default, |limits| {
            let file::PerDestination { rate, burst, concurrent } = *limits.get_ref();
            LimitChange { rate, burst, concurrent }
        });
        let per_destination = limits.over(PerDestination::default());
        let added =
            Pool { drained, mapping, mss, refuse, per_destination, ..Pool::new(&name, addresses, ports) };
        match state.pools.insert(name, added) {
            None => Ok(()),
            Some(_) => Err(self.source.twice("pool", &pool.name)),
        }
    }

    fn eip(&self, eip: &file::Eip, state: &mut Snapshot) -> Result<(), ConfigError> {
        let address = |field, key, text: &Spanned<String>| {
            parse_address(field, text.get_ref())
                .map_err(|error| self.source.value(text.span().start, key, error))
        };
        let host = address("host", "eip.host", &eip.host)?;
        let address = address("address", "eip.address", &eip.address)?;
        if state.eips.insert(address, Eip { address, host }).is_none() {
            return Ok(());
        }
        let message = format!("EIP {address} is there twice");
        let error = self.source.error(eip.address.span().start, "eip.address", message);
        Err(error.hint("an EIP stands for one host: remove one"))
    }

    fn proxy(&self, proxy: &file::Proxy, state: &mut Snapshot) -> Result<(), ConfigError> {
        let name = proxy.name.get_ref().clone();
        let mut hosts = Vec::new();
        for text in &proxy.hosts {
            hosts.push(self.parse(text, "proxy.hosts")?);
        }
        let mut added = Proxy::new(&name, hosts);
        for text in &proxy.drained {
            let address = parse_address("drained", text.get_ref());
            added.drained.insert(
                address.map_err(|error| self.source.value(text.span().start, "proxy.drained", error))?,
            );
        }
        added.mode = self.mode(proxy)?;
        if let Some(check) = &proxy.check {
            added.check = self.parse(check, "proxy.check")?;
        }
        if let Some(interval) = &proxy.interval {
            added.interval = self.duration("proxy.interval", interval)?;
        }
        if let Some(fail) = &proxy.fail {
            added.fail = self.parse(fail, "proxy.fail")?;
        }
        match state.proxies.insert(name, added) {
            None => Ok(()),
            Some(_) => Err(self.source.twice("proxy", &proxy.name)),
        }
    }

    fn mode(&self, proxy: &file::Proxy) -> Result<ProxyMode, ConfigError> {
        let file::Proxy { name, mode, vni, .. } = proxy;
        let number = vni.as_ref().map(|vni| *vni.get_ref());
        ProxyMode::parse(mode.as_ref().map(|mode| mode.get_ref().as_str()), number).map_err(|error| {
            let of_mode = mode.as_ref().map_or(name.span(), Spanned::span).start;
            let of_vni = vni.as_ref().map_or(of_mode, |vni| vni.span().start);
            let at = if error.field == "vni" { of_vni } else { of_mode };
            self.source.value(at, &format!("proxy.{}", error.field), error)
        })
    }

    fn limit(&self, limit: &file::Limit, state: &mut Snapshot) -> Result<(), ConfigError> {
        let name = limit.name.get_ref().clone();
        let from = parse_prefix("from", limit.from.get_ref())
            .map_err(|error| self.source.value(limit.from.span().start, "limit.from", error))?;
        let per = limit.per.as_ref().map(|per| self.parse(per, "limit.per")).transpose()?.unwrap_or_default();
        let number = |value: &Option<Spanned<u32>>| value.as_ref().map(|value| *value.get_ref());
        let mut added = Limit { per, ..Limit::new(&name, from) };
        added.change(&LimitChange {
            rate: number(&limit.rate),
            burst: number(&limit.burst),
            concurrent: number(&limit.concurrent),
        });
        match state.limits.insert(name, added) {
            None => Ok(()),
            Some(_) => Err(self.source.twice("limit", &limit.name)),
        }
    }

    fn group(&self, group: &file::Group, state: &mut Snapshot) -> Result<(), ConfigError> {
        let name = group.name.get_ref().clone();
        let mut prefixes = Vec::new();
        for text in &group.prefixes {
            let prefix = parse_prefix("prefixes", text.get_ref());
            prefixes
                .push(prefix.map_err(|error| self.source.value(text.span().start, "group.prefixes", error))?);
        }
        match state.groups.insert(name.clone(), Group { name, prefixes }) {
            None => Ok(()),
            Some(_) => Err(self.source.twice("group", &group.name)),
        }
    }

    fn table(&mut self, table: &file::Table) -> Result<Table, ConfigError> {
        let kind = match &table.kind {
            Some(kind) => self.parse(kind, "table.kind")?,
            None => TableKind::Egress,
        };
        let mut loaded = Table::new(table.name.get_ref(), kind);
        for text in &table.bind {
            let refuse = |error| self.source.value(text.span().start, "table.bind", error);
            let binding = words::parse_binding(text.get_ref()).map_err(refuse)?;
            if loaded.bindings.contains(&binding) {
                let message = format!("source {binding} is bound twice");
                return Err(refuse(ValueError::invalid("bind", message).hint("remove one")));
            }
            loaded.bindings.insert(binding);
        }
        for entry in &table.routes {
            let refuse = |error: ValueError| {
                let field = if error.field == "prefix" { "to" } else { error.field };
                self.source.value(entry.span().start, &format!("table.routes.{field}"), error)
            };
            let (key, route) = entry.get_ref().words().parse().map_err(refuse)?;
            if loaded.routes.insert(key, route).is_some() {
                let message = format!("route {key} appears twice in table `{}`", loaded.name);
                return Err(refuse(ValueError::invalid("prefix", message).hint("remove one")));
            }
        }
        if let Some(path) = &table.routes_file {
            self.routes_file(path, &mut loaded)?;
        }
        Ok(loaded)
    }

    /// Adds the routes of a file, whose path is relative to that of the configuration file.
    fn routes_file(&mut self, named: &Spanned<PathBuf>, table: &mut Table) -> Result<(), ConfigError> {
        let Some(directory) = self.directory else {
            let message =
                format!("{} is a file, which the daemon does not read for others", named.get_ref().display());
            let error = self.source.error(named.span().start, "table.routes_file", message);
            return Err(error.hint("write its routes into `routes`, as `gwctl apply -f FILE` does"));
        };
        let path = directory.join(named.get_ref());
        let text = read(&path).map_err(|error| {
            self.source
                .error(named.span().start, "table.routes_file", format!("{}: {error}", path.display()))
                .hint("give the path of a file with a route a line")
        })?;
        self.fingerprint.add(text.as_bytes());
        for (number, line) in text.lines().enumerate() {
            let line_number = number + 1;
            let refuse = |error: ValueError| ConfigError::in_line(&path, line_number, error);
            let Some((key, route)) = words::parse_route_line(line).map_err(refuse)? else { continue };
            if table.routes.insert(key, route).is_some() {
                let message = format!("route {key} appears twice in table `{}`", table.name);
                return Err(refuse(ValueError::invalid("prefix", message).hint("remove one")));
            }
            self.lines.push(RouteLine {
                table: table.name.clone(),
                key,
                path: path.clone(),
                line: line_number,
            });
        }
        Ok(())
    }

    fn parse<T: std::str::FromStr<Err = ValueError>>(
        &self,
        text: &Spanned<String>,
        key: &str,
    ) -> Result<T, ConfigError> {
        text.get_ref().parse().map_err(|error| self.source.value(text.span().start, key, error))
    }
}

/// The file's text, or one sentence that says why not.
fn read(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    String::from_utf8(bytes)
        .map_err(|error| format!("is not text: byte {} is no UTF-8", error.utf8_error().valid_up_to()))
}

/// FNV-1a: tells contents apart, the same in every build of the daemon. Nobody gains by a collision.
struct Fingerprint(u64);

impl Fingerprint {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        // The length keeps a line from moving from one file to the next unseen.
        for byte in bytes.iter().copied().chain((bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> String {
        format!("{:016x}", self.0)
    }
}
