//! The control plane over a data plane in memory.

use std::{collections::BTreeMap, net::IpAddr, path::Path, sync::Mutex, time::Duration};

use ipnet::IpNet;
use proptest::{collection::vec, prelude::*, sample::select};
use rstest::rstest;

use super::*;
use crate::{
    dataplane::{Link, Observe, Sweeper, Swept, memory::Memory},
    health::{HealthState, HostHealth},
    model::{Fail, Interface, Pool, PortRange, Proxy, TableKind, Target, validate, words},
    priority,
    refused::Refused,
};

const PEER: Peer = Peer { uid: 1000, pid: 42 };

/// A control plane, its data plane and its directory.
struct Rig {
    handle: Handle,
    control: Control,
    memory: Memory,
}

impl Rig {
    async fn start(directory: &Path, base: Base) -> anyhow::Result<Self> {
        let memory = Memory::default();
        let store = Store::open(directory)?;
        let (handle, control) = start(Box::new(memory.clone()), host(), base, store).await?;
        Ok(Self { handle, control, memory })
    }

    async fn run(&self, command: &str) -> Result<Change, ApiError> {
        self.handle.change(parse(command), PEER).await
    }

    fn fail_next(&self, answers: &[Option<&str>]) {
        self.memory.state().script = answers.iter().map(|answer| answer.map(str::to_owned)).collect();
    }

    fn applied(&self) -> Snapshot {
        self.memory.state().applied.clone().expect("a state in force")
    }

    async fn stop(self) {
        self.control.stop(false).await.expect("stops");
    }
}

fn host() -> Host {
    let link = |index| Link {
        index,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        up: true,
        veth: false,
        addresses: Vec::new(),
    };
    Host { links: [("eth0".to_owned(), link(2)), ("eth1".to_owned(), link(3))].into() }
}

fn base() -> Base {
    let mut snapshot = Snapshot::default();
    for command in [
        "interface eth1 inside",
        "interface eth0 outside",
        "pool nat 198.51.100.10 198.51.100.11",
        "pool spare 198.51.100.20",
        "pool rescue 198.51.100.21",
        "proxy standby 10.0.1.9",
        "proxy squid 10.0.1.2,10.0.1.3 proxy standby",
        "proxy alone 10.0.1.4 pool rescue",
        "table proxied",
        "route proxied 198.18.0.0/15 via proxy squid",
        "route main 203.0.113.0/24 via pool nat",
        "table servers",
        "bind servers 10.0.2.0/24 iif eth1",
        "route servers 192.0.2.0/24 via gateway 10.9.0.1 dev eth0",
    ] {
        snapshot = parse(command).change(&snapshot).expect("a good base");
    }
    Base { snapshot: Arc::new(snapshot), fingerprint: "one".to_owned() }
}

/// A command in a short form for tests: verbs are `add` unless they say otherwise.
fn parse(text: &str) -> Command {
    let words: Vec<_> = text.split_whitespace().collect();
    let name = |at: usize| words[at].to_owned();
    let entry = || {
        let (key, route) = words::parse_route(&words[2..]).expect("a route");
        Entry { table: name(1), key, route }
    };
    let addresses =
        |from: usize| words[from..].iter().map(|word| word.parse().expect("an address")).collect();
    let hosts = || words[2].split(',').map(|word| word.parse().expect("a host")).collect();
    let way = |from: usize| match &words[from..] {
        [] => Fail::Closed,
        words => words.join(" ").parse().expect("a way to fail"),
    };
    let pool = |ports| Pool::new(name(1), addresses(2), ports);
    match words[0] {
        "interface" => Command::InterfaceAdd(Interface {
            name: name(1),
            role: words[2].parse().expect("a role"),
            mode: crate::model::AttachMode::Auto,
        }),
        "interface-del" => Command::InterfaceDel { name: name(1) },
        "pool" => Command::PoolAdd(pool(PortRange::POOL)),
        "pool-low" => Command::PoolAdd(pool(PortRange { low: 80, high: 90 })),
        "pool-set" => Command::PoolSet {
            name: name(1),
            addresses: Some(addresses(2)),
            ports: None,
            mapping: None,
            mss: None,
            refuse: None,
            limits: crate::model::LimitChange::default(),
        },
        "pool-drain" => Command::PoolDrain { name: name(1), addresses: addresses(2) },
        "pool-undrain" => Command::PoolUndrain { name: name(1), addresses: addresses(2) },
        "pool-del" => Command::PoolDel { name: name(1) },
        "proxy" => {
            let proxy = Proxy::new(name(1), hosts());
            Command::ProxyAdd(Proxy { fail: way(3), ..proxy })
        }
        "proxy-set" => Command::ProxySet {
            name: name(1),
            changes: ProxyChanges { hosts: Some(hosts()), ..ProxyChanges::default() },
        },
        "proxy-fail" => Command::ProxySet {
            name: name(1),
            changes: ProxyChanges { fail: Some(way(2)), ..ProxyChanges::default() },
        },
        "proxy-drain" => Command::ProxyDrain { name: name(1), hosts: addresses(2) },
        "proxy-undrain" => Command::ProxyUndrain { name: name(1), hosts: addresses(2) },
        "proxy-del" => Command::ProxyDel { name: name(1) },
        "table" => Command::TableAdd { name: name(1), kind: TableKind::Egress },
        "table-del" => Command::TableDel { name: name(1) },
        "bind" | "unbind" => {
            let binding = words::parse_binding(&words[2..].join(" ")).expect("a binding");
            if words[0] == "bind" {
                Command::TableBind { name: name(1), binding }
            } else {
                Command::TableUnbind { name: name(1), binding }
            }
        }
        "route" => Command::RouteAdd(entry()),
        "replace" => Command::RouteReplace(entry()),
        "route-del" => Command::RouteDel { table: name(1), key: entry().key },
        "flush" => Command::RouteFlush { table: name(1) },
        "activate" => Command::Activate,
        "deactivate" => Command::Deactivate,
        other => panic!("{other} is not a command of these tests"),
    }
}

