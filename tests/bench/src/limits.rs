//! How many connections the limits of destinations admit, next to what they say, and what they cost a new flow.
//!
//! First packets of ever new flows are given to the gateway's program on one processor or on two at once, more than may
//! pass. Buckets are read before and after, while packets go on: they are empty both times, so that what was admitted in
//! between is the rate times the time. Then the same is done far from any limit, and near one where what each client has is
//! noted, to see what that costs.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use gateway_common::{limit::Bucket, ports::Destination};
use gateway_lab::Gatewayd;
use serde::Serialize;

use crate::{
    Options, cpu,
    frame::{Flow, MANY, TEMPLATES, Transport},
    kernel::{Kernel, MEASURE, Order},
    report::Report,
    single::{Probe, Single},
    statistic::Samples,
};

/// A limit, and how it is tried.
#[derive(Clone, Copy, Serialize)]
struct Case {
    /// Connections per second to each destination.
    rate: u32,
    /// A power of two.
    destinations: u32,
    /// Until buckets are empty.
    begin: f64,
    /// How long is measured. An address has 64,512 ports for a destination: they last so long.
    seconds: f64,
}

/// The rates of the targets. All that one processor can offer is shared by many destinations.
const CASES: [Case; 4] = [
    Case { rate: 100, destinations: 1, begin: 1.0, seconds: 10.0 },
    Case { rate: 900, destinations: 1, begin: 1.0, seconds: 10.0 },
    Case { rate: 50_000, destinations: 1, begin: 0.1, seconds: 1.0 },
    Case { rate: 5, destinations: 8_192, begin: 1.0, seconds: 10.0 },
];

/// Processors that open connections at once.
const PROCESSORS: [usize; 2] = [1, 2];

/// The part of the rate that may be missing, or too much.
const TOLERANCE: f64 = 0.01;

/// How many times the nanoseconds of a new flow without limits one with limits may take.
const COST: f64 = 1.1;

/// Clients of the flows to one destination.
const CLIENTS: usize = 128;

/// Packets of a run, between two looks at the clock.
const BATCH: u32 = 4_096;

/// The least burst: where flows to a destination come at even distances, there may be a token between two of them.
const BURST: u32 = 5;

/// The daemon's tables, so that nothing else is at its limit.
const CAPACITY: &str = "[capacity]\nsessions = 2097152\n";

/// Limits of the destinations of [`Flow::template`] when new flows are timed, as `gwctl pool set` has them.
const SETTINGS: [(&str, &str); 3] = [
    ("no limits", "rate 0 concurrent 0"),
    ("far from limits", "rate 10000000 burst 100000000 concurrent 2000000000"),
    // So many connections that are there before make it an eighth of this.
    ("near a limit", "rate 0 concurrent 8000"),
];

/// New flows of a turn: 512 to each destination.
const NEW: u32 = 1 << 16;

/// What was admitted of a case.
#[derive(Serialize)]
struct Admitted {
    case: Case,
    processors: usize,
    /// Connections that were admitted, of those that the limit allows.
    of_limit: Samples,
    /// Connections that were tried, of the same.
    offered: Samples,
}

/// Measures how many are admitted, and what that costs.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let title = format!(
        "Connections that were admitted, of those that the limit allows: median [least .. greatest] of {} rounds",
        options.rounds
    );
    let headings = ["RATE", "DESTINATIONS", "CPUS", "OFFERED", "ADMITTED"];
    let mut report = Report::new("limits", title, "ns of a new flow", &headings);
    for Admitted { case, processors, of_limit, offered } in admitted(options)? {
        report.line(&[
            case.rate.to_string(),
            case.destinations.to_string(),
            processors.to_string(),
            format!("{:.1}", offered.median()),
            format!("{of_limit:.4}"),
        ]);
        let what = format!(
            "part missing or too much: {}/s, {} destinations, {processors} processors",
            case.rate, case.destinations
        );
        let error = of_limit.with(&of_limit, |part, _| (part - 1.0).abs());
        report.at_most(&what, &error, TOLERANCE);
        report.value(&Admitted { case, processors, of_limit, offered })?;
    }
    let times = cost(options)?;
    let [without, far, near] = &times;
    for ((name, _), times) in SETTINGS.iter().zip(&times) {
        report.bar(name, times);
    }
    report.at_most("ns of a new flow far from limits / without", &far.over(without), COST);
    report.at_most("ns of a new flow near a limit / without", &near.over(without), COST);
    report.value(&serde_json::json!({ "without": without, "far": far, "near": near }))?;
    Ok(report)
}

fn admitted(options: &Options) -> Result<Vec<Admitted>> {
    let mut outcomes = Vec::new();
    for case in CASES {
        for processors in PROCESSORS {
            let [of_limit, offered] = Default::default();
            outcomes.push(Admitted { case, processors, of_limit, offered });
        }
    }
    let mut single = Single::new(options, CAPACITY)?;
    for _ in 0..options.rounds {
        for outcome in &mut outcomes {
            single.restart()?;
            let [admitted, refused] = try_case(&mut single, outcome)?;
            outcome.of_limit.push(admitted);
            outcome.offered.push(admitted + refused);
        }
    }
    Ok(outcomes)
}

