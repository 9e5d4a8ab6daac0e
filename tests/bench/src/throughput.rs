//! Packets per second that arrive behind the gateway, next to what else could be in its place.
//!
//! One network, whose middle is in turn the gateway, nft masquerade, the kernel forwarding without
//! translation, and an XDP program that only writes new MAC addresses; see [`crate::subject`].

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    Options,
    frame::{Flow, LENGTH, Transport, shuffle},
    generator,
    kernel::Order,
    report::Report,
    statistic::Samples,
    subject::{Bench, Rates, Subject, count},
};

/// What takes turns.
const SUBJECTS: [Subject; 4] = [Subject::Gateway, Subject::Nft, Subject::Forwarding, Subject::Relay];

/// How many times the packets of another subject the gateway should deliver.
const TARGETS: [(Subject, f64); 2] = [(Subject::Nft, 4.0), (Subject::Relay, 0.8)];

/// Flows that take turns in the two measurements of a turn.
const FLOWS: [usize; 2] = [1, 32_768];

/// What was measured with a number of flows, packets per second.
#[derive(Serialize)]
struct Outcome {
    subject: Subject,
    flows: usize,
    /// What the generator offered.
    offered: Samples,
    /// What arrived.
    delivered: Samples,
    /// How much of its processor the polling thread used, 1 being all of it.
    busy: Samples,
}

/// Measures everything in turns.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let title = format!(
        "Delivered packets per second of {LENGTH} bytes, millions, median [least .. greatest] of {} rounds of {} ms",
        options.rounds, options.milliseconds
    );
    let headings = FLOWS.map(|flows| in_words(flows).to_uppercase());
    let headings = ["DEVICE UNDER TEST", &headings[0], "BUSY", &headings[1], "BUSY"];
    let mut report = Report::new("throughput", title, "million packets a second", &headings);
    let outcomes = rounds(options)?;
    let of = |subject: Subject| outcomes.iter().filter(move |outcome| outcome.subject == subject);
    for subject in SUBJECTS {
        let mut cells = vec![subject.name().to_owned()];
        for Outcome { flows, delivered, busy, .. } in of(subject) {
            let millions = delivered.scaled(1e-6);
            let bar = if subject == Subject::Gateway { Report::bar } else { Report::control };
            bar(&mut report, &format!("{}, {}", subject.name(), in_words(*flows)), &millions);
            cells.push(format!("{millions:.3}"));
            cells.push(format!("{:.0} %", busy.median() * 100.0));
        }
        report.line(&cells);
    }
    for other in [Subject::Nft, Subject::Forwarding, Subject::Relay] {
        let mut cells = vec![format!("gateway / {}", other.name())];
        let mut per_time = vec!["the same by processor time".to_owned()];
        for (ours, theirs) in of(Subject::Gateway).zip(of(other)) {
            let ratio = ours.delivered.over(&theirs.delivered);
            if let Some((_, target)) = TARGETS.iter().find(|(subject, _)| *subject == other) {
                let what = format!("delivered, gateway / {}, {}", other.name(), in_words(ours.flows));
                report.at_least(&what, &ratio, *target);
            }
            cells.extend([format!("{ratio:.2}"), String::new()]);
            let ratio = ours.delivered.over(&ours.busy).over(&theirs.delivered.over(&theirs.busy));
            per_time.extend([format!("{ratio:.2}"), String::new()]);
        }
        report.line(&cells);
        report.line(&per_time);
    }
    report.judge_busy(outcomes.iter().map(|outcome| &outcome.busy));
    outcomes.iter().try_for_each(|outcome| report.value(outcome))?;
    Ok(report)
}

fn in_words(flows: usize) -> String {
    if flows == 1 { "1 flow".to_owned() } else { format!("{flows} flows") }
}

fn rounds(options: &Options) -> Result<Vec<Outcome>> {
    let mut bench = Bench::new(options, "")?;
    let most = FLOWS.into_iter().max().unwrap_or(1);
    let mut frames: Vec<_> =
        (0..most).map(|number| bench.frame(&Flow::outward(number), Transport::Udp)).collect();
    shuffle(&mut frames);
    let mut outcomes: Vec<Outcome> = Vec::new();
    for subject in SUBJECTS {
        for flows in FLOWS {
            let [offered, delivered, busy] = Default::default();
            outcomes.push(Outcome { subject, flows, offered, delivered, busy });
        }
    }
    for round in 0..options.rounds as usize {
        for turn in 0..SUBJECTS.len() {
            let number = (round + turn) % SUBJECTS.len();
            let subject = SUBJECTS[number];
            bench.start(subject).with_context(|| format!("cannot start {}", subject.name()))?;
            for (place, flows) in FLOWS.into_iter().enumerate() {
                let rates = self::turn(&mut bench, subject, &frames[..flows], options);
                let rates = rates.with_context(|| format!("{}, {flows} flows", subject.name()))?;
                let outcome = &mut outcomes[number * FLOWS.len() + place];
                outcome.offered.push(rates.offered);
                outcome.delivered.push(rates.delivered);
                outcome.busy.push(rates.busy);
            }
            bench.stop(subject).with_context(|| format!("cannot stop {}", subject.name()))?;
        }
    }
    Ok(outcomes)
}

/// Sends packets of these flows, first until all sessions are there, then in another order, to be counted: packets of
/// many clients do not come in the order in which their sessions were opened, which a processor would foresee.
fn turn(bench: &mut Bench, subject: Subject, frames: &[[u8; LENGTH]], options: &Options) -> Result<Rates> {
    bench.kernel.set_frames(frames)?;
    bench.expect(subject)?;
    let poller = bench.poller()?;
    generator::during(&bench.kernel, &bench.network.clients, bench.clients, |_| {
        bench.warm_up(subject, frames.len() as u64)
    })?;
    bench.kernel.set_turns(frames.len(), frames.len() as u32, Order::Scattered)?;
    generator::during(&bench.kernel, &bench.network.clients, bench.clients, |_| {
        bench.warm_up(subject, frames.len() as u64)?;
        count(&bench.kernel, &poller, options.turn())
    })
}