#[tokio::test]
async fn a_change_is_in_force_and_published_when_it_returns() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    assert_eq!((rig.handle.revision(), rig.handle.current().config_differs), (1, false));
    let change = rig.run("route main 192.0.2.0/24 via pool nat").await.expect("accepted");
    assert_eq!(change, Change::new(2, true));
    assert_eq!(rig.applied(), *rig.handle.snapshot());
    assert_eq!(rig.applied().tables["main"].routes.len(), 2);
    assert!(rig.handle.current().config_differs);
    rig.stop().await;
}

#[tokio::test]
async fn what_is_so_already_moves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    let applies = rig.memory.state().applies;
    for command in ["deactivate", "replace main 203.0.113.0/24 via pool nat"] {
        assert_eq!(rig.run(command).await.expect("accepted"), Change::new(1, false));
    }
    assert_eq!(rig.memory.state().applies, applies);
    rig.stop().await;
}

#[rstest]
#[case(
    "route main 203.0.113.0/24 via direct",
    "route.exists",
    "route 203.0.113.0/24 exists already in table `main`, via pool nat"
)]
#[case("route nowhere 203.0.113.0/24 via direct", "table.not_found", "table `nowhere` does not exist")]
#[case("route main 192.0.2.0/24 via pool nta", "route.invalid", "pool `nta` does not exist")]
#[case("route main 2001:db8::/32 via pool nat", "route.invalid", "pool `nat` has no IPv6 address")]
#[case("route main 192.0.2.0/24 via gateway 2001:db8::1", "route.invalid", "router 2001:db8::1 is IPv6")]
#[case(
    "route main 192.0.2.0/24 via gateway 10.0.0.1 dev eth7",
    "route.invalid",
    "interface `eth7` is not one of the gateway's"
)]
#[case(
    "route-del main 192.0.2.0/24 via direct",
    "route.not_found",
    "route 192.0.2.0/24 does not exist in table `main`"
)]
#[case(
    "route-del main 203.0.113.0/24 via direct proto tcp",
    "route.not_found",
    "route 203.0.113.0/24 proto tcp does not exist"
)]
#[case("flush nowhere", "table.not_found", "table `nowhere` does not exist")]
#[case("table servers", "table.exists", "table `servers` exists already")]
#[case("table bad/name", "table.invalid", "table name `bad/name` has a character")]
#[case("table-del main", "table.in_use", "table `main` cannot be deleted")]
#[case(
    "table-del servers",
    "table.in_use",
    "table `servers` is in use by the binding from 10.0.2.0/24 iif eth1"
)]
#[case("table-del nowhere", "table.not_found", "table `nowhere` does not exist")]
#[case("bind main 10.0.2.0/24 iif eth1", "binding.exists", "is bound to table `servers` already")]
#[case("bind main 10.0.3.0/24 iif eth0", "binding.invalid", "interface `eth0` faces the outside")]
#[case("bind main 10.0.3.0/24 iif eth7", "binding.invalid", "interface `eth7` is not one of the gateway's")]
#[case("unbind main 10.0.3.0/24", "binding.not_found", "source 10.0.3.0/24 is not bound to table `main`")]
#[case("pool nat 198.51.100.30", "pool.exists", "pool `nat` exists already")]
#[case("pool new", "pool.invalid", "pool `new` has no address")]
#[case("pool new 198.51.100.11", "pool.invalid", "address 198.51.100.11 belongs to pool `nat` already")]
#[case("pool new 198.51.100.30 198.51.100.30", "pool.invalid", "address 198.51.100.30 appears twice")]
#[case("pool new 224.0.0.1", "pool.invalid", "`224.0.0.1` is a multicast address")]
#[case("pool new 127.0.0.1", "pool.invalid", "`127.0.0.1` is a loopback address")]
#[case("pool-low new 198.51.100.30", "pool.invalid", "port 80 is below 1024")]
#[case("pool-drain new 198.51.100.30", "pool.not_found", "pool `new` does not exist")]
#[case("pool-drain nat 198.51.100.20", "pool.not_found", "address 198.51.100.20 is not in pool `nat`")]
#[case("pool-undrain nat 198.51.100.20", "pool.not_found", "address 198.51.100.20 is not in pool `nat`")]
#[case("pool-set new 198.51.100.30", "pool.not_found", "pool `new` does not exist")]
#[case(
    "pool-set nat 2001:db8::1",
    "route.invalid",
    "table main, route 203.0.113.0/24: pool `nat` has no IPv4 address"
)]
#[case("pool-del nat", "pool.in_use", "pool `nat` is in use by route 203.0.113.0/24 of table `main`")]
#[case("pool-del nowhere", "pool.not_found", "pool `nowhere` does not exist")]
#[case("pool-del rescue", "pool.in_use", "pool `rescue` is in use by proxy `alone`")]
#[case("proxy squid 10.0.1.7", "proxy.exists", "proxy `squid` exists already")]
#[case("proxy new 10.0.1.2", "proxy.invalid", "host 10.0.1.2 belongs to proxy `squid` already")]
#[case("proxy new 198.51.100.10", "proxy.invalid", "host 198.51.100.10 is an address of pool `nat`")]
#[case("proxy new 10.0.1.7 proxy squid", "proxy.invalid", "proxy `squid` cannot stand in")]
#[case("proxy-fail new closed", "proxy.not_found", "proxy `new` does not exist")]
#[case("proxy-fail standby proxy squid", "proxy.invalid", "proxy `standby` cannot stand in")]
#[case("proxy-fail squid pool new", "proxy.invalid", "pool `new` does not exist")]
#[case("proxy-set squid 10.0.1.9", "proxy.invalid", "host 10.0.1.9 belongs to proxy `standby` already")]
#[case("pool new 10.0.1.2", "proxy.invalid", "proxy squid: host 10.0.1.2 is an address of pool `new`")]
#[case("proxy-drain squid 10.0.1.9", "proxy.not_found", "host 10.0.1.9 is not in proxy `squid`")]
#[case("proxy-undrain new 10.0.1.9", "proxy.not_found", "proxy `new` does not exist")]
#[case(
    "proxy-del squid",
    "proxy.in_use",
    "proxy `squid` is in use by route 198.18.0.0/15 of table `proxied`"
)]
#[case("proxy-del standby", "proxy.in_use", "proxy `standby` is in use by proxy `squid`")]
#[case("proxy-del nowhere", "proxy.not_found", "proxy `nowhere` does not exist")]
#[case("route main 192.0.2.0/24 via proxy squit", "route.invalid", "proxy `squit` does not exist")]
#[case("interface eth0 inside", "interface.exists", "interface `eth0` exists already")]
#[case(
    "interface a-name-of-16byte inside",
    "interface.invalid",
    "`a-name-of-16byte` is longer than 15 bytes"
)]
#[case(
    "interface-del eth1",
    "interface.in_use",
    "interface `eth1` is in use by the binding of table `servers`"
)]
#[case(
    "interface-del eth0",
    "interface.in_use",
    "interface `eth0` is in use by route 192.0.2.0/24 of table `servers`"
)]
#[case("interface-del eth7", "interface.not_found", "interface `eth7` does not exist")]
#[tokio::test]
async fn a_refused_command_names_the_value_and_changes_nothing(
    #[case] command: &str,
    #[case] code: &str,
    #[case] message: &str,
) {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    let before = std::fs::read(directory.path().join("state.json")).expect("saved");
    let error = rig.run(command).await.expect_err("refused");
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(message), "{error}");
    assert!(error.hint.is_some(), "{error:?} has no remedy");
    assert_eq!(rig.applied(), *base().snapshot);
    assert_eq!(*rig.handle.snapshot(), *base().snapshot);
    assert_eq!((rig.handle.revision(), rig.handle.last_apply_success()), (1, true));
    assert_eq!(std::fs::read(directory.path().join("state.json")).expect("saved"), before);
    rig.stop().await;
}

