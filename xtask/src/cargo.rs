//! Running cargo and other programs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::term;

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."))
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A cargo of the pinned toolchain, run at the root of the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a program, shows the command line, and fails if the program does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("{} {}", term::dim("$"), term::dim(&words(command)));
    let status = command.status().with_context(|| format!("cannot run `{}`", words(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", words(command));
    }
    Ok(())
}

/// Builds the programs that are copied to a host.
pub(crate) fn build_release() -> Result<()> {
    run(cargo().args(["build", "--release", "--package", "gateway-user", "--bins"]))?;
    let programs = target_dir().join("release");
    for name in ["gatewayd", "gwctl"] {
        let path = programs.join(name);
        let size = path.metadata().with_context(|| format!("{} was not built", path.display()))?.len();
        eprintln!("{} {} ({} kB)", term::good("built"), path.display(), size / 1000);
    }
    Ok(())
}

fn words(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut line = program.to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
