//! The data plane in the kernel.
//!
//! Everything lives in the kernel and is pinned; a daemon takes it over, and may go away again. The parts:
//! [`pins`] checks what is there before it is used, [`interfaces`] holds the programs on devices, [`pools`]
//! and [`tables`] write the policy, [`sweep`] removes sessions, [`observe`] reads.

mod addresses;
mod clock;
mod compile;
mod counters;
mod eips;
mod interfaces;
mod limits;
mod links;
mod lives;
mod names;
mod netdev;
mod netlink;
mod numbers;
mod observe;
mod pins;
mod pools;
mod proxies;
mod reap;
mod records;
mod recount;
mod shadow;
mod shut;
mod space;
mod sweep;
mod sys;
mod table;
mod tables;
mod trie;
mod tunnels;
mod usage;
mod watchers;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, MapData, ProgramArray, RingBuf},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use aya_obj::{Object, programs::XdpAttachType};
use gateway_common::{
    ABI_VERSION,
    config::{
        self, Config, DECAPSULATE, DECIDE_V4, DECIDE_V6, EIP_V4, EIP_V6, ENCAPSULATE, HAIRPIN_V4, HAIRPIN_V6,
        INWARD_V4, INWARD_V6, MAP_V4, MAP_V6, PROXY_V4, PROXY_V6, Policy, RELATED_V4, RELATED_V6,
    },
    fragment, limit, ports,
    table::buckets,
};

use self::{
    addresses::Addresses,
    clock::{Clock, Scale},
    counters::RouteCounters,
    eips::Eips,
    interfaces::{Context, Interfaces},
    limits::Limits,
    names::{Meanings, Names},
    numbers::{CountedAddress, Numbers},
    observe::BpfObserve,
    pins::Pins,
    pools::Pools,
    proxies::{Proxies, ProxyMaps, Surroundings},
    records::BpfRecords,
    recount::Found,
    shadow::Shadow,
    sweep::BpfSweeper,
    tables::{Owners, References, TableMaps, Tables},
    tunnels::Tunnels,
    usage::{Meter, Told},
    watchers::{BpfWatchers, Switch},
};
use super::{Connected, Dataplane, Host, Observe, Records, Sweeper, watch::Watchers};
use crate::model::{self, Capacity, NoSession, Snapshot};

/// The programs and maps, as the build made them for the BPF target.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gateway-ebpf"));

/// The program on every interface.
const ENTRY: &str = "gateway";
const SWEEP: &str = "sweep";
/// Programs that are tail called, with their elements of `PROGRAMS`.
const STAGES: [(&str, u32); 16] = [
    ("decide_v4", DECIDE_V4),
    ("decide_v6", DECIDE_V6),
    ("related_v4", RELATED_V4),
    ("related_v6", RELATED_V6),
    ("eip_v4", EIP_V4),
    ("eip_v6", EIP_V6),
    ("map_v4", MAP_V4),
    ("map_v6", MAP_V6),
    ("hairpin_v4", HAIRPIN_V4),
    ("hairpin_v6", HAIRPIN_V6),
    ("proxy_v4", PROXY_V4),
    ("proxy_v6", PROXY_V6),
    ("inward_v4", INWARD_V4),
    ("inward_v6", INWARD_V6),
    ("decapsulate", DECAPSULATE),
    ("encapsulate", ENCAPSULATE),
];

/// How long a session is kept whose connection was refused: repeated SYNs that were under way are refused by
/// then.
const REFUSED: Duration = Duration::from_secs(10);

/// First generation: 0 and 1 have meanings of their own in sessions.
const FIRST_GENERATION: u32 = 2;

/// Where the data plane is pinned and how large it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory on a BPF file system.
    pub pin_dir: PathBuf,
    /// Sizes of the maps.
    pub capacity: Capacity,
}

/// What the verifier counted for a program.
#[derive(Clone, Debug)]
pub struct ProgramCost {
    /// Name.
    pub name: String,
    /// Instructions that the verifier looked at; its limit is a million.
    pub verified_instructions: u32,
}

