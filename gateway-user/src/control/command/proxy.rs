//! Changes of proxies.

use std::{fmt, net::IpAddr, time::Duration};

use super::{commas, exists, in_use, not_found, users};
use crate::{
    api::{ApiError, ErrorKind},
    model::{Check, Fail, Proxy, ProxyHost, ProxyMode, Snapshot, Target},
};

/// What changes of a proxy; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyChanges {
    /// Hosts.
    pub hosts: Option<Vec<ProxyHost>>,
    /// How packets reach them.
    pub mode: Option<ProxyMode>,
    /// How their health is found out.
    pub check: Option<Check>,
    /// Time between two checks of a host.
    pub interval: Option<Duration>,
    /// What happens while none is up.
    pub fail: Option<Fail>,
}

impl fmt::Display for ProxyChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hosts, mode, check, interval, fail } = self;
        hosts.as_ref().map_or(Ok(()), |hosts| write!(f, " host {}", commas(hosts)))?;
        mode.map_or(Ok(()), |mode| write!(f, " mode {mode}"))?;
        check.map_or(Ok(()), |check| write!(f, " check {check}"))?;
        interval.map_or(Ok(()), |time| write!(f, " interval {}", humantime::format_duration(time)))?;
        fail.as_ref().map_or(Ok(()), |fail| write!(f, " fail {fail}"))
    }
}

/// Adds a proxy.
pub(super) fn add(state: &mut Snapshot, proxy: &Proxy) -> Result<(), ApiError> {
    if state.proxies.contains_key(&proxy.name) {
        return Err(exists("proxy", &proxy.name).hint("change it with `proxy set`"));
    }
    free(state, &proxy.name, &proxy.hosts)?;
    state.proxies.insert(proxy.name.clone(), proxy.clone());
    Ok(())
}

/// Hosts may not be those of another proxy. The whole state is checked for that later, in the order of names: it
/// would blame the wrong one of the two.
fn free(state: &Snapshot, name: &str, hosts: &[ProxyHost]) -> Result<(), ApiError> {
    let mut others = state.proxies.values().filter(|proxy| proxy.name != name);
    let taken = others.find_map(|other| hosts.iter().find(|host| other.has(host.address)).zip(Some(other)));
    let Some((host, owner)) = taken else { return Ok(()) };
    let message = format!("host {} belongs to proxy `{}` already", host.address, owner.name);
    Err(ApiError::new("proxy", ErrorKind::Invalid, message)
        .hint("a host can be in one proxy only")
        .field("hosts"))
}

/// Changes what is named of a proxy.
pub(super) fn set(state: &mut Snapshot, name: &str, changes: &ProxyChanges) -> Result<(), ApiError> {
    let ProxyChanges { hosts, mode, check, interval, fail } = changes.clone();
    free(state, name, hosts.as_deref().unwrap_or_default())?;
    let proxy = proxy_mut(state, name)?;
    if let Some(hosts) = hosts {
        proxy.hosts = hosts;
        let Proxy { hosts, drained, .. } = proxy;
        drained.retain(|address| hosts.iter().any(|host| host.address == *address));
    }
    proxy.mode = mode.unwrap_or(proxy.mode);
    proxy.check = check.unwrap_or(proxy.check);
    proxy.interval = interval.unwrap_or(proxy.interval);
    if let Some(fail) = fail {
        proxy.fail = fail;
    }
    Ok(())
}

/// The proxy of this name, which has these hosts.
pub(super) fn having<'a>(
    state: &'a mut Snapshot,
    name: &str,
    hosts: &[IpAddr],
) -> Result<&'a mut Proxy, ApiError> {
    let proxy = proxy_mut(state, name)?;
    match hosts.iter().find(|host| !proxy.has(**host)) {
        None => Ok(proxy),
        Some(stranger) => {
            let message = format!("host {stranger} is not in proxy `{name}`");
            Err(ApiError::new("proxy", ErrorKind::NotFound, message)
                .hint(format!("see its hosts with `proxy show {name}`"))
                .field("host"))
        }
    }
}

/// Removes a proxy that nothing refers to.
pub(super) fn del(state: &mut Snapshot, name: &str) -> Result<(), ApiError> {
    proxy_mut(state, name)?;
    let uses = |target: &Target| matches!(target, Target::Proxy(proxy) if proxy == name);
    if let Some(by) = users(state, uses) {
        return Err(in_use("proxy", name, &by).hint("delete those routes or give them another target first"));
    }
    if let Some(by) = relying(state, |fail| matches!(fail, Fail::Proxy(proxy) if proxy == name)) {
        return Err(in_use("proxy", name, &format!("proxy `{by}`, which uses it when it fails"))
            .hint(format!("give that another way first: proxy set {by} fail closed")));
    }
    state.proxies.remove(name);
    Ok(())
}

/// The first proxy for whose way to fail `concerns` holds.
pub(super) fn relying(state: &Snapshot, concerns: impl Fn(&Fail) -> bool) -> Option<String> {
    state.proxies.values().find(|proxy| concerns(&proxy.fail)).map(|proxy| proxy.name.clone())
}

fn proxy_mut<'a>(state: &'a mut Snapshot, name: &str) -> Result<&'a mut Proxy, ApiError> {
    if !state.proxies.contains_key(name) {
        return Err(not_found("proxy", name, state.proxies.keys().map(String::as_str)));
    }
    let proxy = state.proxies.get_mut(name);
    proxy.ok_or_else(|| ApiError::new("proxy", ErrorKind::Internal, format!("proxy `{name}` vanished")))
}
