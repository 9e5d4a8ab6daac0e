//! What it costs to look: scrapes and lists of sessions, with a million sessions, ten thousand routes and 64 pool
//! addresses.
//!
//! The time is that of whoever asks: a scrape over HTTP, `gwctl` from its start to its end. Then packets of a thousand
//! flows stream through the gateway, as in [`crate::throughput`], while somebody asks every second. The daemon has the processor of the generator, which makes fewer packets meanwhile; so they are compared by the time
//! of their own processor that they take.

use std::{
    fmt::Write as _,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use gateway_lab::Gatewayd;
use serde::Serialize;

use crate::{
    Options,
    frame::{Flow, Transport, shuffle},
    generator,
    report::Report,
    single::Probe,
    statistic::Samples,
    subject::{Bench, RAMP, Rates, Subject, count},
};

/// Sessions there are.
const SESSIONS: u32 = 1 << 20;
/// Room for all of them.
const CONFIG: &str = "[capacity]\nsessions = 1114112\n";
/// Routes there are beside the one that packets take.
const ROUTES: u32 = 10_000;
/// A pool of 64 addresses.
const POOL: &str = "pool add many address 192.0.2.0/26";
/// Flows that go on while somebody looks.
const FLOWS: usize = 1_024;
/// How long packets are counted before somebody looks, and as long meanwhile.
const WINDOW: Duration = Duration::from_secs(3);
/// Between an answer and the next question.
const PAUSE: Duration = Duration::from_secs(1);
/// Rounds at most.
const ROUNDS: u32 = 5;

/// What is asked for, the seconds that it may take, and how `gwctl` is asked; without words it is a scrape.
const VIEWS: [(&str, f64, Option<&str>); 4] = [
    ("scrape", 0.1, None),
    ("session show limit 50 sort bytes", 1.0, Some("session show limit 50 sort bytes")),
    ("session show limit 50 sort age", 1.0, Some("session show limit 50 sort age")),
    ("session count by source", 1.0, Some("session count by source")),
];

/// The part of the packets that has to arrive while somebody looks.
const TARGET: f64 = 0.97;

/// What was measured of a view; one value a round.
#[derive(Serialize)]
struct Outcome {
    view: &'static str,
    /// Seconds until it was there.
    seconds: Samples,
    /// Packets that arrived in a second of their processor's time before anybody looked.
    quiet: Samples,
    /// The same while it was asked for every second.
    meanwhile: Samples,
}

/// Measures all views.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let rounds = if options.fast { 3 } else { options.rounds.min(ROUNDS) };
    let title = format!(
        "What it costs to look at {SESSIONS} sessions and {ROUTES} routes, median [least .. greatest] of {rounds} rounds"
    );
    let headings = ["VIEW", "SECONDS", "QUIET Mpps", "MEANWHILE Mpps", "RATIO"];
    let mut report = Report::new("views", title, "seconds", &headings);
    let outcomes = outcomes(options, rounds)?;
    for (Outcome { view, seconds, quiet, meanwhile }, (_, limit, _)) in outcomes.iter().zip(VIEWS) {
        let ratio = meanwhile.over(quiet);
        report.line(&[
            (*view).to_owned(),
            format!("{seconds:.3}"),
            format!("{:.3}", quiet.scaled(1e-6)),
            format!("{:.3}", meanwhile.scaled(1e-6)),
            format!("{ratio:.2}"),
        ]);
        report.bar(view, seconds);
        report.at_most(&format!("seconds, {view}"), seconds, limit);
        report.at_least(
            &format!(
                "packets in the same time of their processor while it is asked for every second, {view}"
            ),
            &ratio,
            TARGET,
        );
    }
    outcomes.iter().try_for_each(|outcome| report.value(outcome))?;
    Ok(report)
}

fn outcomes(options: &Options, rounds: u32) -> Result<Vec<Outcome>> {
    let mut bench = Bench::new(options, CONFIG)?;
    let mut probe = Probe::new(options, &bench.network, 1)?;
    bench.start(Subject::Gateway)?;
    bench.daemon.tell(POOL)?;
    import(&bench.daemon)?;
    let mut frames: Vec<_> =
        (0..FLOWS).map(|number| bench.frame(&Flow::outward(number), Transport::Udp)).collect();
    shuffle(&mut frames);
    bench.kernel.set_frames(&frames)?;
    bench.expect(Subject::Gateway)?;
    let poller = bench.poller()?;
    probe.attach(&bench.daemon)?;
    bench.network.gateway.enter(|| probe.open_many(&bench.daemon, SESSIONS))??;
    let mut outcomes: Vec<Outcome> = VIEWS
        .iter()
        .map(|&(view, _, _)| {
            let [seconds, quiet, meanwhile] = Default::default();
            Outcome { view, seconds, quiet, meanwhile }
        })
        .collect();
    let Bench { kernel, daemon, network, clients, .. } = &bench;
    for _ in 0..rounds {
        for (outcome, (_, _, line)) in outcomes.iter_mut().zip(VIEWS) {
            outcome.seconds.push(look(daemon, line)?);
        }
        generator::during(kernel, &network.clients, *clients, |_| {
            thread::sleep(RAMP);
            let rates = || -> Result<f64> {
                let Rates { delivered, busy, .. } = count(kernel, &poller, WINDOW)?;
                Ok(delivered / busy)
            };
            for (outcome, (_, _, line)) in outcomes.iter_mut().zip(VIEWS) {
                outcome.quiet.push(rates()?);
                outcome.meanwhile.push(while_asked(|| look(daemon, line), rates)?);
            }
            Ok(())
        })?;
    }
    bench.stop(Subject::Gateway)?;
    Ok(outcomes)
}

/// Enters the routes, all of which have their counters.
fn import(daemon: &Gatewayd) -> Result<()> {
    let mut list = String::new();
    for number in 0..ROUTES {
        writeln!(list, "11.{}.{}.0/24", number >> 8, number & 0xff)?;
    }
    let path = daemon.state_dir().join("views.routes");
    fs::write(&path, list).with_context(|| format!("cannot write {}", path.display()))?;
    daemon.tell(&format!("route import {} via direct", path.display()))?;
    Ok(())
}

/// Asks once; returns the seconds that it took.
fn look(daemon: &Gatewayd, line: Option<&str>) -> Result<f64> {
    let begin = Instant::now();
    let said = match line {
        None => daemon.metrics()?,
        Some(line) => daemon.tell(line)?,
    };
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(said.lines().count() > 50, "there was nothing to see:\n{said}");
    Ok(seconds)
}

/// Does `work` while `ask` is asked every second.
fn while_asked<T>(
    ask: impl Fn() -> Result<f64> + Send + Sync,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                ask()?;
                thread::sleep(PAUSE);
            }
            Ok(())
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        asking.join().map_err(|_| anyhow!("a thread panicked"))?.and(done)
    })
}
