//! `status`: is everything as it should be, and what is worth knowing.

use std::{net::SocketAddr, path::PathBuf, process, sync::Arc, time::Instant};

use super::{
    rows,
    types::{ConfigStatus, InterfaceRow, Notice, PoolAddressRow, ProxyHostRow, ProxyRow, SessionUse, Status},
};
use crate::{
    control::{Current, Handle},
    dataplane::{AttachedInterface, Connected, Observe},
    health::Health,
    model::{MAIN_TABLE, Role, Snapshot, Table, Target, validate::below_standard},
    monitor::Hub,
    netlink::Sysctls,
    usage::History,
};

/// Sessions in use from which on `status` warns, in percent of the capacity.
const SESSIONS_HIGH: u64 = 90;

/// Looks at the host's settings for the interfaces of a state.
pub type Inspect = Arc<dyn Fn(&Snapshot) -> Sysctls + Send + Sync>;

/// What the answers are made of.
#[derive(Clone)]
pub struct Context {
    /// The control plane.
    pub control: Handle,
    /// The configuration file.
    pub config_file: PathBuf,
    /// Where the configuration file wants metrics to be served, for `export`.
    pub metrics: Option<SocketAddr>,
    /// When the daemon started.
    pub started: Instant,
    /// Called for every `status`; may block.
    pub inspect: Inspect,
    /// Who watches packets.
    pub monitor: Hub,
    /// What sessions had carried before.
    pub usage: Arc<History>,
}

impl Context {
    /// The system routes of a state on this host.
    pub(super) fn connected(&self, state: &Snapshot) -> Connected {
        Connected::of(&self.control.host(), state)
    }

    /// The state of everything. Blocks while the data plane is read.
    pub(super) fn status(&self, current: &Current) -> Status {
        let state = &*current.snapshot;
        let observe = self.control.observe();
        let mut problems = failures(current);
        let health = self.control.health();
        let readings = read(&*observe, state, &health).unwrap_or_else(|error| {
            problems
                .push(notice(format!("the data plane cannot be read: {error:#}"), "see the log of gatewayd"));
            Readings::default()
        });
        problems.extend(readings.attached.iter().filter_map(detached));
        problems.extend(deaf(&readings.attached));
        problems.extend(readings.proxies.iter().filter_map(dead));
        let mut warnings = remarks(current);
        warnings.extend(readings.proxies.iter().flat_map(ailing));
        warnings.extend(fullness(&readings));
        let host = (self.inspect)(state);
        problems.extend(host.problems);
        warnings.extend(host.warnings);
        Status {
            name: state.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            active: state.active,
            healthy: problems.is_empty(),
            problems,
            warnings,
            uptime: self.started.elapsed().as_secs_f64().round(),
            pid: process::id(),
            config: ConfigStatus {
                file: self.config_file.display().to_string(),
                differs: current.config_differs,
                changed: current.config_changed,
                last_apply_success: current.apply_error.is_none(),
            },
            interfaces: readings.interfaces,
            tables: state.tables.values().map(|table| rows::table(table, &readings.counters)).collect(),
            pools: readings.pools,
            proxies: readings.proxies,
            sessions: readings.sessions,
            drops: readings.drops,
        }
    }
}

#[derive(Default)]
struct Readings {
    counters: rows::TableCounters,
    attached: Vec<AttachedInterface>,
    interfaces: Vec<InterfaceRow>,
    pools: Vec<PoolAddressRow>,
    proxies: Vec<ProxyRow>,
    sessions: SessionUse,
    drops: Vec<super::types::DropRow>,
}

fn read(observe: &dyn Observe, state: &Snapshot, health: &Health) -> anyhow::Result<Readings> {
    let mut drops = rows::drops(observe.drops()?);
    drops.retain(|row| row.count.packets > 0);
    let attached = observe.interfaces()?;
    Ok(Readings {
        interfaces: rows::interfaces(state, &attached),
        attached,
        counters: observe.tables()?,
        pools: rows::pool_addresses(observe.pools()?),
        proxies: rows::proxies(state, health, &observe.proxies()?),
        sessions: rows::session_use(&observe.session_counters()?, state.capacity.sessions),
        drops,
    })
}

fn failures(current: &Current) -> Vec<Notice> {
    let apply = current.apply_error.as_ref().map(|error| {
        notice(
            format!("the last change could not be put in force: {error}"),
            "remove the cause and make the change again",
        )
    });
    let host = current.host_error.as_ref().map(|error| {
        notice(
            format!("the data plane could not follow a change of the host's links: {error}"),
            "see the log of gatewayd",
        )
    });
    let health = current.health_error.as_ref().map(|error| {
        notice(
            format!("the data plane could not be told which hosts of proxies are up: {error}"),
            "see the log of gatewayd",
        )
    });
    apply.into_iter().chain(host).chain(health).collect()
}

fn detached(interface: &AttachedInterface) -> Option<Notice> {
    let AttachedInterface { name, mode, index, shut, .. } = interface;
    let shut = if *shut { ", and the host forwards nothing from there" } else { "" };
    match (mode, index) {
        (Some(_), _) => None,
        (None, 0) => Some(notice(
            format!("interface `{name}` does not exist"),
            "it is attached as soon as it appears; the host forwards nothing from there before, if the gateway is \
             active",
        )),
        (None, _) => Some(notice(
            format!("interface `{name}` has no XDP program{shut}"),
            &format!(
                "the log of gatewayd says why it could not be attached; it tries again when the device changes, or \
                 after `gwctl interface del {name}` and `gwctl interface add {name} role ROLE mode generic`"
            ),
        )),
    }
}

