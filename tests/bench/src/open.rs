//! New flows per second through the gateway, next to nft masquerade.
//!
//! As in [`crate::throughput`], except that no packet is of a flow that was there before: each one that arrives
//! at the world is a session that was opened. Tables are empty at the start of each turn, because the daemon is
//! started anew and connection tracking is flushed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::{
    Options,
    frame::{Flow, MANY, SYN, TEMPLATES, Transport},
    generator,
    kernel::Order,
    network::number_in,
    report::Report,
    statistic::Samples,
    subject::{Bench, RAMP, Rates, Subject, count},
};

/// What takes turns.
const SUBJECTS: [Subject; 2] = [Subject::Gateway, Subject::Nft];

/// First packets of flows, in the two measurements of a turn.
const FIRST: [(&str, Transport); 2] = [("udp", Transport::Udp), ("tcp syn", Transport::Tcp(SYN))];

/// How many times the new flows of nft masquerade the gateway should open.
const TARGET: f64 = 2.0;

/// The daemon's table, so that no turn fills it.
const CAPACITY: &str = "[capacity]\nsessions = 2097152\n";

/// The longest turn, for the same reason: connection tracking has room for a quarter of a million.
const LONGEST: Duration = Duration::from_millis(250);

/// What was measured with one kind of packet.
#[derive(Serialize)]
struct Outcome {
    subject: Subject,
    packets: &'static str,
    /// First packets of flows that the generator offered, per second.
    offered: Samples,
    /// Those that arrived, each with a session.
    opened: Samples,
    /// How much of its processor the polling thread used, 1 being all of it.
    busy: Samples,
}

/// Measures both in turns.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let title = format!(
        "New flows per second, millions, median [least .. greatest] of {} rounds of {} ms",
        options.rounds,
        time(options).as_millis()
    );
    let headings = ["DEVICE UNDER TEST", "UDP", "BUSY", "TCP SYN", "BUSY"];
    let mut report = Report::new("open", title, "million new flows a second", &headings);
    let outcomes = rounds(options)?;
    let of = |subject: Subject| outcomes.iter().filter(move |outcome| outcome.subject == subject);
    for subject in SUBJECTS {
        let mut cells = vec![subject.name().to_owned()];
        for Outcome { packets, opened, busy, .. } in of(subject) {
            let millions = opened.scaled(1e-6);
            let bar = if subject == Subject::Gateway { Report::bar } else { Report::control };
            bar(&mut report, &format!("{}, {packets}", subject.name()), &millions);
            cells.push(format!("{millions:.3}"));
            cells.push(format!("{:.0} %", busy.median() * 100.0));
        }
        report.line(&cells);
    }
    let mut cells = vec!["gateway / nft masquerade".to_owned()];
    let mut per_time = vec!["the same by processor time".to_owned()];
    for (ours, theirs) in of(Subject::Gateway).zip(of(Subject::Nft)) {
        let ratio = ours.opened.over(&theirs.opened);
        let what = format!("new flows, gateway / nft masquerade, {}", ours.packets);
        report.at_least(&what, &ratio, TARGET);
        cells.extend([format!("{ratio:.2}"), String::new()]);
        let ratio = ours.opened.over(&ours.busy).over(&theirs.opened.over(&theirs.busy));
        per_time.extend([format!("{ratio:.2}"), String::new()]);
    }
    report.line(&cells);
    report.line(&per_time);
    report.judge_busy(outcomes.iter().map(|outcome| &outcome.busy));
    outcomes.iter().try_for_each(|outcome| report.value(outcome))?;
    Ok(report)
}

fn time(options: &Options) -> Duration {
    options.turn().min(LONGEST)
}

fn rounds(options: &Options) -> Result<Vec<Outcome>> {
    let mut bench = Bench::new(options, CAPACITY)?;
    let mut outcomes: Vec<Outcome> = Vec::new();
    for subject in SUBJECTS {
        for (packets, _) in FIRST {
            let [offered, opened, busy] = Default::default();
            outcomes.push(Outcome { subject, packets, offered, opened, busy });
        }
    }
    for round in 0..options.rounds as usize {
        for (place, (packets, transport)) in FIRST.into_iter().enumerate() {
            let frames: Vec<_> =
                (0..TEMPLATES).map(|number| bench.frame(&Flow::template(number), transport)).collect();
            bench.kernel.set_templates(&frames)?;
            for turn in 0..SUBJECTS.len() {
                let number = (round + turn) % SUBJECTS.len();
                let subject = SUBJECTS[number];
                bench.start(subject).with_context(|| format!("cannot start {}", subject.name()))?;
                let rates = self::turn(&mut bench, subject, time(options));
                let rates = rates.with_context(|| format!("{}, {packets}", subject.name()))?;
                let outcome = &mut outcomes[number * FIRST.len() + place];
                outcome.offered.push(rates.offered);
                outcome.opened.push(rates.delivered);
                outcome.busy.push(rates.busy);
                bench.stop(subject).with_context(|| format!("cannot stop {}", subject.name()))?;
            }
        }
    }
    Ok(outcomes)
}

/// Sends first packets of ever new flows, and counts those that arrive.
fn turn(bench: &mut Bench, subject: Subject, time: Duration) -> Result<Rates> {
    bench.kernel.set_turns(TEMPLATES, MANY, Order::Ascending)?;
    bench.expect(subject)?;
    let poller = bench.poller()?;
    let (made, arrived) = (bench.kernel.generated()?, bench.kernel.arrived()?.expected);
    let rates = generator::during(&bench.kernel, &bench.network.clients, bench.clients, |_| {
        std::thread::sleep(RAMP);
        count(&bench.kernel, &poller, time)
    })?;
    let (made, arrived) = (bench.kernel.generated()? - made, bench.kernel.arrived()?.expected - arrived);
    ensure!(made < u64::from(MANY), "the generator made {made} flows, which are not all different");
    let sessions = bench.sessions(subject)?.unwrap_or(0);
    ensure!(sessions >= arrived, "{arrived} first packets arrived, but there are only {sessions} sessions");
    if subject == Subject::Nft {
        let room = number_in(&bench.network.gateway, "/proc/sys/net/netfilter/nf_conntrack_max")?;
        ensure!(
            sessions < room,
            "connection tracking has no room for more than {room} flows; measure for less time"
        );
    }
    Ok(rates)
}