#[tokio::test]
async fn a_proxy_is_changed_where_it_is_named_and_drained_as_long_as_it_has_the_host() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    let squid = || rig.applied().proxies["squid"].clone();
    let address = |last| IpAddr::from([10, 0, 1, last]);
    rig.run("proxy-drain squid 10.0.1.2 10.0.1.3").await.expect("accepted");
    rig.run("proxy-undrain squid 10.0.1.3").await.expect("accepted");
    assert_eq!(squid().drained, [address(2)].into());
    rig.run("proxy-set squid 10.0.1.2,10.0.1.5").await.expect("accepted");
    assert_eq!((squid().drained, squid().fail), ([address(2)].into(), Fail::Proxy("standby".to_owned())));
    rig.run("proxy-set squid 10.0.1.5").await.expect("accepted");
    assert_eq!(squid().drained, [].into());
    rig.run("proxy-fail squid direct").await.expect("accepted");
    for command in ["flush proxied", "proxy-del squid", "proxy-del standby"] {
        rig.run(command).await.expect("accepted");
    }
    assert_eq!(rig.applied().proxies.len(), 1);
    rig.stop().await;
}

#[tokio::test]
async fn what_is_known_of_hosts_is_told_and_shown_and_what_is_not_is_not_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    let place = |last: u8| ("squid".to_owned(), IpAddr::from([10, 0, 1, last]));
    let of = |state| HostHealth { state, since: std::time::Instant::now(), error: None };
    let health = Health::from([(place(2), of(HealthState::Down)), (place(3), of(HealthState::Unknown))]);
    rig.handle.health_changed(health.clone()).await;
    rig.run("activate").await.expect("accepted, behind the health");
    assert_eq!(rig.memory.state().health, BTreeMap::from([(place(2), false)]));
    assert_eq!(*rig.handle.health(), health);
    rig.stop().await;
}

