//! Measures the gateway on this machine: `cargo xtask bench`.
//!
//! Every figure is a ratio of two things measured in the same run, in turns: what one machine does in an
//! hour says little about another, or about the same one tomorrow. Needs root; packets stay in network
//! namespaces that this program makes and removes.

mod chart;
mod cpu;
mod environment;
mod expiry;
mod flood;
mod frame;
mod generator;
mod kernel;
mod limits;
mod memory;
mod network;
mod observed;
mod open;
mod path;
mod ports;
mod records;
mod report;
mod routes;
mod scale;
mod single;
mod statistic;
mod subject;
mod throughput;
mod verifier;
mod views;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};

use crate::{environment::Environment, report::Report};

/// Measure the gateway: ns per packet, packets per second, the verifier's work
#[derive(Parser)]
#[command(name = "cargo xtask bench", override_usage = "cargo xtask bench [OPTIONS] [FIGURE]...")]
pub(crate) struct Options {
    /// Which figures; all when none is named
    #[arg(value_name = "FIGURE")]
    figures: Vec<Figure>,
    /// A short run, for a rough look: fewer rounds, shorter turns
    #[arg(long)]
    fast: bool,
    /// How often everything takes its turn
    #[arg(long, default_value_t = 9, default_value_if("fast", "true", "3"), value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Packets of one turn of `path` and `scale`
    #[arg(long, default_value_t = 400_000, default_value_if("fast", "true", "100000"), value_parser = clap::value_parser!(u32).range(1000..=10_000_000))]
    packets: u32,
    /// Milliseconds of one turn of `throughput` and `open`
    #[arg(long, default_value_t = 500, default_value_if("fast", "true", "200"), value_parser = clap::value_parser!(u64).range(50..=10_000))]
    milliseconds: u64,
    /// Another build of the gateway's object for the kernel, measured beside the daemon's by `path`, on the
    /// same maps
    #[arg(long, value_name = "OBJECT")]
    against: Option<PathBuf>,
    /// Fail where a target is missed
    #[arg(long)]
    check: bool,
    /// The kernel's side of the benchmarks
    #[arg(long, hide = true)]
    object: PathBuf,
    /// What is measured, as `git describe` calls it
    #[arg(long, hide = true)]
    commit: Option<String>,
    /// Directory for the figures as JSON and SVG
    #[arg(long, hide = true)]
    output: PathBuf,
}

impl Options {
    /// How long one turn of `throughput` takes.
    fn turn(&self) -> Duration {
        Duration::from_millis(self.milliseconds)
    }
}

/// Something that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// Nanoseconds that the program takes for a packet of an established session
    Path,
    /// The same with a million sessions, next to a thousand
    Scale,
    /// Kernel memory per session
    Memory,
    /// Connections to one destination, and what finding a port for the last ones costs
    Ports,
    /// New flows per second, next to nft masquerade
    Open,
    /// Connections that limits admit, next to what they say, and what they cost new flows
    Limits,
    /// Packets per second that arrive, next to nft masquerade and others
    Throughput,
    /// What established traffic loses while a million sessions expire
    Expiry,
    /// Established sessions lost while more new flows come than there is room for
    Flood,
    /// A million routes: loading, changing, and what packets feel of them
    Routes,
    /// What established traffic loses when it is logged, scraped and looked at
    Observed,
    /// Records of 200,000 sessions a minute
    Records,
    /// What scrapes and lists of a million sessions take, and what packets feel of them
    Views,
    /// Instructions that the verifier looks at
    Verifier,
}

impl Figure {
    fn measure(self, options: &Options) -> Result<Report> {
        match self {
            Self::Path => path::measure(options),
            Self::Scale => scale::measure(options),
            Self::Memory => memory::measure(options),
            Self::Ports => ports::measure(options),
            Self::Open => open::measure(options),
            Self::Limits => limits::measure(options),
            Self::Throughput => throughput::measure(options),
            Self::Expiry => expiry::measure(options),
            Self::Flood => flood::measure(options),
            Self::Routes => routes::measure(options),
            Self::Observed => observed::measure(options),
            Self::Records => records::measure(options),
            Self::Views => views::measure(options),
            Self::Verifier => verifier::measure(options),
        }
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let figures = if options.figures.is_empty() { Figure::value_variants() } else { &options.figures };
    let environment = Environment::read(options)?;
    println!("{environment}");
    let output = &options.output;
    fs::create_dir_all(output).with_context(|| format!("cannot make the directory {}", output.display()))?;
    let mut reports: Vec<Report> = Vec::new();
    for figure in figures {
        let mut report = figure.measure(options)?;
        report.environment = Some(environment.clone());
        println!("\n{report}");
        report.write(output)?;
        reports.push(report);
        // After each: what was measured stays, even if the next one fails.
        chart::draw(&output.join("bench.svg"), &environment.brief(), reports.iter())?;
    }
    if reports.len() > 1 {
        println!("\n{}", report::summary(&reports));
    }
    println!("\nwritten: {}, and a .json of each figure", output.join("bench.svg").display());
    let missed: Vec<String> = reports.iter().flat_map(Report::missed).collect();
    if options.check && !missed.is_empty() {
        bail!("targets missed: {}", missed.join("; "));
    }
    Ok(())
}
