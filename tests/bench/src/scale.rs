//! What a packet costs when there are a million sessions, next to a thousand.
//!
//! As in [`crate::path`], with a full session table. Packets come in an order that no processor foresees: of a
//! thousand of the sessions, whose elements stay in its caches, and of all of them, whose elements do not. The
//! same is done with lookups in a plain hash table, as full, so that what the caches do is seen for what it is.

use anyhow::Result;
use serde::Serialize;

use crate::{
    Options,
    frame::TEMPLATES,
    kernel::{CONTROL, Kernel, LOOK_UP, MEASURE, Order},
    report::Report,
    single::{Probe, Seen, Single},
    statistic::Samples,
};

/// Sessions in the table: as many as it has room for by default.
const SESSIONS: u32 = 1 << 20;

/// Sessions whose packets come, in the cases.
const CASES: [u32; 2] = [1 << 10, SESSIONS];

/// How many times the cost of a thousand that of a million may be.
const TARGET: f64 = 2.5;

/// What is measured.
const VARIANTS: [&str; 3] = [CONTROL, MEASURE, LOOK_UP];

/// What was measured of a case, nanoseconds of one packet.
#[derive(Serialize)]
struct Outcome {
    sessions: u32,
    /// Headers restored.
    control: Samples,
    /// The gateway alone.
    over_empty: Samples,
    /// A hit in a hash table alone.
    hit: Samples,
    /// The gateway in hits.
    hits: Samples,
}

/// Measures both in turns.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let title = format!(
        "Established path with {SESSIONS} sessions: ns per packet, median [least .. greatest] of {} rounds",
        options.rounds
    );
    let headings = ["PACKETS OF", "CONTROL", "OVER EMPTY", "HASH HIT", "IN HITS"];
    let mut report = Report::new("scale", title, "ns per packet over an empty program", &headings);
    let outcomes = outcomes(options)?;
    for Outcome { sessions, control, over_empty, hit, hits } in &outcomes {
        report.line(&[
            format!("{sessions} sessions"),
            format!("{:.1}", control.median()),
            over_empty.to_string(),
            hit.to_string(),
            format!("{hits:.2}"),
        ]);
        report.bar(&format!("gateway, {sessions} sessions"), over_empty);
        report.control(&format!("a hash hit, {sessions} keys"), hit);
    }
    let [few, many] = &outcomes;
    let (gateway, hit) = (many.over_empty.over(&few.over_empty), many.hit.over(&few.hit));
    report.line(&[
        "ratio".to_owned(),
        String::new(),
        format!("{gateway:.2}"),
        format!("{hit:.2}"),
        String::new(),
    ]);
    report.at_most("established ns, a million sessions / a thousand", &gateway, TARGET);
    report.note(format!("a plain hash hit costs {hit:.2} times as much among a million keys"));
    outcomes.iter().try_for_each(|outcome| report.value(outcome))?;
    Ok(report)
}

fn outcomes(options: &Options) -> Result<[Outcome; 2]> {
    let mut single = Single::new(options, "")?;
    single.within(|single| {
        single.probe.open_many(&single.daemon, SESSIONS)?;
        let Single { probe: Probe { kernel, inside, .. }, daemon, .. } = single;
        kernel.set_turns(TEMPLATES, SESSIONS, Order::Ascending)?;
        kernel.fill_table(*inside, SESSIONS)?;
        let before = Seen::read(daemon)?;
        let samples = rounds(kernel, *inside, options)?;
        let packets: u64 = CASES.iter().map(|sessions| u64::from(packets(*sessions, options))).sum();
        before.expect(daemon, packets * u64::from(options.rounds + 1))?;
        let mut number = 0;
        Ok(samples.map(|[control, gateway, look_up]| {
            let (over_empty, hit) = (gateway.minus(&control), look_up.minus(&control));
            let hits = over_empty.over(&hit);
            number += 1;
            Outcome { sessions: CASES[number - 1], control, over_empty, hit, hits }
        }))
    })
}

/// Packets of one turn: at least one of each session.
fn packets(sessions: u32, options: &Options) -> u32 {
    options.packets.max(sessions)
}

/// Runs all variants with few sessions and with many, in turns. A round before the first one fills the caches.
fn rounds(kernel: &mut Kernel, ingress: u32, options: &Options) -> Result<[[Samples; 3]; 2]> {
    let mut samples: [[Samples; 3]; 2] = Default::default();
    for round in 0..=options.rounds as usize {
        for turn in 0..CASES.len() {
            let case = (round + turn) % CASES.len();
            let sessions = CASES[case];
            for turn in 0..VARIANTS.len() {
                let variant = (round + turn) % VARIANTS.len();
                kernel.set_turns(TEMPLATES.min(sessions as usize), sessions, Order::Scattered)?;
                let ran = kernel.run(VARIANTS[variant], ingress, packets(sessions, options))?;
                if round > 0 {
                    samples[case][variant].push(ran.nanoseconds);
                }
            }
        }
    }
    Ok(samples)
}
