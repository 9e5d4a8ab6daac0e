//! The host around the gateway: devices, addresses, routes and neighbours.
//!
//! One description makes the network namespace, tells the data plane about the host, and answers the
//! model's questions about the host's routing table. MAC addresses follow from IPv4 and IPv6 addresses, so a
//! test can name them without asking.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use gateway_user::{
    dataplane::{Host, Link},
    model::Role,
};
use ipnet::IpNet;

use crate::packet::{Mac, ip};

/// A device of the host.
#[derive(Clone, Debug)]
pub struct Device {
    /// Name.
    pub name: &'static str,
    /// Ifindex.
    pub index: u32,
    /// What it is to the gateway; `None`: not the gateway's.
    pub role: Option<Role>,
    /// MTU in bytes.
    pub mtu: u16,
    /// Addresses; the first is an IPv4 address.
    pub addresses: Vec<IpNet>,
}

/// A route of the host.
#[derive(Clone, Debug)]
struct Route {
    to: IpNet,
    /// `None`: unreachable.
    via: Option<(&'static str, IpAddr)>,
}

/// A host with devices, all of them up and with a carrier.
#[derive(Clone, Debug, Default)]
pub struct Network {
    devices: Vec<Device>,
    routes: Vec<Route>,
    neighbors: Vec<(&'static str, IpAddr)>,
    told_veth: bool,
}

/// The way to an address, as the host's routing table says.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// Device it leaves through.
    pub device: &'a Device,
    /// The next hop.
    pub neighbor: IpAddr,
    /// MAC address of the next hop; `None`: not resolved.
    pub mac: Option<Mac>,
}

/// The MAC address of whoever has this address.
pub fn mac(address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [0x02, 0x04, a, b, c, d]
        }
        IpAddr::V6(address) => {
            let octets = address.octets();
            [0x02, 0x06, octets[4], octets[5], octets[14], octets[15]]
        }
    }
}

impl Device {
    /// The MAC address.
    pub fn mac(&self) -> Mac {
        mac(self.addresses[0].addr())
    }

    /// Its first address of a family, which its ICMP errors come from.
    ///
    /// # Panics
    /// If it has none.
    pub fn address(&self, v4: bool) -> IpAddr {
        let mut addresses = self.addresses.iter().map(IpNet::addr);
        addresses.find(|address| address.is_ipv4() == v4).expect("devices have addresses of both families")
    }

    /// Whether `address` is the broadcast address of one of its subnets.
    fn is_broadcast(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| match own {
            IpNet::V4(own) => own.prefix_len() < 31 && IpAddr::V4(own.broadcast()) == address,
            IpNet::V6(_) => false,
        })
    }
}

impl Network {
    /// Two inside devices, two outside ones and one that is not the gateway's.
    ///
    /// ```text
    /// in0   inside   10.0.1.1/24, 2001:db8:1::1/64  clients .2 and .3; a router .254 to 10.0.2.0/24
    ///                                               and 2001:db8:4::/64
    /// in1   inside   10.0.3.1/24, 2001:db8:3::1/64  client .2
    /// out0  outside  192.0.2.1/24, 198.51.100.1/32, default router .254, another router .2
    ///                2001:db8:2::1/64
    /// out1  outside  10.9.0.1/24, 2001:db8:9::1/64  MTU 1280; a router .254 to 203.0.113.192/26
    ///                                               and 2001:db8:f1::/48
    /// lan0  none     10.8.0.1/24, 2001:db8:8::1/64  a router .254 to 203.0.113.64/28
    /// ```
    /// 203.0.113.80/28 is unreachable. Whatever else is on these subnets is not resolved.
    pub fn standard() -> Self {
        let mut network = Self::default();
        network.device("in0", 10, Some(Role::Inside), 1500, &["10.0.1.1/24", "2001:db8:1::1/64"]);
        network.device("in1", 11, Some(Role::Inside), 1500, &["10.0.3.1/24", "2001:db8:3::1/64"]);
        let outside = ["192.0.2.1/24", "198.51.100.1/32", "2001:db8:2::1/64"];
        network.device("out0", 20, Some(Role::Outside), 1500, &outside);
        network.device("out1", 21, Some(Role::Outside), 1280, &["10.9.0.1/24", "2001:db8:9::1/64"]);
        network.device("lan0", 30, None, 1500, &["10.8.0.1/24", "2001:db8:8::1/64"]);
        network.route("10.0.2.0/24", "in0", "10.0.1.254");
        network.route("2001:db8:4::/64", "in0", "2001:db8:1::254");
        network.route("0.0.0.0/0", "out0", "192.0.2.254");
        network.route("::/0", "out0", "2001:db8:2::254");
        network.route("203.0.113.192/26", "out1", "10.9.0.254");
        network.route("2001:db8:f1::/48", "out1", "2001:db8:9::254");
        network.route("203.0.113.64/28", "lan0", "10.8.0.254");
        network.unreachable("203.0.113.80/28");
        for client in
            ["10.0.1.2", "10.0.1.3", "10.0.1.254", "2001:db8:1::2", "2001:db8:1::3", "2001:db8:1::254"]
        {
            network.neighbor("in0", client);
        }
        for client in ["10.0.3.2", "2001:db8:3::2"] {
            network.neighbor("in1", client);
        }
        for router in ["192.0.2.254", "192.0.2.2", "2001:db8:2::254", "2001:db8:2::2"] {
            network.neighbor("out0", router);
        }
        for router in ["10.9.0.254", "2001:db8:9::254"] {
            network.neighbor("out1", router);
        }
        network.neighbor("lan0", "10.8.0.254");
        network
    }

