//! Clients, the gateway and the rest of the world, each a namespace.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::MapInfo,
    programs::{ProgramInfo, loaded_programs},
};
use gateway_lab::{Gatewayd, Node, Sandbox};
use nix::net::if_::if_nametoindex;

use crate::frame::CLIENTS;

/// Address of the pool that the gateway translates to.
pub(crate) const POOL: &str = "198.51.100.10";

/// A client that the gateway's host knows and that has no flows of the pool.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 250);

/// The gateway's own address, which nft translates to.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Device of the clients and of the world.
pub(crate) const DEVICE: &str = "eth0";

/// The network of the benchmarks:
///
/// ```text
/// clients 10.0.1.2 .. ── inside  10.0.1.1/24 ┐
///                                            ├ gateway
/// world 198.51.100.1 ── outside 198.51.100.2 ┘
/// ```
///
/// The world routes nothing: what arrives there is counted and dropped.
pub(crate) struct Network {
    /// Where packets come from.
    pub(crate) clients: Node,
    /// What is measured.
    pub(crate) gateway: Node,
    /// Where they should arrive.
    pub(crate) world: Node,
    /// The gateway's device towards the clients. No other device of this machine has its name, because the
    /// kernel names the thread that polls it after it.
    pub(crate) inside: String,
    /// The gateway's device towards the world.
    pub(crate) outside: String,
    // Dropped last, and everything with it.
    sandbox: Sandbox,
}

impl Network {
    /// Makes the network. It forwards and does nothing else yet.
    pub(crate) fn new() -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let network = Self {
            clients: sandbox.node("clients")?,
            gateway: sandbox.node("gateway")?,
            world: sandbox.node("world")?,
            inside: format!("bi{}", process::id()),
            outside: format!("bo{}", process::id()),
            sandbox,
        };
        let Self { clients, gateway, world, inside, outside, sandbox } = &network;
        sandbox.link((clients, DEVICE), (gateway, inside))?;
        sandbox.link((gateway, outside), (world, DEVICE))?;
        for (node, device, address) in [
            (clients, DEVICE, "10.0.1.2/24"),
            (gateway, inside.as_str(), "10.0.1.1/24"),
            (gateway, outside.as_str(), "198.51.100.2/24"),
            (world, DEVICE, "198.51.100.1/24"),
        ] {
            node.ip(&["address", "add", address, "dev", device])?;
        }
        gateway.ip(&["route", "add", "0.0.0.0/0", "via", "198.51.100.1"])?;
        gateway.sysctl("net.ipv4.ip_forward", "1")?;
        // Makes both sides of the link to the world know each other.
        gateway.ok(&["ping", "-q", "-c", "1", "-W", "2", "198.51.100.1"])?;
        // As in a network that has been there for a while. What the gateway does for a client that the host's
        // neighbour table does not have yet is for its first packets only.
        let mac = clients.mac(DEVICE)?;
        for client in 0..CLIENTS {
            let address = format!("10.0.1.{}", 2 + client);
            gateway.ip(&["neighbour", "replace", &address, "lladdr", &mac, "dev", inside])?;
        }
        gateway.ip(&["neighbour", "replace", &HOST.to_string(), "lladdr", &mac, "dev", inside])?;
        Ok(network)
    }

    /// A daemon for this network that does not run yet. Capacities and idle times are the defaults, unless `more`
    /// of the configuration says otherwise.
    pub(crate) fn gatewayd(&self, more: &str) -> Result<Gatewayd> {
        let Self { inside, outside, .. } = self;
        let config = format!(
            r#"
[gateway]
name = "bench"
state = "active"
[[interface]]
name = "{inside}"
role = "inside"
[[interface]]
name = "{outside}"
role = "outside"
[[pool]]
name = "nat"
addresses = ["{POOL}"]
per_destination = {{ rate = 0, concurrent = 0 }}
[[table]]
name = "main"
routes = [{{ to = "0.0.0.0/0", via = "pool nat" }}]
{more}"#
        );
        Gatewayd::new(&self.sandbox, &self.gateway, &config)
    }
}

/// Ifindex of a device.
pub(crate) fn ifindex(node: &Node, device: &str) -> Result<u32> {
    let index = node.enter(|| if_nametoindex(device))?;
    index.with_context(|| format!("{} has no device {device}", node.name()))
}

/// MAC address of a device.
pub(crate) fn mac(node: &Node, device: &str) -> Result<[u8; 6]> {
    let text = node.mac(device)?;
    let octets: Result<Vec<u8>, _> = text.split(':').map(|word| u8::from_str_radix(word, 16)).collect();
    octets?.try_into().ok().with_context(|| format!("{text} is not a MAC address"))
}

/// The programs that a running daemon has loaded: those that use the maps it has pinned.
pub(crate) fn programs_of(daemon: &Gatewayd) -> Result<Vec<ProgramInfo>> {
    let config: PathBuf = daemon.pin_dir().join("maps/CONFIG");
    let config = MapInfo::from_pin(&config).with_context(|| format!("cannot open {}", config.display()))?;
    // Programs of others may end while they are listed.
    let programs = loaded_programs().filter_map(Result::ok);
    let of_daemon = |program: &ProgramInfo| {
        program.map_ids().ok().flatten().is_some_and(|maps| maps.contains(&config.id()))
    };
    Ok(programs.filter(of_daemon).collect())
}

/// Opens another build of the gateway's object, on the maps that a running daemon has pinned.
pub(crate) fn load_on_maps_of(daemon: &Gatewayd, object: &Path) -> Result<Ebpf> {
    let pins = daemon.pin_dir().join("maps");
    let entries = fs::read_dir(&pins).with_context(|| format!("cannot read {}", pins.display()))?;
    let pins: Vec<(String, PathBuf)> =
        entries.flatten().map(|pin| (pin.file_name().to_string_lossy().into_owned(), pin.path())).collect();
    let mut loader = EbpfLoader::new();
    for (name, pin) in &pins {
        loader.map_pin_path(name, pin);
    }
    loader.load_file(object).with_context(|| format!("cannot load {}", object.display()))
}

/// A number that the kernel tells in a file of the namespace.
pub(crate) fn number_in(node: &Node, path: &str) -> Result<u64> {
    let text = node.enter(|| fs::read_to_string(path))?.with_context(|| format!("cannot read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} holds {text}"))
}