#[tokio::test]
async fn a_change_that_the_data_plane_refuses_is_rolled_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    rig.fail_next(&[Some("map ROUTES_V4: no space")]);
    let error = rig.run("activate").await.expect_err("refused");
    assert_eq!(error.code, "apply.rolled_back");
    assert!(error.message.contains("map ROUTES_V4: no space"));
    assert_eq!(rig.applied(), *base().snapshot);
    assert_eq!((rig.handle.revision(), rig.handle.last_apply_success()), (1, false));
    let change = rig.run("activate").await.expect("accepted");
    assert_eq!((change.revision, rig.handle.last_apply_success()), (2, true));
    rig.stop().await;
}

#[tokio::test]
async fn a_change_that_cannot_be_saved_is_rolled_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    // A directory of that name cannot be opened for writing, not even by root.
    let obstacle = directory.path().join("state.json.tmp");
    std::fs::create_dir(&obstacle).expect("in the way");
    let error = rig.run("activate").await.expect_err("refused");
    assert_eq!(error.code, "apply.rolled_back");
    assert!(error.message.contains("state.json"), "{error}");
    assert_eq!(rig.applied(), *base().snapshot);
    assert_eq!((rig.handle.revision(), rig.handle.last_apply_success()), (1, false));

    rig.fail_next(&[None, Some("stuck")]);
    let error = rig.run("activate").await.expect_err("refused");
    assert_eq!(error.code, "state.internal", "{error}");
    assert!(rig.handle.snapshot().active, "what is published is what the data plane does");
    assert_eq!(rig.applied(), *rig.handle.snapshot());
    assert!(!rig.handle.last_apply_success());

    std::fs::remove_dir(&obstacle).expect("removed");
    rig.run("pool new 198.51.100.30").await.expect("accepted");
    rig.stop().await;
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    assert!(rig.handle.snapshot().active);
    rig.stop().await;
}

#[tokio::test]
async fn changes_are_there_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    rig.run("route main 192.0.2.0/24 via pool spare proto udp dport 53 comment dns").await.expect("accepted");
    rig.run("activate").await.expect("accepted");
    let snapshot = rig.handle.snapshot();
    rig.stop().await;
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    assert_eq!(*rig.handle.snapshot(), *snapshot);
    assert_eq!(rig.applied(), *snapshot);
    let current = rig.handle.current();
    assert_eq!((current.revision, current.config_differs, current.config_changed), (3, true, false));
    rig.stop().await;
}

#[tokio::test]
async fn changes_win_over_an_edited_file_until_they_are_taken_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    rig.run("activate").await.expect("accepted");
    rig.stop().await;

    let mut edited = (*base().snapshot).clone();
    edited.name = "gw-2".to_owned();
    edited.capacity.sessions = 4096;
    edited.pools.remove("spare");
    let edited = Base { snapshot: Arc::new(edited), fingerprint: "two".to_owned() };
    let rig = Rig::start(directory.path(), edited.clone()).await.expect("starts");
    let current = rig.handle.current();
    assert!(current.config_differs && current.config_changed);
    assert!(current.snapshot.active && current.snapshot.pools.contains_key("spare"));
    assert_eq!(current.snapshot.name, "gw-2", "what gwctl cannot change comes from the file");
    assert_eq!(current.snapshot.capacity.sessions, 4096);
    rig.run("deactivate").await.expect("accepted");
    rig.run("pool-del spare").await.expect("accepted");
    let current = rig.handle.current();
    assert!(!current.config_differs && !current.config_changed);
    rig.stop().await;

    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    assert_eq!(*rig.handle.snapshot(), *base().snapshot, "with nothing changed, the file decides");
    assert_eq!(rig.handle.revision(), 5, "an edited file is a change too");
    rig.stop().await;
}

