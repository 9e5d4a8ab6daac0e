//! Proxies.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// `proxy add`, which needs `hosts`, and `proxy set`, where what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyRequest {
    /// Hosts, `ADDR` or `ADDR weight N` each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// How packets reach a host: `l2` (the default), `vxlan` or `geneve`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Network identifier of a tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// How it is found out whether a host is up: `tcp:PORT`, `icmp` or `none` (the default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// Time between two checks of a host, as in `500ms`; `1s` unless told otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// What happens while no host is up: `closed` (the default), `direct`, `pool NAME` or `proxy NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail: Option<String>,
}

/// `proxy drain`, `proxy undrain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyDrainRequest {
    /// Addresses of hosts, separated by commas.
    pub host: String,
}

/// A proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProxyRow {
    /// Name.
    pub name: String,
    /// How packets reach a host.
    pub mode: String,
    /// Network identifier of a tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// How it is found out whether a host is up.
    pub check: String,
    /// Seconds between two checks of a host.
    pub interval: f64,
    /// What happens while no host is up.
    pub fail: String,
    /// Hosts.
    pub hosts: Vec<ProxyHostRow>,
}

/// A host of a proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProxyHostRow {
    /// Address.
    pub address: IpAddr,
    /// Its share of the flows, relative to the other hosts.
    pub weight: u16,
    /// Whether it gets no new flows because an operator said so.
    pub drained: bool,
    /// What checks say of it: `up`, `down`, `unchecked`, or `unknown` before the first one did.
    pub state: String,
    /// Seconds since it is in this state; absent where it is not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<f64>,
    /// Why the last check failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether packets are sent to it. Differs from `state` where that is `unknown`: what was known before goes on.
    pub up: bool,
    /// Sessions that go through it.
    pub flows: u64,
}
