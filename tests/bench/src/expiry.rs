//! What established traffic loses while a million idle sessions expire.
//!
//! The sessions are opened by single packets; then packets of a thousand other flows stream through the gateway,
//! as in [`crate::throughput`]. After a while the daemon is killed, and another one takes over, to whom all of the
//! million are idle: it was given a shorter idle time. What arrives before, and after the last one was removed, is
//! the measure of what arrives meanwhile, both per second that the generator has run. The daemon, which looks for idle sessions, is kept on the processor of
//! the generator, and then on that of the packets.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gateway_lab::Gatewayd;
use serde::Serialize;

use crate::{
    Options, cpu,
    frame::{Flow, Transport, shuffle},
    generator,
    report::Report,
    single::Probe,
    statistic::Samples,
    subject::{Bench, RAMP, Subject, delivered},
};

/// Sessions that expire.
const SESSIONS: u32 = 1 << 20;

/// Flows that go on.
const FLOWS: usize = 1_024;

/// Room for all of them.
const CONFIG: &str = "[capacity]\nsessions = 1114112\n";

/// What the second daemon is told in addition.
const EXPIRE: &str = "[timeouts]\nudp = \"2s\"\n";

/// How long packets are counted at a time.
const WINDOW: Duration = Duration::from_millis(200);

/// How many times before sessions expire, and as often after it.
const QUIET: usize = 20;

/// How long the sessions may take to expire.
const PATIENCE: Duration = Duration::from_mins(6);

/// Rounds at most: each takes half a minute.
const ROUNDS: u32 = 3;

/// The thread that removes sessions.
const SWEEPER: &str = "sweep";

/// Percent of the packets that may be lost.
const TARGET: f64 = 5.0;

/// Where the daemon runs.
const PLACES: [(&str, usize); 2] =
    [("beside the generator", cpu::COMMON), ("beside the packets", cpu::MEASURED)];

/// What was measured with the daemon at a place; one value a round.
#[derive(Serialize)]
struct Outcome {
    daemon: &'static str,
    /// Packets per second that arrived before the first session expired, and after the last one.
    quiet: Samples,
    /// Packets per second that arrived while sessions expired.
    expiring: Samples,
    /// Percent of the packets that did not arrive because of that.
    loss: Samples,
    /// Seconds that it took until all sessions were removed.
    seconds: Samples,
    /// Seconds of a processor that the daemon used for it.
    work: Samples,
}

/// Lets sessions expire in each round, at both places in turns.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let rounds = if options.fast { 1 } else { options.rounds.min(ROUNDS) };
    let title = format!(
        "Packets per second while {SESSIONS} sessions expire, millions, median [least .. greatest] of {rounds} rounds"
    );
    let headings = ["DAEMON", "QUIET", "EXPIRING", "LOSS", "SECONDS", "OF A CPU"];
    let mut report = Report::new("expiry", title, "million packets a second", &headings);
    let outcomes = outcomes(options, rounds)?;
    for Outcome { daemon, quiet, expiring, loss, seconds, work } in &outcomes {
        let (quiet, expiring) = (quiet.scaled(1e-6), expiring.scaled(1e-6));
        report.line(&[
            (*daemon).to_owned(),
            format!("{quiet:.3}"),
            format!("{expiring:.3}"),
            format!("{loss:.1} %"),
            format!("{seconds:.1}"),
            format!("{work:.1}"),
        ]);
        report.control(&format!("before and after, {daemon}"), &quiet);
        report.bar(&format!("meanwhile, {daemon}"), &expiring);
        report.at_most(&format!("percent of packets lost meanwhile, daemon {daemon}"), loss, TARGET);
    }
    outcomes.iter().try_for_each(|outcome| report.value(outcome))?;
    Ok(report)
}

