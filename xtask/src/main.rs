//! The chores of the gateway, as programs: `cargo xtask COMMAND`.

mod bench;
mod cargo;
mod demo;
mod floors;
mod generate;
mod leftovers;
mod lint;
mod setup;
mod term;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set up, build, test and show the gateway.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install whatever a build, the tests and the demo need and this machine lacks
    Setup {
        /// Only report what is missing; exit 1 if anything is
        #[arg(long)]
        check: bool,
    },
    /// Build gatewayd and gwctl in release mode, with the XDP object inside
    Build,
    /// Show the gateway at work, in a network of namespaces that is gone afterwards (as root)
    Demo(demo::Options),
    /// A server of the demo
    #[command(hide = true)]
    Serve { address: std::net::SocketAddr, log: std::path::PathBuf },
    /// Run the tests: all floors, or those named
    Test {
        /// Which floors
        floors: Vec<floors::Floor>,
        /// Passed on to the test harness: part of a test's name, --nocapture, ...
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// Measure the gateway against what else could be in its place, and write target/bench/*.json (as root)
    Bench(bench::Options),
    /// Write the generated pages in docs/reference anew
    Gen,
    /// Check formatting, run clippy on the host crates and the kernel object, and look over the tree
    Lint,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Setup { check: true } => setup::check(),
        Command::Setup { check: false } => setup::ensure(setup::Scope::Everything),
        Command::Build => setup::ensure(setup::Scope::Build).and_then(|()| cargo::build_release()),
        Command::Demo(options) => demo::run(options),
        Command::Serve { address, log } => demo::serve(address, &log),
        Command::Test { floors, filter } => floors::test(&floors, &filter),
        Command::Bench(options) => bench::run(&options),
        Command::Gen => generate::pages(),
        Command::Lint => lint::lint(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", term::error("error:"));
            ExitCode::FAILURE
        }
    }
}