/// The data plane in the kernel.
pub struct BpfDataplane {
    pins: Pins,
    ebpf: Ebpf,
    switch: Arc<Switch>,
    /// What the kernel's configuration holds.
    config: Config,
    capacity: Capacity,
    // Not before the first `host_changed`, which tells the devices.
    interfaces: Option<Interfaces>,
    addresses: Addresses,
    eips: Eips,
    limits: Limits,
    pools: Pools,
    proxies: Proxies,
    tunnels: Tunnels,
    tables: Tables,
    sweeper: Arc<BpfSweeper>,
    /// What the sweeper was told last.
    groups: Option<BTreeMap<String, model::Group>>,
    scale: Scale,
    sweep: Arc<sweep::Program>,
    /// What numbers in records stand for.
    meanings: Meanings,
    numbers: Arc<RwLock<Numbers>>,
    observe: Arc<BpfObserve>,
    shadow: Arc<Shadow>,
    host: Host,
    /// What was applied last.
    applied: Option<Snapshot>,
    /// Where system routes lead, by that and the host.
    connected: Connected,
    /// Whether the kernel may lack a part of what was applied, because the last attempt failed.
    incomplete: bool,
}

impl BpfDataplane {
    /// Loads the programs, and makes the maps or takes over those that are pinned. Packets do not notice.
    ///
    /// # Errors
    /// What is pinned is of another version or size, or the kernel refuses something.
    pub fn open(options: &Options) -> Result<Self> {
        let pins = Pins::create(&options.pin_dir)?;
        let sessions = options.capacity.sessions;
        let elements = sessions
            .checked_mul(2)
            .ok_or_else(|| anyhow!("capacity.sessions {sessions} is more than the kernel can count"))?;
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow!("cannot read {what}: {error}"))?;
        let mut object = Object::parse(OBJECT).context("cannot read the XDP object")?;
        let session_buckets = buckets(elements);
        for (name, entries) in [("SESSIONS_V4", session_buckets), ("SESSIONS_V6", elements)] {
            object.maps.get_mut(name).context("a session map is missing")?.set_max_entries(entries);
        }
        let destinations = ports::capacity(sessions);
        object.maps.get_mut("PORTS").context("map PORTS is missing")?.set_max_entries(destinations);
        let buckets = limit::capacity(sessions);
        for name in ["DESTINATIONS", "SOURCES"] {
            object.maps.get_mut(name).context("a map of buckets is missing")?.set_max_entries(buckets);
        }
        let datagrams = fragment::capacity(sessions, cpus as u32);
        object.maps.get_mut("FRAGMENTS").context("map FRAGMENTS is missing")?.set_max_entries(datagrams);
        object.maps.retain(|name, _| !name.starts_with('.'));
        pins.check(&object)?;
        let paths: Vec<_> = object.maps.keys().map(|name| (name.clone(), pins.map(name))).collect();
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::STATS);
        loader.map_max_entries("SESSIONS_V4", session_buckets).map_max_entries("SESSIONS_V6", elements);
        loader.map_max_entries("DESTINATIONS", buckets).map_max_entries("SOURCES", buckets);
        loader.map_max_entries("PORTS", destinations).map_max_entries("FRAGMENTS", datagrams);
        for (name, path) in &paths {
            loader.map_pin_path(name, path);
        }
        let mut ebpf = loader.load(OBJECT).context("cannot load the XDP object")?;
        load_programs(&mut ebpf, &pins)?;
        let shadow = Arc::new(Shadow::of(&mut ebpf, &pins, cpus)?);
        Self::take_over(ebpf, pins, options.capacity, shadow)
    }

    /// Begins anew on the maps as they are now, as the next daemon would, with the programs that are loaded.
    ///
    /// # Errors
    /// As [`BpfDataplane::open`].
    pub fn reopen(self) -> Result<Self> {
        Self::take_over(self.ebpf, self.pins, self.capacity, self.shadow)
    }

    /// Takes over what the pinned maps hold.
    fn take_over(mut ebpf: Ebpf, pins: Pins, capacity: Capacity, shadow: Arc<Shadow>) -> Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow!("cannot read {what}: {error}"))?;
        let mut config_map: Array<_, Config> = pins.open("CONFIG")?;
        let mut config = config_map.get(&0, 0).context("cannot read the configuration")?;
        let fresh = config.abi == 0;
        if fresh {
            config.abi = ABI_VERSION;
            config.generation = FIRST_GENERATION;
            config.secret = random()?;
            // As many as `open` has made room for.
            config.elements = capacity.sessions * 2;
            config.buckets = buckets(config.elements);
            config_map.set(0, config, 0).context("cannot write the configuration")?;
        }
        // Whoever watched has gone with its daemon.
        config.policy = config.policy.with_watched(false).with_sessions_watched(false);
        config.watched_until = 0;
        let half = 1 - config.half.min(1);
        let numbers = Arc::new(RwLock::new(Numbers::default()));
        let counters = RouteCounters::new(
            pins.open("ROUTE_COUNTERS")?,
            pins.open("ROUTE_OWNERS")?,
            cpus,
            Arc::clone(&numbers),
        )?;
        let names = Names::new(pins.open("LOG_NAMES")?)?;
        let meanings = names.meanings();
        let maps = TableMaps {
            bindings: pins.open("BINDINGS")?,
            rules: pins.open("RULES")?,
            routers: pins.open("ROUTERS")?,
        };
        let owners = Owners { counters, names };
        let tables = Tables::new(maps, &pins, owners, capacity.routes, config.policy.bindings(), half)?;
        let pools =
            Pools::new(pins.open("POOLS")?, pins.open("POOL_MEMBERS")?, pins.open("POOL_ADDRESSES")?, half)?;
        let proxies = Proxies::new(ProxyMaps {
            proxies: pins.open("PROXIES")?,
            hosts: pins.open("PROXY_HOSTS")?,
            macs: pins.open("PROXY_MACS")?,
            flows: pins.open("PROXY_FLOWS")?,
            tunnels: pins.open("TUNNELS")?,
            tunnel_hosts: pins.open("TUNNEL_HOSTS")?,
        })?;
        config.half = half;
        let scale = Scale::of_this_kernel()?;
        config.tick_shift = scale.shift();
        let sweep = Arc::new(sweep::Program::new(program(&mut ebpf, SWEEP)?.fd()?.try_clone()?));
        let (found, told) = (Arc::<Found>::default(), Arc::<Told>::default());
        let clock = Clock::new(Arc::clone(&sweep), scale);
        Ok(Self {
            switch: Arc::new(Switch::new(config_map)),
            config,
            capacity,
            interfaces: None,
            addresses: Addresses::new(pins.open("ADDRESSES")?)?,
            eips: Eips::new(pins.open("EIPS")?, config.policy.eips())?,
            limits: Limits::new(
                pins.open("LIMITS")?,
                pins.open("LIMIT_COUNTERS")?,
                cpus,
                config.policy.limits(),
            )?,
            pools,
            proxies,
            tunnels: Tunnels::default(),
            tables,
            sweeper: Arc::new(BpfSweeper::new(
                Arc::clone(&sweep),
                &pins,
                config.timeouts,
                Arc::clone(&found),
                Meter::new(&pins, Arc::clone(&told))?,
            )?),
            groups: None,
            scale,
            sweep,
            meanings,
            observe: Arc::new(BpfObserve::new(
                clock,
                &pins,
                (Arc::clone(&numbers), found, told),
                capacity.sessions,
                Arc::clone(&shadow),
            )?),
            shadow,
            numbers,
            host: Host::default(),
            applied: None,
            connected: Connected::default(),
            incomplete: false,
            ebpf,
            pins,
        })
    }

    /// The messages of the packet path. All readers share one place in them.
    pub fn events(&self) -> Result<RingBuf<MapData>> {
        self.pins.open("EVENTS")
    }

    /// What the packet path records of sessions. There is to be one reader.
    pub fn records(&self) -> Result<Box<dyn Records>> {
        let clock = Clock::new(Arc::clone(&self.sweep), self.scale);
        Ok(Box::new(BpfRecords::new(&self.pins, self.meanings.clone(), clock)?))
    }

    /// What packets are shown by. There is to be one reader.
    pub fn watchers(&self) -> Result<Box<dyn Watchers>> {
        let clock = Clock::new(Arc::clone(&self.sweep), self.scale);
        let (switch, numbers) = (Arc::clone(&self.switch), Arc::clone(&self.numbers));
        Ok(Box::new(BpfWatchers::new(&self.pins, switch, numbers, clock, self.scale)?))
    }

    /// Takes the program off every device. The maps stay as they are.
    ///
    /// # Errors
    /// The kernel keeps it on a device.
    pub fn detach(&mut self) -> Result<()> {
        interfaces_of(&mut self.interfaces)?.detach_unwanted(&self.pins, &BTreeMap::new(), &self.host)
    }

    /// Runs the program on one frame as if it had arrived on `ingress_ifindex`; counters and sessions move as
    /// for any packet, but nothing is sent. Returns the XDP action and the frame as the program left it.
    pub fn run_packet(&self, ingress_ifindex: u32, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let program: &Xdp = self.ebpf.program(ENTRY).context("the program is missing")?.try_into()?;
        Self::run_packet_on(program, ingress_ifindex, frame)
    }

    /// As [`BpfDataplane::run_packet`], on what [`BpfDataplane::entry_again`] returns, for packets that come while
    /// the policy changes.
    pub fn run_packet_on(program: &Xdp, ingress_ifindex: u32, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        /// `struct xdp_md`.
        #[repr(C)]
        struct Context([u32; 6]);
        let context = Context([0, frame.len() as u32, 0, ingress_ifindex, 0, 0]);
        // SAFETY: the structure is plain and lives until the end of the call.
        let context =
            unsafe { std::slice::from_raw_parts((&raw const context).cast::<u8>(), size_of::<Context>()) };
        let mut out = vec![0; frame.len() + 256];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(context),
                ..TestRunOptions::default()
            })
            .context("cannot run the program")?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// The program on every interface, for benchmarks.
    pub fn entry_program(&mut self) -> Result<&mut Xdp> {
        program(&mut self.ebpf, ENTRY)
    }

    /// Another handle of the program on every interface.
    pub fn entry_again(&mut self) -> Result<Xdp> {
        let pin = self.pins.map("entry");
        program(&mut self.ebpf, ENTRY)?.pin(&pin).context("cannot pin the program")?;
        let again = Xdp::from_pin(&pin, XdpAttachType::Interface).context("cannot open the program");
        std::fs::remove_file(&pin).context("cannot remove the pin of the program")?;
        again
    }

    /// What the verifier counted for each program.
    pub fn program_costs(&mut self) -> Result<Vec<ProgramCost>> {
        let names = [ENTRY, SWEEP].into_iter().chain(STAGES.map(|(name, _)| name));
        names
            .map(|name| {
                let info = program(&mut self.ebpf, name)?.info()?;
                let verified_instructions = info.verified_instruction_count().unwrap_or(0);
                Ok(ProgramCost { name: name.to_owned(), verified_instructions })
            })
            .collect()
    }

    /// Makes everything that `to` asks for; what it no longer asks for goes after it is in force.
    fn realize(&mut self, to: &Snapshot) -> Result<()> {
        let interfaces = self.interfaces.as_mut().context("the devices of the host are not known yet")?;
        let before = self.applied.as_ref().map(|applied| &applied.interfaces);
        let mut context = Context {
            program: program(&mut self.ebpf, ENTRY)?,
            pins: &self.pins,
            host: &self.host,
            // In force, or about to be.
            active: self.config.policy.is_active() || to.active,
            proxied: proxies::devices(to, &self.host),
        };
        interfaces.attach(&mut context, before, &to.interfaces)?;
        self.pools.write(&to.pools, &self.host)?;
        let eips = self.eips.write(&to.eips)?;
        let limits = self.limits.write(&to.limits)?;
        self.addresses.add(&self.host, self.pools.meanings(), to.eips.keys())?;
        let devices = devices(&self.host);
        self.connected = Connected::of(&self.host, to);
        self.tunnels.write(to)?;
        let around = Surroundings {
            host: &self.host,
            slots: interfaces.slots(),
            pools: self.pools.numbers(),
            tunnels: self.tunnels.devices(),
        };
        self.proxies.write(to, &around)?;
        let references = References {
            pools: self.pools.numbers(),
            proxies: self.proxies.numbers(),
            slots: interfaces.slots(),
            devices: &devices,
            connected: &self.connected,
            access_log: to.access_log.as_ref(),
        };
        let policy = self.config.policy;
        let alone = (eips, limits, to.active) == (policy.eips(), policy.limits(), policy.is_active());
        let pending = self.tables.prepare(&to.tables, &references, alone)?;
        // No packet looks at them, and what a group has used is forgotten with it: the last that can fail. A pause of the
        // sweep is waited for, so only where they change.
        if self.groups.as_ref() != Some(&to.groups) {
            self.groups = None;
            self.sweeper.set_groups(&to.groups)?;
            self.groups = Some(to.groups.clone());
        }

        // From here on nothing fails but the writing of words into maps that exist.
        self.config.timeouts = timeouts(&to.timeouts, self.scale);
        self.sweeper.set_timeouts(self.config.timeouts);
        self.config.half_open = to.capacity.half_open();
        self.config.no_session = match to.no_session {
            NoSession::Reset => config::NO_SESSION_RESET,
            NoSession::Drop => config::NO_SESSION_DROP,
        };
        let all = to.access_log.as_ref().is_some_and(|log| log.all);
        self.config.unrouted = if all { self.tables.unrouted()?.into() } else { 0 };
        self.config.inside_slots = interfaces.inside_slots(&to.interfaces);
        let mut bindings = to.tables.values().flat_map(|table| &table.bindings);
        self.config.policy = Policy::default()
            .with_active(to.active)
            .with_bindings(self.tables.bindings(pending.as_ref()))
            .with_interfaces(bindings.any(|binding| binding.iif.is_some()))
            .with_eips(eips)
            .with_limits(limits)
            .with_border(self.tables.border(&to.tables, pending.as_ref()));
        self.write_config()?;
        self.eips.commit(eips);
        if self.limits.commit(limits, &to.limits) {
            self.sweeper.recharge();
        }
        let interfaces = interfaces_of(&mut self.interfaces)?;
        interfaces.detach_unwanted(&self.pins, &to.interfaces, &self.host)?;
        if !to.active {
            interfaces.open_all()?;
        }
        self.proxies.remove_unused(&to.proxies)?;
        self.tunnels.remove_unused(to)?;
        self.pools.remove_unused(&to.pools)?;
        self.addresses.remove_unused(&self.host, self.pools.meanings(), to.eips.keys())?;
        // The generation moves last: what is decided under it has seen all of the change.
        self.move_generation()?;
        if let Some(pending) = pending {
            self.tables.commit(pending, &to.tables)?;
        }
        self.tables.tidy(&to.tables)?;
        self.publish(to)
    }

    /// Whether `to` is what was applied, but for tables. The very same state is applied again for what is around it.
    fn has_other_tables_only(&self, to: &Snapshot) -> bool {
        let Some(applied) = self.applied.as_ref().filter(|_| !self.incomplete) else { return false };
        let Snapshot {
            // Nothing of the kernel's.
            name: _,
            tables,
            active,
            capacity,
            timeouts,
            no_session,
            interfaces,
            pools,
            eips,
            proxies,
            limits,
            groups,
            access_log,
        } = applied;
        (*active, *capacity, *timeouts, *no_session) == (to.active, to.capacity, to.timeouts, to.no_session)
            && *interfaces == to.interfaces
            && *pools == to.pools
            && *eips == to.eips
            && *proxies == to.proxies
            && *limits == to.limits
            && *groups == to.groups
            && *access_log == to.access_log
            && *tables != to.tables
    }

    /// Makes the tables of `to`, which is in force but for these. Pools, proxies and their neighbours are left alone.
    fn realize_tables(&mut self, to: &Snapshot) -> Result<()> {
        let slots = interfaces_of(&mut self.interfaces)?.slots();
        let devices = devices(&self.host);
        let references = References {
            pools: self.pools.numbers(),
            proxies: self.proxies.numbers(),
            slots,
            devices: &devices,
            connected: &self.connected,
            access_log: to.access_log.as_ref(),
        };
        let pending = self.tables.prepare(&to.tables, &references, true)?;
        let mut bindings = to.tables.values().flat_map(|table| &table.bindings);
        let policy = self
            .config
            .policy
            .with_bindings(self.tables.bindings(pending.as_ref()))
            .with_interfaces(bindings.any(|binding| binding.iif.is_some()))
            .with_border(self.tables.border(&to.tables, pending.as_ref()));
        if policy != self.config.policy {
            self.config.policy = policy;
            self.write_config()?;
        }
        self.move_generation()?;
        if let Some(pending) = pending {
            self.tables.commit(pending, &to.tables)?;
        }
        self.tables.tidy(&to.tables)
    }

    /// Tells the reading side what the numbers mean.
    fn publish(&mut self, to: &Snapshot) -> Result<()> {
        let interfaces = interfaces_of(&mut self.interfaces)?;
        let mut pool_addresses = BTreeMap::new();
        let elements: BTreeMap<_, _> = self.pools.elements().collect();
        for pool in to.pools.values() {
            for address in &pool.addresses {
                if let Some(element) = elements.get(address) {
                    let counted = CountedAddress {
                        pool: pool.name.clone(),
                        address: *address,
                        ports: pool.ports.count(),
                        drained: pool.drained.contains(address),
                        limit: pools::limit(pool),
                    };
                    pool_addresses.insert(*element, counted);
                }
            }
        }
        let mut numbers = self.numbers.write().unwrap_or_else(PoisonError::into_inner);
        numbers.pool_addresses = pool_addresses;
        numbers.proxy_hosts = self.proxies.hosts(&to.proxies);
        numbers.eips = self.eips.count();
        numbers.limits = self.limits.numbers(&to.limits).collect();
        numbers.half_open = to.capacity.half_open();
        numbers.interfaces = interfaces.status(&to.interfaces);
        for (name, slot) in interfaces.slots() {
            numbers.slots.insert(*slot, name.clone());
        }
        Ok(())
    }

    /// Looks at the neighbours again that are hosts of proxies.
    fn refresh_proxies(&mut self, applied: &Snapshot) -> Result<()> {
        let interfaces = interfaces_of(&mut self.interfaces)?;
        let around = Surroundings {
            host: &self.host,
            slots: interfaces.slots(),
            pools: self.pools.numbers(),
            tunnels: self.tunnels.devices(),
        };
        self.proxies.refresh(applied, &around)
    }

    fn move_generation(&mut self) -> Result<()> {
        self.config.generation = match self.config.generation.wrapping_add(1) {
            // 0, 1 and the highest have meanings of their own in sessions.
            generation if generation < FIRST_GENERATION || generation == u32::MAX => FIRST_GENERATION,
            generation => generation,
        };
        self.write_config()
    }

    fn write_config(&mut self) -> Result<()> {
        self.switch.write(self.config)
    }
}