/// Interfaces that lose what native programs of others redirect to them: the kernel drops such frames after
/// the program has counted them as sent.
fn deaf(attached: &[AttachedInterface]) -> Vec<Notice> {
    let native = |interface: &&AttachedInterface| interface.mode == Some("native");
    let loses = |interface: &&AttachedInterface| interface.takes_redirects == Some(false);
    let notice_of = |interface: &AttachedInterface| {
        let name = &interface.name;
        let others: Vec<_> =
            attached.iter().filter(native).map(|other| &*other.name).filter(|other| other != name).collect();
        let (first, _) = others.split_first()?;
        Some(notice(
            format!(
                "what arrives through {} is lost when it should leave through `{name}`: the device takes no frames \
                 from native XDP programs",
                others.iter().map(|other| format!("`{other}`")).collect::<Vec<_>>().join(", ")
            ),
            &format!(
                "where `{name}` is a veth, `ethtool -K PEER gro on` at its other end; else attach the others in \
                 generic mode: `gwctl interface del {first}`, then `gwctl interface add {first} role ROLE mode \
                 generic`"
            ),
        ))
    };
    attached.iter().filter(loses).filter_map(notice_of).collect()
}

/// Whether new flows are given to the host.
fn serves(host: &ProxyHostRow) -> bool {
    host.up && !host.drained
}

/// A proxy without a host that serves.
fn dead(proxy: &ProxyRow) -> Option<Notice> {
    let ProxyRow { name, hosts, fail, .. } = proxy;
    if hosts.iter().any(serves) {
        return None;
    }
    let consequence = match fail.as_str() {
        "closed" => "its new flows are dropped (proxy_down)".to_owned(),
        way => format!("its new flows take the way `{way}`"),
    };
    let message = format!("proxy `{name}` has no host that is up and not drained: {consequence}");
    Some(notice(message, &format!("gwctl proxy show {name} says why")))
}

/// Hosts that are down, of a proxy that works all the same.
fn ailing(proxy: &ProxyRow) -> Vec<Notice> {
    let ProxyRow { name, hosts, .. } = proxy;
    if !hosts.iter().any(serves) {
        return Vec::new();
    }
    let down = hosts.iter().filter(|host| !host.up);
    down.map(|host| {
        let why = host.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        let message = format!("host {} of proxy `{name}` is down{why}", host.address);
        notice(message, "its flows go to the proxy's other hosts")
    })
    .collect()
}

fn remarks(current: &Current) -> Vec<Notice> {
    let state = &*current.snapshot;
    let mut remarks = Vec::new();
    if current.config_changed {
        remarks.push(notice(
            "the configuration file has changed, and changes made with gwctl win over it".to_owned(),
            "`gwctl diff -f FILE` shows what is different, `gwctl apply -f FILE` puts the file in force",
        ));
    }
    if let Some(waiting) = current.confirmation.as_ref().filter(|it| it.answer.is_none()) {
        let left = waiting.left().as_secs();
        remarks.push(notice(
            format!("revision {} is taken back in {left} s unless it is confirmed", waiting.revision),
            "`gwctl confirm` keeps it, `gwctl undo` takes it back at once",
        ));
    }
    for (faces, missing) in [
        ("inside", !state.interfaces.values().any(|i| matches!(i.role, Role::Inside | Role::Both))),
        ("outside", !state.interfaces.values().any(|i| matches!(i.role, Role::Outside | Role::Both))),
    ] {
        if missing {
            let hint = format!("gwctl interface add NAME role {faces}");
            remarks.push(notice(format!("no interface faces the {faces}"), &hint));
        }
    }
    if state.active && state.tables.values().all(|table| table.routes.is_empty()) {
        let hint = format!("gwctl route add PREFIX via TARGET table {MAIN_TABLE}");
        remarks.push(notice("the gateway is active and has no route: nothing gets out".to_owned(), &hint));
    }
    let by_eip = |table: &Arc<Table>| table.routes.targets().any(|target| *target == Target::Eip);
    if state.eips.is_empty() && state.tables.values().any(by_eip) {
        let message = "a route says `eip` and no host has one: its packets are dropped (no_eip)".to_owned();
        remarks.push(notice(message, "gwctl eip add ADDR host ADDR"));
    }
    let standard = below_standard(&state.timeouts).into_iter();
    remarks.extend(standard.map(|message| notice(message, "raise it in the configuration file")));
    remarks
}

fn fullness(readings: &Readings) -> Option<Notice> {
    let SessionUse { total, capacity, .. } = readings.sessions;
    (capacity > 0 && total * 100 >= capacity * SESSIONS_HIGH).then(|| {
        notice(
            format!("{total} of {capacity} sessions are in use; beyond that, new flows are refused"),
            "raise capacity.sessions in the configuration file",
        )
    })
}

fn notice(message: String, hint: &str) -> Notice {
    Notice { message, hint: Some(hint.to_owned()) }
}