#[tokio::test]
async fn run_time_changes_that_no_longer_fit_are_refused_at_the_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    rig.run("route main 192.0.2.0/24 via direct").await.expect("accepted");
    rig.stop().await;
    let mut small = (*base().snapshot).clone();
    small.capacity.routes = 1;
    let small = Base { snapshot: Arc::new(small), fingerprint: "two".to_owned() };
    let error = Rig::start(directory.path(), small).await.err().expect("refused");
    let refused = error.downcast_ref::<Refused>().expect("a refusal");
    assert!(refused.message.contains("table `main` would have more than 1 routes"), "{refused}");
}

#[tokio::test]
async fn the_host_is_passed_on_and_the_sweep_runs() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    assert_eq!(rig.memory.state().host_changes, 1);
    rig.handle.host_changed(Host::default()).await;
    rig.run("activate").await.expect("accepted");
    assert_eq!(rig.memory.state().host, Host::default());
    tokio::time::timeout(Duration::from_secs(5), async {
        while rig.memory.state().sweeps < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("sweeps");
    rig.stop().await;
}

#[tokio::test]
async fn stopping_keeps_the_data_plane_unless_it_is_to_be_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    for remove in [false, true] {
        let rig = Rig::start(directory.path(), base()).await.expect("starts");
        let Rig { handle, control, memory } = rig;
        control.stop(remove).await.expect("stops");
        assert_eq!(memory.state().removed, remove);
        let error = handle.change(Command::Activate, PEER).await.expect_err("refused");
        assert_eq!(error.message, "the daemon is stopping");
    }
}

#[tokio::test]
async fn a_dead_data_plane_ends_the_control_plane() {
    struct Panics;
    impl Sweeper for Panics {
        fn recount(&self) {}

        fn sweep(&self, _: bool) -> anyhow::Result<Swept> {
            panic!("this test's data plane panics in its first sweep")
        }
    }
    struct Dead(Memory);
    impl Dataplane for Dead {
        fn apply(&mut self, from: Option<&Snapshot>, to: &Snapshot) -> anyhow::Result<()> {
            self.0.apply(from, to)
        }
        fn host_changed(&mut self, host: &Host) -> anyhow::Result<()> {
            self.0.host_changed(host)
        }
        fn health_changed(&mut self, up: &BTreeMap<(String, IpAddr), bool>) -> anyhow::Result<()> {
            self.0.health_changed(up)
        }
        fn remove(&mut self) -> anyhow::Result<()> {
            self.0.remove()
        }
        fn sweeper(&self) -> Arc<dyn Sweeper> {
            Arc::new(Panics)
        }
        fn observe(&self) -> Arc<dyn Observe> {
            self.0.observe()
        }
    }
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(directory.path()).expect("a store");
    let dead = Box::new(Dead(Memory::default()));
    let (_handle, mut control) = start(dead, host(), base(), store).await.expect("starts");
    let error = tokio::time::timeout(Duration::from_secs(5), control.failed()).await.expect("fails");
    assert!(error.to_string().contains("the data plane failed"));
}

/// A data plane that notes the nice values with which it is told of changes.
#[derive(Clone, Default)]
struct Noting {
    memory: Memory,
    nice: Arc<Mutex<Vec<i32>>>,
}

impl Dataplane for Noting {
    fn apply(&mut self, from: Option<&Snapshot>, to: &Snapshot) -> anyhow::Result<()> {
        // SAFETY: the call takes numbers only; 0 is the calling thread.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        self.nice.lock().expect("a lock").push(nice);
        self.memory.apply(from, to)
    }
    fn host_changed(&mut self, host: &Host) -> anyhow::Result<()> {
        self.memory.host_changed(host)
    }
    fn health_changed(&mut self, up: &BTreeMap<(String, IpAddr), bool>) -> anyhow::Result<()> {
        self.memory.health_changed(up)
    }
    fn remove(&mut self) -> anyhow::Result<()> {
        self.memory.remove()
    }
    fn sweeper(&self) -> Arc<dyn Sweeper> {
        self.memory.sweeper()
    }
    fn observe(&self) -> Arc<dyn Observe> {
        self.memory.observe()
    }
}

