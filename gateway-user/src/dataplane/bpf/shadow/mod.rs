//! The shadow: the programs once more, on maps of their own, to try packets on.
//!
//! It is loaded from the object that the gateway's programs are from, and the kernel's digests of both are compared. What
//! the programs only read, the policy, is the gateway's own: the same maps. What they write, sessions, buckets, counters,
//! caches, is the shadow's. Before a trial the elements that the packet may meet are copied there ([`state`]); after it,
//! its counters say what became of the packet. So a trial decides by the very instructions that packets meet, and
//! writes nothing that any of them reads.
//!
//! A map that is not named in [`POLICY`] is the shadow's own: to forget one costs accuracy, not safety.

mod flow;
mod state;

use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, MapData, PerCpuArray, PerCpuValues, ProgramArray},
    programs::Xdp,
};
use gateway_common::{
    DropReason, Verdict,
    config::Config,
    counter::{Counter, traffic_index},
    fragment,
    interface::NO_SLOT,
};

use super::{BpfDataplane, ENTRY, OBJECT, STAGES, numbers::Numbers, observe::sum, pins::Pins, program};
use crate::dataplane::{Trial, Tried};

pub(super) use state::Live;

/// Maps that packets only read.
const POLICY: [&str; 18] = [
    "ADDRESSES",
    "BINDINGS",
    "EGRESS",
    "EIPS",
    "INTERFACES",
    "LIMITS",
    "POOLS",
    "POOL_ADDRESSES",
    "POOL_MEMBERS",
    "PROXIES",
    "PROXY_HOSTS",
    "PROXY_MACS",
    "ROUTERS",
    "ROUTES_V4",
    "ROUTES_V6",
    "RULES",
    "TUNNELS",
    "TUNNEL_HOSTS",
];

/// Elements of the shadow's own maps: a packet meets a few sessions and, for each address of a pool, a bucket.
const SIZES: [(&str, u32); 11] = [
    ("SESSIONS_V4", flow::BUCKETS),
    ("SESSIONS_V6", flow::ELEMENTS_V6),
    ("DESTINATIONS", 16_384),
    ("SOURCES", 64),
    ("PORTS", 256),
    ("CUTS_V4", 64),
    ("CUTS_V6", 64),
    // Next hops are asked for and not remembered: what is remembered may be of another time.
    ("NEXT_HOPS", 1),
    ("EVENTS", 4_096),
    ("RECORDS", 4_096),
    ("WATCHED", 4_096),
];

/// How often a trial is made again because the policy has changed meanwhile.
const ATTEMPTS: usize = 5;

/// The shadow of a data plane, which is loaded when it is first needed.
pub(super) struct Shadow {
    pins: Pins,
    /// Digests of the gateway's own programs.
    tags: Vec<u64>,
    cpus: u32,
    loaded: Mutex<Option<Loaded>>,
}

struct Loaded {
    ebpf: Ebpf,
    config: Array<MapData, Config>,
    traffic: PerCpuArray<MapData, Counter>,
    drops: PerCpuArray<MapData, Counter>,
    routes: PerCpuArray<MapData, Counter>,
    state: state::Copies,
    zero: PerCpuValues<Counter>,
    // The kernel empties it when nobody in user space has it any more.
    _stages: ProgramArray<MapData>,
}

impl Shadow {
    /// The shadow of the programs in `ebpf`.
    pub(super) fn of(ebpf: &mut Ebpf, pins: &Pins, cpus: usize) -> Result<Self> {
        Ok(Self { pins: pins.clone(), tags: tags(ebpf)?, cpus: cpus as u32, loaded: Mutex::default() })
    }

