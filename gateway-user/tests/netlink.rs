//! Follows a real network: devices, addresses and neighbors of a namespace with a wire to another one.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gateway_lab::{Node, Sandbox, runnable};
use gateway_user::{
    control::{self, Base, Command, Entry, Handle, Peer, Store},
    dataplane::{Host, memory::Memory},
    model::{AttachMode, Interface, Role, Route, RouteKey, Selector, Snapshot, Target},
    netlink::{Neighbor, Netlink},
};
use tokio::{sync::mpsc, time::timeout};

/// A gateway `gw` (10.0.1.1) with its interface `in0`, and a host `peer` (10.0.1.2) on the same wire.
struct Wire {
    gw: Node,
    peer: Node,
    _sandbox: Sandbox,
}

impl Wire {
    fn new() -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let (gw, peer) = (sandbox.node("gw")?, sandbox.node("peer")?);
        sandbox.link((&gw, "in0"), (&peer, "eth0"))?;
        gw.ip(&["addr", "add", "10.0.1.1/24", "dev", "in0"])?;
        gw.ip(&["addr", "add", "2001:db8:1::1/64", "dev", "in0", "nodad"])?;
        peer.ip(&["addr", "add", "10.0.1.2/24", "dev", "eth0"])?;
        peer.ip(&["addr", "add", "2001:db8:1::2/64", "dev", "eth0", "nodad"])?;
        Ok(Self { gw, peer, _sandbox: sandbox })
    }

    fn neighbor(&self, address: &str) -> Result<String> {
        self.gw.ip(&["neigh", "show", "to", address, "dev", "in0"])
    }
}

/// What a script plays with while netlink follows the network.
struct Stage {
    /// What netlink tells ends up here.
    dataplane: Memory,
    control: Handle,
    /// What the packet path asks for.
    unresolved: mpsc::Sender<Neighbor>,
    /// As it was at the start.
    host: Host,
}

impl Stage {
    /// How often the data plane was told of a change.
    fn told(&self) -> usize {
        // The control plane tells of the host as it was at the start.
        self.dataplane.state().host_changes - 1
    }

    /// What it was told last.
    fn last(&self) -> Host {
        self.dataplane.state().host.clone()
    }

    fn neighbor(&self, address: &str) -> Result<Neighbor> {
        Ok(Neighbor { ifindex: ifindex(&self.host, "in0")?, address: address.parse()? })
    }

    async fn change(&self, command: Command) -> Result<()> {
        self.control.change(command, Peer { uid: 0, pid: 0 }).await?;
        Ok(())
    }
}

/// A gateway without routes whose only interface is `in0`.
fn gateway() -> Snapshot {
    let in0 = Interface { name: "in0".to_owned(), role: Role::Inside, mode: AttachMode::Auto };
    Snapshot { interfaces: BTreeMap::from([("in0".to_owned(), in0)]), ..Snapshot::default() }
}

/// Runs netlink in `node`, for a gateway of `snapshot`, while `script` plays; then the data plane is removed.
fn follow(
    node: &Node,
    snapshot: Snapshot,
    script: impl AsyncFnOnce(Stage) -> Result<()> + Send,
) -> Result<()> {
    node.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut netlink = Netlink::open().await?;
            let host = netlink.host().clone();
            let dataplane = Memory::default();
            let directory = tempfile::tempdir()?;
            let base = Base { snapshot: Arc::new(snapshot), fingerprint: String::new() };
            let (control, running) = control::start(
                Box::new(dataplane.clone()),
                host.clone(),
                base,
                Store::open(directory.path())?,
            )
            .await?;
            let (unresolved, receiver) = mpsc::channel(16);
            let stage = Stage { dataplane, control: control.clone(), unresolved, host };
            let played = tokio::select! {
                () = netlink.run(&control, receiver) => unreachable!("it runs until it is dropped"),
                played = timeout(Duration::from_secs(30), script(stage)) => played?,
            };
            netlink.release().await;
            running.stop(false).await?;
            played
        })
    })?
}

/// Waits, without holding up the task under test.
async fn until(what: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !ready()? {
        ensure!(begin.elapsed() < Duration::from_secs(10), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Runs many `ip` commands at once.
fn batch(node: &Node, lines: impl Iterator<Item = String>) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), lines.collect::<Vec<_>>().join("\n") + "\n")?;
    node.ip(&["-batch", &file.path().display().to_string()])?;
    Ok(())
}

async fn quiet() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

fn ifindex(host: &Host, device: &str) -> Result<u32> {
    Ok(host.links.get(device).with_context(|| format!("no device {device}"))?.index)
}