#[tokio::test]
async fn a_small_change_stands_back_for_nobody_beside_many_routes_and_a_large_one_does() {
    let import = |count: u32| {
        let prefixes = (0..count)
            .map(|number| IpNet::new((0x0a00_0000 + number).to_be_bytes().into(), 32).expect("a prefix"));
        Command::RouteImport(Arc::new(Import {
            table: "main".to_owned(),
            target: Target::Direct,
            prefixes: prefixes.collect(),
            prune: false,
        }))
    };
    // SAFETY: as above.
    let own = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let snapshot = import(70_000).change(&base().snapshot).expect("a good base");
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(directory.path()).expect("a store");
    let noting = Noting::default();
    let base = Base { snapshot: Arc::new(snapshot), fingerprint: "one".to_owned() };
    let (handle, control) = start(Box::new(noting.clone()), host(), base, store).await.expect("starts");
    let last = || noting.nice.lock().expect("a lock").last().copied();
    for command in
        ["route main 192.0.2.0/24 via blackhole", "replace main 192.0.2.0/24 via direct", "activate"]
    {
        handle.change(parse(command), PEER).await.expect("it is made");
        assert_eq!(last(), Some(own), "{command}");
    }
    // Two routes more: the table is written anew.
    handle.change(import(70_002), PEER).await.expect("it is made");
    assert_eq!(last(), Some(priority::AWAITED));
    // And whoever made it is as it was.
    handle.change(parse("route-del main 192.0.2.0/24 via direct"), PEER).await.expect("it is made");
    assert_eq!(last(), Some(own));
    control.stop(false).await.expect("stops");
}

