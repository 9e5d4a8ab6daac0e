//! The real data plane, asked packet by packet.

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    marker::PhantomData,
    net::IpAddr,
    num::NonZero,
    path::PathBuf,
    sync::{
        Arc, Barrier, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
};
use gateway_common::{
    Family, V4, V6,
    config::Config,
    fragment::{Datagram, Key, LIFETIME},
    mapping::SHARED,
    ports::Destination,
    proxy::ProxyMac,
    session::{SIDE_OUTSIDE, Session, Tuple},
    share::Share,
    source::Source,
    table::{self, Bucket, Fill, Slot},
    tunnel::{self, GENEVE, GENEVE_PORT, Tunnel, TunnelKey},
    usage::Usage,
};
use gateway_lab::Sandbox;
use gateway_user::{
    dataplane::{
        Dataplane as _, DestinationStats, Drift, Glance, LimitStats, Logged, Observe, Order, SessionRow,
        Trial, Tried, UsageStats,
        bpf::{BpfDataplane, Options},
        watch::Watchers,
    },
    model::{Capacity, Snapshot},
};
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare},
    unistd::Pid,
};

use crate::{
    counters::Counters,
    empty,
    network::{self, Network, link_address},
    packet::{self, ip},
    policy::Policy,
};

/// XDP's answers, as in `linux/bpf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The program failed.
    Aborted,
    /// The packet is gone.
    Drop,
    /// The host's stack gets it.
    Pass,
    /// It goes out where it came in.
    Tx,
    /// It goes out of another device.
    Redirect,
}

/// What the programs made of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// XDP's answer.
    pub action: Action,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

/// The programs, loaded and attached to the devices of a network in a namespace of its own.
///
/// The thread that makes a gateway is in that namespace until it drops it.
pub struct Gateway {
    network: Network,
    // Present until it is dropped. It goes before the namespace that the programs are attached in.
    engine: Option<Engine>,
    observe: Arc<dyn Observe>,
    applied: Option<Snapshot>,
    _namespace: Namespace,
}

/// The programs with their maps. To load them takes seconds, so that those of a test are used by another one of the
/// same process, with empty maps.
struct Engine {
    dataplane: BpfDataplane,
    capacity: Capacity,
    pins: Sandbox,
}

/// Those that no test uses. What is left at the end of the process is removed by the sandboxes' guards.
static IDLE: Mutex<Vec<Engine>> = Mutex::new(Vec::new());

impl Gateway {
    /// Starts a gateway with this policy. `None`: tests of this kind cannot run here, and it was said why.
    ///
    /// # Panics
    /// If it does not start, or if it cannot run here and `CI` is set.
    pub fn start(network: Network, policy: &Policy) -> Option<Self> {
        if !gateway_lab::runnable() {
            let ci = env::var_os("CI").is_some_and(|value| !value.is_empty());
            assert!(!ci, "skipped, and CI is set: a skipped test proves nothing");
            return None;
        }
        Some(Self::try_start(network, policy).unwrap_or_else(|error| panic!("no gateway: {error:#}")))
    }

    /// Puts another policy in force.
    ///
    /// # Panics
    /// If the data plane refuses it.
    pub fn apply(&mut self, policy: &Policy) {
        let to = policy.snapshot();
        let before = self.applied.take();
        let applied = self.dataplane_mut().apply(before.as_ref(), &to);
        applied.unwrap_or_else(|error| panic!("the policy is refused: {error:#}"));
        self.applied = Some(to);
    }

    /// Says whether a host of a proxy is up.
    ///
    /// # Panics
    /// If the data plane refuses it.
    pub fn health(&mut self, proxy: &str, host: &str, up: bool) {
        let health = BTreeMap::from([((proxy.to_owned(), ip(host)), up)]);
        let changed = self.dataplane_mut().health_changed(&health);
        changed.unwrap_or_else(|error| panic!("the health of a host is refused: {error:#}"));
    }

