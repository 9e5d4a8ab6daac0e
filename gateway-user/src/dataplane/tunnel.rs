//! Tunnels to hosts of proxies, as the host's network stack has them: a device for each, for all that is not forwarded,
//! which is resolving addresses and checking hosts.
//!
//! The kernel allows one VXLAN device for a network identifier and a family, and one Geneve device for an identifier and
//! a remote host, and so it is here.

use std::{collections::BTreeMap, net::IpAddr};

use crate::model::{ProxyMode, Snapshot};

/// Mark (`SO_MARK`) of what the gateway host sends to a proxy host through its tunnel, and not straight to its address.
pub const MARK: u32 = 0x6700_0067;

/// A device for tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Kind of tunnel, and network identifier.
    pub mode: ProxyMode,
    /// Hosts at the other end, all of one family.
    pub hosts: Vec<IpAddr>,
}

/// The device that the tunnel to this host uses; `None`: there is no tunnel.
pub fn device_of(mode: ProxyMode, host: IpAddr) -> Option<String> {
    match mode {
        ProxyMode::L2 => None,
        ProxyMode::Vxlan { vni } if host.is_ipv4() => Some(format!("gwvx{vni}")),
        ProxyMode::Vxlan { vni } => Some(format!("gwvx6-{vni}")),
        ProxyMode::Geneve { vni } => Some(format!("gwgn-{:08x}", digest(vni, host))),
    }
}

/// The devices that a state needs, by name.
pub fn devices(state: &Snapshot) -> BTreeMap<String, Device> {
    let mut devices: BTreeMap<String, Device> = BTreeMap::new();
    for proxy in state.proxies.values() {
        for host in &proxy.hosts {
            if let Some(name) = device_of(proxy.mode, host.address) {
                let device = Device { mode: proxy.mode, hosts: Vec::new() };
                devices.entry(name).or_insert(device).hosts.push(host.address);
            }
        }
    }
    devices
}

/// What tells one Geneve tunnel from another in the fifteen letters of a device's name (FNV-1a).
fn digest(vni: u32, host: IpAddr) -> u32 {
    let address = match host {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let bytes = address.octets().into_iter().chain(vni.to_be_bytes());
    bytes.fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Proxy, ProxyHost};

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn names_of_devices_are_short_enough_for_the_kernel_and_tell_tunnels_apart() {
        let most = (1 << 24) - 1;
        let mut names = std::collections::BTreeSet::new();
        for mode in [ProxyMode::Vxlan { vni: most }, ProxyMode::Geneve { vni: most }] {
            for host in ["192.0.2.9", "2001:db8::9"] {
                let name = device_of(mode, ip(host)).expect("a tunnel");
                assert!(name.len() < libc::IFNAMSIZ, "{name}");
                names.insert(name);
            }
        }
        assert_eq!(names.len(), 4);
        assert_eq!(device_of(ProxyMode::L2, ip("192.0.2.9")), None);
    }

    #[test]
    fn hosts_of_one_vxlan_and_family_share_a_device_and_those_of_one_geneve_do_not() {
        let mut state = Snapshot::default();
        let hosts = ["192.0.2.9", "192.0.2.10", "2001:db8::9"].map(|host| ProxyHost::new(ip(host)));
        let proxy = Proxy { mode: ProxyMode::Vxlan { vni: 7 }, ..Proxy::new("one", hosts.to_vec()) };
        state.proxies.insert("one".to_owned(), proxy);
        let count =
            |state: &Snapshot| devices(state).values().map(|device| device.hosts.len()).collect::<Vec<_>>();
        assert_eq!(count(&state), [1, 2]);
        let proxy = Proxy { mode: ProxyMode::Geneve { vni: 7 }, ..Proxy::new("one", hosts.to_vec()) };
        state.proxies.insert("one".to_owned(), proxy);
        assert_eq!(count(&state), [1, 1, 1]);
    }
}