/// How many were admitted and refused, each of those that the limit allows.
fn try_case(single: &mut Single, outcome: &Admitted) -> Result<[f64; 2]> {
    let Case { rate, destinations, begin, seconds } = outcome.case;
    let burst = BURST.max(rate / 10);
    single.daemon.tell(&format!("pool set nat rate {rate} burst {burst} concurrent 0"))?;
    let Single { probe: Probe { kernel, macs, inside, .. }, network, daemon, .. } = single;
    let flows = flows(destinations);
    let frames: Vec<_> = flows.iter().map(|flow| macs.out(flow, Transport::Udp)).collect();
    kernel.set_templates(&frames)?;
    kernel.set_turns(frames.len(), MANY, Order::Ascending)?;
    let (kernel, inside, done) = (&*kernel, *inside, &AtomicBool::new(false));
    let (counts, time) = thread::scope(|scope| {
        let offering: Vec<_> = [cpu::MEASURED, cpu::COMMON][..outcome.processors]
            .iter()
            .map(|cpu| {
                let gateway = &network.gateway;
                scope.spawn(move || gateway.enter(|| offer(kernel, inside, *cpu, done))?)
            })
            .collect();
        thread::sleep(Duration::from_secs_f64(begin));
        let counted = count_for(daemon, Duration::from_secs_f64(seconds));
        done.store(true, Ordering::Relaxed);
        for thread in offering {
            thread.join().map_err(|_| anyhow::anyhow!("a thread that offers connections panicked"))??;
        }
        counted
    })?;
    let [begin, end] = &counts;
    let mut sums = [0_u64; 2];
    for (bucket, before) in end.iter().zip(begin) {
        let refused = bucket.over_rate - before.over_rate;
        ensure!(refused > 0, "a destination was not asked for more than its limit");
        sums[0] += bucket.admitted - before.admitted;
        sums[1] += refused;
    }
    ensure!(end.len() == destinations as usize, "{} destinations were seen", end.len());
    let allowed = f64::from(rate) * f64::from(destinations) * time.as_secs_f64();
    let [admitted, refused] = sums.map(u32::try_from);
    Ok([f64::from(admitted?) / allowed, f64::from(refused?) / allowed])
}

/// Gives the gateway new flows until all is done.
fn offer(kernel: &Kernel, inside: u32, cpu: usize, done: &AtomicBool) -> Result<()> {
    cpu::pin_to(cpu)?;
    while !done.load(Ordering::Relaxed) {
        kernel.run(MEASURE, inside, BATCH)?;
    }
    Ok(())
}

/// The buckets of all destinations now, and again after a time: which, exactly.
fn count_for(daemon: &Gatewayd, time: Duration) -> Result<([Vec<Bucket>; 2], Duration)> {
    let (before, begin) = buckets(daemon)?;
    thread::sleep(time);
    let (after, end) = buckets(daemon)?;
    Ok(([before, after], end - begin))
}

/// What is counted of all destinations, in the order of their addresses and ports, and when it was.
fn buckets(daemon: &Gatewayd) -> Result<(Vec<Bucket>, Instant)> {
    let pin = daemon.pin_dir().join("maps/DESTINATIONS");
    let map = MapData::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
    let map: HashMap<_, Destination, Bucket> = HashMap::try_from(Map::HashMap(map))?;
    let begin = Instant::now();
    let read: Result<Vec<_>, _> = map.iter().collect();
    let middle = begin + begin.elapsed() / 2;
    let mut read = read.context("cannot read the buckets")?;
    read.sort_by_key(|(key, _)| (key.server, key.port));
    Ok((read.into_iter().map(|(_, bucket)| bucket).collect(), middle))
}

/// Flows to so many destinations, whose ports count up. Those to one of them come from [`CLIENTS`].
fn flows(destinations: u32) -> Vec<Flow> {
    let count = if destinations == 1 { CLIENTS } else { destinations as usize };
    let flow = |number: usize| {
        let destination = number % destinations as usize;
        Flow {
            source: (Ipv4Addr::new(10, 0, 1, 2 + (number % CLIENTS) as u8), 1_024),
            destination: (
                Ipv4Addr::new(203, 0, 113, 1 + (destination % CLIENTS) as u8),
                1 + (destination / CLIENTS) as u16,
            ),
        }
    };
    (0..count).map(flow).collect()
}

/// Nanoseconds of a new flow with each of [`SETTINGS`].
fn cost(options: &Options) -> Result<[Samples; 3]> {
    let mut times: [Samples; 3] = Default::default();
    let mut single = Single::new(options, CAPACITY)?;
    for round in 0..options.rounds as usize {
        single.restart()?;
        single.within(begin)?;
        for turn in 0..SETTINGS.len() {
            let number = (round + turn) % SETTINGS.len();
            single.daemon.tell(&format!("pool set nat {}", SETTINGS[number].1))?;
            let nanoseconds = single.within(|single| {
                let Probe { kernel, inside, .. } = &single.probe;
                Ok(kernel.run(MEASURE, *inside, NEW)?.nanoseconds)
            })?;
            times[number].push(nanoseconds);
        }
        let sessions = single.daemon.count("gateway_sessions{proto=\"udp\"}")?;
        let wanted = u64::from(NEW) * (2 + SETTINGS.len() as u64);
        ensure!(sessions == wanted, "{sessions} sessions were opened, of {wanted}");
    }
    Ok(times)
}

/// Opens connections that make it 1,024 to each destination.
fn begin(single: &mut Single) -> Result<()> {
    let Probe { kernel, macs, inside, .. } = &mut single.probe;
    let frames: Vec<_> =
        (0..TEMPLATES).map(|number| macs.out(&Flow::template(number), Transport::Udp)).collect();
    kernel.set_templates(&frames)?;
    kernel.set_turns(TEMPLATES, MANY, Order::Ascending)?;
    kernel.run(MEASURE, *inside, 2 * NEW).map(|_| ())
}