#[test]
fn devices_and_addresses_are_read_at_the_start() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let wire = Wire::new()?;
    let mac = wire.gw.mac("in0")?;
    follow(&wire.gw, Snapshot::default(), async |stage| {
        let link = &stage.host.links["in0"];
        let own = link.mac.map(|byte| format!("{byte:02x}")).join(":");
        ensure!(own == mac, "{own} is not {mac}");
        ensure!(link.up && link.mtu == 1500, "{link:?}");
        for address in ["10.0.1.1/24", "2001:db8:1::1/64"] {
            ensure!(link.addresses.contains(&address.parse()?), "no {address} in {link:?}");
        }
        Ok(())
    })
}

#[test]
fn a_namespace_without_devices_is_followed_too() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let sandbox = Sandbox::new()?;
    let empty = sandbox.node("empty")?;
    follow(&empty, Snapshot::default(), async |stage| {
        ensure!(stage.host.links.keys().eq(["lo"]), "{:?}", stage.host);
        empty.ip(&["link", "add", "late0", "type", "veth", "peer", "name", "late1"])?;
        until("the new device", || Ok(stage.last().links.contains_key("late0"))).await
    })
}

#[test]
fn changes_of_addresses_and_devices_reach_the_data_plane() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let wire = Wire::new()?;
    follow(&wire.gw, Snapshot::default(), async |stage| {
        wire.gw.ip(&["addr", "add", "10.0.9.1/24", "dev", "in0"])?;
        let added = "10.0.9.1/24".parse()?;
        until("the address", || {
            Ok(stage.last().links.get("in0").is_some_and(|link| link.addresses.contains(&added)))
        })
        .await?;
        wire.gw.ip(&["link", "set", "in0", "mtu", "1400"])?;
        until("the MTU", || Ok(stage.last().links["in0"].mtu == 1400)).await?;
        wire.gw.ip(&["link", "del", "in0"])?;
        until("the end of the device", || Ok(!stage.last().links.contains_key("in0"))).await?;
        wire.gw.ip(&["link", "add", "in0", "type", "veth", "peer", "name", "in1"])?;
        until("the new device", || Ok(stage.last().links.contains_key("in0"))).await?;
        ensure!(ifindex(&stage.last(), "in0")? != ifindex(&stage.host, "in0")?, "it is another device");
        Ok(())
    })
}

#[test]
fn a_burst_of_changes_is_told_together() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let wire = Wire::new()?;
    follow(&wire.gw, gateway(), async |stage| {
        batch(&wire.gw, (1..=250).map(|last| format!("addr add 10.0.8.{last}/32 dev in0")))?;
        until("all addresses", || {
            Ok(stage.last().links.get("in0").is_some_and(|link| link.addresses.len() >= 250))
        })
        .await?;
        ensure!(stage.told() <= 10, "told {} times", stage.told());
        Ok(())
    })
}

#[test]
fn a_route_that_changes_moves_next_hops_though_the_host_is_the_same() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let wire = Wire::new()?;
    follow(&wire.gw, Snapshot::default(), async |stage| {
        wire.gw.ip(&["route", "add", "192.0.2.0/24", "via", "10.0.1.2"])?;
        until("the route", || Ok(stage.told() == 1)).await?;
        ensure!(stage.last() == stage.host, "the host has not changed");
        wire.gw.ip(&["rule", "add", "from", "10.0.7.0/24", "lookup", "100"])?;
        until("the rule", || Ok(stage.told() == 2)).await
    })
}

#[test]
fn a_neighbor_with_another_mac_address_moves_next_hops_and_verification_does_not() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let wire = Wire::new()?;
    let neighbor = |state: &str, mac: &str| {
        wire.gw.ip(&["neigh", "replace", "10.0.1.9", "lladdr", mac, "dev", "in0", "nud", state])
    };
    follow(&wire.gw, gateway(), async |stage| {
        neighbor("reachable", "02:00:00:00:00:0a")?;
        neighbor("stale", "02:00:00:00:00:0a")?;
        neighbor("delay", "02:00:00:00:00:0a")?;
        neighbor("reachable", "02:00:00:00:00:0a")?;
        quiet().await;
        ensure!(stage.told() == 0, "told {} times", stage.told());
        neighbor("reachable", "02:00:00:00:00:0b")?;
        until("the other address", || Ok(stage.told() == 1)).await
    })
}

#[test]
fn what_the_packet_path_finds_unresolved_becomes_reachable() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let wire = Wire::new()?;
    follow(&wire.gw, gateway(), async |stage| {
        for address in ["10.0.1.2", "2001:db8:1::2"] {
            ensure!(wire.neighbor(address)?.is_empty(), "{address} is known already");
            let neighbor = stage.neighbor(address)?;
            until("the peer's MAC address", || {
                stage.unresolved.try_send(neighbor)?;
                Ok(wire.neighbor(address)?.contains("REACHABLE"))
            })
            .await?;
        }
        Ok(())
    })
}

