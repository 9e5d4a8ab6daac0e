//! Nanoseconds that the gateway's program takes for a packet of an established session.
//!
//! `BPF_PROG_RUN` runs a program on one packet many times over. The very program that the daemon has attached
//! is run, behind one that restores the headers (see `gateway-ebpf/src/bench`); the time of a program that
//! only restores them and does nothing is taken off. The unit beside nanoseconds is a hit in a hash table
//! with a key of 16 bytes: what the least translation cannot do without, on the same machine in the same
//! minute.

use anyhow::{Context as _, Result, bail, ensure};
use aya::{Ebpf, programs::Xdp};
use gateway_lab::Gatewayd;
use serde::Serialize;

use crate::{
    Options, cpu,
    frame::{ACK, Flow, LENGTH, SYN, Transport, shuffle},
    kernel::{CONTROL, Kernel, LOOK_UP, MEASURE, MEASURE_OTHER, NOTHING, XDP_REDIRECT},
    network::{DEVICE, Network, POOL, ifindex, load_on_maps_of, mac, programs_of},
    report::Report,
    statistic::Samples,
};

/// Elements of the hash table: as many as two for each session of a gateway of the default capacity.
const TABLE_CAPACITY: u32 = 2 * 1_048_576;

/// Nanoseconds over an empty program that one flow may take.
const TARGET: f64 = 60.0;

/// The gateway's program, as its object calls it.
const ENTRY: &str = "gateway";

/// What is measured, the programs by name. The last one only where there is another build.
const VARIANTS: [&str; 5] = [NOTHING, CONTROL, MEASURE, LOOK_UP, MEASURE_OTHER];

/// Packets of one kind.
#[derive(Clone, Copy, Debug, Serialize)]
struct Case {
    protocol: &'static str,
    direction: Direction,
    flows: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Direction {
    Out,
    Back,
}

const CASES: &[Case] = &[
    Case { protocol: "tcp", direction: Direction::Out, flows: 1 },
    Case { protocol: "tcp", direction: Direction::Out, flows: 1_024 },
    Case { protocol: "tcp", direction: Direction::Out, flows: 8_192 },
    Case { protocol: "tcp", direction: Direction::Out, flows: 65_536 },
    Case { protocol: "tcp", direction: Direction::Back, flows: 1 },
    Case { protocol: "udp", direction: Direction::Out, flows: 1 },
];

/// What was measured of a case, nanoseconds of one packet.
#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    case: Case,
    /// An empty program.
    empty: Samples,
    /// Headers restored.
    control: Samples,
    /// Headers restored, gateway.
    gateway: Samples,
    /// The gateway alone.
    over_empty: Samples,
    /// A hit in a hash table alone.
    hit: Samples,
    /// The gateway in hits.
    hits: Samples,
    /// Another build alone.
    other_over_empty: Option<Samples>,
    /// The gateway over the other build.
    gateway_over_other: Option<Samples>,
}

/// Measures all cases.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let title = format!(
        "Established path: ns per packet, median [least .. greatest] of {} rounds of {} packets",
        options.rounds, options.packets
    );
    let mut headings =
        vec!["PACKETS", "FLOWS", "EMPTY", "CONTROL", "GATEWAY", "OVER EMPTY", "HASH HIT", "IN HITS"];
    if options.against.is_some() {
        headings.extend(["OTHER", "GATEWAY / OTHER"]);
    }
    let mut report = Report::new("path", title, &headings);
    let mut bench = Bench::new(options)?;
    for case in CASES {
        let outcome = bench.run(*case, options)?;
        let Outcome { empty, control, gateway, over_empty, hit, hits, .. } = &outcome;
        let mut cells = vec![
            format!("{} {}", case.protocol, if case.direction == Direction::Out { "out" } else { "back" }),
            case.flows.to_string(),
            format!("{:.1}", empty.median()),
            format!("{:.1}", control.median()),
            format!("{:.1}", gateway.median()),
            over_empty.to_string(),
            hit.to_string(),
            format!("{hits:.2}"),
        ];
        if let (Some(other), Some(ratio)) = (&outcome.other_over_empty, &outcome.gateway_over_other) {
            cells.extend([other.to_string(), format!("{ratio:.2}")]);
        }
        report.line(&cells);
        if case.flows == 1 {
            let what = format!("{} {:?}, one flow, ns over empty", case.protocol, case.direction);
            report.at_most(&what.to_lowercase(), over_empty.median(), TARGET);
        }
        report.value(&outcome)?;
    }
    Ok(report)
}

/// A running gateway and the programs to measure it with.
struct Bench {
    kernel: Kernel,
    /// Another build of the gateway.
    other: Option<Ebpf>,
    // Ends before its namespaces do.
    daemon: Gatewayd,
    network: Network,
    inside: u32,
    outside: u32,
    /// MAC addresses of the gateway's devices, and of whoever is at their other ends.
    macs: Macs,
}

#[derive(Clone, Copy)]
struct Macs {
    inside: [u8; 6],
    outside: [u8; 6],
    clients: [u8; 6],
    world: [u8; 6],
}