    /// Gives both ends of a tunnel's device the MAC addresses that the tunnel says, so that its host is resolved.
    ///
    /// # Panics
    /// If there is no such device.
    pub fn resolve_tunnel(&mut self, device: &str, tunnel: &packet::Tunnel) {
        let ((_, own), (host, mac)) = (tunnel.gateway, tunnel.host);
        let (own, mac) = (link_address(own), link_address(mac));
        let script = format!(
            "link set {device} address {own}\nneighbor replace {host} lladdr {mac} dev {device} nud permanent\n"
        );
        network::batch(&script).unwrap_or_else(|error| panic!("the tunnel is not there: {error:#}"));
        let state = self.applied.clone().unwrap_or_default();
        let applied = self.dataplane_mut().apply(Some(&state), &state);
        applied.unwrap_or_else(|error| panic!("the policy is refused: {error:#}"));
    }

    /// Makes Geneve tunnels of all VXLAN tunnels, as far as the programs know. The kernel that the tests run on need not
    /// have devices of that kind.
    ///
    /// # Panics
    /// If the maps cannot be written.
    pub fn make_geneve_of_vxlan(&mut self) {
        let make = || -> Result<()> {
            let hosts = Map::HashMap(MapData::from_pin(self.map("TUNNEL_HOSTS"))?);
            let mut hosts = HashMap::<_, TunnelKey, u32>::try_from(hosts)?;
            let mut tunnels =
                Array::<_, Tunnel>::try_from(Map::Array(MapData::from_pin(self.map("TUNNELS"))?))?;
            for entry in hosts.iter().collect::<Result<Vec<_>, _>>()? {
                let (key, number) = entry;
                let vni = key.identifier & 0x00ff_ffff;
                hosts.insert(TunnelKey { identifier: tunnel::identifier(GENEVE, vni), ..key }, number, 0)?;
                hosts.remove(&key)?;
                let known = tunnels.get(&number, 0)?;
                let (header, port) = (tunnel::header(GENEVE, vni), GENEVE_PORT.to_be_bytes());
                tunnels.set(number, Tunnel { header, port, ..known }, 0)?;
            }
            Ok(())
        };
        make().unwrap_or_else(|error| panic!("the tunnels: {error:#}"));
    }

    /// Sessions that go through a host of a proxy.
    ///
    /// # Panics
    /// If they cannot be read, or there is no such host.
    pub fn flows(&self, host: &str) -> u64 {
        let hosts = self.observe.proxies().unwrap_or_else(|error| panic!("the hosts of proxies: {error:#}"));
        let found = hosts.iter().find(|known| known.address == ip(host));
        found.unwrap_or_else(|| panic!("no proxy has host {host}")).flows
    }

    /// Makes the programs forget which MAC addresses hosts of proxies have.
    ///
    /// # Panics
    /// If they cannot be removed.
    pub fn forget_proxy_macs(&mut self) {
        let forget = || -> Result<()> {
            let map = Map::HashMap(MapData::from_pin(self.map("PROXY_MACS"))?);
            let mut map = HashMap::<_, ProxyMac, u32>::try_from(map)?;
            for key in map.keys().collect::<Vec<_>>() {
                map.remove(&key?)?;
            }
            Ok(())
        };
        forget().unwrap_or_else(|error| panic!("the MAC addresses of proxy hosts: {error:#}"));
    }