/// Commands that make, break and repeat things.
const PALETTE: [&str; 22] = [
    "activate",
    "deactivate",
    "interface eth2 inside",
    "interface-del eth2",
    "interface-del eth1",
    "pool new 198.51.100.30 2001:db8::30",
    "pool new 198.51.100.10",
    "pool-set new 198.51.100.31",
    "pool-set nat 2001:db8::10",
    "pool-del new",
    "pool-del nat",
    "table t",
    "table-del t",
    "table-del main",
    "bind t 10.0.5.0/24 iif eth2",
    "bind main 10.0.5.0/24 iif eth2",
    "unbind t 10.0.5.0/24 iif eth2",
    "route t 192.0.2.0/24 via pool new",
    "replace t 192.0.2.0/24 via gateway 10.9.0.2 dev eth2",
    "route main 2001:db8:1::/48 via pool new",
    "flush t",
    "flush main",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_asked_the_state_is_sound_in_force_and_saved(
        steps in vec((select(&PALETTE[..]), prop::bool::weighted(0.1)), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(ask(&steps))?;
    }
}

/// Asks for each change in turn; the data plane refuses those that are marked.
async fn ask(steps: &[(&str, bool)]) -> Result<(), TestCaseError> {
    let directory = tempfile::tempdir()?;
    let fail = |error: anyhow::Error| TestCaseError::fail(format!("{error:#}"));
    let rig = Rig::start(directory.path(), base()).await.map_err(fail)?;
    for (command, refuse) in steps {
        let before = rig.handle.current();
        if *refuse {
            rig.fail_next(&[Some("no")]);
        }
        let result = rig.run(command).await;
        let after = rig.handle.current();
        if let Ok(Change { changed: true, revision, .. }) = result {
            prop_assert_eq!((after.revision, revision), (before.revision + 1, before.revision + 1));
            prop_assert_ne!(&after.snapshot, &before.snapshot);
        } else {
            prop_assert_eq!((after.revision, &after.snapshot), (before.revision, &before.snapshot));
        }
        prop_assert_eq!(validate(&after.snapshot), Ok(()));
        prop_assert_eq!(&rig.applied(), &*after.snapshot);
        prop_assert_eq!(after.config_differs, after.snapshot != base().snapshot);
        rig.memory.state().script.clear();
    }
    let last = rig.handle.current();
    rig.stop().await;
    let rig = Rig::start(directory.path(), base()).await.map_err(fail)?;
    prop_assert_eq!((rig.handle.revision(), rig.handle.snapshot()), (last.revision, last.snapshot.clone()));
    rig.stop().await;
    Ok(())
}

#[test]
fn limits_of_the_maps_are_limits_of_the_state() {
    let many = |command: &dyn Fn(u32) -> Command, count: u32| {
        let mut state = (*base().snapshot).clone();
        for number in 0..count {
            state = command(number).change(&state).expect("applies");
        }
        validate(&state).map_err(|violation| violation.error.message)
    };
    let interface = |number| parse(&format!("interface if{number} inside"));
    assert_eq!(many(&interface, 30), Ok(()));
    assert!(many(&interface, 31).expect_err("refused").contains("one more than the 32"));

    let route = |number| parse(&format!("route main 192.0.2.1 via direct proto tcp dport {}", 1000 + number));
    assert_eq!(many(&route, 16), Ok(()));
    assert!(many(&route, 17).expect_err("refused").contains("would have 17 routes with selectors"));
    let inherited = |number: u32| match number {
        0 => parse("route main 192.0.2.1 via direct proto udp"),
        _ => parse(&format!("route main 192.0.2.0/24 via direct proto tcp dport {number}")),
    };
    assert!(many(&inherited, 17).expect_err("refused").contains("192.0.2.1/32 would have 17"));

    let pool = |number| {
        parse(&format!("pool p{number} {}", IpAddr::from([10, 1, (number >> 8) as u8, number as u8])))
    };
    assert_eq!(many(&pool, 253), Ok(()));
    assert!(many(&pool, 254).expect_err("refused").contains("one more than the 256"));
}

#[test]
fn port_ranges_that_overlap_in_part_are_refused() {
    let with = |ports: [&str; 2]| {
        let mut state = (*base().snapshot).clone();
        for ports in ports {
            let route = format!("route main 192.0.2.1 via direct proto tcp dport {ports}");
            state = parse(&route).change(&state).expect("applies");
        }
        validate(&state)
    };
    assert_eq!(with(["1-100", "200-300"]), Ok(()));
    assert_eq!(with(["1-100", "50"]), Ok(()));
    assert_eq!(with(["1-100", "1-50"]), Ok(()));
    assert!(with(["1-100", "50-150"]).is_err());
}

fn with_route(state: &Snapshot, line: &str) -> Snapshot {
    parse(&format!("route main {line}")).change(state).expect("a route")
}

fn confirm_within(time: Duration) -> ApplyOptions {
    ApplyOptions { confirm: Some(time), ..ApplyOptions::default() }
}

#[tokio::test]
async fn a_whole_state_takes_the_place_of_the_present_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    let mut next = with_route(&base().snapshot, "192.0.2.0/24 via direct");
    next.timeouts.udp = Duration::from_mins(7);
    next.name = "gw-9".to_owned();
    let apply = |state: &Snapshot, options| rig.handle.apply(state.clone(), options, PEER);
    let checked = apply(&next, ApplyOptions { check: true, ..ApplyOptions::default() }).await.expect("good");
    assert_eq!((checked.changed, checked.revision), (true, 1));
    assert_eq!(rig.applied(), *base().snapshot, "a check changes nothing");
    let late = apply(&next, ApplyOptions { expect: Some(7), ..ApplyOptions::default() }).await;
    let late = late.expect_err("refused");
    assert_eq!((&*late.code, &*late.message), ("apply.conflict", "revision 1 is in force, not 7"));
    let expected = ApplyOptions { expect: Some(1), ..ApplyOptions::default() };
    assert_eq!(apply(&next, expected).await.expect("applied"), Change::new(2, true));
    assert_eq!(rig.applied(), next);
    assert_eq!(apply(&next, ApplyOptions::default()).await.expect("nothing to do"), Change::new(2, false));
    let mut larger = next.clone();
    larger.capacity.sessions += 1;
    let refused = apply(&larger, ApplyOptions::default()).await.expect_err("refused");
    assert_eq!(refused.field.as_deref(), Some("capacity.sessions"));
    let config = "[access_log]\npath = \"/var/log/gateway/access.jsonl\"\n";
    let access_log = crate::config::read_text("a test", config).expect("good").snapshot.access_log;
    assert!(access_log.is_some());
    let logged = Snapshot { access_log, ..next.clone() };
    let refused = apply(&logged, ApplyOptions::default()).await.expect_err("refused");
    assert_eq!(refused.field.as_deref(), Some("access_log"));
    rig.stop().await;
    // Also what only a whole configuration says is there after a restart.
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    assert_eq!(rig.applied(), next);
    assert!(rig.handle.current().config_differs);
    let back = rig.handle.apply((*base().snapshot).clone(), ApplyOptions::default(), PEER).await;
    assert_eq!(back.expect("applied"), Change::new(3, true));
    assert!(!rig.handle.current().config_differs, "the file is in force again");
    rig.stop().await;
}