fn outcomes(options: &Options, rounds: u32) -> Result<Vec<Outcome>> {
    let mut bench = Bench::new(options, CONFIG)?;
    let mut probe = Probe::new(options, &bench.network, 1)?;
    let mut outcomes: Vec<Outcome> = PLACES
        .iter()
        .map(|(daemon, _)| {
            let [quiet, expiring, loss, seconds, work] = Default::default();
            Outcome { daemon, quiet, expiring, loss, seconds, work }
        })
        .collect();
    for round in 0..rounds as usize {
        for turn in 0..PLACES.len() {
            let place = (round + turn) % PLACES.len();
            let processor = PLACES[place].1;
            start(&mut bench.daemon, processor, "")?;
            bench.poll()?;
            let course = watch(&mut bench, &mut probe, processor)?;
            bench.stop(Subject::Gateway)?;
            let (quiet, expiring) = (course.quiet.mean(), course.expiring.mean());
            let outcome = &mut outcomes[place];
            outcome.quiet.push(quiet);
            outcome.expiring.push(expiring);
            outcome.loss.push((1.0 - expiring / quiet) * 100.0);
            outcome.seconds.push(course.time.as_secs_f64());
            outcome.work.push(course.work.as_secs_f64());
        }
    }
    Ok(outcomes)
}

/// Packets per second, in the order in which they were counted.
#[derive(Default)]
struct Course {
    quiet: Samples,
    expiring: Samples,
    /// From the start of the second daemon to the removal of the last session.
    time: Duration,
    /// What the thread that looks for idle sessions did of it.
    work: Duration,
}

/// Opens the sessions, and counts packets of other flows until they are gone.
fn watch(bench: &mut Bench, probe: &mut Probe, processor: usize) -> Result<Course> {
    let mut frames: Vec<_> =
        (0..FLOWS).map(|number| bench.frame(&Flow::outward(number), Transport::Udp)).collect();
    shuffle(&mut frames);
    bench.kernel.set_frames(&frames)?;
    bench.expect(Subject::Gateway)?;
    let poller = bench.poller()?;
    let Bench { kernel, daemon, network, clients, .. } = bench;
    probe.attach(daemon)?;
    network.gateway.enter(|| probe.open_many(daemon, SESSIONS))??;
    generator::during(kernel, &network.clients, *clients, |generator| {
        thread::sleep(RAMP);
        let mut course = Course::default();
        let rate = || delivered(kernel, &poller, generator, WINDOW);
        let sessions = |daemon: &Gatewayd| daemon.count("gateway_sessions{proto=\"udp\"}");
        for _ in 0..QUIET {
            course.quiet.push(rate()?);
        }
        let wanted = u64::from(SESSIONS) + FLOWS as u64;
        ensure!(sessions(daemon)? == wanted, "only {} sessions of {wanted}", sessions(daemon)?);
        daemon.kill()?;
        let begin = Instant::now();
        start(daemon, processor, EXPIRE)?;
        while sessions(daemon)? > FLOWS as u64 {
            course.expiring.push(rate()?);
            ensure!(begin.elapsed() < PATIENCE, "sessions are left after {PATIENCE:?}");
        }
        course.time = begin.elapsed();
        course.work = daemon.thread_time(SWEEPER)?;
        ensure!(!course.expiring.mean().is_nan(), "the sessions were gone at once");
        for _ in 0..QUIET {
            course.quiet.push(rate()?);
        }
        Ok(course)
    })
}

/// Starts a daemon that stays on this processor, with `more` of the configuration.
fn start(daemon: &mut Gatewayd, processor: usize, more: &str) -> Result<()> {
    let path = daemon.config_path();
    let config = fs::read_to_string(&path)?;
    let config = config.strip_suffix(EXPIRE).unwrap_or(&config);
    fs::write(&path, format!("{config}{more}"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    // What is started now stays there.
    cpu::pin_to(processor)?;
    daemon.start_again(&["--detach-on-exit"])?;
    cpu::pin_to(cpu::COMMON)
}