    /// One device, arm0, that faces both clients (10.0.7.2 and .3) and the default router (.254).
    pub fn one_armed() -> Self {
        let mut network = Self::default();
        network.device("arm0", 10, Some(Role::Both), 1500, &["10.0.7.1/24", "2001:db8:7::1/64"]);
        network.route("0.0.0.0/0", "arm0", "10.0.7.254");
        network.route("::/0", "arm0", "2001:db8:7::254");
        for neighbor in ["10.0.7.2", "10.0.7.3", "10.0.7.254", "2001:db8:7::2", "2001:db8:7::254"] {
            network.neighbor("arm0", neighbor);
        }
        network
    }

    /// Whose devices are told to be what they are. Otherwise the data plane believes that they are not veth
    /// devices, which it treats in a way of their own.
    pub fn told_veth(self) -> Self {
        Self { told_veth: true, ..self }
    }

    /// Adds a route of the host.
    pub fn add_route(&mut self, to: &str, device: &'static str, router: &str) {
        self.route(to, device, router);
    }

    /// Gives a device another MTU.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn set_mtu(&mut self, name: &str, mtu: u16) {
        let device = self.devices.iter_mut().find(|device| device.name == name);
        device.unwrap_or_else(|| panic!("the network has no device {name}")).mtu = mtu;
    }

    /// Devices in the order of their ifindexes.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The device of this name.
    ///
    /// # Panics
    /// If there is none.
    pub fn find(&self, name: &str) -> &Device {
        let found = self.devices.iter().find(|device| device.name == name);
        found.unwrap_or_else(|| panic!("the network has no device {name}"))
    }

    /// Whether `address` is one of the host's own.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.devices.iter().any(|device| device.addresses.iter().any(|own| own.addr() == address))
    }

    /// Whether `address` is the broadcast address of a connected subnet.
    pub fn is_broadcast(&self, address: IpAddr) -> bool {
        self.devices.iter().any(|device| device.is_broadcast(address))
    }

    /// Whether `address` is the one that all routers of a connected IPv6 subnet have (RFC 4291 2.6.1).
    fn is_anycast(&self, address: IpAddr) -> bool {
        let own = self.devices.iter().flat_map(|device| &device.addresses);
        own.filter(|own| own.addr().is_ipv6()).any(|own| own.network() == address)
    }

    /// The way to `address`, which the host does not keep for itself.
    pub fn way(&self, address: IpAddr) -> Option<Way<'_>> {
        if self.is_local(address) || self.is_broadcast(address) || self.is_anycast(address) {
            return None;
        }
        let connected = self.devices.iter().flat_map(|device| {
            device.addresses.iter().map(move |own| (own.trunc(), Some((device.name, address))))
        });
        let routes = self.routes.iter().map(|route| (route.to, route.via));
        let covering = connected.chain(routes).filter(|(to, _)| to.contains(&address));
        let (device, hop) = covering.max_by_key(|(to, _)| to.prefix_len())?.1?;
        Some(self.hop(device, hop))
    }

    /// The way to a neighbour on this device.
    pub fn hop(&self, device: &str, neighbor: IpAddr) -> Way<'_> {
        let device = self.find(device);
        let resolved = self.neighbors.contains(&(device.name, neighbor));
        Way { device, neighbor, mac: resolved.then(|| mac(neighbor)) }
    }

    /// What the data plane is told about the host.
    pub fn host(&self) -> Host {
        let links = self.devices.iter().map(|device| {
            let link = Link {
                index: device.index,
                mac: device.mac(),
                mtu: u32::from(device.mtu),
                up: true,
                veth: self.told_veth,
                addresses: device.addresses.clone(),
            };
            (device.name.to_owned(), link)
        });
        Host { links: links.collect::<BTreeMap<_, _>>() }
    }

    /// Makes it real in the network namespace of this thread, which is empty.
    ///
    /// Nothing in the namespace sends by itself: the devices have no link-local addresses and their peers no
    /// IPv6 and no ARP, so the gateway counts nothing but the packets of the test.
    pub fn build(&self) -> Result<()> {
        set("ipv4/ip_forward", "1")?;
        set("ipv4/conf/all/rp_filter", "0")?;
        set("ipv6/conf/all/forwarding", "1")?;
        set("ipv6/conf/default/accept_ra", "0")?;
        batch(&self.links())?;
        for device in &self.devices {
            set(&format!("ipv6/conf/{}-peer/disable_ipv6", device.name), "1")?;
        }
        batch(&self.addresses())
    }

    fn links(&self) -> String {
        let mut script = String::from("link set lo up\n");
        for device in &self.devices {
            let Device { name, index, mtu, .. } = device;
            let mac = link_address(device.mac());
            let lines = [
                format!(
                    "link add {name} index {index} mtu {mtu} address {mac} type veth peer name {name}-peer mtu {mtu}"
                ),
                format!("link set {name} addrgenmode none"),
                format!("link set {name}-peer arp off"),
            ];
            script.extend(lines.map(|line| line + "\n"));
        }
        script
    }

    fn addresses(&self) -> String {
        let mut script = String::new();
        for device in &self.devices {
            let name = device.name;
            let _infallible = writeln!(script, "link set {name}-peer up\nlink set {name} up");
            for address in &device.addresses {
                let nodad = if address.addr().is_ipv6() { " nodad" } else { " broadcast +" };
                let _infallible = writeln!(script, "address add {address} dev {name}{nodad}");
            }
        }
        for Route { to, via } in &self.routes {
            let _infallible = match via {
                Some((device, router)) => writeln!(script, "route add {to} via {router} dev {device}"),
                None => writeln!(script, "route add unreachable {to}"),
            };
        }
        for (device, address) in &self.neighbors {
            let mac = link_address(mac(*address));
            let _infallible =
                writeln!(script, "neighbor add {address} lladdr {mac} dev {device} nud permanent");
        }
        script
    }

    fn device(&mut self, name: &'static str, index: u32, role: Option<Role>, mtu: u16, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| prefix(address)).collect();
        self.devices.push(Device { name, index, role, mtu, addresses });
    }

    fn route(&mut self, to: &str, device: &'static str, router: &str) {
        self.routes.push(Route { to: prefix(to), via: Some((device, ip(router))) });
    }

    fn unreachable(&mut self, to: &str) {
        self.routes.push(Route { to: prefix(to), via: None });
    }

    fn neighbor(&mut self, device: &'static str, address: &str) {
        self.neighbors.push((device, ip(address)));
    }
}

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is not a prefix"))
}