impl Dataplane for BpfDataplane {
    fn apply(&mut self, from: Option<&Snapshot>, to: &Snapshot) -> Result<()> {
        let before = self.config;
        let result = if self.has_other_tables_only(to) { self.realize_tables(to) } else { self.realize(to) };
        if let (Err(error), Some(from)) = (&result, from) {
            tracing::warn!(
                error = format!("{error:#}"),
                "a change failed, going back to the state before it"
            );
            self.config = Config { generation: self.config.generation, ..before };
            let back = self.realize(from);
            self.incomplete = back.is_err();
            back.context("cannot go back to the state before a change that failed")?;
        }
        if result.is_ok() {
            self.applied = Some(to.clone());
        }
        result
    }

    fn health_changed(&mut self, up: &BTreeMap<(String, IpAddr), bool>) -> Result<()> {
        self.proxies.health_changed(up, self.applied.as_ref())
    }

    fn host_changed(&mut self, host: &Host) -> Result<()> {
        let changed = self.host != *host;
        self.host = host.clone();
        if self.interfaces.is_none() {
            let (records, egress) = (self.pins.open("INTERFACES")?, self.pins.open("EGRESS")?);
            self.interfaces = Some(Interfaces::new(records, egress, host)?);
        }
        match self.applied.take() {
            // Devices that came, went or changed are a change of what the same state needs.
            Some(applied) if changed || self.incomplete => {
                let result = self.realize(&applied);
                self.incomplete = result.is_err();
                self.applied = Some(applied);
                result
            }
            Some(applied) => {
                let refreshed = self.refresh_proxies(&applied);
                self.applied = Some(applied);
                refreshed?;
                self.move_generation()
            }
            None => Ok(()),
        }
    }

