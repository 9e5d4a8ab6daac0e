//! How many connections from one pool address to one destination there can be, and what finding a port costs
//! when hardly any are left.
//!
//! Clients with random ports open connections to one destination until the gateway refuses one. Near each of
//! some degrees of occupancy, first packets are timed one by one, by the kernel's clock around a single run of the
//! program: to the crowded destination, to one that nobody has talked to before, and through a program that does
//! nothing, which shows what the clock itself costs and how much it jumps.

use std::{collections::HashSet, net::Ipv4Addr};

use anyhow::Result;
use gateway_common::pool::{FIRST_PORT, LAST_PORT};
use gateway_lab::Gatewayd;
use serde::Serialize;

use crate::{
    Options,
    frame::{Flow, Transport},
    kernel::{CONTROL, MEASURE},
    report::Report,
    single::{Probe, Seen, Single, is_translated},
    statistic::Samples,
};

/// Ports of an address.
const PORTS: u32 = LAST_PORT as u32 - FIRST_PORT as u32 + 1;

/// Percents of them that are in use where packets are timed.
const OCCUPANCIES: [u32; 3] = [10, 90, 99];

/// Packets that are timed at each: half of them before that percentage is reached, half after.
const WINDOW: u32 = 512;

/// How many times the nanoseconds at the lowest occupancy those at the highest may be.
const TARGET: f64 = 4.0;

/// What is timed.
const KINDS: [&str; 3] = ["crowded destination", "new destination", "no program"];

/// The crowded destination.
const DESTINATION: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 1), 443);

/// What was measured at a degree of occupancy, nanoseconds of one packet; one value a round.
#[derive(Serialize)]
struct Outcome {
    percent: u32,
    kind: &'static str,
    p50: Samples,
    p99: Samples,
}

/// Fills a destination in each round.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let title = format!(
        "First packets of connections: ns, median [least .. greatest] of {} rounds of {WINDOW} packets",
        options.rounds
    );
    let headings = ["PORTS IN USE", "TO", "p50", "p99"];
    let mut report = Report::new("ports", title, "ns, 99th percentile", &headings);
    let (opened, outcomes) = rounds(options)?;
    for Outcome { percent, kind, p50, p99 } in &outcomes {
        report.line(&[format!("{percent} %"), (*kind).to_owned(), format!("{p50:.0}"), format!("{p99:.0}")]);
        let bar = if *kind == KINDS[0] { Report::bar } else { Report::control };
        bar(&mut report, &format!("{kind}, {percent} %"), p99);
    }
    let crowded: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.kind == KINDS[0]).collect();
    if let [first, .., last] = crowded[..] {
        let ratio = last.p99.over(&first.p99);
        let (last, first) = (last.percent, first.percent);
        report.at_most(&format!("p99 ns of a first packet at {last} % / at {first} %"), &ratio, TARGET);
    }
    report.at_least("connections to one destination before the first refusal", &opened, f64::from(PORTS));
    outcomes.iter().try_for_each(|outcome| report.value(outcome))?;
    report.value(&serde_json::json!({ "opened": opened, "ports": PORTS }))?;
    Ok(report)
}

fn rounds(options: &Options) -> Result<(Samples, Vec<Outcome>)> {
    let mut opened = Samples::default();
    let mut outcomes = Vec::new();
    for percent in OCCUPANCIES {
        for kind in KINDS {
            outcomes.push(Outcome { percent, kind, p50: Samples::default(), p99: Samples::default() });
        }
    }
    let mut single = Single::new(options, "")?;
    for round in 0..options.rounds {
        if round > 0 {
            single.restart()?;
        }
        let flows = flows(round);
        let mut times: Vec<Samples> = vec![Samples::default(); outcomes.len()];
        let count = single.within(|single| fill(&mut single.probe, &single.daemon, &flows, &mut times))?;
        opened.push(f64::from(count));
        for (outcome, times) in outcomes.iter_mut().zip(&times) {
            outcome.p50.push(times.quantile(0.5));
            outcome.p99.push(times.quantile(0.99));
        }
    }
    Ok((opened, outcomes))
}

/// Opens connections until one is refused; returns how many there are then.
fn fill(probe: &mut Probe, daemon: &Gatewayd, flows: &[Flow], times: &mut [Samples]) -> Result<u32> {
    let begin = Seen::read(daemon)?;
    let mut opened = 0;
    for (percent, times) in OCCUPANCIES.into_iter().zip(times.chunks_mut(KINDS.len())) {
        let first = PORTS / 100 * percent - WINDOW / 2;
        run(probe, &flows[opened as usize..first as usize])?;
        let seen = Seen::read(daemon)?;
        if seen.dropped > begin.dropped {
            return Ok((seen.forwarded - begin.forwarded) as u32);
        }
        opened = first + time(probe, first, &flows[first as usize..][..WINDOW as usize], times)?;
        if opened < first + WINDOW {
            return Ok(opened);
        }
    }
    for flow in &flows[opened as usize..] {
        if !is_translated(&probe.out(flow, Transport::Udp)?) {
            return Ok(opened);
        }
        opened += 1;
    }
    Ok(opened)
}

/// Runs the gateway on the first packets of these flows.
fn run(probe: &mut Probe, flows: &[Flow]) -> Result<()> {
    let frames: Vec<_> = flows.iter().map(|flow| probe.macs.out(flow, Transport::Udp)).collect();
    probe.kernel.set_list(&frames)?;
    probe.kernel.run(MEASURE, probe.inside, flows.len() as u32).map(|_| ())
}

/// Times the first packet of each flow, the first of which has this number, and of the same client to a new destination, and nothing at all. Returns
/// how many were translated before one was not.
fn time(probe: &mut Probe, first: u32, flows: &[Flow], times: &mut [Samples]) -> Result<u32> {
    // Between the packets there is only the system call that runs the next one.
    let frames = (first..).zip(flows).flat_map(|(number, flow)| {
        let new = Flow { destination: nobody(number), ..*flow };
        [*flow, new, new].map(|flow| probe.macs.out(&flow, Transport::Udp))
    });
    let frames: Vec<_> = frames.collect();
    probe.kernel.set_list(&frames)?;
    for number in 0..flows.len() as u32 {
        for (times, program) in times.iter_mut().zip([MEASURE, MEASURE, CONTROL]) {
            let ran = probe.kernel.run(program, probe.inside, 1)?;
            if program == MEASURE && !is_translated(&ran) {
                return Ok(number);
            }
            times.push(ran.elapsed.as_secs_f64() * 1e9);
        }
    }
    Ok(flows.len() as u32)
}

/// A destination of which there is one for each number.
fn nobody(number: u32) -> (Ipv4Addr, u16) {
    (Ipv4Addr::new(203, 0, 113, 2 + (number % 250) as u8), 1 + (number / 250) as u16)
}

/// More flows to the destination than there are ports for, from random ports of 200 clients.
fn flows(seed: u32) -> Vec<Flow> {
    let mut random = fastrand::Rng::with_seed(seed.into());
    let mut taken = HashSet::new();
    let mut flows = Vec::new();
    while flows.len() <= PORTS as usize {
        let source = (Ipv4Addr::new(10, 0, 1, random.u8(2..202)), random.u16(FIRST_PORT..=LAST_PORT));
        if taken.insert(source) {
            flows.push(Flow { source, destination: DESTINATION });
        }
    }
    flows
}