#[test]
fn neighbors_on_other_interfaces_are_not_resolved() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let wire = Wire::new()?;
    // No state in force: `in0` is not an interface of the gateway.
    follow(&wire.gw, Snapshot::default(), async |stage| {
        stage.unresolved.send(stage.neighbor("10.0.1.2")?).await?;
        quiet().await;
        ensure!(wire.neighbor("10.0.1.2")?.is_empty(), "it was resolved");
        Ok(())
    })
}

#[test]
fn routers_are_kept_resolved_and_released() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let wire = Wire::new()?;
    wire.peer.ip(&["addr", "add", "10.0.1.3/24", "dev", "eth0"])?;
    wire.gw.ip(&["route", "add", "default", "via", "10.0.1.2"])?;
    let prefix = "203.0.113.0/24".parse()?;
    let key = RouteKey { prefix, selector: Selector::default() };
    let target = Target::Gateway { address: "10.0.1.3".parse()?, dev: None };
    let route = Route { target, log: false, comment: None };
    let is_managed = |address: &str| -> Result<bool> {
        let shown = wire.neighbor(address)?;
        Ok(shown.contains("REACHABLE") && shown.contains("managed"))
    };
    follow(&wire.gw, gateway(), async |stage| {
        until("the default router", || is_managed("10.0.1.2")).await?;
        stage.change(Command::RouteAdd(Entry { table: "main".to_owned(), key, route })).await?;
        until("the router of a target", || is_managed("10.0.1.3")).await?;

        wire.peer.ip(&["addr", "add", "10.0.1.4/24", "dev", "eth0"])?;
        wire.gw.ip(&["route", "add", "192.0.2.0/24", "via", "10.0.1.4"])?;
        until("the router of a new route", || is_managed("10.0.1.4")).await?;

        stage.change(Command::RouteDel { table: "main".to_owned(), key }).await?;
        until("the router that is not needed any more", || {
            Ok(!wire.neighbor("10.0.1.3")?.contains("managed"))
        })
        .await?;
        ensure!(is_managed("10.0.1.2")? && is_managed("10.0.1.4")?, "the others are still needed");
        Ok(())
    })?;
    let left = wire.gw.ip(&["neigh", "show", "dev", "in0"])?;
    ensure!(!left.contains("managed"), "{left}");
    Ok(())
}

#[test]
fn entries_of_operators_stay_as_they_are() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let wire = Wire::new()?;
    let mac = "02:00:00:00:00:0a";
    wire.gw.ip(&["neigh", "add", "10.0.1.2", "lladdr", mac, "dev", "in0", "nud", "permanent"])?;
    wire.gw.ip(&["route", "add", "default", "via", "10.0.1.2"])?;
    follow(&wire.gw, gateway(), async |stage| {
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        stage.unresolved.send(stage.neighbor("10.0.1.2")?).await?;
        quiet().await;
        Ok(())
    })?;
    let shown = wire.neighbor("10.0.1.2")?;
    ensure!(shown.contains(mac) && shown.contains("PERMANENT"), "{shown}");
    Ok(())
}

#[test]
fn a_host_that_moved_silently_is_found_again() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let wire = Wire::new()?;
    // What was once the peer's address; XDP would go on sending there.
    wire.gw.ip(&["neigh", "add", "10.0.1.2", "lladdr", "02:00:00:00:00:0a", "dev", "in0", "nud", "stale"])?;
    wire.gw.sysctl("net.ipv4.neigh.in0.delay_first_probe_time", "1")?;
    wire.gw.sysctl("net.ipv4.neigh.in0.ucast_solicit", "1")?;
    let mac = wire.peer.mac("eth0")?;
    follow(&wire.gw, gateway(), async |stage| {
        // Verified though nobody asked; it does not answer, and sessions are sent to look again ...
        until("the data plane to be told", || Ok(stage.told() > 0)).await?;
        // ... and so they ask for it.
        let neighbor = stage.neighbor("10.0.1.2")?;
        until("the peer's own MAC address", || {
            stage.unresolved.try_send(neighbor)?;
            Ok(wire.neighbor("10.0.1.2")?.contains(&mac))
        })
        .await
    })
}

#[test]
fn nothing_is_missed_when_events_overflow() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let wire = Wire::new()?;
    follow(&wire.gw, gateway(), async |stage| {
        // The runtime has one thread and this blocks it: 40,000 events are more than the buffer holds.
        batch(
            &wire.gw,
            (0..40_000_u32).map(|number| {
                let [_, _, high, low] = number.to_be_bytes();
                format!("route add 10.100.{high}.{low} via 10.0.1.2")
            }),
        )?;
        wire.gw.ip(&["addr", "add", "10.0.9.1/24", "dev", "in0"])?;
        let added = "10.0.9.1/24".parse()?;
        until("the address", || {
            Ok(stage.last().links.get("in0").is_some_and(|link| link.addresses.contains(&added)))
        })
        .await
    })
}