#[tokio::test]
async fn a_revision_is_brought_back_by_undo_also_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    let nothing = rig.handle.undo(None, PEER).await.expect_err("refused");
    assert_eq!(nothing.message, "there is no revision before this one");
    rig.run("route main 192.0.2.0/24 via direct").await.expect("changed");
    let second = rig.applied();
    rig.run("activate").await.expect("changed");
    rig.run("route main 198.51.100.0/28 via blackhole").await.expect("changed");
    assert_eq!(rig.handle.undo(Some(2), PEER).await.expect("undone"), Change::new(5, true));
    assert_eq!(rig.applied(), second);
    assert_eq!(
        rig.handle.undo(None, PEER).await.expect("undone"),
        Change::new(6, true),
        "undo takes undo back"
    );
    assert!(rig.applied().active);
    rig.stop().await;
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    assert_eq!(rig.handle.undo(Some(1), PEER).await.expect("undone"), Change::new(7, true));
    assert_eq!(rig.applied(), *base().snapshot);
    let unknown = rig.handle.undo(Some(9), PEER).await.expect_err("refused");
    assert_eq!(unknown.message, "there is no revision 9: 7 is in force");
    let history = rig.handle.history().expect("a history");
    let told: Vec<_> = history
        .iter()
        .map(|kept| (kept.revision, kept.made.as_ref().map_or("", |made| &*made.command)))
        .collect();
    let route = "route add 192.0.2.0/24 via direct table main";
    assert_eq!(told.first(), Some(&(7, "undo 1")));
    assert!(told.contains(&(5, "undo 2")) && told.contains(&(2, route)), "{told:?}");
    assert_eq!(told.last(), Some(&(1, "the configuration file")));
    assert_eq!(history[0].made.as_ref().and_then(|made| made.uid), Some(PEER.uid));
    rig.stop().await;
    // What the file said then is not what another one says now.
    let mut other = base();
    other.fingerprint = "two".to_owned();
    other.snapshot = Arc::new(with_route(&other.snapshot, "10.99.0.0/16 via blackhole"));
    let rig = Rig::start(directory.path(), other).await.expect("starts");
    let gone = rig.handle.undo(Some(1), PEER).await.expect_err("refused");
    assert!(gone.message.contains("was that of the configuration file"), "{gone}");
    rig.stop().await;
}

#[tokio::test]
async fn what_nobody_confirms_is_taken_back_and_what_somebody_confirms_stays() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    rig.run("activate").await.expect("changed");
    let before = rig.applied();
    let next = with_route(&before, "192.0.2.0/24 via direct");
    let apply = |options| rig.handle.apply(next.clone(), options, PEER);
    apply(confirm_within(Duration::from_millis(300))).await.expect("applied");
    assert_eq!(rig.applied(), next);
    let refused = rig.run("deactivate").await.expect_err("another change is in the way");
    assert_eq!(refused.code, "apply.conflict");
    let mut revisions = rig.handle.revisions();
    tokio::time::timeout(Duration::from_secs(10), revisions.wait_for(|it| *it == 4))
        .await
        .expect("in time")
        .expect("one");
    assert_eq!(rig.applied(), before);
    let made = rig.handle.history().expect("a history")[0].made.clone().expect("known");
    assert_eq!((made.uid, &*made.command), (None, "take back revision 3, which nobody has confirmed"));
    let late = rig.handle.confirm(PEER).await.expect_err("refused");
    assert_eq!(late.message, "revision 3 was taken back before it was confirmed");
    // Confirmed.
    apply(confirm_within(Duration::from_millis(500))).await.expect("applied");
    assert_eq!(rig.handle.confirm(PEER).await.expect("confirmed"), Change::new(5, true));
    rig.handle.confirm(PEER).await.expect_err("nothing is left to confirm");
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!((rig.applied(), rig.handle.revision()), (next, 5));
    rig.run("deactivate").await.expect("changed");
    rig.stop().await;
}

#[tokio::test]
async fn undo_takes_back_at_once_what_waits() {
    let directory = tempfile::tempdir().expect("a directory");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    let next = with_route(&base().snapshot, "192.0.2.0/24 via direct");
    rig.handle.apply(next, confirm_within(Duration::from_mins(1)), PEER).await.expect("applied");
    assert_eq!(rig.handle.undo(None, PEER).await.expect("undone"), Change::new(3, true));
    assert_eq!(rig.applied(), *base().snapshot);
    let answer = rig.handle.current().confirmation.as_ref().and_then(|it| it.answer);
    assert_eq!(answer, Some(Answer::TakenBack));
    rig.run("activate").await.expect("nothing is in the way");
    rig.stop().await;
}

#[tokio::test]
async fn what_nobody_confirms_is_taken_back_by_the_next_daemon() {
    let directory = tempfile::tempdir().expect("a directory");
    let next = with_route(&base().snapshot, "192.0.2.0/24 via direct");
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    rig.run("activate").await.expect("changed");
    let before = rig.applied();
    let next = Snapshot { active: true, ..next };
    rig.handle.apply(next.clone(), confirm_within(Duration::from_secs(2)), PEER).await.expect("applied");
    rig.stop().await;
    // In time.
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    assert_eq!(rig.applied(), next, "there is time left");
    assert!(rig.handle.current().confirmation.as_ref().is_some_and(|it| it.answer.is_none()));
    rig.stop().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    assert_eq!((rig.applied(), rig.handle.revision()), (before.clone(), 4));
    rig.stop().await;
    let rig = Rig::start(directory.path(), base()).await.expect("starts");
    assert_eq!((rig.applied(), rig.handle.revision()), (before, 4), "once");
    rig.stop().await;
}
