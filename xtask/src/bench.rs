//! The benchmarks: builds what they need in release mode, and runs them.

use std::path::PathBuf;

use anyhow::Result;

use crate::{cargo, setup};

/// Options of the benchmarks.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Passed on to the benchmarks; --help tells
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Package and program of the benchmarks.
const PROGRAM: &str = "gateway-bench";

/// The kernel's side of the benchmarks, a program of the package `gateway-ebpf`.
const OBJECT: &str = "gateway-bench-ebpf";

/// Builds and runs the benchmarks.
///
/// # Errors
/// If one fails, or with `--check` misses its target.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(setup::Scope::Everything)?;
    cargo::build_release()?;
    cargo::run(cargo::cargo().args(["build", "--release", "--package", PROGRAM]))?;
    let object = build_object()?;
    let mut program = std::process::Command::new(cargo::target_dir().join("release").join(PROGRAM));
    program.arg("--object").arg(object).arg("--output").arg(cargo::target_dir().join("bench"));
    if let Some(commit) = commit() {
        program.arg("--commit").arg(commit);
    }
    cargo::run(program.args(&options.arguments))
}

/// What is measured, as git describes it; not known where there is no repository.
fn commit() -> Option<String> {
    let describe = ["describe", "--always", "--dirty", "--abbrev=12"];
    let said = std::process::Command::new("git").current_dir(cargo::root()).args(describe).output().ok()?;
    let text = String::from_utf8(said.stdout).ok()?;
    said.status.success().then(|| text.trim().to_owned())
}

/// Builds the kernel's side; returns the path of the object.
fn build_object() -> Result<PathBuf> {
    let directory = cargo::target_dir().join("bench-ebpf");
    let target = cargo::kernel_target();
    let mut build = cargo::kernel("build", &["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3"]);
    cargo::run(build.args(["--quiet", "--bin", OBJECT, "--target-dir"]).arg(&directory))?;
    Ok(directory.join(target).join("bpf").join(OBJECT))
}