    fn remove(&mut self) -> Result<()> {
        self.detach()?;
        self.tunnels.remove_unused(&Snapshot::default())?;
        self.pins.remove()
    }

    fn sweeper(&self) -> Arc<dyn Sweeper> {
        Arc::clone(&self.sweeper) as Arc<dyn Sweeper>
    }

    fn observe(&self) -> Arc<dyn Observe> {
        Arc::clone(&self.observe) as Arc<dyn Observe>
    }
}

fn interfaces_of(interfaces: &mut Option<Interfaces>) -> Result<&mut Interfaces> {
    interfaces.as_mut().context("the devices of the host are not known yet")
}

/// Ifindexes of the host's devices by name.
fn devices(host: &Host) -> BTreeMap<String, u32> {
    host.links.iter().map(|(name, link)| (name.clone(), link.index)).collect()
}

/// Loads every program and makes the stages known to the entry.
fn load_programs(ebpf: &mut Ebpf, pins: &Pins) -> Result<()> {
    for name in [ENTRY, SWEEP].into_iter().chain(STAGES.map(|(name, _)| name)) {
        program(ebpf, name)?.load().with_context(|| format!("the kernel refuses the program `{name}`"))?;
    }
    let mut programs: ProgramArray<MapData> = pins.open("PROGRAMS")?;
    for (name, element) in STAGES {
        let fd = program(ebpf, name)?.fd()?.try_clone()?;
        programs.set(element, &fd, 0).with_context(|| format!("cannot enter the program `{name}`"))?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program `{name}`"))?;
    Ok(program.try_into()?)
}

/// Idle times in ticks.
fn timeouts(timeouts: &model::Timeouts, scale: Scale) -> config::Timeouts {
    config::Timeouts {
        tcp_established: scale.ticks(timeouts.tcp_established),
        tcp_opening: scale.ticks(timeouts.tcp_opening),
        tcp_closing: scale.ticks(timeouts.tcp_closing),
        tcp_refused: scale.ticks(timeouts.tcp_closing.min(REFUSED)),
        udp: scale.ticks(timeouts.udp),
        udp_dns: scale.ticks(timeouts.udp_dns),
        icmp: scale.ticks(timeouts.icmp),
    }
}

fn random() -> Result<u32> {
    use std::io::Read as _;
    let mut bytes = [0; 4];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(u32::from_ne_bytes(bytes))
}
