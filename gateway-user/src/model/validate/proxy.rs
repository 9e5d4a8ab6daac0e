//! What makes proxies, and routes through them, acceptable.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use gateway_common::proxy::{MAX_HOSTS_PER_PROXY, MAX_PROXIES, MAX_PROXY_HOSTS};

use ipnet::IpNet;

use super::{Subject, Violation, at, check_name, pool_for, unknown};
use crate::model::{Check, Fail, Proxy, Snapshot, error::ValueError, prefix::check_unicast};

/// The largest weight of a host.
pub const MAX_WEIGHT: u16 = 256;
/// The shortest and the longest time between two checks of a host.
pub const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_mins(5));

/// Checks all proxies.
pub(super) fn proxies(state: &Snapshot) -> Result<(), Violation> {
    let mut owners: HashMap<IpAddr, &str> = HashMap::new();
    for (number, proxy) in state.proxies.values().enumerate() {
        let mut check = || {
            check_name("proxy", &proxy.name)?;
            if number >= MAX_PROXIES as usize {
                let message =
                    format!("proxy `{}` is one more than the {MAX_PROXIES} there can be", proxy.name);
                return Err(ValueError::full("name", message).hint("remove one first"));
            }
            one_proxy(proxy)?;
            for host in &proxy.hosts {
                outside(state, host.address)?;
                if let Some(owner) = owners.insert(host.address, &proxy.name) {
                    return Err(shared(proxy, owner, host.address));
                }
            }
            if owners.len() > MAX_PROXY_HOSTS as usize {
                let message = format!("all proxies together have more than {MAX_PROXY_HOSTS} hosts");
                return Err(ValueError::full("hosts", message).hint("remove some"));
            }
            fail(state, proxy)
        };
        check().map_err(at(&Subject::Proxy(proxy.name.clone())))?;
    }
    Ok(())
}

/// Checks a route through the proxy of this name.
pub(super) fn route(state: &Snapshot, prefix: IpNet, name: &str) -> Result<(), ValueError> {
    let Some(proxy) = state.proxies.get(name) else {
        return Err(unknown("via", "proxy", name, "host", state.proxies.keys()));
    };
    // Where the last host of it dies, the packets of the route take that way; where that is another proxy, and its last
    // host dies, they take that one's.
    let other = match &proxy.fail {
        Fail::Proxy(other) => state.proxies.get(other),
        Fail::Closed | Fail::Direct | Fail::Pool(_) => None,
    };
    for fail in [Some(&proxy.fail), other.map(|other| &other.fail)].into_iter().flatten() {
        if let Fail::Pool(pool) = fail {
            pool_for(state, prefix, pool)?;
        }
    }
    Ok(())
}

fn one_proxy(proxy: &Proxy) -> Result<(), ValueError> {
    let Proxy { name, hosts, drained, mode, check, interval, .. } = proxy;
    if hosts.is_empty() {
        return Err(ValueError::invalid("hosts", format!("proxy `{name}` has no host"))
            .hint("give it the address of at least one host"));
    }
    if hosts.len() > MAX_HOSTS_PER_PROXY as usize {
        let message = format!("proxy `{name}` has {} hosts", hosts.len());
        return Err(ValueError::full("hosts", message).hint(format!("at most {MAX_HOSTS_PER_PROXY}")));
    }
    for host in hosts {
        check_unicast("hosts", host.address)?;
        if !(1..=MAX_WEIGHT).contains(&host.weight) {
            let message = format!("host {} cannot have weight {}", host.address, host.weight);
            return Err(ValueError::invalid("hosts", message).hint(format!(
                "from 1 to {MAX_WEIGHT}; to give it no new flows: proxy drain {name} host {}",
                host.address
            )));
        }
    }
    if let Some(stranger) = drained.iter().find(|address| !proxy.has(**address)) {
        let message = format!("host {stranger} is drained, and not one of proxy `{name}`");
        return Err(ValueError::invalid("drained", message).hint("name hosts of the proxy"));
    }
    if mode.vni().is_some_and(|vni| vni >= 1 << 24) {
        return Err(ValueError::invalid("vni", format!("`{mode}` is not possible"))
            .hint(format!("from 0 to {}", (1 << 24) - 1)));
    }
    if *check == Check::Tcp(0) {
        return Err(ValueError::invalid("check", "nobody listens on port 0").hint("from 1 to 65535"));
    }
    let (shortest, longest) = INTERVALS;
    if *interval < shortest || longest < *interval {
        let [interval, shortest, longest] = [*interval, shortest, longest].map(humantime::format_duration);
        let message = format!("an interval of {interval} between two checks is not possible");
        return Err(
            ValueError::invalid("interval", message).hint(format!("between {shortest} and {longest}"))
        );
    }
    Ok(())
}

/// A host is an inside one: packets to the gateway's own outside addresses do not leave it.
fn outside(state: &Snapshot, address: IpAddr) -> Result<(), ValueError> {
    let pool = state.pools.values().find(|pool| pool.addresses.contains(&address));
    let owner = match pool {
        Some(pool) => format!("an address of pool `{}`", pool.name),
        None if state.eips.contains_key(&address) => "an EIP".to_owned(),
        None => return Ok(()),
    };
    Err(ValueError::invalid("hosts", format!("host {address} is {owner}"))
        .hint("give the inside address of the proxy host"))
}

fn shared(proxy: &Proxy, owner: &str, address: IpAddr) -> ValueError {
    if owner == proxy.name {
        return ValueError::invalid("hosts", format!("host {address} appears twice")).hint("remove one");
    }
    ValueError::invalid("hosts", format!("host {address} belongs to proxy `{owner}` already"))
        .hint("a host can be in one proxy only")
}

/// What happens on failure leads somewhere, and not on to a third proxy: the packet path looks one step ahead.
fn fail(state: &Snapshot, proxy: &Proxy) -> Result<(), ValueError> {
    match &proxy.fail {
        Fail::Closed | Fail::Direct => Ok(()),
        Fail::Pool(pool) if state.pools.contains_key(pool) => Ok(()),
        Fail::Pool(pool) => Err(unknown("fail", "pool", pool, "address", state.pools.keys())),
        Fail::Proxy(other) if *other == proxy.name => {
            Err(ValueError::invalid("fail", format!("proxy `{other}` cannot stand in for itself"))
                .hint("name another proxy, or `closed`"))
        }
        Fail::Proxy(other) => match state.proxies.get(other).map(|other| &other.fail) {
            None => Err(unknown("fail", "proxy", other, "host", state.proxies.keys())),
            Some(Fail::Proxy(third)) => {
                let message = format!("proxy `{other}` cannot stand in: it relies on proxy `{third}` itself");
                Err(ValueError::invalid("fail", message).hint(format!(
                    "a proxy stands in for others, or has one that does: proxy set {other} fail closed"
                )))
            }
            Some(Fail::Closed | Fail::Direct | Fail::Pool(_)) => Ok(()),
        },
    }
}