pub(crate) fn link_address(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Runs `ip` on one command a line.
pub(crate) fn batch(script: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip")?;
    ip.stdin.take().context("ip has no stdin")?.write_all(script.as_bytes())?;
    let done = ip.wait_with_output()?;
    ensure!(done.status.success(), "ip failed:\n{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn set(setting: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{setting}");
    fs::write(&path, value).with_context(|| format!("cannot set {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_route_of_the_host_wins() {
        let network = Network::standard();
        let way = |to| network.way(ip(to)).map(|way| (way.device.name, way.mac));
        assert_eq!(way("10.0.1.2"), Some(("in0", Some(mac(ip("10.0.1.2"))))));
        assert_eq!(way("10.0.2.9"), Some(("in0", Some(mac(ip("10.0.1.254"))))));
        assert_eq!(way("203.0.113.10"), Some(("out0", Some(mac(ip("192.0.2.254"))))));
        assert_eq!(way("203.0.113.200"), Some(("out1", Some(mac(ip("10.9.0.254"))))));
        assert_eq!(way("192.0.2.99"), Some(("out0", None)));
        assert_eq!(way("203.0.113.81"), None);
        assert_eq!(way("10.0.1.1"), None);
        assert_eq!(way("10.0.1.255"), None);
    }
}