    /// What the host around the gateway looks like.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// What the programs read first.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn config(&self) -> Config {
        let read = || -> Result<Config> {
            let map = Map::Array(MapData::from_pin(self.map("CONFIG"))?);
            Ok(Array::<_, Config>::try_from(map)?.get(&0, 0)?)
        };
        read().unwrap_or_else(|error| panic!("the configuration: {error:#}"))
    }

    /// Makes it so late that whoever watches should have said so again, and has not.
    ///
    /// # Panics
    /// If it cannot be changed.
    pub fn end_watch(&mut self) {
        let end = || -> Result<()> {
            let map = Map::Array(MapData::from_pin(self.map("CONFIG"))?);
            let mut map = Array::<_, Config>::try_from(map)?;
            let config = map.get(&0, 0)?;
            Ok(map.set(0, Config { watched_until: 1, ..config }, 0)?)
        };
        end().unwrap_or_else(|error| panic!("the configuration: {error:#}"));
    }

    /// Makes what is known of datagrams in fragments too old to be used.
    ///
    /// # Panics
    /// If it cannot be changed.
    pub fn age_fragments(&mut self) {
        let age = || -> Result<()> {
            let map = Map::LruHashMap(MapData::from_pin(self.map("FRAGMENTS"))?);
            let mut map = HashMap::<_, Key, Datagram>::try_from(map)?;
            for known in map.iter().collect::<Vec<_>>() {
                let (key, datagram) = known?;
                let since = datagram.since.saturating_sub(LIFETIME);
                map.insert(key, Datagram { since, ..datagram }, 0)?;
            }
            Ok(())
        };
        age().unwrap_or_else(|error| panic!("the fragments: {error:#}"));
    }

    /// Lets a frame arrive on a device.
    ///
    /// # Panics
    /// If the kernel refuses to run the program.
    pub fn run(&mut self, device: &str, frame: &[u8]) -> Outcome {
        outcome(self.dataplane().run_packet(self.network.find(device).index, frame))
    }

    /// Asks what would become of a frame that arrives on a device.
    ///
    /// # Panics
    /// If the kernel refuses to run the program.
    pub fn try_packet(&self, device: &str, frame: &[u8]) -> Tried {
        let trial = Trial { ifindex: self.network.find(device).index, frame, as_active: false };
        let tried = self.observe.try_packet(&trial);
        tried.unwrap_or_else(|error| panic!("the trial: {error:#}"))
    }

    /// All that the maps of the packet path hold, by name of the map.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn contents(&self) -> BTreeMap<String, empty::Elements> {
        empty::contents(&self.engine().maps()).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Lets frames arrive on a device at the same time, each on a CPU of its own as far as there are any.
    ///
    /// # Panics
    /// As [`Gateway::run`].
    pub fn race(&mut self, device: &str, frames: &[Vec<u8>]) -> Vec<Outcome> {
        let each: Vec<Vec<Vec<u8>>> = frames.iter().map(|frame| vec![frame.clone()]).collect();
        self.race_all(device, &each).into_iter().flatten().collect()
    }

    /// As [`Gateway::race`], for lists of frames: each list in its order.
    ///
    /// # Panics
    /// As [`Gateway::run`].
    pub fn race_all(&mut self, device: &str, lists: &[Vec<Vec<u8>>]) -> Vec<Vec<Outcome>> {
        let ifindex = self.network.find(device).index;
        let dataplane = self.dataplane();
        let namespace = Namespace::current().expect("the network namespace of the test");
        let start = Barrier::new(lists.len());
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        let race = |number: usize, frames: &[Vec<u8>]| -> Vec<Outcome> {
            let mut cpu = CpuSet::new();
            cpu.set(number % cpus).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpu)).expect("a CPU");
            // The device is looked up in the network of the thread that runs the program.
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("the network namespace");
            start.wait();
            frames.iter().map(|frame| outcome(dataplane.run_packet(ifindex, frame))).collect()
        };
        thread::scope(|scope| {
            let threads: Vec<_> = lists
                .iter()
                .enumerate()
                .map(|(number, frames)| scope.spawn(move || race(number, frames)))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread that races")).collect()
        })
    }

    /// Does `work`, which lets frames arrive, while another CPU sweeps without a pause.
    ///
    /// # Panics
    /// If the kernel refuses to sweep.
    pub fn while_sweeping<T>(&mut self, work: impl FnOnce(&dyn Fn(&str, &[u8]) -> Outcome) -> T) -> T {
        let (network, dataplane) = (&self.network, self.dataplane());
        let run =
            |device: &str, frame: &[u8]| outcome(dataplane.run_packet(network.find(device).index, frame));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let sweeper = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let swept = dataplane.sweeper().sweep(true);
                    swept.unwrap_or_else(|error| panic!("the sweep: {error:#}"));
                }
            });
            let result = {
                // Also where the work panics: the scope waits for the thread.
                let _done = AtEnd(&done);
                work(&run)
            };
            sweeper.join().expect("the thread that sweeps");
            result
        })
    }

    /// Does `work`, which lets frames arrive, while another CPU puts two policies in force by turns. `work` also gets
    /// the number of changes that have begun.
    ///
    /// # Panics
    /// If the data plane refuses a policy.
    pub fn while_changing<T>(
        &mut self,
        policies: [&Policy; 2],
        work: impl FnOnce(&dyn Fn(&str, &[u8]) -> Outcome, &AtomicU64) -> T,
    ) -> T {
        let entry = self.dataplane_mut().entry_again();
        let entry = entry.unwrap_or_else(|error| panic!("the program: {error:#}"));
        let namespace = Namespace::current().expect("the network namespace of the test");
        let (done, begun) = (AtomicBool::new(false), AtomicU64::new(0));
        let Self { network, engine, applied, .. } = self;
        let dataplane = &mut engine.as_mut().expect("a gateway that is not dropped").dataplane;
        let run = |device: &str, frame: &[u8]| {
            outcome(BpfDataplane::run_packet_on(&entry, network.find(device).index, frame))
        };
        thread::scope(|scope| {
            let changer = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).expect("the network namespace");
                for state in policies.map(Policy::snapshot).iter().cycle() {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    begun.fetch_add(1, Ordering::SeqCst);
                    let changed = dataplane.apply(applied.as_ref(), state);
                    changed.unwrap_or_else(|error| panic!("the policy is refused: {error:#}"));
                    *applied = Some(state.clone());
                }
            });
            let result = {
                // Also where the work panics: the scope waits for the thread.
                let _done = AtEnd(&done);
                work(&run, &begun)
            };
            changer.join().expect("the thread that changes the policy");
            result
        })
    }

    /// Takes room for elements of the IPv4 session table away, so that sessions do not get it, until it is given back by
    /// [`Gateway::vacate`].
    ///
    /// # Panics
    /// If the kernel refuses it.
    pub fn occupy(&mut self, elements: u16) {
        self.fill(|fill| fill.elements += u32::from(elements));
    }

    /// Gives back what [`Gateway::occupy`] took.
    ///
    /// # Panics
    /// If it was not taken.
    pub fn vacate(&mut self, elements: u16) {
        self.fill(|fill| {
            fill.elements = fill.elements.checked_sub(elements.into()).expect("room that was taken");
        });
    }

    /// The number of elements in the IPv4 session table, which must be what the table says itself, and the room that is
    /// taken away.
    ///
    /// # Panics
    /// If it cannot be read, or the table is not as it should be.
    pub fn elements(&self) -> usize {
        let config = self.config();
        let buckets: Array<_, Bucket<V4>> = self.array("SESSIONS_V4");
        let buckets: Vec<_> = buckets.iter().map(|bucket| bucket.expect("a bucket")).collect();
        let mut spilled = vec![0; buckets.len()];
        let mut elements = 0;
        for (index, bucket) in (0..).zip(&buckets) {
            let mut there = 0;
            for slot in bucket.elements(index, config.secret, config.buckets) {
                let first = table::place(slot.tuple.words(), config.secret, config.buckets).first;
                spilled[first as usize] += u32::from(first != index);
                there += 1;
            }
            let tags = bucket.tags.iter().flat_map(|word| word.to_ne_bytes().as_chunks::<2>().0.to_vec());
            assert_eq!(tags.filter(|tag| *tag != [0, 0]).count(), there, "tags of bucket {index}");
            assert_eq!((bucket.used as usize, bucket.lock), (there, 0), "bucket {index}");
            elements += there;
        }
        let noted: Vec<_> = buckets.iter().map(|bucket| bucket.spilled).collect();
        assert_eq!(noted, spilled, "elements in the other bucket of theirs");
        let fill: Array<_, Fill> = self.array("TABLE");
        let counted = fill.get(&0, 0).expect("the count").elements as usize;
        assert!(counted >= elements, "{counted} elements are counted and {elements} are there");
        counted
    }

    /// All slots of the IPv4 session table, those that have no element, too.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn slots(&self) -> Vec<Slot<V4>> {
        let buckets: Array<_, Bucket<V4>> = self.array("SESSIONS_V4");
        buckets.iter().flat_map(|bucket| bucket.expect("a bucket").slots).collect()
    }

    fn fill(&mut self, change: impl FnOnce(&mut Fill)) {
        let mut map: Array<_, Fill> = self.array("TABLE");
        let mut fill = map.get(&0, 0).expect("the count");
        change(&mut fill);
        map.set(0, fill, 0).expect("the count");
    }

    fn array<T: Pod>(&self, name: &str) -> Array<MapData, T> {
        let map = MapData::from_pin(self.map(name)).expect("a map");
        Array::try_from(Map::Array(map)).expect("an array")
    }

    /// One slice of the removal of sessions that are idle, and whether the next one is urgent.
    ///
    /// # Panics
    /// If the kernel refuses it.
    pub fn sweep(&mut self) -> bool {
        let swept = self.dataplane().sweeper().sweep(true);
        swept.unwrap_or_else(|error| panic!("the sweep: {error:#}")).urgent
    }

    /// Opened and removed sessions since the start, and those there are.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn session_balance(&self) -> (u64, u64, usize) {
        let (created, removed) = self.session_counts();
        (created, removed, self.sessions().len())
    }

    /// Opened and removed sessions since the start.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn session_counts(&self) -> (u64, u64) {
        let classes = self.observe.session_counters().unwrap_or_else(|error| panic!("{error:#}"));
        let created = classes.iter().map(|(_, counted)| counted.created).sum();
        let removed =
            classes.iter().map(|(_, counted)| counted.closed + counted.expired + counted.killed).sum();
        (created, removed)
    }

    /// Sweeps all sessions, often enough for those that were cut to be gone: they have to be met twice, and on
    /// a busy machine a slice may be over after a part of a table.
    ///
    /// # Panics
    /// If the kernel refuses it.
    pub fn sweep_all(&mut self) {
        for _ in 0..32 {
            self.sweep();
        }
    }

    /// Sweeps until no session that was cut is left, for a bounded time.
    ///
    /// # Panics
    /// If the kernel refuses it.
    pub fn sweep_until_cut_are_gone(&mut self) {
        let mut left = usize::MAX;
        for _ in 0..64 {
            self.sweep_all();
            let sessions = self.sessions().len();
            if sessions == left {
                return;
            }
            left = sessions;
        }
    }

    /// Reads all counters.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn counters(&self) -> Counters {
        Counters::read(&*self.observe).unwrap_or_else(|error| panic!("the counters: {error:#}"))
    }

    /// Elements in use of a map, as `stats maps` shows them.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn map_entries(&self, name: &str) -> u64 {
        let maps = self.observe.maps().unwrap_or_else(|error| panic!("the maps: {error:#}"));
        maps.iter().find(|map| map.name == name).map_or(0, |map| map.entries)
    }

    /// Reads what was opened towards destinations.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn destinations(&self) -> Vec<DestinationStats> {
        self.observe.destinations().unwrap_or_else(|error| panic!("the destinations: {error:#}"))
    }

    /// By how much the gateway itself finds its counts to differ from what there is.
    ///
    /// # Panics
    /// If it does not look, or cannot be asked.
    pub fn drift(&mut self) -> Drift {
        let drift = |gateway: &Self| gateway.observe.drift().unwrap_or_else(|error| panic!("{error:#}"));
        let before = drift(self).rounds;
        self.dataplane().sweeper().recount();
        for _ in 0..10_000 {
            self.sweep();
            let found = drift(self);
            if found.rounds != before {
                return Drift { rounds: 0, ..found };
            }
        }
        panic!("nobody has looked");
    }

    /// Has the bucket of the destination that comes first, and those of sources, count another session.
    ///
    /// # Panics
    /// If they cannot be changed.
    pub fn miscount(&mut self) {
        fn change<K: Pod>(map: MapData) {
            let mut map =
                HashMap::<_, K, gateway_common::limit::Bucket>::try_from(Map::HashMap(map)).expect("buckets");
            let (key, mut bucket) = map.iter().next().expect("a bucket").expect("a bucket");
            bucket.sessions += 1;
            map.insert(key, bucket, 0).expect("a bucket");
        }
        change::<Destination>(MapData::from_pin(self.map("DESTINATIONS")).expect("a map"));
        change::<Source>(MapData::from_pin(self.map("SOURCES")).expect("a map"));
    }

    /// Begins anew on the maps as they are, as the next daemon does.
    ///
    /// # Panics
    /// If it cannot.
    pub fn restart(&mut self) {
        let engine = self.engine.take().expect("a gateway that is not dropped");
        let again = engine.dataplane.reopen().unwrap_or_else(|error| panic!("no gateway: {error:#}"));
        self.observe = again.observe();
        self.engine = Some(Engine { dataplane: again, ..engine });
        let host = self.network.host();
        self.dataplane_mut().host_changed(&host).unwrap_or_else(|error| panic!("no host: {error:#}"));
        let to = self.applied.clone().expect("a policy");
        self.dataplane_mut().apply(None, &to).unwrap_or_else(|error| panic!("no policy: {error:#}"));
    }

    /// The sessions that clients are known to have, all together, which are those whose elements say so.
    ///
    /// # Panics
    /// If they are others, or cannot be read.
    pub fn shared(&self) -> usize {
        let shares = self.array::<Share>("SHARES");
        let noted: usize = shares.iter().map(|share| share.expect("a share").sessions as usize).sum();
        let config = self.config();
        let buckets: Array<_, Bucket<V4>> = self.array("SESSIONS_V4");
        let buckets = (0..).zip(buckets.iter().map(|bucket| bucket.expect("a bucket")));
        let map = MapData::from_pin(self.map("SESSIONS_V6")).expect("a map");
        let map: HashMap<_, Tuple<V6>, Session<V6>> = HashMap::try_from(Map::HashMap(map)).expect("a map");
        let marked: usize = buckets
            .map(|(index, bucket)| {
                let elements = bucket.elements(index, config.secret, config.buckets);
                elements.filter(|slot| is_shared(&slot.tuple, &slot.session)).count()
            })
            .sum();
        let elements = map.iter().map(|element| element.expect("an element"));
        let marked = marked + elements.filter(|(tuple, session)| is_shared(tuple, session)).count();
        assert_eq!(noted, marked, "sessions that clients are known to have");
        noted
    }

    /// What is told of usage after a walk through all sessions, by groups of source and destination.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn usage(&mut self) -> BTreeMap<(String, String), Usage> {
        // A walk may go on that began before; on a busy machine a slice may be over after a part of a table.
        for _ in 0..2 {
            self.dataplane().sweeper().recount();
            for _ in 0..8 {
                self.sweep();
            }
        }
        self.told()
    }

    /// What is told of usage, as of the last walk.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn told(&self) -> BTreeMap<(String, String), Usage> {
        let told = self.observe.usage().unwrap_or_else(|error| panic!("the usage: {error:#}"));
        let pair = |stats: &UsageStats| (stats.source.to_string(), stats.destination.to_string());
        told.iter().map(|stats| (pair(stats), stats.usage)).collect()
    }

    /// Reads what limits of sources have done.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn limits(&self) -> Vec<LimitStats> {
        self.observe.limits().unwrap_or_else(|error| panic!("the limits: {error:#}"))
    }

    /// The session that a packet of protocol `proto` belongs to.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn session(
        &self,
        proto: u8,
        source: (IpAddr, u16),
        destination: (IpAddr, u16),
    ) -> Option<SessionRow> {
        let found = self.observe.session(proto, source, destination);
        found.unwrap_or_else(|error| panic!("the session: {error:#}"))
    }

    /// Reads all sessions.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn sessions(&self) -> Vec<SessionRow> {
        let all = self.observe.sessions(&mut |_| true, 0);
        all.unwrap_or_else(|error| panic!("the sessions: {error:#}"))
    }

    /// The first sessions by `order` of those to port `port`, and how many there are; of all for `None`.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn largest(&self, port: Option<u16>, order: Order, limit: usize) -> (Vec<SessionRow>, u64) {
        let mut filter = |session: &dyn Glance| port.is_none_or(|port| session.destination().1 == port);
        let found = self.observe.largest(&mut filter, order, limit);
        found.unwrap_or_else(|error| panic!("the sessions: {error:#}"))
    }

    /// The number of TCP sessions that are not established, as the programs count it.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn half_open(&self) -> usize {
        let maps = self.observe.maps().unwrap_or_else(|error| panic!("the maps: {error:#}"));
        let found = maps.iter().find(|map| map.name == "half_open");
        found.map_or(0, |map| map.entries as usize)
    }

    /// What was recorded and not read yet, and how many records have found no room.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn records(&self) -> (Vec<Logged>, u64) {
        let mut all = Vec::new();
        let mut records = self.dataplane().records().unwrap_or_else(|error| panic!("the records: {error:#}"));
        while records.read(4_096, &mut all).unwrap_or_else(|error| panic!("the records: {error:#}")) > 0 {}
        let lost = self.observe.records_lost().unwrap_or_else(|error| panic!("the records: {error:#}"));
        (all, lost)
    }

    /// What shows packets of this gateway.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub fn watchers(&self) -> Box<dyn Watchers> {
        self.dataplane().watchers().unwrap_or_else(|error| panic!("the watchers: {error:#}"))
    }

    /// Ends this gateway as a drop does; the maps that held something before, and those that still do.
    ///
    /// # Panics
    /// If the maps cannot be read.
    pub fn end(mut self) -> [Vec<String>; 2] {
        let mut engine = self.engine.take().expect("a gateway that is not dropped");
        let full = |engine: &Engine| empty::full(&engine.maps()).unwrap_or_else(|error| panic!("{error:#}"));
        let before = full(&engine);
        engine.clear().unwrap_or_else(|error| panic!("{error:#}"));
        [before, full(&engine)]
    }

    fn try_start(network: Network, policy: &Policy) -> Result<Self> {
        let state = policy.snapshot();
        // Its sandbox has a process that removes the pins, and stays in the namespace of the system.
        let mut engine = Engine::start(state.capacity)?;
        let namespace = Namespace::new()?;
        network.build()?;
        engine.dataplane.host_changed(&network.host())?;
        engine.dataplane.apply(None, &state).context("cannot apply the first policy")?;
        let observe = engine.dataplane.observe();
        Ok(Self { network, engine: Some(engine), observe, applied: Some(state), _namespace: namespace })
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("a gateway that is not dropped")
    }

    fn dataplane(&self) -> &BpfDataplane {
        &self.engine().dataplane
    }

    fn dataplane_mut(&mut self) -> &mut BpfDataplane {
        &mut self.engine.as_mut().expect("a gateway that is not dropped").dataplane
    }

    /// The pin of a map.
    fn map(&self, name: &str) -> PathBuf {
        self.engine().maps().join(name)
    }
}

