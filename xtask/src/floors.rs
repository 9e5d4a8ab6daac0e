//! The floors of the tests, from plain functions up to a gateway whose daemon is killed under load.

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use nix::unistd::geteuid;
use serde_json::Value;

use crate::{
    cargo::{self, Heard},
    leftovers, setup, term,
};

/// How long a floor may take before it is stopped.
const LIMIT: Duration = Duration::from_mins(20);

/// A floor of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Floor {
    /// Unit and property tests of the crates; no root needed, but for those of the lab
    Unit,
    /// What users type and read: golden output, exit codes
    Cli,
    /// Single packets through the XDP programs: exact bytes, exact counters
    Datapath,
    /// Random packets: the XDP programs against a plain model
    Model,
    /// Real programs through a real gateway, in network namespaces
    Netns,
    /// The daemon killed, stopped and started under traffic
    Lifecycle,
}

impl Floor {
    const ALL: &'static [Self] =
        &[Self::Unit, Self::Cli, Self::Datapath, Self::Model, Self::Netns, Self::Lifecycle];

    /// Whether its tests mean nothing without root and a kernel that runs XDP.
    fn needs_kernel(self) -> bool {
        match self {
            Self::Unit | Self::Cli => false,
            Self::Datapath | Self::Model | Self::Netns | Self::Lifecycle => true,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Cli => "cli",
            Self::Datapath => "datapath",
            Self::Model => "model",
            Self::Netns => "netns",
            Self::Lifecycle => "lifecycle",
        }
    }
}

/// What came of a floor.
#[derive(Debug, Default)]
struct Score {
    passed: u64,
    failed: u64,
    ignored: u64,
    skipped: Vec<String>,
    time: Duration,
    broken: Option<String>,
}

/// Builds everything once, runs the floors (all of them when none is named), and sums up.
///
/// `filter` is passed to the test harness.
///
/// # Errors
/// If a test failed, or a floor has none, or (with `CI` set in the environment) a test of the kernel was skipped.
pub(crate) fn test(floors: &[Floor], filter: &[String]) -> Result<()> {
    let floors = if floors.is_empty() { Floor::ALL } else { floors };
    // Without root the lower floors run all the same, and what needs a lab is skipped.
    let modest = !geteuid().is_root() && !floors.iter().any(|floor| floor.needs_kernel());
    setup::ensure(if modest { setup::Scope::Build } else { setup::Scope::Everything })?;
    // One selection of packages for every command: another one would mean other features, and building again.
    cargo::run(workspace("build").args(["--bins", "--lib", "--tests"]))?;
    let targets = test_targets()?;
    let scores: Vec<(Floor, Score)> =
        floors.iter().map(|floor| (*floor, run(*floor, &targets, filter))).collect();
    sum_up(&scores)
}

fn run(floor: Floor, targets: &BTreeSet<String>, filter: &[String]) -> Score {
    let mut command = workspace("test");
    command.arg("--no-fail-fast");
    if floor == Floor::Unit {
        command.args(["--lib", "--bins"]);
        let above: Vec<_> = Floor::ALL.iter().map(|floor| floor.name()).collect();
        for target in targets.iter().filter(|target| !above.contains(&target.as_str())) {
            command.args(["--test", target]);
        }
    } else if targets.contains(floor.name()) {
        command.args(["--test", floor.name()]);
    } else {
        return Score { broken: Some("there are no tests of this floor".to_owned()), ..Score::default() };
    }
    command.arg("--").args(filter);
    let prefix = format!("gwt{}x", std::process::id());
    command.env("GATEWAY_LAB_PREFIX", &prefix).env("GATEWAY_BIN_DIR", cargo::target_dir().join("debug"));
    // A failed test is found by its name and its message; a panic still shows where it was.
    command.env("RUST_LIB_BACKTRACE", "0");

    eprintln!("\n{}", term::strong(&format!("== {} ==", floor.name())));
    let begin = Instant::now();
    let mut score = Score::default();
    let ended = cargo::follow(&mut command, LIMIT, |heard| score.hear(heard));
    score.time = begin.elapsed();
    score.broken = match ended {
        Err(error) => Some(format!("{error:#}")),
        Ok(false) if score.failed == 0 => Some("the tests did not run to their end".to_owned()),
        Ok(_) => leftovers::of(&prefix),
    };
    score
}

