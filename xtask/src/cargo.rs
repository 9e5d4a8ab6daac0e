//! Running cargo and other programs.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

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

/// The target of the kernel's programs on this machine.
pub(crate) fn kernel_target() -> &'static str {
    if cfg!(target_endian = "little") { "bpfel-unknown-none" } else { "bpfeb-unknown-none" }
}

/// A cargo command for the kernel's programs.
///
/// As `gateway-user/build.rs`: a stable compiler builds core from source, and the bindings want to know the
/// machine.
pub(crate) fn kernel(command: &str, flags: &[&str]) -> Command {
    let arch = format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH);
    let flags: Vec<&str> = [arch.as_str()].into_iter().chain(flags.iter().copied()).collect();
    let mut cargo = cargo();
    cargo
        .args([command, "--package", "gateway-ebpf", "--profile", "bpf", "--target", kernel_target()])
        .args(["-Z", "build-std=core"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    cargo
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

/// A line that a program wrote.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Heard<'a> {
    /// To its standard output.
    Out(&'a str),
    /// To its standard error.
    Err(&'a str),
}

/// Runs a program, passes on what it writes line by line, and shows each line to `hear`. Says whether the
/// program succeeded.
///
/// # Errors
/// If it takes longer than `limit`; it is killed then, with every process it started.
pub(crate) fn follow(
    command: &mut Command,
    limit: Duration,
    mut hear: impl FnMut(Heard<'_>),
) -> Result<bool> {
    let line = words(command);
    eprintln!("{}", term::dim(&format!("$ {line}")));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (sender, lines) = mpsc::channel();
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let end = Instant::now() + limit;
    thread::scope(|scope| {
        let to_out = sender.clone();
        scope.spawn(move || read(out, |line| to_out.send((false, line)).is_ok()));
        scope.spawn(move || read(err, |line| sender.send((true, line)).is_ok()));
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((false, line)) => {
                    println!("{line}");
                    hear(Heard::Out(&line));
                }
                Ok((true, line)) => {
                    eprintln!("{line}");
                    hear(Heard::Err(&line));
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(child.wait()?.success()),
                Err(RecvTimeoutError::Timeout) => {
                    kill_family(child.id());
                    child.wait()?;
                    bail!("stopped after {} s: `{line}`", limit.as_secs());
                }
            }
        }
    })
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

fn read(pipe: Option<impl Read>, mut pass: impl FnMut(String) -> bool) {
    let Some(pipe) = pipe else { return };
    for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
        if !pass(String::from_utf8_lossy(&line).into_owned()) {
            return;
        }
    }
}

/// Kills a process and its descendants, parents first so that none starts another one.
fn kill_family(pid: u32) {
    let mut family = vec![pid];
    while let Some(pid) = family.pop() {
        if let Ok(raw) = i32::try_from(pid) {
            let _gone = kill(Pid::from_raw(raw), Signal::SIGSTOP);
        }
        family.extend(children(pid));
        if let Ok(raw) = i32::try_from(pid) {
            let _gone = kill(Pid::from_raw(raw), Signal::SIGKILL);
        }
    }
}

fn children(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name of the program is in parentheses and may hold anything; the parent is the second field after.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        fields.split_whitespace().nth(1).and_then(|field| field.parse().ok()) == Some(parent)
    };
    pids.filter(is_child).collect()
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