impl Engine {
    /// One that no test uses, or else another one.
    fn start(capacity: Capacity) -> Result<Self> {
        let fits = |engine: &Self| {
            (engine.capacity.sessions, engine.capacity.routes) == (capacity.sessions, capacity.routes)
        };
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = idle.iter().position(fits) {
            return Ok(idle.swap_remove(found));
        }
        drop(idle);
        let pins = Sandbox::new()?;
        let options = Options { pin_dir: pins.pins(), capacity };
        let dataplane = BpfDataplane::open(&options).context("cannot open the data plane")?;
        Ok(Self { dataplane, capacity, pins })
    }

    /// Leaves it to another test, as if it had just been loaded.
    fn stop(mut self) -> Result<()> {
        self.clear()?;
        let engine = Self { dataplane: self.dataplane.reopen()?, ..self };
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(engine);
        Ok(())
    }

    /// Takes the programs off all devices and everything out of the maps.
    fn clear(&mut self) -> Result<()> {
        self.dataplane.detach()?;
        empty::maps(&self.maps())
    }

    /// Where the maps are pinned.
    fn maps(&self) -> PathBuf {
        self.pins.pins().join("maps")
    }
}

/// Becomes true at the end of the block.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a run of the program came to.
fn outcome(ran: Result<(u32, Vec<u8>)>) -> Outcome {
    let (action, frame) = ran.unwrap_or_else(|error| panic!("the program does not run: {error:#}"));
    let action = match action {
        1 => Action::Drop,
        2 => Action::Pass,
        3 => Action::Tx,
        4 => Action::Redirect,
        _ => Action::Aborted,
    };
    Outcome { action, frame }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.engine.take().map(Engine::stop) {
            // The sandbox has removed it; the next test loads another one.
            eprintln!("the gateway of this test is not used again: {error:#}");
        }
    }
}

/// A new network namespace for this thread, which goes back when it is dropped. Without a name, the
/// namespace ends with its last user.
struct Namespace {
    before: File,
    // Belongs to the thread that made it.
    _thread: PhantomData<*const ()>,
}

impl Namespace {
    fn new() -> Result<Self> {
        let before = Self::current()?;
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        Ok(Self { before, _thread: PhantomData })
    }

    /// The one that this thread is in.
    fn current() -> Result<File> {
        File::open("/proc/thread-self/ns/net").context("cannot open the network namespace")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A thread that cannot go back must not go on: its next test would run in the wrong network.
        setns(&self.before, CloneFlags::CLONE_NEWNET).expect("the way back to the first namespace");
    }
}

/// Whether it is noted of a session what its client has, by one of its elements: the outside one.
fn is_shared<F: Family>(tuple: &Tuple<F>, session: &Session<F>) -> bool {
    tuple.side == SIDE_OUTSIDE && session.flags & SHARED != 0
}