    /// Tries a frame.
    ///
    /// # Errors
    /// The kernel refuses something, or the policy does not stop changing.
    pub(super) fn run(&self, live: &Live, numbers: &Numbers, trial: &Trial<'_>) -> Result<Tried> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let shadow = match &mut *loaded {
            Some(shadow) => shadow,
            none => none.insert(self.load().context("cannot load the programs for a trial")?),
        };
        for _ in 0..ATTEMPTS {
            let before = live.config()?;
            let tried = shadow.run(live, before, numbers, trial)?;
            let after = live.config()?;
            if (before.policy, before.generation) == (after.policy, after.generation) {
                return Ok(tried);
            }
        }
        bail!("the policy changes too fast for a trial")
    }

    fn load(&self) -> Result<Loaded> {
        let paths = POLICY.map(|name| (name, self.pins.map(name)));
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::STATS);
        for (name, path) in &paths {
            loader.map_pin_path(name, path);
        }
        for (name, entries) in SIZES {
            loader.map_max_entries(name, entries);
        }
        loader.map_max_entries("FRAGMENTS", fragment::capacity(0, self.cpus));
        let mut ebpf = loader.load(OBJECT).context("cannot load the XDP object")?;
        for name in [ENTRY].into_iter().chain(STAGES.map(|(name, _)| name)) {
            let program = program(&mut ebpf, name)?;
            program.load().with_context(|| format!("the kernel refuses the program `{name}`"))?;
        }
        ensure!(tags(&mut ebpf)? == self.tags, "the programs on the devices are not those of this daemon");
        let mut programs = ProgramArray::try_from(take(&mut ebpf, "PROGRAMS")?)?;
        for (name, element) in STAGES {
            let stage = program(&mut ebpf, name)?.fd()?.try_clone()?;
            programs.set(element, &stage, 0).with_context(|| format!("cannot enter the program `{name}`"))?;
        }
        let zero = vec![Counter::default(); self.cpus as usize];
        Ok(Loaded {
            config: Array::try_from(take(&mut ebpf, "CONFIG")?)?,
            traffic: PerCpuArray::try_from(take(&mut ebpf, "TRAFFIC")?)?,
            drops: PerCpuArray::try_from(take(&mut ebpf, "DROPS")?)?,
            routes: PerCpuArray::try_from(take(&mut ebpf, "ROUTE_COUNTERS")?)?,
            state: state::Copies::of(&mut ebpf)?,
            zero: PerCpuValues::try_from(zero).context("cannot clear counters")?,
            ebpf,
            _stages: programs,
        })
    }
}

impl Loaded {
    fn run(&mut self, live: &Live, config: Config, numbers: &Numbers, trial: &Trial<'_>) -> Result<Tried> {
        let copied = self.state.prepare(live, &config, numbers, trial.frame)?;
        let policy = config.policy;
        let policy = policy.with_active(policy.is_active() || trial.as_active);
        let (buckets, elements) = (flow::BUCKETS, copied.elements);
        self.config.set(0, Config { policy, buckets, elements, ..config }, 0)?;
        let candidates: Vec<u32> = numbers
            .routes
            .iter()
            .filter(|(_, route)| copied.addresses.iter().any(|address| route.key.prefix.contains(address)))
            .map(|(number, _)| *number)
            .collect();
        for number in &candidates {
            self.routes.set(*number, clone(&self.zero)?, 0)?;
        }
        let entry: &Xdp = self.ebpf.program(ENTRY).context("the program is missing")?.try_into()?;
        let (_, frame) = BpfDataplane::run_packet_on(entry, trial.ifindex, trial.frame)?;
        let (verdict, egress) = self.verdict(numbers)?;
        let reason = self.reason()?;
        let mut routes = Vec::new();
        for number in candidates {
            if sum(&self.routes.get(&number, 0)?).packets > 0
                && let Some(route) = numbers.routes.get(&number)
            {
                routes.push((route.table.to_string(), route.key));
            }
        }
        let opens = self.state.created()?;
        Ok(Tried { verdict, reason, egress, frame, routes, opens })
    }

    /// What became of the packet, and where it went: the one cell of the matrix that has moved, which is cleared.
    fn verdict(&mut self, numbers: &Numbers) -> Result<(Verdict, Option<String>)> {
        // What stays comes first: there are fewer such cells.
        for egress in [NO_SLOT].iter().chain(numbers.slots.keys()) {
            for ingress in numbers.slots.keys().chain([&NO_SLOT]) {
                for verdict in Verdict::ALL {
                    let index = traffic_index(*ingress, *egress, *verdict);
                    if sum(&self.traffic.get(&index, 0)?).packets > 0 {
                        self.traffic.set(index, clone(&self.zero)?, 0)?;
                        return Ok((*verdict, numbers.slots.get(egress).cloned()));
                    }
                }
            }
        }
        // Of a device that is just being taken away, a packet is counted by its reason alone.
        Ok((Verdict::Drop, None))
    }

    /// Why the packet was dropped; the counter is cleared.
    fn reason(&mut self) -> Result<Option<DropReason>> {
        for reason in DropReason::ALL {
            let index = u32::from(*reason as u8);
            if sum(&self.drops.get(&index, 0)?).packets > 0 {
                self.drops.set(index, clone(&self.zero)?, 0)?;
                return Ok(Some(*reason));
            }
        }
        Ok(None)
    }
}

fn clone(values: &PerCpuValues<Counter>) -> Result<PerCpuValues<Counter>> {
    PerCpuValues::try_from(values.to_vec()).context("cannot clear counters")
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))
}

/// The kernel's digests of all programs that packets meet; descriptors of maps are no part of them.
fn tags(ebpf: &mut Ebpf) -> Result<Vec<u64>> {
    let names = [ENTRY].into_iter().chain(STAGES.map(|(name, _)| name));
    names.map(|name| Ok(program(ebpf, name)?.info()?.tag())).collect()
}
