//! Whether records are lost where 200,000 sessions open in a minute, and as many end.
//!
//! New flows come in small bursts at that rate; each session ends two seconds after its only packet. Each has to leave two
//! records in a file, and what is counted as lost has to be nothing.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::{
    Options,
    frame::{Flow, MANY, TEMPLATES, Transport},
    kernel::{MEASURE, Order},
    report::Report,
    single::Single,
    statistic::Samples,
};

/// Sessions that open in a minute.
const RATE: u32 = 200_000;
/// Sessions that open at once.
const BURST: u32 = 512;
/// How long they come.
const TIME: [Duration; 2] = [Duration::from_mins(1), Duration::from_secs(15)];
/// How long it may take until all have ended and are written.
const PATIENCE: Duration = Duration::from_mins(1);
/// What can lose records.
const CAUSES: [&str; 4] = ["kernel", "queue", "rate", "sink"];

/// What came of it.
#[derive(Serialize)]
struct Outcome {
    /// Sessions that were opened.
    sessions: u64,
    /// Seconds in which they were.
    seconds: f64,
    /// Records that were counted as written.
    counted: u64,
    /// Lines of the file.
    lines: u64,
    /// Records that were counted as lost, whatever the cause.
    lost: u64,
}

/// Opens sessions for a while and counts their records.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let time = TIME[usize::from(options.fast)];
    let title =
        format!("Records of sessions that open and end, {RATE} in a minute, for {} s", time.as_secs());
    let headings = ["", "SESSIONS", "A MINUTE", "RECORDS", "LINES", "LOST"];
    let mut report = Report::new("records", title, "records", &headings);
    let outcome = outcome(options, time)?;
    let Outcome { sessions, seconds, counted, lines, lost } = outcome;
    let number = |number: u64| {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let float = number as f64;
        float
    };
    let minute = number(sessions) / seconds * 60.0;
    report.line(&[
        "gateway".to_owned(),
        sessions.to_string(),
        format!("{minute:.0}"),
        counted.to_string(),
        lines.to_string(),
        lost.to_string(),
    ]);
    report.bar("records", &Samples::from(number(lines)));
    report.at_least("sessions opened in a minute", &Samples::from(minute), 0.99 * f64::from(RATE));
    report.at_most("records lost, and counted as lost", &Samples::from(number(lost)), 0.0);
    let missing = number((2 * sessions).abs_diff(lines)) + number(counted.abs_diff(lines));
    report.at_most("lines that are missing in the file, or too many", &Samples::from(missing), 0.0);
    report.value(&outcome)?;
    Ok(report)
}

fn outcome(options: &Options, time: Duration) -> Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("access.jsonl");
    let config = format!(
        "[timeouts]\nudp = \"2s\"\n[access_log]\npath = \"{}\"\nall = true\nmax_size = \"1GiB\"\n",
        log.display()
    );
    let mut single = Single::new(options, &config)?;
    let (opened, elapsed) = single.within(|single| {
        let probe = &mut single.probe;
        let frames: Vec<_> =
            (0..TEMPLATES).map(|number| probe.macs.out(&Flow::template(number), Transport::Udp)).collect();
        probe.kernel.set_templates(&frames)?;
        probe.kernel.set_turns(TEMPLATES, MANY, Order::Ascending)?;
        let pause = Duration::from_mins(1) * BURST / RATE;
        let begin = Instant::now();
        let mut opened = 0;
        while begin.elapsed() < time {
            probe.kernel.run(MEASURE, probe.inside, BURST)?;
            opened += u64::from(BURST);
            let bursts = u32::try_from(opened / u64::from(BURST))?;
            thread::sleep((pause * bursts).saturating_sub(begin.elapsed()));
        }
        Ok((opened, begin.elapsed()))
    })?;
    let daemon = &single.daemon;
    let end = Instant::now() + PATIENCE;
    let counted = || daemon.count("gateway_access_log_records_total");
    let lost = || -> Result<u64> {
        let of = |cause| daemon.count(&format!("gateway_access_log_lost_total{{cause=\"{cause}\"}}"));
        CAUSES.into_iter().map(of).sum()
    };
    while counted()? + lost()? < 2 * opened {
        let (counted, lost) = (counted()?, lost()?);
        ensure!(
            Instant::now() < end,
            "{counted} records, {lost} lost, of {opened} sessions after {PATIENCE:?}"
        );
        thread::sleep(Duration::from_millis(200));
    }
    let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count() as u64;
    Ok(Outcome {
        sessions: opened,
        seconds: elapsed.as_secs_f64(),
        counted: counted()?,
        lines,
        lost: lost()?,
    })
}
