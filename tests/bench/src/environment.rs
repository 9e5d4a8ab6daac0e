//! Where the figures were taken.

use std::{collections::BTreeMap, fmt, fs, thread};

use anyhow::{Context as _, Result};
use nix::sys::utsname::uname;
use serde::Serialize;

use crate::Options;

/// What the figures depend on beside the gateway.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Environment {
    /// What was measured, as `git describe` calls it.
    commit: Option<String>,
    /// Whether it was measured for a short time only.
    fast: bool,
    /// Release of the kernel.
    kernel: String,
    /// Name of the processor.
    processor: String,
    /// How many of them.
    processors: usize,
    /// MHz, where it can be told.
    clock_mhz: Option<f64>,
    /// What the kernel measures time with.
    clock_source: String,
    /// Weaknesses of the processor that are not "Not affected", and what the kernel does about them.
    mitigations: BTreeMap<String, String>,
    /// Whether the BPF JIT compiler is on.
    jit: bool,
    /// How busy the machine was at the start: the mean of runnable threads over a minute.
    load: f64,
}

impl Environment {
    /// Looks around.
    pub(crate) fn read(options: &Options) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        Ok(Self {
            commit: options.commit.clone(),
            fast: options.fast,
            kernel: uname()?.release().to_string_lossy().into_owned(),
            processor: field("model name").unwrap_or_else(|| "unknown".to_owned()),
            processors: thread::available_parallelism()?.get(),
            clock_mhz: field("cpu MHz").and_then(|value| value.parse().ok()),
            clock_source: line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            mitigations: mitigations(),
            jit: line("/proc/sys/net/core/bpf_jit_enable") != "0",
            load: line("/proc/loadavg").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0),
        })
    }
}

impl Environment {
    /// In one line.
    pub(crate) fn brief(&self) -> String {
        let Self { commit, fast, kernel, processor, processors, load, .. } = self;
        let commit = commit.as_deref().unwrap_or("unknown commit");
        let fast = if *fast { ", short run" } else { "" };
        format!("{commit}, kernel {kernel}, {processors} x {processor}, load {load}{fast}")
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { commit, fast, kernel, processor, processors, .. } = self;
        let Self { clock_mhz, clock_source, mitigations, jit, load, .. } = self;
        if let Some(commit) = commit {
            writeln!(f, "commit      {commit}")?;
        }
        if *fast {
            writeln!(f, "fast        few rounds and short turns: take the figures as rough")?;
        }
        write!(f, "kernel      {kernel}, BPF JIT {}", if *jit { "on" } else { "off" })?;
        write!(f, "\nprocessor   {processors} x {processor}")?;
        if let Some(mhz) = clock_mhz {
            write!(f, ", {mhz:.0} MHz")?;
        }
        write!(f, "\nclock       {clock_source}")?;
        for (weakness, answer) in mitigations {
            write!(f, "\nmitigation  {weakness}: {answer}")?;
        }
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        if *load > *processors as f64 / 2.0 {
            write!(f, "\nload        {load}: others are at work here, take the figures as rough")?;
        } else {
            write!(f, "\nload        {load}")?;
        }
        Ok(())
    }
}

fn mitigations() -> BTreeMap<String, String> {
    let directory = fs::read_dir("/sys/devices/system/cpu/vulnerabilities");
    let files = directory.into_iter().flatten().flatten();
    let all = files.map(|file| {
        (file.file_name().to_string_lossy().into_owned(), line(&file.path().display().to_string()))
    });
    all.filter(|(_, answer)| answer != "Not affected").collect()
}

/// The first line of a file, empty where there is none.
fn line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}