impl Bench {
    fn new(options: &Options) -> Result<Self> {
        cpu::pin_to(cpu::COMMON)?;
        let network = Network::new()?;
        let mut daemon = network.gatewayd()?;
        daemon.start_again(&["--detach-on-exit"])?;
        let mut kernel = Kernel::load(&options.object, TABLE_CAPACITY)?;
        let programs = programs_of(&daemon)?;
        let mut entries = programs.iter().filter(|program| program.name() == ENTRY.as_bytes());
        let entry = entries.next().with_context(|| format!("the daemon has no program `{ENTRY}`"))?;
        kernel.set_gateway(&entry.fd()?)?;
        let mut other = None;
        if let Some(object) = &options.against {
            let mut loaded = load_on_maps_of(&daemon, object)?;
            let program = loaded.program_mut(ENTRY).with_context(|| format!("no program `{ENTRY}`"))?;
            let program: &mut Xdp = program.try_into()?;
            program.load().context("the kernel refuses the other program")?;
            kernel.set_other(program.fd()?)?;
            other = Some(loaded);
        }
        let Network { clients, gateway, world, inside, outside, .. } = &network;
        let macs = Macs {
            inside: mac(gateway, inside)?,
            outside: mac(gateway, outside)?,
            clients: mac(clients, DEVICE)?,
            world: mac(world, DEVICE)?,
        };
        let (inside, outside) = (ifindex(gateway, inside)?, ifindex(gateway, outside)?);
        Ok(Self { kernel, other, daemon, network, inside, outside, macs })
    }

    fn run(&mut self, case: Case, options: &Options) -> Result<Outcome> {
        let Self { kernel, other, daemon, network, inside, outside, macs } = self;
        let variants = if other.is_some() { &VARIANTS[..] } else { &VARIANTS[..4] };
        let ingress = if case.direction == Direction::Out { *inside } else { *outside };
        // BPF_PROG_RUN looks for the device in the namespace of its caller.
        network.gateway.enter(|| {
            cpu::pin_to(cpu::MEASURED)?;
            let frames = open(kernel, case, *inside, *macs)?;
            kernel.fill_table(&frames)?;
            kernel.set_frames(&frames)?;
            let before = Seen::read(daemon)?;
            let samples = rounds(kernel, variants, ingress, options)?;
            let after = Seen::read(daemon)?;
            let forwarded = after.forwarded - before.forwarded;
            let measured = variants.iter().filter(|name| [MEASURE, MEASURE_OTHER].contains(name)).count();
            let wanted = measured as u64 * u64::from(options.rounds + 1) * u64::from(options.packets);
            ensure!(
                forwarded == wanted && after.dropped == before.dropped,
                "the gateway forwarded {forwarded} packets of {wanted}, and dropped {}",
                after.dropped - before.dropped
            );
            let [empty, control, gateway, look_up, other] = samples;
            let (over_empty, hit) = (gateway.minus(&control), look_up.minus(&control));
            let hits = over_empty.over(&hit);
            let other_over_empty = variants.contains(&MEASURE_OTHER).then(|| other.minus(&control));
            let gateway_over_other = other_over_empty.as_ref().map(|other| over_empty.over(other));
            Ok(Outcome {
                case,
                empty,
                control,
                gateway,
                over_empty,
                hit,
                hits,
                other_over_empty,
                gateway_over_other,
            })
        })?
    }
}

/// Packets that the gateway has counted.
struct Seen {
    forwarded: u64,
    dropped: u64,
}

impl Seen {
    fn read(daemon: &Gatewayd) -> Result<Self> {
        let page = daemon.metrics()?;
        let sum = |verdicts: &[&str]| -> u64 {
            let lines = page.lines().filter(|line| {
                line.starts_with("gateway_packets_total{")
                    && line.contains("direction=\"in\"")
                    && verdicts.iter().any(|verdict| line.contains(&format!("verdict=\"{verdict}\"")))
            });
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        Ok(Self { forwarded: sum(&["snat", "reply"]), dropped: sum(&["drop"]) })
    }
}

/// Opens a session for each flow of the case, looks whether the gateway translates them, and returns the
/// frames to measure with.
fn open(kernel: &mut Kernel, case: Case, inside: u32, macs: Macs) -> Result<Vec<[u8; LENGTH]>> {
    let (first, later) = match case.protocol {
        "tcp" => (Transport::Tcp(SYN), Transport::Tcp(ACK)),
        _ => (Transport::Udp, Transport::Udp),
    };
    let mut frames = Vec::with_capacity(case.flows);
    for number in 0..case.flows {
        let flow = Flow::outward(number);
        kernel.set_frames(&[flow.frame(first, macs.inside, macs.clients)])?;
        let ran = kernel.run(MEASURE, inside, 1)?;
        let (translated, _) = Flow::source_of(&ran.frame);
        if ran.action != XDP_REDIRECT || translated.to_string() != POOL {
            bail!("the gateway does not translate {flow:?}: action {}, source {translated}", ran.action);
        }
        frames.push(match case.direction {
            Direction::Out => flow.frame(later, macs.inside, macs.clients),
            Direction::Back => Flow::answering(&ran.frame).frame(later, macs.outside, macs.world),
        });
    }
    shuffle(&mut frames);
    Ok(frames)
}

/// Runs all variants in turns, beginning with another one each round.
fn rounds(
    kernel: &Kernel,
    variants: &[&str],
    ingress: u32,
    options: &Options,
) -> Result<[Samples; VARIANTS.len()]> {
    let mut samples: [Samples; VARIANTS.len()] = Default::default();
    // What comes first finds cold caches.
    for variant in variants {
        kernel.run(variant, ingress, options.packets)?;
    }
    for round in 0..options.rounds as usize {
        for turn in 0..variants.len() {
            let variant = (round + turn) % variants.len();
            let ran = kernel.run(variants[variant], ingress, options.packets)?;
            samples[variant].push(ran.nanoseconds);
        }
    }
    Ok(samples)
}