impl Score {
    /// Counts what the test harness says on its two channels.
    fn hear(&mut self, heard: Heard<'_>) {
        match heard {
            Heard::Out(line) => {
                let Some((_, counts)) =
                    line.trim().strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
                else {
                    return;
                };
                for count in counts.split("; ") {
                    let Some((number, what)) = count.split_once(' ') else { continue };
                    let number = number.parse().unwrap_or(0);
                    match what {
                        "passed" => self.passed += number,
                        "failed" => self.failed += number,
                        "ignored" => self.ignored += number,
                        _ => {}
                    }
                }
            }
            Heard::Err(line) => {
                if let Some(skipped) = line.strip_prefix("SKIP ") {
                    self.skipped.push(skipped.to_owned());
                }
            }
        }
    }

    fn is_good(&self) -> bool {
        self.failed == 0 && self.broken.is_none()
    }
}

fn sum_up(scores: &[(Floor, Score)]) -> Result<()> {
    println!("\n{}", term::strong("floor      passed  failed  skipped  ignored     time"));
    for (floor, score) in scores {
        // A skipped test returns early, and the harness counts it as passed.
        let passed = score.passed.saturating_sub(score.skipped.len() as u64);
        let line = format!(
            "{:<9} {passed:>7} {:>7} {:>8} {:>8} {:>6} s",
            floor.name(),
            score.failed,
            score.skipped.len(),
            score.ignored,
            score.time.as_secs(),
        );
        let paint = match (score.is_good(), score.skipped.is_empty()) {
            (false, _) => term::error,
            (true, false) => term::warn,
            (true, true) => term::good,
        };
        println!("{}", paint(&line));
        if let Some(broken) = &score.broken {
            println!("          {}", term::error(broken));
        }
    }
    let skipped: Vec<_> = scores.iter().flat_map(|(_, score)| &score.skipped).collect();
    for skipped in &skipped {
        println!("{} {skipped}", term::warn("SKIPPED"));
    }
    let bad: Vec<_> =
        scores.iter().filter(|(_, score)| !score.is_good()).map(|(floor, _)| floor.name()).collect();
    if !bad.is_empty() {
        bail!("tests failed: {}", bad.join(", "));
    }
    let of_the_kernel = scores.iter().filter(|(floor, _)| floor.needs_kernel());
    let unproven = of_the_kernel.map(|(_, score)| score.skipped.len()).sum::<usize>();
    if unproven > 0 && std::env::var_os("CI").is_some_and(|value| !value.is_empty()) {
        bail!("{unproven} tests of the kernel were skipped, and CI is set: they prove nothing then");
    }
    Ok(())
}

/// Names of the test targets of the workspace, the files and directories in `tests/`.
fn test_targets() -> Result<BTreeSet<String>> {
    let output = cargo::cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output();
    let output = output.context("cannot run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cannot read cargo metadata")?;
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let mut names = BTreeSet::new();
    for package in list(&metadata, "packages") {
        for target in list(&package, "targets") {
            if list(&target, "kind").iter().any(|kind| kind == "test") {
                names.extend(target["name"].as_str().map(str::to_owned));
            }
        }
    }
    Ok(names)
}

/// A cargo command on every package that is built for this host.
pub(crate) fn workspace(verb: &str) -> Command {
    let mut command = cargo::cargo();
    command.args([verb, "--workspace", "--exclude", "gateway-ebpf"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_taken_from_the_harness() {
        let mut score = Score::default();
        score.hear(Heard::Out(
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ));
        score.hear(Heard::Out(
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s",
        ));
        score.hear(Heard::Out("test reply_is_translated ... ok"));
        score.hear(Heard::Err("SKIP some_test: needs root"));
        assert_eq!((score.passed, score.failed, score.ignored), (7, 3, 1));
        assert_eq!(score.skipped, ["some_test: needs root"]);
    }
}
