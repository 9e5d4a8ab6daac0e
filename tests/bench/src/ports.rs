//! How many connections from one pool address to one destination there can be, and what finding a port costs
//! when hardly any are left.
//!
//! Clients with random ports open connections to one destination until the gateway refuses one. Near each of
//! some degrees of occupancy, first packets are timed one by one, by the kernel's clock around a single run of the
//! program: to the crowded destination, to one that nobody has talked to before, and through a program that does
//! nothing, which shows what the clock itself costs and how much it jumps.

use std::{collections::HashSet, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use gateway_common::pool::{FIRST_PORT, LAST_PORT};
use serde::Serialize;

use crate::{
    Options,
    frame::{Flow, Transport},
    kernel::{CONTROL, MEASURE},
    report::Report,
    single::{Probe, Single, is_translated},
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
        let count = single.within(|single| fill(&mut single.probe, &flows, &mut times))?;
        opened.push(f64::from(count));
        for (outcome, times) in outcomes.iter_mut().zip(&times) {
            outcome.p50.push(times.quantile(0.5));
            outcome.p99.push(times.quantile(0.99));
        }
    }
    Ok((opened, outcomes))
}

/// Opens connections until one is refused; returns how many there are then.
fn fill(probe: &mut Probe, flows: &[Flow], times: &mut [Samples]) -> Result<u32> {
    for (number, flow) in (0..).zip(flows) {
        let near = OCCUPANCIES.iter().position(|percent| {
            number >= PORTS / 100 * percent - WINDOW / 2 && number < PORTS / 100 * percent + WINDOW / 2
        });
        if let Some(place) = near {
            let times = &mut times[place * KINDS.len()..][..KINDS.len()];
            let new = Flow { destination: nobody(number), ..*flow };
            times[1].push(time(probe, MEASURE, &new)?.1);
            times[2].push(time(probe, CONTROL, &new)?.1);
            let (translated, nanoseconds) = time(probe, MEASURE, flow)?;
            times[0].push(nanoseconds);
            if !translated {
                return Ok(number);
            }
        } else if !is_translated(&probe.out(flow, Transport::Udp)?) {
            return Ok(number);
        }
    }
    (!flows.is_empty()).then_some(flows.len() as u32).context("no flows")
}

/// Runs a program on the first packet of a flow. Returns whether it was translated, and nanoseconds.
fn time(probe: &mut Probe, program: &str, flow: &Flow) -> Result<(bool, f64)> {
    probe.kernel.set_frames(&[probe.macs.out(flow, Transport::Udp)])?;
    let ran = probe.kernel.run(program, probe.inside, 1)?;
    Ok((is_translated(&ran), ran.elapsed.as_secs_f64() * 1e9))
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
