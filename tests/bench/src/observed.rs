//! What established traffic loses when everything that watches it is on.
//!
//! On means: the route of the packets logs, the metrics are scraped every second, and the largest sessions, the drops, the
//! routes and the destinations are asked for every second, as `top` and a dashboard would. Off means that nobody looks and
//! nothing is logged. Both take turns. The daemon has the processor of the generator, which makes fewer packets while it
//! works; so they are compared by the time of their own processor that they take.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use gateway_lab::Gatewayd;
use serde::Serialize;

use crate::{
    Options,
    frame::{Flow, Transport, shuffle},
    generator,
    report::Report,
    statistic::Samples,
    subject::{Bench, RAMP, Rates, Subject, count},
};

/// Flows that go on.
const FLOWS: usize = 1_024;
/// Where records go.
const LOG: &str = "access.jsonl";
/// What is asked for every second, beside a scrape.
const QUESTIONS: [&str; 4] =
    ["session show limit 20 sort bytes", "stats drops", "stats routes", "stats destinations sources 0"];
/// Between two times.
const PAUSE: Duration = Duration::from_secs(1);
/// The least time that is measured, so that everything is asked for in it.
const LEAST: Duration = Duration::from_secs(2);
/// What should arrive with everything on, of what arrives with everything off.
const TARGET: f64 = 0.97;

/// What was measured; one value a round.
#[derive(Default, Serialize)]
struct Outcome {
    /// Packets that arrived in a second of their processor's time, with everything off.
    off: Samples,
    /// The same with everything on.
    on: Samples,
}

/// Measures both in turns.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let time = options.turn().max(LEAST);
    let title = format!(
        "Established packets a second of their processor's time, millions, median [least .. greatest] of {} rounds \
         of {} s",
        options.rounds,
        time.as_secs()
    );
    let mut report = Report::new("observed", title, "million packets a second", &["", "PACKETS"]);
    let outcome = rounds(options, time)?;
    let (off, on) = (outcome.off.scaled(1e-6), outcome.on.scaled(1e-6));
    let ratio = outcome.on.over(&outcome.off);
    for (name, samples) in [("everything off", &off), ("everything on", &on)] {
        report.line(&[name.to_owned(), format!("{samples:.3}")]);
    }
    report.line(&["on / off".to_owned(), format!("{ratio:.3}")]);
    report.control("everything off", &off);
    report.bar("everything on", &on);
    report.at_least("established packets, everything on / everything off", &ratio, TARGET);
    report.value(&outcome)?;
    Ok(report)
}

fn rounds(options: &Options, time: Duration) -> Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let config = format!("[access_log]\npath = \"{}\"\n", directory.path().join(LOG).display());
    let mut bench = Bench::new(options, &config)?;
    let mut frames: Vec<_> =
        (0..FLOWS).map(|number| bench.frame(&Flow::outward(number), Transport::Udp)).collect();
    shuffle(&mut frames);
    bench.kernel.set_frames(&frames)?;
    let mut outcome = Outcome::default();
    for round in 0..options.rounds {
        for turn in 0..2 {
            let on = (round + turn) % 2 == 1;
            bench.start(Subject::Gateway)?;
            if on {
                bench.daemon.tell("route replace 0.0.0.0/0 via pool nat log")?;
            }
            let rate = stream(&mut bench, on, time)?;
            if on {
                let recorded = bench.daemon.count("gateway_access_log_records_total")?;
                ensure!(recorded >= FLOWS as u64, "only {recorded} sessions were recorded");
            }
            (if on { &mut outcome.on } else { &mut outcome.off }).push(rate);
            bench.stop(Subject::Gateway)?;
        }
    }
    Ok(outcome)
}

/// Packets that arrive in a second of their processor's time.
fn stream(bench: &mut Bench, on: bool, time: Duration) -> Result<f64> {
    bench.expect(Subject::Gateway)?;
    let poller = bench.poller()?;
    let Bench { kernel, daemon, network, clients, .. } = &*bench;
    generator::during(kernel, &network.clients, *clients, |_| {
        bench.warm_up(Subject::Gateway, FLOWS as u64)?;
        let stop = AtomicBool::new(!on);
        thread::scope(|scope| {
            let asking = scope.spawn(|| ask(daemon, &stop));
            thread::sleep(RAMP);
            let counted = count(kernel, &poller, time);
            stop.store(true, Ordering::Relaxed);
            asking.join().map_err(|_| anyhow!("a thread panicked"))??;
            let Rates { delivered, busy, .. } = counted?;
            Ok(delivered / busy)
        })
    })
}

/// Asks for everything, again and again.
fn ask(daemon: &Gatewayd, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        daemon.metrics()?;
        for question in QUESTIONS {
            daemon.tell(question)?;
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}
